-- The book family: every key begins with the book, nothing here refers to a table outside it.

CREATE TABLE books (
    id                          uuid        PRIMARY KEY,
    created_by                  uuid        NOT NULL,
    created_at                  timestamptz NOT NULL DEFAULT now(),
    updated_at                  timestamptz NOT NULL DEFAULT now(),
    starts_at                   timestamptz,
    ends_at                     timestamptz,
    version                     bigint      NOT NULL DEFAULT 1,
    redemptions_per_coupon      integer     NOT NULL DEFAULT 1   CHECK (redemptions_per_coupon BETWEEN 1 AND 1000000),
    max_assignments_per_user    integer                          CHECK (max_assignments_per_user >= 1),
    max_redemptions_per_user    integer                          CHECK (max_redemptions_per_user >= 1),
    lock_seconds                integer     NOT NULL DEFAULT 300 CHECK (lock_seconds BETWEEN 5 AND 86400),
    lock_renewals               integer     NOT NULL DEFAULT 3   CHECK (lock_renewals BETWEEN 0 AND 1000),
    valid_days_after_assignment integer                          CHECK (valid_days_after_assignment BETWEEN 1 AND 36500),
    rollback_days               integer     NOT NULL DEFAULT 90  CHECK (rollback_days BETWEEN 0 AND 36500),
    require_lock                boolean     NOT NULL DEFAULT true,
    self_service                boolean     NOT NULL DEFAULT false,
    exact_codes                 boolean     NOT NULL DEFAULT false,
    status                      text        NOT NULL DEFAULT 'active' CHECK (status IN ('draft', 'active', 'paused', 'archived')),
    time_zone                   text        NOT NULL DEFAULT 'UTC',
    name                        text        NOT NULL CHECK (length(name) BETWEEN 1 AND 200),
    description                 text        NOT NULL DEFAULT '' CHECK (length(description) <= 10000),
    pattern                     text,
    metadata                    jsonb       NOT NULL DEFAULT '{}',
    CHECK (ends_at > starts_at)
);
COMMENT ON TABLE  books                             IS 'A set of codes with one configuration.';
COMMENT ON COLUMN books.id                          IS 'UUIDv7.';
COMMENT ON COLUMN books.created_by                  IS 'The user or API key that made it.';
COMMENT ON COLUMN books.created_at                  IS 'When it was made.';
COMMENT ON COLUMN books.updated_at                  IS 'When its configuration was last changed.';
COMMENT ON COLUMN books.starts_at                   IS 'Before this nothing is assigned, locked or redeemed; null for no beginning.';
COMMENT ON COLUMN books.ends_at                     IS 'From this on likewise; a lock taken before is honoured to its own end.';
COMMENT ON COLUMN books.version                     IS 'Counts changes; the ETag.';
COMMENT ON COLUMN books.redemptions_per_coupon      IS 'Uses that a new coupon gets.';
COMMENT ON COLUMN books.max_assignments_per_user    IS 'Coupons a user may be given; null for no limit.';
COMMENT ON COLUMN books.max_redemptions_per_user    IS 'Redemptions a user may make; null for no limit.';
COMMENT ON COLUMN books.lock_seconds                IS 'How long a lock lasts, in seconds.';
COMMENT ON COLUMN books.lock_renewals               IS 'How often one lock may be renewed.';
COMMENT ON COLUMN books.valid_days_after_assignment IS 'Days a coupon stays valid once assigned; null for no such limit.';
COMMENT ON COLUMN books.rollback_days               IS 'Days in which a redemption may be rolled back.';
COMMENT ON COLUMN books.require_lock                IS 'Whether a redemption needs a lock first.';
COMMENT ON COLUMN books.self_service                IS 'Whether users see the book and may assign to themselves.';
COMMENT ON COLUMN books.exact_codes                 IS 'Whether case, spaces and dashes make codes different; fixed once there are codes.';
COMMENT ON COLUMN books.status                      IS 'draft, active, paused or archived; only active books move coupons.';
COMMENT ON COLUMN books.time_zone                   IS 'IANA name, for showing times to people.';
COMMENT ON COLUMN books.name                        IS 'For people.';
COMMENT ON COLUMN books.description                 IS 'For people.';
COMMENT ON COLUMN books.pattern                     IS 'How generated codes are spelled, if any are.';
COMMENT ON COLUMN books.metadata                    IS 'The owner''s own fields.';

