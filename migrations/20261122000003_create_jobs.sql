-- Jobs as clients see them (the ledger), what their steps need, and the queue's own table made fit.

CREATE TABLE jobs (
    id                  uuid        PRIMARY KEY,
    created_by          uuid        NOT NULL,
    book_id             uuid,
    created_at          timestamptz NOT NULL DEFAULT now(),
    started_at          timestamptz,
    finished_at         timestamptz,
    cancel_requested_at timestamptz,
    progress_done       bigint      NOT NULL DEFAULT 0,
    progress_total      bigint,
    attempts            integer     NOT NULL DEFAULT 0,
    created_by_kind     text        NOT NULL CHECK (created_by_kind IN ('user', 'api_key')),
    kind                text        NOT NULL,
    state               text        NOT NULL DEFAULT 'queued' CHECK (state IN ('queued', 'running', 'succeeded', 'partially_succeeded', 'failed', 'cancelling', 'cancelled')),
    progress_unit       text        NOT NULL,
    request_id          text,
    error_code          text,
    error_detail        text,
    payload             jsonb       NOT NULL,
    counts              jsonb       NOT NULL DEFAULT '{}',
    result              json,
    CONSTRAINT jobs_finished_has_time CHECK ((state IN ('succeeded', 'partially_succeeded', 'failed', 'cancelled')) = (finished_at IS NOT NULL)),
    CONSTRAINT jobs_failed_has_error  CHECK (state <> 'failed' OR error_code IS NOT NULL)
) WITH (fillfactor = 35); -- every job is updated at least once, and twice as long then: in place, if its page has the room
CREATE INDEX jobs_created_by ON jobs (created_by, id);
CREATE INDEX jobs_book ON jobs (book_id, id);
COMMENT ON TABLE  jobs                     IS 'The ledger: what clients poll. Work that is due stands in apalis.jobs under the same id.';
COMMENT ON COLUMN jobs.id                  IS 'UUIDv7; apalis.jobs.id is the same 128 bits as ULID text.';
COMMENT ON COLUMN jobs.created_by          IS 'The user or API key that asked for it.';
COMMENT ON COLUMN jobs.book_id             IS 'The book it is about, if one.';
COMMENT ON COLUMN jobs.created_at          IS 'When it was accepted.';
COMMENT ON COLUMN jobs.started_at          IS 'When a worker first took it.';
COMMENT ON COLUMN jobs.finished_at         IS 'When it ended; null until then.';
COMMENT ON COLUMN jobs.cancel_requested_at IS 'When somebody asked to stop it at the next step.';
COMMENT ON COLUMN jobs.progress_done       IS 'Units done.';
COMMENT ON COLUMN jobs.progress_total      IS 'Units in all; null while unknown.';
COMMENT ON COLUMN jobs.attempts            IS 'Runs that ended in trouble or in a crash.';
COMMENT ON COLUMN jobs.created_by_kind     IS 'user or api_key.';
COMMENT ON COLUMN jobs.kind                IS 'assign, import, …';
COMMENT ON COLUMN jobs.state               IS 'queued, running, succeeded, partially_succeeded, failed, cancelling or cancelled.';
COMMENT ON COLUMN jobs.progress_unit       IS 'What is counted: coupons, rows, …';
COMMENT ON COLUMN jobs.request_id          IS 'The request that asked for it.';
COMMENT ON COLUMN jobs.error_code          IS 'The stable code of a failure.';
COMMENT ON COLUMN jobs.error_detail        IS 'The same for people.';
COMMENT ON COLUMN jobs.payload             IS 'What was asked; lets a failed job be tried again.';
COMMENT ON COLUMN jobs.counts              IS 'Counters by name.';
COMMENT ON COLUMN jobs.result              IS 'What came of it, as text that goes out as it is; may hold codes, so only the owner reads it.';

CREATE TABLE job_errors (
    job_id   uuid   NOT NULL REFERENCES jobs (id) ON DELETE CASCADE,
    seq      bigint NOT NULL,
    entry    jsonb  NOT NULL,
    original jsonb,
    PRIMARY KEY (job_id, seq)
);
COMMENT ON TABLE  job_errors          IS 'What a job could not do, line by line or item by item.';
COMMENT ON COLUMN job_errors.job_id   IS 'The job.';
COMMENT ON COLUMN job_errors.seq      IS 'The line or item.';
COMMENT ON COLUMN job_errors.entry    IS 'The error line as clients see it.';
COMMENT ON COLUMN job_errors.original IS 'The fields of the line as they were sent, an array of strings, for the report that can be mended and sent again; null when the job was not about a file.';

CREATE UNLOGGED TABLE job_marks (
    job_id    uuid        PRIMARY KEY,
    marked_at timestamptz NOT NULL DEFAULT now()
);
COMMENT ON TABLE  job_marks           IS 'Jobs that a worker is about to run, noted in a commit of its own; a mark on a job that nobody runs tells of a crash. Losing marks loses only that hint.';
COMMENT ON COLUMN job_marks.job_id    IS 'The job.';
COMMENT ON COLUMN job_marks.marked_at IS 'When.';

