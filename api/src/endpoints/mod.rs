//! One file per resource: DTOs, then the handlers; from here to the SQL it is one use case of core.
//!
//! To add an endpoint: its handler in the file of its resource, `Auth` among the arguments, `IdempotencyKey` and
//! [`crate::once::Once`] for a POST, the roles in `tests/it/access.rs`, a line in docs/api.md, `./x openapi`.

pub mod api_keys;
pub mod assign;
pub mod audit;
pub mod auth;
pub mod books;
pub mod codes;
pub mod coupons;
pub mod distribution_items;
pub mod distribution_plan;
pub mod distribution_proof;
pub mod distribution_undo;
pub mod distributions;
pub mod exports;
pub mod generate;
pub mod health;
pub mod job_errors;
pub mod job_events;
pub mod job_reply;
pub mod job_view;
pub mod jobs;
pub mod jobs_admin;
pub mod me;
pub mod pools;
pub mod redemptions;
pub mod schedule_fires;
pub mod schedule_preview;
pub mod schedules;
pub mod setup;
pub mod stats;
pub mod till;
pub mod users;

use std::{collections::BTreeMap, net::IpAddr};

use chrono::{DateTime, Utc};
use coupon_core::{
    Code, Refusal,
    caller::Caller,
    coupon::{Behalf, CouponId, Origin, code, locate},
    generate::form,
    user::{
        api_key,
        budget::{self, Budget, SecurityBudgets},
    },
};
use poem::web::RemoteAddr;
use poem_openapi::{ApiResponse, Tags};
use serde_json::Value;
use sha2::{Digest, Sha256};
use sqlx::PgConnection;
use uuid::Uuid;

use crate::{app::App, problem::Problem, request_id::RequestId, time::Time};

/// The groups of the document.
#[derive(Tags)]
#[oai(rename_all = "PascalCase")]
pub enum Tag {
    /// Books and the codes in them.
    Books,
    /// Coupons: look up, assign, lock, redeem.
    Coupons,
    /// Sets of people, and giving coupons to them, now or by a schedule.
    Pools,
    /// Jobs: poll, cancel, errors.
    Jobs,
    /// Accounts, sessions and API keys.
    People,
    /// What happened.
    Audit,
    /// How things went over time.
    Statistics,
    /// Whether the service is well.
    Health,
}

/// An answer without a body.
#[derive(Debug, ApiResponse)]
pub enum NoContent {
    /// Done; there is nothing more to say.
    #[oai(status = 204)]
    Done,
}

/// The network address of whoever called, as the connection has it; what a header claims is not believed.
pub fn client_address(remote: &RemoteAddr) -> Option<IpAddr> {
    remote.as_socket_addr().map(|address| address.ip())
}

/// The hash of a body that holds a password, keyed: it is stored for "same key, same request", and without the key
/// passwords could be tried against it far faster than against their own hashes.
pub fn keyed_hash(app: &App, body: &[u8; 32]) -> [u8; 32] {
    let key = app.authenticator().keys().derive("request-hash");
    // Key and text have fixed lengths, so nothing can be appended.
    Sha256::new()
        .chain_update(key)
        .chain_update(body)
        .finalize()
        .into()
}

/// Bytes as hexadecimal digits.
pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Free-form fields of a client's own.
pub type Metadata = BTreeMap<String, Value>;

/// The most bytes of free-form fields, as JSON.
const MAX_METADATA_BYTES: usize = 16 * 1024;

/// Checks the size of free-form fields.
///
/// # Errors
/// 422 at `/metadata`.
pub fn check_metadata(metadata: Option<Metadata>) -> Result<Value, Problem> {
    let value = Value::Object(metadata.unwrap_or_default().into_iter().collect());
    if value.to_string().len() > MAX_METADATA_BYTES {
        let detail = format!("metadata may have at most {MAX_METADATA_BYTES} bytes as JSON.");
        return Err(Problem::field("/metadata", "too_long", detail));
    }
    Ok(value)
}

/// Free-form fields from where they are stored.
pub fn metadata(value: Value) -> Metadata {
    match value {
        Value::Object(map) => map.into_iter().collect(),
        _ => Metadata::new(),
    }
}

