//! `couponbook generate`: codes from a pattern, made by a job.

use serde_json::{Map, Value};

use super::{Client, Done, Waiting};

/// What to generate.
#[derive(Debug, clap::Args)]
pub(crate) struct Arguments {
    /// Into which book: its id or its name.
    #[arg(long)]
    book: String,
    /// How many codes.
    #[arg(long, value_name = "N")]
    count: u64,
    /// How they are spelled: `#` a digit, `?` a letter, `*` either, `\` takes the next as it is; else the book's pattern.
    #[arg(long)]
    pattern: Option<String>,
    /// What `*` draws from: digits, letters, alphanumeric, unambiguous, or symbols of your own.
    #[arg(long)]
    alphabet: Option<String>,
    /// End each code with a character that catches typing errors.
    #[arg(long)]
    check: bool,
    /// When these coupons expire (RFC 3339).
    #[arg(long, value_name = "TIME")]
    expires_at: Option<String>,
    #[command(flatten)]
    waiting: Waiting,
}

pub(super) async fn run(client: &Client, arguments: Arguments) -> Done {
    let book_id = client.book(&arguments.book).await?;
    let mut body = Map::new();
    body.insert("count".to_owned(), arguments.count.into());
    for (name, value) in [
        ("pattern", arguments.pattern.map(Value::from)),
        ("alphabet", arguments.alphabet.map(Value::from)),
        ("check", arguments.check.then_some(Value::Bool(true))),
        ("expires_at", arguments.expires_at.map(Value::from)),
    ] {
        if let Some(value) = value {
            body.insert(name.to_owned(), value);
        }
    }
    let path = format!("/v1/books/{book_id}/codes/generate");
    let job = client.http.post(&path, &Value::Object(body)).await?;
    client.started(job, &arguments.waiting).await
}
