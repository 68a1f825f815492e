//! Restores into another layout and another instance: every pair, judged by the engines' own digests, and what is refused.

use std::fmt::Write;
use std::path::Path;

use serde_json::{Value, json};
use xtask::fill::{self, Options};
use xtask::object_server::ObjectServer;
use xtask::resp::{Connection, Reply, Target};

use crate::cluster::{Client, ask, ports, says};
use crate::cluster_restore::{restore, undo};
use crate::on_files;
use crate::service::{Caller, Credential, Service};
use crate::storage::{self, BUCKET};

const DOCUMENT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/layout-matrix.md");
/// Set to write the document instead of comparing it.
const WRITE: &str = "CACHEKEEP_WRITE_MATRIX";

const SINGLE: &str = "redis.single.xu1.large.4";
const WATCHED: &str = "redis.ha.xu1.large.r3.4";
const CLUSTER: &str = "redis.cluster.xu1.large.r1.4";
const CLUSTER_OF_TWO: &str = "redis.cluster.xu1.large.r2.4";

/// An instance that runs, and what it holds.
struct Held {
    engine: String,
    layout: &'static str,
    id: String,
    ports: Vec<u16>,
    backup: String,
    captured: String,
}

impl std::fmt::Display for Held {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} of {}", self.layout, self.engine)
    }
}

impl Held {
    fn new(caller: &Caller, layout: &'static str, spec: &str, shards: u16) -> Self {
        Self::of_engine(caller, "", layout, spec, shards)
    }

    /// Of the engine of that name, like `valkey-8.1`; without one of the service's first.
    fn of_engine(caller: &Caller, engine: &str, layout: &'static str, spec: &str, shards: u16) -> Self {
        let mut extra = json!({"spec_param": {"sharding_count": shards}});
        if !engine.is_empty() {
            extra["engine_version"] = json!(engine);
        }
        let name = format!("of-{}", spec.replace('.', "-"));
        let id = ask(caller, &name, spec, &extra);
        let shown = caller.wait_idle(&id);
        let ports = match shards {
            1 => vec![u16::try_from(shown["port"].as_u64().unwrap()).unwrap()],
            _ => ports(&shown),
        };
        Self {
            engine: self::engine(ports[0]),
            layout,
            id,
            ports,
            backup: String::new(),
            captured: String::new(),
        }
    }

    /// Marks the data as this instance's, and backs it up.
    fn capture(&mut self, caller: &Caller) {
        let mark = format!("marked by {}", self.layout);
        Client::new(&self.ports).call(&["SET", "mark", &mark]);
        self.backup = caller.make_backup(&self.id, &mark);
        self.captured = digest(&self.ports);
    }
}

fn primaries(ports: &[u16]) -> Vec<u16> {
    let is_primary = |port: &&u16| says(**port, &["INFO", "replication"]).contains("role:master");
    ports.iter().filter(is_primary).copied().collect()
}

/// `DEBUG DIGEST` of all primaries together: the digest of an engine is a constant and those of its keys, xored; so those of
/// an odd number of engines with keys, xored, are the digest of one with all of their keys.
pub fn digest(ports: &[u16]) -> String {
    let all = primaries(ports);
    assert_eq!(all.len() % 2, 1);
    sum(all.into_iter().map(|port| says(port, &["DEBUG", "DIGEST"])))
}

fn sum(digests: impl Iterator<Item = String>) -> String {
    let mut sum = [0; 20];
    for told in digests {
        assert_ne!(told, "0".repeat(40), "a shard without keys");
        for (at, byte) in sum.iter_mut().enumerate() {
            *byte ^= u8::from_str_radix(&told[2 * at..2 * at + 2], 16).unwrap();
        }
    }
    sum.iter().fold(String::new(), |mut text, byte| {
        write!(text, "{byte:02x}").unwrap();
        text
    })
}