CREATE TABLE ticks (
    schedule text        NOT NULL,
    tick     timestamptz NOT NULL,
    PRIMARY KEY (schedule, tick)
);
COMMENT ON TABLE  ticks          IS 'Which tick of which schedule was taken; the first process to insert the row has it.';
COMMENT ON COLUMN ticks.schedule IS 'The schedule''s name.';
COMMENT ON COLUMN ticks.tick     IS 'The tick''s own time.';

CREATE TABLE uploads (
    id           uuid        PRIMARY KEY,
    book_id      uuid        NOT NULL,
    created_by   uuid        NOT NULL,
    created_at   timestamptz NOT NULL DEFAULT now(),
    completed_at timestamptz,
    removed_at   timestamptz,
    touched_at   timestamptz NOT NULL DEFAULT now(),
    bytes        bigint      NOT NULL DEFAULT 0 CHECK (bytes >= 0),
    lines        bigint      NOT NULL DEFAULT 0 CHECK (lines >= 0),
    sha256       bytea       CHECK (length(sha256) = 32),
    CONSTRAINT uploads_complete_has_hash CHECK ((completed_at IS NULL) = (sha256 IS NULL)),
    CONSTRAINT uploads_removed_was_complete CHECK (removed_at IS NULL OR completed_at IS NOT NULL)
);
CREATE INDEX uploads_unfinished ON uploads (touched_at) WHERE completed_at IS NULL;
CREATE INDEX uploads_kept ON uploads (completed_at) WHERE completed_at IS NOT NULL AND removed_at IS NULL;
COMMENT ON TABLE  uploads              IS 'Files sent for import, kept so that any worker can run or resume the job.';
COMMENT ON COLUMN uploads.id           IS 'UUIDv7.';
COMMENT ON COLUMN uploads.book_id      IS 'The book it is for.';
COMMENT ON COLUMN uploads.created_by   IS 'Who sent it.';
COMMENT ON COLUMN uploads.created_at   IS 'When the first byte arrived.';
COMMENT ON COLUMN uploads.completed_at IS 'When the last byte had arrived; null for one that is under way or was cut.';
COMMENT ON COLUMN uploads.removed_at   IS 'When retention removed its text; null while the text is kept.';
COMMENT ON COLUMN uploads.touched_at   IS 'When the last chunk arrived; an unfinished one that stays untouched is swept.';
COMMENT ON COLUMN uploads.bytes        IS 'Length of the text.';
COMMENT ON COLUMN uploads.lines        IS 'Physical lines of the text, counted while it came in; what progress is measured against.';
COMMENT ON COLUMN uploads.sha256       IS 'Of the bytes as sent.';

CREATE TABLE upload_chunks (
    upload_id uuid   NOT NULL REFERENCES uploads (id) ON DELETE CASCADE,
    start     bigint NOT NULL,
    bytes     bytea  NOT NULL,
    PRIMARY KEY (upload_id, start)
);
ALTER TABLE upload_chunks ALTER COLUMN bytes SET STORAGE EXTERNAL; -- read once: compressing costs more than it saves
COMMENT ON TABLE  upload_chunks           IS 'The text of an upload, in pieces.';
COMMENT ON COLUMN upload_chunks.upload_id IS 'The upload.';
COMMENT ON COLUMN upload_chunks.start     IS 'Where in the text the piece begins, in bytes.';
COMMENT ON COLUMN upload_chunks.bytes     IS 'The piece, UTF-8.';

CREATE TABLE imports (
    job_id            uuid    PRIMARY KEY REFERENCES jobs (id) ON DELETE CASCADE,
    book_id           uuid    NOT NULL,
    upload_id         uuid    NOT NULL REFERENCES uploads (id),
    cursor            bigint  NOT NULL DEFAULT 0,
    line              bigint  NOT NULL DEFAULT 1,
    rows              bigint  NOT NULL DEFAULT 0,
    accepted          bigint  NOT NULL DEFAULT 0,
    duplicate_in_file bigint  NOT NULL DEFAULT 0,
    duplicate_in_book bigint  NOT NULL DEFAULT 0,
    invalid           bigint  NOT NULL DEFAULT 0,
    validated         bigint  NOT NULL DEFAULT 0,
    pass              text    NOT NULL DEFAULT 'write' CHECK (pass IN ('validate', 'write')),
    settings          jsonb   NOT NULL,
    written_at        timestamptz[] NOT NULL DEFAULT '{}'
);
CREATE INDEX imports_upload ON imports (upload_id);
COMMENT ON TABLE  imports                   IS 'Where an import stands; one step moves it on in one transaction with what it wrote.';
COMMENT ON COLUMN imports.job_id            IS 'The job.';
COMMENT ON COLUMN imports.book_id           IS 'The book.';
COMMENT ON COLUMN imports.upload_id         IS 'The text.';
COMMENT ON COLUMN imports.cursor            IS 'Where the next record begins, in bytes.';
COMMENT ON COLUMN imports.line              IS 'The physical line of that place, from 1.';
COMMENT ON COLUMN imports.rows              IS 'Records read.';
COMMENT ON COLUMN imports.accepted          IS 'Coupons made.';
COMMENT ON COLUMN imports.duplicate_in_file IS 'Records that repeat an earlier one of the file.';
COMMENT ON COLUMN imports.duplicate_in_book IS 'Records whose code the book had before.';
COMMENT ON COLUMN imports.invalid           IS 'Records with another fault.';
COMMENT ON COLUMN imports.validated         IS 'Records read by the pass that only validates.';
COMMENT ON COLUMN imports.pass              IS 'Which pass is under way: validate (writes no coupon) or write.';
COMMENT ON COLUMN imports.settings          IS 'Mode, dialect and columns, as given and as found out.';
COMMENT ON COLUMN imports.written_at        IS 'The created_at of the coupons of each chunk, distinct per book: tells this import''s own coupons from older ones.';

