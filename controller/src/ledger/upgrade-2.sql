-- From version 1 to version 2.
ALTER TABLE jobs ADD COLUMN priority BIGINT NOT NULL DEFAULT 4;
ALTER TABLE jobs ADD COLUMN latest_only TEXT;
ALTER TABLE jobs ADD COLUMN direct BOOLEAN NOT NULL DEFAULT FALSE;
ALTER TABLE jobs ADD COLUMN retry TEXT;
CREATE INDEX jobs_latest ON jobs (latest_only) WHERE latest_only IS NOT NULL AND ended_ms IS NULL;
ALTER TABLE runs ADD COLUMN priority BIGINT NOT NULL DEFAULT 4;
ALTER TABLE runs ADD COLUMN direct BOOLEAN NOT NULL DEFAULT FALSE;
ALTER TABLE runs ADD COLUMN retry_at_ms BIGINT;
ALTER TABLE runs ADD COLUMN last TEXT;
DROP INDEX runs_unsettled;
CREATE INDEX runs_unsettled ON runs (zone, agent, priority DESC, job, idx) WHERE NOT final;
CREATE INDEX runs_direct ON runs (job, idx) WHERE direct AND NOT final;
CREATE INDEX runs_retrying ON runs (retry_at_ms) WHERE retry_at_ms IS NOT NULL;
ALTER TABLE reports RENAME TO reports_1;
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
INSERT INTO reports SELECT job, idx, attempt, incarnation, kind, body, signer, signature FROM reports_1;
DROP TABLE reports_1;
CREATE TABLE drained (
    zone TEXT NOT NULL,
    name TEXT NOT NULL,
    since_ms BIGINT NOT NULL,
    PRIMARY KEY (zone, name)
);
CREATE TABLE cancelled_requests (
    request_id TEXT NOT NULL PRIMARY KEY,
    at_ms BIGINT NOT NULL,
    hard BOOLEAN NOT NULL
);
CREATE INDEX cancelled_requests_age ON cancelled_requests (at_ms);
PRAGMA user_version = 2;
