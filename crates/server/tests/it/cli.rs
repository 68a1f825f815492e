//! The command line: its JSON is the API's, its exit codes say what happened, and `serve` refuses what is unsafe.

use std::path::Path;
use std::process::{Command, Stdio};

use serde_json::{Value, json};
use xtask::scratch::Scratch;

use crate::service::{Credential, Service};

fn text(value: &Value) -> &str {
    value.as_str().unwrap_or_else(|| panic!("{value} is no text"))
}

/// What a verb that must fail says.
#[track_caller]
fn failure(service: &Service, words: &[&str]) -> String {
    let output = service.run(words);
    assert_eq!(output.status.code(), Some(1), "{words:?}");
    String::from_utf8(output.stderr).unwrap()
}

#[test]
fn every_verb_prints_the_json_of_the_api() {
    let service = Service::start();
    let caller = service.caller();
    assert_eq!(
        service.run_json(&["instance", "list"]),
        json!({"instance_num": 0, "instances": []})
    );
    let made = service.run_json(&["instance", "create", "--name", "cache1", "--capacity", "0.125"]);
    let names: Vec<&String> = made.as_object().unwrap().keys().collect();
    assert_eq!(
        names,
        ["instance_id", "instance_name", "ip", "port", "user", "password"]
    );
    assert_eq!(made["user"], json!("default"));
    assert_eq!(
        (text(&made["instance_name"]), text(&made["ip"])),
        ("cache1", "127.0.0.1")
    );
    let (id, password) = (text(&made["instance_id"]).to_owned(), text(&made["password"]));
    let port = u16::try_from(made["port"].as_u64().unwrap()).unwrap();
    let target = xtask::resp::Target::local(port, Some(password));
    let mut engine = xtask::resp::Connection::open(&target).unwrap();
    engine.ask(&["SET", "key", "value"]).unwrap();

    // Measured every few seconds: it may change between two calls.
    let without_memory = |mut value: Value| {
        match value.get_mut("instances") {
            Some(instances) => instances[0]["used_memory"] = Value::Null,
            None => value["used_memory"] = Value::Null,
        }
        value
    };
    let shown = caller.get(&format!("/instances/{id}")).json();
    for name in ["cache1", id.as_str()] {
        let ours = service.run_json(&["instance", "show", name]);
        assert_eq!(without_memory(ours), without_memory(shown.clone()));
    }
    assert_eq!(
        without_memory(service.run_json(&["instance", "list"])),
        without_memory(caller.get("/instances").json())
    );

    let backup = service.run_json(&[
        "backup", "create", "cache1", "--remark", "r\u{e9}", "--wait", "--quiet",
    ]);
    assert_eq!(
        (text(&backup["status"]), text(&backup["remark"])),
        ("succeed", "r\u{e9}")
    );
    let backup_id = text(&backup["backup_id"]);
    assert_eq!(service.run_json(&["backup", "show", "cache1", "latest"]), backup);
    assert_eq!(
        service.run_json(&["backup", "show", "cache1", text(&backup["backup_name"])]),
        backup
    );
    let listed = caller.get(&format!("/instances/{id}/backups")).json();
    assert_eq!(service.run_json(&["backup", "list", "cache1"]), listed);

    engine.ask(&["SET", "key", "overwritten"]).unwrap();
    let restore = service.run_json(&[
        "restore", "create", "cache1", "--backup", "latest", "--remark", "back", "--verify", "full",
        "--wait", "-q",
    ]);
    assert_eq!(
        (text(&restore["status"]), text(&restore["restore_remark"])),
        ("succeed", "back")
    );
    assert_eq!(
        (text(&restore["backup_id"]), text(&restore["ext"]["verify"])),
        (backup_id, "full")
    );
    assert_eq!(
        service.run_json(&["restore", "show", "cache1", "latest"])["restore_id"],
        restore["restore_id"]
    );
    let mut engine = xtask::resp::Connection::open(&target).unwrap();
    assert_eq!(engine.ask(&["GET", "key"]).unwrap().text(), Some("value"));
    let undone = service.run_json(&["restore", "undo", "cache1", "--wait", "-q"]);
    assert_eq!(
        (&undone["status"], &undone["ext"]["undo_of"]),
        (&json!("succeed"), &restore["restore_id"])
    );
    let mut engine = xtask::resp::Connection::open(&target).unwrap();
    assert_eq!(engine.ask(&["GET", "key"]).unwrap().text(), Some("overwritten"));
    let listed = caller.get(&format!("/instances/{id}/restores")).json();
    assert_eq!(service.run_json(&["restore", "list", "cache1"]), listed);
    let page = service.run_json(&["restore", "list", "cache1", "--limit", "1", "--offset", "1"]);
    assert_eq!(
        page["restore_record_response"][0]["restore_id"],
        restore["restore_id"]
    );
    assert_eq!(page["total_num"], 2);
    let none = service.run_json(&["restore", "list", "cache1", "--end-time", "20200101000000"]);
    assert_eq!(none, json!({"restore_record_response": [], "total_num": 0}));

    let file = service.data().join("out.rdb");
    let downloaded = service.run_json(&[
        "backup",
        "download",
        "cache1",
        backup_id,
        "--to",
        file.to_str().unwrap(),
    ]);
    assert_eq!(downloaded["backup_id"], backup["backup_id"]);
    assert_eq!(service.run_json(&["inspect", file.to_str().unwrap()])["keys"], 1);
    assert!(!file.with_file_name("out.rdb.part").exists());

    assert_eq!(
        text(&service.run_json(&["instance", "flush", "cache1"])["status"]),
        "RUNNING"
    );
    assert_eq!(
        text(&service.run_json(&["instance", "restart", "cache1"])["status"]),
        "RUNNING"
    );
    assert!(
        service
            .run(&["backup", "delete", "cache1", backup_id])
            .status
            .success()
    );
    let error = failure(&service, &["backup", "show", "cache1", backup_id]);
    assert!(error.contains("DCS.4031"), "{error}");
    assert!(service.run(&["instance", "delete", "cache1"]).status.success());
    let kept = service.run_json(&["restore", "list", &id]);
    assert_eq!(kept["total_num"], 2, "records outlive their instance");
}

