//! The independent judge. It reads the catalogue with its own SQL, the store and the directories with its own eyes,
//! the engines over the clients' port and the process table, and compares all of them with what the test knows.
//!
//! A lie is: a backup that says it succeeded and whose objects are missing, of another size or digest, or (once per
//! backup, [`Form::Full`]) do not decode to a file that a stock engine loads to the very data of that moment; objects
//! without a backup; a restore that says it succeeded while clients find anything else than the backup's data, or
//! failed while they find anything else than the data of before; anything unfinished a minute after the last crash; a record
//! that a client asked for and that the audit log does not tell, or a chain of that log which is broken. A record is lost where a
//! client was told its id and the catalogue does not know it.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use ring::aead::{AES_256_GCM, Aad, LessSafeKey, NONCE_LEN, Nonce, UnboundKey};
use ring::digest::{SHA256, digest};
use serde_json::Value;
use xtask::plain_engine::PlainEngine;

pub use crate::catalogue::Catalogue;
use crate::catalogue::{Row, bytes_of};
use crate::world::World;

/// Everything must have come to its end this long after a start.
const SETTLE_MAX: Duration = Duration::from_secs(60);

/// How much is looked at.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Form {
    /// Records, sizes and digests of objects, data of instances, processes, directories.
    Cheap,
    /// That, and every backup once decoded, checked by the stock program and loaded into a stock engine.
    Full,
}

/// A backup's row.
#[derive(Debug, Clone)]
pub struct Backup {
    pub id: String,
    pub instance: String,
    pub kind: String,
    pub status: String,
    pub error_code: Option<String>,
    pub failure: Option<String>,
    pub prefix: Option<String>,
    pub manifest_blake3: Option<String>,
    pub generation: Option<String>,
    pub remark: Option<String>,
}

/// A restore's row.
#[derive(Debug, Clone)]
pub struct Restore {
    pub id: String,
    pub name: String,
    pub ordinal: i64,
    pub backup: String,
    pub status: String,
    pub error_code: Option<String>,
    pub failure: Option<String>,
    pub method: String,
    pub target_state: String,
    pub old_generation: Option<String>,
    pub unavailable_us: Option<i64>,
}

impl Catalogue {
    /// Id and port of the living instance of this name.
    pub fn instance(&self, name: &str) -> Option<(String, u16)> {
        let found = self.rows(&format!(
            "SELECT id, port FROM instance WHERE name = 'test-{name}' AND deleted_at_ms IS NULL"
        ));
        found.into_iter().next().map(|mut row| {
            let (id, port) = (row.text(), row.number());
            (id, u16::try_from(port).unwrap())
        })
    }

    /// `(id, status)` of all that are not deleted.
    pub fn instances(&self) -> Vec<(String, String)> {
        self.pairs("SELECT id, status FROM instance WHERE status <> 'deleted'")
    }

    /// `(id, state)` of the instance's generations that are not removed.
    pub fn generations(&self, instance: &str) -> Vec<(String, String)> {
        self.pairs(&format!(
            "SELECT id, state FROM generation WHERE instance_id = '{instance}' AND state <> 'removed'"
        ))
    }

    /// The nodes of a generation, as it has them.
    pub fn nodes(&self, generation: &str) -> serde_json::Value {
        let found = self.rows(&format!("SELECT nodes FROM generation WHERE id = '{generation}'"));
        serde_json::from_str(&found.into_iter().next().unwrap().text()).unwrap()
    }

    fn pairs(&self, sql: &str) -> Vec<(String, String)> {
        let rows = self.rows(sql).into_iter();
        rows.map(|mut row| (row.text(), row.text())).collect()
    }

    /// The serving generation.
    pub fn serving(&self, instance: &str) -> Option<String> {
        let found = self.rows(&format!(
            "SELECT id FROM generation WHERE instance_id = '{instance}' AND state = 'serving'"
        ));
        found.into_iter().next().map(|mut row| row.text())
    }

    /// Every backup.
    pub fn backups(&self) -> Vec<Backup> {
        let sql = "SELECT id, instance_id, kind, status, error_code, failure, prefix, manifest_blake3, generation_id, \
                   remark \
                   FROM backup ORDER BY created_at_ms, ordinal";
        let read = |mut row: Row| Backup {
            id: row.text(),
            instance: row.text(),
            kind: row.text(),
            status: row.text(),
            error_code: row.next(),
            failure: row.next(),
            prefix: row.next(),
            manifest_blake3: row.next(),
            generation: row.next(),
            remark: row.next(),
        };
        self.rows(sql).into_iter().map(read).collect()
    }

