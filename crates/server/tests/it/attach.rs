//! Servers that somebody else runs: attached where the operator allows it, found out anew at each use, captured, left as they
//! were.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use serde_json::{Value, json};
use xtask::foreign::{Access, Deployment, Form, PASSWORD, USER};
use xtask::resp::Reply;

use crate::cluster::Client;
use crate::rebuild::{lose_catalogue, mirrored};
use crate::service::{Caller, Service, wait};

const DEBUG: (&str, &str) = ("enable-debug-command", "local");
pub const LOOPBACK: [&str; 2] = ["--attach-allow", "127.0.0.0/8"];
/// What a caller is told of an address behind which is nothing that he may have.
const NOTHING: &str = "nothing that this service may connect to answers there";
/// All that he is told then.
pub const ALIKE: &str = "The servers cannot be attached: nothing that this service may connect to answers there as a Redis or Valkey \
    server does. Where the address is right, the operator must allow it (cachekeep serve --attach-allow), and by TLS certificates must fit.";

pub fn start(form: Form, access: Access, settings: &[(&str, &str)]) -> Deployment {
    let settings = [&[DEBUG], settings].concat();
    Deployment::start(Path::new("redis-server"), form, access, &settings).unwrap()
}

pub fn address(port: u16) -> String {
    format!("127.0.0.1:{port}")
}

#[track_caller]
pub fn attach(caller: &Caller, wish: &Value) -> Value {
    caller.ck("POST", "/attachments", Some(wish)).expect(200).json()
}

/// Attaches what is at these ports, open to everybody.
#[track_caller]
pub fn attach_open(caller: &Caller, name: &str, ports: &[u16]) -> String {
    let addresses: Vec<String> = ports.iter().map(|port| address(*port)).collect();
    let made = attach(caller, &json!({"name": name, "addresses": addresses}));
    made["instance_id"].as_str().unwrap().to_owned()
}

fn record(caller: &Caller, instance: &str, backup: &str) -> Value {
    let path = format!("/instances/{instance}/backups/{backup}");
    caller.ck("GET", &path, None).expect(200).json()
}