CREATE TABLE draw_states (
    book_id    uuid    PRIMARY KEY REFERENCES books (id),
    cursor     bigint  NOT NULL DEFAULT 0 CHECK (cursor >= 0),
    arrivals   bigint  NOT NULL DEFAULT 0 CHECK (arrivals >= 0),
    epoch      integer NOT NULL DEFAULT 0 CHECK (epoch >= 0),
    seed       bytea   NOT NULL CHECK (length(seed) = 32),
    commitment bytea   NOT NULL CHECK (length(commitment) = 32)
);
COMMENT ON TABLE  draw_states            IS 'Where a book''s draw stands. Its row lock makes the draws of one book run one after another.';
COMMENT ON COLUMN draw_states.book_id    IS 'The book.';
COMMENT ON COLUMN draw_states.cursor     IS 'The draw key of the last coupon drawn in this epoch; every unassigned coupon lies at it (a tie) or above.';
COMMENT ON COLUMN draw_states.arrivals   IS 'How many codes have arrived so far; numbers the next one.';
COMMENT ON COLUMN draw_states.epoch      IS 'How often what was left has been keyed anew.';
COMMENT ON COLUMN draw_states.seed       IS 'Secret: the order of draws follows from it. Revealed only once the book is archived.';
COMMENT ON COLUMN draw_states.commitment IS 'SHA-256 of the seed, shown from the start.';

