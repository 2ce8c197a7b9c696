-- Distributions: giving coupons of a book to the people of a pool, planned, run and undone. They belong to the book
-- family: every key begins with the book, nothing refers to a table outside it.

CREATE TABLE distributions (
    book_id         uuid        NOT NULL REFERENCES books (id),
    id              uuid        NOT NULL,
    pool_id         uuid        NOT NULL,
    job_id          uuid        NOT NULL,
    undo_job_id     uuid,
    schedule_id     uuid,
    created_by      uuid        NOT NULL,
    created_at      timestamptz NOT NULL DEFAULT now(),
    planned_at      timestamptz,
    ended_at        timestamptz,
    undone_at       timestamptz,
    total           bigint      CHECK (total BETWEEN 1 AND 10000000),
    members         bigint      NOT NULL DEFAULT 0,
    eligible        bigint      NOT NULL DEFAULT 0,
    left_disabled   bigint      NOT NULL DEFAULT 0,
    left_limit      bigint      NOT NULL DEFAULT 0,
    left_ineligible bigint      NOT NULL DEFAULT 0,
    room            bigint      NOT NULL DEFAULT 0,
    codes_needed    bigint      NOT NULL DEFAULT 0,
    planned         bigint      NOT NULL DEFAULT 0,
    assigned        bigint      NOT NULL DEFAULT 0,
    recipients      bigint      NOT NULL DEFAULT 0,
    served          bigint      NOT NULL DEFAULT 0,
    shortfall       bigint      NOT NULL DEFAULT 0,
    withheld        bigint      NOT NULL DEFAULT 0,
    undone          bigint      NOT NULL DEFAULT 0,
    undo_seq        bigint      NOT NULL DEFAULT 0,
    next_place      bigint      NOT NULL DEFAULT 0,
    next_user_id    uuid        NOT NULL DEFAULT '00000000-0000-0000-0000-000000000000',
    per_user        integer     CHECK (per_user BETWEEN 1 AND 1000),
    max_per_user    integer     CHECK (max_per_user >= 1),
    created_by_kind text        NOT NULL CHECK (created_by_kind IN ('user', 'api_key')),
    mode            text        NOT NULL CHECK (mode IN ('equal', 'random', 'top_up')),
    on_shortage     text        NOT NULL CHECK (on_shortage IN ('fail', 'partial')),
    state           text        NOT NULL DEFAULT 'planned' CHECK (state IN ('planned', 'running', 'completed', 'completed_with_shortfall', 'failed', 'cancelled', 'undoing', 'undone', 'partially_undone')),
    phase           text        NOT NULL DEFAULT 'gather' CHECK (phase IN ('gather', 'decide', 'give', 'short')),
    request_id      text,
    seed            bytea       NOT NULL CHECK (length(seed) BETWEEN 1 AND 200),
    commitment      bytea       NOT NULL CHECK (length(commitment) = 32),
    changed         jsonb       NOT NULL DEFAULT '{}',
    kept            jsonb,
    PRIMARY KEY (book_id, id),
    CONSTRAINT distributions_mode_has_count    CHECK ((mode = 'random') = (total IS NOT NULL) AND (mode <> 'random') = (per_user IS NOT NULL)),
    CONSTRAINT distributions_max_is_for_random CHECK (mode = 'random' OR max_per_user IS NULL),
    CONSTRAINT distributions_undo_has_job      CHECK (state NOT IN ('undoing', 'undone', 'partially_undone') OR undo_job_id IS NOT NULL),
    CONSTRAINT distributions_undone_has_time   CHECK ((state = 'undone') = (undone_at IS NOT NULL))
) WITH (fillfactor = 50); -- a row is updated at every step, in place
CREATE INDEX distributions_id ON distributions (id);
COMMENT ON TABLE  distributions                 IS 'Giving coupons of a book to the people of a pool: what was asked, where it stands, what came of it.';
COMMENT ON COLUMN distributions.book_id         IS 'The book.';
COMMENT ON COLUMN distributions.id              IS 'UUIDv7.';
COMMENT ON COLUMN distributions.pool_id         IS 'The pool (pools.id; no foreign key out of the family).';
COMMENT ON COLUMN distributions.job_id          IS 'The job that runs it.';
COMMENT ON COLUMN distributions.undo_job_id     IS 'The latest job that undoes it.';
COMMENT ON COLUMN distributions.schedule_id     IS 'The schedule that started it; null when somebody did.';
COMMENT ON COLUMN distributions.created_by      IS 'The user or API key that asked for it.';
COMMENT ON COLUMN distributions.created_at      IS 'When it was accepted.';
COMMENT ON COLUMN distributions.planned_at      IS 'When its plan was complete.';
COMMENT ON COLUMN distributions.ended_at        IS 'When its run ended.';
COMMENT ON COLUMN distributions.undone_at       IS 'When it had been undone wholly.';
COMMENT ON COLUMN distributions.total           IS 'Mode random: how many coupons are drawn for in all.';
COMMENT ON COLUMN distributions.members         IS 'Members of the pool when it was planned.';
COMMENT ON COLUMN distributions.eligible        IS 'Those of them whom the plan does not leave out.';
COMMENT ON COLUMN distributions.left_disabled   IS 'Members left out because their account is disabled.';
COMMENT ON COLUMN distributions.left_limit      IS 'Members left out because the book''s limit per user does not allow their share.';
COMMENT ON COLUMN distributions.left_ineligible IS 'Members left out because they have as many as wanted already.';
COMMENT ON COLUMN distributions.room            IS 'How many coupons the eligible could take in all, each at most total.';
COMMENT ON COLUMN distributions.codes_needed    IS 'Coupons that what was asked for would take.';
COMMENT ON COLUMN distributions.planned         IS 'Coupons of the plan; fewer than needed in a shortage.';
COMMENT ON COLUMN distributions.assigned        IS 'Coupons assigned so far.';
COMMENT ON COLUMN distributions.recipients      IS 'People who were given at least one.';
COMMENT ON COLUMN distributions.served          IS 'Items of the plan that are dealt with; numbers the next one.';
COMMENT ON COLUMN distributions.shortfall       IS 'Coupons that were missing.';
COMMENT ON COLUMN distributions.withheld        IS 'Coupons that were planned but not given because the person may not have them any more.';
COMMENT ON COLUMN distributions.undone          IS 'Coupons taken back by undoing.';
COMMENT ON COLUMN distributions.undo_seq        IS 'The last coupon that the undoing under way has dealt with.';
COMMENT ON COLUMN distributions.next_place      IS 'Where the next step begins in the order of the items.';
COMMENT ON COLUMN distributions.next_user_id    IS 'The same: the user there; while members are gathered, the last one gathered.';
COMMENT ON COLUMN distributions.per_user        IS 'Modes equal and top_up: how many each gets, or is brought up to.';
COMMENT ON COLUMN distributions.max_per_user    IS 'Mode random: how many one person may get; null for no such limit.';
COMMENT ON COLUMN distributions.created_by_kind IS 'user or api_key.';
COMMENT ON COLUMN distributions.mode            IS 'equal, random or top_up.';
COMMENT ON COLUMN distributions.on_shortage     IS 'fail or partial.';
COMMENT ON COLUMN distributions.state           IS 'planned, running, completed, completed_with_shortfall, failed, cancelled, undoing, undone or partially_undone; how its jobs ended is read with it.';
COMMENT ON COLUMN distributions.phase           IS 'What the next step does: gather members, decide, give, or list who comes away short.';
COMMENT ON COLUMN distributions.request_id      IS 'The request that asked for it.';
COMMENT ON COLUMN distributions.seed            IS 'Secret: the order of people, and in mode random who gets how many, follow from it.';
COMMENT ON COLUMN distributions.commitment      IS 'SHA-256 of the seed, shown from the start.';
COMMENT ON COLUMN distributions.changed         IS 'Items that became otherwise than planned, counted by reason.';
COMMENT ON COLUMN distributions.kept            IS 'Coupons that the last undoing could not take back, counted by reason.';

