//! The rules of migrations/README.md, read from the catalogue: what lets the same schema be distributed by book, and
//! what makes it explain itself.
#![expect(
    clippy::unwrap_used,
    reason = "what cannot be read from the database fails the test"
)]

use coupon_core::db::{self, Db};
use coupon_tests::database;

/// Each rule and a statement that lists what breaks it; $1 is the family.
const RULES: [(&str, &str); 8] = [
    (
        "every primary key and unique index of the family begins with the book",
        "SELECT c.relname || ': ' || i.indexrelid::regclass FROM pg_index i JOIN pg_class c ON c.oid = i.indrelid
         LEFT JOIN pg_attribute a ON a.attrelid = c.oid AND a.attnum = i.indkey[0]
         WHERE c.relnamespace = 'public'::regnamespace AND c.relname = ANY($1) AND (i.indisunique OR i.indisprimary)
           AND a.attname IS DISTINCT FROM CASE c.relname WHEN 'books' THEN 'id' ELSE 'book_id' END",
    ),
    (
        "every table of the family has a primary key",
        "SELECT c.relname::text FROM pg_class c
         WHERE c.relnamespace = 'public'::regnamespace AND c.relname = ANY($1)
           AND NOT EXISTS (SELECT FROM pg_index i WHERE i.indrelid = c.oid AND i.indisprimary)",
    ),
    (
        "every foreign key of the family begins with the book and leads to the same book",
        "SELECT c.conrelid::regclass || ': ' || c.conname FROM pg_constraint c
         JOIN pg_class t ON t.oid = c.conrelid
         JOIN pg_attribute own ON own.attrelid = c.conrelid AND own.attnum = c.conkey[1]
         JOIN pg_attribute its ON its.attrelid = c.confrelid AND its.attnum = c.confkey[1]
         WHERE c.contype = 'f' AND t.relname = ANY($1)
           AND (own.attname <> 'book_id' OR its.attname <> CASE c.confrelid::regclass::text WHEN 'books' THEN 'id' ELSE 'book_id' END)",
    ),
    (
        "no foreign key leads out of the family or into it",
        "SELECT c.conrelid::regclass || ': ' || c.conname FROM pg_constraint c
         WHERE c.contype = 'f'
           AND (c.conrelid::regclass::text = ANY($1)) <> (c.confrelid::regclass::text = ANY($1))",
    ),
    (
        "no exclusion constraint and no trigger in the family",
        "SELECT c.conrelid::regclass || ': ' || c.conname FROM pg_constraint c
         WHERE c.contype = 'x' AND c.conrelid::regclass::text = ANY($1)
         UNION ALL
         SELECT t.tgrelid::regclass || ': ' || t.tgname FROM pg_trigger t
         WHERE NOT t.tgisinternal AND t.tgrelid::regclass::text = ANY($1)",
    ),
    (
        "every table and every column has a comment",
        "SELECT c.relname || coalesce('.' || a.attname, '') FROM pg_class c
         LEFT JOIN LATERAL (
             SELECT NULL::name AS attname, 0 AS attnum
             UNION ALL SELECT attname, attnum FROM pg_attribute WHERE attrelid = c.oid AND attnum > 0 AND NOT attisdropped) a ON true
         WHERE c.relnamespace = 'public'::regnamespace AND c.relkind IN ('r', 'p') AND c.relname <> '_sqlx_migrations'
           AND coalesce(col_description(c.oid, a.attnum), CASE WHEN a.attnum = 0 THEN obj_description(c.oid, 'pg_class') END, '') = ''
           AND $1::text[] IS NOT NULL",
    ),
    (
        "every time is a timestamptz, and what is called one is one",
        "SELECT c.relname || '.' || a.attname || ' ' || format_type(a.atttypid, NULL) FROM pg_attribute a
         JOIN pg_class c ON c.oid = a.attrelid
         WHERE c.relnamespace = 'public'::regnamespace AND c.relkind IN ('r', 'p') AND c.relname <> '_sqlx_migrations'
           AND a.attnum > 0 AND NOT a.attisdropped AND $1::text[] IS NOT NULL
           AND (a.atttypid IN ('timestamp'::regtype, 'time'::regtype, 'timetz'::regtype, 'date'::regtype)
                OR (a.attname ~ '(_at|_until)$' AND a.atttypid NOT IN ('timestamptz'::regtype, 'timestamptz[]'::regtype)))",
    ),
    (
        "every state column has a CHECK",
        "SELECT c.relname || '.' || a.attname FROM pg_attribute a JOIN pg_class c ON c.oid = a.attrelid
         WHERE c.relnamespace = 'public'::regnamespace AND c.relkind IN ('r', 'p') AND a.attname IN ('state', 'status')
           AND a.atttypid = 'text'::regtype AND $1::text[] IS NOT NULL
           AND NOT EXISTS (SELECT FROM pg_constraint k WHERE k.conrelid = c.oid AND k.contype = 'c' AND a.attnum = ANY(k.conkey))",
    ),
];