fn check_functions(ports: &[u16]) {
    for port in ports {
        let code = fill::function_code(&Target::local(*port, None)).unwrap();
        assert_eq!(code.len(), 2, "{port}");
    }
}

fn fill_single(held: &Held, keys: u64, dbs: u64) {
    let options = Options {
        keys,
        dbs,
        functions: has_functions(&held.engine),
        idle_consumers: held.engine != "redis 6.0",
        ..Options::default()
    };
    fill::fill(&Target::local(held.ports[0], None), &options).unwrap();
}

/// The engines of the table, besides that of the machine: those that `cargo xtask setup engines` has fetched.
const FETCHED: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../.tools/engines");
const ENGINES: [&str; 6] = [
    "redis-6.0",
    "redis-6.2",
    "redis-7.0",
    "redis-8.0",
    "valkey-8.1",
    "valkey-9.1",
];

fn has_functions(engine: &str) -> bool {
    !engine.starts_with("redis 6.")
}

/// One instance of each layout that the engine can be, of the same engine.
fn one_of_each(caller: &Caller, engine: &str) -> Vec<Held> {
    let count = match engine {
        "redis-6.0" => 1,
        "redis-6.2" => 2,
        _ => 4,
    };
    let all = [
        ("single", SINGLE, 1),
        ("primary + 2 replicas", WATCHED, 1),
        ("3 shards", CLUSTER, 3),
        ("5 shards x 1 replica", CLUSTER_OF_TWO, 5),
    ];
    let held = |(layout, spec, shards)| Held::of_engine(caller, engine, layout, spec, shards);
    all.into_iter().take(count).map(held).collect()
}

/// Fills an instance of each layout, and backs each up.
fn captured(caller: &Caller, engine: &str) -> Vec<Held> {
    let mut all = one_of_each(caller, engine);
    fill_single(&all[0], 3000, 1);
    all[0].capture(caller);
    // The others get every type of data, and both libraries, by restores themselves.
    for at in 1..all.len() {
        let wish = json!({"backup_id": all[0].backup, "source_instance_id": all[0].id});
        let done = restore(caller, &all[at].id, &wish);
        assert_eq!(done["status"], "succeed", "{done}");
        assert_eq!(digest(&all[at].ports), all[0].captured);
        all[at].capture(caller);
        assert_ne!(all[at].captured, all[0].captured);
    }
    all
}

/// Restores each backup into each target and undoes that; the lines of the table.
fn restore_each_into_each(caller: &Caller, sources: &[Held], targets: &[Held]) -> Vec<String> {
    let mut lines = Vec::new();
    for source in sources {
        for target in targets {
            let before = digest(&target.ports);
            let wish = json!({"backup_id": source.backup, "source_instance_id": source.id, "verify": "full"});
            let done = restore(caller, &target.id, &wish);
            let which = format!("{source} to {target}");
            assert_eq!(
                (&done["status"], &done["ext"]["target_state"]),
                (&json!("succeed"), &json!("replaced")),
                "{which}: {done}",
            );
            assert_eq!(
                (
                    &done["ext"]["source_instance_id"],
                    &done["ext"]["source_layout"],
                    &done["ext"]["layout"]
                ),
                (&json!(source.id), &json!(source.layout), &json!(target.layout))
            );
            let expected = match source.engine == target.engine {
                true => source.captured.clone(),
                false => {
                    let program = Path::new(FETCHED).join(target.engine.replace(' ', "-"));
                    sum(on_files::digests(caller, &source.id, &source.backup, &program).into_iter())
                }
            };
            assert_eq!(digest(&target.ports), expected, "{which}");
            if has_functions(&source.engine) {
                check_functions(&primaries(&target.ports));
            }
            let mark = Client::new(&target.ports).call(&["GET", "mark"]);
            assert_eq!(mark.text(), Some(format!("marked by {}", source.layout).as_str()));
            // It stays with the engine that it was made with.
            assert_eq!(engine(target.ports[0]), target.engine);
            // What was there before is kept, whatever the layout of the backup.
            let undone = undo(caller, &target.id, &done);
            assert_eq!(undone["status"], "succeed", "{undone}");
            assert_eq!(digest(&target.ports), before);
            lines.push(line(source, target, "equal"));
        }
    }
    lines
}

