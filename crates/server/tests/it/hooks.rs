//! Hooks: whoever the operator names is told of each end at least once, with one id, and can check who told it.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::unix::fs::PermissionsExt as _;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};

use base64::Engine as _;
use serde_json::{Value, json};
use xtask::scratch::Scratch;

use crate::attach::LOOPBACK;
use crate::schedule::Clock;
use crate::service::{Service, wait};
use crate::shared::Source;

/// A request as it arrived, and what to answer it by.
struct Told {
    id: String,
    seconds: String,
    signature: String,
    body: String,
    stream: TcpStream,
}

impl Told {
    fn read(stream: TcpStream) -> Option<Self> {
        let mut reader = BufReader::new(stream.try_clone().ok()?);
        let mut told = Told {
            id: String::new(),
            seconds: String::new(),
            signature: String::new(),
            body: String::new(),
            stream,
        };
        let mut line = String::new();
        reader.read_line(&mut line).ok()?;
        assert!(line.starts_with("POST /told HTTP/1.1"), "{line}");
        let mut length = 0;
        loop {
            line.clear();
            reader.read_line(&mut line).ok()?;
            let Some((name, value)) = line.trim().split_once(": ") else {
                break;
            };
            match name.to_ascii_lowercase().as_str() {
                "webhook-id" => told.id = value.to_owned(),
                "webhook-timestamp" => told.seconds = value.to_owned(),
                "webhook-signature" => told.signature = value.to_owned(),
                "content-length" => length = value.parse().unwrap(),
                _ => {}
            }
        }
        let mut body = vec![0; length];
        reader.read_exact(&mut body).ok()?;
        told.body = String::from_utf8(body).unwrap();
        Some(told)
    }

    fn json(&self) -> Value {
        serde_json::from_str(&self.body).unwrap()
    }

    fn answer(mut self, status: &str) {
        let text = format!("HTTP/1.1 {status}\r\ncontent-length: 4\r\nconnection: close\r\n\r\nsaid");
        // It may have been killed meanwhile.
        let _gone = self.stream.write_all(text.as_bytes());
    }

    /// Whether the secret's owner said this.
    fn is_of(&self, secret: &str) -> bool {
        let base64 = base64::engine::general_purpose::STANDARD;
        let key = base64.decode(secret.strip_prefix("whsec_").unwrap()).unwrap();
        let key = ring::hmac::Key::new(ring::hmac::HMAC_SHA256, &key);
        let tag = base64
            .decode(self.signature.strip_prefix("v1,").unwrap())
            .unwrap();
        let text = format!("{}.{}.{}", self.id, self.seconds, self.body);
        ring::hmac::verify(&key, text.as_bytes(), &tag).is_ok()
    }
}

/// Somebody at a URL. What arrives is handed over unanswered.
fn receiver() -> (String, Receiver<Told>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}/told", listener.local_addr().unwrap());
    let (sender, told): (SyncSender<Told>, _) = sync_channel(16);
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            if let Some(one) = Told::read(stream)
                && sender.send(one).is_err()
            {
                return;
            }
        }
    });
    (url, told)
}

fn next(told: &Receiver<Told>) -> Told {
    wait("somebody who is told", || told.try_recv().ok())
}

/// Adds a hook and takes its test; returns the secret.
fn add(service: &Service, told: &Receiver<Told>, words: &[&str]) -> String {
    let added = std::thread::scope(|scope| {
        let adding = scope.spawn(|| service.run_json(&[&["hook", "add"], words].concat()));
        let test = next(told);
        assert_eq!(test.json()["type"], "test");
        test.answer("204 No Content");
        adding.join().unwrap()
    });
    added["secret"].as_str().unwrap().to_owned()
}

