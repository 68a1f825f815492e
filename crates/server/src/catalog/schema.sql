-- Version 2. Ids are TEXT, moments BIGINT milliseconds, states TEXT with a CHECK: the same on every database.

-- Which programs this catalogue is for: one row. See catalog/version.rs.
CREATE TABLE compatibility (
    least_program BIGINT NOT NULL           -- a program that knows only older versions than this one changes nothing here any more
);
INSERT INTO compatibility (least_program) VALUES (1);

-- The services that share this catalogue, each with its data directory: nodes to people. A file is shared by nobody and has one.
CREATE TABLE host (
    id TEXT NOT NULL PRIMARY KEY,
    name TEXT NOT NULL UNIQUE,
    roles TEXT NOT NULL,                    -- separated by commas
    engines TEXT NOT NULL,                  -- JSON: what its instances can be of: [["redis", "7.0.15"]]
    bind TEXT NOT NULL,                     -- address that its engines listen on
    first_port BIGINT NOT NULL,             -- range for instances that ask for no port
    last_port BIGINT NOT NULL,
    free_memory_bytes BIGINT NOT NULL,      -- when it was seen
    place TEXT NOT NULL,                    -- which start of which machine, and which directory there
    started_at_ms BIGINT NOT NULL,
    seen_at_ms BIGINT NOT NULL,
    lost_after_ms BIGINT NOT NULL           -- where it is not seen again by then it is lost; all three by the database's clock
);

-- What one host at a time does for all.
CREATE TABLE duty (
    name TEXT NOT NULL PRIMARY KEY,
    host_id TEXT NOT NULL,
    until_ms BIGINT NOT NULL,               -- another one may take it from then on, by the database's clock
    since_ms BIGINT NOT NULL                -- since when somebody has had it, but for short gaps
);

-- The public half of the key that signs manifests: all hosts have the same one.
CREATE TABLE signer (
    verifying_key TEXT NOT NULL
);

-- What the data of an instance took in memory when it was last looked at, for hosts that cannot look.
CREATE TABLE memory_seen (
    instance_id TEXT NOT NULL PRIMARY KEY,
    used_memory_bytes BIGINT NOT NULL
);

CREATE TABLE project (
    id TEXT NOT NULL PRIMARY KEY,
    name TEXT NOT NULL UNIQUE,
    recipient TEXT NOT NULL,                -- age recipient: what a capture needs
    identity_sealed BLOB NOT NULL,          -- age identity, sealed by the master key: what a restore needs; empty: shredded
    escrow_recipient TEXT,                  -- the operator's age recipient, to which every key is sealed too; null: none
    printed_recipient TEXT,                 -- recipient when the keys were printed last: equal while they are the present ones
    shredded_at_ms BIGINT,                  -- since when the private keys are gone
    quota_bytes BIGINT,                     -- that its archives may take in the stores; null: no limit
    created_at_ms BIGINT NOT NULL
);

-- Archive keys that a project had before the present one: they open the backups of their time.
CREATE TABLE project_old_key (
    recipient TEXT NOT NULL PRIMARY KEY,
    project_id TEXT NOT NULL REFERENCES project(id),
    identity_sealed BLOB NOT NULL,          -- sealed as the present one is
    retired_at_ms BIGINT NOT NULL
);

CREATE TABLE account (
    id TEXT NOT NULL PRIMARY KEY,
    project_id TEXT NOT NULL REFERENCES project(id),
    name TEXT NOT NULL UNIQUE,
    password_hash TEXT NOT NULL,            -- argon2id: salt and hash, hex
    created_at_ms BIGINT NOT NULL,
    revoked_at_ms BIGINT
);

CREATE TABLE access_key (
    ak TEXT NOT NULL PRIMARY KEY,
    project_id TEXT NOT NULL REFERENCES project(id),
    sk_sealed BLOB NOT NULL,
    created_at_ms BIGINT NOT NULL,
    revoked_at_ms BIGINT
);

CREATE TABLE token (
    hash BLOB NOT NULL PRIMARY KEY,         -- SHA-256 of the token's text; the text is nowhere
    account_id TEXT NOT NULL REFERENCES account(id),
    project_id TEXT REFERENCES project(id), -- null: not scoped to a project, good for no DCS call
    issued_at_ms BIGINT NOT NULL,
    expires_at_ms BIGINT NOT NULL
);
CREATE INDEX token_expires_index ON token(expires_at_ms);