fn line(source: &Held, target: &Held, how: &str) -> String {
    format!(
        "| {} | {} | {} | {} | {how} |",
        source.engine, source.layout, target.engine, target.layout
    )
}

#[test]
fn every_layout_is_restored_into_every_other_with_data_that_is_equal_by_the_engines_own_digests() {
    let service = Service::start();
    let caller = service.caller();
    let all = captured(&caller, "");
    compare_with_document(&restore_each_into_each(&caller, &all, &all));
}

/// `CACHEKEEP_TEST_LONG=1`: 20 minutes.
#[test]
fn every_engine_restores_the_backups_of_those_whose_files_it_loads_and_refuses_the_others_with_the_reason() {
    let is_there = |engine: &&&str| Path::new(FETCHED).join(engine).is_file();
    let engines: Vec<&str> = ENGINES.iter().filter(is_there).copied().collect();
    if !std::env::var("CACHEKEEP_TEST_LONG").is_ok_and(|long| long == "1") {
        // Where only the machine's own engine is there, there is nothing to do.
        let other = engines.iter().find(|engine| engine.starts_with("valkey"));
        return other.map_or((), |other| one_restore_into_another_engine(other));
    }
    assert_eq!(engines, ENGINES, "cargo xtask setup engines");
    let only = std::env::var("CACHEKEEP_TEST_SOURCE").ok();
    for from in engines
        .iter()
        .filter(|from| only.as_deref().is_none_or(|only| only == **from))
    {
        let service = Service::start_with(&["--engine", FETCHED], &[]);
        let caller = service.caller();
        let sources = captured(&caller, from);
        let mut lines = restore_each_into_each(&caller, &sources, &sources);
        for source in &sources {
            caller
                .v2("DELETE", &format!("/instances/{}", source.id), None)
                .expect(204);
        }
        for to in engines.iter().filter(|to| *to != from) {
            let targets = one_of_each(&caller, to);
            match refusal(&caller, &sources[0], &targets[0]) {
                None => {
                    for target in &targets {
                        Client::new(&target.ports).fill(200);
                    }
                    lines.extend(restore_each_into_each(&caller, &sources, &targets));
                }
                Some(_) => {
                    for source in &sources {
                        for target in &targets {
                            let why = refusal(&caller, source, target).unwrap();
                            lines.push(line(source, target, &format!("refused: {why}")));
                        }
                    }
                }
            }
            for target in &targets {
                caller
                    .v2("DELETE", &format!("/instances/{}", target.id), None)
                    .expect(204);
            }
        }
        compare_with_document(&lines);
    }
}

/// Why the plan of this restore is refused for the engine's sake; `None`: it is not.
fn refusal(caller: &Caller, source: &Held, target: &Held) -> Option<String> {
    let wish = json!({"backup_id": source.backup, "source_instance_id": source.id});
    let answer = caller.ck(
        "POST",
        &format!("/instances/{}/restores/plan", target.id),
        Some(&wish),
    );
    let text = answer.json()["error_msg"].as_str()?.to_owned();
    answer.refused("400 DCS.4087");
    // The restore itself is refused alike, and leaves no record.
    let path = format!("/instances/{}/restores", target.id);
    caller.ck("POST", &path, Some(&wish)).refused("400 DCS.4087");
    assert_eq!(caller.get(&path).expect(200).json()["total_num"], json!(0));
    let why = text.split_once("does not load this backup: ")?.1;
    Some(why.split_once(". Restore it into")?.0.to_owned())
}

