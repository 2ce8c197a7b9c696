//! Why a guarded statement matched no row: the coupon is read again and the exact refusal is worked out.
//!
//! Invariant: [`Situation::refusal`] refuses an action if and only if the action's guard in SQL does; the test that
//! walks every state and action against the database holds the two together.

use std::time::Duration;

use sqlx::PgConnection;
use uuid::Uuid;

use super::{Behalf, CouponId, State};
use crate::error::{Code, Refusal, Result, StoreError};

/// What somebody wants to do to a coupon that is assigned.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Action {
    /// Take a lock, or renew it with its token.
    Lock,
    /// Give the lock back; an administrator needs no token.
    Unlock {
        /// Whether the caller may do without the token.
        without_token: bool,
    },
    /// Spend a use.
    Redeem,
}

/// How the token of a request relates to the coupon's last lock.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Token {
    /// None was given.
    Absent,
    /// It is the last lock's.
    Matches,
    /// It is not.
    Unknown,
}

/// Everything that decides whether an action is refused.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Situation {
    /// The effective state: a lapsed lock is `assigned`.
    pub state: State,
    /// The holder.
    pub holder: Option<Uuid>,
    /// How the token relates to the last lock.
    pub token: Token,
    /// How long the live lock still lasts.
    pub lock_left: Duration,
    /// How often it may still be renewed.
    pub renewals_left: i32,
    /// The book's status is `active`.
    pub book_active: bool,
    /// The book's window has begun.
    pub book_started: bool,
    /// The book's window is over.
    pub book_ended: bool,
    /// The coupon's own time is over.
    pub expired: bool,
    /// The holder's account is disabled.
    pub holder_disabled: bool,
    /// The book wants a lock before a redemption.
    pub require_lock: bool,
    /// The holder has redeemed as often as the book allows.
    pub redemption_limit_reached: bool,
}

impl Situation {
    /// The refusal of an action, or `None` if nothing speaks against it now.
    pub fn refusal(&self, action: Action) -> Option<Refusal> {
        let refuse = |code, detail: &'static str| Some(Refusal::new(code, detail));
        let live = self.state == State::Locked;
        match self.state {
            State::Unassigned | State::Redeemed | State::Void => {
                return Some(Refusal::new(
                    Code::InvalidState,
                    format!("The coupon is {}.", self.state.as_str()),
                ));
            }
            State::Assigned | State::Locked => {}
        }
        if let Action::Unlock { without_token } = action {
            return match (self.token, live) {
                (Token::Unknown, _) => {
                    refuse(Code::LockNotOwned, "This token is not one of the coupon's locks.")
                }
                (Token::Absent, true) if !without_token => self.locked(),
                _ => None,
            };
        }
        // Whose lock it is comes first: it decides what else matters.
        match (self.token, live) {
            (Token::Absent, true) => return self.locked(),
            (Token::Unknown, true) if action == Action::Lock => return self.locked(),
            (Token::Unknown, _) => {
                return refuse(Code::LockNotOwned, "This token is not one of the coupon's locks.");
            }
            (Token::Matches, false) => {
                return refuse(
                    Code::LockExpired,
                    "The lock of this token has lapsed; nothing was used. Lock the coupon again.",
                );
            }
            (Token::Absent, false) | (Token::Matches, true) => {}
        }
        if self.holder_disabled {
            return refuse(Code::UserDisabled, "The holder's account is disabled.");
        }
        if !self.book_active {
            return refuse(Code::BookNotActive, "The book is a draft, paused or archived.");
        }
        if !self.book_started {
            return refuse(Code::BookNotStarted, "The book has not started yet.");
        }
        // A lock taken before the end is honoured to its own end, but not renewed past it.
        if !(live && action == Action::Redeem) {
            if self.book_ended {
                return refuse(Code::BookEnded, "The book has ended.");
            }
            if self.expired {
                return refuse(Code::CouponExpired, "The coupon has expired.");
            }
        }
        match action {
            Action::Lock if live && self.renewals_left <= 0 => refuse(
                Code::RenewalsExhausted,
                "This lock has been renewed as often as the book allows.",
            ),
            Action::Redeem if !live && self.require_lock => refuse(
                Code::LockRequired,
                "The book wants a lock first: lock the coupon and redeem with its token.",
            ),
            Action::Redeem if self.redemption_limit_reached => refuse(
                Code::RedemptionLimitReached,
                "The holder has redeemed as often as this book allows.",
            ),
            _ => None,
        }
    }

