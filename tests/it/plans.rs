//! How the hot statements are carried out in a book that is not small: along their indexes, reading no more than they
//! give, also once they are prepared and planned without knowing their parameters.
//!
//! To add a statement: make it a `pub const` beside its use case, and a line in the `hot` of its subject.
#![expect(
    clippy::unwrap_used,
    reason = "what cannot be read from the database fails the test"
)]

mod coupons;
mod deletes;
mod distributions;
mod jobs;
mod schedules;
mod seed;
mod sums;

use std::{collections::BTreeSet, ops::Range};

use coupon_core::db::{self, Db, Tx};
use coupon_tests::database;
use serde_json::Value;
use sqlx::{AssertSqlSafe, Row};

use self::seed::seed;

/// A statement, how it is prepared and asked, and what its plan must and must not have.
struct Hot {
    name: &'static str,
    types: &'static str,
    sql: &'static str,
    values: String,
    indexes: &'static [&'static str],
    /// Blocks that it may touch: a page of a list reads a page, wherever it begins.
    blocks: i64,
    /// Whether its order must come from an index.
    ordered: bool,
}

fn hot() -> Vec<Hot> {
    let subjects = [
        coupons::hot(),
        distributions::hot(),
        jobs::hot(),
        schedules::hot(),
        sums::hot(),
    ];
    subjects.into_iter().flatten().collect()
}

fn statement(
    name: &'static str,
    types: &'static str,
    sql: &'static str,
    values: String,
    indexes: &'static [&'static str],
) -> Hot {
    Hot {
        name,
        types,
        sql,
        values,
        indexes,
        blocks: 300, // a statement that writes reads the ends of a few indexes, too
        ordered: false,
    }
}

fn ordered(
    name: &'static str,
    types: &'static str,
    sql: &'static str,
    values: String,
    indexes: &'static [&'static str],
    blocks: i64,
) -> Hot {
    Hot {
        ordered: true,
        blocks,
        ..statement(name, types, sql, values, indexes)
    }
}

/// The inside of an array's literal.
fn listed(numbers: Range<i32>, spell: impl Fn(i32) -> String) -> String {
    numbers.map(spell).collect::<Vec<_>>().join(",")
}

/// Twenty times the same, as an array.
fn twenty(value: &str) -> String {
    format!("array_fill({value}, ARRAY[20])")
}

/// The plan of a statement as it ran.
async fn plan(tx: &mut Tx, hot: &Hot, mode: &str) -> Value {
    let bracketed = |text: &str| match text {
        "" => String::new(),
        text => format!("({text})"),
    };
    let prepare = format!(
        "SET LOCAL plan_cache_mode = {mode}; PREPARE hot {} AS {}",
        bracketed(hot.types),
        hot.sql
    );
    sqlx::raw_sql(AssertSqlSafe(prepare))
        .execute(&mut **tx)
        .await
        .unwrap_or_else(|error| panic!("{}: {error}", hot.name));
    let explain = format!(
        "SAVEPOINT s; EXPLAIN (ANALYZE, BUFFERS, FORMAT JSON) EXECUTE hot {}; ROLLBACK TO s; DEALLOCATE hot",
        bracketed(&hot.values)
    );
    let row = sqlx::raw_sql(AssertSqlSafe(explain))
        .fetch_one(&mut **tx)
        .await
        .unwrap_or_else(|error| panic!("{}: {error}", hot.name));
    row.get::<Value, _>(0)[0]["Plan"].clone()
}

fn walk<'a>(node: &'a Value, visit: &mut impl FnMut(&'a Value)) {
    visit(node);
    for child in node["Plans"].as_array().into_iter().flatten() {
        walk(child, visit);
    }
}

/// What is wrong with a plan.
fn faults(hot: &Hot, plan: &Value) -> Vec<String> {
    let (mut faults, mut indexes, mut blocks) = (Vec::new(), BTreeSet::new(), 0);
    walk(plan, &mut |node| {
        let kind = node["Node Type"].as_str().unwrap_or("");
        let table = node["Relation Name"].as_str().unwrap_or("");
        if kind == "Seq Scan"
            && matches!(
                table,
                "coupons"
                    | "jobs"
                    | "events"
                    | "redemptions"
                    | "job_errors"
                    | "pool_members"
                    | "user_allowances"
                    | "distribution_items"
                    | "distribution_coupons"
                    | "schedule_fires"
            )
        {
            faults.push(format!("Seq Scan on {table}"));
        }
        if kind.contains("Sort") && hot.ordered {
            faults.push(kind.to_owned());
        }
        if let Some(index) = node["Index Name"].as_str() {
            indexes.insert(index);
        }
        let touched = |name: &str| node[name].as_i64().unwrap_or(0);
        blocks = blocks.max(touched("Shared Hit Blocks") + touched("Shared Read Blocks"));
    });
    for index in hot.indexes {
        if !indexes.contains(index) {
            faults.push(format!("not along {index} but {indexes:?}"));
        }
    }
    if blocks > hot.blocks {
        faults.push(format!("{blocks} blocks, {} are enough", hot.blocks));
    }
    if plan["Actual Rows"].is_null() {
        faults.push("it did not run".to_owned());
    }
    faults
}