/// The tables that have a book's rows: each column `book_id` makes one, but for those that stay where the jobs are.
const OUTSIDE: [&str; 7] = [
    "assign_batches",
    "code_job_slots",
    "exports",
    "generations",
    "imports",
    "jobs",
    "uploads",
];

async fn family(db: &Db) -> Vec<String> {
    sqlx::query_scalar(
        "SELECT c.relname::text FROM pg_class c
         WHERE c.relnamespace = 'public'::regnamespace AND c.relkind IN ('r', 'p')
           AND (c.relname = 'books'
                OR EXISTS (SELECT FROM pg_attribute a WHERE a.attrelid = c.oid AND a.attname = 'book_id' AND NOT a.attisdropped))
           AND c.relname <> ALL($1)
         ORDER BY 1",
    )
    .bind(&OUTSIDE[..])
    .fetch_all(db.pool())
    .await
    .unwrap()
}

async fn broken(db: &Db) -> Vec<String> {
    let family = family(db).await;
    let mut broken = Vec::new();
    for (rule, sql) in RULES {
        let found: Vec<String> = sqlx::query_scalar(sql)
            .bind(&family)
            .fetch_all(db.pool())
            .await
            .unwrap();
        broken.extend(found.into_iter().map(|what| format!("{rule}: {what}")));
    }
    broken
}

#[tokio::test]
async fn the_schema_keeps_the_rules_of_its_migrations() {
    let database = database().await;
    let db = Db::connect(database.url(), db::Role::Worker, 2).unwrap();
    let family = family(&db).await;
    for table in [
        "book_hours",
        "books",
        "code_keys",
        "code_patterns",
        "coupons",
        "draw_states",
        "events",
        "redemptions",
        "user_allowances",
    ] {
        assert!(
            family.iter().any(|known| known == table),
            "{table} is not in {family:?}"
        );
    }
    let broken = broken(&db).await;
    assert!(broken.is_empty(), "{}", broken.join("\n"));
    db.close().await;
}

#[tokio::test]
async fn each_rule_is_felt_when_it_is_broken() {
    let database = database().await;
    let db = Db::connect(database.url(), db::Role::Worker, 2).unwrap();
    // A table for each rule that can be broken by adding one, and how many lines it must bring.
    let breaks = [
        (
            "CREATE TABLE a (book_id uuid, id uuid PRIMARY KEY)",
            "begins with the book",
        ),
        ("CREATE TABLE b (book_id uuid)", "has a primary key"),
        (
            "CREATE UNIQUE INDEX c ON coupons (code_key, book_id)",
            "begins with the book",
        ),
        (
            "CREATE UNIQUE INDEX d ON coupons (lower(code_key), book_id)",
            "begins with the book",
        ),
        (
            "ALTER TABLE coupons ADD FOREIGN KEY (assigned_user_id) REFERENCES users (id)",
            "out of the family",
        ),
        (
            "ALTER TABLE redemptions ADD FOREIGN KEY (id, book_id) REFERENCES events (id, book_id)",
            "leads to the same book",
        ),
        (
            "CREATE FUNCTION f() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NEW; END';
             CREATE TRIGGER f BEFORE UPDATE ON coupons FOR EACH ROW EXECUTE FUNCTION f()",
            "no trigger",
        ),
        ("ALTER TABLE users ADD COLUMN g text", "has a comment"),
        ("COMMENT ON TABLE users IS NULL", "has a comment"),
        ("ALTER TABLE books ADD COLUMN h timestamp", "is a timestamptz"),
        ("ALTER TABLE books ADD COLUMN seen_at bigint", "is a timestamptz"),
        ("CREATE TABLE i (state text)", "has a CHECK"),
    ];
    for (sql, rule) in breaks {
        let mut tx = db.begin().await.unwrap();
        if sql.contains("REFERENCES events") {
            sqlx::raw_sql("CREATE UNIQUE INDEX e ON events (id, book_id)")
                .execute(&mut *tx)
                .await
                .unwrap();
        }
        sqlx::raw_sql(sql).execute(&mut *tx).await.unwrap();
        db::commit(tx).await.unwrap();
        let broken = broken(&db).await;
        assert!(
            broken.iter().any(|line| line.contains(rule)),
            "{sql} is not felt: {broken:?}"
        );
    }
    db.close().await;
}

