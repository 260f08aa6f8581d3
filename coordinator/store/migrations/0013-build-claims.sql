-- The number under which a revision is being built: a coordinator that starts again knows its builders by it.
ALTER TABLE revisions ADD COLUMN build_claim INTEGER;