#[test]
fn an_attached_server_is_backed_up_like_any_instance_and_left_as_it_was() {
    let settings = [("repl-diskless-sync-delay", "5"), ("maxmemory", "200mb")];
    let foreign = start(Form::Single, Access::Open, &settings);
    let node = &foreign.nodes[0];
    node.ask(&["DEBUG", "POPULATE", "20000", "key", "100"]).unwrap();
    node.ask(&["SET", "elsewhere", "value", "EX", "100000"]).unwrap();
    let digest = foreign.digest().unwrap();
    let service = Service::start_with(&LOOPBACK, &[]);
    let caller = service.caller();

    let wish = json!({"name": "foreign", "addresses": [address(node.port)], "dry_run": true, "tags": [{"key": "a", "value": "b"}]});
    let seen = attach(&caller, &wish);
    assert_eq!(seen["instance_id"], Value::Null);
    assert_eq!(
        (&seen["cache_mode"], &seen["capture"]),
        (&json!("single"), &json!("psync"))
    );
    assert_eq!(seen["shards"][0]["primary"], address(node.port));
    assert_eq!(seen["notes"], json!([]));
    assert_eq!(caller.get("/instances").expect(200).json()["instance_num"], 0);

    let id = attach_open(&caller, "foreign", &[node.port]);
    let listed = caller.get("/instances?name=foreign").expect(200).json();
    let shown = &listed["instances"][0];
    assert_eq!(
        (&shown["instance_id"], &shown["status"]),
        (&json!(id), &json!("RUNNING"))
    );
    assert_eq!(
        (&shown["port"], &shown["max_memory"]),
        (&json!(node.port), &json!(200))
    );
    assert_eq!(shown["ext"]["is_attached"], true);
    let nodes = caller
        .get(&format!("/instances/{id}/logical-nodes"))
        .expect(200)
        .json();
    assert_eq!(nodes["nodes"][0]["node_role"], "master");
    let all = caller.ck("GET", "/attachments", None).expect(200).json();
    assert_eq!(all["attachments"][0]["instance_id"], json!(id));

    let backup = caller.make_backup(&id, "of a stranger");
    let made = record(&caller, &id, &backup);
    assert_eq!(
        made["ext"]["captured_from"],
        format!("primary {}", address(node.port))
    );
    assert_eq!(made["ext"]["keys"], 20_001);
    assert_eq!(node.setting("repl-diskless-sync-delay").unwrap(), "5");
    assert_eq!(node.setting("rdbcompression").unwrap(), "yes");

    let target = caller.make_instance("managed");
    let wish = json!({"backup_id": backup, "source_instance_id": id});
    let path = format!("/instances/{target}/restores");
    let started = caller.ck("POST", &path, Some(&wish)).expect(200).json();
    let ended = caller.wait_end(&target, "restores", started["restore_id"].as_str().unwrap());
    assert_eq!(ended["status"], "succeed", "{ended}");
    let mut restored = caller.engine(&target);
    assert_eq!(restored.ask(&["DBSIZE"]).unwrap(), Reply::Number(20_001));

    for (method, path, body) in [
        (
            "PUT",
            "/instances/status".to_owned(),
            json!({"instances": [id], "action": "restart"}),
        ),
        (
            "PUT",
            "/instances/status".to_owned(),
            json!({"instances": [id], "action": "flush"}),
        ),
        (
            "POST",
            format!("/instances/{id}/password/reset"),
            json!({"new_password": "Abcdefg-1"}),
        ),
    ] {
        let refused = caller.v2(method, &path, Some(&body)).expect(400).json();
        assert_eq!(refused["error_code"], "DCS.4086", "{path}: {refused}");
    }

    caller
        .ck("DELETE", &format!("/attachments/{id}"), None)
        .expect(204);
    wait("the end of the instance", || {
        let left = caller.get(&format!("/instances/{id}"));
        (left.status == 404).then_some(())
    });
    assert_eq!(foreign.digest().unwrap(), digest);
    let kept = caller
        .get(&format!("/instances/{id}/backups?include_deleted=true"))
        .expect(200)
        .json();
    assert_eq!(kept["total_num"], 1);
    caller
        .ck("GET", &format!("/attachments/{target}"), None)
        .expect(404);
    caller
        .ck("DELETE", &format!("/attachments/{target}"), None)
        .expect(404);
}