CREATE TABLE instance (
    id TEXT NOT NULL PRIMARY KEY,
    project_id TEXT NOT NULL REFERENCES project(id),
    name TEXT NOT NULL,
    description TEXT,
    status TEXT NOT NULL CHECK (status IN ('creating', 'running', 'error', 'create_failed', 'deleting', 'deleted')),
    host_id TEXT,                           -- whose processes its engines are; null: somebody else runs them
    engine TEXT NOT NULL DEFAULT 'redis' CHECK (engine IN ('redis', 'valkey')),
    engine_version TEXT NOT NULL,
    capacity_mb BIGINT NOT NULL,
    spec_code TEXT NOT NULL,
    cache_mode TEXT NOT NULL DEFAULT 'single' CHECK (cache_mode IN ('single', 'ha', 'cluster')),
    shards BIGINT NOT NULL DEFAULT 1,
    replicas BIGINT NOT NULL DEFAULT 0,     -- of each shard's primary
    sentinels TEXT NOT NULL DEFAULT '[]',   -- JSON as of the generation's nodes: they stay whichever generation serves
    bind TEXT NOT NULL,
    port BIGINT NOT NULL,                   -- of the first node; those of all stand with the generation
    persistence TEXT NOT NULL CHECK (persistence IN ('none', 'rdb', 'aof')),
    admin_password_sealed BLOB NOT NULL,    -- empty: attached
    client_user TEXT,                       -- the clients' ACL user; null: the engine's default one
    client_password_sealed BLOB,            -- its password; null: none
    tls_authority TEXT,                     -- PEM: whom clients are to trust; null: nobody speaks TLS
    tls_authority_key_sealed BLOB,          -- set with it
    attributes TEXT NOT NULL,               -- JSON: what DCS clients give and want back unchanged
    backup_policy TEXT,                     -- JSON: the policy object of contract §8.1
    restore_ordinal BIGINT NOT NULL DEFAULT 0, -- ordinal of the newest restore record
    restore_created_at_ms BIGINT NOT NULL DEFAULT 0,
    attachment TEXT,                        -- JSON: how servers that somebody else runs are reached, and what was found there; null: managed
    attachment_sealed BLOB,                 -- their passwords and our key, sealed; set with attachment; empty: detached
    attachment_settings TEXT NOT NULL DEFAULT '[]', -- JSON: settings of theirs that a capture has changed or is about to
    rpo_ms BIGINT,                          -- how old its newest backup may become; null: nobody has said so
    rpo_since_ms BIGINT,                    -- since when; set with it
    rpo_keep_ms BIGINT,                     -- how long the backups that are made for it stay; set with it
    failure TEXT,                           -- why the status is error or create_failed
    created_at_ms BIGINT NOT NULL,
    updated_at_ms BIGINT NOT NULL,
    deleted_at_ms BIGINT,
    CHECK ((tls_authority IS NULL) = (tls_authority_key_sealed IS NULL)),
    CHECK ((attachment IS NULL) = (attachment_sealed IS NULL))
);
CREATE INDEX instance_project_index ON instance(project_id, created_at_ms);
CREATE UNIQUE INDEX instance_port_unique ON instance(host_id, bind, port) WHERE deleted_at_ms IS NULL AND attachment IS NULL;

CREATE TABLE generation (
    id TEXT NOT NULL PRIMARY KEY,
    instance_id TEXT NOT NULL REFERENCES instance(id),
    nodes TEXT NOT NULL,                    -- JSON: id, shard, ports, own address of each; made with it, never changed
    state TEXT NOT NULL CHECK (state IN ('loading', 'serving', 'retired', 'removing', 'removed')),
    created_at_ms BIGINT NOT NULL,
    retired_at_ms BIGINT,
    expires_at_ms BIGINT                    -- a retired one is removed from then on
);
CREATE UNIQUE INDEX generation_serving_unique ON generation(instance_id) WHERE state = 'serving';
CREATE INDEX generation_state_index ON generation(state);
CREATE INDEX generation_made_index ON generation(instance_id, created_at_ms);

CREATE TABLE job (
    id TEXT NOT NULL PRIMARY KEY,
    instance_id TEXT NOT NULL REFERENCES instance(id),
    kind TEXT NOT NULL CHECK (kind IN ('create', 'delete', 'restart', 'flush', 'password', 'resize', 'backup', 'restore', 'migration')),
    host_id TEXT,                           -- the only one that can run it, the instance's; null: every one can
    subject_id TEXT,                        -- the id of the backup, restore, resize or import task; the process that a restart or flush acts on
    state TEXT NOT NULL CHECK (state IN ('waiting', 'running', 'done')),
    fence BIGINT NOT NULL DEFAULT 0,        -- grows with each claim; part of object names and of every settle
    owner TEXT,                             -- the host that runs it; null: nobody does
    lease_until_ms BIGINT NOT NULL DEFAULT 0, -- another one may take it from then on, by the database's clock
    created_at_ms BIGINT NOT NULL,
    settled_at_ms BIGINT
);
-- One management operation per instance, by the database and not by our care.
CREATE UNIQUE INDEX job_instance_active_unique ON job(instance_id) WHERE state <> 'done';
CREATE INDEX job_active_index ON job(created_at_ms) WHERE state <> 'done';
CREATE INDEX job_subject_index ON job(subject_id);

-- Object stores beside the local folder.
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

