//! Distributions, and the pools that they are made to.

use coupon_core::{
    distribution::{self, give, items_csv, plan as planning, undo},
    pool::members,
};

use super::{
    Hot, listed, ordered,
    seed::{BOOK, GIVING, NOBODY, PLANNED, POOL, SOMEBODY},
    statement, twenty,
};

pub(super) fn hot() -> Vec<Hot> {
    let (keys, people) = (listed(100..120, |n| format!("C{n:06}")), listed(100..120, person));
    let (places, numbers) = (
        listed(100..120, |n| format!("{n}000")),
        listed(1..21, |n| n.to_string()),
    );
    let shares =
        |mode: &str, count: i32| format!("{BOOK}, {POOL}, '{mode}', {count}, NULL, {NOBODY}, 1000, NULL");
    vec![
        Hot {
            blocks: 9_000, // an allowance of each of 1,000, looked up
            ..statement(
                "plan",
                "uuid, uuid, text, int, int, uuid, bigint, int",
                planning::SUMMARY,
                shares("equal", 1),
                &["pool_members_pkey", "user_allowances_pkey"],
            )
        },
        Hot {
            blocks: 20_000, // the same, and an item of each written
            ..statement(
                "gather",
                "uuid, uuid, text, int, int, uuid, bigint, int, bytea, bytea, uuid",
                planning::GATHER,
                format!("{}, 'a', 'b', {PLANNED}", shares("top_up", 2)),
                &["pool_members_pkey", "user_allowances_pkey"],
            )
        },
        ordered(
            "whose turn it is",
            "uuid, uuid, bigint, uuid, bigint",
            give::NEXT,
            format!("{BOOK}, {GIVING}, 15000000, {NOBODY}, 500"),
            &["distribution_items_pkey", "user_allowances_pkey", "users_pkey"],
            5_500,
        ),
        Hot {
            blocks: 4_000,
            ..statement(
                "give",
                "uuid, uuid, text[], bigint[], uuid[], bigint[], text, uuid, uuid, text, bigint[], uuid[], int[], text[], text[], bigint",
                give::GIVE,
                format!(
                    "{BOOK}, {PLANNED}, '{{{keys}}}', '{{{numbers}}}', '{{{people}}}', '{{{numbers}}}', 'user', {SOMEBODY},
                     {SOMEBODY}, NULL, '{{{places}}}', '{{{people}}}', {}, {}, {}, NULL",
                    twenty("1"),
                    twenty("'given'::text"),
                    twenty("NULL::text")
                ),
                &["coupons_pkey", "books_pkey", "distribution_items_pkey"],
            )
        },
        ordered(
            "items",
            "uuid, uuid, bigint, uuid, bigint, text",
            distribution::LIST_ITEMS,
            format!("{BOOK}, {GIVING}, 15000000, {NOBODY}, 51, NULL"),
            &["distribution_items_pkey"],
            120,
        ),
        ordered(
            "items as a file",
            "uuid, uuid, bigint, uuid, bigint, text",
            items_csv::PAGE_OF_ITEMS,
            format!("{BOOK}, {GIVING}, 15000000, {NOBODY}, 51, NULL"),
            &["distribution_items_pkey", "users_pkey"],
            300,
        ),
        ordered(
            "what was given",
            "uuid, uuid, bigint, bigint",
            undo::GIVEN,
            format!("{BOOK}, {GIVING}, 10000, 100"),
            &["distribution_coupons_pkey"],
            120,
        ),
        Hot {
            blocks: 4_000,
            ..statement(
                "take back",
                "uuid, uuid, text[], bigint[], bigint[], uuid[], bigint[], text, uuid, uuid, text, int, bigint, uuid[], int[], bigint[]",
                undo::TAKE_BACK,
                format!(
                    "{BOOK}, {GIVING}, '{{{keys}}}', '{{{numbers}}}', '{{{numbers}}}', '{{{people}}}', '{{{numbers}}}', 'user',
                     {SOMEBODY}, {SOMEBODY}, NULL, 0, 0, '{{{people}}}', {}, '{{{places}}}'",
                    twenty("0")
                ),
                &["coupons_pkey", "distribution_coupons_pkey", "user_allowances_pkey", "distribution_items_pkey"],
            )
        },
        ordered(
            "members",
            "uuid, uuid, bigint",
            members::LIST,
            format!("{POOL}, '00000000-0000-7000-9000-000000002000', 51"),
            &["pool_members_pkey", "users_pkey"],
            300,
        ),
    ]
}

fn person(n: i32) -> String {
    format!("00000000-0000-7000-9000-{n:012x}")
}
