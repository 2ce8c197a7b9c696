-- Pools: named sets of people. Nothing here belongs to a book.

CREATE TABLE pools (
    id           uuid        PRIMARY KEY,
    created_by   uuid        NOT NULL,
    created_at   timestamptz NOT NULL DEFAULT now(),
    updated_at   timestamptz NOT NULL DEFAULT now(),
    deleted_at   timestamptz,
    version      bigint      NOT NULL DEFAULT 1,
    member_count bigint      NOT NULL DEFAULT 0 CHECK (member_count >= 0),
    name         text        NOT NULL CHECK (length(name) BETWEEN 1 AND 200),
    description  text        NOT NULL DEFAULT '' CHECK (length(description) <= 10000)
);
CREATE INDEX pools_deleted ON pools (deleted_at) WHERE deleted_at IS NOT NULL;
COMMENT ON TABLE  pools              IS 'Named sets of users. Who adds or removes members holds the pool''s row, so that member_count is exact.';
COMMENT ON COLUMN pools.id           IS 'UUIDv7.';
COMMENT ON COLUMN pools.created_by   IS 'The user or API key that made it.';
COMMENT ON COLUMN pools.created_at   IS 'When it was made.';
COMMENT ON COLUMN pools.updated_at   IS 'When its name or description was last changed.';
COMMENT ON COLUMN pools.deleted_at   IS 'When it was deleted; from then on nobody sees it, and a sweep removes its members and then the row.';
COMMENT ON COLUMN pools.version      IS 'Counts changes of name and description; the ETag. Members come and go without it.';
COMMENT ON COLUMN pools.member_count IS 'How many members it has.';
COMMENT ON COLUMN pools.name         IS 'For people.';
COMMENT ON COLUMN pools.description  IS 'For people.';

-- No foreign keys: rows come in by the million, each joined with its user, under the lock of the pool's row; users are
-- never deleted, and a deleted pool's members go before its row does (docs/decisions).
CREATE TABLE pool_members (
    pool_id  uuid        NOT NULL,
    user_id  uuid        NOT NULL,
    added_at timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (pool_id, user_id)
);
COMMENT ON TABLE  pool_members          IS 'Who is in which pool.';
COMMENT ON COLUMN pool_members.pool_id  IS 'The pool.';
COMMENT ON COLUMN pool_members.user_id  IS 'The user (users.id).';
COMMENT ON COLUMN pool_members.added_at IS 'Since when.';

-- A file is sent for a book or for a pool.
ALTER TABLE uploads ALTER COLUMN book_id DROP NOT NULL;
ALTER TABLE uploads ADD COLUMN pool_id uuid;
ALTER TABLE uploads ADD CONSTRAINT uploads_for_book_or_pool CHECK (num_nonnulls(book_id, pool_id) = 1);
COMMENT ON COLUMN uploads.book_id IS 'The book it is for; null when it is for a pool.';
COMMENT ON COLUMN uploads.pool_id IS 'The pool it is for; null when it is for a book.';

CREATE TABLE pool_imports (
    job_id    uuid   PRIMARY KEY REFERENCES jobs (id) ON DELETE CASCADE,
    pool_id   uuid   NOT NULL,
    upload_id uuid   NOT NULL REFERENCES uploads (id),
    cursor    bigint NOT NULL DEFAULT 0,
    line      bigint NOT NULL DEFAULT 1,
    rows      bigint NOT NULL DEFAULT 0,
    added     bigint NOT NULL DEFAULT 0,
    already   bigint NOT NULL DEFAULT 0,
    unknown   bigint NOT NULL DEFAULT 0,
    invalid   bigint NOT NULL DEFAULT 0,
    settings  jsonb  NOT NULL
);
CREATE INDEX pool_imports_upload ON pool_imports (upload_id);
COMMENT ON TABLE  pool_imports           IS 'Where an import of members stands; one step moves it on in one transaction with what it wrote.';
COMMENT ON COLUMN pool_imports.job_id    IS 'The job.';
COMMENT ON COLUMN pool_imports.pool_id   IS 'The pool.';
COMMENT ON COLUMN pool_imports.upload_id IS 'The text.';
COMMENT ON COLUMN pool_imports.cursor    IS 'Where the next record begins, in bytes.';
COMMENT ON COLUMN pool_imports.line      IS 'The physical line of that place, from 1.';
COMMENT ON COLUMN pool_imports.rows      IS 'Records read.';
COMMENT ON COLUMN pool_imports.added     IS 'Members added.';
COMMENT ON COLUMN pool_imports.already   IS 'Records of people who were members already.';
COMMENT ON COLUMN pool_imports.unknown   IS 'Records whose e-mail address is nobody''s.';
COMMENT ON COLUMN pool_imports.invalid   IS 'Records without an e-mail address.';
COMMENT ON COLUMN pool_imports.settings  IS 'Dialect and columns, as given and as found out.';