CREATE TABLE backup (
    id TEXT NOT NULL PRIMARY KEY,
    instance_id TEXT NOT NULL REFERENCES instance(id),
    project_id TEXT NOT NULL,
    ordinal BIGINT NOT NULL,                -- grows per instance; newest first is ordinal descending
    name TEXT NOT NULL,
    kind TEXT NOT NULL CHECK (kind IN ('manual', 'auto', 'safety', 'generation')),
    format TEXT NOT NULL CHECK (format IN ('rdb', 'aof')),
    status TEXT NOT NULL CHECK (status IN ('waiting', 'running', 'succeeded', 'failed', 'expired', 'deleted')),
    progress_bp BIGINT NOT NULL DEFAULT 0,  -- basis points: 10000 is 100.00
    size_bytes BIGINT NOT NULL DEFAULT 0,   -- stored bytes
    plain_bytes BIGINT NOT NULL DEFAULT 0,
    keys BIGINT NOT NULL DEFAULT 0,
    used_memory_bytes BIGINT NOT NULL DEFAULT 0, -- what the source's data took in memory at the capture
    period TEXT,
    remark TEXT,
    error_code TEXT,                        -- 1 to 8: dcs.08.000x
    failure TEXT,                           -- the chain of causes, for the operator
    prefix TEXT,                            -- where the archive lies; set by the claim
    storage_id TEXT REFERENCES storage(id), -- in which store; null: the local folder; set with prefix
    host_id TEXT,                           -- of which host, and where an import is at work; set with prefix
    manifest_blake3 TEXT,                   -- set with succeeded
    captured_from TEXT,                     -- primary or replica, a space, the node's id; null: there is only one node, or one for each shard
    point_in_time BIGINT NOT NULL DEFAULT 1,  -- 0: read key by key, of no single moment
    generation_id TEXT REFERENCES generation(id), -- kind generation: the data is a retired process, not an archive
    phase TEXT,
    proof_level TEXT CHECK (proof_level IN ('stored', 'parsed', 'proven')), -- of the verify that counts; null: none yet
    proof_at_ms BIGINT,
    proof_engine TEXT,                      -- version of the engine that loaded it, for proven
    proof_load_ms BIGINT,
    proof_failure TEXT,                     -- what is wrong with the backup; null: it holds
    copy_prefix TEXT,                       -- where a copy of the archive lies or is being made; null: there is none
    copy_storage_id TEXT REFERENCES storage(id), -- in which store; null: the local folder; set with copy_prefix
    copy_host_id TEXT,                      -- of which host, and where it is made; set with copy_prefix
    copy_at_ms BIGINT,                      -- when every byte of it was read back; null: it is being made
    bytes_total BIGINT NOT NULL DEFAULT 0,  -- plain bytes expected, for who watches it
    schedule_id TEXT,                       -- whose run it is; null: no schedule asked for it. It may be gone by now
    due_at_ms BIGINT,                       -- when that run was due
    try_number BIGINT,                      -- from 1 on
    held TEXT,                              -- why neither retention nor a person may take it; null: they may
    expires_at_ms BIGINT,                   -- retention may take it from then on; null: it stays until somebody deletes it
    reserved_bytes BIGINT NOT NULL DEFAULT 0, -- of the project's quota; once it has ended all that was put for it; 0: its size counts
    created_at_ms BIGINT NOT NULL,
    execution_at_ms BIGINT,
    updated_at_ms BIGINT NOT NULL,
    CHECK (status <> 'succeeded' OR kind = 'generation' OR (prefix IS NOT NULL AND manifest_blake3 IS NOT NULL)),
    CHECK (status <> 'failed' OR error_code IS NOT NULL),
    CHECK (schedule_id IS NULL OR (due_at_ms IS NOT NULL AND try_number IS NOT NULL))
);
CREATE UNIQUE INDEX backup_instance_ordinal_unique ON backup(instance_id, ordinal);
-- After the one above: of equal ones SQLite takes the later one.
CREATE INDEX backup_succeeded_index ON backup(instance_id, ordinal) WHERE status = 'succeeded';
-- What lists count, without the rows.
CREATE INDEX backup_listed_index ON backup(instance_id, ordinal, created_at_ms) WHERE status <> 'deleted';
-- A run is made once, whatever the clock says: see schedule/mod.rs.
CREATE UNIQUE INDEX backup_schedule_try_unique ON backup(schedule_id, due_at_ms, try_number) WHERE schedule_id IS NOT NULL;
CREATE INDEX backup_safety_index ON backup(instance_id) WHERE kind = 'safety';
CREATE INDEX backup_expires_index ON backup(expires_at_ms) WHERE status = 'succeeded';
CREATE INDEX backup_unfinished_index ON backup(kind) WHERE status IN ('waiting', 'running');
-- All that a quota is summed from: it is read while nobody else writes.
CREATE INDEX backup_project_index ON backup(project_id, status, size_bytes, reserved_bytes, copy_at_ms, copy_prefix)
    WHERE status IN ('waiting', 'running', 'succeeded') AND generation_id IS NULL;
CREATE INDEX backup_generation_index ON backup(generation_id) WHERE generation_id IS NOT NULL;
CREATE INDEX backup_copying_index ON backup(copy_prefix) WHERE copy_prefix IS NOT NULL AND copy_at_ms IS NULL;
CREATE TRIGGER backup_terminal_is_final BEFORE UPDATE OF status ON backup
WHEN (OLD.status IN ('failed', 'expired') AND NEW.status NOT IN (OLD.status, 'deleted'))
  OR (OLD.status = 'deleted' AND NEW.status <> 'deleted')
  OR (OLD.status = 'succeeded' AND NEW.status NOT IN ('succeeded', 'expired', 'deleted'))
BEGIN SELECT RAISE(ABORT, 'backup_terminal_is_final'); END;

-- How many backups of an instance are listed: to count them takes longer the more there are.
CREATE TABLE backup_count (
    instance_id TEXT NOT NULL PRIMARY KEY REFERENCES instance(id),
    listed BIGINT NOT NULL
);
CREATE TRIGGER backup_added_is_counted AFTER INSERT ON backup BEGIN
    INSERT INTO backup_count (instance_id, listed) VALUES (NEW.instance_id, CASE WHEN NEW.status = 'deleted' THEN 0 ELSE 1 END)
    ON CONFLICT (instance_id) DO UPDATE SET listed = backup_count.listed + excluded.listed;
