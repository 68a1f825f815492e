//! Backup and restore without a service: real servers at both ends.

use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use serde_json::Value;
use xtask::object_server::ObjectServer;
use xtask::plain_engine::PlainEngine;
use xtask::resp;
use xtask::scratch::Scratch;

use crate::readme;
use crate::service::Service;

fn run(folder: &Path, words: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_cachekeep"))
        .args(words)
        .args(["-o", "json", "--data-dir"])
        .arg(folder.join("data"))
        .current_dir(folder)
        .env("CACHEKEEP_SOURCE_PASSWORD", "canary-password")
        .output()
        .unwrap()
}

fn told(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

#[track_caller]
fn run_json(folder: &Path, words: &[&str]) -> Value {
    let output = run(folder, words);
    assert!(output.status.success(), "{words:?}: {}", told(&output));
    assert!(!told(&output).contains("canary-password"));
    serde_json::from_slice(&output.stdout).unwrap()
}

#[track_caller]
fn refused(folder: &Path, words: &[&str], why: &str) {
    let output = run(folder, words);
    assert_eq!(output.status.code(), Some(1), "{words:?}");
    assert!(told(&output).contains(why), "{words:?}: {}", told(&output));
}

/// A server with a password and more than one segment of data.
fn server() -> (PlainEngine, String, String) {
    let settings = [("repl-diskless-sync-delay", "0"), ("rdbcompression", "no")];
    let server = PlainEngine::start(&settings).unwrap();
    let mut client = resp::Connection::open(&server.target()).unwrap();
    for call in [
        &["CONFIG", "SET", "requirepass", "canary-password"][..],
        &["DEBUG", "POPULATE", "20000", "key", "600"],
        &["HSET", "hash", "f", "v"],
        &["SELECT", "2"],
        &["SET", "elsewhere", "value", "EX", "100000"],
    ] {
        client.ask(call).unwrap();
    }
    let digest = client
        .ask(&["DEBUG", "DIGEST"])
        .unwrap()
        .text()
        .unwrap()
        .to_owned();
    let url = format!("unix:{}", server.socket().display());
    (server, url, digest)
}

/// A stock server started on a directory with these settings holds exactly that.
#[track_caller]
fn starts_on(directory: &Path, appends: &str, digest: &str) {
    let directory = directory.to_str().unwrap();
    let server = PlainEngine::start(&[("dir", directory), ("appendonly", appends)]).unwrap();
    assert_eq!(server.digest().unwrap(), digest);
}

#[test]
fn a_server_is_backed_up_into_a_folder_and_stock_servers_start_on_what_comes_back() {
    let here = Scratch::new("alone").unwrap();
    let here = here.path();
    let nobody = [
        "backup",
        "--from",
        "redis://127.0.0.1:1",
        "--to",
        "store",
        "--identity",
        "my.key",
    ];
    refused(here, &nobody, "127.0.0.1:1");
    assert!(!here.join("my.key").exists(), "no key for a backup that is none");
    let (_server, url, digest) = server();
    let made = run(
        here,
        &["backup", "--from", &url, "--to", "store", "--identity", "my.key"],
    );
    assert!(made.status.success(), "{}", told(&made));
    for file in ["my.key", "my.key.signing"] {
        use std::os::unix::fs::PermissionsExt as _;
        assert!(told(&made).contains(&format!("made {file}")), "{}", told(&made));
        let mode = std::fs::metadata(here.join(file)).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600, "{file}");
    }
    let made: Value = serde_json::from_slice(&made.stdout).unwrap();
    assert_eq!(made["keys"], 20_002);
    let backup = made["backup"].as_str().unwrap();
    let again = run(
        here,
        &[
            "backup",
            "--from",
            &url,
            "--to",
            "store",
            "--identity",
            "my.key",
            "-q",
        ],
    );
    assert!(
        again.status.success() && again.stderr.is_empty(),
        "{}",
        told(&again)
    );

    fn restore<'a>(backup: &'a str, to: &'a str, more: &[&'a str]) -> Vec<&'a str> {
        let words = ["restore", "--from", backup, "--to", to, "--identity", "my.key"];
        [&words[..], more].concat()
    }
    run_json(here, &restore(backup, "as-rdb", &[]));
    starts_on(&here.join("as-rdb"), "no", &digest);
    run_json(here, &restore(backup, "as-aof", &["--persistence", "aof"]));
    starts_on(&here.join("as-aof"), "yes", &digest);
    refused(here, &restore(backup, "as-rdb", &[]), "exists already");

    // Another key that signs, another that opens, a byte that is another.
    let other = ["--signed-by", &"00".repeat(32)];
    refused(here, &restore(backup, "not", &other), "not trusted");
    run_json(
        here,
        &[
            "backup",
            "--from",
            &url,
            "--to",
            "store",
            "--identity",
            "other.key",
        ],
    );
    let wrong = [
        "restore",
        "--from",
        backup,
        "--to",
        "not",
        "--identity",
        "other.key",
    ];
    let by = ["--signed-by", made["signed_by"].as_str().unwrap()];
    refused(here, &[&wrong[..], &by].concat(), "this key does not open it");
    let segment = here.join(backup).join("shard-0/seg-000001.rdb.zst.age");
    let mut bytes = std::fs::read(&segment).unwrap();
    *bytes.last_mut().unwrap() ^= 1;
    std::fs::write(&segment, bytes).unwrap();
    refused(here, &restore(backup, "not", &[]), "seg-000001");
    assert!(!here.join("not").exists(), "nothing is left of what was refused");
    refused(
        here,
        &["restore", "--from", "nowhere/at-all", "--to", "not"],
        "there is no folder",
    );
    assert_eq!(run(here, &["backup"]).status.code(), Some(2));
    refused(
        here,
        &["backup", "--from", "unix:/nonexistent", "--to", "store"],
        "connect",
    );
}

