//! Security budgets: how often somebody may guess before the answer is "wait".
//!
//! Invariant: in one window at most `limit` spends are allowed, however many processes spend at once: counting and
//! deciding are one statement, by the database's clock. A spend has to outlive the refusal that follows it, so give
//! it the pool ([`crate::db::Db::pool`], a transaction of its own) and never a transaction that a refusal rolls
//! back; and end your own transaction first, so that no request holds two connections.
//! To add a kind: a variant of [`BudgetKind`], a constructor of [`Budget`], the CHECK in the schema.

use std::{net::IpAddr, time::Duration};

use sha2::{Digest, Sha256};
use sqlx::PgExecutor;
use uuid::Uuid;

use crate::{
    error::{Code, Refusal, Result},
    rate_limit::Standing,
};

/// Failed log-ins of one account in [`LOGIN_WINDOW`].
const LOGIN_ACCOUNT_LIMIT: i32 = 10;

/// Failed log-ins from one address in [`LOGIN_WINDOW`]: an office behind one address has many people.
const LOGIN_ADDRESS_LIMIT: i32 = 100;

/// The window of both.
const LOGIN_WINDOW: Duration = Duration::from_secs(15 * 60);

/// Codes that a caller may look up in vain in [`CODE_MISS_WINDOW`], unless its key says otherwise.
pub const CODE_MISS_LIMIT: i32 = 20;

/// The window of that.
const CODE_MISS_WINDOW: Duration = Duration::from_secs(60 * 60);

/// Whether budgets are kept (`COUPONBOOK_SECURITY_BUDGETS`); off is for load tests.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SecurityBudgets {
    /// Spends count and can be refused.
    On,
    /// Nothing is counted, everything is allowed.
    Off,
}

/// What is counted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BudgetKind {
    /// Failed log-ins of an account.
    LoginAccount,
    /// Failed log-ins from a network address.
    LoginAddress,
    /// Code look-ups of a caller that found nothing.
    CodeMiss,
}

impl BudgetKind {
    /// The spelling in the database.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::LoginAccount => "login_account",
            Self::LoginAddress => "login_address",
            Self::CodeMiss => "code_miss",
        }
    }

    /// The spelling on the wire, as the name of a limit.
    fn policy(self) -> &'static str {
        match self {
            Self::LoginAccount => "account-log-ins",
            Self::LoginAddress => "address-log-ins",
            Self::CodeMiss => "code-misses",
        }
    }
}

/// One counter and its limit.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Budget {
    /// What is counted.
    pub kind: BudgetKind,
    /// Of whom, at most 300 characters.
    pub subject: String,
    /// Spends allowed per window; 0 allows none.
    pub limit: i32,
    /// How long a window lasts from its first spend.
    pub window: Duration,
}

impl Budget {
    /// Failed log-ins of the account with this address, whether it exists or not.
    pub fn login_account(email: &str) -> Self {
        let hash = Sha256::digest(email.to_ascii_lowercase());
        Self {
            kind: BudgetKind::LoginAccount,
            subject: hash.iter().map(|byte| format!("{byte:02x}")).collect(),
            limit: LOGIN_ACCOUNT_LIMIT,
            window: LOGIN_WINDOW,
        }
    }

    /// Failed log-ins from this address's [`network`].
    pub fn login_address(address: IpAddr) -> Self {
        let subject = match network(address) {
            IpAddr::V4(v4) => v4.to_string(),
            IpAddr::V6(v6) => format!("{v6}/64"),
        };
        Self {
            kind: BudgetKind::LoginAddress,
            subject,
            limit: LOGIN_ADDRESS_LIMIT,
            window: LOGIN_WINDOW,
        }
    }

