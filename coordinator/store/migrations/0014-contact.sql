-- What is known of the contact with an attempt's node (architecture §5.5).

-- Wall time at which contact was last had, while it is lost: set when the loss is noticed, null again when it returned.
ALTER TABLE attempts ADD COLUMN contact_lost_at INTEGER;
-- This process was away (a restart, a pause): the claim was extended to this wall time, once, until its node is heard.
ALTER TABLE attempts ADD COLUMN extended_until INTEGER;
-- Its agent came back without it: what counts towards quarantine.
ALTER TABLE attempts ADD COLUMN died INTEGER NOT NULL DEFAULT 0 CHECK (died IN (0, 1));
-- It was counted as a loss and proved to have been alive: the loss was taken back.
ALTER TABLE attempts ADD COLUMN disproved INTEGER NOT NULL DEFAULT 0 CHECK (disproved IN (0, 1));