#[test]
fn a_replica_in_sync_is_captured_and_sentinels_lead_to_the_primary_after_a_failover() {
    let mut foreign = start(Form::Watched, Access::Open, &[]);
    // What DEBUG POPULATE makes is not replicated.
    let pairs = (0..5000).flat_map(|number| [format!("key:{number}"), "value".to_owned()]);
    let words: Vec<String> = std::iter::once("MSET".to_owned()).chain(pairs).collect();
    foreign.nodes[0].open().unwrap().ask(&words).unwrap();
    foreign.wait_in_sync().unwrap();
    let service = Service::start_with(&LOOPBACK, &[]);
    let caller = service.caller();
    // Any Sentinel, or a replica: what is found is the same.
    let (sentinel, replica) = (foreign.sentinels[1].port, foreign.nodes[2].port);
    let by_replica = attach_open(&caller, "by-replica", &[replica]);
    let id = attach_open(&caller, "by-sentinel", &[sentinel]);
    for (instance, sentinels) in [(&by_replica, 0), (&id, 3)] {
        let shown = caller
            .ck("GET", &format!("/attachments/{instance}"), None)
            .expect(200)
            .json();
        assert_eq!(shown["cache_mode"], "ha");
        assert_eq!(shown["shards"][0]["primary"], address(foreign.nodes[0].port));
        assert_eq!(shown["shards"][0]["replicas"].as_array().unwrap().len(), 2);
        assert_eq!(shown["sentinels"].as_array().unwrap().len(), sentinels);
    }
    let backup = caller.make_backup(&id, "of a replica");
    let made = record(&caller, &id, &backup);
    let from = made["ext"]["captured_from"].as_str().unwrap();
    assert!(from.starts_with("replica "), "{from}");
    assert_eq!(made["ext"]["keys"], 5000);

    let dead = foreign.nodes[0].port;
    foreign.nodes[0].kill();
    let named = || {
        let Reply::List(at) = foreign.sentinels[0]
            .ask(&["SENTINEL", "GET-MASTER-ADDR-BY-NAME", "mymaster"])
            .ok()?
        else {
            return None;
        };
        let port: u16 = at.get(1)?.text()?.parse().ok()?;
        let node = foreign.nodes.iter().find(|node| node.port == port)?;
        let is_primary = node.open().ok()?.info("replication", "role").ok()? == "master";
        (port != dead && is_primary).then_some(port)
    };
    let promoted = wait("a promoted replica", named);
    // A replica that has not been told yet names a primary that is gone, and a backup that asks it then fails.
    wait("replicas that follow it", || {
        let mut others = foreign
            .nodes
            .iter()
            .filter(|node| node.port != dead && node.port != promoted);
        let all = others.all(|node| {
            let follows = |mut engine: xtask::resp::Connection| {
                let port = engine.info("replication", "master_port").ok()?;
                (port == promoted.to_string())
                    .then_some(engine.info("replication", "master_link_status").ok()? == "up")
            };
            node.open().ok().and_then(follows) == Some(true)
        });
        all.then_some(())
    });
    for instance in [&id, &by_replica] {
        // A look in the middle of the failover may have found nobody.
        wait("servers that can be used", || {
            let shown = caller.get(&format!("/instances/{instance}")).expect(200).json();
            (shown["status"] == "RUNNING").then_some(())
        });
        let backup = caller.make_backup(instance, "after the failover");
        assert_eq!(record(&caller, instance, &backup)["ext"]["keys"], 5000);
        // Sentinels that are short of a processor may promote another one once more.
        wait("the primary that the Sentinels name", || {
            let nodes = caller
                .get(&format!("/instances/{instance}/logical-nodes"))
                .expect(200)
                .json();
            let mut nodes = nodes["nodes"].as_array()?.iter();
            let primary = nodes.find(|node| node["node_role"] == "master")?;
            let now = named()?.to_string();
            (primary["node_port"] == now).then_some(())
        });
    }
}

#[test]
fn a_cluster_is_found_by_any_node_and_captured_shard_by_shard() {
    let foreign = start(Form::Cluster, Access::Open, &[]);
    let ports: Vec<u16> = foreign.nodes.iter().map(|node| node.port).collect();
    Client::new(&ports).fill(2000);
    foreign.wait_in_sync().unwrap();
    let digest = foreign.digest().unwrap();
    let service = Service::start_with(&LOOPBACK, &[]);
    let caller = service.caller();
    let id = attach_open(&caller, "cluster", &[ports[5]]);
    let shown = caller
        .ck("GET", &format!("/attachments/{id}"), None)
        .expect(200)
        .json();
    assert_eq!(
        (&shown["cache_mode"], &shown["shards"][2]["slots"]),
        (&json!("cluster"), &json!(["10922-16383"]))
    );
    assert_eq!(shown["shards"][0]["replicas"][0]["address"], address(ports[1]));
    let backup = caller.make_backup(&id, "of three shards");
    assert_eq!(record(&caller, &id, &backup)["ext"]["keys"], 2000);
    let groups = caller.get(&format!("/instance/{id}/groups")).expect(200).json();
    assert_eq!(groups["group_count"], 3);

    let target = caller.make_instance("managed");
    let wish = json!({"backup_id": backup, "source_instance_id": id});
    let started = caller
        .ck("POST", &format!("/instances/{target}/restores"), Some(&wish))
        .expect(200)
        .json();
    let ended = caller.wait_end(&target, "restores", started["restore_id"].as_str().unwrap());
    assert_eq!(ended["status"], "succeed", "{ended}");
    let mut restored = caller.engine(&target);
    assert_eq!(restored.ask(&["DBSIZE"]).unwrap(), Reply::Number(2000));
    assert_eq!(foreign.digest().unwrap(), digest);
}