/// Who does it and in which request.
pub fn origin<'a>(caller: &Caller, id: &'a RequestId) -> Origin<'a> {
    Origin {
        actor: caller.actor(),
        request_id: Some(id.as_str()),
    }
}

/// A time as clients give it, which PostgreSQL must be able to hold.
///
/// # Errors
/// 422 at `pointer`.
pub fn check_time(pointer: &str, time: Option<Time>) -> Result<Option<DateTime<Utc>>, Problem> {
    use chrono::Datelike;
    match time.map(|Time(time)| time) {
        Some(time) if !(1..=9999).contains(&time.year()) => Err(Problem::field(
            pointer,
            "out_of_range",
            "A time lies in the years 1 to 9999.",
        )),
        time => Ok(time),
    }
}

/// A code from a path; what is no code is found nowhere.
///
/// # Errors
/// `not_found`.
pub fn path_code(text: &str) -> Result<code::Code, Refusal> {
    code::Code::parse(text).map_err(|_| Refusal::not_found())
}

/// What `?code=` narrows a list of what happened to.
pub enum Narrowed {
    /// Everything: no code was given.
    Not,
    /// This coupon.
    To(CouponId),
    /// Nothing: what is no coupon has no history.
    ToNothing,
}

impl Narrowed {
    /// Finds the coupon that an administrator means by `?code=`.
    ///
    /// # Errors
    /// `code_ambiguous`.
    pub async fn by_code(
        connection: &mut PgConnection,
        code: Option<&str>,
        book_id: Option<Uuid>,
    ) -> Result<Self, Problem> {
        let Some(text) = code else {
            return Ok(Self::Not);
        };
        let found = match path_code(text) {
            Ok(code) => locate::locate(connection, Behalf::Anybody, &code, book_id)
                .await
                .map(|found| found.coupon),
            Err(refusal) => Err(refusal.into()),
        };
        match found {
            Ok(coupon) => Ok(Self::To(coupon)),
            Err(error) if error.code() == Code::NotFound => Ok(Self::ToNothing),
            Err(error) => Err(error.into()),
        }
    }
}

/// Look-ups of codes by callers who cannot list them: those that miss are budgeted, so that codes cannot be scanned.
/// What cannot be a code of the book that is named, by its form or its check character, is no miss: whoever types such a
/// one has slipped, and who guesses learns nothing.
pub struct Lookup<'a> {
    app: &'a App,
    budget: Option<Budget>,
    typed: Option<(Uuid, &'a str)>,
}

impl<'a> Lookup<'a> {
    /// Asks whether the caller may look up a code at all.
    ///
    /// # Errors
    /// `rate_limited`.
    pub async fn begin(
        app: &'a App,
        caller: &Caller,
        code: &'a str,
        book_id: Option<Uuid>,
    ) -> Result<Self, Problem> {
        let typed = book_id.map(|book_id| (book_id, code));
        if caller.is_admin() || app.budgets() == SecurityBudgets::Off {
            return Ok(Self {
                app,
                budget: None,
                typed,
            });
        }
        let limit = api_key::miss_budget(app.db().pool(), caller).await?;
        let budget = Budget::code_miss(caller.id, limit);
        budget::check(app.db().pool(), app.budgets(), &budget)
            .await?
            .require()?;
        Ok(Self {
            app,
            budget: Some(budget),
            typed,
        })
    }

    /// Counts a miss.
    ///
    /// # Errors
    /// The error itself, or `rate_limited` when it was one miss too many.
    pub async fn end<T>(self, found: Result<T, Problem>) -> Result<T, Problem> {
        if let (Err(problem), Some(budget)) = (&found, &self.budget)
            && problem.code() == Code::NotFound
            && self.may_exist().await?
        {
            budget::spend(self.app.db().pool(), self.app.budgets(), budget)
                .await?
                .require()?;
        }
        found
    }

    /// Whether what was typed can be a code at all.
    async fn may_exist(&self) -> Result<bool, Problem> {
        let Some((book_id, text)) = self.typed else {
            return Ok(true);
        };
        let Ok(code) = code::Code::parse(text) else {
            return Ok(true);
        };
        let mut connection = self.app.connection().await?;
        Ok(form::fits(&mut connection, book_id, &code).await?)
    }
}
