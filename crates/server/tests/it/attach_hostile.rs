//! Sources that answer as an engine does until they are captured, and sources that would suffer.

use std::io::Write;
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use serde_json::json;
use xtask::foreign::{Access, Deployment, Form};

use crate::attach::{attach_open, forget_peak, peak, resident, start};
use crate::scripted;
use crate::service::{Caller, Service};

const REPLID: &str = "0123456789abcdef0123456789abcdef01234567";
const MARK: &str = "markmarkmarkmarkmarkmarkmarkmarkmarkmark";

/// What follows `PSYNC`.
type Lie = fn(&mut TcpStream) -> std::io::Result<()>;

fn full(client: &mut TcpStream, rest: &[u8]) -> std::io::Result<()> {
    client.write_all(format!("+FULLRESYNC {REPLID} 1\r\n").as_bytes())?;
    client.write_all(rest)
}

fn snapshot(client: &mut TcpStream) -> std::io::Result<()> {
    full(client, format!("$EOF:{MARK}\r\n").as_bytes())?;
    client.write_all(b"REDIS0010\xfe\x00")
}

pub fn for_ever(client: &mut TcpStream, piece: &[u8], pause: Duration) -> std::io::Result<()> {
    loop {
        client.write_all(piece)?;
        std::thread::sleep(pause);
    }
}

/// Each is a way not to give a snapshot.
const LIES: [(&str, Lie); 20] = [
    ("closes", |_| Ok(())),
    ("refuses", |client| {
        client.write_all(b"-ERR no secret for you\r\n")
    }),
    ("is loading", |client| client.write_all(b"-LOADING secret\r\n")),
    ("goes on with a stream", |client| {
        client.write_all(b"+CONTINUE\r\n")
    }),
    ("names no history", |client| {
        client.write_all(b"+FULLRESYNC secret 1\r\n")
    }),
    ("names no offset", |client| {
        client.write_all(format!("+FULLRESYNC {REPLID} secret\r\n").as_bytes())
    }),
    ("says an endless line", |client| {
        for_ever(client, &[b'a'; 4096], Duration::ZERO)
    }),
    ("keeps alive for ever", |client| {
        for_ever(client, b"\n", Duration::from_millis(20))
    }),
    ("drips a line", |client| {
        for_ever(client, b"+", Duration::from_millis(50))
    }),
    ("has no header", |client| full(client, b"secret\r\n")),
    ("has a huge length", |client| {
        full(client, b"$999999999999\r\nREDIS0010")
    }),
    ("has a negative length", |client| full(client, b"$-5\r\n")),
    ("has a short mark", |client| full(client, b"$EOF:secret\r\n")),
    ("ends at once", |client| {
        full(client, format!("$EOF:{MARK}\r\n{MARK}").as_bytes())
    }),
    ("is cut off", |client| full(client, b"$1000\r\nREDIS0010\xfe\x00")),
    ("sends zeros for ever", |client| {
        full(client, format!("$EOF:{MARK}\r\n").as_bytes())?;
        for_ever(client, &[0; 65536], Duration::ZERO)
    }),
    ("sends keys for ever", |client| {
        snapshot(client)?;
        let mut number = 0u64;
        loop {
            let mut block = Vec::new();
            for _ in 0..100 {
                number += 1;
                let key = format!("{number:012}");
                block.extend_from_slice(b"\x00\x0c");
                block.extend_from_slice(key.as_bytes());
                // A string of 8192 bytes: its length in 14 bits, then its bytes.
                block.extend_from_slice(&[0x60, 0x00]);
                block.resize(block.len() + 8192, b'v');
            }
            client.write_all(&block)?;
        }
    }),
    ("drips a snapshot", |client| {
        snapshot(client)?;
        for_ever(client, b"\xfa", Duration::from_millis(50))
    }),
    ("has a string of an exabyte", |client| {
        snapshot(client)?;
        client.write_all(b"\x00\x03key\x81\x10\x00\x00\x00\x00\x00\x00\x00")?;
        for_ever(client, &[b'x'; 65536], Duration::ZERO)
    }),
    ("falls silent in the middle", |client| {
        snapshot(client)?;
        std::thread::sleep(Duration::from_secs(30));
        Ok(())
    }),
];

/// Answers as an engine does, but for `PSYNC`.
fn pretend(client: TcpStream, lie: Lie) {
    scripted::serve(client, |words, output| match words {
        ["psync", ..] => {
            lie(output)?;
            Err(std::io::ErrorKind::ConnectionAborted.into())
        }
        _ => output.write_all(scripted::as_engine(words).as_bytes()),
    });
}

