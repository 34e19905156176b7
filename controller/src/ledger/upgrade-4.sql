-- From version 3 to version 4: who is enrolled, with which tokens, and who is not believed any more.
CREATE TABLE enrol_tokens (
    id TEXT NOT NULL PRIMARY KEY,
    zone TEXT NOT NULL,
    -- Of its public key. The token itself is not here.
    key_digest TEXT NOT NULL,
    created_by TEXT NOT NULL,
    created_ms BIGINT NOT NULL,
    expires_ms BIGINT NOT NULL,
    uses BIGINT NOT NULL,
    used BIGINT NOT NULL
);
CREATE INDEX enrol_tokens_age ON enrol_tokens (expires_ms);
CREATE TABLE enrolled (
    zone TEXT NOT NULL,
    name TEXT NOT NULL,
    agent_key TEXT NOT NULL,
    user_key TEXT NOT NULL,
    token TEXT NOT NULL,
    at_ms BIGINT NOT NULL,
    PRIMARY KEY (zone, name)
);
CREATE TABLE revoked (
    zone TEXT NOT NULL,
    name TEXT NOT NULL,
    agent_key TEXT NOT NULL,
    -- NULL: it was not known.
    user_key TEXT,
    at_ms BIGINT NOT NULL,
    revoked_by TEXT NOT NULL,
    PRIMARY KEY (zone, name, agent_key)
);
CREATE INDEX revoked_keys ON revoked (agent_key);
PRAGMA user_version = 4;