#[test]
fn tables_are_for_people_and_failures_say_what_to_do() {
    let service = Service::start();
    let table = service.run(&["instance", "list"]);
    assert!(table.status.success() && String::from_utf8_lossy(&table.stdout).contains("instance_id"));
    for (words, part) in [
        (vec!["instance", "show", "nobody"], "cachekeep instance list"),
        (
            vec!["instance", "show", "no such & name?"],
            "cachekeep instance list",
        ),
        (
            vec!["backup", "create", "f4823e9e-fe9b-4ffd-be79-4e5d6de272bb"],
            "DCS.3022",
        ),
        (vec!["restore", "list", "nobody"], "cachekeep instance list"),
        (
            vec!["instance", "create", "--name", "1st", "--capacity", "0.125"],
            "DCS.4010",
        ),
        (
            vec!["instance", "create", "--name", "first", "--capacity", "0.3"],
            "no such size",
        ),
        (vec!["project", "create", "local"], "choose another name"),
        (
            vec!["user", "create", "--project", "none", "--name", "x"],
            "cachekeep project list",
        ),
        (vec!["user", "revoke", "none"], "cachekeep user list"),
        (vec!["key", "revoke", "none"], "cachekeep key list"),
    ] {
        let error = failure(&service, &words);
        assert!(error.contains(part), "{words:?}: {error}");
    }
    let elsewhere = Scratch::new("nothing").unwrap();
    for words in [["instance", "list"], ["key", "list"]] {
        let output = Command::new(env!("CARGO_BIN_EXE_cachekeep"))
            .args(words)
            .arg("--data-dir")
            .arg(elsewhere.path())
            .output()
            .unwrap();
        assert_eq!(output.status.code(), Some(1));
        assert!(
            String::from_utf8_lossy(&output.stderr).contains("cachekeep serve"),
            "{words:?}"
        );
    }
    let usage = service.run(&["instance", "explode"]);
    assert_eq!(usage.status.code(), Some(2));
}