#[test]
fn a_hook_is_told_of_every_end_signed_and_another_one_only_of_what_it_asked_for() {
    let service = Service::start();
    let ((url, told), (picky_url, picky)) = (receiver(), receiver());
    let secret = add(&service, &told, &["all", "--url", &url]);
    add(
        &service,
        &picky,
        &["picky", "--url", &picky_url, "--event", "restore.succeeded"],
    );
    let caller = service.caller();
    let instance = caller.make_instance("watched");
    let backup = caller.make_backup(&instance, "");
    let first = next(&told);
    assert!(first.is_of(&secret) && !first.is_of("whsec_AAAA"));
    let json = first.json();
    assert_eq!(json["type"], "backup.succeeded");
    assert_eq!(json["id"], first.id);
    assert_eq!(json["data"]["backup_id"], backup);
    assert_eq!(json["data"]["instance_id"], instance);
    assert_eq!(json["data"]["instance_name"], "watched");
    first.answer("200 OK");
    let restore = caller.make_restore(&instance, &backup, "");
    for told in [&told, &picky] {
        let one = next(told);
        assert_eq!(one.json()["type"], "restore.succeeded");
        assert_eq!(one.json()["data"]["restore_id"], restore);
        one.answer("204 No Content");
    }
    // What the reconciler mends is told as well.
    service.sql(&format!(
        "UPDATE instance SET status = 'error', failure = 'by hand' WHERE id = '{instance}'"
    ));
    let trouble = next(&told);
    assert_eq!(trouble.json()["type"], "instance.error");
    assert_eq!(trouble.json()["data"]["failure"], "by hand");
    trouble.answer("200 OK");
    let mended = next(&told);
    assert_eq!(mended.json()["type"], "instance.running");
    mended.answer("200 OK");
    let counts = wait("everything to be taken", || {
        let hooks = service.run_json(&["hook", "list"]);
        let counts = |row: &Value| {
            (
                row["delivered"].as_u64().unwrap(),
                row["waiting"].as_u64().unwrap(),
            )
        };
        let counts: Vec<_> = hooks.as_array().unwrap().iter().map(counts).collect();
        counts.iter().all(|(_, waiting)| *waiting == 0).then_some(counts)
    });
    assert_eq!(counts, [(4, 0), (1, 0)]);
    assert!(picky.try_recv().is_err());
}

#[test]
fn a_drill_that_is_overdue_is_told_once_until_one_has_held() {
    let mut clock = Clock::at("2027-03-01T01:58:00Z");
    let service = Service::start_with(&[], &[clock.variable()]);
    let (url, told) = receiver();
    add(
        &service,
        &told,
        &["oncall", "--url", &url, "--event", "drill.overdue"],
    );
    let caller = service.logged_in();
    let instance = caller.make_instance("undrilled");
    let daily = json!({"name": "drill", "cron": "0 2 * * *", "task": "drill"});
    let schedule = caller
        .ck("POST", &format!("/instances/{instance}/schedules"), Some(&daily))
        .expect(200)
        .json();
    // There is no backup that it could prove.
    clock.pass_to("2027-03-01T06:00:05Z");
    let first = next(&told);
    let json = first.json();
    assert_eq!(
        (&json["type"], &json["timestamp"]),
        (&json!("drill.overdue"), &json!("2027-03-01T06:00:00.000Z"))
    );
    assert_eq!(json["data"]["schedule_id"], schedule["schedule_id"]);
    assert_eq!(json["data"]["instance_name"], "undrilled");
    first.answer("200 OK");
    // It goes on being overdue, on the day after too. Tokens do not live that long.
    clock.pass_to("2027-03-02T06:30:00Z");
    let caller = service.logged_in();
    caller.make_backup(&instance, "");
    let newest = || {
        let path = format!("/instances/{instance}/drills");
        let list = caller.ck("GET", &path, None).expect(200).json();
        list["verifications"][0]["status"].as_str().map(str::to_owned)
    };
    wait("a drill that holds", || (newest()? == "holds").then_some(()));
    assert_eq!(told.try_iter().count(), 0);
}