END;
CREATE TRIGGER backup_deleted_is_counted AFTER UPDATE OF status ON backup
WHEN (OLD.status = 'deleted') <> (NEW.status = 'deleted') BEGIN
    UPDATE backup_count SET listed = listed + CASE WHEN NEW.status = 'deleted' THEN -1 ELSE 1 END WHERE instance_id = NEW.instance_id;
END;

-- What is done by itself besides the backup policy. A row that is deleted stays: the mirror knows no deletions.
CREATE TABLE schedule (
    id TEXT NOT NULL PRIMARY KEY,
    project_id TEXT NOT NULL REFERENCES project(id),
    instance_id TEXT NOT NULL REFERENCES instance(id),
    name TEXT NOT NULL,
    task TEXT NOT NULL CHECK (task IN ('backup', 'drill')),
    cron TEXT NOT NULL,                     -- minute hour day month weekday
    zone TEXT NOT NULL,                     -- a name of the IANA database
    window_ms BIGINT NOT NULL,              -- how long after it was due a run may begin, where the service was away
    keeps TEXT NOT NULL,                    -- JSON: which of its backups stay; without a rule all do
    created_at_ms BIGINT NOT NULL,
    deleted_at_ms BIGINT,
    overdue_at_ms BIGINT                    -- of a drill: since when it was overdue as this was told last
);
CREATE UNIQUE INDEX schedule_instance_name_unique ON schedule(instance_id, name) WHERE deleted_at_ms IS NULL;

-- Where a remote store holds or may hold objects of an attempt: written before the first object is, removed after
-- the last one is gone. So what is to be deleted is known without a listing.
CREATE TABLE backup_place (
    prefix TEXT NOT NULL PRIMARY KEY,
    storage_id TEXT NOT NULL REFERENCES storage(id),
    backup_id TEXT NOT NULL REFERENCES backup(id),
    noted BIGINT NOT NULL DEFAULT 1,        -- how often: what is noted again while it is cleared is cleared again
    kept BIGINT NOT NULL DEFAULT 0          -- 1: a backup that succeeded has its archive or its copy there; who clears does not look at it
);
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

-- Verifies that were asked of the service: the queue and its history. What the newest found is on the backup.
CREATE TABLE verification (
    id TEXT NOT NULL PRIMARY KEY,
    backup_id TEXT NOT NULL REFERENCES backup(id),
    ordinal BIGINT NOT NULL,                -- grows per backup
    level TEXT NOT NULL CHECK (level IN ('stored', 'parsed', 'proven')),
    status TEXT NOT NULL CHECK (status IN ('waiting', 'running', 'holds', 'damaged', 'failed')),
    attempts BIGINT NOT NULL DEFAULT 0,     -- how often it was begun: the fence of who works on it
    owner TEXT,                             -- the host that does
    lease_until_ms BIGINT NOT NULL DEFAULT 0, -- as a job's
    phase TEXT,
    bytes_done BIGINT NOT NULL DEFAULT 0,
    bytes_total BIGINT NOT NULL DEFAULT 0,
    engine TEXT,                            -- version of the engine that loaded it, for proven
    load_ms BIGINT,
    schedule_id TEXT,                       -- whose drill it is; null: somebody asked for it
    due_at_ms BIGINT,                       -- when that drill was due
    try_number BIGINT,                      -- from 1 on
    failure TEXT,                           -- what is wrong with the backup, or why nothing could be found out
    created_at_ms BIGINT NOT NULL,
    started_at_ms BIGINT,
    finished_at_ms BIGINT,
    CHECK (status IN ('waiting', 'running') OR finished_at_ms IS NOT NULL),
    CHECK (status NOT IN ('damaged', 'failed') OR failure IS NOT NULL)
);
CREATE UNIQUE INDEX verification_ordinal_unique ON verification(backup_id, ordinal);
CREATE UNIQUE INDEX verification_schedule_try_unique ON verification(schedule_id, due_at_ms, try_number) WHERE schedule_id IS NOT NULL;
CREATE UNIQUE INDEX verification_unfinished_unique ON verification(backup_id) WHERE status IN ('waiting', 'running');
CREATE TRIGGER verification_terminal_is_final BEFORE UPDATE ON verification
WHEN OLD.status IN ('holds', 'damaged', 'failed')
BEGIN SELECT RAISE(ABORT, 'verification_terminal_is_final'); END;