#[test]
fn projects_users_and_keys_are_made_listed_and_revoked_while_the_service_runs() {
    let service = Service::start();
    let second = service.second_project("second");
    let of = |list: &Value, name: &str, value: &str| {
        let rows = list.as_array().unwrap();
        rows.iter()
            .find(|row| row[name] == json!(value))
            .cloned()
            .unwrap_or_else(|| panic!("{value}: {list}"))
    };
    let projects = service.run_json(&["project", "list"]);
    assert_eq!(projects.as_array().unwrap().len(), 2);
    assert_eq!(
        of(&projects, "project", "second")["project_id"],
        json!(second.project)
    );
    let users = service.run_json(&["user", "list"]);
    assert_eq!(of(&users, "user", &second.user)["revoked_at"], Value::Null);
    let keys = service.run_json(&["key", "list"]);
    assert_eq!(
        of(&keys, "ak", &second.key.ak)["project_id"],
        json!(second.project)
    );
    for list in [&users, &keys] {
        assert!(!list.to_string().contains(&second.key.sk) && !list.to_string().contains(&second.password));
    }
    let caller = service.caller_with(&second.project, Credential::Key(second.key.clone()));
    let instance = caller.make_instance("of-the-second");
    caller.make_backup(&instance, "");
    assert_eq!(
        service.run_json(&["instance", "list"])["instance_num"],
        0,
        "the first project sees none of it"
    );
    service.run_json(&["user", "revoke", &second.user]);
    service.run_json(&["key", "revoke", &second.key.ak]);
    caller.get("/instances").refused("401 APIGW.0301");
    assert!(of(&service.run_json(&["user", "list"]), "user", &second.user)["revoked_at"].is_string());
    assert!(failure(&service, &["key", "revoke", &second.key.ak]).contains("could be revoked"));
    assert!(failure(&service, &["user", "revoke", &second.user]).contains("could be revoked"));
}

fn inspect(file: &std::path::Path) -> (Option<i32>, Value) {
    let output = Command::new(env!("CARGO_BIN_EXE_cachekeep"))
        .args(["inspect", "-o", "json"])
        .arg(file)
        .output()
        .unwrap();
    (
        output.status.code(),
        serde_json::from_slice(&output.stdout).unwrap_or_default(),
    )
}

#[test]
fn inspect_says_which_engines_load_a_file_and_why_others_do_not() {
    let file = concat!(env!("CARGO_MANIFEST_DIR"), "/../rdb/tests/fixtures/redis-8.0.rdb");
    let asked = |targets: &[&str]| {
        let words = targets.iter().flat_map(|target| ["--target", target]);
        let output = Command::new(env!("CARGO_BIN_EXE_cachekeep"))
            .args(["inspect", "-o", "json", file])
            .args(words)
            .output()
            .unwrap();
        let seen: Value = serde_json::from_slice(&output.stdout).unwrap_or_default();
        (output.status.code(), seen["targets"].clone())
    };
    let (code, targets) = asked(&["redis-8.0", "redis-8.6"]);
    assert_eq!(code, Some(0), "{targets}");
    let (code, targets) = asked(&["redis-8.0", "valkey-9.1"]);
    assert_eq!(code, Some(3));
    assert_eq!(
        (&targets[0]["loads"], &targets[1]["loads"]),
        (&json!(true), &json!(false))
    );
    let why = targets[1]["why_not"][0].as_str().unwrap();
    assert!(why.contains("up to version 11, this is 12"), "{why}");
    assert_eq!(asked(&["redis-1.0"]).0, Some(2));
}