/// A cluster's backup into a primary with replicas of the other engine, there and back; what of that is not loaded is refused.
fn one_restore_into_another_engine(other: &str) {
    let service = Service::start_with(&["--engine", FETCHED], &[]);
    let caller = service.caller();
    let mut source = Held::new(&caller, "3 shards", CLUSTER, 3);
    let mut target = Held::of_engine(&caller, other, "primary + 2 replicas", WATCHED, 1);
    Client::new(&source.ports).fill(500);
    Client::new(&target.ports).fill(50);
    source.capture(&caller);
    target.capture(&caller);
    let wish = json!({"backup_id": source.backup, "source_instance_id": source.id, "verify": "full"});
    let done = restore(&caller, &target.id, &wish);
    assert_eq!(done["status"], "succeed", "{done}");
    assert_eq!(digest(&target.ports), source.captured);
    assert_eq!(engine(target.ports[0]), target.engine);
    let undone = undo(&caller, &target.id, &done);
    assert_eq!(undone["status"], "succeed", "{undone}");
    assert_eq!(digest(&target.ports), target.captured);
    assert!(
        refusal(&caller, &target, &source)
            .unwrap()
            .contains("up to version 10")
    );
}

/// `redis 7.0`, `valkey 8.1`.
fn engine(port: u16) -> String {
    let told = says(port, &["INFO", "server"]);
    let field = |name: &str| told.lines().find_map(|line| line.strip_prefix(name));
    let (family, version) = match field("valkey_version:") {
        Some(version) => ("valkey", version),
        None => ("redis", field("redis_version:").unwrap()),
    };
    format!("{family} {}", version.rsplit_once('.').unwrap().0)
}

/// Source, target and layouts: all but how it went.
fn subject(line: &str) -> &str {
    let end = line.match_indices(" | ").nth(3).map_or(line.len(), |(at, _)| at);
    &line[..end]
}

/// The lines of other engines stay.
fn compare_with_document(lines: &[String]) {
    let written = std::fs::read_to_string(DOCUMENT).unwrap_or_default();
    if std::env::var_os(WRITE).is_some() {
        let is_stale = |old: &&str| lines.iter().any(|new| subject(new) == subject(old));
        let of_others = written
            .lines()
            .filter(|line| line.matches(" | ").count() == 4 && !line.starts_with("| backup by"))
            .filter(|line| !is_stale(line));
        let mut all: Vec<&str> = of_others.chain(lines.iter().map(String::as_str)).collect();
        all.sort_unstable();
        let head = "# Which engine's and layout's backup another one holds\n\n\
            Made by `crates/server/tests/it/layouts.rs`: data of every type, with expiry times and two libraries of functions, backed up from\n\
            each layout and restored into an instance of each, of the same engine and of others. *equal*: the engines' own `DEBUG DIGEST`,\n\
            all primaries together, is that of the source when it was captured; then the restore was undone, and the digest was the one from\n\
            before. *refused*: before anything was done, with this reason. `CACHEKEEP_WRITE_MATRIX=1` writes the lines here,\n\
            `CACHEKEEP_TEST_LONG=1` those of all engines (`cargo xtask setup engines`).\n\n\
            | backup by | of | restored by | into | |\n|---|---|---|---|---|\n";
        std::fs::write(DOCUMENT, format!("{head}{}\n", all.join("\n"))).unwrap();
    }
    let written = std::fs::read_to_string(DOCUMENT).unwrap_or_default();
    for line in lines {
        assert!(
            written.contains(line),
            "docs/layout-matrix.md is stale: run this test with {WRITE}=1: {line}"
        );
    }
}