    /// Look-ups in vain of a caller; `limit` from [`super::api_key::miss_budget`], else [`CODE_MISS_LIMIT`].
    pub fn code_miss(caller: Uuid, limit: Option<i32>) -> Self {
        Self {
            kind: BudgetKind::CodeMiss,
            subject: caller.to_string(),
            limit: limit.unwrap_or(CODE_MISS_LIMIT),
            window: CODE_MISS_WINDOW,
        }
    }
}

/// The part of an address that stands for one customer: all of IPv4, of IPv6 the /64, of which everybody has at least one
/// whole.
pub fn network(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        v4 @ IpAddr::V4(_) => v4,
        IpAddr::V6(v6) => {
            let [a, b, c, d, ..] = v6.segments();
            IpAddr::from([a, b, c, d, 0, 0, 0, 0])
        }
    }
}

/// What a budget answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Spent {
    /// Whether the limit allows it.
    pub allowed: bool,
    /// How many more spends the window allows.
    pub left: i32,
    /// When the window ends, from now; zero when none runs.
    pub retry_after: Duration,
    /// The same as clients are told of it.
    standing: Standing,
}

impl Spent {
    /// A refusal, unless it is allowed.
    ///
    /// # Errors
    /// `rate_limited`, with the time until the window ends.
    pub fn require(self) -> Result<()> {
        if self.allowed {
            return Ok(());
        }
        Err(Refusal::new(
            Code::RateLimited,
            "Too many failed attempts. Wait for the time that Retry-After gives, then try again.",
        )
        .retry_after(self.retry_after.max(Duration::from_secs(1)))
        .limit(self.standing)
        .into())
    }

    fn free(budget: &Budget) -> Self {
        Self::of(budget, 0, Duration::ZERO, true)
    }

    fn of(budget: &Budget, spent: i32, retry_after: Duration, allowed: bool) -> Self {
        let left = (budget.limit - spent).max(0);
        Self {
            allowed,
            left,
            retry_after,
            standing: Standing {
                policy: budget.kind.policy(),
                limit: budget.limit.max(0).unsigned_abs(),
                window: budget.window,
                left: left.unsigned_abs(),
                reset: retry_after,
            },
        }
    }
}

/// Spends one, if one is left; a window that has passed starts again. See the module's header for which connection.
///
/// # Errors
/// When the database fails. A used-up budget is an answer: [`Spent::require`] makes the refusal of it.
pub async fn spend<'e>(conn: impl PgExecutor<'e>, switch: SecurityBudgets, budget: &Budget) -> Result<Spent> {
    if switch == SecurityBudgets::Off {
        return Ok(Spent::free(budget));
    }
    let (spent, seconds): (i32, f64) = sqlx::query_as(
        // statement_timestamp(), not now(): a transaction may be older than the window; and not clock_timestamp():
        // both CASEs must agree.
        "INSERT INTO security_budgets AS b (kind, subject, window_until, spent)
         VALUES ($1, $2, statement_timestamp() + make_interval(secs => $4), 1)
         ON CONFLICT (kind, subject) DO UPDATE SET
             window_until = CASE WHEN b.window_until <= statement_timestamp() THEN excluded.window_until
                                 ELSE b.window_until END,
             spent        = CASE WHEN b.window_until <= statement_timestamp() THEN 1
                                 -- one over the limit says refused; counting on would say no more
                                 ELSE least(b.spent, $3) + 1 END
         RETURNING spent, extract(epoch FROM window_until - statement_timestamp())::float8",
    )
    .bind(budget.kind.as_str())
    .bind(&budget.subject)
    .bind(budget.limit)
    .bind(budget.window.as_secs_f64())
    .fetch_one(conn)
    .await?;
    Ok(Spent::of(
        budget,
        spent,
        time_left(budget, seconds),
        spent <= budget.limit,
    ))
}

