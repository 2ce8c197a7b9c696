-- The audit trail across books, newest first. Ids grow with time, so each insert goes to the index's last page.
CREATE INDEX events_id ON events (id);
