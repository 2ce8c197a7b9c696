//! Statistics: sums that are kept, so that nothing is counted anew when somebody looks.
//!
//! Invariant: an event is in `book_hours` if and only if its id is smaller than `roll_up_state.events_before`; a change
//! of a job's state stands in `job_changes` or in `job_totals` and `job_hours`, never in both. Each moves in the
//! transaction of its sums. So sums and what is not yet in them, read by one statement, are exact.
//!
//! To count one more kind of event: a column of `book_hours`, a line in [`coupon_sums`] and in [`series::Counts`].
//! The states follow by themselves, from `before` and `after` of every event of a coupon.

pub mod gauges;
pub mod roll_up;
pub mod series;

use std::time::Duration;

use chrono::{DateTime, Utc};
use uuid::Uuid;

/// What `book_hours` calls all books together.
pub const ALL_BOOKS: Uuid = Uuid::nil();

/// How long after a transaction's first id another process may still know nothing of it: ids are made before the
/// database numbers the transaction, and its clock may be set back a little.
pub const MARGIN: Duration = Duration::from_secs(10);

/// What the events of `$narrowed` did: how many coupons more or less are in each state, and how often each thing
/// happened. Codes come in as unassigned, one event per chunk; every other event of a coupon says which state it left
/// and which it entered, but for assignments of codes that were imported with a holder.
macro_rules! coupon_sums {
    ($select:literal, $narrowed:literal, $group:literal) => {
        concat!(
            "SELECT ",
            $select,
            " (coalesce(sum(e.added), 0) + count(*) FILTER (WHERE e.entered = 'unassigned') - count(*) FILTER (WHERE e.gone = 'unassigned'))::bigint AS unassigned,
              count(*) FILTER (WHERE e.entered = 'assigned') - count(*) FILTER (WHERE e.gone = 'assigned') AS assigned,
              count(*) FILTER (WHERE e.entered = 'locked') - count(*) FILTER (WHERE e.gone = 'locked') AS locked,
              count(*) FILTER (WHERE e.entered = 'redeemed') - count(*) FILTER (WHERE e.gone = 'redeemed') AS redeemed,
              count(*) FILTER (WHERE e.entered = 'void') - count(*) FILTER (WHERE e.gone = 'void') AS void,
              count(*) FILTER (WHERE e.kind = 'coupon_redeemed') - count(*) FILTER (WHERE e.kind = 'redemption_rolled_back') AS redemptions,
              coalesce(sum(e.added), 0)::bigint AS added_count,
              count(*) FILTER (WHERE e.kind = 'coupon_assigned') AS assigned_count,
              count(*) FILTER (WHERE e.kind = 'coupon_locked') AS locked_count,
              count(*) FILTER (WHERE e.kind = 'coupon_unlocked') AS unlocked_count,
              count(*) FILTER (WHERE e.kind = 'lock_expired') AS lock_expired_count,
              count(*) FILTER (WHERE e.kind = 'coupon_redeemed') AS redeemed_count,
              count(*) FILTER (WHERE e.kind = 'redemption_rolled_back') AS rolled_back_count,
              count(*) FILTER (WHERE e.kind = 'coupon_revoked') AS revoked_count,
              count(*) FILTER (WHERE e.kind = 'coupon_voided') AS voided_count
              FROM (
                  SELECT book_id, kind,
                         CASE WHEN kind = 'codes_added' AND jsonb_typeof(after -> 'count') = 'number'
                              THEN (after ->> 'count')::numeric::bigint ELSE 0 END AS added,
                         -- Of a coupon that says one of the two only, neither counts.
                         CASE WHEN code_key IS NOT NULL AND after ? 'state'
                              THEN coalesce(before ->> 'state', CASE kind WHEN 'coupon_assigned' THEN 'unassigned' END) END AS gone,
                         CASE WHEN code_key IS NOT NULL AND (before ? 'state' OR kind = 'coupon_assigned')
                              THEN after ->> 'state' END AS entered
                  FROM events WHERE ",
            $narrowed,
            ") AS e ",
            $group
        )
    };
}
pub(crate) use coupon_sums;

/// The smallest UUIDv7 of a moment, to the millisecond that the ids keep.
fn floor(time: DateTime<Utc>) -> Uuid {
    let millis = u128::try_from(time.timestamp_millis()).unwrap_or(0);
    Uuid::from_u128((millis << 80) | (0x7 << 76) | (0x8 << 60))
}

/// The moment of a UUIDv7.
fn time_of(id: Uuid) -> DateTime<Utc> {
    let millis = i64::try_from(id.as_u128() >> 80).unwrap_or(i64::MAX);
    DateTime::from_timestamp_millis(millis).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_of_a_moment_lie_above_its_floor_and_below_the_next() {
        let id = crate::id::new();
        let time = time_of(id);
        assert!(floor(time) <= id && id < floor(time + Duration::from_millis(1)));
        assert_eq!(time_of(floor(time)), time);
        assert_eq!(floor(time).get_version_num(), 7);
        assert_eq!(time_of(ALL_BOOKS), DateTime::<Utc>::default());
    }
}
