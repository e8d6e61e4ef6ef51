-- By the buyer first. Behind a concert whose tokens are few the planner took it for no worse to read all tokens of the concert, and kept to
-- that plan while they became many: the statements now name the concert so that only this index finds a live token.
DROP INDEX queue_tokens_live;
CREATE UNIQUE INDEX queue_tokens_live ON queue_tokens (user_id, concert_id) WHERE ended_at IS NULL;
