//! Every form of deployment, each way to be let in, every engine that is here: attached, captured, restored, and judged by the
//! engines' own digests. `docs/attached-matrix.md` says what was found; `CACHEKEEP_WRITE_MATRIX=1` writes it.

use std::collections::BTreeMap;
use std::path::PathBuf;

use serde_json::{Value, json};
use xtask::foreign::{Access, Deployment, Form, Node, PASSWORD, USER};
use xtask::resp::{Connection, Reply};

use crate::attach::make_user;
use crate::service::{Caller, Service};

const DOCUMENT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/attached-matrix.md");
const FETCHED: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../.tools/engines");
/// Set to write the document instead of comparing it, with all engines of `cargo xtask setup engines`.
const WRITE: &str = "CACHEKEEP_WRITE_MATRIX";
const ENGINES: [&str; 5] = ["redis-6.2", "redis-7.0", "redis-8.0", "valkey-8.1", "valkey-9.1"];
const FORMS: [(Form, &str); 3] = [
    (Form::Single, "single"),
    (Form::Watched, "1 + 2 replicas, 3 Sentinels"),
    (Form::Cluster, "3 x 1 cluster"),
];
const ACCESSES: [(Access, &str); 3] = [
    (Access::Password, "default user"),
    (Access::User, "ACL user"),
    (Access::Tls, "TLS, both sides"),
];
const KEYS: u64 = 300;

/// Keys of each plain type on whichever primary takes them.
fn fill(foreign: &Deployment) {
    let primaries = foreign.primaries().unwrap();
    let mut open: Vec<Connection> = primaries.iter().map(|node| node.open().unwrap()).collect();
    for number in 0..KEYS {
        let (key, word) = (format!("key:{number}"), number.to_string());
        let command: Vec<&str> = match number % 6 {
            0 => vec!["SET", &key, &word],
            1 => vec!["HSET", &key, "field", &word, "other", "value"],
            2 => vec!["RPUSH", &key, &word, "b", "c"],
            3 => vec!["SADD", &key, &word, "member"],
            4 => vec!["ZADD", &key, &word, "member", "2", "other"],
            _ => vec!["SET", &key, &word, "EX", "100000"],
        };
        let taken = open
            .iter_mut()
            .any(|node| !matches!(node.call(&command).unwrap(), Reply::Refused(_)));
        assert!(taken, "{key} is taken by nobody");
    }
    foreign.wait_in_sync().unwrap();
}

/// What is attached of a deployment: a node, of Sentinels all.
fn addresses(foreign: &Deployment) -> Vec<String> {
    let named: Vec<&Node> = match foreign.sentinels.as_slice() {
        [] => vec![foreign.nodes.last().unwrap()],
        sentinels => sentinels.iter().collect(),
    };
    named
        .iter()
        .map(|node| format!("127.0.0.1:{}", node.port))
        .collect()
}

fn wish(foreign: &Deployment, access: Access) -> Value {
    let mut wish = json!({"name": "in-the-matrix", "addresses": addresses(foreign)});
    let file = |name: &str| std::fs::read_to_string(foreign.folder().join(name)).unwrap();
    match access {
        Access::Open => {}
        Access::Password => wish["password"] = json!(PASSWORD),
        Access::User => (wish["user"], wish["password"]) = (json!(USER), json!(PASSWORD)),
        Access::Tls => {
            wish["tls"] = json!(true);
            wish["ca"] = json!(file("ca.pem"));
            wish["certificate"] = json!(file("cert.pem"));
            wish["private_key"] = json!(file("key.pem"));
        }
    }
    wish
}

