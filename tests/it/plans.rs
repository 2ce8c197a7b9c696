//! How the hot statements are carried out in a book that is not small: along their indexes, reading no more than they
//! give, also once they are prepared and planned without knowing their parameters.
//!
//! To add a statement: make it a `pub const` beside its use case, and a line in `hot`.
#![expect(
    clippy::unwrap_used,
    reason = "what cannot be read from the database fails the test"
)]

use std::collections::BTreeSet;

use coupon_core::{
    book,
    coupon::{assign, explain, list, locate, lock, redeem, sweep},
    db::{self, Db, Tx},
    distribution::{self, give, plan as planning, undo},
    export,
    job::{claim, ledger},
    pool::members,
    retention,
    schedule::fire,
    stats::{roll_up, series},
};
use coupon_tests::database;
use serde_json::Value;
use sqlx::{AssertSqlSafe, Row};

const BOOK: &str = "'00000000-0000-7000-8000-000000000001'::uuid";
/// Ids of events from here to there.
const RANGE: &str =
    "'80000000-0000-0000-0000-000000000000'::uuid, '80100000-0000-0000-0000-000000000000'::uuid";
/// Holds thousands of coupons.
const COLLECTOR: &str = "'00000000-0000-7000-8000-00000000000c'::uuid";
/// Holds one, and owns a few jobs.
const SOMEBODY: &str = "'00000000-0000-7000-8000-00000000000d'::uuid";

/// Has 5,000 members of 25,000 users.
const POOL: &str = "'00000000-0000-7000-8000-0000000000a1'::uuid";
/// A distribution of [`BOOK`] to 20,000 people.
const GIVING: &str = "'00000000-0000-7000-8000-0000000000b1'::uuid";
/// One that nobody was gathered for.
const PLANNED: &str = "'00000000-0000-7000-8000-0000000000b2'::uuid";
const NOBODY: &str = "'00000000-0000-0000-0000-000000000000'::uuid";