    /// One backup.
    pub fn backup(&self, id: &str) -> Backup {
        self.backups().into_iter().find(|backup| backup.id == id).unwrap()
    }

    /// The age identity of a project, opened here with the master key: a nonce of 12 bytes, then AES-256-GCM.
    fn project_identity(&self, world: &World, project: &str) -> String {
        let found = self.rows(&format!(
            "SELECT identity_sealed FROM project WHERE id = '{project}'"
        ));
        let sealed = found.into_iter().next().unwrap().text();
        let mut sealed = bytes_of(sealed.strip_prefix("\\x").unwrap());
        let text = std::fs::read_to_string(world.data().join("keys/master.key")).unwrap();
        let key = LessSafeKey::new(UnboundKey::new(&AES_256_GCM, &bytes_of(&text[..64])).unwrap());
        let nonce = Nonce::try_assume_unique_for_key(&sealed[..NONCE_LEN]).unwrap();
        let place = Aad::from(format!("project.identity:{project}"));
        let plain = key.open_within(nonce, place, &mut sealed, NONCE_LEN..).unwrap();
        String::from_utf8(plain.to_vec()).unwrap()
    }

    /// Id, status, target state and error code of the import task that was begun last.
    pub fn newest_migration(&self) -> (String, String, String, Option<String>) {
        let sql =
            "SELECT id, status, target_state, error_code FROM migration ORDER BY created_at_ms DESC LIMIT 1";
        let mut row = self.rows(sql).pop().unwrap();
        (row.text(), row.text(), row.text(), row.next())
    }

    /// The instance's restores, oldest first.
    pub fn restores(&self, instance: &str) -> Vec<Restore> {
        let sql = format!(
            "SELECT id, ordinal, backup_id, status, error_code, failure, method, target_state, old_generation_id, name, \
             unavailable_us FROM restore WHERE instance_id = '{instance}' ORDER BY ordinal"
        );
        let read = |mut row: Row| Restore {
            id: row.text(),
            ordinal: row.number(),
            backup: row.text(),
            status: row.text(),
            error_code: row.next(),
            failure: row.next(),
            method: row.text(),
            target_state: row.text(),
            old_generation: row.next(),
            name: row.text(),
            unavailable_us: row.next().map(|text| text.parse().unwrap()),
        };
        self.rows(&sql).into_iter().map(read).collect()
    }

    /// What has not come to an end.
    fn unfinished(&self) -> Vec<String> {
        let mut found = Vec::new();
        for (what, sql) in [
            ("jobs", "SELECT count(*) FROM job WHERE state <> 'done'"),
            (
                "backups",
                "SELECT count(*) FROM backup WHERE status IN ('waiting', 'running')",
            ),
            (
                "restores",
                "SELECT count(*) FROM restore WHERE status IN ('waiting', 'running')",
            ),
            (
                "generations",
                "SELECT count(*) FROM generation WHERE state IN ('loading', 'removing')",
            ),
            (
                "instances with more than one retired generation",
                "SELECT count(*) FROM (SELECT 1 FROM generation WHERE state = 'retired' GROUP BY instance_id HAVING count(*) > 1) AS several",
            ),
            (
                "instances neither running nor gone",
                "SELECT count(*) FROM instance WHERE status NOT IN ('running', 'deleted', 'create_failed')",
            ),
        ] {
            let count = self.count(sql);
            if count > 0 {
                found.push(format!("{count} {what}"));
            }
        }
        found
    }
}

/// Waits until everything has come to its end, then compares everything. `label` says where in a failure.
pub fn check(world: &mut World, form: Form, label: &str) {
    settle(world, label);
    let catalogue = Catalogue::open(world);
    check_answered(world, &catalogue, label);
    check_audit(&catalogue, label);
    learn_restores(world, &catalogue, label);
    check_instances(world, &catalogue, label);
    check_machine(world, &catalogue, label);
    check_store(world, &catalogue, label);
    if form == Form::Full {
        prove_backups(world, &catalogue, label);
    }
}

/// What a client was told is accepted has its record.
fn check_answered(world: &World, catalogue: &Catalogue, label: &str) {
    for (table, id) in world.answered() {
        let found = catalogue.count(&format!("SELECT count(*) FROM {table} WHERE id = '{id}'"));
        assert_eq!(found, 1, "{label}: the accepted {table} {id} is lost");
    }
}

