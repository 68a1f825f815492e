-- How the API tells a restore record. A page of the list is ten of these texts one behind the other: to read the columns of
-- ten records and to write them as JSON would cost more than all else that such a request does (ADR 38). The view says
-- once what is told; the triggers keep the table in the transaction of whatever changed the record, by our statements or
-- by an operator's shell.
CREATE VIEW restore_telling AS SELECT instance_id, ordinal,
    '{"restore_id":' || json_quote(id) ||
    ',"restore_name":' || json_quote(name) ||
    ',"backup_id":' || json_quote(backup_id) ||
    ',"backup_name":' || json_quote(backup_name) ||
    ',"backup_remark":' || json_quote(backup_remark) ||
    ',"restore_remark":' || json_quote(remark) ||
    ',"status":"' || CASE status WHEN 'running' THEN 'restoring' WHEN 'succeeded' THEN 'succeed' ELSE status END ||
    '","progress":"' || CASE WHEN progress_bp <= 0 THEN '0.00' WHEN progress_bp >= 10000 THEN '100.00'
        ELSE printf('%d.%02d', progress_bp / 100, progress_bp % 100) END ||
    '","created_at":' || json_quote(strftime('%Y-%m-%dT%H:%M:%S', created_at_ms / 1000, 'unixepoch') || printf('.%03dZ', created_at_ms % 1000)) ||
    ',"updated_at":' || json_quote(strftime('%Y-%m-%dT%H:%M:%S', updated_at_ms / 1000, 'unixepoch') || printf('.%03dZ', updated_at_ms % 1000)) ||
    ',"error_code":' || json_quote(CASE WHEN status = 'failed' THEN error_code END) AS documented,
    ',"ext":{"ordinal":' || ordinal ||
    ',"phase":' || json_quote(phase) ||
    ',"bytes_done":' || bytes_done ||
    ',"bytes_total":' || bytes_total ||
    ',"keys_done":' || keys_done ||
    ',"keys_applied":' || keys_applied ||
    ',"keys_skipped":' || keys_skipped ||
    ',"keys_conflicting":' || keys_conflicting ||
    ',"keys_failed":' || keys_failed ||
    ',"keys_removed":' || keys_removed ||
    ',"keys_reduced":' || keys_reduced ||
    ',"is_unconfirmed":' || CASE unconfirmed WHEN 0 THEN 'false' ELSE 'true' END ||
    ',"keys_compared":' || keys_compared ||
    ',"keys_expired":' || keys_expired ||
    ',"target_state":' || json_quote(target_state) ||
    ',"source_instance_id":' || json_quote(source_instance_id) ||
    ',"source_instance_name":' || json_quote(source_instance_name) ||
    ',"source_layout":' || json_quote(source_layout) ||
    ',"layout":' || json_quote(layout) ||
    ',"undo_of":' || json_quote(undo_of) ||
    ',"undone_by":' || json_quote(undone_by) ||
    ',"cancel_asked_at":' || json_quote(strftime('%Y-%m-%dT%H:%M:%S', cancel_asked_at_ms / 1000, 'unixepoch') || printf('.%03dZ', cancel_asked_at_ms % 1000)) ||
    ',"method":' || json_quote(method) ||
    ',"verify":' || json_quote(verify) ||
    ',"replay":' || coalesce(options, 'null') ||
    ',"resumed":' || resumed ||
    ',"safety_backup_id":' || json_quote(safety_backup_id) ||
    ',"unavailable_us":' || json_quote(unavailable_us) ||
    ',"started_at":' || json_quote(strftime('%Y-%m-%dT%H:%M:%S', started_at_ms / 1000, 'unixepoch') || printf('.%03dZ', started_at_ms % 1000)) ||
    ',"finished_at":' || json_quote(strftime('%Y-%m-%dT%H:%M:%S', finished_at_ms / 1000, 'unixepoch') || printf('.%03dZ', finished_at_ms % 1000)) ||
    ',"clock_at":' || json_quote(strftime('%Y-%m-%dT%H:%M:%S', clock_at_ms / 1000, 'unixepoch') || printf('.%03dZ', clock_at_ms % 1000)) AS ext,
    failure,
    CASE WHEN undone_by IS NOT NULL THEN NULL WHEN status = 'succeeded' THEN coalesce(old_generation_id, safety_backup_id)
        WHEN target_state IN ('partial', 'unknown') THEN safety_backup_id END AS undo_generation_id,
    ',"sourceInstanceId":' || json_quote(source_instance_id) ||
    ',"sourceInstanceName":' || json_quote(source_instance_name) AS of_v1
FROM restore;

-- A number for each instance that has restores. The place of a told record is an integer made of it and the ordinal: by the
-- names instead, SQLite's tree would keep whole records in its inner pages, and a page of the list would be read from six
-- pages more of the file.
CREATE TABLE restore_list (
    number INTEGER PRIMARY KEY,
    instance_id TEXT NOT NULL UNIQUE
);
-- Each piece without what it takes to close it: what the reader's version, the strict mode and the generations that are
-- kept now decide is written between them.
CREATE TABLE restore_told (
    place INTEGER PRIMARY KEY,              -- the list's number * 2^32 + the ordinal
    documented TEXT NOT NULL,               -- {"restore_id":...,"error_code":null
    ext TEXT NOT NULL,                      -- ,"ext":{"ordinal":1,...,"clock_at":"..."
    failure TEXT,                           -- as it stands in the record: a tenant is told no paths of this machine
    undo_generation_id TEXT,                -- what an undo would bring back, if it is still kept
    of_v1 TEXT NOT NULL                     -- ,"sourceInstanceId":...,"sourceInstanceName":...
);
CREATE TRIGGER restore_added_is_told AFTER INSERT ON restore BEGIN
    INSERT INTO restore_list (instance_id) VALUES (NEW.instance_id) ON CONFLICT DO NOTHING;
    INSERT INTO restore_told SELECT (number << 32) + ordinal, documented, ext, failure, undo_generation_id, of_v1
    FROM restore_telling JOIN restore_list USING (instance_id) WHERE instance_id = NEW.instance_id AND ordinal = NEW.ordinal;
END;
CREATE TRIGGER restore_changed_is_told AFTER UPDATE ON restore BEGIN
    DELETE FROM restore_told
    WHERE place = (SELECT (number << 32) + OLD.ordinal FROM restore_list WHERE instance_id = OLD.instance_id);
    INSERT INTO restore_told SELECT (number << 32) + ordinal, documented, ext, failure, undo_generation_id, of_v1
    FROM restore_telling JOIN restore_list USING (instance_id) WHERE instance_id = NEW.instance_id AND ordinal = NEW.ordinal;
END;
