//! Assignments of many users in one job: accepted as a list, done in steps, an outcome for every item.
//!
//! Invariant: a step's assignments, its refusals and its place in the list commit together, so every item is dealt with
//! exactly once however often a worker is killed.

use std::collections::BTreeMap;

use sqlx::PgConnection;
use uuid::Uuid;

use super::{Origin, assign};
use crate::{
    book,
    caller::{Actor, ActorKind},
    error::{Code, Error, Refusal, Result},
    import::records::{Next, Place, Records},
    job::{
        State,
        claim::{Finished, Outcome, Step},
        enqueue::{self, NewJob},
        ledger,
        payload::{AssignCoupons, MAX_DRAW, Payload, Wanted},
    },
};

/// The most items of one job.
pub const MAX_ITEMS: usize = 10_000;

/// Items of one step: one batch of draws, some tens of milliseconds under the book's draw.
const STEP_ITEMS: i64 = 500;

/// One item: who, and how many.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Item {
    /// The user; `None` when an e-mail address named nobody.
    pub user_id: Option<Uuid>,
    /// How many, all or none.
    pub count: u32,
}

/// Reads `user_email,count` from CSV (RFC 4180); a header is found by its names, a missing count is 1.
///
/// # Errors
/// `validation_failed` naming the line, `csv_header_missing` when there is no column of e-mail addresses.
pub async fn read_csv(connection: &mut PgConnection, text: &[u8]) -> Result<Vec<Item>> {
    let text = text.strip_prefix(b"\xef\xbb\xbf").unwrap_or(text);
    let head = text.split(|byte| *byte == b'\n').next().unwrap_or_default();
    let delimiter = [b';', b'\t', b'|']
        .into_iter()
        .find(|delimiter| head.contains(delimiter))
        .unwrap_or(b',');
    let mut records = Records::new(delimiter, Place::START);
    let (mut piece, mut columns) = (text, None);
    let (mut emails, mut counts) = (Vec::new(), Vec::new());
    loop {
        let fault =
            |line: i64, detail: &str| Error::invalid("", "bad_line", format!("Line {line}: {detail}"));
        let record = match records.next(&mut piece, true) {
            Next::Record(record) => record,
            Next::NeedInput | Next::End => break,
            Next::Unclosed(line) => return Err(fault(line, "a quote is never closed.")),
            Next::TooLong(line) => return Err(fault(line, "the line is too long.")),
        };
        let field = |index: usize| String::from_utf8_lossy(record.field(index)).trim().to_owned();
        let Some((email_column, count_column)) = columns else {
            let place = |names: &[&str]| {
                (0..record.len()).find(|index| names.contains(&field(*index).to_lowercase().as_str()))
            };
            let email_column = place(&["user_email", "email", "e-mail"]).ok_or_else(|| {
                Refusal::new(
                    Code::CsvHeaderMissing,
                    "The first line names no column user_email.",
                )
            })?;
            columns = Some((email_column, place(&["count"])));
            continue;
        };
        let count = count_column
            .map(field)
            .filter(|text| !text.is_empty())
            .map_or(Ok(1), |text| text.parse::<u32>());
        let count = count.ok().filter(|count| (1..=MAX_DRAW).contains(count));
        emails.push(field(email_column));
        counts.push(count.ok_or_else(|| fault(record.line, "count is a number from 1 to 1000."))?);
        if emails.len() > MAX_ITEMS {
            return Err(Error::invalid(
                "",
                "out_of_range",
                format!("A batch has 1 to {MAX_ITEMS} items."),
            ));
        }
    }
    let users: Vec<Option<Uuid>> = sqlx::query_scalar(
        "SELECT u.id FROM unnest($1::text[]) WITH ORDINALITY AS n (email, place)
         LEFT JOIN users u ON lower(u.email) = lower(n.email) ORDER BY n.place",
    )
    .bind(
        emails
            .iter()
            .map(|email| email.replace('\0', ""))
            .collect::<Vec<_>>(),
    )
    .fetch_all(connection)
    .await?;
    Ok(users
        .into_iter()
        .zip(counts)
        .map(|(user_id, count)| Item { user_id, count })
        .collect())
}

/// Accepts a list of assignments as a job. Items of unknown users are refused at once, in the job's errors.
///
/// # Errors
/// `not_found` (the book), `validation_failed` (no items, or too many).
pub async fn accept(
    connection: &mut PgConnection,
    book_id: Uuid,
    items: &[Item],
    origin: Origin<'_>,
) -> Result<Uuid> {
    if items.is_empty() || items.len() > MAX_ITEMS {
        let detail = format!("A batch has 1 to {MAX_ITEMS} items.");
        return Err(Error::invalid("/items", "out_of_range", detail));
    }
    book::find(connection, book_id).await?;
    let total = i64::try_from(items.len()).unwrap_or(i64::MAX);
    let job = NewJob {
        payload: &Payload::AssignBatch,
        actor: origin.actor,
        book_id: Some(book_id),
        total: Some(total),
        request_id: origin.request_id,
        beneficiary: None,
    };
    let job_id = enqueue::enqueue(connection, job).await?;
    sqlx::query(
        "INSERT INTO assign_batches (job_id, book_id, actor_id, actor_kind, items) VALUES ($1, $2, $3, $4, $5)",
    )
    .bind(job_id)
    .bind(book_id)
    .bind(origin.actor.id)
    .bind(origin.actor.kind.as_str())
    .bind(total)
    .execute(&mut *connection)
    .await?;
    let users: Vec<Option<Uuid>> = items.iter().map(|item| item.user_id).collect();
    let counts: Vec<i32> = items
        .iter()
        .map(|item| i32::try_from(item.count).unwrap_or(i32::MAX))
        .collect();
    sqlx::query(
        "WITH i AS (
             SELECT n.item - 1 AS item, n.user_id, n.count, u.id IS NOT NULL AS known
             FROM unnest($2::uuid[], $3::int[]) WITH ORDINALITY AS n (user_id, count, item)
             LEFT JOIN users u ON u.id = n.user_id),
         kept AS (
             INSERT INTO assign_batch_items (job_id, item, user_id, count)
             SELECT $1, item, user_id, count FROM i WHERE known),
         refused AS (
             INSERT INTO job_errors (job_id, seq, entry)
             SELECT $1, item, jsonb_strip_nulls(jsonb_build_object('item', item, 'user_id', user_id,
                    'reason', 'unknown_user', 'detail', 'There is no such user.'))
             FROM i WHERE NOT known RETURNING 1)
         UPDATE assign_batches SET refused = (SELECT count(*) FROM refused) WHERE job_id = $1",
    )
    .bind(job_id)
    .bind(users)
    .bind(counts)
    .execute(connection)
    .await?;
    Ok(job_id)
}

