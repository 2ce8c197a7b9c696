-- People and machines that may call, and what limits their guessing.

-- UUIDv7 (RFC 9562, with method 3: the 12 bits behind the milliseconds hold their fraction) from the database's clock, for
-- rows that a set-based statement makes: they sort in the order in which they were made.
-- One expression, so that it is put into the statements that call it: 48 bits of milliseconds and their fraction in 65,536ths
-- are one number, into whose hexadecimal digits the version goes.
CREATE FUNCTION uuid_v7() RETURNS uuid
LANGUAGE sql VOLATILE PARALLEL SAFE AS $$
    SELECT overlay(gen_random_uuid()::text PLACING left(
        overlay(lpad(to_hex((date_part('epoch', clock_timestamp()) * 65536000)::bigint), 16, '0') PLACING '7' FROM 13 FOR 0), 16)
        FROM 1 FOR 18)::uuid
$$;

CREATE TABLE users (
    id            uuid        PRIMARY KEY,
    created_at    timestamptz NOT NULL DEFAULT now(),
    updated_at    timestamptz NOT NULL DEFAULT now(),
    disabled_at   timestamptz,
    role          text        NOT NULL DEFAULT 'user' CHECK (role IN ('admin', 'user')),
    email         text        NOT NULL CHECK (length(email) <= 254),
    name          text        NOT NULL CHECK (length(name) BETWEEN 1 AND 200),
    password_hash text
);
CREATE UNIQUE INDEX users_email_key ON users (lower(email));
COMMENT ON TABLE  users               IS 'Accounts: administrators, and holders of coupons. Never deleted, only disabled and anonymised.';
COMMENT ON COLUMN users.id            IS 'UUIDv7.';
COMMENT ON COLUMN users.created_at    IS 'When the account was made.';
COMMENT ON COLUMN users.updated_at    IS 'When it was last changed.';
COMMENT ON COLUMN users.disabled_at   IS 'Since when it may neither log in nor hold new coupons; null while it may.';
COMMENT ON COLUMN users.role          IS 'admin or user.';
COMMENT ON COLUMN users.email         IS 'As given; unique without regard to case.';
COMMENT ON COLUMN users.name          IS 'For people.';
COMMENT ON COLUMN users.password_hash IS 'Argon2id in PHC format; null for accounts that do not log in.';

CREATE TABLE refresh_tokens (
    token_hash  bytea       PRIMARY KEY,
    family_id   uuid        NOT NULL,
    user_id     uuid        NOT NULL REFERENCES users (id),
    created_at  timestamptz NOT NULL DEFAULT now(),
    expires_at  timestamptz NOT NULL,
    used_at     timestamptz,
    revoked_at  timestamptz
);
CREATE INDEX refresh_tokens_family ON refresh_tokens (family_id);
CREATE INDEX refresh_tokens_user ON refresh_tokens (user_id);
-- Asked on behalf of every access token: was the session that it came from ended?
CREATE INDEX refresh_tokens_revoked ON refresh_tokens (family_id) WHERE revoked_at IS NOT NULL;
CREATE INDEX refresh_tokens_expires_at ON refresh_tokens (expires_at);
COMMENT ON TABLE  refresh_tokens            IS 'Rotating refresh tokens: each is used once; a second use revokes its family.';
COMMENT ON COLUMN refresh_tokens.token_hash IS 'SHA-256 of the token; the token itself is never stored.';
COMMENT ON COLUMN refresh_tokens.family_id  IS 'All tokens that came from one log-in.';
COMMENT ON COLUMN refresh_tokens.user_id    IS 'Whose.';
COMMENT ON COLUMN refresh_tokens.created_at IS 'When it was given out.';
COMMENT ON COLUMN refresh_tokens.expires_at IS 'When it stops being valid.';
COMMENT ON COLUMN refresh_tokens.used_at    IS 'When it was exchanged for the next one.';
COMMENT ON COLUMN refresh_tokens.revoked_at IS 'When it was withdrawn (log-out, password change, reuse).';

CREATE TABLE api_keys (
    id           uuid        PRIMARY KEY,
    created_by   uuid        NOT NULL REFERENCES users (id),
    created_at   timestamptz NOT NULL DEFAULT now(),
    revoked_at   timestamptz,
    last_used_at timestamptz,
    expires_at   timestamptz,
    miss_budget  integer     CHECK (miss_budget >= 0),
    key_hash     bytea       NOT NULL,
    name         text        NOT NULL CHECK (length(name) BETWEEN 1 AND 200),
    prefix       text        NOT NULL,
    scopes       text[]      NOT NULL CHECK (scopes <@ ARRAY['read', 'assign', 'redeem', 'manage'] AND cardinality(scopes) > 0)
);
CREATE UNIQUE INDEX api_keys_key_hash ON api_keys (key_hash);
COMMENT ON TABLE  api_keys              IS 'Keys of machines.';
COMMENT ON COLUMN api_keys.id           IS 'UUIDv7; the actor of what the key does.';
COMMENT ON COLUMN api_keys.created_by   IS 'The administrator who made it.';
COMMENT ON COLUMN api_keys.created_at   IS 'When it was made.';
COMMENT ON COLUMN api_keys.revoked_at   IS 'When it was withdrawn; null while it works.';
COMMENT ON COLUMN api_keys.last_used_at IS 'Roughly when it was last used (written at most once a minute).';
COMMENT ON COLUMN api_keys.expires_at   IS 'When it stops working by itself; null for never.';
COMMENT ON COLUMN api_keys.miss_budget  IS 'Code look-ups per hour that may miss; null for the default.';
COMMENT ON COLUMN api_keys.key_hash     IS 'SHA-256 of the key; 256 random bits need no slow hash.';
COMMENT ON COLUMN api_keys.name         IS 'For people.';
COMMENT ON COLUMN api_keys.prefix       IS 'The first characters, shown so that people can tell keys apart.';
COMMENT ON COLUMN api_keys.scopes       IS 'What it may do: read, assign, redeem, manage.';

CREATE TABLE security_budgets (
    kind         text        NOT NULL CHECK (kind IN ('login_account', 'login_address', 'code_miss')),
    subject      text        NOT NULL CHECK (length(subject) <= 300),
    window_until timestamptz NOT NULL,
    spent        integer     NOT NULL,
    PRIMARY KEY (kind, subject)
);
CREATE INDEX security_budgets_window_until ON security_budgets (window_until);
COMMENT ON TABLE  security_budgets              IS 'Counters that make guessing slow; shared by all processes.';
COMMENT ON COLUMN security_budgets.kind         IS 'What is counted.';
COMMENT ON COLUMN security_budgets.subject      IS 'Of whom: a hashed e-mail address, a network address, or a caller.';
COMMENT ON COLUMN security_budgets.window_until IS 'When the count starts again from nothing.';
COMMENT ON COLUMN security_budgets.spent        IS 'How much of the budget is used up in this window.';
