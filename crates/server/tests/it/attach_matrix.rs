//! Every form of deployment, each way to be let in, every engine that is here: attached, captured, restored into each other, and
//! judged by the engines' own digests. `docs/attach-matrix.md` says what was found; `CACHEKEEP_WRITE_MATRIX=1` writes it.

use std::collections::BTreeMap;
use std::path::PathBuf;

use serde_json::{Value, json};
use xtask::foreign::{Access, Deployment, Form, Node, PASSWORD, USER};
use xtask::resp::{Connection, Reply};

use crate::attach::{attach, make_user};
use crate::replay::is_long;
use crate::service::{Caller, Service};

const DOCUMENT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/attach-matrix.md");
const FETCHED: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../.tools/engines");
/// Set to write the document instead of comparing it: with `CACHEKEEP_TEST_LONG=1`, or most of it is lost.
const WRITE: &str = "CACHEKEEP_WRITE_MATRIX";
const ENGINES: [&str; 3] = ["redis-7.0", "redis-6.2", "valkey-8.1"];
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
/// Of all kinds together.
const KEYS: u64 = 300;

/// Keys of each plain type and a large one in database 0, on whichever primary takes them; `seed` tells the data of one from that of
/// another.
pub fn fill(foreign: &Deployment, seed: usize) {
    let primaries = foreign.primaries().unwrap();
    let mut open: Vec<Connection> = primaries.iter().map(|node| node.open().unwrap()).collect();
    let mut take = |key: &str, command: &[&str]| {
        let taken = open
            .iter_mut()
            .any(|node| !matches!(node.call(command).unwrap(), Reply::Refused(_)));
        assert!(taken, "{key} is taken by nobody");
    };
    for number in 0..KEYS {
        let (key, word) = (format!("key:{seed}:{number}"), format!("{seed} {number}"));
        let (score, id) = (number.to_string(), format!("{}-1", number + 1));
        let command: Vec<&str> = match number % 7 {
            0 => vec!["SET", &key, &word],
            1 => vec!["HSET", &key, "field", &word, "other", "value"],
            2 => vec!["RPUSH", &key, &word, "b", "c"],
            3 => vec!["SADD", &key, &word, "member"],
            4 => vec!["ZADD", &key, &score, &word, "2", "other"],
            5 => vec!["XADD", &key, &id, "field", &word, "other", "value"],
            _ => vec!["SET", &key, &word, "EX", "100000"],
        };
        take(&key, &command);
    }
    let key = format!("key:{seed}:large");
    let value = format!("{seed:010}").repeat(100_000);
    take(&key, &["SET", &key, &value]);
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

fn wish(foreign: &Deployment, access: Access, name: &str) -> Value {
    let mut wish = json!({"name": name, "addresses": addresses(foreign)});
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

/// A deployment that is attached and captured.
struct Captured {
    foreign: Deployment,
    engine: &'static str,
    form: &'static str,
    id: String,
    backup: String,
    digest: String,
}

fn capture(
    service: &Service,
    caller: &Caller,
    foreign: Deployment,
    at: (&'static str, &'static str),
    access: Access,
) -> Captured {
    let seed = usize::from(foreign.nodes[0].port);
    fill(&foreign, seed);
    if access == Access::User {
        make_user(service, &foreign);
    }
    let made = attach(caller, &wish(&foreign, access, &format!("at-{seed}")));
    let id = made["instance_id"].as_str().unwrap().to_owned();
    let backup = caller.make_backup(&id, "of the matrix");
    Captured {
        digest: foreign.digest().unwrap(),
        engine: at.0,
        form: at.1,
        foreign,
        id,
        backup,
    }
}

/// Restores what one held into another, and says what came of it; then the other holds what it held.
fn pass(caller: &Caller, from: &Captured, into: &Captured) -> String {
    let wish = json!({"backup_id": from.backup, "source_instance_id": from.id});
    let path = format!("/instances/{}/restores", into.id);
    let started = caller.ck("POST", &path, Some(&wish)).expect(200).json();
    let id = started["restore_id"].as_str().unwrap();
    let ended = caller.wait_end(&into.id, "restores", id);
    assert_eq!(ended["status"], "succeed", "{}: {ended}", into.form);
    assert_eq!(
        into.foreign.digest().unwrap(),
        from.digest,
        "{} {}",
        from.form,
        into.form
    );
    let started = caller
        .ck("POST", &format!("{path}/{id}/undo"), None)
        .expect(200)
        .json();
    let ended = caller.wait_end(&into.id, "restores", started["restore_id"].as_str().unwrap());
    assert_eq!(ended["status"], "succeed", "undo: {ended}");
    assert_eq!(into.foreign.digest().unwrap(), into.digest, "undo");
    "equal, and undone".to_owned()
}

pub fn program(engine: &str) -> Option<PathBuf> {
    let fetched = PathBuf::from(FETCHED).join(engine);
    match engine {
        "redis-7.0" => Some(PathBuf::from("redis-server")),
        _ => fetched.is_file().then(|| fetched.canonicalize().unwrap()),
    }
}

#[test]
fn deployments_of_every_form_and_way_in_are_captured_and_restored_into_each_other() {
    let is_written = std::env::var_os(WRITE).is_some();
    let is_whole = is_long();
    let service = Service::start_with(&["--attach-allow", "127.0.0.1"], &[]);
    let caller = service.caller();
    let mut rows = BTreeMap::new();
    for (access, way) in ACCESSES {
        let mut captured = Vec::new();
        for engine in ENGINES {
            // The one that is fetched was built without TLS, and another one for it.
            let with_tls =
                program("redis-6.2-tls").filter(|_| (engine, access) == ("redis-6.2", Access::Tls));
            let found = with_tls.or_else(|| program(engine));
            let Some(program) = found.filter(|_| is_whole || engine == "redis-7.0") else {
                continue;
            };
            for (form, shown) in FORMS {
                let settings = match engine {
                    "redis-6.2" => &[][..],
                    _ => &[("enable-debug-command", "local")],
                };
                match Deployment::start(&program, form, access, settings) {
                    // One may be built without TLS.
                    Err(why) if access == Access::Tls && why.to_string().contains("tls-port") => {
                        rows.insert(
                            (engine, shown, engine, shown, way),
                            "this build has no TLS".to_owned(),
                        );
                    }
                    started => {
                        let at = (engine, shown);
                        captured.push(capture(&service, &caller, started.unwrap(), at, access));
                    }
                }
            }
        }
        for (number, from) in captured.iter().enumerate() {
            for (other, into) in captured.iter().enumerate() {
                // Who is let in how makes no difference to what is carried over: all pairs by one way in, of the others a ring.
                let is_next = from.engine == into.engine && (number + 1) % 3 == other % 3;
                let is_ring = (number + 1) % captured.len() == other;
                let is_of_all = is_whole && access == Access::Password;
                if number == other || !(is_next || (is_whole && is_ring) || is_of_all) {
                    continue;
                }
                let outcome = pass(&caller, from, into);
                println!(
                    "{} {} into {} {}, {way}: {outcome}",
                    from.engine, from.form, into.engine, into.form
                );
                rows.insert((from.engine, from.form, into.engine, into.form, way), outcome);
            }
        }
    }
    let lines: Vec<String> = rows
        .iter()
        .map(|((engine, form, other, into, way), outcome)| {
            let plain = |engine: &str| engine.replace('-', " ");
            format!(
                "| {} | {form} | {} | {into} | {way} | {outcome} |",
                plain(engine),
                plain(other)
            )
        })
        .collect();
    if is_written {
        std::fs::write(DOCUMENT, format!("{HEAD}{}\n", lines.join("\n"))).unwrap();
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

const HEAD: &str = "# Which deployments of others are captured and restored into each other\n\n\
    Made by `crates/server/tests/it/attach_matrix.rs`: 300 keys in database 0 (strings with and without an \
    expiry, hashes, lists, sets, sorted sets, streams) and a string of a megabyte, in deployments that cachekeep does not run, each attached by one \
    node or its Sentinels and captured, then each backup restored into every other deployment that is let in the same way, and undone. *equal*: the \
    engines' own `DEBUG DIGEST`, all primaries together, is that of the deployment that was captured; after the undo it is that of the target before. The ACL user is the \
    one that `cachekeep instance attach --print-acl` prints. Each run tries redis 7.0, each form into the next; `CACHEKEEP_TEST_LONG=1` all pairs (by other ways in than the default user a ring) of \
    the engines of `cargo xtask setup engines`, and `CACHEKEEP_WRITE_MATRIX=1` writes that here.\n\n\
    | backup by | of | restored into | of | let in as | |\n|---|---|---|---|---|---|\n";
