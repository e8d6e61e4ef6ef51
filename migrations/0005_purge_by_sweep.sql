-- Workers sweep the table for old rows, a few pages at once. A block range kept looking old when new rows took the place of those that were
-- deleted, so each purge read most of the table. Workers of before read all of it each minute without the index: stop them first.
DROP INDEX requests_by_age;