-- Clustered by (instance, ordinal): any page is one short scan.
CREATE TABLE restore (
    instance_id TEXT NOT NULL REFERENCES instance(id),
    ordinal BIGINT NOT NULL,                -- dense, from the instance's counter: a total is a subtraction
    id TEXT NOT NULL,
    project_id TEXT NOT NULL,
    name TEXT NOT NULL,
    backup_id TEXT NOT NULL,
    backup_name TEXT NOT NULL,
    backup_remark TEXT,
    remark TEXT,
    status TEXT NOT NULL CHECK (status IN ('waiting', 'running', 'succeeded', 'failed')),
    progress_bp BIGINT NOT NULL DEFAULT 0,
    error_code TEXT,
    failure TEXT,
    source_instance_id TEXT NOT NULL,
    source_instance_name TEXT NOT NULL,
    source_layout TEXT NOT NULL DEFAULT 'single', -- of the instance that the backup is of, when the restore was accepted
    layout TEXT NOT NULL DEFAULT 'single',  -- of the instance that it was restored into, then
    method TEXT NOT NULL CHECK (method IN ('side_load', 'in_place', 'switch_back', 'replay')),
    verify TEXT NOT NULL CHECK (verify IN ('none', 'sample', 'full')),
    target_state TEXT NOT NULL CHECK (target_state IN ('untouched', 'loading', 'clearing', 'verifying', 'switching', 'replaced', 'rolled_back', 'partial', 'unknown')),
    phase TEXT,
    bytes_done BIGINT NOT NULL DEFAULT 0,
    bytes_total BIGINT NOT NULL DEFAULT 0,
    keys_done BIGINT NOT NULL DEFAULT 0,    -- of the phase, for who watches it
    shards TEXT NOT NULL DEFAULT '[]',      -- JSON: keys and bytes of each shard that is loaded and verified, for who watches it
    keys_applied BIGINT NOT NULL DEFAULT 0,
    keys_compared BIGINT NOT NULL DEFAULT 0,
    keys_expired BIGINT NOT NULL DEFAULT 0,
    keys_skipped BIGINT NOT NULL DEFAULT 0, -- this and what follows of method replay
    keys_conflicting BIGINT NOT NULL DEFAULT 0,
    keys_failed BIGINT NOT NULL DEFAULT 0,
    keys_removed BIGINT NOT NULL DEFAULT 0, -- other keys of the target
    keys_reduced BIGINT NOT NULL DEFAULT 0, -- applied without something of them
    unconfirmed BIGINT NOT NULL DEFAULT 0,  -- 1: a replica did not say in time that it has what its primary has
    resumed BIGINT NOT NULL DEFAULT 0,      -- how often it was gone on with
    options TEXT,                           -- JSON: what becomes of which keys; set with method replay
    safety_backup_id TEXT,                  -- backup of the target from before
    dbs TEXT,                               -- JSON: databases that are written to, or [] for all; null: none yet
    unavailable_us BIGINT,                  -- the switch as we measured it: old port closed to last client ended and new port open; null where a crash came in between
    undo_of TEXT,
    undone_by TEXT,
    cancel_asked_at_ms BIGINT,              -- it is to be given up; never set once the switch is intended
    new_generation_id TEXT,
    old_generation_id TEXT,
    created_at_ms BIGINT NOT NULL,          -- never smaller than the record's before it
    clock_at_ms BIGINT NOT NULL,            -- what the clock really said
    started_at_ms BIGINT,
    finished_at_ms BIGINT,
    updated_at_ms BIGINT NOT NULL,
    PRIMARY KEY (instance_id, ordinal),
    CHECK (status NOT IN ('succeeded', 'failed') OR finished_at_ms IS NOT NULL),
    CHECK (status <> 'failed' OR error_code IS NOT NULL),
    CHECK ((method = 'replay') = (options IS NOT NULL))
) WITHOUT ROWID;
CREATE UNIQUE INDEX restore_id_unique ON restore(id);
CREATE INDEX restore_safety_index ON restore(safety_backup_id) WHERE safety_backup_id IS NOT NULL;
CREATE INDEX restore_created_index ON restore(instance_id, created_at_ms);
CREATE TRIGGER restore_terminal_is_final BEFORE UPDATE OF status ON restore
WHEN OLD.status IN ('succeeded', 'failed') AND NEW.status <> OLD.status
BEGIN SELECT RAISE(ABORT, 'restore_terminal_is_final'); END;
CREATE TRIGGER restore_is_never_deleted BEFORE DELETE ON restore
BEGIN SELECT RAISE(ABORT, 'restore_is_never_deleted'); END;

-- Changes of an instance's nodes. The newest of an instance is the one that is under way, or how that ended.
CREATE TABLE resize (
    id TEXT NOT NULL PRIMARY KEY,
    instance_id TEXT NOT NULL REFERENCES instance(id),
    status TEXT NOT NULL CHECK (status IN ('waiting', 'running', 'switching', 'succeeded', 'failed')),
    spec_code TEXT NOT NULL,                -- of what it is to become: as the columns of the instance
    capacity_mb BIGINT NOT NULL,
    cache_mode TEXT NOT NULL CHECK (cache_mode IN ('single', 'ha', 'cluster')),
    shards BIGINT NOT NULL,
    replicas BIGINT NOT NULL,
    new_generation_id TEXT,
    old_generation_id TEXT,
    phase TEXT,
    bytes_done BIGINT NOT NULL DEFAULT 0,
    bytes_total BIGINT NOT NULL DEFAULT 0,
    keys_done BIGINT NOT NULL DEFAULT 0,    -- of the phase, for who watches it
    halted_us BIGINT,                       -- how long writes waited, as we measured it; null: not known
    cancel_asked_at_ms BIGINT,              -- it is to be given up; never set once the switch is intended
    failure TEXT,
    created_at_ms BIGINT NOT NULL,
    updated_at_ms BIGINT NOT NULL,
    finished_at_ms BIGINT,
    CHECK (status NOT IN ('succeeded', 'failed') OR finished_at_ms IS NOT NULL),
    CHECK (status <> 'failed' OR failure IS NOT NULL)
);
CREATE INDEX resize_instance_index ON resize(instance_id, created_at_ms);
CREATE TRIGGER resize_terminal_is_final BEFORE UPDATE OF status ON resize
WHEN OLD.status IN ('succeeded', 'failed') AND NEW.status <> OLD.status
BEGIN SELECT RAISE(ABORT, 'resize_terminal_is_final'); END;

