//! From an error to what happens to its job: the one table of verdicts.

use coupon_core::{
    error::{Error, Kind, Refusal},
    job::claim::{Finished, Outcome},
};

/// What an error of a single job's step means.
#[derive(Debug)]
pub(crate) enum Verdict {
    /// The domain says no: the job fails with this code, and is not tried again.
    Fail(Outcome),
    /// Infrastructure trouble: the transaction is rolled back and the job is tried again, a bounded number of times.
    TryAgain(Error),
}

/// Decides about an error.
pub(crate) fn verdict(error: Error) -> Verdict {
    match error {
        Error::Refused(refusal) => match refusal.code.kind() {
            Kind::Unavailable | Kind::Internal => Verdict::TryAgain(Error::Refused(refusal)),
            Kind::Malformed
            | Kind::Unauthenticated
            | Kind::Forbidden
            | Kind::NotFound
            | Kind::MethodNotAllowed
            | Kind::Conflict
            | Kind::Gone
            | Kind::Stale
            | Kind::TooLarge
            | Kind::UnsupportedMedia
            | Kind::Invalid
            | Kind::Locked
            | Kind::RateLimited => Verdict::Fail(Finished::refused(refusal)),
        },
        Error::Invalid(_) | Error::Unfit(_) => {
            let detail = error.to_string();
            Verdict::Fail(Finished::refused(Refusal::new(error.code(), detail)))
        }
        Error::Store(_) => Verdict::TryAgain(error),
    }
}
