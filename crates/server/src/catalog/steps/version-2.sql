-- From version 1: quotas of projects, objectives of instances, which programs the catalogue is for, and indexes: what is looked for
-- again and again is found without reading all there ever was.
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
CREATE INDEX backup_copying_index ON backup(copy_prefix) WHERE copy_prefix IS NOT NULL AND copy_at_ms IS NULL;
CREATE INDEX generation_made_index ON generation(instance_id, created_at_ms);
CREATE INDEX job_subject_index ON job(subject_id);
CREATE INDEX outbox_told_index ON outbox(project_id, number);
ALTER TABLE backup_place ADD COLUMN kept BIGINT NOT NULL DEFAULT 0;
UPDATE backup_place SET kept = 1 WHERE EXISTS (SELECT 1 FROM backup WHERE id = backup_id AND status = 'succeeded'
    AND (backup.prefix = backup_place.prefix OR (backup.copy_prefix = backup_place.prefix AND copy_at_ms IS NOT NULL)));
CREATE INDEX backup_place_backup_index ON backup_place(backup_id);
CREATE INDEX backup_place_unkept_index ON backup_place(prefix) WHERE kept = 0;
CREATE TRIGGER backup_place_is_kept AFTER UPDATE OF status, prefix, copy_prefix, copy_at_ms ON backup
WHEN coalesce(OLD.storage_id, OLD.copy_storage_id, NEW.storage_id, NEW.copy_storage_id) IS NOT NULL BEGIN
    UPDATE backup_place SET kept = CASE WHEN NEW.status = 'succeeded' AND (prefix = NEW.prefix
        OR (prefix = NEW.copy_prefix AND NEW.copy_at_ms IS NOT NULL)) THEN 1 ELSE 0 END
    WHERE backup_id = NEW.id;
END;
CREATE TRIGGER backup_place_added_is_kept AFTER INSERT ON backup_place BEGIN
    UPDATE backup_place SET kept = 1 WHERE prefix = NEW.prefix
    AND EXISTS (SELECT 1 FROM backup WHERE id = NEW.backup_id AND status = 'succeeded'
        AND (backup.prefix = NEW.prefix OR (copy_prefix = NEW.prefix AND copy_at_ms IS NOT NULL)));
END;
CREATE TABLE backup_count (
    instance_id TEXT NOT NULL PRIMARY KEY REFERENCES instance(id),
    listed BIGINT NOT NULL
);
INSERT INTO backup_count (instance_id, listed)
    SELECT instance_id, sum(CASE WHEN status = 'deleted' THEN 0 ELSE 1 END) FROM backup GROUP BY instance_id;
CREATE TRIGGER backup_added_is_counted AFTER INSERT ON backup BEGIN
    INSERT INTO backup_count (instance_id, listed) VALUES (NEW.instance_id, CASE WHEN NEW.status = 'deleted' THEN 0 ELSE 1 END)
    ON CONFLICT (instance_id) DO UPDATE SET listed = backup_count.listed + excluded.listed;
END;
CREATE TRIGGER backup_deleted_is_counted AFTER UPDATE OF status ON backup
WHEN (OLD.status = 'deleted') <> (NEW.status = 'deleted') BEGIN
    UPDATE backup_count SET listed = listed + CASE WHEN NEW.status = 'deleted' THEN -1 ELSE 1 END WHERE instance_id = NEW.instance_id;
END;
ALTER TABLE schedule ADD COLUMN overdue_at_ms BIGINT;
CREATE TRIGGER drill_overdue_is_told AFTER UPDATE OF overdue_at_ms ON schedule WHEN NEW.overdue_at_ms IS NOT NULL BEGIN
    INSERT INTO delivery (hook, event, project_id, instance_id, subject_id, failure, at_ms, next_at_ms)
    SELECT name, 'drill.overdue', NEW.project_id, NEW.instance_id, NEW.id,
        'a drill was due four hours before, and none has held since', NEW.overdue_at_ms, 0
    FROM hook WHERE (project_id IS NULL OR project_id = NEW.project_id) AND (events = ',' OR events LIKE '%,drill.overdue,%');
END;
