-- By the buyer first. In a young system the planner found a live token through the primary key, by its concert alone, and kept to that plan
-- while the line grew. The statements now name the concert so that only the buyer finds one.
CREATE UNIQUE INDEX queue_tokens_live_of_buyer ON queue_tokens (user_id, concert_id) WHERE ended_at IS NULL;
DROP INDEX queue_tokens_live;
ALTER INDEX queue_tokens_live_of_buyer RENAME TO queue_tokens_live;
