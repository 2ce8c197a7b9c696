-- Every change of a job's state leaves its trace in job_changes, whichever statement makes it, also one of the release
-- before: a row per statement, kind and change, so that a batch of hundreds costs one. An index on the ledger instead
-- would be written for every job, and its updates would no longer stay in place.

-- Nobody knows how long the lists of old and new rows are when the statement is planned, and a nested loop over the two
-- costs the square of it.
CREATE FUNCTION record_job_changes() RETURNS trigger LANGUAGE plpgsql SET enable_nestloop = off AS $$
BEGIN
    INSERT INTO job_changes (kind, left_state, entered_state, jobs, seconds)
    SELECT n.kind, o.state, n.state, count(*), coalesce(sum(extract(epoch FROM n.finished_at - n.created_at)), 0)
    FROM old_rows o JOIN new_rows n ON n.id = o.id
    WHERE n.state <> o.state
    GROUP BY n.kind, o.state, n.state;
    RETURN NULL;
END $$;

CREATE FUNCTION record_job_deletions() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    INSERT INTO job_changes (kind, left_state, jobs, seconds)
    SELECT kind, state, count(*), 0 FROM old_rows GROUP BY kind, state;
    RETURN NULL;
END $$;

-- They lock out writers until the commit, so what is counted below is all there was.
CREATE TRIGGER jobs_changed AFTER UPDATE ON jobs
    REFERENCING OLD TABLE AS old_rows NEW TABLE AS new_rows FOR EACH STATEMENT EXECUTE FUNCTION record_job_changes();
CREATE TRIGGER jobs_deleted AFTER DELETE ON jobs
    REFERENCING OLD TABLE AS old_rows FOR EACH STATEMENT EXECUTE FUNCTION record_job_deletions();

INSERT INTO job_changes (at, kind, left_state, entered_state, jobs, seconds)
SELECT coalesce(date_trunc('hour', finished_at, 'UTC'), now()), kind, 'queued', state, count(*),
       coalesce(sum(extract(epoch FROM finished_at - created_at)), 0)
FROM jobs WHERE state <> 'queued'
GROUP BY 1, kind, state;