-- Import tasks: a backup is merged into an instance. Columns that a restore has too mean the same.
CREATE TABLE migration (
    id TEXT NOT NULL PRIMARY KEY,
    project_id TEXT NOT NULL REFERENCES project(id),
    instance_id TEXT NOT NULL REFERENCES instance(id), -- that is imported into
    backup_id TEXT NOT NULL,
    source_instance_id TEXT NOT NULL REFERENCES instance(id),
    name TEXT NOT NULL,
    description TEXT,
    status TEXT NOT NULL CHECK (status IN ('waiting', 'running', 'succeeded', 'failed')),
    error_code TEXT,
    failure TEXT,
    target_state TEXT NOT NULL CHECK (target_state IN ('untouched', 'loading', 'clearing', 'verifying', 'replaced', 'rolled_back', 'partial', 'unknown')),
    options TEXT NOT NULL,
    safety_backup_id TEXT,
    dbs TEXT,
    keys_applied BIGINT NOT NULL DEFAULT 0,
    cancel_asked_at_ms BIGINT,
    created_at_ms BIGINT NOT NULL,
    started_at_ms BIGINT,
    finished_at_ms BIGINT,
    updated_at_ms BIGINT NOT NULL,
    deleted_at_ms BIGINT,                   -- taken off the list
    CHECK (status NOT IN ('succeeded', 'failed') OR finished_at_ms IS NOT NULL),
    CHECK (status <> 'failed' OR error_code IS NOT NULL)
);
CREATE INDEX migration_project_index ON migration(project_id, created_at_ms);
CREATE INDEX migration_unknown_index ON migration(instance_id) WHERE target_state = 'unknown';
CREATE INDEX migration_unfinished_index ON migration(backup_id) WHERE status IN ('waiting', 'running');
CREATE TRIGGER migration_terminal_is_final BEFORE UPDATE OF status ON migration
WHEN OLD.status IN ('succeeded', 'failed') AND NEW.status <> OLD.status
BEGIN SELECT RAISE(ABORT, 'migration_terminal_is_final'); END;

-- The first keys of each kind that a replay counts: see restore/account.rs.
CREATE TABLE restore_account (
    restore_id TEXT NOT NULL PRIMARY KEY REFERENCES restore(id),
    named TEXT NOT NULL                     -- JSON
);

-- Who changed what, in the transaction of the change. Each row's digest holds all rows before it.
CREATE TABLE audit (
    number BIGINT NOT NULL PRIMARY KEY,     -- from 1 on, without gaps
    at_ms BIGINT NOT NULL,
    project_id TEXT NOT NULL,               -- empty: of no project
    who TEXT NOT NULL,
    what TEXT NOT NULL,
    subject TEXT NOT NULL,
    digest TEXT NOT NULL
);
CREATE TRIGGER audit_is_never_changed BEFORE UPDATE ON audit
BEGIN SELECT RAISE(ABORT, 'audit_is_never_changed'); END;
CREATE TRIGGER audit_is_never_deleted BEFORE DELETE ON audit
BEGIN SELECT RAISE(ABORT, 'audit_is_never_deleted'); END;

-- Calls with an Idempotency-Key that were accepted: written in the transaction of what they made.
CREATE TABLE idempotency (
    project_id TEXT NOT NULL REFERENCES project(id),
    key TEXT NOT NULL,
    fingerprint BLOB NOT NULL,              -- SHA-256 of operation, path parameters and body
    answer TEXT NOT NULL,                   -- JSON: the ids that were given out
    created_at_ms BIGINT NOT NULL,
    PRIMARY KEY (project_id, key)
);
CREATE INDEX idempotency_created_index ON idempotency(created_at_ms);

-- What an instance has now, among all that it ever had.
CREATE INDEX generation_instance_index ON generation(instance_id) WHERE state <> 'removed';

-- What the store of a project has not been told yet of the catalogue's rows: written by the triggers below, in the
-- transaction of the change itself, and removed after the store has it. A row that changes again counts up.
CREATE TABLE outbox (
    number INTEGER PRIMARY KEY,             -- told in this order
    project_id TEXT NOT NULL,
    subject TEXT NOT NULL CHECK (subject IN ('project', 'old_key', 'storage', 'choice', 'instance', 'generation', 'schedule', 'backup', 'restore')),
    id TEXT NOT NULL,                       -- of the row; of a choice its project or ''
    changes BIGINT NOT NULL DEFAULT 1,
    UNIQUE (project_id, subject, id)
);
CREATE INDEX outbox_told_index ON outbox(project_id, number);

-- How far the mirror of a project's rows is. An entry's number is taken before it is written and never again.
CREATE TABLE journal (
    project_id TEXT NOT NULL PRIMARY KEY REFERENCES project(id),
    storage_id TEXT REFERENCES storage(id), -- null: the local folder
    recipient TEXT NOT NULL,                -- age recipient of the newest entries
    begun BIGINT NOT NULL DEFAULT 0,        -- number of the newest entry that may lie in the store
    written BIGINT                          -- number of the newest one that does; null: the next one begins a chain
);

CREATE TRIGGER project_added_is_mirrored AFTER INSERT ON project BEGIN
    INSERT INTO outbox (project_id, subject, id) VALUES (NEW.id, 'project', NEW.id)
    ON CONFLICT (project_id, subject, id) DO UPDATE SET changes = outbox.changes + 1;
