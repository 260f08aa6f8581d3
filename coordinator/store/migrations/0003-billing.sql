-- Money: a double-entry ledger that is only appended to, holds, what attempts were charged, and quotes.
-- All amounts are whole micro-dollars.

-- The running sums of every ledger account: 'customer:<account>' and the house's own (grants, payments, revenue).
-- An entry moves its amount between two of them, so all balances together are always zero.
CREATE TABLE ledger_accounts (
  id TEXT NOT NULL PRIMARY KEY,
  account INTEGER UNIQUE REFERENCES accounts (id),
  balance INTEGER NOT NULL DEFAULT 0 CHECK (balance BETWEEN -9007199254740991 AND 9007199254740991),
  held INTEGER NOT NULL DEFAULT 0 CHECK (held >= 0),
  -- no customer is ever below what is held for running work, hence never below zero
  CHECK (account IS NULL OR balance >= held),
  CHECK (account IS NOT NULL OR held = 0)
) STRICT;
INSERT INTO ledger_accounts (id) VALUES ('grants'), ('payments'), ('revenue');

CREATE TABLE holds (
  id TEXT NOT NULL PRIMARY KEY,
  account INTEGER NOT NULL REFERENCES accounts (id),
  job_id TEXT NOT NULL,
  -- 1 for the submission, then one more for each retry of the finished job
  round INTEGER NOT NULL CHECK (round >= 1),
  -- zero only where the deployment's prices are zero
  amount INTEGER NOT NULL CHECK (amount >= 0),
  -- running sum of the attempts' charges
  charged INTEGER NOT NULL DEFAULT 0 CHECK (charged BETWEEN 0 AND amount),
  status TEXT NOT NULL DEFAULT 'active' CHECK (status IN ('active', 'settled', 'released')),
  settled_amount INTEGER,
  created_at INTEGER NOT NULL,
  settled_at INTEGER,
  UNIQUE (job_id, round),
  CHECK ((status = 'active') = (settled_at IS NULL)),
  CHECK ((status = 'active') = (settled_amount IS NULL)),
  CHECK (settled_amount IS NULL OR settled_amount = charged),
  CHECK (status <> 'settled' OR settled_amount > 0),
  CHECK (status <> 'released' OR settled_amount = 0)
) STRICT;
CREATE INDEX holds_by_account ON holds (account, created_at DESC, id DESC);
CREATE INDEX holds_active ON holds (account) WHERE status = 'active';

-- What each attempt cost, once: its claim number is the key.
CREATE TABLE charges (
  claim INTEGER NOT NULL PRIMARY KEY,
  hold TEXT NOT NULL REFERENCES holds (id),
  amount INTEGER NOT NULL CHECK (amount >= 0),
  milliseconds INTEGER NOT NULL CHECK (milliseconds >= 0),
  at INTEGER NOT NULL
) STRICT;
CREATE INDEX charges_by_hold ON charges (hold, amount);

CREATE TABLE quotes (
  id TEXT NOT NULL PRIMARY KEY,
  account INTEGER NOT NULL REFERENCES accounts (id),
  kind TEXT NOT NULL CHECK (kind IN ('topup', 'shortfall')),
  amount INTEGER NOT NULL CHECK (amount > 0),
  description TEXT NOT NULL,
  created_at INTEGER NOT NULL,
  expires_at INTEGER NOT NULL,
  paid_at INTEGER
) STRICT;
CREATE INDEX quotes_by_account ON quotes (account, created_at DESC, id DESC);
CREATE INDEX quotes_unpaid ON quotes (account, expires_at) WHERE paid_at IS NULL;

CREATE TABLE ledger_entries (
  seq INTEGER PRIMARY KEY AUTOINCREMENT,
  -- a credit moves the amount from the counter account to the account, a debit the other way
  account TEXT NOT NULL REFERENCES ledger_accounts (id),
  counter_account TEXT NOT NULL REFERENCES ledger_accounts (id),
  type TEXT NOT NULL CHECK (type IN ('credit', 'debit')),
  reason TEXT NOT NULL CHECK (reason IN ('signup', 'admin', 'payment', 'usage')),
  amount INTEGER NOT NULL CHECK (amount > 0),
  -- the account's balance with this entry
  balance_after INTEGER NOT NULL,
  description TEXT NOT NULL,
  job_id TEXT,
  -- a hold is debited once, a quote credited once, an account welcomed once
  hold TEXT UNIQUE REFERENCES holds (id),
  quote TEXT UNIQUE REFERENCES quotes (id),
  created_at INTEGER NOT NULL,
  CHECK (account <> counter_account),
  CHECK ((reason = 'usage') = (hold IS NOT NULL)),
  CHECK ((reason = 'usage') = (job_id IS NOT NULL)),
  CHECK ((reason = 'payment') = (quote IS NOT NULL))
) STRICT;
CREATE INDEX ledger_entries_by_account ON ledger_entries (account, seq);
CREATE INDEX ledger_entries_by_counter_account ON ledger_entries (counter_account, type, amount);
CREATE UNIQUE INDEX ledger_entries_signup ON ledger_entries (account) WHERE reason = 'signup';

CREATE TRIGGER ledger_entries_stay BEFORE UPDATE ON ledger_entries
BEGIN SELECT raise(ABORT, 'a ledger entry is never edited'); END;
CREATE TRIGGER ledger_entries_are_kept BEFORE DELETE ON ledger_entries
BEGIN SELECT raise(ABORT, 'a ledger entry is never deleted'); END;
CREATE TRIGGER charges_stay BEFORE UPDATE ON charges
BEGIN SELECT raise(ABORT, 'a charge is never edited'); END;
