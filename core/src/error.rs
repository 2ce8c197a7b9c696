//! What can go wrong, named once: every refusal has a stable code, a kind and a sentence for people.
//!
//! Invariant: a [`Code`] never changes its spelling or its [`Kind`]; outside clients are written against both.
//! `api` has the one table from kind to HTTP status, `worker` the one from error to verdict.
//! To add a refusal: a variant in [`Code`], its line in [`Code::kind`], its row in `docs/api.md`.

use std::{borrow::Cow, fmt, time::Duration};

use crate::rate_limit::Standing;

/// The result of every use case.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Why a use case did not happen.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The domain says no; asking again the same way gives the same answer until something changes.
    #[error(transparent)]
    Refused(#[from] Refusal),
    /// The request is not well formed; every fault is listed.
    #[error("{}", invalid_summary(.0))]
    Invalid(Vec<FieldError>),
    /// A pattern cannot be taken.
    #[error(transparent)]
    Unfit(#[from] Unfit),
    /// The database failed or could not be reached.
    #[error(transparent)]
    Store(#[from] StoreError),
}

impl Error {
    /// A single fault in the field that `pointer` (RFC 6901) names.
    pub fn invalid(pointer: impl Into<String>, code: &'static str, detail: impl Into<String>) -> Self {
        Self::Invalid(vec![FieldError {
            pointer: pointer.into(),
            code,
            detail: detail.into(),
        }])
    }

    /// The stable code of this error.
    pub fn code(&self) -> Code {
        match self {
            Self::Refused(refusal) => refusal.code,
            Self::Invalid(_) => Code::ValidationFailed,
            Self::Unfit(unfit) => unfit.code,
            Self::Store(error) if error.is_retryable() => Code::Unavailable,
            Self::Store(_) => Code::Internal,
        }
    }
}

impl From<sqlx::Error> for Error {
    fn from(error: sqlx::Error) -> Self {
        Self::Store(error.into())
    }
}

fn invalid_summary(errors: &[FieldError]) -> String {
    match errors {
        [] => "the request is not valid".to_owned(),
        [one] => one.to_string(),
        [first, rest @ ..] => format!("{first} (and {} more)", rest.len()),
    }
}

/// One fault of a request.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct FieldError {
    /// Where: a JSON pointer (RFC 6901) into the body, or `?name` for a query parameter.
    pub pointer: String,
    /// What: a stable word such as `required`, `wrong_type`, `out_of_range`.
    pub code: &'static str,
    /// The same for people.
    pub detail: String,
}

impl fmt::Display for FieldError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.pointer.as_str() {
            "" => f.write_str(&self.detail),
            pointer => write!(f, "{pointer}: {}", self.detail),
        }
    }
}

/// A pattern that cannot be taken: it cannot be read, or spells too few codes.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{fault}")]
pub struct Unfit {
    /// `pattern_invalid` or `pattern_space_too_small`.
    pub code: Code,
    /// Where and why.
    pub fault: FieldError,
    /// How many characters codes would need, if that is what is wrong.
    pub needed_length: Option<usize>,
}

impl Unfit {
    /// A fault at `pointer`.
    pub fn at(code: Code, pointer: &str, fault: &'static str, detail: impl Into<String>) -> Self {
        Self {
            code,
            fault: FieldError {
                pointer: pointer.to_owned(),
                code: fault,
                detail: detail.into(),
            },
            needed_length: None,
        }
    }
}

/// A refusal by the domain: a stable code and a sentence that says what, why and what to do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refusal {
    /// The stable code.
    pub code: Code,
    /// For people; never holds a coupon code, token or password.
    pub detail: Cow<'static, str>,
    /// When asking again may help, if that is known.
    pub retry_after: Option<Duration>,
    /// The limit that was reached, if it was one.
    pub limit: Option<Box<Standing>>,
}