    fn locked(&self) -> Option<Refusal> {
        let seconds = self.lock_left.as_secs_f64().ceil().max(1.0);
        Some(
            Refusal::new(
                Code::CouponLocked,
                "The coupon is locked; try again when the lock has lapsed.",
            )
            .retry_after(Duration::from_secs_f64(seconds)),
        )
    }
}

#[derive(sqlx::FromRow)]
struct Row {
    state: String,
    assigned_user_id: Option<Uuid>,
    token_matches: bool,
    lock_left: f64,
    lock_renewals_left: i32,
    book_active: bool,
    book_started: bool,
    book_ended: bool,
    expired: bool,
    require_lock: bool,
    redemption_limit_reached: bool,
}

/// What decides about a coupon, by its key.
pub const SITUATION: &str = "SELECT CASE WHEN c.state = 'locked' AND c.locked_until <= clock_timestamp() THEN 'assigned' ELSE c.state END AS state,
        c.assigned_user_id,
        coalesce(c.lock_token_hash = $4, false) AS token_matches,
        greatest(coalesce(extract(epoch FROM c.locked_until - clock_timestamp())::float8, 0), 0) AS lock_left,
        coalesce(c.lock_renewals_left, 0) AS lock_renewals_left,
        b.status = 'active' AS book_active,
        coalesce(b.starts_at <= now(), true) AS book_started,
        coalesce(b.ends_at <= now(), false) AS book_ended,
        coalesce(least(c.expires_at, c.valid_until) <= now(), false) AS expired,
        b.require_lock,
        coalesce(a.redeemed_count >= b.max_redemptions_per_user, false) AS redemption_limit_reached
 FROM coupons c JOIN books b ON b.id = c.book_id
 LEFT JOIN user_allowances a ON a.book_id = c.book_id AND a.user_id = c.assigned_user_id
 WHERE c.book_id = $1 AND c.code_key = $2 AND b.id = $1 AND ($3::uuid IS NULL OR c.assigned_user_id = $3)";

/// Reads what decides about a coupon. `token_hash` is the SHA-256 of the request's token, if it had one.
///
/// # Errors
/// `not_found` when the coupon does not exist for `behalf`.
pub async fn situation(
    connection: &mut PgConnection,
    coupon: &CouponId,
    behalf: Behalf,
    token_hash: Option<&[u8]>,
) -> Result<Situation> {
    let row: Option<Row> = sqlx::query_as(SITUATION)
        .bind(coupon.book_id)
        .bind(&coupon.code_key)
        .bind(behalf.holder())
        .bind(token_hash)
        .fetch_optional(&mut *connection)
        .await?;
    let row = row.ok_or_else(Refusal::not_found)?;
    let holder_disabled = match row.assigned_user_id {
        Some(user_id) => is_disabled(connection, user_id).await?,
        None => false,
    };
    Ok(Situation {
        state: State::parse(&row.state).unwrap_or(State::Void),
        holder: row.assigned_user_id,
        token: match token_hash {
            None => Token::Absent,
            Some(_) if row.token_matches => Token::Matches,
            Some(_) => Token::Unknown,
        },
        lock_left: Duration::from_secs_f64(row.lock_left),
        renewals_left: row.lock_renewals_left,
        book_active: row.book_active,
        book_started: row.book_started,
        book_ended: row.book_ended,
        expired: row.expired,
        holder_disabled,
        require_lock: row.require_lock,
        redemption_limit_reached: row.redemption_limit_reached,
    })
}

/// Whether an account is disabled. Asked apart from the statements on coupons: accounts are not distributed by book.
async fn is_disabled(connection: &mut PgConnection, user_id: Uuid) -> Result<bool, StoreError> {
    Ok(
        sqlx::query_scalar("SELECT disabled_at IS NOT NULL FROM users WHERE id = $1")
            .bind(user_id)
            .fetch_optional(connection)
            .await?
            .unwrap_or(false),
    )
}

/// How often a guard may miss and the explanation find nothing wrong before the request is sent away.
pub(super) const ROUNDS: usize = 3;

/// The answer when the coupon kept changing between the guard and its explanation.
pub(super) fn contended() -> Refusal {
    Refusal::new(Code::Unavailable, "The coupon is changing too fast; try again.")
        .retry_after(Duration::from_secs(1))
}
