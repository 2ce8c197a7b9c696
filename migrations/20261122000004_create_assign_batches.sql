-- Assignments of many users in one job: the items and how far the job is.

CREATE TABLE assign_batches (
    job_id     uuid   PRIMARY KEY REFERENCES jobs (id) ON DELETE CASCADE,
    book_id    uuid   NOT NULL,
    actor_id   uuid   NOT NULL,
    next_item  bigint NOT NULL DEFAULT 0,
    items      bigint NOT NULL,
    assigned   bigint NOT NULL DEFAULT 0,
    refused    bigint NOT NULL DEFAULT 0,
    actor_kind text   NOT NULL CHECK (actor_kind IN ('user', 'api_key'))
);
COMMENT ON TABLE  assign_batches            IS 'Where an assignment of many users stands; one step moves it on in one transaction with what it wrote.';
COMMENT ON COLUMN assign_batches.job_id     IS 'The job.';
COMMENT ON COLUMN assign_batches.book_id    IS 'The book.';
COMMENT ON COLUMN assign_batches.actor_id   IS 'Who asked.';
COMMENT ON COLUMN assign_batches.next_item  IS 'The first item that no step has dealt with.';
COMMENT ON COLUMN assign_batches.items      IS 'How many items there are.';
COMMENT ON COLUMN assign_batches.assigned   IS 'Coupons assigned.';
COMMENT ON COLUMN assign_batches.refused    IS 'Items refused.';
COMMENT ON COLUMN assign_batches.actor_kind IS 'user or api_key.';

CREATE TABLE assign_batch_items (
    job_id  uuid    NOT NULL REFERENCES assign_batches (job_id) ON DELETE CASCADE,
    item    bigint  NOT NULL,
    user_id uuid    NOT NULL,
    count   integer NOT NULL CHECK (count BETWEEN 1 AND 1000),
    PRIMARY KEY (job_id, item)
);
COMMENT ON TABLE  assign_batch_items         IS 'Who is to get how many; deleted as they are dealt with.';
COMMENT ON COLUMN assign_batch_items.job_id  IS 'The job.';
COMMENT ON COLUMN assign_batch_items.item    IS 'The item''s place in the request, from 0.';
COMMENT ON COLUMN assign_batch_items.user_id IS 'Who.';
COMMENT ON COLUMN assign_batch_items.count   IS 'How many, all or none.';