#[test]
fn what_another_layout_or_instance_cannot_hold_is_refused_before_anything_is_done() {
    let service = Service::start();
    let caller = service.caller();
    let mut single = Held::new(&caller, "single", SINGLE, 1);
    let cluster = Held::new(&caller, "3 shards", CLUSTER, 3);
    fill_single(&single, 300, 2);
    single.capture(&caller);
    let refused = |target: &str, wish: &Value, code: &str, why: &str| {
        let answer = caller.ck("POST", &format!("/instances/{target}/restores"), Some(wish));
        let text = answer.json()["error_msg"].as_str().unwrap_or_default().to_owned();
        assert!(text.contains(why), "{text}");
        answer.refused(code);
    };
    let of = |source: &str| json!({"backup_id": single.backup, "source_instance_id": source});
    refused(&cluster.id, &of(&single.id), "400 DCS.4087", "keys in database 1");
    refused(
        &cluster.id,
        &json!({"backup_id": single.backup}),
        "400 DCS.4031",
        "does not exist",
    );
    refused(
        &cluster.id,
        &of("00000000-0000-4000-8000-000000000000"),
        "400 DCS.4063",
        "source_instance_id",
    );
    refused(&cluster.id, &of("nonsense"), "400 DCS.4063", "source_instance_id");
    // Of another project: as if it were not there.
    let victim = service.second_project("victim");
    let owner = service.caller_with(&victim.project, Credential::Key(victim.key.clone()));
    let theirs = owner.make_instance("theirs");
    let backup = owner.make_backup(&theirs, "theirs");
    let wish = json!({"backup_id": backup, "source_instance_id": theirs});
    refused(&cluster.id, &wish, "400 DCS.4063", "source_instance_id");
    let small = caller.make_instance("small");
    let mut engine = Connection::open(&Target::local(single.ports[0], None)).unwrap();
    engine.ask(&["FLUSHALL"]).unwrap();
    engine
        .ask(&["DEBUG", "POPULATE", "200", "big", "1000000"])
        .unwrap();
    let large = caller.make_backup(&single.id, "large");
    let wish = json!({"backup_id": large, "source_instance_id": single.id});
    refused(&small, &wish, "400 DCS.4036", "into a larger one");
    // A kept generation is of its own instance.
    let done = restore(&caller, &single.id, &json!({"backup_id": single.backup}));
    assert_eq!(done["status"], "succeed", "{done}");
    let backups = caller
        .get(&format!("/instances/{}/backups?limit=10", single.id))
        .expect(200)
        .json();
    let kept = backups["backup_record_response"].as_array().unwrap().iter();
    let kept = kept
        .clone()
        .find(|row| row["ext"]["kind"] == "generation")
        .unwrap();
    let wish = json!({"backup_id": kept["backup_id"], "source_instance_id": single.id});
    refused(&cluster.id, &wish, "400 DCS.4087", "kept generation");
    for target in [&cluster.id, &small] {
        let records = caller
            .get(&format!("/instances/{target}/restores"))
            .expect(200)
            .json();
        assert_eq!(records["total_num"], json!(0), "{records}");
    }
}

#[test]
fn a_backup_that_is_not_whole_is_not_cut_and_one_of_a_deleted_instance_is() {
    let service = Service::start();
    let caller = service.caller();
    let mut single = Held::new(&caller, "single", SINGLE, 1);
    let cluster = Held::new(&caller, "3 shards", CLUSTER, 3);
    fill_single(&single, 3000, 1);
    // Longer than a segment: it is written from several.
    let mut engine = Connection::open(&Target::local(single.ports[0], None)).unwrap();
    engine
        .ask(&["DEBUG", "POPULATE", "2", "long", "30000000"])
        .unwrap();
    single.capture(&caller);
    caller
        .v2("DELETE", &format!("/instances/{}", single.id), None)
        .expect(204);
    Client::new(&cluster.ports).fill(200);
    let before = digest(&cluster.ports);
    let wish = json!({"backup_id": single.backup, "source_instance_id": single.id});

    let output = std::process::Command::new("find")
        .arg(service.data().join("store"))
        .args(["-path", &format!("*{}*/seg-000000*", single.backup)])
        .output()
        .unwrap();
    let segment = String::from_utf8(output.stdout).unwrap().trim().to_owned();
    let mut bytes = std::fs::read(&segment).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    std::fs::write(&segment, &bytes).unwrap();
    let ended = restore(&caller, &cluster.id, &wish);
    assert_eq!(
        (&ended["status"], &ended["ext"]["target_state"]),
        (&json!("failed"), &json!("untouched")),
        "{ended}"
    );
    assert_eq!(digest(&cluster.ports), before);
    bytes[middle] ^= 1;
    std::fs::write(&segment, &bytes).unwrap();
    let ended = restore(&caller, &cluster.id, &wish);
    assert_eq!(ended["status"], "succeed", "{ended}");
    assert_eq!(digest(&cluster.ports), single.captured);
}