/// 60,000 coupons in one book and 200 books beside it; 50,000 lines in the ledger, 20,000 due, as many events; a list of
/// 20,000 errors.
const SEED: &str = "
    INSERT INTO books (id, created_by, name)
    SELECT ('00000000-0000-7000-8000-' || lpad(to_hex(n), 12, '0'))::uuid, gen_random_uuid(), 'A book'
    FROM generate_series(1, 200) AS n;
    INSERT INTO coupons (book_id, code_key, draw_key, redemptions_allowed, state, assigned_user_id, assigned_at,
                         lock_token_hash, lock_renewals_left, locked_until)
    SELECT '00000000-0000-7000-8000-000000000001', 'C' || lpad(n::text, 6, '0'), (random() * 9e18)::bigint, 1,
           CASE WHEN n <= 40000 THEN 'unassigned' WHEN n <= 55000 THEN 'assigned' ELSE 'locked' END,
           CASE WHEN n <= 40000 THEN NULL WHEN n = 40001 THEN '00000000-0000-7000-8000-00000000000d'
                WHEN n <= 46000 THEN '00000000-0000-7000-8000-00000000000c' ELSE gen_random_uuid() END,
           CASE WHEN n > 40000 THEN now() END,
           CASE WHEN n > 55000 THEN 'x'::bytea END, CASE WHEN n > 55000 THEN 3 END,
           CASE WHEN n > 58000 THEN now() - make_interval(secs => n * 0.001) WHEN n > 55000 THEN now() + interval '1 h' END
    FROM generate_series(1, 60000) AS n;
    INSERT INTO coupons (book_id, code_key, draw_key, redemptions_allowed)
    SELECT id, 'D' || n, n, 1 FROM books, generate_series(1, 20) AS n WHERE id <> '00000000-0000-7000-8000-000000000001';
    INSERT INTO draw_states (book_id, seed, commitment)
    SELECT id, sha256('a'), sha256('b') FROM books;
    INSERT INTO events (book_id, id, actor_kind, kind, code_key)
    SELECT '00000000-0000-7000-8000-000000000001', gen_random_uuid(), 'system', 'coupon_made_up', 'C' || lpad((n % 20000)::text, 6, '0')
    FROM generate_series(1, 50000) AS n;
    INSERT INTO book_hours
    SELECT b.id, '2024-01-01T00:00Z'::timestamptz + make_interval(hours => n), 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1
    FROM (SELECT id FROM books ORDER BY id LIMIT 5) AS b, generate_series(1, 10000) AS n;
    INSERT INTO jobs (id, created_by, created_by_kind, book_id, kind, progress_unit, payload)
    SELECT ('01900000-0000-7000-8000-' || lpad(to_hex(n), 12, '0'))::uuid,
           CASE WHEN n % 10000 = 0 THEN '00000000-0000-7000-8000-00000000000d'::uuid ELSE gen_random_uuid() END, 'user',
           CASE WHEN n % 5000 = 0 THEN '00000000-0000-7000-8000-000000000001'::uuid END, 'assign', 'coupons', '{}'
    FROM generate_series(1, 50000) AS n;
    WITH recent AS (
        INSERT INTO jobs (id, created_by, created_by_kind, kind, state, finished_at, progress_unit, payload)
        VALUES (uuid_v7(), gen_random_uuid(), 'user', 'import', 'partially_succeeded', now(), 'rows', '{}') RETURNING id)
    INSERT INTO job_errors (job_id, seq, entry) SELECT id, n, '{}' FROM recent, generate_series(1, 20000) AS n;
    INSERT INTO users (id, email, name)
    SELECT ('00000000-0000-7000-9000-' || lpad(to_hex(n), 12, '0'))::uuid, n || '@example.com', 'A user'
    FROM generate_series(1, 25000) AS n;
    INSERT INTO pool_members (pool_id, user_id)
    SELECT ('00000000-0000-7000-8000-0000000000a' || to_hex(n % 5 + 1))::uuid,
           ('00000000-0000-7000-9000-' || lpad(to_hex(n), 12, '0'))::uuid FROM generate_series(1, 25000) AS n;
    INSERT INTO user_allowances (book_id, user_id, assigned_count)
    SELECT '00000000-0000-7000-8000-000000000001', ('00000000-0000-7000-9000-' || lpad(to_hex(n), 12, '0'))::uuid, 1
    FROM generate_series(1, 20000) AS n;
    INSERT INTO distribution_items (book_id, distribution_id, place, user_id, wanted, state)
    SELECT '00000000-0000-7000-8000-000000000001', '00000000-0000-7000-8000-0000000000b1', n * 1000::bigint,
           ('00000000-0000-7000-9000-' || lpad(to_hex(n), 12, '0'))::uuid, 1, 'planned' FROM generate_series(1, 20000) AS n;
    INSERT INTO distribution_coupons (book_id, distribution_id, seq, draw_key, user_id, code_key)
    SELECT '00000000-0000-7000-8000-000000000001', '00000000-0000-7000-8000-0000000000b1', n, n, gen_random_uuid(),
           'C' || lpad((40000 + n)::text, 6, '0') FROM generate_series(1, 15000) AS n;
    INSERT INTO schedules (id, created_by, created_by_kind, kind, missed, overlap, name, time_zone, cron, body, next_fire_at)
    SELECT ('00000000-0000-7000-a000-' || lpad(to_hex(n), 12, '0'))::uuid, gen_random_uuid(), 'user', 'export', 'skip',
           CASE n % 2 WHEN 0 THEN 'queue' ELSE 'skip' END, 'A schedule', 'UTC', '* * * * *', '{}',
           now() + CASE WHEN n % 200 < 2 THEN interval '-5 s' ELSE interval '1 h' END
    FROM generate_series(1, 2000) AS n;
    INSERT INTO schedule_fires (schedule_id, fire_at, fired_at, outcome)
    SELECT s.id, at, at, 'missed' FROM schedules s,
           generate_series(now() - interval '20 hours', now() - interval '1 hour', '1 hour') AS at;
    INSERT INTO apalis.jobs (job, id, job_type, run_at, attempts)
    SELECT '', lpad(n::text, 26, '0'), CASE n % 4 WHEN 0 THEN 'bulk' ELSE 'assign' END, 'epoch', CASE WHEN n % 500 = 1 THEN 1 ELSE 0 END
    FROM generate_series(1, 20000) AS n;";

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
    let hash = "'\\x78'::bytea";
    let origin = "'user', gen_random_uuid(), NULL";
    let statement = |name, types, sql, values: String, indexes| Hot {
        name,
        types,
        sql,
        values,
        indexes,
        blocks: 300, // a statement that writes reads the ends of a few indexes, too
        ordered: false,
    };
    let ordered = |name, types, sql, values: String, indexes, blocks| Hot {
        ordered: true,
        blocks,
        ..statement(name, types, sql, values, indexes)
    };
    let keys: String = (100..120).map(|n| format!("C{n:06},")).collect();
    let keys = keys.trim_end_matches(',');
    let twenty = |value: &str| format!("array_fill({value}, ARRAY[20])");
    let people: String = (100..120)
        .map(|n| format!("00000000-0000-7000-9000-{n:012x},"))
        .collect();
    let people = people.trim_end_matches(',');
    let places: String = (100..120).map(|n| format!("{n}000,")).collect();
    let places = places.trim_end_matches(',');
    let numbers: String = (1..21).map(|n| format!("{n},")).collect();
    let numbers = numbers.trim_end_matches(',');
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
        // Those that are due are few: whether they are sorted or read in order is all one.
        statement(
            "the next fire",
            "",
            fire::CLAIM,
            String::new(),
            &["schedules_due", "schedule_fires_pkey"],
        ),
        statement("fires that wait", "float8", fire::NOTICE, "60".into(), &["schedules_due"]),
        Hot {
            blocks: 13_000, // the latest of each of 2,000 schedules, and whether it has older ones
            ..statement(
                "retention: fires",
                "int, bigint",
                retention::DELETE_FIRES,
                "30, 5000".into(),
                &["schedule_fires_pkey"],
            )
        },
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
            "uuid, text, timestamptz, uuid, bigint",
            list::LIST_EVENTS,
            format!("{BOOK}, 'C000100', NULL, NULL, 51"),
            &["events_code"],
            60,
        ),
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

/// The plan of a statement as it ran.
async fn plan(tx: &mut Tx, hot: &Hot, mode: &str) -> Value {
    let listed = |text: &str| match text {
        "" => String::new(),
        text => format!("({text})"),
    };
    let prepare = format!(
        "SET LOCAL plan_cache_mode = {mode}; PREPARE hot {} AS {}",
        listed(hot.types),
        hot.sql
    );
    sqlx::raw_sql(AssertSqlSafe(prepare))
        .execute(&mut **tx)
        .await
        .unwrap_or_else(|error| panic!("{}: {error}", hot.name));
    let explain = format!(
        "SAVEPOINT s; EXPLAIN (ANALYZE, BUFFERS, FORMAT JSON) EXECUTE hot {}; ROLLBACK TO s; DEALLOCATE hot",
        listed(&hot.values)
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
    sqlx::raw_sql(SEED).execute(db.pool()).await.unwrap();
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
    sqlx::raw_sql(SEED).execute(db.pool()).await.unwrap();
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
