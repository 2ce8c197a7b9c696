//! What is deleted in batches is found by its place in the table. Joined by key the table would be read as often as the
//! batch has rows if the statement was planned while there were none; and one that is prepared may have been.

use coupon_core::{
    coupon::batch,
    db::{self, Db},
    import::sweep,
    leftovers, pool, retention,
    user::{budget, session},
};
use coupon_tests::database;
use serde_json::Value;

use super::{Hot, plan, seed::BOOK, statement, walk};

fn deletes() -> Vec<Hot> {
    let old = || "30, 100".to_owned();
    let batch = || "100".to_owned();
    [
        ("ticks", "bigint", leftovers::DELETE_TICKS, batch()),
        (
            "idempotency_keys",
            "bigint",
            leftovers::DELETE_IDEMPOTENCY_KEYS,
            batch(),
        ),
        ("job_marks", "bigint", leftovers::DELETE_MARKS, batch()),
        ("refresh_tokens", "bigint", session::DELETE_EXPIRED, batch()),
        ("security_budgets", "bigint", budget::DELETE_PASSED, batch()),
        (
            "upload_chunks",
            "uuid[], bigint",
            sweep::DELETE_CHUNKS,
            "'{}', 100".to_owned(),
        ),
        ("import_seen", "bigint", sweep::DELETE_SEEN, batch()),
        (
            "pool_members",
            "uuid, bigint",
            pool::DELETE_MEMBERS,
            format!("{BOOK}, 100"),
        ),
        ("job_errors", "int, bigint", retention::DELETE_REPORTS, old()),
        ("export_chunks", "int, bigint", retention::DELETE_EXPORTS, old()),
        (
            "assign_batch_items",
            "int, bigint",
            retention::DELETE_ITEMS,
            old(),
        ),
        ("schedule_fires", "int, bigint", retention::DELETE_FIRES, old()),
        (
            "assign_batch_items",
            "uuid, bigint, boolean",
            batch::TAKE,
            format!("{BOOK}, 100, false"),
        ),
    ]
    .map(|(table, types, sql, values)| statement(table, types, sql, values, &[]))
    .into()
}

/// How the rows of `table` that are to go are found.
fn found_by<'a>(plan: &'a Value, table: &str) -> Vec<&'a str> {
    let mut kinds = Vec::new();
    walk(plan, &mut |node| {
        if node["Operation"] == "Delete" && node["Relation Name"] == table {
            let sources = node["Plans"].as_array().into_iter().flatten();
            let sources = sources.filter(|child| child["Parent Relationship"] == "Outer");
            kinds.extend(sources.filter_map(|child| child["Node Type"].as_str()));
        }
    });
    kinds
}

#[tokio::test]
async fn what_is_deleted_in_batches_is_found_by_its_place() {
    let database = database().await;
    let db = Db::connect(database.url(), db::Role::Worker, 2).unwrap();
    sqlx::raw_sql("ANALYZE").execute(db.pool()).await.unwrap(); // and now it is known that there is nothing
    for delete in deletes() {
        for mode in ["force_custom_plan", "force_generic_plan"] {
            let mut tx = db.begin().await.unwrap();
            // A table without a page costs nothing to read, so that is what would be done here.
            sqlx::raw_sql("SET LOCAL enable_seqscan = off")
                .execute(&mut *tx)
                .await
                .unwrap();
            let plan = plan(&mut tx, &delete, mode).await;
            tx.rollback().await.unwrap();
            assert_eq!(
                found_by(&plan, delete.name),
                ["Tid Scan"],
                "{} ({mode}): {plan}",
                delete.name
            );
        }
    }
    db.close().await;
}
