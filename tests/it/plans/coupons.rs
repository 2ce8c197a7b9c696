//! Coupons: drawn, assigned, locked, redeemed, looked up, swept, exported.

use coupon_core::{
    coupon::{assign, explain, list, locate, lock, redeem, sweep},
    export,
};

use super::{
    Hot, listed, ordered,
    seed::{BOOK, COLLECTOR, SOMEBODY},
    statement, twenty,
};

pub(super) fn hot() -> Vec<Hot> {
    let hash = "'\\x78'::bytea";
    let origin = "'user', gen_random_uuid(), NULL";
    let keys = listed(100..120, |n| format!("C{n:06}"));
    vec![
        ordered(
            "draw",
            "uuid, bigint, bigint",
            assign::DRAW,
            format!("{BOOK}, 1000, 10"),
            &["coupons_draw"],
            120,
        ),
        ordered(
            "draw late",
            "uuid, bigint, bigint",
            assign::DRAW,
            format!("{BOOK}, 8000000000000000000, 500"),
            &["coupons_draw"],
            3_000,
        ),
        Hot {
            blocks: 4_000,
            ..statement(
                "assign",
                "uuid, text[], uuid[], text[], uuid[], uuid[], text[], uuid[], int[], bool[], bigint",
                assign::ASSIGN,
                format!(
                    "{BOOK}, '{{{keys}}}', {}, {}, {}, {}, {}, ARRAY[{SOMEBODY}], ARRAY[20], {}, 1000",
                    twenty(SOMEBODY),
                    twenty("'user'::text"),
                    twenty(SOMEBODY),
                    twenty(SOMEBODY),
                    twenty("NULL::text"),
                    twenty("false"),
                ),
                &["coupons_pkey", "books_pkey"],
            )
        },
        Hot {
            blocks: 300,
            ..statement(
                "what decides a batch",
                "uuid, bigint, bigint, uuid[]",
                assign::SITUATION,
                format!("{BOOK}, 1000, 20, {}", twenty(SOMEBODY)),
                &["user_allowances_pkey", "coupons_draw", "books_pkey"],
            )
        },
        ordered(
            "export: count",
            "uuid, text, bigint",
            export::step::COUNT_COUPONS,
            format!("{BOOK}, 'C030000', 1000"),
            &["coupons_pkey"],
            120,
        ),
        ordered(
            "export: read",
            "uuid, text, bigint",
            export::step::READ_COUPONS,
            format!("{BOOK}, 'C030000', 1000"),
            &["coupons_pkey"],
            120,
        ),
        statement(
            "lock",
            "uuid, text, uuid, bytea, text, uuid, text",
            lock::TAKE,
            format!("{BOOK}, 'C040001', {SOMEBODY}, {hash}, {origin}"),
            &["coupons_pkey", "books_pkey"],
        ),
        statement(
            "renew",
            "uuid, text, uuid, bytea, text, uuid, text",
            lock::RENEW,
            format!("{BOOK}, 'C055001', NULL, {hash}, {origin}"),
            &["coupons_pkey", "books_pkey"],
        ),
        statement(
            "unlock",
            "uuid, text, uuid, bytea, boolean, text, uuid, text",
            lock::UNLOCK,
            format!("{BOOK}, 'C055001', NULL, {hash}, false, {origin}"),
            &["coupons_pkey"],
        ),
        statement(
            "redeem",
            "uuid, text, uuid, bytea, uuid, uuid, jsonb, text, text",
            redeem::SPEND,
            format!(
                "{BOOK}, 'C055001', NULL, {hash}, gen_random_uuid(), gen_random_uuid(), '{{}}', 'user', NULL"
            ),
            &["coupons_pkey", "books_pkey"],
        ),
        statement(
            "what decides",
            "uuid, text, uuid, bytea",
            explain::SITUATION,
            format!("{BOOK}, 'C055001', NULL, {hash}"),
            &["coupons_pkey", "books_pkey"],
        ),
        statement(
            "look up",
            "uuid, text",
            list::FIND,
            format!("{BOOK}, 'C055001'"),
            &["coupons_pkey"],
        ),
        ordered(
            "a holder's list",
            "uuid, uuid, text, uuid, text, bigint",
            list::LIST_OF_HOLDER,
            format!("{COLLECTOR}, '00000000-0000-0000-0000-000000000000', '', NULL, NULL, 51"),
            &["coupons_holder"],
            120,
        ),
        ordered(
            "a holder's last page",
            "uuid, uuid, text, uuid, text, bigint",
            list::LIST_OF_HOLDER,
            format!("{COLLECTOR}, {BOOK}, 'C045900', {BOOK}, NULL, 51"),
            &["coupons_holder"],
            120,
        ),
        ordered(
            "a book's list",
            "uuid, text, text, bigint",
            list::LIST_OF_BOOK,
            format!("{BOOK}, NULL, NULL, 51"),
            &["coupons_pkey"],
            120,
        ),
        ordered(
            "a book's last page",
            "uuid, text, text, bigint",
            list::LIST_OF_BOOK,
            format!("{BOOK}, 'C059900', NULL, 51"),
            &["coupons_pkey"],
            120,
        ),
        ordered(
            "a holder's coupons of a book",
            "uuid, text, text, bigint, uuid",
            list::LIST_OF_BOOK_BY_HOLDER,
            format!("{BOOK}, NULL, NULL, 51, {SOMEBODY}"),
            &["coupons_holder"],
            60,
        ),
        ordered(
            "a code of a book",
            "uuid, text, text, bigint, text, text, uuid",
            list::LIST_OF_BOOK_BY_CODE,
            format!("{BOOK}, NULL, NULL, 51, 'C055001', 'C055001', NULL"),
            &["coupons_pkey"],
            60,
        ),
        ordered(
            "a coupon's events",
            "uuid, text, timestamptz, uuid, bigint, uuid",
            list::LIST_EVENTS,
            format!("{BOOK}, 'C000100', NULL, NULL, 51, NULL"),
            &["events_code"],
            60,
        ),
        statement(
            "locate in a book",
            "uuid, text, text, uuid",
            locate::IN_BOOK,
            format!("{BOOK}, 'C055001', 'C055001', NULL"),
            &["coupons_pkey"],
        ),
        statement(
            "locate in books",
            "uuid[], text[], text[], uuid[]",
            locate::IN_BOOKS,
            format!(
                "ARRAY[{BOOK}, {BOOK}], '{{C055001,NONE}}', '{{C055001,NONE}}', ARRAY[NULL, NULL]::uuid[]"
            ),
            &["coupons_pkey"],
        ),
        statement(
            "locate a holder's",
            "uuid, text, text",
            locate::OF_HOLDER,
            format!("{SOMEBODY}, 'C040001', 'C040001'"),
            &["coupons_holder"],
        ),
        // One probe of the primary key for each of 200 books.
        Hot {
            blocks: 900,
            ..statement(
                "locate anywhere",
                "text, text",
                locate::ANYWHERE,
                "'NONE', 'NONE'".into(),
                &["coupons_pkey"],
            )
        },
        Hot {
            blocks: 900,
            ..statement(
                "locate for assignment",
                "text, text, uuid, boolean",
                locate::FOR_ASSIGNMENT,
                "'NONE', 'NONE', NULL, false".into(),
                &["coupons_pkey"],
            )
        },
        Hot {
            blocks: 40_000,
            ..statement(
                "sweep",
                "bigint",
                sweep::SWEEP,
                "1000".into(),
                &["coupons_locked", "coupons_pkey"],
            )
        },
    ]
}