/// Makes the user by the commands that `--print-acl` prints, on every node.
pub fn make_user(service: &Service, foreign: &Deployment) {
    let printed = service.run(&["instance", "attach", "--print-acl", "--user", USER]);
    let printed = String::from_utf8(printed.stdout).unwrap();
    for line in printed.lines().filter(|line| line.starts_with("ACL ")) {
        if line.contains("sentinel|") || line.contains("+dump") {
            continue;
        }
        let line = line.replace("PASSWORD", PASSWORD);
        let words: Vec<&str> = line.split(' ').collect();
        for node in &foreign.nodes {
            node.ask(&words).unwrap();
        }
    }
}

#[test]
fn the_printed_user_is_enough_and_what_it_lacks_is_named() {
    let foreign = start(Form::Single, Access::User, &[("repl-diskless-sync-delay", "1")]);
    let node = &foreign.nodes[0];
    node.ask(&["SET", "key", "value"]).unwrap();
    let service = Service::start_with(&LOOPBACK, &[]);
    let caller = service.caller();
    make_user(&service, &foreign);
    let wish = |password: &str, dry_run: bool| {
        json!({"name": "as-user", "addresses": [address(node.port)], "user": USER, "password": password,
               "dry_run": dry_run})
    };
    let made = attach(&caller, &wish(PASSWORD, false));
    assert_eq!(made["notes"], json!([]));
    let id = made["instance_id"].as_str().unwrap().to_owned();
    let backup = caller.make_backup(&id, "by the least of users");
    assert_eq!(record(&caller, &id, &backup)["ext"]["keys"], 1);
    let shown = caller.get(&format!("/instances/{id}")).expect(200).json();
    assert_eq!(
        (&shown["access_user"], &shown["no_password_access"]),
        (&json!(USER), &json!("false"))
    );
    // Secrets are where nobody reads them.
    let database = std::fs::read(service.data().join("catalog.sqlite")).unwrap();
    let wal = std::fs::read(service.data().join("catalog.sqlite-wal")).unwrap_or_default();
    for bytes in [database, wal, service.log().into_bytes()] {
        assert!(
            !bytes
                .windows(PASSWORD.len())
                .any(|window| window == PASSWORD.as_bytes())
        );
    }
    let refused = caller
        .ck("POST", "/attachments", Some(&wish("wrong", true)))
        .expect(400)
        .json();
    assert!(
        refused["error_msg"]
            .as_str()
            .unwrap()
            .contains("refuse the user or the password"),
        "{refused}"
    );

    for (rule, capture, told) in [
        ("psync", Some("none"), "the user may not PSYNC (+psync)"),
        ("replconf", Some("none"), "the user may not REPLCONF (+replconf)"),
        (
            "config|set",
            Some("psync"),
            "the user may not CONFIG SET (+config|set)",
        ),
        ("info", None, "the user needs +info"),
    ] {
        node.ask(&["ACL", "SETUSER", USER, &format!("-{rule}")]).unwrap();
        let answer = caller.ck("POST", "/attachments", Some(&wish(PASSWORD, true)));
        match capture {
            Some(capture) => {
                let seen = answer.expect(200).json();
                assert_eq!(seen["capture"], capture, "{rule}");
                assert!(seen["notes"].to_string().contains(told), "{rule}: {seen}");
            }
            None => {
                let refused = answer.expect(400).json();
                assert!(
                    refused["error_msg"].as_str().unwrap().contains(told),
                    "{rule}: {refused}"
                );
            }
        }
        node.ask(&["ACL", "SETUSER", USER, &format!("+{rule}")]).unwrap();
    }
}

