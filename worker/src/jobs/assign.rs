//! Assign jobs: all of a batch at once, grouped by book.

use std::collections::BTreeMap;

use coupon_core::{
    Error,
    coupon::assign::{self, Request},
    job::claim::{Finished, Outcome, Step},
};
use sqlx::PgConnection;
use uuid::Uuid;

/// Books in the order of their ids, so that two batches cannot wait for each other; within a book the jobs in theirs.
pub(crate) async fn run(
    connection: &mut PgConnection,
    requests: Vec<Request>,
) -> Result<Vec<(Uuid, Outcome)>, Error> {
    let mut by_book: BTreeMap<Uuid, Vec<Request>> = BTreeMap::new();
    for request in requests {
        by_book.entry(request.1.book_id).or_default().push(request);
    }
    let mut outcomes = Vec::new();
    for (book_id, requests) in by_book {
        let answers = assign::assign(connection, book_id, &requests).await?;
        for ((job_id, _), answer) in requests.iter().zip(answers) {
            let outcome = match answer {
                Ok(coupons) => {
                    let count = i64::try_from(coupons.len()).unwrap_or(i64::MAX);
                    let step = Step {
                        done: count,
                        total: Some(count),
                        counts: BTreeMap::from([("assigned".to_owned(), count)]),
                    };
                    Finished::succeeded(step, serde_json::json!({ "coupons": coupons }))
                }
                Err(refusal) => Finished::refused(refusal),
            };
            outcomes.push((*job_id, outcome));
        }
    }
    Ok(outcomes)
}