#[test]
fn inspect_tells_a_valid_file_from_an_invalid_and_an_unreadable_one() {
    let folder = Scratch::new("inspect").unwrap();
    let file = folder.path().join("some.rdb");
    // Version 9, database 0, `k` = `v` with an expiry, checksum switched off.
    let mut good = b"REDIS0009\xfe\x00\xfc\x00\x00\x00\x00\x00\x01\x00\x00\x00\x01k\x01v\xff".to_vec();
    good.extend_from_slice(&[0; 8]);
    std::fs::write(&file, &good).unwrap();
    let (code, seen) = inspect(&file);
    assert_eq!(code, Some(0), "{seen}");
    assert_eq!(
        (&seen["magic"], &seen["rdb_version"]),
        (&json!("REDIS"), &json!(9))
    );
    assert_eq!(
        (&seen["keys"], &seen["expires"], &seen["valid"]),
        (&json!(1), &json!(1), &json!(true))
    );
    assert_eq!(seen["error"], Value::Null);
    let mut wrong_checksum = good.clone();
    *wrong_checksum.last_mut().unwrap() = 1;
    for (bad, keys) in [
        (&good[..good.len() - 12], 0),
        (&wrong_checksum, 1),
        (&b"REDIS0009\xfe\x00\x63\x01k"[..], 0),
        (b"", 0),
        (b"garbage that is no file of ours", 0),
    ] {
        std::fs::write(&file, bad).unwrap();
        let (code, seen) = inspect(&file);
        assert_eq!(code, Some(1), "{seen}");
        assert_eq!(
            (&seen["valid"], &seen["keys"]),
            (&json!(false), &json!(keys)),
            "{seen}"
        );
        let error = &seen["error"];
        assert!(error["offset"].as_u64().unwrap() <= bad.len() as u64, "{error}");
        assert!(!text(&error["kind"]).is_empty() && !text(&error["message"]).is_empty());
        let known = seen["rdb_version"] == 9 && seen["magic"] == "REDIS";
        assert_eq!(known, bad.starts_with(b"REDIS0009"), "{seen}");
    }
    assert_eq!(inspect(&folder.path().join("missing.rdb")).0, Some(2));
    assert_eq!(inspect(folder.path()).0, Some(2));
    let usage = Command::new(env!("CARGO_BIN_EXE_cachekeep"))
        .arg("inspect")
        .output()
        .unwrap();
    assert_eq!(usage.status.code(), Some(2));
    let mut piped = Command::new(env!("CARGO_BIN_EXE_cachekeep"))
        .args(["inspect", "-"])
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .spawn()
        .unwrap();
    std::io::Write::write_all(&mut piped.stdin.take().unwrap(), &good).unwrap();
    assert_eq!(piped.wait().unwrap().code(), Some(0));
}

/// Runs `serve` where it must end by itself and returns what it says.
fn refused_serve(words: &[&str], data: &std::path::Path) -> String {
    let output = Command::new(env!("CARGO_BIN_EXE_cachekeep"))
        .arg("serve")
        .args(words)
        .arg("--data-dir")
        .arg(data)
        .stdin(Stdio::null())
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(1), "{words:?}");
    String::from_utf8(output.stderr).unwrap()
}