-- No foreign key to books here and in events: every insert holds a lock on a row that has one, books are never deleted,
-- and checking it row by row costs a third of the rate at which codes come in (docs/decisions).
CREATE TABLE coupons (
    book_id             uuid        NOT NULL,
    assigned_user_id    uuid,
    draw_key            bigint      NOT NULL CHECK (draw_key >= 0),
    assigned_at         timestamptz,
    locked_until        timestamptz,
    expires_at          timestamptz,
    valid_until         timestamptz,
    created_at          timestamptz NOT NULL DEFAULT now(),
    updated_at          timestamptz NOT NULL DEFAULT now(),
    redemptions_allowed integer     NOT NULL CHECK (redemptions_allowed >= 1),
    redemptions_used    integer     NOT NULL DEFAULT 0,
    lock_renewals_left  integer,
    state               text        NOT NULL DEFAULT 'unassigned',
    code_key            text        COLLATE "C" NOT NULL CHECK (octet_length(code_key) BETWEEN 1 AND 100),
    code                text        COLLATE "C" CHECK (octet_length(code) BETWEEN 1 AND 100),
    lock_token_hash     bytea,
    metadata            jsonb,
    PRIMARY KEY (book_id, code_key),
    -- One for all that a state says, and not one for each: it is asked of every row of every import.
    CONSTRAINT coupons_is_as_its_state_says CHECK (CASE state
        WHEN 'unassigned' THEN assigned_user_id IS NULL AND assigned_at IS NULL AND valid_until IS NULL
                           AND locked_until IS NULL AND redemptions_used = 0
        WHEN 'assigned'   THEN assigned_user_id IS NOT NULL AND assigned_at IS NOT NULL
                           AND locked_until IS NULL AND redemptions_used >= 0 AND redemptions_used < redemptions_allowed
        WHEN 'locked'     THEN assigned_user_id IS NOT NULL AND assigned_at IS NOT NULL
                           AND locked_until IS NOT NULL AND lock_token_hash IS NOT NULL
                           AND lock_renewals_left IS NOT NULL AND lock_renewals_left >= 0
                           AND redemptions_used >= 0 AND redemptions_used < redemptions_allowed
        WHEN 'redeemed'   THEN assigned_user_id IS NOT NULL AND assigned_at IS NOT NULL
                           AND locked_until IS NULL AND redemptions_used = redemptions_allowed
        WHEN 'void'       THEN locked_until IS NULL AND redemptions_used >= 0 AND redemptions_used <= redemptions_allowed
        ELSE false END)
) WITH (fillfactor = 85); -- every coupon is updated a few times: leave room for it on the page
-- The draw reads from the cursor upwards and never sorts.
--
-- The conditions of this index and of coupons_locked are spelled with LIKE, and so they are in the few statements that are
-- meant to go along them. A look-up of one coupon by its key says `state = …`, of which the planner cannot conclude the
-- other: while the statistics say that few coupons are unassigned or locked, it would take the whole of a small index for
-- cheaper than the primary key, and read every locked coupon for each redemption.
CREATE INDEX coupons_draw ON coupons (book_id, draw_key) WITH (deduplicate_items = off) WHERE state LIKE 'unassigned'; -- no two are alike
-- "My coupons", across books.
CREATE INDEX coupons_holder ON coupons (assigned_user_id, book_id, code_key) WHERE assigned_user_id IS NOT NULL;
-- The sweep of lapsed locks.
CREATE INDEX coupons_locked ON coupons (locked_until) WHERE state LIKE 'locked';
COMMENT ON TABLE  coupons                     IS 'One code of one book, with its state.';
COMMENT ON COLUMN coupons.book_id             IS 'The book.';
COMMENT ON COLUMN coupons.assigned_user_id    IS 'The holder (users.id; no foreign key out of the family).';
COMMENT ON COLUMN coupons.draw_key            IS '63 bits; the draw takes the smallest above the cursor.';
COMMENT ON COLUMN coupons.assigned_at         IS 'When the holder got it.';
COMMENT ON COLUMN coupons.locked_until        IS 'When the lock lapses; a lock past it is no lock, swept or not.';
COMMENT ON COLUMN coupons.expires_at          IS 'When the coupon itself expires, fixed when it is made; null for never.';
COMMENT ON COLUMN coupons.valid_until         IS 'When it expires because of its assignment (valid_days_after_assignment).';
COMMENT ON COLUMN coupons.created_at          IS 'When it came into the book.';
COMMENT ON COLUMN coupons.updated_at          IS 'When its state last changed.';
COMMENT ON COLUMN coupons.redemptions_allowed IS 'Uses in all, fixed when it is made.';
COMMENT ON COLUMN coupons.redemptions_used    IS 'Uses spent.';
COMMENT ON COLUMN coupons.lock_renewals_left  IS 'How often the current lock may still be renewed.';
COMMENT ON COLUMN coupons.state               IS 'unassigned, assigned, locked, redeemed or void.';
COMMENT ON COLUMN coupons.code_key            IS 'What makes codes equal: upper case without spaces and dashes, or the code itself in a book of exact codes.';
COMMENT ON COLUMN coupons.code                IS 'The code as shown; null when it equals the key.';
COMMENT ON COLUMN coupons.lock_token_hash     IS 'SHA-256 of the last lock''s token; stays until the next lock, so that a lapsed token is told from an unknown one.';
COMMENT ON COLUMN coupons.metadata            IS 'The owner''s own fields; null for none.';

CREATE TABLE user_allowances (
    book_id        uuid    NOT NULL REFERENCES books (id),
    user_id        uuid    NOT NULL,
    assigned_count integer NOT NULL DEFAULT 0 CHECK (assigned_count >= 0),
    redeemed_count integer NOT NULL DEFAULT 0 CHECK (redeemed_count >= 0),
    PRIMARY KEY (book_id, user_id)
) WITH (fillfactor = 80);
COMMENT ON TABLE  user_allowances                IS 'How much of a book''s limits per user is used up; its row lock is what holds the limits under concurrency.';
COMMENT ON COLUMN user_allowances.book_id        IS 'The book.';
COMMENT ON COLUMN user_allowances.user_id        IS 'The user.';
COMMENT ON COLUMN user_allowances.assigned_count IS 'Coupons given to the user, less those revoked.';
COMMENT ON COLUMN user_allowances.redeemed_count IS 'Redemptions by the user, less those rolled back.';

