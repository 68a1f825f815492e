//! Verifies and imports that callers of the API ask for: beside the instance's one operation, each with a record that tells
//! what became of it.

use std::io::{Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use serde_json::{Value, json};
use xtask::plain_engine::PlainEngine;
use xtask::resp;
use xtask::scratch::Scratch;
use xtask::service::processes_in;
use xtask::throttle::Throttle;

use crate::http::Request;
use crate::service::{Caller, Service, wait};

pub fn verify(caller: &Caller, instance: &str, backup: &str, level: &str) -> String {
    let path = format!("/instances/{instance}/backups/{backup}/verify");
    let started = caller
        .ck("POST", &path, Some(&json!({"level": level})))
        .expect(200)
        .json();
    started["verification_id"].as_str().unwrap().to_owned()
}

fn verifications(caller: &Caller, instance: &str, backup: &str) -> Vec<Value> {
    let path = format!("/instances/{instance}/backups/{backup}/verifications");
    let list = caller.ck("GET", &path, None).expect(200).json();
    list["verifications"].as_array().unwrap().clone()
}

pub fn wait_verified(caller: &Caller, instance: &str, backup: &str, id: &str) -> Value {
    wait("the end of a verify", || {
        let list = verifications(caller, instance, backup);
        let found = list.into_iter().find(|row| row["verification_id"] == id).unwrap();
        (!found["finished_at"].is_null()).then_some(found)
    })
}

pub fn show(caller: &Caller, instance: &str, backup: &str) -> Value {
    let path = format!("/instances/{instance}/backups/{backup}");
    caller.ck("GET", &path, None).expect(200).json()
}

fn fill(caller: &Caller, instance: &str, keys: &str) {
    let mut engine = caller.engine(instance);
    engine.ask(&["DEBUG", "POPULATE", keys, "key", "400"]).unwrap();
}

fn segment(service: &Service, caller: &Caller, instance: &str, backup: &str) -> PathBuf {
    let folder = service.data().join("store").join(&caller.project).join(instance);
    folder.join(backup).join("1/shard-0/seg-000000.rdb.zst.age")
}

#[test]
fn a_verify_by_the_api_tells_its_outcome_and_writes_it_on_the_backup() {
    let service = Service::start();
    let caller = service.caller();
    let instance = caller.make_instance("asked");
    fill(&caller, &instance, "30000");
    let backup = caller.make_backup(&instance, "");
    for level in ["stored", "parsed", "proven"] {
        let id = verify(&caller, &instance, &backup, level);
        let row = wait_verified(&caller, &instance, &backup, &id);
        assert_eq!(
            (&row["status"], &row["level"], &row["progress"], &row["failure"]),
            (&json!("holds"), &json!(level), &json!("100.00"), &Value::Null),
            "{row}"
        );
        let proof = show(&caller, &instance, &backup)["ext"]["proof"].clone();
        assert_eq!(
            (&proof["level"], &proof["holds"], &proof["verified_at"]),
            (&json!(level), &json!(true), &row["finished_at"])
        );
        assert_eq!(row["load_ms"].is_null(), level != "proven", "{row}");
    }
    let file = segment(&service, &caller, &instance, &backup);
    let whole = std::fs::read(&file).unwrap();
    let mut bytes = whole.clone();
    bytes[whole.len() / 2] ^= 1;
    std::fs::write(&file, &bytes).unwrap();
    let id = verify(&caller, &instance, &backup, "proven");
    let row = wait_verified(&caller, &instance, &backup, &id);
    assert_eq!(row["status"], "damaged", "{row}");
    assert!(row["failure"].as_str().unwrap().contains("seg-000000"), "{row}");
    assert_eq!(show(&caller, &instance, &backup)["is_support_restore"], "FALSE");
    assert_eq!(
        std::fs::read(&file).unwrap(),
        bytes,
        "nothing is mended or removed"
    );
    std::fs::write(&file, &whole).unwrap();
    let id = verify(&caller, &instance, &backup, "proven");
    assert_eq!(wait_verified(&caller, &instance, &backup, &id)["status"], "holds");
    assert_eq!(show(&caller, &instance, &backup)["is_support_restore"], "TRUE");
    let levels: Vec<String> = verifications(&caller, &instance, &backup)
        .iter()
        .map(|row| {
            format!(
                "{} {}",
                row["level"].as_str().unwrap(),
                row["status"].as_str().unwrap()
            )
        })
        .collect();
    let expected = [
        "proven holds",
        "proven damaged",
        "proven holds",
        "parsed holds",
        "stored holds",
    ];
    assert_eq!(levels, expected);
    let spool = std::fs::read_dir(service.data().join("spool")).unwrap();
    assert_eq!(spool.count(), 0, "a verify leaves nothing behind");
}

#[test]
fn a_verify_for_want_of_memory_fails_and_says_nothing_of_the_backup() {
    let service = Service::start_with(&[], &[("CACHEKEEP_MEMORY_AVAILABLE", "1000000000")]);
    let caller = service.caller();
    let instance = caller.make_instance("poor");
    let backup = caller.make_backup(&instance, "");
    service.sql(&format!(
        "UPDATE backup SET used_memory_bytes = 5000000000 WHERE id = '{backup}'"
    ));
    let id = verify(&caller, &instance, &backup, "proven");
    let row = wait_verified(&caller, &instance, &backup, &id);
    assert_eq!(row["status"], "failed", "{row}");
    assert!(row["failure"].as_str().unwrap().contains("MB are free"), "{row}");
    assert_eq!(show(&caller, &instance, &backup)["ext"]["proof"], Value::Null);
}

#[test]
fn a_verify_is_asked_for_once_and_refused_where_nothing_can_be_verified() {
    let service = Service::start();
    let caller = service.caller();
    let instance = caller.make_instance("refusing");
    let backup = caller.make_backup(&instance, "");
    let path = format!("/instances/{instance}/backups/{backup}/verify");
    for body in [json!({"level": "believed"}), json!({"level": ["parsed"]})] {
        caller.ck("POST", &path, Some(&body)).refused("400 DCS.4063");
    }
    let keyed = || {
        Request::json(
            "POST",
            &format!("/ck/v1/{}{path}", caller.project),
            &json!({"level": "stored"}),
        )
        .with("Idempotency-Key", "verify-1")
    };
    let first = caller.send(keyed()).expect(200).json();
    let id = first["verification_id"].as_str().unwrap();
    wait_verified(&caller, &instance, &backup, id);
    assert_eq!(caller.send(keyed()).expect(200).json(), first);
    assert_eq!(verifications(&caller, &instance, &backup).len(), 1);
    // The kept generation of a restore has no file.
    caller.make_restore(&instance, &backup, "");
    let list = caller
        .get(&format!("/instances/{instance}/backups"))
        .expect(200)
        .json();
    let kept = list["backup_record_response"][0]["backup_id"].as_str().unwrap();
    caller
        .ck(
            "POST",
            &format!("/instances/{instance}/backups/{kept}/verify"),
            None,
        )
        .refused("400 DCS.4087");
    let deleted = format!("/instances/{instance}/backups/{backup}");
    caller.v2("DELETE", &deleted, None).expect(204);
    caller.ck("POST", &path, None).refused("400 DCS.4031");
}

#[test]
fn a_verify_that_a_kill_interrupts_is_begun_anew_and_comes_to_its_end() {
    let mut service = Service::start();
    let caller = service.caller();
    let instance = caller.make_instance("interrupted");
    fill(&caller, &instance, "200000");
    let backup = caller.make_backup(&instance, "");
    let id = verify(&caller, &instance, &backup, "proven");
    let spool = service.data().join("spool");
    wait("a throw-away engine", || {
        let list = verifications(&caller, &instance, &backup);
        assert!(
            list[0]["finished_at"].is_null(),
            "it was over before it was looked at"
        );
        (!processes_in(&spool).is_empty()).then_some(())
    });
    // The instance is as free as ever: another operation is accepted and done meanwhile.
    caller.make_backup(&instance, "beside a verify");
    service.kill();
    service.start_again();
    let caller = service.caller();
    let row = wait_verified(&caller, &instance, &backup, &id);
    assert_eq!(row["status"], "holds", "{row}");
    wait("the end of both engines", || {
        let left = std::fs::read_dir(&spool).unwrap().count();
        (processes_in(&spool).is_empty() && left == 0).then_some(())
    });
}

/// A web server of one file; what it does is said by the path.
pub struct FileServer {
    port: u16,
    came: Arc<AtomicUsize>,
}

impl FileServer {
    pub fn start(file: &Path) -> Self {
        let bytes = Arc::new(std::fs::read(file).unwrap());
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let came = Arc::new(AtomicUsize::new(0));
        let counted = Arc::clone(&came);
        std::thread::spawn(move || {
            for client in listener.incoming() {
                counted.fetch_add(1, Ordering::SeqCst);
                let bytes = bytes.clone();
                std::thread::spawn(move || {
                    let _gone = client.and_then(|client| answer(client, &bytes));
                });
            }
        });
        Self { port, came }
    }

    pub fn url(&self, path: &str) -> String {
        format!("http://127.0.0.1:{}{path}", self.port)
    }
}

fn answer(mut client: TcpStream, bytes: &[u8]) -> std::io::Result<()> {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        let mut byte = [0];
        client.read_exact(&mut byte)?;
        head.push(byte[0]);
    }
    let head = String::from_utf8_lossy(&head).into_owned();
    let path = head.split(' ').nth(1).unwrap_or_default();
    if let Some(port) = path.strip_prefix("/to/") {
        let told = format!(
            "HTTP/1.1 302 Found\r\nConnection: close\r\nLocation: http://127.0.0.1:{port}/\r\nContent-Length: 0\r\n\r\n"
        );
        return client.write_all(told.as_bytes());
    }
    let length = bytes.len();
    let told = format!("HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: {length}\r\n\r\n");
    client.write_all(told.as_bytes())?;
    if path.starts_with("/stuck") {
        client.write_all(&bytes[..length / 2])?;
        std::thread::sleep(Duration::from_secs(120));
    }
    let sent = if path.starts_with("/cut") {
        length / 2
    } else {
        length
    };
    client.write_all(&bytes[..sent])
}

