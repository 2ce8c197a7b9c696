//! What the statements are planned on.

use coupon_core::db::Db;

pub(super) const BOOK: &str = "'00000000-0000-7000-8000-000000000001'::uuid";
/// Ids of events from here to there.
pub(super) const RANGE: &str =
    "'80000000-0000-0000-0000-000000000000'::uuid, '80100000-0000-0000-0000-000000000000'::uuid";
/// Holds thousands of coupons.
pub(super) const COLLECTOR: &str = "'00000000-0000-7000-8000-00000000000c'::uuid";
/// Holds one, and owns a few jobs.
pub(super) const SOMEBODY: &str = "'00000000-0000-7000-8000-00000000000d'::uuid";

/// Has 5,000 members of 25,000 users.
pub(super) const POOL: &str = "'00000000-0000-7000-8000-0000000000a1'::uuid";
/// A distribution of [`BOOK`] to 20,000 people.
pub(super) const GIVING: &str = "'00000000-0000-7000-8000-0000000000b1'::uuid";
/// One that nobody was gathered for.
pub(super) const PLANNED: &str = "'00000000-0000-7000-8000-0000000000b2'::uuid";
pub(super) const NOBODY: &str = "'00000000-0000-0000-0000-000000000000'::uuid";

/// 60,000 coupons in one book and 200 books beside it; 50,000 lines in the ledger, 20,000 due, as many events; a list of
/// 20,000 errors. Each statement is a transaction of its own: a long one would hold up the sums of every database of the
/// server, and with them the tests that wait for sums.
pub(super) async fn seed(db: &Db) {
    for sql in SEED.split(";\n") {
        sqlx::raw_sql(sql).execute(db.pool()).await.unwrap();
    }
}

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
    SELECT s.id, at, at, 'missed' FROM (SELECT id FROM schedules ORDER BY id LIMIT 200) AS s,
           generate_series(now() - interval '20 hours', now() - interval '1 hour', '1 hour') AS at;
    INSERT INTO apalis.jobs (job, id, job_type, run_at, attempts)
    SELECT '', lpad(n::text, 26, '0'), CASE n % 4 WHEN 0 THEN 'bulk' ELSE 'assign' END, 'epoch', CASE WHEN n % 500 = 1 THEN 1 ELSE 0 END
    FROM generate_series(1, 20000) AS n;";