#[test]
fn commands_that_a_provider_renamed_are_named_and_nothing_is_pretended() {
    let service = Service::start_with(&LOOPBACK, &[]);
    let caller = service.caller();
    for (command, capture, note) in [
        ("PSYNC", "scan", "PSYNC is renamed or taken away"),
        ("REPLCONF", "scan", "REPLCONF is renamed or taken away"),
        ("CONFIG", "psync", "CONFIG is renamed or taken away"),
    ] {
        let hidden = format!("{command} \"\"");
        let foreign = start(Form::Single, Access::Open, &[("rename-command", &hidden)]);
        let port = foreign.nodes[0].port;
        let seen = attach(
            &caller,
            &json!({"name": "provider", "addresses": [address(port)], "dry_run": true}),
        );
        assert_eq!(seen["capture"], capture, "{command}");
        let notes = seen["notes"].to_string();
        assert!(notes.contains(note), "{command}: {notes}");
        let id = attach_open(&caller, "provider", &[port]);
        let backup = caller.start_backup(&id, "what can be had");
        let ended = caller.wait_end(&id, "backups", &backup);
        assert_eq!(ended["status"], "succeed", "{ended}");
        assert_eq!(ended["ext"]["point_in_time"], capture == "psync", "{ended}");
    }
}

#[test]
fn where_psync_is_hidden_keys_are_read_one_by_one_and_none_is_lost_or_told_twice() {
    let hidden = [("rename-command", "PSYNC \"\""), ("databases", "4")];
    let foreign = start(Form::Single, Access::Open, &hidden);
    let node = &foreign.nodes[0];
    let mut open = node.open().unwrap();
    for db in ["0", "3"] {
        open.ask(&["SELECT", db]).unwrap();
        open.ask(&["DEBUG", "POPULATE", "20000", "key", "50"]).unwrap();
        for command in [
            &["HSET", "hash", "field", "value"][..],
            &["RPUSH", "list", "a", "b"],
            &["SADD", "set", "1", "2", "x"],
            &["ZADD", "zset", "1", "a", "2", "b"],
            &["XADD", "stream", "1-1", "field", "value"],
            &["SET", "expires", "value", "EX", "100000"],
            &["SETRANGE", "large", "20000000", "end"],
        ] {
            open.ask(command).unwrap();
        }
    }
    let digest = foreign.digest().unwrap();
    let service = Service::start_with(&LOOPBACK, &[]);
    let caller = service.caller();
    let id = attach_open(&caller, "hidden", &[node.port]);
    // Keys that come while it reads make the source's table grow, and SCAN name keys again.
    let over = Arc::new(std::sync::atomic::AtomicBool::new(false));
    let (stop, mut writer) = (over.clone(), node.open().unwrap());
    let writes = std::thread::spawn(move || {
        let mut number = 0;
        while !stop.load(Ordering::SeqCst) {
            writer.ask(&["SET", &format!("new:{number}"), "value"]).unwrap();
            number += 1;
        }
    });
    let backup = caller.make_backup(&id, "while it is written to");
    over.store(true, Ordering::SeqCst);
    writes.join().unwrap();
    let made = record(&caller, &id, &backup);
    assert!(made["ext"]["keys"].as_u64().unwrap() >= 40_014, "{made}");
    assert_eq!(made["ext"]["point_in_time"], false);
    let new = "for _, key in ipairs(redis.call('KEYS', 'new:*')) do redis.call('DEL', key) end";
    node.ask(&["EVAL", new, "0"]).unwrap();
    assert_eq!(foreign.digest().unwrap(), digest);

    let backup = caller.make_backup(&id, "in silence");
    assert_eq!(record(&caller, &id, &backup)["ext"]["keys"], 40_014);
    let target = caller.make_instance("managed");
    let wish = json!({"backup_id": backup, "source_instance_id": id});
    let path = format!("/instances/{target}/restores");
    let started = caller.ck("POST", &path, Some(&wish)).expect(200).json();
    let ended = caller.wait_end(&target, "restores", started["restore_id"].as_str().unwrap());
    assert_eq!(ended["status"], "succeed", "{ended}");
    let restored = caller.engine(&target).ask(&["DEBUG", "DIGEST"]).unwrap();
    assert_eq!(restored.text().unwrap(), digest);
}