#[test]
fn a_backup_in_a_remote_store_and_one_restored_in_place_are_cut_too() {
    let server = ObjectServer::start(BUCKET).unwrap_or_else(|stop| panic!("{stop}"));
    let hardly_any = [("CACHEKEEP_MEMORY_AVAILABLE", "1048576")];
    for (is_remote, variables) in [(true, &[][..]), (false, &hardly_any[..])] {
        let service = Service::start_with(&["--store-patience", "3"], variables);
        let caller = service.caller();
        if is_remote {
            let added = storage::add(&service, "offsite", &format!("http://{}", server.address()), &[]);
            assert!(added.status.success(), "{added:?}");
            service.run_json(&["storage", "default", "offsite"]);
        }
        let mut single = Held::new(&caller, "single", SINGLE, 1);
        let mut cluster = Held::new(&caller, "3 shards", CLUSTER, 3);
        Client::new(&cluster.ports).fill(500);
        cluster.capture(&caller);
        fill_single(&single, 500, 1);
        single.capture(&caller);
        let wish = |of: &Held| json!({"backup_id": of.backup, "source_instance_id": of.id, "verify": "full", "allow_downtime": true});
        let done = restore(&caller, &single.id, &wish(&cluster));
        let method = if is_remote { "side_load" } else { "in_place" };
        assert_eq!(
            (&done["status"], &done["ext"]["method"]),
            (&json!("succeed"), &json!(method)),
            "{done}"
        );
        assert_eq!(digest(&single.ports), cluster.captured);
        let undone = undo(&caller, &single.id, &done);
        assert_eq!(undone["status"], "succeed", "{undone}");
        assert_eq!(digest(&single.ports), single.captured);
        if is_remote {
            let done = restore(&caller, &cluster.id, &wish(&single));
            assert_eq!(done["status"], "succeed", "{done}");
            assert_eq!(digest(&cluster.ports), single.captured);
        } else {
            let path = format!("/instances/{}/restores", cluster.id);
            // Two generations of a cluster must fit.
            caller
                .ck("POST", &path, Some(&wish(&single)))
                .refused("400 DCS.4086");
        }
    }
}