#[test]
fn serve_refuses_clear_text_beyond_this_machine_and_a_second_process_on_its_data() {
    use std::os::unix::fs::PermissionsExt as _;
    let service = Service::start();
    let folder = Scratch::new("refused").unwrap();
    let error = refused_serve(&["--listen", "0.0.0.0:0"], folder.path());
    assert!(
        error.contains("--tls-cert") && error.contains("--insecure"),
        "{error}"
    );
    let error = refused_serve(&["--listen", "[::]:0"], folder.path());
    assert!(error.contains("--insecure"), "{error}");
    let error = refused_serve(&["--listen", "127.0.0.1:0"], &service.data());
    assert!(error.contains("another cachekeep runs on"), "{error}");
    let error = refused_serve(&["--listen", service.address()], folder.path());
    assert!(error.contains("--listen"), "{error}");
    let mode = |path: &str| {
        std::fs::metadata(service.data().join(path))
            .unwrap()
            .permissions()
            .mode()
            & 0o777
    };
    assert_eq!(mode("admin.json"), 0o600);
    assert_eq!(mode("catalog.sqlite"), 0o600);
    assert_eq!(mode("keys"), 0o700);
    assert_eq!(mode("keys/master.key"), 0o600);
    assert_eq!(mode("keys/signing.key"), 0o600);
    for name in [
        "endpoint",
        "region",
        "project",
        "project_id",
        "ak",
        "sk",
        "user",
        "password",
        "domain",
    ] {
        service.admin(name);
    }
    let log = service.log();
    for secret in ["sk", "password"] {
        assert!(!log.contains(service.admin(secret)), "the {secret} is in the log");
    }
}

/// A self-signed certificate for this machine and its key, in these files.
fn make_certificate(certificate: &Path, key: &Path) {
    let made = Command::new("openssl")
        .args([
            "req",
            "-x509",
            "-newkey",
            "rsa:2048",
            "-nodes",
            "-days",
            "2",
            "-subj",
            "/CN=localhost",
        ])
        .args(["-addext", "subjectAltName=IP:127.0.0.1,DNS:localhost", "-keyout"])
        .arg(key)
        .arg("-out")
        .arg(certificate)
        .output()
        .unwrap();
    assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
}

#[test]
fn a_serve_that_is_refused_says_why_and_leaves_no_data_directory() {
    let folder = Scratch::new("refused").unwrap();
    let data = folder.path().join("made/by/serve");
    let file = |name: &str| folder.path().join(name).to_str().unwrap().to_owned();
    let (certificate, key, other, other_key) = (
        file("cert.pem"),
        file("key.pem"),
        file("other.pem"),
        file("other-key.pem"),
    );
    make_certificate(certificate.as_ref(), key.as_ref());
    make_certificate(other.as_ref(), other_key.as_ref());
    let (empty, plain, broken) = (file("empty"), file("plain"), file("broken.pem"));
    std::fs::write(&empty, "").unwrap();
    std::fs::write(&plain, "no PEM at all\n").unwrap();
    let whole = std::fs::read_to_string(&certificate).unwrap();
    std::fs::write(&broken, whole.replacen("MII", "M!I", 1)).unwrap();
    let stranger = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let taken = stranger.local_addr().unwrap().to_string();
    let tls = |certificate: &str, key: &str| {
        [
            "--listen",
            "127.0.0.1:0",
            "--tls-cert",
            certificate,
            "--tls-key",
            key,
        ]
        .map(str::to_owned)
    };
    for (words, parts) in [
        (
            vec!["--listen".to_owned(), taken.clone()],
            vec![taken.as_str(), "--listen"],
        ),
        (
            ["--listen", "0.0.0.0:0"].map(str::to_owned).to_vec(),
            vec!["--tls-cert", "--insecure"],
        ),
        (vec!["--undo-keep=-1".to_owned()], vec!["--undo-keep"]),
        (
            tls("/nowhere/cert.pem", &key).to_vec(),
            vec!["--tls-cert /nowhere/cert.pem", "openssl req"],
        ),
        (
            tls(&certificate, "/nowhere/key.pem").to_vec(),
            vec!["--tls-key /nowhere/key.pem", "openssl req"],
        ),
        (
            tls(&empty, &key).to_vec(),
            vec!["--tls-cert", &empty, "it is empty", "openssl req"],
        ),
        (
            tls(&plain, &key).to_vec(),
            vec!["--tls-cert", &plain, "no PEM", "openssl req"],
        ),
        (tls(&broken, &key).to_vec(), vec!["--tls-cert", &broken, "broken"]),
        // The two mixed up: the first that is read says what it holds instead.
        (
            tls(&key, &certificate).to_vec(),
            vec!["--tls-cert", "it holds: PRIVATE KEY"],
        ),
        (
            tls(&certificate, &certificate).to_vec(),
            vec!["--tls-key", "it holds: CERTIFICATE", "openssl req"],
        ),
        (
            tls(&certificate, &other_key).to_vec(),
            vec![&certificate, &other_key, "the key must be that of"],
        ),
    ] {
        let said = refused_serve(&words.iter().map(String::as_str).collect::<Vec<_>>(), &data);
        for part in parts {
            assert!(said.contains(part), "{words:?}: {part}: {said}");
        }
        assert!(
            !folder.path().join("made").exists(),
            "{words:?} left a data directory"
        );
    }
}