#[test]
fn a_server_is_reached_by_tls_with_certificates_on_both_sides() {
    let foreign = start(Form::Single, Access::Tls, &[]);
    let node = &foreign.nodes[0];
    node.ask(&["SET", "key", "value"]).unwrap();
    let service = Service::start_with(&LOOPBACK, &[]);
    let caller = service.caller();
    let file = |name: &str| std::fs::read_to_string(foreign.folder().join(name)).unwrap();
    let wish = |more: Value| {
        let mut wish = json!({"name": "by-tls", "addresses": [address(node.port)], "tls": true, "ca": file("ca.pem"),
                              "certificate": file("cert.pem"), "private_key": file("key.pem")});
        for (name, value) in more.as_object().unwrap() {
            wish[name] = value.clone();
        }
        wish
    };
    for (more, why) in [
        (json!({"certificate": null, "private_key": null}), NOTHING),
        (json!({"server_name": "other.test"}), NOTHING),
        (json!({"ca": file("cert.pem")}), NOTHING),
        (json!({"ca": "nonsense"}), "the CA holds no certificate"),
        (json!({"ca": null}), "Invalid ca"),
        (json!({"private_key": null}), "Invalid private_key"),
        (json!({"tls": false}), "Invalid tls"),
    ] {
        let refused = caller
            .ck("POST", "/attachments", Some(&wish(more.clone())))
            .expect(400)
            .json();
        assert!(
            refused["error_msg"].as_str().unwrap().contains(why),
            "{more}: {refused}"
        );
    }
    let made = attach(&caller, &wish(json!({"server_name": "node.test"})));
    let id = made["instance_id"].as_str().unwrap();
    let backup = caller.make_backup(id, "through TLS");
    assert_eq!(record(&caller, id, &backup)["ext"]["keys"], 1);
    let at = |name: &str| foreign.folder().join(name).display().to_string();
    let url = foreign.url(node);
    service.run_json(&[
        "instance",
        "attach",
        "by-hand",
        &url,
        "--ca",
        &at("ca.pem"),
        "--cert",
        &at("cert.pem"),
        "--key",
        &at("key.pem"),
    ]);
}

#[test]
fn a_rebuilt_catalogue_has_attached_servers_with_what_reaches_them() {
    let foreign = start(Form::Single, Access::Password, &[]);
    let node = &foreign.nodes[0];
    node.ask(&["SET", "key", "value"]).unwrap();
    let mut service = Service::start_with(&LOOPBACK, &[]);
    let wish = json!({"name": "kept", "addresses": [address(node.port)], "password": PASSWORD});
    let made = attach(&service.caller(), &wish);
    let id = made["instance_id"].as_str().unwrap().to_owned();
    service.caller().make_backup(&id, "before");
    mirrored(&service);
    lose_catalogue(&mut service);
    let report = service.run_json(&["catalog", "rebuild", "--from-store", "local"]);
    assert_eq!(report["instances_kept"], json!(["kept"]), "{report}");
    service.start_again();
    let caller = service.caller();
    let backup = caller.make_backup(&id, "after");
    assert_eq!(record(&caller, &id, &backup)["ext"]["keys"], 1);
    let kept = caller.get(&format!("/instances/{id}/backups")).expect(200).json();
    assert_eq!(kept["total_num"], 2);
}

/// A listener that counts who comes, and says this to them.
pub struct Stranger {
    pub port: u16,
    came: Arc<AtomicUsize>,
}

impl Stranger {
    pub fn start(behave: impl Fn(TcpStream) + Send + Sync + 'static) -> Self {
        Self::start_at("127.0.0.1", behave)
    }

    /// At another address of this machine.
    pub fn start_at(host: &str, behave: impl Fn(TcpStream) + Send + Sync + 'static) -> Self {
        Self::start_on((host, 0), behave)
    }

    /// And there at this port; 0: any.
    pub fn start_on(at: (&str, u16), behave: impl Fn(TcpStream) + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind(at).unwrap();
        let port = listener.local_addr().unwrap().port();
        let came = Arc::new(AtomicUsize::new(0));
        let counted = came.clone();
        let behave = Arc::new(behave);
        std::thread::spawn(move || {
            for client in listener.incoming().flatten() {
                counted.fetch_add(1, Ordering::SeqCst);
                let behave = behave.clone();
                std::thread::spawn(move || behave(client));
            }
        });
        Self { port, came }
    }

    /// How many connections there have been.
    pub fn came(&self) -> usize {
        self.came.load(Ordering::SeqCst)
    }
}

