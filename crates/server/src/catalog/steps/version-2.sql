-- From version 1: quotas of projects, objectives of instances, an index for lists, and which programs the catalogue is for.
CREATE TABLE compatibility (
    least_program BIGINT NOT NULL
);
INSERT INTO compatibility (least_program) VALUES (1);
ALTER TABLE project ADD COLUMN quota_bytes BIGINT;
ALTER TABLE instance ADD COLUMN rpo_ms BIGINT;
ALTER TABLE instance ADD COLUMN rpo_since_ms BIGINT;
ALTER TABLE instance ADD COLUMN rpo_keep_ms BIGINT;
ALTER TABLE backup ADD COLUMN reserved_bytes BIGINT NOT NULL DEFAULT 0;
CREATE INDEX backup_project_index ON backup(project_id, status, size_bytes, reserved_bytes, copy_at_ms, copy_prefix)
    WHERE status IN ('waiting', 'running', 'succeeded') AND generation_id IS NULL;
CREATE INDEX backup_listed_index ON backup(instance_id, ordinal, created_at_ms) WHERE status <> 'deleted';