pub fn dump(folder: &Path) -> PathBuf {
    let server = PlainEngine::start(&[]).unwrap();
    let mut client = resp::Connection::open(&server.target()).unwrap();
    client.ask(&["DEBUG", "POPULATE", "20000", "key", "100"]).unwrap();
    client.ask(&["SAVE"]).unwrap();
    let file = folder.join("dump.rdb");
    std::fs::copy(server.folder().join("dump.rdb"), &file).unwrap();
    file
}

pub fn import(caller: &Caller, instance: &str, url: &str) -> String {
    let path = format!("/instances/{instance}/imports");
    let wish = json!({"url": url, "remark": "from afar"});
    let started = caller.ck("POST", &path, Some(&wish)).expect(200).json();
    started["backup_id"].as_str().unwrap().to_owned()
}

#[test]
fn an_import_by_the_api_becomes_a_backup_that_can_be_restored() {
    let outside = Scratch::new("far").unwrap();
    let file = dump(outside.path());
    let server = FileServer::start(&file);
    let allow = format!("127.0.0.1:{}", server.port);
    let service = Service::start_with(&["--import-allow", &allow], &[]);
    let caller = service.caller();
    let instance = caller.make_instance("importing");
    let backup = import(
        &caller,
        &instance,
        &server.url("/dump.rdb?signature=not-to-be-kept"),
    );
    let record = caller.wait_end(&instance, "backups", &backup);
    assert_eq!(
        (&record["status"], &record["ext"]["keys"], &record["remark"]),
        (&json!("succeed"), &json!(20_000), &json!("from afar")),
        "{record}"
    );
    let same = service.run(&["diff", &backup, file.to_str().unwrap()]);
    assert_eq!(same.status.code(), Some(0));
    caller.make_restore(&instance, &backup, "what was imported");
    assert_eq!(
        caller.engine(&instance).ask(&["DBSIZE"]).unwrap(),
        resp::Reply::Number(20_000)
    );
    assert!(!service.log().contains("not-to-be-kept"));
    let rebuilt = std::fs::read(service.data().join("catalog.sqlite")).unwrap();
    let wal = std::fs::read(service.data().join("catalog.sqlite-wal")).unwrap_or_default();
    for bytes in [rebuilt, wal] {
        let found = bytes.windows(14).any(|window| window == b"not-to-be-kept");
        assert!(!found, "the query of the URL is on disk");
    }
}