impl Refusal {
    /// A refusal with its sentence.
    pub fn new(code: Code, detail: impl Into<Cow<'static, str>>) -> Self {
        Self {
            code,
            detail: detail.into(),
            retry_after: None,
            limit: None,
        }
    }

    /// The same, with the limit that was reached.
    pub fn limit(mut self, reached: Standing) -> Self {
        self.limit = Some(Box::new(reached));
        self
    }

    /// The same, with the time after which asking again may help.
    pub fn retry_after(mut self, after: Duration) -> Self {
        self.retry_after = Some(after);
        self
    }

    /// The answer for what is absent and for what is somebody else's: the two must look alike.
    pub fn not_found() -> Self {
        Self::new(Code::NotFound, "There is no such object, or you may not see it.")
    }

    /// The answer when the caller's role or scopes do not reach.
    pub fn forbidden() -> Self {
        Self::new(
            Code::Forbidden,
            "Your role or the scopes of your API key do not allow this.",
        )
    }
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.code, self.detail)
    }
}

impl std::error::Error for Refusal {}

/// What sort of refusal a code is; `api` maps it to an HTTP status.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Kind {
    /// The bytes cannot be read at all.
    Malformed,
    /// Nobody is logged in.
    Unauthenticated,
    /// Somebody is, but may not do this.
    Forbidden,
    /// Absent, or somebody else's.
    NotFound,
    /// The method does not exist here.
    MethodNotAllowed,
    /// The state of things does not allow it.
    Conflict,
    /// It has been, and is over for good.
    Gone,
    /// A precondition (ETag) does not hold.
    Stale,
    /// Too many bytes.
    TooLarge,
    /// A content type that is not understood here.
    UnsupportedMedia,
    /// Understood, but not valid.
    Invalid,
    /// A live lock is in the way.
    Locked,
    /// Too many requests.
    RateLimited,
    /// A fault of this service.
    Internal,
    /// Not now; asking again later will do.
    Unavailable,
}