/// Whether a spend would be allowed now, without spending.
///
/// # Errors
/// When the database fails.
pub async fn check<'e>(conn: impl PgExecutor<'e>, switch: SecurityBudgets, budget: &Budget) -> Result<Spent> {
    if switch == SecurityBudgets::Off {
        return Ok(Spent::free(budget));
    }
    let running: Option<(i32, f64)> = sqlx::query_as(
        "SELECT spent, extract(epoch FROM window_until - statement_timestamp())::float8
         FROM security_budgets
         WHERE kind = $1 AND subject = $2 AND window_until > statement_timestamp()",
    )
    .bind(budget.kind.as_str())
    .bind(&budget.subject)
    .fetch_optional(conn)
    .await?;
    let (spent, seconds) = running.unwrap_or((0, 0.0));
    Ok(Spent::of(
        budget,
        spent,
        time_left(budget, seconds),
        spent < budget.limit,
    ))
}

/// Gives one spend of the running window back: what was guarded turned out to be no failure.
///
/// # Errors
/// When the database fails.
pub async fn refund<'e>(conn: impl PgExecutor<'e>, switch: SecurityBudgets, budget: &Budget) -> Result<()> {
    if switch == SecurityBudgets::On {
        sqlx::query(
            "UPDATE security_budgets SET spent = spent - 1
             WHERE kind = $1 AND subject = $2 AND spent > 0 AND window_until > statement_timestamp()",
        )
        .bind(budget.kind.as_str())
        .bind(&budget.subject)
        .execute(conn)
        .await?;
    }
    Ok(())
}

/// Forgets everything that was spent.
///
/// # Errors
/// When the database fails.
pub async fn reset<'e>(conn: impl PgExecutor<'e>, switch: SecurityBudgets, budget: &Budget) -> Result<()> {
    if switch == SecurityBudgets::On {
        sqlx::query("DELETE FROM security_budgets WHERE kind = $1 AND subject = $2")
            .bind(budget.kind.as_str())
            .bind(&budget.subject)
            .execute(conn)
            .await?;
    }
    Ok(())
}

/// A batch of counters whose window has passed; one that is being spent is no longer old. Correctness never waits for it.
pub const DELETE_PASSED: &str = "DELETE FROM security_budgets WHERE ctid = ANY (ARRAY(
         SELECT ctid FROM security_budgets WHERE window_until < now()
         ORDER BY window_until LIMIT $1 FOR UPDATE SKIP LOCKED))";

/// Never longer than the window: a spend that waited for the row began before the one that opened the window, and
/// measures from its own beginning.
fn time_left(budget: &Budget, seconds: f64) -> Duration {
    Duration::try_from_secs_f64(seconds.max(0.0))
        .unwrap_or_default()
        .min(budget.window)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_account_or_network_has_one_subject() {
        assert_eq!(Budget::login_account("A@b"), Budget::login_account("a@B"));
        assert!(!Budget::login_account("ann@b").subject.contains("ann"));
        let of = |text: &str| Budget::login_address(text.parse().expect("an address")).subject;
        assert_eq!(of("2001:db8:1:2::1"), of("2001:db8:1:2:ffff::9"));
        assert_ne!(of("2001:db8:1:2::1"), of("2001:db8:1:3::1"));
        assert_eq!(of("::ffff:192.0.2.1"), "192.0.2.1");
    }

    #[test]
    fn a_refusal_says_when_to_come_back() {
        let budget = Budget::code_miss(Uuid::nil(), None);
        let spent = Spent::of(&budget, CODE_MISS_LIMIT + 1, Duration::from_millis(1), false);
        match spent.require() {
            Err(crate::Error::Refused(refusal)) => {
                assert_eq!(refusal.code, Code::RateLimited);
                assert_eq!(refusal.retry_after, Some(Duration::from_secs(1)));
                let limit = refusal.limit.expect("the limit");
                assert_eq!(limit.policy_item(), "\"code-misses\";q=20;w=3600");
                assert_eq!(limit.item(), "\"code-misses\";r=0;t=1");
            }
            other => panic!("{other:?}"),
        }
    }
}
