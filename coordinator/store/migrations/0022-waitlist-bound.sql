-- The waitlist is bounded: what still waits is counted with each newcomer.
CREATE INDEX waitlist_waiting ON waitlist (seq) WHERE approved_at IS NULL;