#[test]
fn a_backup_for_a_recipient_alone_is_read_where_its_identity_is_and_a_bucket_is_a_place() {
    const BUCKET: &str = "alone";
    let server_of_objects = ObjectServer::start(BUCKET).unwrap_or_else(|stop| panic!("{stop}"));
    let endpoint = format!("http://{}", server_of_objects.address());
    let here = Scratch::new("alone").unwrap();
    let here = here.path();
    std::fs::write(here.join("secret"), "secret").unwrap();
    let reach = [
        "--endpoint",
        &endpoint,
        "--access-key",
        "key",
        "--secret-key-file",
        "secret",
    ];
    let (_server, url, digest) = server();
    let generated = Command::new("age-keygen").output().unwrap();
    std::fs::write(here.join("far.key"), &generated.stdout).unwrap();
    let text = String::from_utf8(generated.stdout).unwrap();
    let recipient = text
        .lines()
        .find_map(|line| line.strip_prefix("# public key: "))
        .unwrap();
    let place = format!("s3://{BUCKET}/one/two");
    let words = ["backup", "--from", &url, "--to", &place, "--recipient", recipient];
    let made = run_json(here, &[&words[..], &reach].concat());
    assert!(
        !here.join("data/alone.key").exists(),
        "no identity is made or needed"
    );
    assert!(here.join("data/alone.key.signing").exists());
    let names = server_of_objects.names(BUCKET).unwrap();
    assert!(
        names.len() > 3 && names.iter().all(|name| name.starts_with("one/two/")),
        "{names:?}"
    );
    let words = [
        "restore",
        "--from",
        made["backup"].as_str().unwrap(),
        "--to",
        "back",
        "--identity",
        "far.key",
    ];
    let by = ["--signed-by", made["signed_by"].as_str().unwrap()];
    run_json(here, &[&words[..], &by, &reach].concat());
    starts_on(&here.join("back"), "no", &digest);
    assert!(
        PathBuf::from(made["backup"].as_str().unwrap())
            .file_name()
            .is_some_and(|name| name.len() > 20),
        "a place of its own for each backup"
    );
}

#[test]
fn the_services_own_backups_are_opened_the_same_way_and_the_readmes_lines_work() {
    let service = Service::start();
    let caller = service.caller();
    let instance = caller.make_instance("opened");
    caller.engine(&instance).ask(&["SET", "key", "value"]).unwrap();
    let digest = caller.engine(&instance).ask(&["DEBUG", "DIGEST"]).unwrap();
    let backup = caller.make_backup(&instance, "");
    let here = Scratch::new("alone").unwrap();
    let key = service.run(&["project", "key", "local", "-q"]);
    std::fs::write(here.path().join("key"), &key.stdout).unwrap();
    let store = service.data().join("store").join(&caller.project).join(&instance);
    let from = store.join(&backup).join("1");
    let signing = service.data().join("keys/signing.key");
    run_json(
        here.path(),
        &[
            "restore",
            "--from",
            from.to_str().unwrap(),
            "--to",
            "opened",
            "--identity",
            "key",
            "--signing-key",
            signing.to_str().unwrap(),
        ],
    );
    starts_on(&here.path().join("opened"), "no", digest.text().unwrap());

    let port = TcpListener::bind("127.0.0.1:0")
        .unwrap()
        .local_addr()
        .unwrap()
        .port();
    let server =
        PlainEngine::start(&[("port", &port.to_string()), ("repl-diskless-sync-delay", "0")]).unwrap();
    resp::Connection::open(&server.target())
        .unwrap()
        .ask(&["SET", "key", "of the readme"])
        .unwrap();
    let lines = format!("PORT={port}\n{}", readme::block("alone"));
    readme::run(&service, here.path(), &lines);
    starts_on(&here.path().join("redis-data"), "no", &server.digest().unwrap());
}