#[test]
fn an_import_that_is_cancelled_stops_reading_and_is_no_backup() {
    let outside = Scratch::new("far").unwrap();
    let server = FileServer::start(&dump(outside.path()));
    let slow = Throttle::start(([127, 0, 0, 1], server.port).into(), 20_000).unwrap();
    let service = Service::start_with(&["--import-allow", "127.0.0.0/8"], &[]);
    let caller = service.caller();
    let instance = caller.make_instance("importing");
    let url = format!("http://{}/dump.rdb", slow.address());
    let backup = import(&caller, &instance, &url);
    wait("the file to be read", || (slow.connections() > 0).then_some(()));
    let path = format!("/instances/{instance}/backups/{backup}/cancel");
    caller.ck("POST", &path, None).expect(200);
    let record = caller.wait_end(&instance, "backups", &backup);
    let failure = record["ext"]["failure"].as_str().unwrap();
    assert!(failure.contains("it was cancelled"), "{record}");
    wait("the file to be let go", || {
        (slow.connections() == 0).then_some(())
    });
    caller.ck("POST", &path, None).refused("400 DCS.4026");
    caller.make_backup(&instance, "after it");
}

#[test]
fn what_a_caller_names_leads_nowhere_it_must_not_and_its_record_says_so() {
    let outside = Scratch::new("far").unwrap();
    let server = FileServer::start(&dump(outside.path()));
    // The whole machine is allowed: our own ports are not reached all the same.
    let service = Service::start_with(&["--import-allow", "127.0.0.0/8"], &[]);
    let caller = service.caller();
    let instance = caller.make_instance("guarded");
    let shown = caller.get(&format!("/instances/{instance}")).expect(200).json();
    let engine = shown["port"].as_u64().unwrap();
    let own: u16 = service.address().rsplit(':').next().unwrap().parse().unwrap();
    for (url, why) in [
        (server.url("/cut"), "read"),
        (server.url(&format!("/to/{engine}")), "service has not allowed"),
        (server.url(&format!("/to/{own}")), "service has not allowed"),
        (format!("http://127.0.0.1:{engine}/"), "service has not allowed"),
        (format!("http://localhost:{own}/"), "service has not allowed"),
        (
            "http://169.254.169.254/latest".to_owned(),
            "service has not allowed",
        ),
    ] {
        let backup = import(&caller, &instance, &url);
        let record = caller.wait_end(&instance, "backups", &backup);
        let failure = record["ext"]["failure"].as_str().unwrap_or_default().to_owned();
        assert_eq!(record["status"], "failed", "{url}: {record}");
        assert!(failure.contains(why), "{url}: {failure}");
        // Which address a name has is for the operator.
        let told = failure.contains("169.254.169.254 is") || failure.contains("127.0.0.1 is");
        assert!(!told, "{url}: {failure}");
    }
    let path = format!("/instances/{instance}/imports");
    for wish in [
        json!({}),
        json!({"url": "file:///etc/passwd"}),
        json!({"url": "https://user:secret@example.com/x"}),
        json!({"url": "dump.rdb"}),
        json!({"url": 7}),
        json!({"url": ["https://example.com/x"]}),
    ] {
        caller.ck("POST", &path, Some(&wish)).refused("400 DCS.4063");
    }
    caller
        .ck(
            "POST",
            &path,
            Some(&json!({"url": server.url("/x"), "remark": "x".repeat(129)})),
        )
        .refused("400 DCS.4098");
}

