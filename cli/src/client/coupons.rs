//! `couponbook coupons` and `couponbook assign`: one coupon, or a few for one user.

use std::time::Duration;

use clap::Subcommand;
use serde_json::{Map, Value, json};

use super::{Client, Done, Exit, Waiting, http::encode, jobs, output, text};

/// The commands.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Look a code up.
    Get {
        #[command(flatten)]
        which: Which,
    },
    /// Hold a coupon before it is redeemed; prints the token.
    Lock {
        #[command(flatten)]
        which: Which,
        /// On whose behalf: an id or an e-mail address.
        #[arg(long)]
        user: Option<String>,
        /// The token of a lock that is to be renewed.
        #[arg(long)]
        token: Option<String>,
    },
    /// Give a lock back.
    Unlock {
        #[command(flatten)]
        which: Which,
        /// The lock's token.
        #[arg(long)]
        token: Option<String>,
    },
    /// Spend one use; prints the redemption's id.
    Redeem {
        #[command(flatten)]
        which: Which,
        /// On whose behalf: an id or an e-mail address.
        #[arg(long)]
        user: Option<String>,
        /// The lock's token.
        #[arg(long)]
        token: Option<String>,
    },
}

/// Which coupon is meant.
#[derive(Debug, clap::Args)]
pub(crate) struct Which {
    /// The code.
    code: String,
    /// In which book, if several hold the code: its id or its name.
    #[arg(long)]
    book: Option<String>,
}

/// Who is to get what.
#[derive(Debug, clap::Args)]
pub(crate) struct AssignArguments {
    /// From which book: its id or its name.
    #[arg(long)]
    book: String,
    /// To whom: an id or an e-mail address.
    #[arg(long)]
    user: String,
    /// So many, drawn at random, all or none.
    #[arg(long, value_name = "N", conflicts_with = "code")]
    count: Option<u32>,
    /// This one.
    #[arg(long)]
    code: Option<String>,
    #[command(flatten)]
    waiting: Waiting,
}

pub(super) async fn run(client: &Client, command: Command) -> Done {
    let (which, verb, user, token, shown) = match command {
        Command::Get { which } => {
            let query = match &which.book {
                Some(book) => format!("?book_id={}", client.book(book).await?),
                None => String::new(),
            };
            let coupon = client
                .http
                .get(&format!("/v1/coupons/{}{query}", encode(&which.code)))
                .await?;
            client.output.members(&coupon);
            return Ok(Exit::Ok);
        }
        Command::Lock { which, user, token } => (which, "lock", user, token, "lock_token"),
        Command::Unlock { which, token } => (which, "unlock", None, token, "state"),
        Command::Redeem { which, user, token } => (which, "redeem", user, token, "id"),
    };
    let mut body = Map::new();
    if let Some(book) = &which.book {
        body.insert("book_id".to_owned(), json!(client.book(book).await?));
    }
    if let Some(user) = &user {
        body.insert("user_id".to_owned(), json!(client.user(user).await?));
    }
    if let Some(token) = token {
        body.insert("lock_token".to_owned(), token.into());
    }
    let path = format!("/v1/coupons/{verb}/{}", encode(&which.code));
    let answer = client.http.post(&path, &Value::Object(body)).await?;
    client.output.object(&answer, || text(&answer[shown]).to_owned());
    Ok(Exit::Ok)
}

/// Gives coupons; once waited for, their codes are the data.
pub(super) async fn assign(client: &Client, arguments: AssignArguments) -> Done {
    let book_id = client.book(&arguments.book).await?;
    let user_id = client.user(&arguments.user).await?;
    let job = match &arguments.code {
        Some(code) => {
            let body = json!({ "book_id": book_id, "user_id": user_id });
            client
                .http
                .post(&format!("/v1/coupons/assign/{}", encode(code)), &body)
                .await?
        }
        None => {
            let body =
                json!({ "book_id": book_id, "user_id": user_id, "count": arguments.count.unwrap_or(1) });
            client.http.post("/v1/coupons/assign", &body).await?
        }
    };
    if !arguments.waiting.wait {
        return client.started(job, &arguments.waiting).await;
    }
    let job = client
        .finish(&job, arguments.waiting.timeout.map(Duration::from_secs))
        .await?;
    if client.output.json {
        output::line(&job.to_string());
    } else {
        for coupon in job["result"]["coupons"].as_array().into_iter().flatten() {
            output::line(text(&coupon["code"]));
        }
    }
    jobs::verdict(&job)
}
