//! Identifiers: UUIDv7 (RFC 9562), so that an id sorts by the time it was made.

use std::time::Duration;

use chrono::{DateTime, Utc};
use ulid::Ulid;
use uuid::Uuid;

/// A new UUIDv7.
pub fn new() -> Uuid {
    Uuid::now_v7()
}

/// The smallest id that can have been made so long before this one (to the millisecond).
pub fn earlier(id: Uuid, by: Duration) -> Uuid {
    const RANDOM_BITS: u32 = 80; // what follows the 48 bits of milliseconds
    let millis = (id.as_u128() >> RANDOM_BITS).saturating_sub(by.as_millis());
    Uuid::from_u128(millis << RANDOM_BITS)
}

/// The same 128 bits as ULID text, the only spelling the queue's table accepts; order is kept.
pub fn to_ulid_text(id: Uuid) -> String {
    Ulid::from_bytes(id.into_bytes()).to_string()
}

/// Back from ULID text; `None` for anything else.
pub fn from_ulid_text(text: &str) -> Option<Uuid> {
    Ulid::from_string(text)
        .ok()
        .map(|ulid| Uuid::from_bytes(ulid.to_bytes()))
}

/// The time at which a UUIDv7 was made, by the clock of whoever made it; `None` for other ids.
pub fn time(id: Uuid) -> Option<DateTime<Utc>> {
    let (seconds, nanoseconds) = id.get_timestamp()?.to_unix();
    DateTime::from_timestamp(i64::try_from(seconds).ok()?, nanoseconds)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_earlier_id_lies_so_far_below() {
        let id = new();
        let earlier = earlier(id, Duration::from_secs(2));
        let millis = |id: Uuid| id.as_u128() >> 80;
        assert_eq!(millis(id) - millis(earlier), 2_000);
        assert_eq!(super::earlier(Uuid::nil(), Duration::from_secs(1)), Uuid::nil());
    }

    #[test]
    fn ulid_text_is_lossless_and_keeps_order() {
        let (a, b) = (new(), new());
        assert_eq!(from_ulid_text(&to_ulid_text(a)), Some(a));
        assert_eq!(a < b, to_ulid_text(a) < to_ulid_text(b));
        assert_eq!(from_ulid_text("not a ulid"), None);
    }
}
