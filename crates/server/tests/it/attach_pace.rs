//! How fast attached servers are written to: only as fast as they answer in time.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, Shutdown, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use serde_json::json;
use xtask::foreign::{Access, Form};
use xtask::resp::Reply;

use crate::attach::{LOOPBACK, attach_open, start};
use crate::service::Service;

/// Of 10 kB each: what is under way when the first answer is late is a small part of all.
const KEYS: u64 = 10_000;

/// A port of ours behind which a server is, whose answers come so many milliseconds late.
struct Late {
    port: u16,
    by_ms: Arc<AtomicU64>,
}

impl Late {
    fn before(server: u16) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let by_ms = Arc::new(AtomicU64::new(0));
        let shared = by_ms.clone();
        std::thread::spawn(move || {
            for client in listener.incoming().flatten() {
                let by_ms = shared.clone();
                std::thread::spawn(move || {
                    // Either side may go at any time.
                    let _ended = pass_on(&client, server, &by_ms);
                });
            }
        });
        Self { port, by_ms }
    }
}

fn pass_on(client: &TcpStream, server: u16, by_ms: &AtomicU64) -> std::io::Result<()> {
    let server = TcpStream::connect((Ipv4Addr::LOCALHOST, server))?;
    client.set_nodelay(true)?;
    server.set_nodelay(true)?;
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let _ended = std::io::copy(&mut &*client, &mut &server);
            let _gone_already = server.shutdown(Shutdown::Both);
        });
        let mut piece = vec![0; 64 * 1024];
        let passed = loop {
            let count = match (&server).read(&mut piece) {
                Ok(0) => break Ok(()),
                Ok(count) => count,
                Err(error) => break Err(error),
            };
            std::thread::sleep(Duration::from_millis(by_ms.load(Ordering::SeqCst)));
            if let Err(error) = (&mut &*client).write_all(&piece[..count]) {
                break Err(error);
            }
        };
        let _gone_already = client.shutdown(Shutdown::Both);
        let _gone_already = server.shutdown(Shutdown::Both);
        passed
    })
}

#[test]
fn servers_that_answer_late_are_written_to_more_slowly_where_a_latency_is_asked_for() {
    let foreign = start(Form::Single, Access::Open, &[]);
    let node = &foreign.nodes[0];
    node.ask(&["DEBUG", "POPULATE", &KEYS.to_string(), "key", "10000"])
        .unwrap();
    let link = Late::before(node.port);
    let service = Service::start_with(&LOOPBACK, &[]);
    let caller = service.caller();
    let id = attach_open(&caller, "late", &[link.port]);
    let backup = caller.make_backup(&id, "while it answers at once");
    let path = format!("/instances/{id}/restores");
    let held = || match node.ask(&["DBSIZE"]).unwrap() {
        Reply::Number(keys) => u64::try_from(keys).unwrap(),
        other => panic!("{other:?}"),
    };
    let begin = |replay: serde_json::Value| {
        node.ask(&["FLUSHALL"]).unwrap();
        let wish = json!({"backup_id": backup, "replay": replay});
        let started = caller.ck("POST", &path, Some(&wish)).expect(200).json();
        started["restore_id"].as_str().unwrap().to_owned()
    };
    link.by_ms.store(100, Ordering::SeqCst);

    let began = Instant::now();
    let restore = begin(json!({"safety_point": false}));
    let record = caller.wait_end(&id, "restores", &restore);
    let took = began.elapsed();
    assert_eq!(record["status"], "succeed", "{record}");
    assert_eq!(held(), KEYS);

    // At the moment at which the other was done, this one has written a small part of as much.
    let began = Instant::now();
    let restore = begin(json!({"safety_point": false, "max_latency_ms": 20}));
    std::thread::sleep(took.saturating_sub(began.elapsed()));
    let written = held();
    let shown = caller
        .ck("GET", &format!("{path}/{restore}"), None)
        .expect(200)
        .json();
    println!("{written} of {KEYS} keys in the {took:?} that all of them took");
    assert_eq!(shown["ext"]["target_state"], "loading", "{shown}");
    assert!(written < KEYS / 2, "{written} keys: {shown}");

    caller
        .ck("POST", &format!("{path}/{restore}/cancel"), None)
        .expect(200);
    let record = caller.wait_end(&id, "restores", &restore);
    assert_eq!(record["ext"]["target_state"], "partial", "{record}");
}
