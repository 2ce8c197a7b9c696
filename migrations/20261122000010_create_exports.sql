-- Exports: where each stands, and its file in pieces; and what retention has removed of a job.

CREATE TABLE exports (
    job_id      uuid   PRIMARY KEY REFERENCES jobs (id) ON DELETE CASCADE,
    book_id     uuid   NOT NULL,
    after_id    uuid,
    read        bigint NOT NULL DEFAULT 0 CHECK (read >= 0),
    rows        bigint NOT NULL DEFAULT 0 CHECK (rows BETWEEN 0 AND read),
    total       bigint NOT NULL DEFAULT 0 CHECK (total >= 0),
    bytes       bigint NOT NULL DEFAULT 0 CHECK (bytes >= 0),
    packed      bigint NOT NULL DEFAULT 0 CHECK (packed >= 0),
    kind        text   NOT NULL CHECK (kind IN ('coupons', 'redemptions')),
    state       text   CHECK (state IN ('unassigned', 'assigned', 'locked', 'redeemed', 'void')),
    pass        text   NOT NULL DEFAULT 'count' CHECK (pass IN ('count', 'write')),
    after_key   text   COLLATE "C",
    CONSTRAINT exports_state_is_of_coupons CHECK (state IS NULL OR kind = 'coupons'),
    CONSTRAINT exports_cursor_fits_kind CHECK (CASE kind WHEN 'coupons' THEN after_id IS NULL ELSE after_key IS NULL END)
);
COMMENT ON TABLE  exports           IS 'Where an export stands; one step moves it on in one transaction with the piece of the file that it wrote.';
COMMENT ON COLUMN exports.job_id    IS 'The job.';
COMMENT ON COLUMN exports.book_id   IS 'The book.';
COMMENT ON COLUMN exports.after_id  IS 'The last redemption that this pass has read; null at its beginning.';
COMMENT ON COLUMN exports.read      IS 'Rows of the book that the writing pass has read.';
COMMENT ON COLUMN exports.rows      IS 'Lines of the file, without its header.';
COMMENT ON COLUMN exports.total     IS 'Rows of the book that the counting pass has met.';
COMMENT ON COLUMN exports.bytes     IS 'Length of the file as text.';
COMMENT ON COLUMN exports.packed    IS 'Length of the file as gzip.';
COMMENT ON COLUMN exports.kind      IS 'coupons or redemptions.';
COMMENT ON COLUMN exports.state     IS 'Only coupons in this effective state; null for all.';
COMMENT ON COLUMN exports.pass      IS 'Which pass is under way: count (for the progress) or write.';
COMMENT ON COLUMN exports.after_key IS 'The last coupon that this pass has read; null at its beginning.';

CREATE TABLE export_chunks (
    job_id uuid   NOT NULL REFERENCES exports (job_id) ON DELETE CASCADE,
    start  bigint NOT NULL CHECK (start >= 0),
    length bigint NOT NULL CHECK (length > 0),
    packed bytea  NOT NULL,
    PRIMARY KEY (job_id, start)
);
ALTER TABLE export_chunks ALTER COLUMN packed SET STORAGE EXTERNAL; -- packed already
COMMENT ON TABLE  export_chunks        IS 'The file of an export, in pieces.';
COMMENT ON COLUMN export_chunks.job_id IS 'The export.';
COMMENT ON COLUMN export_chunks.start  IS 'Where in the text the piece begins, in bytes.';
COMMENT ON COLUMN export_chunks.length IS 'How long it is as text.';
COMMENT ON COLUMN export_chunks.packed IS 'The piece as one gzip member (RFC 1952): the members one after another are the packed file.';

-- No index on it: jobs are found by their ids, which hold their time, and an update that ends a job stays in place.
ALTER TABLE jobs ADD COLUMN expired_at timestamptz;
COMMENT ON COLUMN jobs.expired_at IS 'When retention began to remove its list of errors or its file; null while they are kept.';
