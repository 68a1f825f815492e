-- Version 2: object stores beside the local folder.

CREATE TABLE storage (
    id TEXT NOT NULL PRIMARY KEY,
    name TEXT NOT NULL UNIQUE,              -- never 'local': that is the folder in the data directory
    project_id TEXT REFERENCES project(id), -- null: every project may use it
    kind TEXT NOT NULL CHECK (kind IN ('s3', 'obs')),
    endpoint TEXT NOT NULL,
    bucket TEXT NOT NULL,
    prefix TEXT NOT NULL,
    region TEXT NOT NULL,
    access_key_sealed BLOB NOT NULL,
    secret_key_sealed BLOB NOT NULL,
    capabilities TEXT,                      -- JSON: what the newest probe found; null before the first
    created_at_ms BIGINT NOT NULL,
    CHECK (name <> 'local')
);

-- Where new backups go: the project's own choice, else the one without a project, else the local folder.
CREATE TABLE storage_default (
    project_id TEXT REFERENCES project(id),
    storage_id TEXT REFERENCES storage(id)  -- null: the local folder
);
CREATE UNIQUE INDEX storage_default_project_unique ON storage_default(coalesce(project_id, ''));

ALTER TABLE backup ADD COLUMN storage_id TEXT REFERENCES storage(id); -- null: the local folder; set with prefix

-- Where a remote store holds or may hold objects of an attempt: written before the first object is, removed after
-- the last one is gone. So what is to be deleted is known without a listing.
CREATE TABLE backup_place (
    prefix TEXT NOT NULL PRIMARY KEY,
    storage_id TEXT NOT NULL REFERENCES storage(id),
    backup_id TEXT NOT NULL REFERENCES backup(id)
);