/// Nothing in the audit log was changed, and it tells as many calls as there are records that somebody asked for.
fn check_audit(catalogue: &Catalogue, label: &str) {
    let mut told: BTreeMap<(&str, String), i64> = BTreeMap::new();
    let mut before = "cachekeep audit log 1".to_owned();
    let rows = catalogue
        .rows("SELECT number, at_ms, project_id, who, what, subject, digest FROM audit ORDER BY number");
    for (expected, mut row) in (1..).zip(rows) {
        let (number, at): (i64, i64) = (row.number(), row.number());
        let [project, who, what, subject, told_digest] = [(); 5].map(|()| row.text());
        assert_eq!(number, expected, "{label}: the audit log has a gap");
        let link = serde_json::json!([before, number, at, project, who, what, subject]).to_string();
        let computed: String = digest(&SHA256, link.as_bytes())
            .as_ref()
            .iter()
            .map(|byte| format!("{byte:02x}"))
            .collect();
        assert_eq!(
            computed, told_digest,
            "{label}: the audit log is broken at {number}, {what} {subject}"
        );
        before = told_digest;
        let table = match what.trim_end_matches("V1") {
            "CreateInstance" | "CkAttachInstance" => "instance",
            "CopyInstance" | "CkImportBackup" => "backup",
            "RestoreInstance" | "CkRestoreInstance" | "CkUndoRestore" => "restore",
            _ => continue,
        };
        let named = subject
            .split(' ')
            .find_map(|part| part.strip_prefix("instance_id="));
        let instance = named.unwrap_or_default().to_owned();
        *told.entry((table, instance)).or_default() += 1;
    }
    for (table, sql) in [
        ("instance", "SELECT '', count(*) FROM instance"),
        (
            "backup",
            "SELECT instance_id, count(*) FROM backup WHERE kind = 'manual' GROUP BY instance_id",
        ),
        (
            "restore",
            "SELECT instance_id, count(*) FROM restore GROUP BY instance_id",
        ),
    ] {
        for mut row in catalogue.rows(sql) {
            let (instance, records) = (row.text(), row.number());
            let calls = told.get(&(table, instance.clone())).copied().unwrap_or(0);
            assert!(
                records <= calls,
                "{label}: {records} {table} records of {instance:?}, and the audit log tells {calls}"
            );
        }
    }
}

