-- When a node was revoked: once its last certificate has ended by itself, nobody has to be told of it any more.
-- Null for nodes that are not revoked, and for those revoked before this column: they are told for ever.
ALTER TABLE nodes ADD COLUMN revoked_at INTEGER;