-- No foreign key to distributions here and below: rows come in by the million, written by the job that holds the
-- distribution's row (docs/decisions).
CREATE TABLE distribution_items (
    book_id         uuid    NOT NULL,
    distribution_id uuid    NOT NULL,
    place           bigint  NOT NULL CHECK (place >= 0),
    user_id         uuid    NOT NULL,
    wanted          integer NOT NULL CHECK (wanted >= 0),
    assigned        integer NOT NULL DEFAULT 0 CHECK (assigned BETWEEN 0 AND wanted),
    undone          integer NOT NULL DEFAULT 0 CHECK (undone BETWEEN 0 AND assigned),
    room            integer CHECK (room >= 0),
    state           text    NOT NULL CHECK (state IN ('planned', 'given', 'short', 'left_out', 'not_drawn')),
    reason          text,
    PRIMARY KEY (book_id, distribution_id, place, user_id),
    CONSTRAINT distribution_items_given_is_whole   CHECK (state <> 'given' OR assigned = wanted),
    CONSTRAINT distribution_items_short_has_reason CHECK ((state IN ('short', 'left_out')) = (reason IS NOT NULL)),
    CONSTRAINT distribution_items_out_has_none     CHECK (state NOT IN ('left_out', 'not_drawn') OR wanted = 0)
) WITH (fillfactor = 50); -- each item is updated when it is served, on its own page
COMMENT ON TABLE  distribution_items                 IS 'One person of a distribution: the plan, and what came of it. The primary key is the order in which they are served.';
COMMENT ON COLUMN distribution_items.book_id         IS 'The book.';
COMMENT ON COLUMN distribution_items.distribution_id IS 'The distribution.';
COMMENT ON COLUMN distribution_items.place           IS '63 bits of HMAC-SHA-256(seed, user id): whose turn it is.';
COMMENT ON COLUMN distribution_items.user_id         IS 'The person (users.id; no foreign key out of the family).';
COMMENT ON COLUMN distribution_items.wanted          IS 'Coupons that the plan has for this person.';
COMMENT ON COLUMN distribution_items.assigned        IS 'Coupons that the run assigned.';
COMMENT ON COLUMN distribution_items.undone          IS 'Those of them that undoing took back.';
COMMENT ON COLUMN distribution_items.room            IS 'How many this person could take when the plan was made; null for any number.';
COMMENT ON COLUMN distribution_items.state           IS 'planned, given, short, left_out or not_drawn.';
COMMENT ON COLUMN distribution_items.reason          IS 'Why short or left out: disabled, limit_reached, ineligible, shortage.';