END;
CREATE TRIGGER project_changed_is_mirrored AFTER UPDATE ON project BEGIN
    INSERT INTO outbox (project_id, subject, id) VALUES (NEW.id, 'project', NEW.id)
    ON CONFLICT (project_id, subject, id) DO UPDATE SET changes = outbox.changes + 1;
END;
CREATE TRIGGER old_key_added_is_mirrored AFTER INSERT ON project_old_key BEGIN
    INSERT INTO outbox (project_id, subject, id) VALUES (NEW.project_id, 'old_key', NEW.recipient)
    ON CONFLICT (project_id, subject, id) DO UPDATE SET changes = outbox.changes + 1;
END;
CREATE TRIGGER storage_added_is_mirrored AFTER INSERT ON storage BEGIN
    INSERT INTO outbox (project_id, subject, id)
    SELECT id, 'storage', NEW.id FROM project WHERE NEW.project_id IS NULL OR NEW.project_id = id
    ON CONFLICT (project_id, subject, id) DO UPDATE SET changes = outbox.changes + 1;
END;
CREATE TRIGGER choice_added_is_mirrored AFTER INSERT ON storage_default BEGIN
    INSERT INTO outbox (project_id, subject, id)
    SELECT id, 'choice', coalesce(NEW.project_id, '') FROM project WHERE NEW.project_id IS NULL OR NEW.project_id = id
    ON CONFLICT (project_id, subject, id) DO UPDATE SET changes = outbox.changes + 1;
END;
CREATE TRIGGER instance_added_is_mirrored AFTER INSERT ON instance BEGIN
    INSERT INTO outbox (project_id, subject, id) VALUES (NEW.project_id, 'instance', NEW.id)
    ON CONFLICT (project_id, subject, id) DO UPDATE SET changes = outbox.changes + 1;
END;
CREATE TRIGGER instance_changed_is_mirrored AFTER UPDATE ON instance BEGIN
    INSERT INTO outbox (project_id, subject, id) VALUES (NEW.project_id, 'instance', NEW.id)
    ON CONFLICT (project_id, subject, id) DO UPDATE SET changes = outbox.changes + 1;
END;
CREATE TRIGGER generation_added_is_mirrored AFTER INSERT ON generation BEGIN
    INSERT INTO outbox (project_id, subject, id)
    SELECT project_id, 'generation', NEW.id FROM instance WHERE instance.id = NEW.instance_id
    ON CONFLICT (project_id, subject, id) DO UPDATE SET changes = outbox.changes + 1;
END;
CREATE TRIGGER generation_changed_is_mirrored AFTER UPDATE ON generation BEGIN
    INSERT INTO outbox (project_id, subject, id)
    SELECT project_id, 'generation', NEW.id FROM instance WHERE instance.id = NEW.instance_id
    ON CONFLICT (project_id, subject, id) DO UPDATE SET changes = outbox.changes + 1;
END;
CREATE TRIGGER schedule_added_is_mirrored AFTER INSERT ON schedule BEGIN
    INSERT INTO outbox (project_id, subject, id) VALUES (NEW.project_id, 'schedule', NEW.id)
    ON CONFLICT (project_id, subject, id) DO UPDATE SET changes = outbox.changes + 1;
END;
CREATE TRIGGER schedule_changed_is_mirrored AFTER UPDATE ON schedule BEGIN
    INSERT INTO outbox (project_id, subject, id) VALUES (NEW.project_id, 'schedule', NEW.id)
    ON CONFLICT (project_id, subject, id) DO UPDATE SET changes = outbox.changes + 1;
END;
-- Of backups and restores what was accepted and how it ended; not how far they are.
CREATE TRIGGER backup_added_is_mirrored AFTER INSERT ON backup BEGIN
    INSERT INTO outbox (project_id, subject, id) VALUES (NEW.project_id, 'backup', NEW.id)
    ON CONFLICT (project_id, subject, id) DO UPDATE SET changes = outbox.changes + 1;
END;
CREATE TRIGGER backup_changed_is_mirrored AFTER UPDATE ON backup WHEN NEW.status NOT IN ('waiting', 'running') BEGIN
    INSERT INTO outbox (project_id, subject, id) VALUES (NEW.project_id, 'backup', NEW.id)
    ON CONFLICT (project_id, subject, id) DO UPDATE SET changes = outbox.changes + 1;
END;
CREATE TRIGGER restore_added_is_mirrored AFTER INSERT ON restore BEGIN
    INSERT INTO outbox (project_id, subject, id) VALUES (NEW.project_id, 'restore', NEW.id)
    ON CONFLICT (project_id, subject, id) DO UPDATE SET changes = outbox.changes + 1;
END;
CREATE TRIGGER restore_changed_is_mirrored AFTER UPDATE ON restore WHEN NEW.status IN ('succeeded', 'failed') BEGIN
    INSERT INTO outbox (project_id, subject, id) VALUES (NEW.project_id, 'restore', NEW.id)
    ON CONFLICT (project_id, subject, id) DO UPDATE SET changes = outbox.changes + 1;
END;

-- Whom the operator wants to be told what happens. A key or user like these is not in the mirror: it is added again.
CREATE TABLE hook (
    name TEXT NOT NULL PRIMARY KEY,
    project_id TEXT REFERENCES project(id), -- null: of every project
    kind TEXT NOT NULL CHECK (kind IN ('url', 'program')),
    target TEXT NOT NULL,                   -- the URL, or the program's absolute path
    events TEXT NOT NULL,                   -- ',backup.failed,restore.failed,'; ',' for all
    secret_sealed BLOB NOT NULL,            -- what deliveries to a URL are signed with
    created_at_ms BIGINT NOT NULL
);

