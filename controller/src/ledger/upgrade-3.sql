-- From version 2 to version 3.
ALTER TABLE agents ADD COLUMN journal BIGINT NOT NULL DEFAULT 0;
PRAGMA user_version = 3;
