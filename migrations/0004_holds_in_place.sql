-- A reservation changes hands in place (HOT): no index looks at its status any more, and each page has room for a second version of
-- every row. It holds for reservations that are made from now on. Reservation workers of before find overdue holds very slowly without the
-- old index: stop them first.
LOCK TABLE reservations IN ACCESS EXCLUSIVE MODE;

-- The reservation worker. One row: all holds whose time was over before this moment have ended, so the search for overdue ones begins there.
CREATE TABLE overdue_search (
    only_row         boolean PRIMARY KEY DEFAULT true CHECK (only_row),
    all_ended_before timestamptz NOT NULL
) WITH (fillfactor = 50);
INSERT INTO overdue_search (all_ended_before)
SELECT LEAST(now() - interval '1 minute', MIN(hold_expires_at)) FROM reservations WHERE status = 'HELD';

CREATE INDEX reservations_by_end ON reservations (hold_expires_at);
DROP INDEX reservations_held;
ALTER TABLE reservations SET (fillfactor = 50);
