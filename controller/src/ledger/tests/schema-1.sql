-- Version 1. Times are Unix milliseconds. A run's wide columns are small; what is large stands in tables of
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
    ended_ms BIGINT
);
CREATE INDEX jobs_open ON jobs (id) WHERE ended_ms IS NULL;
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
    PRIMARY KEY (job, idx)
) WITHOUT ROWID;
-- What is not final is little, whatever the ledger's age: by agent for catching up, by time for expiry.
CREATE INDEX runs_unsettled ON runs (zone, agent, job, idx) WHERE NOT final;
CREATE INDEX runs_expiring ON runs (expires_ms) WHERE state IN ('pending', 'dispatched');
CREATE TABLE reports (
    job TEXT NOT NULL,
    idx BIGINT NOT NULL,
    attempt BIGINT NOT NULL,
    incarnation TEXT NOT NULL,
    kind TEXT NOT NULL,
    body BLOB NOT NULL,
    signer TEXT NOT NULL,
    signature TEXT NOT NULL,
    PRIMARY KEY (job, idx),
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
    PRIMARY KEY (zone, name)
);
INSERT INTO meta VALUES ('ledger_id', '0123456789abcdef0123456789abcdef');
INSERT INTO jobs VALUES ('01kc5qxyz0abcdefghjkmnpqrs', 'r-1', 'e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855', 'ada', 'true', 1, 2, NULL, 'wait', '{"succeeded":1}', 3);
INSERT INTO orders VALUES ('01kc5qxyz0abcdefghjkmnpqrs', x'7b7d', '[]');
INSERT INTO runs (job, idx, zone, agent, agent_key, state, final, attempt, incarnation, expires_ms)
    VALUES ('01kc5qxyz0abcdefghjkmnpqrs', 0, 'dmz', 'web-01', 'UDWUSKGGFDI4FRXK5EBTRECZSVQSSWJHHJOGH6JWG3AUMFFMQ435C2U4', 'succeeded', TRUE, 1, '1c1c1c1c1c1c1c1c1c1c1c1c1c1c1c1c', 2);
INSERT INTO reports VALUES ('01kc5qxyz0abcdefghjkmnpqrs', 0, 1, '1c1c1c1c1c1c1c1c1c1c1c1c1c1c1c1c', 'result', x'6120726573756c74', 'UDWUSKGGFDI4FRXK5EBTRECZSVQSSWJHHJOGH6JWG3AUMFFMQ435C2U4', 'cSLQmcuWwYTlyfTuR0VLZXdLvkDSOD72E5CRXBgNeFHjN9mgXwhhvMlj34DsdjQ5N8XCFLpwurESqXe0Ovs6DQ');
INSERT INTO agents VALUES ('dmz', 'web-01', 'UDWUSKGGFDI4FRXK5EBTRECZSVQSSWJHHJOGH6JWG3AUMFFMQ435C2U4', '1c1c1c1c1c1c1c1c1c1c1c1c1c1c1c1c', 7, '{}', '{}', 1, 2);
PRAGMA application_id = 0x53414c59;
PRAGMA user_version = 1;