CREATE TABLE distribution_coupons (
    book_id         uuid        NOT NULL,
    distribution_id uuid        NOT NULL,
    seq             bigint      NOT NULL CHECK (seq >= 1),
    draw_key        bigint      NOT NULL,
    user_id         uuid        NOT NULL,
    undone_at       timestamptz,
    code_key        text        COLLATE "C" NOT NULL,
    PRIMARY KEY (book_id, distribution_id, seq)
);
COMMENT ON TABLE  distribution_coupons                 IS 'Which coupons a distribution assigned, in the order in which they were drawn.';
COMMENT ON COLUMN distribution_coupons.book_id         IS 'The book.';
COMMENT ON COLUMN distribution_coupons.distribution_id IS 'The distribution.';
COMMENT ON COLUMN distribution_coupons.seq             IS 'The n-th coupon of the distribution, from 1.';
COMMENT ON COLUMN distribution_coupons.draw_key        IS 'Where it lay in the draw. A coupon that was taken back is laid elsewhere, so this tells the distribution''s own assignment from any later one.';
COMMENT ON COLUMN distribution_coupons.user_id         IS 'Who got it.';
COMMENT ON COLUMN distribution_coupons.undone_at       IS 'When undoing took it back.';
COMMENT ON COLUMN distribution_coupons.code_key        IS 'The coupon.';