#[test]
fn a_backup_that_is_cancelled_is_told_as_one_that_failed() {
    let service = Service::start_with(&LOOPBACK, &[]);
    let (url, told) = receiver();
    add(&service, &told, &["all", "--url", &url]);
    let source = Source::start(8, 400_000);
    let caller = service.caller();
    let instance = source.attach(&caller, "throttled");
    let backup = caller.start_backup(&instance, "");
    let path = format!("/instances/{instance}/backups/{backup}/cancel");
    caller.ck("POST", &path, None).expect(200);
    let one = next(&told);
    let json = one.json();
    assert_eq!(json["type"], "backup.failed", "{json}");
    assert_eq!(json["data"]["backup_id"], backup, "{json}");
    one.answer("204 No Content");
}

#[test]
fn what_was_not_taken_is_told_again_with_its_id_after_refusals_and_kills() {
    let mut service = Service::start();
    let (url, told) = receiver();
    add(&service, &told, &["stubborn", "--url", &url]);
    let instance = service.caller().make_instance("told-again");
    service.caller().make_backup(&instance, "");
    let first = next(&told);
    let (id, body) = (first.id.clone(), first.body.clone());
    first.answer("503 Service Unavailable");
    let second = next(&told);
    let shown = service.run_json(&["hook", "show", "stubborn"]);
    assert_eq!(shown[0]["state"], "waiting");
    assert_eq!(shown[0]["tries"], 1);
    assert_eq!(shown[0]["answer"], "it answered 503: said");
    // Killed before it hears that this was taken.
    service.kill();
    assert_eq!((&second.id, &second.body), (&id, &body));
    second.answer("200 OK");
    service.start_again();
    let third = next(&told);
    assert_eq!((&third.id, &third.body), (&id, &body));
    third.answer("200 OK");
    wait("its being taken", || {
        let shown = service.run_json(&["hook", "show", "stubborn"]);
        (shown[0]["state"] == "delivered").then_some(())
    });
    assert_eq!(
        service.run_json(&["hook", "resend", "stubborn"])["tried_again"],
        0
    );
    service.run_json(&["hook", "remove", "stubborn"]);
    assert_eq!(service.run_json(&["hook", "list"]), serde_json::json!([]));
}

#[test]
fn a_program_gets_the_event_and_what_it_prints_is_told_where_it_fails() {
    let service = Service::start();
    let folder = Scratch::new("hook").unwrap();
    std::fs::set_permissions(folder.path(), std::fs::Permissions::from_mode(0o777)).unwrap();
    let (program, seen) = (folder.path().join("hook.sh"), folder.path().join("seen"));
    let write = |text: &str| {
        let new = folder.path().join("new");
        std::fs::write(&new, text).unwrap();
        std::fs::set_permissions(&new, std::fs::Permissions::from_mode(0o755)).unwrap();
        std::fs::rename(&new, &program).unwrap();
    };
    let words = ["hook", "add", "mail", "--exec", program.to_str().unwrap()];
    write("#!/bin/sh\necho not today >&2\nexit 3\n");
    let refused = service.run(&words);
    let said = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert!(!refused.status.success(), "{said}");
    assert!(
        said.contains("exit status: 3: not today. Nothing was added"),
        "{said}"
    );
    write(&format!(
        "#!/bin/sh\n{{ echo \"$CACHEKEEP_EVENT\"; cat; echo; }} >> {}\n",
        seen.display()
    ));
    service.run_json(&words);
    let caller = service.caller();
    let instance = caller.make_instance("mailed");
    let backup = caller.make_backup(&instance, "");
    let lines = wait("the program to be run", || {
        let text = std::fs::read_to_string(&seen).ok()?;
        let lines: Vec<String> = text.lines().map(str::to_owned).collect();
        (lines.len() == 4).then_some(lines)
    });
    assert_eq!(
        (lines[0].as_str(), lines[2].as_str()),
        ("test", "backup.succeeded")
    );
    let event: Value = serde_json::from_str(&lines[3]).unwrap();
    assert_eq!(event["data"]["backup_id"], backup);
    let relative = service.run(&["hook", "add", "other", "--exec", "hook.sh"]);
    let said = String::from_utf8_lossy(&relative.stderr).into_owned();
    assert!(said.contains("is not the whole path of a program"), "{said}");
}