/// Waits until nothing is unfinished.
pub fn settle(world: &mut World, label: &str) {
    let started = Instant::now();
    let catalogue = Catalogue::open(world);
    loop {
        assert!(world.ended().is_none(), "{label}: the service is gone");
        let left = catalogue.unfinished();
        if left.is_empty() {
            return;
        }
        assert!(
            started.elapsed() < SETTLE_MAX,
            "{label}: a minute later there are still {left:?}"
        );
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// Takes the new restore records at their word: what each instance must hold now follows from them.
fn learn_restores(world: &mut World, catalogue: &Catalogue, label: &str) {
    let names: Vec<String> = world.instances.keys().cloned().collect();
    let backups = catalogue.backups();
    for name in names {
        let id = world.id(&name);
        let restores = catalogue.restores(&id);
        for (index, restore) in restores.iter().enumerate() {
            let expected = i64::try_from(index).unwrap() + 1;
            assert_eq!(
                restore.ordinal, expected,
                "{label}: ordinals have a gap: {restore:?}"
            );
            if !world.seen_restores.insert(restore.id.clone()) {
                continue;
            }
            let before = world.instances[&name].digest.clone();
            // A safety backup holds what was there before the restore that took it.
            let remark = Some(format!("before {}", restore.name));
            for safety in backups.iter().filter(|backup| backup.kind == "safety") {
                if safety.instance == id
                    && safety.remark == remark
                    && let Some(before) = &before
                {
                    world.backups.insert(safety.id.clone(), before.clone());
                }
            }
            match restore.status.as_str() {
                "succeeded" => {
                    assert_eq!(restore.target_state, "replaced", "{label}: {restore:?}");
                    assert_eq!(restore.error_code, None, "{label}: {restore:?}");
                    assert_eq!(restore.failure, None, "{label}: {restore:?}");
                    let retired = backups.iter().find(|backup| {
                        backup.generation.is_some() && backup.generation == restore.old_generation
                    });
                    if let (Some(retired), Some(before)) = (retired, before) {
                        world.backups.insert(retired.id.clone(), before);
                    }
                    let now = world.backups.get(&restore.backup).cloned();
                    world.instances.get_mut(&name).unwrap().digest = now;
                }
                "failed" => {
                    let state = restore.target_state.as_str();
                    assert!(
                        matches!(state, "untouched" | "rolled_back"),
                        "{label}: {restore:?}"
                    );
                    assert!(restore.error_code.is_some(), "{label}: {restore:?}");
                }
                other => panic!("{label}: {other} is no end: {restore:?}"),
            }
        }
        let counter = catalogue.count(&format!("SELECT restore_ordinal FROM instance WHERE id = '{id}'"));
        assert_eq!(counter, i64::try_from(restores.len()).unwrap(), "{label}: {name}");
    }
    // What triggers keep beside the records says what the records say.
    let wrong = catalogue.count(
        "SELECT count(*) FROM backup_count WHERE listed <> (SELECT count(*) FROM backup \
         WHERE backup.instance_id = backup_count.instance_id AND status <> 'deleted')",
    );
    assert_eq!(wrong, 0, "{label}: counts of backups");
    let wrong = catalogue.count(
        "SELECT count(*) FROM backup_place AS place JOIN backup ON backup.id = place.backup_id WHERE kept <> \
         CASE WHEN status = 'succeeded' AND (backup.prefix = place.prefix OR (copy_prefix = place.prefix AND copy_at_ms IS NOT NULL)) \
         THEN 1 ELSE 0 END",
    );
    assert_eq!(wrong, 0, "{label}: places that are kept");
}

/// Running, reachable, and holding exactly the data that is expected; for the API as well.
fn check_instances(world: &World, catalogue: &Catalogue, label: &str) {
    let living: BTreeMap<String, String> = catalogue.instances().into_iter().collect();
    for (name, known) in &world.instances {
        let status = living.get(&known.id).map(String::as_str);
        assert_eq!(status, Some("running"), "{label}: {name}");
        let now = world.digest(name);
        if let Some(expected) = &known.digest {
            assert_eq!(
                &now, expected,
                "{label}: {name} holds other data than its records say"
            );
        }
        let shown = world.call("GET", &format!("/v2/{{project}}/instances/{}", known.id), None);
        assert_eq!(shown["status"], "RUNNING", "{label}: {shown}");
        assert_eq!(shown["task"], Value::Null, "{label}: {shown}");
        let listed = world.call(
            "GET",
            &format!("/v2/{{project}}/instances/{}/restores", known.id),
            None,
        );
        let restores = catalogue.restores(&known.id);
        assert_eq!(listed["total_num"], restores.len(), "{label}: {listed}");
    }
}

/// Processes and directories: exactly those of serving and retired generations.
fn check_machine(world: &World, catalogue: &Catalogue, label: &str) {
    let root = world.data().join("instances").canonicalize().unwrap();
    let mut directories = BTreeSet::new();
    let mut serving = BTreeSet::new();
    for (id, status) in catalogue.instances() {
        let generations = catalogue.generations(&id);
        let count = |wanted: &str| generations.iter().filter(|(_, state)| state == wanted).count();
        if status == "create_failed" {
            assert!(generations.is_empty(), "{label}: {generations:?}");
            continue;
        }
        assert_eq!(count("serving"), 1, "{label}: {generations:?}");
        assert!(count("retired") <= 1, "{label}: {generations:?}");
        for (generation, state) in generations {
            let home = root.join(&id).join(&generation);
            if state == "serving" {
                serving.insert(home.clone());
            }
            directories.insert(home);
        }
    }
    let mut homes = BTreeSet::new();
    for (pid, home) in world.engines() {
        assert!(
            directories.contains(&home),
            "{label}: process {pid} lives in {}",
            home.display()
        );
        assert!(
            homes.insert(home.clone()),
            "{label}: two engines in {}",
            home.display()
        );
    }
    assert!(
        serving.is_subset(&homes),
        "{label}: {serving:?} should live, {homes:?} do"
    );
    let mut found = BTreeSet::new();
    for instance in entries(&root) {
        assert!(instance.is_dir(), "{label}: {}", instance.display());
        found.extend(entries(&instance));
    }
    assert_eq!(found, directories, "{label}: directories");
    let left: Vec<_> = entries(&world.data().join("spool"));
    assert!(left.is_empty(), "{label}: the spool holds {left:?}");
}

fn entries(directory: &Path) -> Vec<std::path::PathBuf> {
    std::fs::read_dir(directory)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .collect()
}

/// Every object belongs to a backup that succeeded, and is what its manifest says.
fn check_store(world: &World, catalogue: &Catalogue, label: &str) {
    let objects = check_archives(&world.data().join("store"), catalogue, label);
    assert!(objects.is_empty(), "{label}: objects of no backup: {objects:?}");
}

/// Every backup that succeeded has its objects in this folder, as its manifest says; returns the names of the others.
pub fn check_archives(store: &Path, catalogue: &Catalogue, label: &str) -> BTreeSet<String> {
    let mut objects = BTreeSet::new();
    collect(store, store, &mut objects);
    objects.retain(|name| !name.starts_with("journal/") && !name.starts_with("catalog/"));
    for backup in catalogue.backups() {
        if backup.kind == "generation" || backup.status != "succeeded" {
            continue;
        }
        let prefix = backup.prefix.clone().unwrap();
        let bytes = std::fs::read(store.join(&prefix).join("manifest.json"))
            .unwrap_or_else(|e| panic!("{label}: {backup:?} has no manifest: {e}"));
        assert!(objects.remove(&format!("{prefix}/manifest.json")));
        let digest = blake3::hash(&bytes).to_string();
        assert_eq!(Some(digest), backup.manifest_blake3, "{label}: {backup:?}");
        let signed: Value = serde_json::from_slice(&bytes).unwrap();
        let manifest: Value = serde_json::from_str(signed["manifest"].as_str().unwrap()).unwrap();
        let segments = manifest["segments"].as_array().unwrap();
        let index = manifest["index"]["objects"].as_array();
        for object in segments
            .iter()
            .chain([&manifest["details"]])
            .chain(index.into_iter().flatten())
        {
            let name = format!("{prefix}/{}", object["name"].as_str().unwrap());
            assert!(objects.remove(&name), "{label}: {name} is missing");
            let bytes = std::fs::read(store.join(&name)).unwrap();
            assert_eq!(object["stored_bytes"], bytes.len(), "{label}: {name}");
            assert_eq!(
                object["stored_blake3"],
                blake3::hash(&bytes).to_string(),
                "{label}: {name}"
            );
        }
    }
    objects
}

fn collect(root: &Path, directory: &Path, into: &mut BTreeSet<String>) {
    for path in entries(directory) {
        if path.is_dir() {
            collect(root, &path, into);
        } else {
            into.insert(path.strip_prefix(root).unwrap().to_str().unwrap().to_owned());
        }
    }
}

/// Writes the plain RDB of an archive, by the stock programs and the project's identity alone.
fn decode(world: &World, catalogue: &Catalogue, prefix: &str, to: &Path, label: &str) {
    let project = prefix.split('/').next().unwrap();
    let identity = world.folder().join("identity");
    std::fs::write(&identity, catalogue.project_identity(world, project)).unwrap();
    let script =
        "set -e -o pipefail; for s in shard-0/seg-*; do age -d -i \"$0\" \"$s\" | zstd -dc; done > \"$1\"";
    let output = Command::new("bash")
        .args(["-c", script])
        .args([&identity, to])
        .current_dir(world.data().join("store").join(prefix))
        .output()
        .unwrap();
    std::fs::remove_file(&identity).unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{label}: {prefix}: {said}");
}

/// Decodes every backup that was not yet, lets the stock checker read it and a stock engine load it.
fn prove_backups(world: &mut World, catalogue: &Catalogue, label: &str) {
    for backup in catalogue.backups() {
        if backup.kind == "generation"
            || backup.status != "succeeded"
            || !world.proven.insert(backup.id.clone())
        {
            continue;
        }
        let file = world.folder().join("proof.rdb");
        decode(world, catalogue, backup.prefix.as_deref().unwrap(), &file, label);
        let checked = Command::new("redis-check-rdb").arg(&file).output().unwrap();
        let said = String::from_utf8_lossy(&checked.stdout);
        assert!(checked.status.success(), "{label}: {backup:?}: {said}");
        if let Some(expected) = world.backups.get(&backup.id) {
            let engine = PlainEngine::start_on(&file, &[]).unwrap();
            assert_eq!(
                &engine.digest().unwrap(),
                expected,
                "{label}: {backup:?} holds other data"
            );
        }
        std::fs::remove_file(&file).unwrap();
    }
}