#[test]
fn serve_listens_where_a_name_leads_and_refuses_what_is_no_address() {
    let service = Service::start_with(&["--listen", "localhost:0"], &[]);
    assert!(service.admin("endpoint").starts_with("http://127.0.0.1:"));
    service.run_json(&["instance", "list"]);
    let folder = Scratch::new("refused").unwrap();
    let data = folder.path().join("data");
    for wrong in [
        "localhost",
        "8635",
        ":8635",
        "localhost:http",
        "127.0.0.1:70000",
        "no.such.name.invalid:8635",
    ] {
        let output = Command::new(env!("CARGO_BIN_EXE_cachekeep"))
            .args(["serve", "--listen", wrong, "--data-dir"])
            .arg(&data)
            .output()
            .unwrap();
        assert_eq!(output.status.code(), Some(2), "{wrong}");
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(said.contains("localhost:8635"), "{wrong}: {said}");
    }
    assert!(!data.exists());
}

#[test]
fn the_command_line_works_over_https_with_a_certificate_of_ones_own() {
    let folder = Scratch::new("tls").unwrap();
    let (certificate, key) = (folder.path().join("cert.pem"), folder.path().join("key.pem"));
    make_certificate(&certificate, &key);
    let words = [
        "--tls-cert",
        certificate.to_str().unwrap(),
        "--tls-key",
        key.to_str().unwrap(),
    ];
    let service = Service::start_with(&words, &[]);
    assert!(service.admin("endpoint").starts_with("https://127.0.0.1:"));
    service.run_json(&["instance", "create", "--name", "over-tls", "--capacity", "0.125"]);
    service.run_json(&["backup", "create", "over-tls", "--wait", "-q"]);
    let file = service.data().join("out.rdb");
    service.run_json(&[
        "backup",
        "download",
        "over-tls",
        "latest",
        "--to",
        file.to_str().unwrap(),
    ]);
    assert_eq!(inspect(&file).0, Some(0));
    service.run_json(&[
        "restore", "create", "over-tls", "--backup", "latest", "--wait", "-q",
    ]);
    service.run(&["instance", "delete", "over-tls"]);
}

#[test]
fn a_reader_that_stops_early_is_no_failure() {
    let service = Service::start();
    for number in 0..3 {
        service.caller().make_instance(&format!("listed{number}"));
    }
    for words in [
        "instance list -o json",
        "instance list",
        "project list",
        "instance show listed0",
    ] {
        let script = format!(
            "{} --data-dir {} {words} | true; echo ${{PIPESTATUS[0]}}",
            env!("CARGO_BIN_EXE_cachekeep"),
            service.data().display()
        );
        let output = Command::new("bash").args(["-c", &script]).output().unwrap();
        let (code, said) = (
            String::from_utf8_lossy(&output.stdout),
            String::from_utf8_lossy(&output.stderr),
        );
        assert!(["0", "141"].contains(&code.trim()), "{words}: {code} {said}");
        assert!(!said.contains("panicked"), "{words}: {said}");
    }
}