#[derive(sqlx::FromRow)]
struct Row {
    book_id: Uuid,
    actor_id: Uuid,
    actor_kind: String,
    items: i64,
    next_item: i64,
    assigned: i64,
    refused: i64,
    request_id: Option<String>,
}

/// Takes the next items of a batch.
pub const TAKE: &str = "DELETE FROM assign_batch_items WHERE ctid = ANY (ARRAY(
         SELECT ctid FROM assign_batch_items WHERE job_id = $1 AND NOT $3 ORDER BY item LIMIT $2))
     RETURNING item, user_id, count";

/// Deals with the next items.
///
/// # Errors
/// When the database fails.
pub async fn step(connection: &mut PgConnection, job_id: Uuid) -> Result<Outcome> {
    let cancelled = ledger::is_cancelled(connection, job_id).await?;
    let row: Option<Row> = sqlx::query_as(
        "SELECT b.book_id, b.actor_id, b.actor_kind, b.items, b.next_item, b.assigned, b.refused, j.request_id
         FROM assign_batches b JOIN jobs j ON j.id = b.job_id WHERE b.job_id = $1 FOR UPDATE OF b",
    )
    .bind(job_id)
    .fetch_optional(&mut *connection)
    .await?;
    let Some(mut row) = row else {
        return Ok(Finished::undecodable());
    };
    let mut taken: Vec<(i64, Uuid, i32)> = sqlx::query_as(TAKE)
        .bind(job_id)
        .bind(STEP_ITEMS)
        .bind(cancelled)
        .fetch_all(&mut *connection)
        .await?;
    if taken.is_empty() {
        return Ok(row.end(cancelled));
    }
    taken.sort_unstable_by_key(|(item, ..)| *item);
    let requests: Vec<assign::Request> = taken
        .iter()
        .map(|(_, user_id, count)| (job_id, row.request(*user_id, *count)))
        .collect();
    let answers = assign::assign(connection, row.book_id, &requests).await?;
    let mut refused = Refused::default();
    for ((item, user_id, _), answer) in taken.iter().zip(answers) {
        match answer {
            Ok(coupons) => row.assigned += i64::try_from(coupons.len()).unwrap_or(0),
            Err(refusal) => {
                row.refused += 1;
                refused.items.push(*item);
                refused.entries.push(serde_json::json!({
                    "item": item, "user_id": user_id, "reason": refusal.code.as_str(), "detail": refusal.detail,
                }));
            }
        }
    }
    row.next_item = taken.last().map_or(row.next_item, |(item, ..)| item + 1);
    sqlx::query(
        "WITH listed AS (
             INSERT INTO job_errors (job_id, seq, entry) SELECT $1, * FROM unnest($2::bigint[], $3::jsonb[]))
         UPDATE assign_batches SET next_item = $4, assigned = $5, refused = $6 WHERE job_id = $1",
    )
    .bind(job_id)
    .bind(refused.items)
    .bind(refused.entries)
    .bind(row.next_item)
    .bind(row.assigned)
    .bind(row.refused)
    .execute(connection)
    .await?;
    if row.next_item >= row.items {
        Ok(row.end(false))
    } else {
        Ok(Outcome::NextStep(row.progress()))
    }
}

#[derive(Default)]
struct Refused {
    items: Vec<i64>,
    entries: Vec<serde_json::Value>,
}

impl Row {
    fn request(&self, user_id: Uuid, count: i32) -> AssignCoupons {
        AssignCoupons {
            book_id: self.book_id,
            user_id,
            wanted: Wanted::Draw(count.unsigned_abs()),
            actor: Actor {
                kind: if self.actor_kind == "user" {
                    ActorKind::User
                } else {
                    ActorKind::ApiKey
                },
                id: Some(self.actor_id),
            },
            as_user: false,
            request_id: self.request_id.clone(),
        }
    }

    fn progress(&self) -> Step {
        Step {
            done: self.next_item,
            total: Some(self.items),
            counts: BTreeMap::from([
                ("assigned".to_owned(), self.assigned),
                ("refused".to_owned(), self.refused),
            ]),
        }
    }

    fn end(&mut self, cancelled: bool) -> Outcome {
        if !cancelled {
            self.next_item = self.items; // the last items may have been refused when the batch was accepted
        }
        let state = match (cancelled, self.refused) {
            (true, _) => State::Cancelled,
            (false, 0) => State::Succeeded,
            (false, _) => State::PartiallySucceeded,
        };
        Outcome::Finished(Finished {
            state,
            step: self.progress(),
            result: Some(serde_json::json!({ "assigned": self.assigned, "refused": self.refused })),
            refusal: None,
        })
    }
}