/// Attaches, captures, restores into the managed instance, and says what came of it.
fn pass(service: &Service, caller: &Caller, target: &str, foreign: &Deployment, access: Access) -> String {
    fill(foreign);
    if access == Access::User {
        make_user(service, foreign);
    }
    let made = caller
        .ck("POST", "/attachments", Some(&wish(foreign, access)))
        .expect(200)
        .json();
    let id = made["instance_id"].as_str().unwrap();
    let backup = caller.make_backup(id, "of the matrix");
    let path = format!("/instances/{id}/backups/{backup}");
    let record = caller.ck("GET", &path, None).expect(200).json();
    assert_eq!(record["ext"]["keys"], KEYS, "{record}");
    for node in &foreign.nodes {
        assert_eq!(node.setting("rdbcompression").unwrap(), "yes");
    }
    let wish = json!({"backup_id": backup, "source_instance_id": id});
    let started = caller
        .ck("POST", &format!("/instances/{target}/restores"), Some(&wish))
        .expect(200)
        .json();
    let ended = caller.wait_end(target, "restores", started["restore_id"].as_str().unwrap());
    assert_eq!(ended["status"], "succeed", "{ended}");
    let digest = caller.engine(target).ask(&["DEBUG", "DIGEST"]).unwrap();
    assert_eq!(digest.text().unwrap(), foreign.digest().unwrap());
    caller
        .ck("DELETE", &format!("/attachments/{id}"), None)
        .expect(204);
    let from = record["ext"]["captured_from"]
        .as_str()
        .unwrap_or("replicas or primaries, one for each shard");
    format!(
        "equal, from {}",
        from.split(' ').next().unwrap().replace("replicas", "each shard")
    )
}

fn program(engine: &str) -> Option<PathBuf> {
    let fetched = PathBuf::from(FETCHED).join(engine);
    match engine {
        "redis-7.0" => Some(PathBuf::from("redis-server")),
        _ => fetched.is_file().then(|| fetched.canonicalize().unwrap()),
    }
}

#[test]
fn every_form_and_way_in_is_attached_captured_and_restored_with_equal_data() {
    let is_written = std::env::var_os(WRITE).is_some();
    let mut rows = BTreeMap::new();
    for engine in ENGINES {
        let Some(program) =
            program(engine).filter(|_| is_written || crate::attach::long() || engine == "redis-7.0")
        else {
            continue;
        };
        // That of the machine is what a service finds by itself.
        let named = program.display().to_string();
        let variables = [("CACHEKEEP_REDIS_SERVER", named.as_str())];
        let variables = if engine == "redis-7.0" {
            &[][..]
        } else {
            &variables
        };
        let service = Service::start_with(&["--attach-allow", "127.0.0.1"], variables);
        let caller = service.caller();
        let target = caller.make_instance("managed");
        for (form, shown) in FORMS {
            for (access, way) in ACCESSES {
                let settings = match engine {
                    "redis-6.2" => &[][..],
                    _ => &[("enable-debug-command", "local")],
                };
                // One was built without TLS.
                let outcome = match Deployment::start(&program, form, access, settings) {
                    Err(why) if access == Access::Tls && why.to_string().contains("tls-port") => {
                        "this build has no TLS".to_owned()
                    }
                    started => pass(&service, &caller, &target, &started.unwrap(), access),
                };
                println!("{engine}, {shown}, {way}: {outcome}");
                rows.insert((engine.replace('-', " "), shown, way), outcome);
            }
        }
    }
    let lines: Vec<String> = rows
        .iter()
        .map(|((engine, form, way), outcome)| format!("| {engine} | {form} | {way} | {outcome} |"))
        .collect();
    if is_written {
        let text = format!("{HEAD}{}\n", lines.join("\n"));
        std::fs::write(DOCUMENT, text).unwrap();
        return;
    }
    let document = std::fs::read_to_string(DOCUMENT).unwrap();
    for line in lines {
        assert!(
            document.lines().any(|known| known == line),
            "not in the document: {line}"
        );
    }
}

const HEAD: &str = "# Which deployments of others are attached and captured\n\n\
    Made by `crates/server/tests/it/attach_matrix.rs`: 300 keys of each plain type in a deployment that cachekeep does not run, attached by one \
    node or its Sentinels, captured, and restored into a single instance of the same engine. *equal*: the engines' own `DEBUG DIGEST`, all \
    primaries together, is that of the restored instance. The ACL user is the one that `cachekeep instance attach --print-acl` prints. Each run tries \
    redis 7.0; `CACHEKEEP_WRITE_MATRIX=1` tries the engines of `cargo xtask setup engines`, and writes this.\n\n\
    | engine | deployment | let in as | |\n|---|---|---|---|\n";
