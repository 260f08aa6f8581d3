-- Numbers that only grow: the epoch, the last claim number, and the probe that finds out whether writes work again.
-- 2^53 − 1 is the largest whole number that JSON and JavaScript carry unharmed.
CREATE TABLE numbers (
  name TEXT NOT NULL PRIMARY KEY,
  value INTEGER NOT NULL CHECK (value BETWEEN 0 AND 9007199254740991)
) STRICT;