#[test]
fn the_command_line_restores_into_another_and_into_a_new_instance_and_leaves_none_where_that_is_refused() {
    let service = Service::start();
    let caller = service.caller();
    let source = caller.make_instance("source");
    let other = caller.make_instance("other");
    let mut engine = caller.engine(&source);
    engine.ask(&["SET", "key", "value"]).unwrap();
    caller.make_backup(&source, "one key");
    let create = ["restore", "create", "source", "--backup", "latest", "--wait"];
    let output = service.run(&[&create[..], &["--into", "other"]].concat());
    assert!(output.status.success(), "{output:?}");
    let got = caller.engine(&other).ask(&["GET", "key"]).unwrap();
    assert_eq!(got.text(), Some("value"));
    let records = |id: &str| {
        caller
            .get(&format!("/instances/{id}/restores"))
            .expect(200)
            .json()
    };
    assert_eq!(records(&other)["total_num"], json!(1));
    assert_eq!(records(&source)["total_num"], json!(0));

    let new = ["--new", "grown", "--shards", "3", "--no-password"];
    let output = service.run(&[&create[..], &new].concat());
    assert!(output.status.success(), "{output:?}");
    let shown = service.run_json(&["instance", "show", "grown"]);
    let mut client = Client::new(&ports(&shown));
    assert_eq!(client.call(&["GET", "key"]).text(), Some("value"));
    let record = service.run_json(&["restore", "show", "grown", "latest"]);
    assert_eq!(
        (
            &record["ext"]["source_instance_name"],
            &record["ext"]["source_layout"],
            &record["ext"]["layout"]
        ),
        (&json!("source"), &json!("single"), &json!("3 shards"))
    );

    engine.ask(&["SELECT", "7"]).unwrap();
    engine.ask(&["SET", "elsewhere", "value"]).unwrap();
    caller.make_backup(&source, "two databases");
    let new = ["--new", "refused", "--shards", "3"];
    let output = service.run(&[&create[..], &new].concat());
    let told = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(1), "{told}");
    assert!(
        told.contains("keys in database 7") && told.contains("refused is deleted again"),
        "{told}"
    );
    let listed = service.run_json(&["instance", "list"]);
    assert_eq!(listed["instance_num"], json!(3), "{listed}");
    let output = service.run(&[
        "restore", "create", "source", "--backup", "latest", "--shards", "3",
    ]);
    assert_eq!(output.status.code(), Some(2), "--shards is of a new instance");
}

