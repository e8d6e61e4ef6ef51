-- By the buyer first. While a concert had few tokens, the planner took reading all of them for no worse than finding one here, and kept to
-- that plan when they had become many. The statements name the concert so that only the buyer finds a live token.
CREATE UNIQUE INDEX queue_tokens_live_of_buyer ON queue_tokens (user_id, concert_id) WHERE ended_at IS NULL;
DROP INDEX queue_tokens_live;
ALTER INDEX queue_tokens_live_of_buyer RENAME TO queue_tokens_live;
