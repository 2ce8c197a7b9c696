//! The queue and the ledger.

use coupon_core::{
    job::{claim, ledger},
    retention,
};

use super::{
    Hot, ordered,
    seed::{BOOK, SOMEBODY},
    statement,
};

pub(super) fn hot() -> Vec<Hot> {
    vec![
        // There is one list, and it is young: the sweep finds that out without reading it.
        statement(
            "retention: reports",
            "int, bigint",
            retention::DELETE_REPORTS,
            "30, 5000".into(),
            &["job_errors_pkey"],
        ),
        ordered(
            "claim",
            "text, bigint, text",
            claim::CLAIM_FRESH,
            "'assign', 500, ''".into(),
            &["jobs_due_fresh"],
            2_000,
        ),
        ordered(
            "claim charged",
            "text, bigint, text",
            claim::CLAIM_CHARGED,
            "'assign', 1, ''".into(),
            &["jobs_due_charged"],
            60,
        ),
        statement(
            "poll",
            "uuid, boolean, uuid",
            ledger::FIND,
            format!("'01900000-0000-7000-8000-000000000100', false, {SOMEBODY}"),
            &["jobs_pkey"],
        ),
        ordered(
            "the last jobs",
            "uuid, text, text, bigint",
            ledger::LIST,
            "'01900000-0000-7000-8000-000000000100', NULL, NULL, 51".into(),
            &["jobs_pkey"],
            120,
        ),
        ordered(
            "an owner's jobs",
            "uuid, text, text, bigint, uuid, uuid",
            ledger::LIST_OF_OWNER,
            format!("NULL, NULL, NULL, 51, {SOMEBODY}, NULL"),
            &["jobs_created_by"],
            60,
        ),
        ordered(
            "a book's jobs",
            "uuid, text, text, bigint, uuid",
            ledger::LIST_OF_BOOK,
            format!("NULL, NULL, NULL, 51, {BOOK}"),
            &["jobs_book"],
            60,
        ),
    ]
}