async fn check(db: &Db, statements: &[&Hot], when: &str) -> Vec<String> {
    let mut wrong = Vec::new();
    for hot in statements {
        for mode in ["force_custom_plan", "force_generic_plan"] {
            let mut tx = db.begin().await.unwrap();
            let plan = plan(&mut tx, hot, mode).await;
            tx.rollback().await.unwrap();
            for fault in faults(hot, &plan) {
                wrong.push(format!("{} ({mode}, {when}): {fault}", hot.name));
            }
        }
    }
    wrong
}

/// While nothing is locked the index of the locked is next to empty, and looks cheaper than the primary key to a planner
/// that may use it: it would then be read whole for every redemption once a hundred thousand are.
#[tokio::test]
async fn a_coupon_is_never_looked_up_along_the_index_of_the_locked() {
    let database = database().await;
    let db = Db::connect(database.url(), db::Role::Worker, 2).unwrap();
    seed(&db).await;
    sqlx::raw_sql(
        "UPDATE coupons SET state = 'assigned', locked_until = NULL WHERE state = 'locked';
         REINDEX INDEX coupons_locked; ANALYZE coupons",
    )
    .execute(db.pool())
    .await
    .unwrap();
    for name in ["lock", "renew", "unlock", "redeem"] {
        let hot = hot().into_iter().find(|hot| hot.name == name).expect(name);
        for mode in ["force_custom_plan", "force_generic_plan"] {
            let mut tx = db.begin().await.unwrap();
            let plan = plan(&mut tx, &hot, mode).await;
            tx.rollback().await.unwrap();
            walk(&plan, &mut |node| {
                assert_ne!(node["Index Name"], "coupons_locked", "{name} ({mode}): {plan}");
            });
        }
    }
    db.close().await;
}

#[tokio::test]
async fn hot_statements_go_along_their_indexes() {
    let database = database().await;
    let db = Db::connect(database.url(), db::Role::Worker, 2).unwrap();
    sqlx::raw_sql(
        "ALTER TABLE coupons SET (autovacuum_enabled = off); ALTER TABLE jobs SET (autovacuum_enabled = off)",
    )
    .execute(db.pool())
    .await
    .unwrap();
    seed(&db).await;
    // What is in the sums already: all events but one in 4,096.
    sqlx::query("UPDATE roll_up_state SET events_before = 'fff00000-0000-0000-0000-000000000000'")
        .execute(db.pool())
        .await
        .unwrap();
    // A book that has just been filled, and a pool, have no statistics; draws and plans must not wait for them.
    let hot = hot();
    let at_once = ["draw", "draw late", "plan", "gather", "whose turn it is"];
    let draws: Vec<&Hot> = hot.iter().filter(|hot| at_once.contains(&hot.name)).collect();
    let mut wrong = check(&db, &draws, "without statistics").await;
    sqlx::raw_sql("ANALYZE").execute(db.pool()).await.unwrap();
    wrong.extend(check(&db, &hot.iter().collect::<Vec<_>>(), "with statistics").await);
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));

    // And a missing index is felt by every statement that needs it.
    let indexes: BTreeSet<&str> = hot.iter().flat_map(|hot| hot.indexes).copied().collect();
    for index in indexes {
        let drop = match index.strip_suffix("_pkey") {
            Some(table) => format!("ALTER TABLE {table} DROP CONSTRAINT {index} CASCADE"),
            None if index.starts_with("jobs_due") => format!("DROP INDEX apalis.{index}"),
            None => format!("DROP INDEX {index}"),
        };
        let mut tx = db.begin().await.unwrap();
        sqlx::raw_sql(AssertSqlSafe(drop))
            .execute(&mut *tx)
            .await
            .unwrap();
        for hot in hot.iter().filter(|hot| hot.indexes.contains(&index)) {
            let plan = plan(&mut tx, hot, "force_generic_plan").await;
            assert!(
                !faults(hot, &plan).is_empty(),
                "{} does not miss {index}",
                hot.name
            );
        }
        tx.rollback().await.unwrap();
    }
    db.close().await;
}
