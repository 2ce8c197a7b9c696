-- Roll-ups: what statistics are read from, so that no series is ever counted from coupons or from the ledger.

CREATE TABLE roll_up_state (
    id            integer     PRIMARY KEY DEFAULT 1 CHECK (id = 1),
    events_before uuid        NOT NULL DEFAULT '00000000-0000-0000-0000-000000000000',
    mark_at       timestamptz NOT NULL DEFAULT 'epoch',
    sampled_at    timestamptz NOT NULL DEFAULT 'epoch',
    mark_xid      xid8        NOT NULL DEFAULT '0'
);
INSERT INTO roll_up_state DEFAULT VALUES;
COMMENT ON TABLE  roll_up_state               IS 'Where the roll-ups stand, one row; it moves in the transaction of the sums, and its row lock makes one sweep at a time.';
COMMENT ON COLUMN roll_up_state.id            IS 'Always 1: there is one row.';
COMMENT ON COLUMN roll_up_state.events_before IS 'Every event with a smaller id is in book_hours, no other is.';
COMMENT ON COLUMN roll_up_state.mark_at       IS 'A moment that the next sweeps may roll up to, once every transaction of then has ended.';
COMMENT ON COLUMN roll_up_state.sampled_at    IS 'The minute in which the queues were last looked at.';
COMMENT ON COLUMN roll_up_state.mark_xid      IS 'Transactions that had begun to write at mark_at have smaller numbers.';

CREATE TABLE book_hours (
    book_id            uuid        NOT NULL,
    hour               timestamptz NOT NULL,
    unassigned         bigint      NOT NULL,
    assigned           bigint      NOT NULL,
    locked             bigint      NOT NULL,
    redeemed           bigint      NOT NULL,
    void               bigint      NOT NULL,
    redemptions        bigint      NOT NULL,
    added_count        bigint      NOT NULL,
    assigned_count     bigint      NOT NULL,
    locked_count       bigint      NOT NULL,
    unlocked_count     bigint      NOT NULL,
    lock_expired_count bigint      NOT NULL,
    redeemed_count     bigint      NOT NULL,
    rolled_back_count  bigint      NOT NULL,
    revoked_count      bigint      NOT NULL,
    voided_count       bigint      NOT NULL,
    PRIMARY KEY (book_id, hour)
) WITH (fillfactor = 80); -- the hour that is under way is updated at every sweep
COMMENT ON TABLE  book_hours                    IS 'What happened to a book''s coupons in an hour, and how many were in each state at its end; no row for an hour without events.';
COMMENT ON COLUMN book_hours.book_id            IS 'The book; the nil UUID for all books together.';
COMMENT ON COLUMN book_hours.hour               IS 'The beginning of the hour, UTC.';
COMMENT ON COLUMN book_hours.unassigned         IS 'Unassigned at the end of the hour, or so far.';
COMMENT ON COLUMN book_hours.assigned           IS 'Assigned then.';
COMMENT ON COLUMN book_hours.locked             IS 'Locked then; a lapsed lock counts until the sweep has met it.';
COMMENT ON COLUMN book_hours.redeemed           IS 'Used up then.';
COMMENT ON COLUMN book_hours.void               IS 'Void then.';
COMMENT ON COLUMN book_hours.redemptions        IS 'Uses spent until then, less those given back.';
COMMENT ON COLUMN book_hours.added_count        IS 'Codes that came into the book in this hour.';
COMMENT ON COLUMN book_hours.assigned_count     IS 'Assignments in this hour.';
COMMENT ON COLUMN book_hours.locked_count       IS 'Locks taken.';
COMMENT ON COLUMN book_hours.unlocked_count     IS 'Locks given back.';
COMMENT ON COLUMN book_hours.lock_expired_count IS 'Locks that lapsed.';
COMMENT ON COLUMN book_hours.redeemed_count     IS 'Uses spent.';
COMMENT ON COLUMN book_hours.rolled_back_count  IS 'Uses given back.';
COMMENT ON COLUMN book_hours.revoked_count      IS 'Coupons taken back into the draw.';
COMMENT ON COLUMN book_hours.voided_count       IS 'Coupons taken out of use.';

CREATE TABLE job_changes (
    at            timestamptz      NOT NULL DEFAULT clock_timestamp(),
    seconds       double precision NOT NULL,
    jobs          bigint           NOT NULL CHECK (jobs > 0),
    kind          text             NOT NULL,
    left_state    text             NOT NULL,
    entered_state text
);
COMMENT ON TABLE  job_changes               IS 'Changes of state in the ledger that are not in the roll-ups yet: a row per statement, kind and change. A sweep takes them out.';
COMMENT ON COLUMN job_changes.at            IS 'When.';
COMMENT ON COLUMN job_changes.seconds       IS 'From acceptance to end, summed over those jobs that ended.';
COMMENT ON COLUMN job_changes.jobs          IS 'How many jobs.';
COMMENT ON COLUMN job_changes.kind          IS 'Their kind.';
COMMENT ON COLUMN job_changes.left_state    IS 'The state that they left.';
COMMENT ON COLUMN job_changes.entered_state IS 'The state that they entered; null for lines that were deleted.';

CREATE TABLE job_totals (
    jobs  bigint NOT NULL,
    state text   PRIMARY KEY CHECK (state IN ('running', 'succeeded', 'partially_succeeded', 'failed', 'cancelling', 'cancelled'))
);
COMMENT ON TABLE  job_totals       IS 'Lines of the ledger by state, but for what still stands in job_changes. Queued ones are counted in the queue.';
COMMENT ON COLUMN job_totals.jobs  IS 'How many.';
COMMENT ON COLUMN job_totals.state IS 'The state.';

CREATE TABLE job_hours (
    hour    timestamptz      NOT NULL,
    jobs    bigint           NOT NULL,
    seconds double precision NOT NULL,
    kind    text             NOT NULL,
    state   text             NOT NULL CHECK (state IN ('succeeded', 'partially_succeeded', 'failed', 'cancelled')),
    PRIMARY KEY (hour, kind, state)
);
COMMENT ON TABLE  job_hours         IS 'Jobs that ended in an hour. Kept when the ledger forgets them.';
COMMENT ON COLUMN job_hours.hour    IS 'The beginning of the hour, UTC.';
COMMENT ON COLUMN job_hours.jobs    IS 'How many.';
COMMENT ON COLUMN job_hours.seconds IS 'From acceptance to end, summed.';
COMMENT ON COLUMN job_hours.kind    IS 'Their kind.';
COMMENT ON COLUMN job_hours.state   IS 'How they ended.';

CREATE TABLE queue_hours (
    hour    timestamptz NOT NULL,
    due_sum bigint      NOT NULL,
    due_max bigint      NOT NULL,
    samples integer     NOT NULL CHECK (samples > 0),
    queue   text        NOT NULL,
    PRIMARY KEY (hour, queue)
);
COMMENT ON TABLE  queue_hours         IS 'How deep the queues were, looked at once a minute.';
COMMENT ON COLUMN queue_hours.hour    IS 'The beginning of the hour, UTC.';
COMMENT ON COLUMN queue_hours.due_sum IS 'Due jobs, summed over the samples.';
COMMENT ON COLUMN queue_hours.due_max IS 'The most due jobs of a sample.';
COMMENT ON COLUMN queue_hours.samples IS 'How many samples.';
COMMENT ON COLUMN queue_hours.queue   IS 'assign, bulk or system.';