#[test]
fn an_import_takes_no_operation_and_one_that_a_kill_interrupts_has_failed() {
    let outside = Scratch::new("far").unwrap();
    let server = FileServer::start(&dump(outside.path()));
    let mut service = Service::start_with(&["--import-allow", "127.0.0.1"], &[]);
    let caller = service.caller();
    let instance = caller.make_instance("patient");
    let keyed = || {
        Request::json(
            "POST",
            &format!("/ck/v1/{}/instances/{instance}/imports", caller.project),
            &json!({"url": server.url("/stuck")}),
        )
        .with("Idempotency-Key", "import-1")
    };
    let first = caller.send(keyed()).expect(200).json();
    let second = import(&caller, &instance, &server.url("/stuck/too"));
    wait("both to be read", || {
        (server.came.load(Ordering::SeqCst) == 2).then_some(())
    });
    // Sent again it is the same one; a third has no place.
    assert_eq!(caller.send(keyed()).expect(200).json(), first);
    let path = format!("/instances/{instance}/imports");
    let refused = caller.ck("POST", &path, Some(&json!({"url": server.url("/x")})));
    assert_eq!((refused.status, refused.header("retry-after")), (429, Some("1")));
    caller.make_backup(&instance, "beside imports");
    service.kill();
    service.start_again();
    let caller = service.caller();
    for id in [first["backup_id"].as_str().unwrap(), &second] {
        let record = caller.wait_end(&instance, "backups", id);
        assert_eq!(record["status"], "failed", "{record}");
        assert!(
            record["ext"]["failure"]
                .as_str()
                .unwrap()
                .contains("import the file again"),
            "{record}"
        );
    }
    assert_eq!(
        server.came.load(Ordering::SeqCst),
        2,
        "nothing is fetched anew by itself"
    );
}