CREATE UNLOGGED TABLE import_seen (
    job_id uuid    NOT NULL,
    key    text    COLLATE "C" NOT NULL,
    count  integer NOT NULL DEFAULT 1,
    PRIMARY KEY (job_id, key)
);
COMMENT ON TABLE  import_seen        IS 'What a validating pass has met so far. A crash of the server empties it; the pass notices, because its sentinel row is gone, and begins again.';
COMMENT ON COLUMN import_seen.job_id IS 'The import.';
COMMENT ON COLUMN import_seen.key    IS 'c and a code_key, u and the id of a user, or nothing: the sentinel.';
COMMENT ON COLUMN import_seen.count  IS 'For a user: coupons that the file gives to it.';

CREATE TABLE code_job_slots (
    book_id uuid PRIMARY KEY,
    job_id  uuid NOT NULL REFERENCES jobs (id) ON DELETE CASCADE
);
CREATE INDEX code_job_slots_job ON code_job_slots (job_id);
COMMENT ON TABLE  code_job_slots         IS 'The one job at a time that adds codes to a book.';
COMMENT ON COLUMN code_job_slots.book_id IS 'The book.';
COMMENT ON COLUMN code_job_slots.job_id  IS 'The job that has the slot until it ends.';

CREATE TABLE idempotency_keys (
    caller_id    uuid        NOT NULL,
    created_at   timestamptz NOT NULL DEFAULT now(),
    job_id       uuid,
    status       smallint    NOT NULL,
    key          text        NOT NULL CHECK (length(key) BETWEEN 1 AND 255),
    request_hash bytea       NOT NULL,
    location     text,
    body         bytea,
    PRIMARY KEY (caller_id, key)
);
CREATE INDEX idempotency_keys_created_at ON idempotency_keys (created_at);
COMMENT ON TABLE  idempotency_keys              IS 'Answers given, so that a repeated request gets the same one; written in the effect''s transaction.';
COMMENT ON COLUMN idempotency_keys.caller_id    IS 'The user or API key.';
COMMENT ON COLUMN idempotency_keys.created_at   IS 'When; kept at least 24 hours.';
COMMENT ON COLUMN idempotency_keys.job_id       IS 'The job that the answer is about; it is rendered anew when asked for again.';
COMMENT ON COLUMN idempotency_keys.status       IS 'The HTTP status.';
COMMENT ON COLUMN idempotency_keys.key          IS 'The caller''s key.';
COMMENT ON COLUMN idempotency_keys.request_hash IS 'SHA-256 of method, path, query and body.';
COMMENT ON COLUMN idempotency_keys.location     IS 'The Location header.';
COMMENT ON COLUMN idempotency_keys.body         IS 'The body, sealed (AES-256-GCM), since it may hold a lock token or a key; null when job_id tells it.';

-- The queue's table. Its row trigger would notify once per row; a bell per transaction replaces it (docs/jobs.md).
DROP TRIGGER IF EXISTS notify_workers ON apalis.jobs;
-- Rows live for a moment: vacuum by count, not by share.
ALTER TABLE apalis.jobs SET (fillfactor = 80, autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 5000, autovacuum_analyze_scale_factor = 0, autovacuum_analyze_threshold = 5000);
-- Its own indexes serve a way of fetching that is not used here and would be written for every job.
DROP INDEX IF EXISTS apalis.idx_apalis_jobs_fetch_partial;
DROP INDEX IF EXISTS apalis.idx_apalis_jobs_lock_by;
DROP INDEX IF EXISTS apalis.lidx;
DROP INDEX IF EXISTS apalis.unique_job_id; -- the same as the primary key
DROP INDEX IF EXISTS apalis.idx_jobs_idempotency_key; -- keys are kept in idempotency_keys
-- A batch takes fresh rows in order; rows with a charged attempt are taken one by one.
CREATE INDEX jobs_due_fresh ON apalis.jobs (job_type, run_at, id) WHERE attempts = 0;
CREATE INDEX jobs_due_charged ON apalis.jobs (job_type, run_at, id) WHERE attempts > 0;
