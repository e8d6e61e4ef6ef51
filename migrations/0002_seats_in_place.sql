-- Neighbours are taken together, in one transaction, so each seat of a page needs room for its next version beside the old one: with less
-- room every other one went to a new page and into the index anew. It holds for schedules that are made from now on.
ALTER TABLE seats SET (fillfactor = 40);
