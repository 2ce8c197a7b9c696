-- Schedules: what is to be started at a time, or again and again. They belong to no book: their body names one.

CREATE TABLE schedules (
    id              uuid        PRIMARY KEY,
    created_by      uuid        NOT NULL,
    created_at      timestamptz NOT NULL DEFAULT now(),
    updated_at      timestamptz NOT NULL DEFAULT now(),
    run_at          timestamptz,
    ends_at         timestamptz,
    next_fire_at    timestamptz,
    noticed_at      timestamptz,
    version         bigint      NOT NULL DEFAULT 1,
    paused          boolean     NOT NULL DEFAULT false,
    created_by_kind text        NOT NULL CHECK (created_by_kind IN ('user', 'api_key')),
    kind            text        NOT NULL CHECK (kind IN ('distribution', 'export')),
    missed          text        NOT NULL CHECK (missed IN ('skip', 'run_once')),
    overlap         text        NOT NULL CHECK (overlap IN ('skip', 'queue')),
    name            text        NOT NULL CHECK (length(name) BETWEEN 1 AND 200),
    time_zone       text        NOT NULL,
    cron            text,
    body            jsonb       NOT NULL,
    CONSTRAINT schedules_one_time_or_cron CHECK ((run_at IS NULL) <> (cron IS NULL)),
    CONSTRAINT schedules_paused_is_not_due CHECK (NOT paused OR next_fire_at IS NULL)
);
CREATE INDEX schedules_due ON schedules (next_fire_at) WHERE next_fire_at IS NOT NULL;
COMMENT ON TABLE  schedules                 IS 'What is to be started at a time, or again and again.';
COMMENT ON COLUMN schedules.id              IS 'UUIDv7.';
COMMENT ON COLUMN schedules.created_by      IS 'The user or API key that made it; its jobs are theirs.';
COMMENT ON COLUMN schedules.created_at      IS 'When it was made.';
COMMENT ON COLUMN schedules.updated_at      IS 'When somebody last changed it.';
COMMENT ON COLUMN schedules.run_at          IS 'The one time at which it fires; null when cron says.';
COMMENT ON COLUMN schedules.ends_at         IS 'From this on it does not fire; null for no end.';
COMMENT ON COLUMN schedules.next_fire_at    IS 'The next fire; null when it is paused or over.';
COMMENT ON COLUMN schedules.noticed_at      IS 'Up to here fires that wait for an earlier job were noticed in time, so they are not missed.';
COMMENT ON COLUMN schedules.version         IS 'Counts changes by people; the ETag.';
COMMENT ON COLUMN schedules.paused          IS 'Whether it rests.';
COMMENT ON COLUMN schedules.created_by_kind IS 'user or api_key.';
COMMENT ON COLUMN schedules.kind            IS 'What it starts: distribution or export.';
COMMENT ON COLUMN schedules.missed          IS 'What becomes of fires that nobody was there for: skip or run_once.';
COMMENT ON COLUMN schedules.overlap         IS 'What becomes of a fire while an earlier job of the schedule is not at its end: skip or queue.';
COMMENT ON COLUMN schedules.name            IS 'For people.';
COMMENT ON COLUMN schedules.time_zone       IS 'IANA name; in whose clock cron is read.';
COMMENT ON COLUMN schedules.cron            IS 'Five fields; null when run_at says.';
COMMENT ON COLUMN schedules.body            IS 'What it asks for each time, as the POST of its kind takes it.';

CREATE TABLE schedule_fires (
    schedule_id  uuid        NOT NULL REFERENCES schedules (id) ON DELETE CASCADE,
    fire_at      timestamptz NOT NULL,
    fired_at     timestamptz NOT NULL DEFAULT clock_timestamp(),
    job_id       uuid,
    by_hand      boolean     NOT NULL DEFAULT false,
    outcome      text        NOT NULL CHECK (outcome IN ('started', 'refused', 'overlapped', 'missed')),
    error_code   text,
    error_detail text,
    PRIMARY KEY (schedule_id, fire_at),
    CONSTRAINT schedule_fires_started_has_job   CHECK ((outcome = 'started') = (job_id IS NOT NULL)),
    CONSTRAINT schedule_fires_refused_has_error CHECK ((outcome = 'refused') = (error_code IS NOT NULL))
);
COMMENT ON TABLE  schedule_fires              IS 'What became of each fire. The primary key is what makes a fire happen once.';
COMMENT ON COLUMN schedule_fires.schedule_id  IS 'The schedule.';
COMMENT ON COLUMN schedule_fires.fire_at      IS 'The time that the schedule names; of one that was started by hand, when it was.';
COMMENT ON COLUMN schedule_fires.fired_at     IS 'When it was dealt with.';
COMMENT ON COLUMN schedule_fires.job_id       IS 'The job that it started.';
COMMENT ON COLUMN schedule_fires.by_hand      IS 'Whether somebody asked for it.';
COMMENT ON COLUMN schedule_fires.outcome      IS 'started, refused, overlapped (an earlier job was not at its end) or missed (nobody was there).';
COMMENT ON COLUMN schedule_fires.error_code   IS 'Why it was refused.';
COMMENT ON COLUMN schedule_fires.error_detail IS 'The same for people.';