#[test]
fn what_the_operator_did_not_allow_is_not_connected_to_however_it_is_reached() {
    let stranger = Stranger::start(drop);
    let service = Service::start_with(&["--attach-allow", "127.0.0.2", "--attach-allow", "[::1]"], &[]);
    let caller = service.caller();
    let port = stranger.port;
    for host in [
        "127.0.0.1",
        "localhost",
        "127.1",
        "0x7f000001",
        "2130706433",
        "0",
        "[::ffff:127.0.0.1]",
        "0177.0.0.1",
    ] {
        let wish = json!({"name": "forbidden", "addresses": [format!("{host}:{port}")]});
        let refused = caller.ck("POST", "/attachments", Some(&wish)).expect(400).json();
        assert!(
            refused["error_msg"].as_str().unwrap().contains(NOTHING),
            "{host}: {refused}"
        );
    }
    assert_eq!(stranger.came(), 0);

    // Led there by a server that is allowed. That one knocks there itself, once, and waits for an answer.
    let silent = Stranger::start(|client| {
        std::thread::sleep(Duration::from_secs(60));
        drop(client);
    });
    let foreign = start(Form::Single, Access::Open, &[("bind", "127.0.0.1 127.0.0.2")]);
    let node = &foreign.nodes[0];
    node.ask(&["REPLICAOF", "127.0.0.1", &silent.port.to_string()])
        .unwrap();
    wait("the foreign server's own call", || {
        (silent.came() == 1).then_some(())
    });
    let wish = json!({"name": "forbidden", "addresses": [format!("127.0.0.2:{}", node.port)]});
    let refused = caller.ck("POST", "/attachments", Some(&wish)).expect(400).json();
    assert!(
        refused["error_msg"].as_str().unwrap().contains(NOTHING),
        "{refused}"
    );
    assert_eq!(silent.came(), 1, "nobody of ours");
    assert!(service.log().contains("which --attach-allow does not allow"));
    drop(foreign);

    let service = Service::start_with(&LOOPBACK, &[]);
    let caller = service.caller();
    let managed = caller.make_instance("managed");
    let shown = caller.get(&format!("/instances/{managed}")).expect(200).json();
    let api: u16 = service.address().rsplit(':').next().unwrap().parse().unwrap();
    for own in [u64::from(api), shown["port"].as_u64().unwrap()] {
        let wish = json!({"name": "own-port", "addresses": [format!("127.0.0.1:{own}")]});
        let refused = caller.ck("POST", "/attachments", Some(&wish)).expect(400).json();
        assert!(
            refused["error_msg"].as_str().unwrap().contains(NOTHING),
            "{refused}"
        );
    }
    assert!(service.log().contains("which is a port of the service's own"));
}

/// Says these bytes to whatever is asked, over and over.
fn says(client: &mut TcpStream, bytes: &[u8]) {
    let mut buffer = [0; 4096];
    while client.read(&mut buffer).is_ok_and(|count| count > 0) {
        if client.write_all(bytes).is_err() {
            return;
        }
    }
}