-- What each is to be told: written by the triggers below, in the transaction in which it happened.
CREATE TABLE delivery (
    number INTEGER PRIMARY KEY,
    hook TEXT NOT NULL REFERENCES hook(name),
    event TEXT NOT NULL,
    project_id TEXT NOT NULL,
    instance_id TEXT NOT NULL,
    subject_id TEXT NOT NULL,               -- of the backup, restore, verification or instance
    error_code TEXT,
    failure TEXT,                           -- why it failed, for the operator
    at_ms BIGINT NOT NULL,
    tries BIGINT NOT NULL DEFAULT 0,
    next_at_ms BIGINT,                      -- of the next try; null: there is none
    delivered_at_ms BIGINT,
    answer TEXT                             -- what was wrong with the newest try
);
CREATE INDEX delivery_due_index ON delivery(hook, next_at_ms) WHERE next_at_ms IS NOT NULL;
CREATE INDEX delivery_over_index ON delivery(at_ms) WHERE next_at_ms IS NULL;

CREATE TRIGGER backup_end_is_told AFTER UPDATE OF status ON backup
WHEN OLD.status IN ('waiting', 'running') AND NEW.status IN ('succeeded', 'failed') AND NEW.kind <> 'generation' BEGIN
    INSERT INTO delivery (hook, event, project_id, instance_id, subject_id, error_code, failure, at_ms, next_at_ms)
    SELECT name, 'backup.' || NEW.status, NEW.project_id, NEW.instance_id, NEW.id, NEW.error_code, NEW.failure, NEW.updated_at_ms, 0
    FROM hook WHERE (project_id IS NULL OR project_id = NEW.project_id)
    AND (events = ',' OR events LIKE '%,backup.' || NEW.status || ',%');
END;
-- A run of a schedule that was missed is a record that failed from its beginning.
CREATE TRIGGER backup_missed_is_told AFTER INSERT ON backup WHEN NEW.status = 'failed' BEGIN
    INSERT INTO delivery (hook, event, project_id, instance_id, subject_id, error_code, failure, at_ms, next_at_ms)
    SELECT name, 'backup.failed', NEW.project_id, NEW.instance_id, NEW.id, NEW.error_code, NEW.failure, NEW.updated_at_ms, 0
    FROM hook WHERE (project_id IS NULL OR project_id = NEW.project_id) AND (events = ',' OR events LIKE '%,backup.failed,%');
END;
CREATE TRIGGER restore_end_is_told AFTER UPDATE OF status ON restore
WHEN OLD.status IN ('waiting', 'running') AND NEW.status IN ('succeeded', 'failed') BEGIN
    INSERT INTO delivery (hook, event, project_id, instance_id, subject_id, error_code, failure, at_ms, next_at_ms)
    SELECT name, 'restore.' || NEW.status, NEW.project_id, NEW.instance_id, NEW.id, NEW.error_code, NEW.failure, NEW.updated_at_ms, 0
    FROM hook WHERE (project_id IS NULL OR project_id = NEW.project_id)
    AND (events = ',' OR events LIKE '%,restore.' || NEW.status || ',%');
END;
CREATE TRIGGER verification_end_is_told AFTER UPDATE OF status ON verification
WHEN OLD.status IN ('waiting', 'running') AND NEW.status IN ('holds', 'damaged', 'failed') BEGIN
    INSERT INTO delivery (hook, event, project_id, instance_id, subject_id, failure, at_ms, next_at_ms)
    SELECT hook.name, 'verification.' || NEW.status, backup.project_id, backup.instance_id, NEW.id, NEW.failure, NEW.finished_at_ms, 0
    FROM backup JOIN hook ON hook.project_id IS NULL OR hook.project_id = backup.project_id
    WHERE backup.id = NEW.backup_id AND (hook.events = ',' OR hook.events LIKE '%,verification.' || NEW.status || ',%');
END;
CREATE TRIGGER drill_overdue_is_told AFTER UPDATE OF overdue_at_ms ON schedule WHEN NEW.overdue_at_ms IS NOT NULL BEGIN
    INSERT INTO delivery (hook, event, project_id, instance_id, subject_id, failure, at_ms, next_at_ms)
    SELECT name, 'drill.overdue', NEW.project_id, NEW.instance_id, NEW.id,
        'a drill was due four hours before, and none has held since', NEW.overdue_at_ms, 0
    FROM hook WHERE (project_id IS NULL OR project_id = NEW.project_id) AND (events = ',' OR events LIKE '%,drill.overdue,%');
END;
CREATE TRIGGER instance_trouble_is_told AFTER UPDATE OF status ON instance
WHEN (OLD.status = 'running' AND NEW.status = 'error') OR (OLD.status = 'error' AND NEW.status = 'running') BEGIN
    INSERT INTO delivery (hook, event, project_id, instance_id, subject_id, failure, at_ms, next_at_ms)
    SELECT name, 'instance.' || NEW.status, NEW.project_id, NEW.id, NEW.id, NEW.failure, NEW.updated_at_ms, 0
    FROM hook WHERE (project_id IS NULL OR project_id = NEW.project_id)
    AND (events = ',' OR events LIKE '%,instance.' || NEW.status || ',%');
END;