macro_rules! codes {
    ($($(#[doc = $doc:literal])+ $variant:ident = $text:literal, $kind:ident;)+) => {
        /// Every stable code that an answer or a job can carry.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
        pub enum Code {
            $($(#[doc = $doc])+ $variant,)+
        }

        impl Code {
            /// Every code, in the order of this file.
            pub const ALL: &'static [Self] = &[$(Self::$variant,)+];

            /// The spelling on the wire.
            pub fn as_str(self) -> &'static str {
                match self { $(Self::$variant => $text,)+ }
            }

            /// What sort of refusal it is.
            pub fn kind(self) -> Kind {
                match self { $(Self::$variant => Kind::$kind,)+ }
            }
        }
    };
}

codes! {
    // Requests
    /// The body is not JSON.
    MalformedJson = "malformed_json", Malformed;
    /// A field, parameter or cursor is not valid; `errors` lists every fault.
    ValidationFailed = "validation_failed", Invalid;
    /// No usable token or key.
    Unauthenticated = "unauthenticated", Unauthenticated;
    /// The role or scope does not reach.
    Forbidden = "forbidden", Forbidden;
    /// Absent, or somebody else's.
    NotFound = "not_found", NotFound;
    /// The path exists, the method does not.
    MethodNotAllowed = "method_not_allowed", MethodNotAllowed;
    /// The body is larger than allowed.
    PayloadTooLarge = "payload_too_large", TooLarge;
    /// The content type is not understood here.
    UnsupportedMediaType = "unsupported_media_type", UnsupportedMedia;
    /// `If-Match` names an older version.
    Stale = "stale", Stale;
    /// Too many requests of this caller.
    RateLimited = "rate_limited", RateLimited;
    /// Too many jobs are waiting.
    Overloaded = "overloaded", Unavailable;
    /// The database cannot be reached or asked to try again.
    Unavailable = "unavailable", Unavailable;
    /// A fault of this service.
    Internal = "internal", Internal;
    /// The key was used with another request.
    IdempotencyKeyReused = "idempotency_key_reused", Invalid;
    /// The first request with this key is still being answered.
    IdempotencyInProgress = "idempotency_in_progress", Conflict;

    // People
    /// Another account has this e-mail address.
    EmailTaken = "email_taken", Conflict;
    /// The password is too easy to guess.
    WeakPassword = "weak_password", Invalid;
    /// The e-mail address and password do not fit.
    InvalidCredentials = "invalid_credentials", Unauthenticated;
    /// A refresh token was used twice; its family is revoked.
    RefreshReused = "refresh_reused", Unauthenticated;
    /// The refresh token is no longer valid.
    RefreshExpired = "refresh_expired", Unauthenticated;
    /// Nobody deletes the own account through the list of users.
    CannotDeleteSelf = "cannot_delete_self", Conflict;
    /// The last administrator who is not disabled is neither demoted, disabled nor deleted.
    LastAdmin = "last_admin", Conflict;
    /// Registration by strangers is switched off.
    RegistrationDisabled = "registration_disabled", Forbidden;
    /// There is an administrator already.
    AlreadySetUp = "already_set_up", Conflict;

    // Coupons
    /// The coupon's state does not allow the action.
    InvalidState = "invalid_state", Conflict;
    /// The given code belongs to somebody else.
    AlreadyAssigned = "already_assigned", Conflict;
    /// No unassigned coupon is left.
    BookExhausted = "book_exhausted", Conflict;
    /// The user holds as many coupons of the book as allowed.
    AssignmentLimitReached = "assignment_limit_reached", Conflict;
    /// A live lock of somebody else, or of the caller without its token.
    CouponLocked = "coupon_locked", Locked;
    /// The book wants a lock before a redemption.
    LockRequired = "lock_required", Conflict;
    /// The token's lock has lapsed.
    LockExpired = "lock_expired", Conflict;
    /// The lock was renewed as often as allowed.
    RenewalsExhausted = "renewals_exhausted", Conflict;
    /// The token is not one of this coupon's.
    LockNotOwned = "lock_not_owned", Forbidden;
    /// The user has redeemed as often as the book allows.
    RedemptionLimitReached = "redemption_limit_reached", Conflict;
    /// The book is a draft, paused or archived.
    BookNotActive = "book_not_active", Conflict;
    /// The book's window has not begun.
    BookNotStarted = "book_not_started", Conflict;
    /// The book's window is over.
    BookEnded = "book_ended", Gone;
    /// The coupon's own time is over.
    CouponExpired = "coupon_expired", Gone;
    /// The holder's account is disabled.
    UserDisabled = "user_disabled", Conflict;
    /// Several books hold the code; say which.
    CodeAmbiguous = "code_ambiguous", Conflict;
    /// The redemption was rolled back before.
    AlreadyRolledBack = "already_rolled_back", Conflict;
    /// The time in which a redemption may be rolled back is over.
    RollbackWindowPassed = "rollback_window_passed", Conflict;

    // Pools, distributions and schedules
    /// Some of the users do not exist; nobody was added.
    UnknownUsers = "unknown_users", Invalid;
    /// Too few coupons, or too little room for them; nothing was given.
    Shortage = "shortage", Conflict;
    /// Nothing of the distribution can be taken back.
    NothingToUndo = "nothing_to_undo", Conflict;
    /// The five fields of cron cannot be read, or name no time that ever comes.
    CronInvalid = "cron_invalid", Invalid;
    /// This is no IANA time zone.
    TimeZoneUnknown = "time_zone_unknown", Invalid;
    /// Seeds are revealed once the book is archived, which is for good.
    BookNotArchived = "book_not_archived", Conflict;

    // Codes, imports and jobs
    /// The pattern cannot be read; `errors` says where and why.
    PatternInvalid = "pattern_invalid", Invalid;
    /// The pattern spells too few codes to be safe from guessing; `needed_length` would do.
    PatternSpaceTooSmall = "pattern_space_too_small", Invalid;
    /// No column of the file is known to hold the codes.
    CsvHeaderMissing = "csv_header_missing", Invalid;
    /// Codes are being added to this book by another job.
    ImportInProgress = "import_in_progress", Conflict;
    /// The job has ended.
    JobFinished = "job_finished", Conflict;
    /// The job did not end in a way that can be tried again.
    JobNotRetryable = "job_not_retryable", Conflict;
    /// Infrastructure trouble or crashes, as often as is bearable.
    AttemptsExhausted = "attempts_exhausted", Internal;
    /// The job's payload cannot be read.
    PayloadUndecodable = "payload_undecodable", Internal;
    /// Another number of jobs matches than was expected.
    CountChanged = "count_changed", Conflict;
    /// The export has not ended, or not well: there is no file.
    ExportNotReady = "export_not_ready", Conflict;
    /// What was kept for a while is no longer kept.
    Expired = "expired", Gone;
}

impl fmt::Display for Code {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// Trouble with the database, sorted once by whether trying again can help.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// Serialisation failure, deadlock, lock or statement time-out, lost or refused connection: try again.
    #[error("the database asks to try again: {0}")]
    Retryable(#[source] sqlx::Error),
    /// Anything else is a fault of this code or of the schema.
    #[error("the database failed: {0}")]
    Fault(#[source] sqlx::Error),
}

impl StoreError {
    /// Whether the same transaction, run again as a whole, may succeed.
    pub fn is_retryable(&self) -> bool {
        matches!(self, Self::Retryable(_))
    }

    /// The same once more, for another who was struck by it: errors of sqlx cannot be cloned.
    pub(crate) fn repeated(&self) -> Self {
        let text = sqlx::Error::Protocol(self.to_string());
        match self {
            Self::Retryable(_) => Self::Retryable(text),
            Self::Fault(_) => Self::Fault(text),
        }
    }

    /// The constraint that a fault broke, by name.
    pub fn constraint(&self) -> Option<&str> {
        match self {
            Self::Fault(sqlx::Error::Database(error)) => error.constraint(),
            _ => None,
        }
    }

    /// Whether the fault is a broken unique constraint whose name begins with `prefix`
    /// (Citus appends a shard number to names, so only the beginning is compared).
    pub fn is_unique_violation(&self, prefix: &str) -> bool {
        match self {
            Self::Fault(sqlx::Error::Database(error)) => {
                error.code().as_deref() == Some("23505")
                    && error.constraint().is_some_and(|name| name.starts_with(prefix))
            }
            _ => false,
        }
    }
}

impl From<sqlx::Error> for StoreError {
    fn from(error: sqlx::Error) -> Self {
        let retryable = match &error {
            sqlx::Error::Io(_)
            | sqlx::Error::Tls(_)
            | sqlx::Error::Protocol(_)
            | sqlx::Error::PoolTimedOut
            | sqlx::Error::PoolClosed
            | sqlx::Error::WorkerCrashed => true,
            sqlx::Error::Database(database) => database.code().as_deref().is_some_and(is_retryable_sqlstate),
            _ => false,
        };
        if retryable {
            Self::Retryable(error)
        } else {
            Self::Fault(error)
        }
    }
}

/// SQLSTATEs (PostgreSQL manual, appendix A) after which the whole transaction may be run again.
fn is_retryable_sqlstate(state: &str) -> bool {
    matches!(
        state,
        "40001" // serialization_failure
        | "40P01" // deadlock_detected
        | "55P03" // lock_not_available
        | "57014" // query_canceled (statement_timeout)
        | "57P01" // admin_shutdown
        | "57P02" // crash_shutdown
        | "57P03" // cannot_connect_now
        | "57P05" // idle_session_timeout
        | "25P03" // idle_in_transaction_session_timeout
        | "25006" // read_only_sql_transaction: the primary has moved
        | "53300" // too_many_connections
    ) || state.starts_with("08") // connection exceptions
}