#[test]
fn strangers_that_are_no_engines_cost_little_and_tell_the_caller_nothing() {
    let service = Service::start_with(&LOOPBACK, &[]);
    let caller = service.caller();
    let endless = |piece: &'static [u8]| {
        Stranger::start(move |mut client| {
            let block = piece.repeat(65536 / piece.len());
            while client.write_all(&block).is_ok() {}
        })
    };
    let once = |bytes: &'static [u8]| Stranger::start(move |mut client| says(&mut client, bytes));
    let strangers = [
        ("closes at once", Stranger::start(drop)),
        (
            "says nothing",
            Stranger::start(|client| {
                std::thread::sleep(Duration::from_secs(60));
                drop(client);
            }),
        ),
        (
            "HTTP",
            once(b"HTTP/1.1 400 Bad Request\r\nContent-Length: 6\r\n\r\nsecret"),
        ),
        ("SMTP", once(b"220 secret.example.com ESMTP\r\n")),
        ("SSH", once(b"SSH-2.0-secret\r\n")),
        ("PostgreSQL", once(b"E\0\0\0\x0csecret\0")),
        ("TLS alert", once(b"\x15\x03\x01\0\x02\x02\x28")),
        ("an empty line", once(b"\r\n")),
        ("a status", once(b"+secret\r\n")),
        ("a number", once(b":7\r\n")),
        ("no number", once(b":secret\r\n")),
        ("nil", once(b"$-1\r\n")),
        ("an empty bulk", once(b"$0\r\n\r\n")),
        ("a bulk of another length", once(b"$5\r\nsecretsecret\r\n")),
        ("a bulk without a number", once(b"$secret\r\n")),
        ("a huge bulk", once(b"$999999999999\r\n")),
        ("a bulk below the limit that never comes", once(b"$1000000\r\nx")),
        ("a huge array", once(b"*1000000\r\n")),
        (
            "a deep array",
            once(b"*1\r\n*1\r\n*1\r\n*1\r\n*1\r\n*1\r\n*1\r\n*1\r\n*1\r\n*1\r\n"),
        ),
        ("an array of many bulks", once(b"*1048576\r\n")),
        ("INFO of nothing", once(b"$6\r\nsecret\r\n")),
        (
            "INFO of an unknown mode",
            once(b"$19\r\nredis_mode:secret\r\n\r\n"),
        ),
        ("an endless line", endless(b"+aaaaaaaa")),
        ("endless lines", endless(b"+a\r\n")),
        ("endless numbers", endless(b":1\r\n")),
        ("an endless array", endless(b"*1048576\r\n$9\r\nsecretsec\r\n")),
        ("zeros", endless(&[0; 64])),
        (
            "drips",
            Stranger::start(|mut client| {
                while client.write_all(b"+").is_ok() {
                    std::thread::sleep(Duration::from_millis(500));
                }
            }),
        ),
        (
            "a half reply and an end",
            Stranger::start(|mut client| {
                let _gone = client.write_all(b"$100\r\nsec");
            }),
        ),
        (
            "is its own replica",
            once(b"$45\r\nredis_mode:standalone\r\nrole:slave\r\nmaster_x:1\r\n"),
        ),
        (
            "a Sentinel of nothing",
            once(b"$21\r\nredis_mode:sentinel\r\n\r\n"),
        ),
        ("a cluster of nothing", once(b"$20\r\nredis_mode:cluster\r\n\r\n")),
    ];
    assert!(strangers.len() >= 30);
    // What speaks as an engine does is told of in detail.
    let of_engines = [
        "is its own replica",
        "a Sentinel of nothing",
        "a cluster of nothing",
    ];
    let before = resident(service.pid());
    forget_peak(service.pid());
    for (what, stranger) in &strangers {
        let wish = json!({"name": "stranger", "addresses": [address(stranger.port)]});
        let refused = caller.ck("POST", "/attachments", Some(&wish)).expect(400).json();
        let text = refused["error_msg"].as_str().unwrap();
        match of_engines.contains(what) {
            true => assert!(
                text.starts_with("The servers cannot be attached: "),
                "{what}: {text}"
            ),
            false => assert_eq!(text, ALIKE, "{what}"),
        }
        assert!(!text.contains("secret"), "{what}: {text}");
        assert!(stranger.came() > 0, "{what}");
    }
    let grown = peak(service.pid()).saturating_sub(before);
    assert!(grown < 32 << 20, "{grown} bytes");
    assert_eq!(caller.get("/instances").expect(200).json()["instance_num"], 0);
}

/// Bytes of memory that a process has.
pub fn resident(pid: u32) -> u64 {
    memory(pid, "VmRSS:")
}

/// The most that it has had since [`forget_peak`].
pub fn peak(pid: u32) -> u64 {
    memory(pid, "VmHWM:")
}

/// Lets the kernel's high-water mark start anew.
pub fn forget_peak(pid: u32) {
    std::fs::write(format!("/proc/{pid}/clear_refs"), "5").unwrap();
}

fn memory(pid: u32, field: &str) -> u64 {
    let text = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = text.lines().find_map(|line| line.strip_prefix(field)).unwrap();
    line.trim().trim_end_matches(" kB").parse::<u64>().unwrap() * 1024
}
