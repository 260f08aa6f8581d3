-- Which round of the job ended: what a call tells is of that one, also when it is sent again after the job was retried. Calls
-- that wait already are taken for the round that their job is in now.
ALTER TABLE webhook_calls ADD COLUMN round INTEGER NOT NULL DEFAULT 1 CHECK (round >= 1);
UPDATE webhook_calls SET round = (SELECT round FROM jobs WHERE jobs.seq = webhook_calls.job);