#[test]
fn a_plan_tells_what_a_restore_does_and_its_id_asks_for_exactly_that() {
    let service = Service::start();
    let caller = service.caller();
    let mut single = Held::new(&caller, "single", SINGLE, 1);
    let cluster = Held::new(&caller, "3 shards", CLUSTER, 3);
    fill_single(&single, 3000, 1);
    single.capture(&caller);
    let plan_of = |target: &Held, wish: &Value| {
        let path = format!("/instances/{}/restores/plan", target.id);
        caller.ck("POST", &path, Some(wish))
    };
    let with_plan = |wish: &Value, plan: &Value| {
        let mut planned = wish.clone();
        planned["plan_id"] = plan["plan_id"].clone();
        planned
    };
    let wish = json!({"backup_id": single.backup, "source_instance_id": single.id, "verify": "full"});
    let plan = plan_of(&cluster, &wish).expect(200).json();
    assert_eq!(
        (
            &plan["method"],
            &plan["is_cut"],
            &plan["source_layout"],
            &plan["layout"]
        ),
        (
            &json!("side_load"),
            &json!(true),
            &json!("single"),
            &json!("3 shards")
        ),
        "{plan}"
    );
    assert_eq!(
        (&plan["gaps"], &plan["measured_restores"], &plan["ends_undo_of"]),
        (&json!([]), &json!(0), &Value::Null)
    );
    let keys = |plan: &Value| -> Vec<u64> {
        let shards = plan["shards"].as_array().unwrap().iter();
        shards.map(|shard| shard["keys"].as_u64().unwrap()).collect()
    };
    let total = plan["keys"].as_u64().unwrap();
    let planned = keys(&plan);
    assert_eq!(planned.len(), 3);
    assert!(planned.iter().sum::<u64>().abs_diff(total) <= 3, "{plan}");
    assert_eq!(plan["shards"][0]["is_counted"], false);
    assert_eq!(
        plan_of(&cluster, &wish).expect(200).json()["plan_id"],
        plan["plan_id"]
    );

    // Another verification is another restore.
    let mut other = with_plan(&wish, &plan);
    other["verify"] = json!("sample");
    caller
        .ck(
            "POST",
            &format!("/instances/{}/restores", cluster.id),
            Some(&other),
        )
        .refused("400 DCS.4026");
    let done = restore(&caller, &cluster.id, &with_plan(&wish, &plan));
    assert_eq!(done["status"], "succeed", "{done}");
    assert_eq!(digest(&cluster.ports), single.captured);
    // What it restored into is another generation now.
    caller
        .ck(
            "POST",
            &format!("/instances/{}/restores", cluster.id),
            Some(&with_plan(&wish, &plan)),
        )
        .refused("400 DCS.4026");
    let again = plan_of(&cluster, &wish).expect(200).json();
    assert_eq!(again["measured_restores"], json!(1));
    assert_eq!(again["ends_undo_of"], done["restore_id"]);

    // Its own backup is counted by shard, and needs no cutting.
    let backup = caller.make_backup(&cluster.id, "three shards");
    let own = plan_of(&cluster, &json!({"backup_id": backup}))
        .expect(200)
        .json();
    assert_eq!(
        (&own["is_cut"], &own["shards"][0]["is_counted"]),
        (&json!(false), &json!(true))
    );
    let sizes: Vec<u64> = primaries(&cluster.ports)
        .iter()
        .map(|port| {
            let mut connection = Connection::open(&Target::local(*port, None)).unwrap();
            match connection.ask(&["DBSIZE"]).unwrap() {
                Reply::Number(count) => u64::try_from(count).unwrap(),
                other => panic!("{other:?}"),
            }
        })
        .collect();
    assert_eq!(keys(&own), sizes);
    let back = plan_of(
        &single,
        &json!({"backup_id": backup, "source_instance_id": cluster.id}),
    );
    let back = back.expect(200).json();
    assert_eq!((&back["is_cut"], keys(&back)), (&json!(true), vec![total]));

    // A kept generation is switched back to.
    let kept = caller
        .get(&format!("/instances/{}/backups?limit=10", cluster.id))
        .expect(200)
        .json();
    let kept = kept["backup_record_response"].as_array().unwrap().iter();
    let kept = kept
        .clone()
        .find(|row| row["ext"]["kind"] == "generation")
        .unwrap();
    let plan = plan_of(&cluster, &json!({"backup_id": kept["backup_id"]}))
        .expect(200)
        .json();
    assert_eq!(
        (&plan["method"], &plan["shards"], &plan["ends_undo_of"]),
        (&json!("switch_back"), &json!([]), &Value::Null)
    );

    // What would be refused is not planned.
    let mut engine = Connection::open(&Target::local(single.ports[0], None)).unwrap();
    engine.ask(&["SELECT", "3"]).unwrap();
    engine.ask(&["SET", "elsewhere", "value"]).unwrap();
    let two = caller.make_backup(&single.id, "two databases");
    let wish = json!({"backup_id": two, "source_instance_id": single.id});
    plan_of(&cluster, &wish).refused("400 DCS.4087");

    let name = |held: &Held| {
        let shown = caller.get(&format!("/instances/{}", held.id)).expect(200).json();
        shown["name"].as_str().unwrap().to_owned()
    };
    let words = [
        "restore",
        "plan",
        &name(&single),
        "--backup",
        &single.backup,
        "--into",
        &name(&cluster),
    ];
    let output = service.run(&words);
    let told = String::from_utf8(output.stdout).unwrap();
    for part in [
        "plan_id: ",
        "into: 3 shards",
        "keys cut anew",
        "MB needed",
        "measured on 1 restores",
        "is_counted",
    ] {
        assert!(told.contains(part), "{part}: {told}");
    }
    let id = told
        .lines()
        .find_map(|line| line.strip_prefix("plan_id: "))
        .unwrap();
    let mut create = words.to_vec();
    create[1] = "create";
    create.extend(["--plan", id, "--wait"]);
    let output = service.run(&create);
    assert!(output.status.success(), "{output:?}");
    assert_eq!(
        service.run(&create).status.code(),
        Some(1),
        "the plan is of before"
    );
}