CREATE TABLE redemptions (
    book_id         uuid        NOT NULL REFERENCES books (id),
    id              uuid        NOT NULL,
    user_id         uuid        NOT NULL,
    redeemed_by     uuid        NOT NULL,
    reverses_id     uuid,
    redeemed_at     timestamptz NOT NULL DEFAULT now(),
    kind            text        NOT NULL DEFAULT 'redemption' CHECK (kind IN ('redemption', 'rollback')),
    code_key        text        COLLATE "C" NOT NULL,
    code            text        COLLATE "C",
    reason          text,
    lock_token_hash bytea,
    metadata        jsonb       NOT NULL DEFAULT '{}',
    PRIMARY KEY (book_id, id),
    CONSTRAINT redemptions_rollback_reverses CHECK ((kind = 'rollback') = (reverses_id IS NOT NULL))
);
CREATE UNIQUE INDEX redemptions_reversed_once ON redemptions (book_id, reverses_id) WHERE reverses_id IS NOT NULL;
CREATE UNIQUE INDEX redemptions_lock_used_once ON redemptions (book_id, code_key, lock_token_hash) WHERE lock_token_hash IS NOT NULL;
CREATE INDEX redemptions_code ON redemptions (book_id, code_key, id);
CREATE INDEX redemptions_user ON redemptions (user_id, id);
CREATE INDEX redemptions_id ON redemptions (id);
COMMENT ON TABLE  redemptions                 IS 'The history of uses and of uses given back; append-only.';
COMMENT ON COLUMN redemptions.book_id         IS 'The book.';
COMMENT ON COLUMN redemptions.id              IS 'UUIDv7.';
COMMENT ON COLUMN redemptions.user_id         IS 'The holder.';
COMMENT ON COLUMN redemptions.redeemed_by     IS 'The user or API key that did it.';
COMMENT ON COLUMN redemptions.reverses_id     IS 'The redemption that a rollback gives back.';
COMMENT ON COLUMN redemptions.redeemed_at     IS 'When.';
COMMENT ON COLUMN redemptions.kind            IS 'redemption or rollback.';
COMMENT ON COLUMN redemptions.code_key        IS 'The coupon.';
COMMENT ON COLUMN redemptions.code            IS 'The code as shown; null when it equals the key.';
COMMENT ON COLUMN redemptions.reason          IS 'Why a rollback was made.';
COMMENT ON COLUMN redemptions.lock_token_hash IS 'SHA-256 of the token that it was made with; a repeated request finds it by this.';
COMMENT ON COLUMN redemptions.metadata        IS 'The caller''s own fields, such as a receipt number.';

CREATE TABLE events (
    book_id    uuid        NOT NULL,
    id         uuid        NOT NULL,
    actor_id   uuid,
    job_id     uuid,
    at         timestamptz NOT NULL DEFAULT now(),
    actor_kind text        NOT NULL CHECK (actor_kind IN ('user', 'api_key', 'system')),
    kind       text        NOT NULL,
    code_key   text        COLLATE "C",
    request_id text,
    before     jsonb,
    after      jsonb,
    hash       bytea,
    PRIMARY KEY (book_id, id),
    CONSTRAINT events_actor CHECK ((actor_kind = 'system') = (actor_id IS NULL))
);
CREATE INDEX events_code ON events (book_id, code_key, id) WHERE code_key IS NOT NULL;
COMMENT ON TABLE  events            IS 'The audit trail: one line per transition, one per chunk of new codes; append-only.';
COMMENT ON COLUMN events.book_id    IS 'The book.';
COMMENT ON COLUMN events.id         IS 'UUIDv7.';
COMMENT ON COLUMN events.actor_id   IS 'The user or API key that caused it; null for the service itself.';
COMMENT ON COLUMN events.job_id     IS 'The job in which it happened, if any.';
COMMENT ON COLUMN events.at         IS 'When.';
COMMENT ON COLUMN events.actor_kind IS 'user, api_key or system.';
COMMENT ON COLUMN events.kind       IS 'What: coupon_assigned, coupon_locked, …';
COMMENT ON COLUMN events.code_key   IS 'The coupon; null when the event is about the book.';
COMMENT ON COLUMN events.request_id IS 'The request that caused it.';
COMMENT ON COLUMN events.before     IS 'The fields that changed, as they were.';
COMMENT ON COLUMN events.after      IS 'The same fields, as they became.';
COMMENT ON COLUMN events.hash       IS 'The link of the audit chain; null until sealed.';
