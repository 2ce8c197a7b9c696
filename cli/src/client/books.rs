//! `couponbook books`: list, show, count, make.

use clap::{Subcommand, ValueEnum};
use serde_json::{Map, Value};

use super::{Client, Done, Exit, output::cell, text};

/// The commands.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// List the books.
    Ls,
    /// Show a book, and its coupons by state.
    Get {
        /// Its id or its name.
        book: String,
    },
    /// Make a book; prints its id.
    Create(Box<Create>),
}

/// What a new book is to be.
#[derive(Debug, clap::Args)]
pub(crate) struct Create {
    /// For people.
    name: String,
    /// For people, too.
    #[arg(long)]
    description: Option<String>,
    /// Whether coupons move already; active by default.
    #[arg(long, value_enum)]
    status: Option<Status>,
    /// How often one coupon can be redeemed.
    #[arg(long, value_name = "N")]
    redemptions_per_coupon: Option<u32>,
    /// Coupons that one user may be given.
    #[arg(long, value_name = "N")]
    max_assignments_per_user: Option<u32>,
    /// Redemptions that one user may make.
    #[arg(long, value_name = "N")]
    max_redemptions_per_user: Option<u32>,
    /// Redeem without a lock first.
    #[arg(long)]
    no_lock: bool,
    /// Users see the book and take coupons themselves.
    #[arg(long)]
    self_service: bool,
    /// From when on coupons move (RFC 3339).
    #[arg(long, value_name = "TIME")]
    starts_at: Option<String>,
    /// Until when (RFC 3339).
    #[arg(long, value_name = "TIME")]
    ends_at: Option<String>,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum Status {
    Draft,
    Active,
    Paused,
}

impl Create {
    fn body(self) -> Value {
        let mut body = Map::new();
        let mut put = |name: &str, value: Option<Value>| {
            if let Some(value) = value {
                body.insert(name.to_owned(), value);
            }
        };
        put("name", Some(self.name.into()));
        put("description", self.description.map(Value::from));
        put(
            "status",
            self.status.map(|status| match status {
                Status::Draft => "draft".into(),
                Status::Active => "active".into(),
                Status::Paused => "paused".into(),
            }),
        );
        put(
            "redemptions_per_coupon",
            self.redemptions_per_coupon.map(Value::from),
        );
        put(
            "max_assignments_per_user",
            self.max_assignments_per_user.map(Value::from),
        );
        put(
            "max_redemptions_per_user",
            self.max_redemptions_per_user.map(Value::from),
        );
        put("require_lock", self.no_lock.then_some(Value::Bool(false)));
        put("self_service", self.self_service.then_some(Value::Bool(true)));
        put("starts_at", self.starts_at.map(Value::from));
        put("ends_at", self.ends_at.map(Value::from));
        Value::Object(body)
    }
}

pub(super) async fn run(client: &Client, command: Command) -> Done {
    match command {
        Command::Ls => {
            let mut pages = client.http.pages("/v1/books?limit=100".to_owned());
            while let Some(page) = pages.next(&client.http).await? {
                for book in &page {
                    let cells = [
                        (cell(book, "id"), 36),
                        (cell(book, "status"), 8),
                        (cell(book, "name"), 0),
                    ];
                    if !client.output.row(book, &cells) {
                        return Ok(Exit::Ok);
                    }
                }
            }
        }
        Command::Get { book } => {
            let id = client.book(&book).await?;
            let mut book = client.http.get(&format!("/v1/books/{id}")).await?;
            // A holder of self-service books may not count them.
            if let Ok(stats) = client.http.get(&format!("/v1/books/{id}/stats")).await {
                book["stats"] = stats;
            }
            client.output.members(&book);
        }
        Command::Create(create) => {
            let book = client.http.post("/v1/books", &create.body()).await?;
            client.output.object(&book, || text(&book["id"]).to_owned());
        }
    }
    Ok(Exit::Ok)
}