/// An instance whose server tells the lie that it was told last.
fn liar(caller: &Caller) -> (String, Arc<Mutex<Lie>>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let lie = Arc::new(Mutex::new(LIES[0].1));
    let told = lie.clone();
    std::thread::spawn(move || {
        for client in listener.incoming().flatten() {
            let lie = *told.lock().unwrap();
            std::thread::spawn(move || pretend(client, lie));
        }
    });
    let wish = json!({"name": "liar", "addresses": [format!("127.0.0.1:{port}")]});
    let made = caller.ck("POST", "/attachments", Some(&wish)).expect(200).json();
    (made["instance_id"].as_str().unwrap().to_owned(), lie)
}

fn files_below(folder: &Path) -> usize {
    let Ok(entries) = std::fs::read_dir(folder) else {
        return 0;
    };
    let paths = entries.flatten().map(|entry| entry.path());
    paths
        .map(|path| if path.is_dir() { files_below(&path) } else { 1 })
        .sum()
}

#[test]
fn a_source_that_lies_fails_its_backup_and_costs_little() {
    let variables = [("CACHEKEEP_OPERATION_SECONDS", "4")];
    let service = Service::start_with(&["--attach-allow", "127.0.0.1"], &variables);
    let caller = service.caller();
    let (id, lie) = liar(&caller);
    let project = service.data().join("store").join(&caller.project);
    // The first backup of a process pays for what all later ones share.
    let honest = start(Form::Single, Access::Open, &[]);
    honest.nodes[0]
        .ask(&["DEBUG", "POPULATE", "1000", "key", "100"])
        .unwrap();
    let other = attach_open(&caller, "honest", &[honest.nodes[0].port]);
    caller.make_backup(&other, "of one that does not lie");
    let kept = files_below(&project);
    for (what, told) in LIES {
        *lie.lock().unwrap() = told;
        let before = resident(service.pid());
        forget_peak(service.pid());
        let backup = caller.start_backup(&id, what);
        let record = caller.wait_end(&id, "backups", &backup);
        assert_eq!(record["status"], "failed", "{what}: {record}");
        assert!(
            record["error_code"].is_string() && record["ext"]["failure"].is_string(),
            "{what}: {record}"
        );
        assert!(
            !record["ext"]["failure"].to_string().contains("secret"),
            "{what}: {record}"
        );
        assert_eq!(files_below(&project), kept, "{what}");
        let grown = peak(service.pid()).saturating_sub(before);
        assert!(grown < 64 << 20, "{what}: {grown} bytes");
    }
}

#[test]
fn a_capture_ends_before_its_source_suffers() {
    let settings = [("enable-debug-command", "local"), ("rdb-key-save-delay", "1000")];
    let foreign =
        Deployment::start(Path::new("redis-server"), Form::Single, Access::Open, &settings).unwrap();
    let node = &foreign.nodes[0];
    // A millisecond for each: the capture takes 20 s where nobody ends it.
    node.ask(&["DEBUG", "POPULATE", "20000", "key", "100"]).unwrap();
    let service = Service::start_with(&["--attach-allow", "127.0.0.1"], &[]);
    let caller = service.caller();
    let wish = json!({"name": "suffering", "addresses": [format!("127.0.0.1:{}", node.port)]});
    let made = caller.ck("POST", "/attachments", Some(&wish)).expect(200).json();
    let id = made["instance_id"].as_str().unwrap();
    let backup = caller.start_backup(id, "too much");
    // Answers come late, all but a moment in each second and a half.
    let (ended, pid) = (Arc::new(AtomicBool::new(false)), node.pid().to_string());
    let over = ended.clone();
    let burden = std::thread::spawn(move || {
        let signal = |name: &str| Command::new("kill").args([name, &pid]).status().unwrap();
        while !over.load(Ordering::SeqCst) {
            signal("-STOP");
            std::thread::sleep(Duration::from_millis(1500));
            signal("-CONT");
            std::thread::sleep(Duration::from_millis(20));
        }
    });
    let record = caller.wait_end(id, "backups", &backup);
    ended.store(true, Ordering::SeqCst);
    burden.join().unwrap();
    assert_eq!(record["status"], "failed", "{record}");
    let why = record["ext"]["failure"].as_str().unwrap();
    assert!(why.contains("times in a row later than"), "{why}");
    assert_eq!(node.setting("rdbcompression").unwrap(), "yes");
    let children = || {
        node.open()
            .unwrap()
            .info("persistence", "rdb_bgsave_in_progress")
            .unwrap()
    };
    crate::service::wait("the end of the source's child", || {
        (children() == "0").then_some(())
    });
}
