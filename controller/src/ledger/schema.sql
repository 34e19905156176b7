-- Version 3. Times are Unix milliseconds. A run's wide columns are small; what is large stands in tables of
-- its own, so that lists of jobs and runs read few pages.
CREATE TABLE meta (
    key TEXT NOT NULL PRIMARY KEY,
    value TEXT NOT NULL
);
CREATE TABLE jobs (
    id TEXT NOT NULL PRIMARY KEY,
    request_id TEXT NOT NULL UNIQUE,
    request_digest TEXT NOT NULL,
    submitter TEXT NOT NULL,
    title TEXT NOT NULL,
    created_ms BIGINT NOT NULL,
    expires_ms BIGINT NOT NULL,
    retry_of TEXT,
    offline TEXT NOT NULL,
    -- Runs by state as JSON, kept by difference in the transaction that changes a run.
    counts TEXT NOT NULL,
    ended_ms BIGINT,
    priority BIGINT NOT NULL DEFAULT 4,
    latest_only TEXT,
    direct BOOLEAN NOT NULL DEFAULT FALSE,
    -- When another attempt follows, as JSON; NULL: never.
    retry TEXT
);
CREATE INDEX jobs_open ON jobs (id) WHERE ended_ms IS NULL;
CREATE INDEX jobs_latest ON jobs (latest_only) WHERE latest_only IS NOT NULL AND ended_ms IS NULL;
CREATE INDEX jobs_ended ON jobs (ended_ms) WHERE ended_ms IS NOT NULL;
CREATE TABLE orders (
    job TEXT NOT NULL PRIMARY KEY REFERENCES jobs (id) ON DELETE CASCADE,
    body BLOB NOT NULL,
    signatures TEXT NOT NULL
);
CREATE TABLE runs (
    job TEXT NOT NULL REFERENCES jobs (id) ON DELETE CASCADE,
    idx BIGINT NOT NULL,
    zone TEXT NOT NULL,
    agent TEXT NOT NULL,
    agent_key TEXT NOT NULL,
    state TEXT NOT NULL DEFAULT 'pending',
    final BOOLEAN NOT NULL DEFAULT FALSE,
    attempt BIGINT NOT NULL DEFAULT 0,
    incarnation TEXT,
    expires_ms BIGINT NOT NULL,
    dispatched_ms BIGINT,
    cancel_requested_ms BIGINT,
    cancel_hard BOOLEAN NOT NULL DEFAULT FALSE,
    started_ms BIGINT,
    finished_ms BIGINT,
    duration_ms BIGINT,
    exit_code BIGINT,
    signal BIGINT,
    reason TEXT,
    message TEXT,
    result_state TEXT,
    progress TEXT,
    report_digest BLOB,
    priority BIGINT NOT NULL DEFAULT 4,
    direct BOOLEAN NOT NULL DEFAULT FALSE,
    -- The next attempt waits until then.
    retry_at_ms BIGINT,
    -- The attempt before this one, as JSON, while this one has not started.
    last TEXT,
    PRIMARY KEY (job, idx)
) WITHOUT ROWID;
-- What is not final is little, whatever the ledger's age: by agent in the order in which it gets its work, by time
-- for expiry and for the next attempt.
CREATE INDEX runs_unsettled ON runs (zone, agent, priority DESC, job, idx) WHERE NOT final;
CREATE INDEX runs_direct ON runs (job, idx) WHERE direct AND NOT final;
CREATE INDEX runs_retrying ON runs (retry_at_ms) WHERE retry_at_ms IS NOT NULL;
CREATE INDEX runs_expiring ON runs (expires_ms) WHERE state IN ('pending', 'dispatched');
-- The message that settled each attempt.
CREATE TABLE reports (
    job TEXT NOT NULL,
    idx BIGINT NOT NULL,
    attempt BIGINT NOT NULL,
    incarnation TEXT NOT NULL,
    kind TEXT NOT NULL,
    body BLOB NOT NULL,
    signer TEXT NOT NULL,
    signature TEXT NOT NULL,
    PRIMARY KEY (job, idx, attempt),
    FOREIGN KEY (job, idx) REFERENCES runs (job, idx) ON DELETE CASCADE
);
CREATE TABLE stale_results (
    id INTEGER PRIMARY KEY,
    job TEXT NOT NULL,
    idx BIGINT NOT NULL,
    attempt BIGINT NOT NULL,
    state TEXT NOT NULL,
    received_ms BIGINT NOT NULL,
    digest TEXT NOT NULL,
    -- NULL when it was too large to keep.
    body BLOB,
    signer TEXT NOT NULL,
    signature TEXT NOT NULL,
    UNIQUE (job, idx, attempt, digest),
    FOREIGN KEY (job, idx) REFERENCES runs (job, idx) ON DELETE CASCADE
);
CREATE TABLE agents (
    zone TEXT NOT NULL,
    name TEXT NOT NULL,
    agent_key TEXT NOT NULL,
    incarnation TEXT NOT NULL,
    counter BIGINT NOT NULL,
    labels TEXT NOT NULL,
    heartbeat TEXT NOT NULL,
    first_seen_ms BIGINT NOT NULL,
    last_seen_ms BIGINT NOT NULL,
    -- How often its journal was written, as it said; 0: it never said.
    journal BIGINT NOT NULL DEFAULT 0,
    PRIMARY KEY (zone, name)
);
CREATE TABLE drained (
    zone TEXT NOT NULL,
    name TEXT NOT NULL,
    since_ms BIGINT NOT NULL,
    PRIMARY KEY (zone, name)
);
-- Request ids that were cancelled before their submission came.
CREATE TABLE cancelled_requests (
    request_id TEXT NOT NULL PRIMARY KEY,
    at_ms BIGINT NOT NULL,
    hard BOOLEAN NOT NULL
);
CREATE INDEX cancelled_requests_age ON cancelled_requests (at_ms);
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
