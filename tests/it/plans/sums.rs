//! Events, and the sums that statistics are read from.

use coupon_core::{
    book,
    stats::{roll_up, series},
};

use super::{
    Hot,
    seed::{BOOK, RANGE},
    statement,
};

pub(super) fn hot() -> Vec<Hot> {
    vec![
        // Random ids: one in 4,096 lies in the range.
        statement(
            "the next events",
            "uuid, uuid, bigint",
            roll_up::NEXT_EVENTS,
            format!("{RANGE}, 20000"),
            &["events_id"],
        ),
        statement(
            "events into hours",
            "uuid, uuid, timestamptz",
            roll_up::FOLD_EVENTS,
            format!("{RANGE}, '2024-03-01T00:00Z'"),
            &["events_id"], // its ON CONFLICT needs book_hours_pkey to be planned at all
        ),
        Hot {
            blocks: 1_000, // each of 168 hours is looked up once more, for the states at its end
            ..statement(
                "a week of a book",
                "uuid, timestamptz, timestamptz, text",
                series::POINTS,
                format!("{BOOK}, '2024-03-01T00:00Z', '2024-03-08T00:00Z', 'hour'"),
                &["book_hours_pkey"],
            )
        },
        statement(
            "what stood before",
            "uuid, timestamptz",
            series::STATES_BEFORE,
            format!("{BOOK}, '2024-03-01T00:00Z'"),
            &["book_hours_pkey"],
        ),
        Hot {
            blocks: 3_500, // the locks that have lapsed, 2,000 of them
            ..statement(
                "a book from its sums",
                "uuid",
                book::COUNT_FROM_SUMS,
                BOOK.into(),
                &["events_pkey", "book_hours_pkey", "coupons_locked"],
            )
        },
    ]
}