/// Columns of a coupon that is as it should be, and what none of its state may be set to.
const COUPONS: [(&str, &str, &[&str]); 6] = [
    (
        "unassigned",
        "draw_key = 1",
        &[
            "assigned_user_id = book_id",
            "assigned_at = now()",
            "valid_until = now()",
            "locked_until = now()",
            "redemptions_used = 1",
            "redemptions_used = -1",
            "redemptions_allowed = 0",
            "draw_key = -1",
            "code_key = ''",
            "code_key = repeat('K', 101)",
            "code = ''",
            "code = repeat('k', 101)",
            "state = 'lost'",
        ],
    ),
    (
        "assigned",
        "assigned_user_id = book_id, assigned_at = now(), redemptions_used = 1",
        &[
            "assigned_user_id = NULL",
            "assigned_at = NULL",
            "locked_until = now()",
            "redemptions_used = 2",
            "redemptions_used = -1",
        ],
    ),
    (
        "locked",
        "assigned_user_id = book_id, assigned_at = now(), locked_until = now(), lock_token_hash = 'x', lock_renewals_left = 0",
        &[
            "assigned_user_id = NULL",
            "assigned_at = NULL",
            "locked_until = NULL",
            "lock_token_hash = NULL",
            "lock_renewals_left = NULL",
            "lock_renewals_left = -1",
            "redemptions_used = 2",
            "redemptions_used = -1",
        ],
    ),
    (
        "redeemed",
        "assigned_user_id = book_id, assigned_at = now(), redemptions_used = 2",
        &[
            "assigned_user_id = NULL",
            "assigned_at = NULL",
            "locked_until = now()",
            "redemptions_used = 1",
            "redemptions_used = 3",
        ],
    ),
    (
        "void",
        "redemptions_used = 2",
        &[
            "locked_until = now()",
            "redemptions_used = 3",
            "redemptions_used = -1",
        ],
    ),
    (
        "void",
        "assigned_user_id = book_id, assigned_at = now(), valid_until = now(), redemptions_used = 0",
        &["locked_until = now()"],
    ),
];

#[tokio::test]
async fn no_coupon_is_other_than_its_state_says() {
    let database = database().await;
    let db = Db::connect(database.url(), db::Role::Worker, 2).unwrap();
    for (state, good, bad) in COUPONS {
        let mut tx = db.begin().await.unwrap();
        let make = format!(
            "INSERT INTO books (id, created_by, name) SELECT id, id, 'A book' FROM (SELECT gen_random_uuid() AS id) AS new;
             INSERT INTO coupons (book_id, code_key, draw_key, redemptions_allowed) SELECT id, 'K', 1, 2 FROM books;
             UPDATE coupons SET state = '{state}', {good}"
        );
        sqlx::raw_sql(sqlx::AssertSqlSafe(make))
            .execute(&mut *tx)
            .await
            .unwrap();
        for change in bad {
            let change = format!("SAVEPOINT s; UPDATE coupons SET {change}");
            let refused = sqlx::raw_sql(sqlx::AssertSqlSafe(change.clone()))
                .execute(&mut *tx)
                .await;
            let code = refused
                .err()
                .and_then(|error| error.as_database_error()?.code().map(|c| c.into_owned()));
            assert_eq!(code.as_deref(), Some("23514"), "{state}: {change}");
            sqlx::raw_sql("ROLLBACK TO s").execute(&mut *tx).await.unwrap();
        }
        tx.rollback().await.unwrap();
    }
    db.close().await;
}
