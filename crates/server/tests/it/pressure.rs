//! What a crowd of strangers can do to the service: little.

use std::collections::VecDeque;
use std::io::Write;
use std::net::TcpStream;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use serde_json::json;
use xtask::postgres::Postgres;

use crate::http::Request;
use crate::service::{Caller, Credential, Service, wait};

/// Resident memory of the service, in KiB.
fn resident(service: &Service) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{}/status", service.pid())).unwrap();
    let line = status.lines().find(|line| line.starts_with("VmRSS:")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse().unwrap()
}

/// Connections that have sent all but the last byte of a body of one MiB behind these headers.
fn half_sent(service: &Service, target: &str, headers: &str, count: usize) -> Vec<TcpStream> {
    let body = vec![b' '; (1 << 20) - 1];
    let open = |_| {
        let mut stream = TcpStream::connect(service.address()).unwrap();
        stream.set_write_timeout(Some(Duration::from_secs(1))).unwrap();
        let head = format!("POST {target} HTTP/1.1\r\nHost: x\r\nContent-Length: 1048576\r\n{headers}\r\n");
        stream.write_all(head.as_bytes()).unwrap();
        // A service that does not want it may have closed.
        let _refused = stream.write_all(&body);
        stream
    };
    (0..count).map(open).collect()
}

#[test]
fn bodies_of_strangers_take_no_memory() {
    let service = Service::start();
    let caller = service.caller();
    caller.get("/instances").expect(200);
    let instances = format!("/v2/{}/instances", caller.project);
    let signature = "X-Sdk-Date: 20191115T033655Z\r\nAuthorization: SDK-HMAC-SHA256 Access=QTWAOYTTINDUT2QVKYUC, \
                     SignedHeaders=x-sdk-date, Signature=00\r\n";
    for (what, target, headers) in [
        ("no credential", instances.as_str(), ""),
        (
            "an invented token",
            instances.as_str(),
            "X-Auth-Token: invented\r\n",
        ),
        ("an invented key", instances.as_str(), signature),
        ("a log-in", "/v3/auth/tokens", ""),
        ("no such path", "/nothing", ""),
    ] {
        let before = resident(&service);
        let held = half_sent(&service, target, headers, 100);
        // Sockets take a whole body before the service looks at it.
        std::thread::sleep(Duration::from_millis(700));
        let grown = resident(&service).saturating_sub(before);
        // A hundred bodies would be a hundred MiB; buffers of connections are some KiB each.
        assert!(grown < 40 * 1024, "{what}: grown by {grown} KiB");
        caller.get("/instances").expect(200);
        drop(held);
    }
}

#[test]
fn what_is_signed_by_a_key_and_not_yet_proven_shares_one_bound() {
    let service = Service::start();
    let caller = service.caller();
    let instances = format!("/v2/{}/instances", caller.project);
    let signed = service.key().sign(Request::new("POST", &instances), &[]);
    let headers: String = signed
        .headers
        .iter()
        .map(|(name, value)| format!("{name}: {value}\r\n"))
        .collect();
    let before = resident(&service);
    let held = half_sent(&service, &instances, &headers, 200);
    std::thread::sleep(Duration::from_millis(700));
    let grown = resident(&service).saturating_sub(before);
    // Bytes may be copied once as they are gathered.
    assert!(grown < 160 * 1024, "grown by {grown} KiB");
    // A GET has no body and needs no share.
    caller.get("/instances").expect(200);
    drop(held);
}

#[test]
fn a_crowd_that_logs_in_is_answered_or_told_to_come_again_and_keeps_nobody_waiting() {
    let service = Service::start();
    let caller = service.caller();
    let user = json!({"name": service.admin("user"), "password": service.admin("password")});
    let body = json!({"auth": {"identity": {"methods": ["password"], "password": {"user": user}}}});
    std::thread::scope(|scope| {
        let crowd: Vec<_> = (0..100)
            .map(|_| {
                let (service, body) = (&service, &body);
                scope.spawn(move || {
                    let request = Request::json("POST", "/v3/auth/tokens", body);
                    service.connect().send(&request)
                })
            })
            .collect();
        while crowd.iter().any(|one| !one.is_finished()) {
            let began = Instant::now();
            caller.get("/instances").expect(200);
            assert!(began.elapsed() < Duration::from_secs(2), "{:?}", began.elapsed());
        }
        let mut let_in = 0;
        for one in crowd {
            let answer = one.join().unwrap();
            if answer.status == 201 {
                let_in += 1;
            } else {
                assert_eq!(answer.verdict(), "429 429");
                assert_eq!(answer.header("retry-after"), Some("1"));
            }
        }
        assert!(let_in > 0);
    });
}

#[test]
fn more_downloads_than_places_are_told_to_come_again_and_a_place_comes_free() {
    let service = Service::start();
    let caller = service.caller();
    let instance = caller.make_instance("wanted");
    let mut engine = caller.engine(&instance);
    // More than sockets and channels can hold, so that a client that does not read holds its place.
    let value = "v".repeat(1 << 20);
    for number in 0..40 {
        engine.ask(&["SET", &format!("key:{number}"), &value]).unwrap();
    }
    let backup = caller.make_backup(&instance, "");
    let path = format!("/instances/{instance}/backups/{backup}/links");
    let links = caller
        .v2("POST", &path, Some(&json!({"expiration": 300})))
        .expect(200)
        .json();
    let link = links["links"][0]["link"].as_str().unwrap();
    let target = link.strip_prefix(service.admin("endpoint")).unwrap();
    let open = || {
        let mut stream = TcpStream::connect(service.address()).unwrap();
        stream
            .write_all(format!("GET {target} HTTP/1.1\r\nHost: x\r\n\r\n").as_bytes())
            .unwrap();
        let mut first = [0; 12];
        std::io::Read::read_exact(&mut stream, &mut first).unwrap();
        assert_eq!(&first, b"HTTP/1.1 200");
        stream
    };
    let mut held: Vec<TcpStream> = (0..8).map(|_| open()).collect();
    let answer = service.connect().send(&Request::new("GET", target));
    assert_eq!(answer.verdict(), "429 APIGW.0308");
    assert_eq!(answer.header("retry-after"), Some("1"));
    caller.get("/instances").expect(200);
    held.truncate(7);
    held.push(open());
}

#[test]
fn a_log_in_needs_no_more_than_sixteen_kibibytes() {
    let service = Service::start();
    let stranger: Caller = service.caller_with("", Credential::Nothing);
    let long = Request::new("POST", "/v3/auth/tokens").body(&vec![b' '; 16 * 1024 + 1]);
    stranger.send(long).refused("413 413");
    let fits = Request::new("POST", "/v3/auth/tokens").body(&vec![b' '; 16 * 1024]);
    stranger.send(fits).refused("400 400");
}

/// Dials as fast as the service takes it until all is over, and asks for nothing.
fn dial_again_and_again(service: &Service, is_over: &AtomicBool) {
    let mut held = VecDeque::new();
    while !is_over.load(Ordering::SeqCst) {
        if let Ok(mut stream) = TcpStream::connect(service.address()) {
            let _ended_already = stream.write_all(b"GET /healthz HTTP/1.1\r\nX-Slow: ");
            held.push_back(stream);
        }
        if held.len() > 200 {
            held.pop_front();
        }
        std::thread::sleep(Duration::from_millis(1));
    }
}

#[test]
fn who_holds_every_connection_and_asks_for_nothing_makes_room_for_who_asks() {
    /// As many as the service has places, or more of them where it has fewer.
    const HELD: usize = 8192;
    let limit = getrlimit(Resource::Nofile);
    let raised = Rlimit {
        current: limit.maximum,
        maximum: limit.maximum,
    };
    setrlimit(Resource::Nofile, raised).unwrap();
    let service = Service::start();
    let caller = service.caller();
    // One that is in use stays.
    let mut kept = service.connect();
    let health = Request::new("GET", "/healthz");
    let log_in = b"POST /v3/auth/tokens HTTP/1.1\r\nHost: x\r\nContent-Length: 10\r\n\r\n";
    let held: Vec<TcpStream> = (0..HELD)
        .map(|number| {
            let mut stream = TcpStream::connect(service.address()).unwrap();
            // Nothing, half a head, a head whose body never comes.
            let _ended_already = match number % 3 {
                0 => stream.write_all(b"GET /healthz HTTP/1.1\r\nX-Slow: "),
                1 => stream.write_all(log_in),
                _ => Ok(()),
            };
            if number % 64 == 0 {
                assert_eq!(kept.send(&health).status, 200);
            }
            stream
        })
        .collect();
    let is_over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| dial_again_and_again(&service, &is_over));
        let asked = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            for _ in 0..20 {
                let began = Instant::now();
                assert_eq!(service.connect().send(&health).status, 200);
                // A connection that dials while the queue is full dials again after a second.
                assert!(began.elapsed() < Duration::from_secs(4), "{:?}", began.elapsed());
                assert_eq!(kept.send(&health).status, 200);
                std::thread::sleep(Duration::from_millis(50));
            }
            caller.get("/instances").expect(200);
        }));
        is_over.store(true, Ordering::SeqCst);
        asked.unwrap_or_else(|panic| std::panic::resume_unwind(panic));
    });
    let resident = resident(&service) / 1024;
    assert!(resident < 512, "{resident} MiB");
    drop(held);
}

#[test]
fn while_the_catalogue_keeps_its_readers_waiting_others_are_told_to_come_again_and_health_is_told_at_once() {
    let server = Postgres::start().unwrap();
    let url = server.make_schema("stuck").unwrap();
    let service = Service::start_with(&[], &[("CACHEKEEP_CATALOG", &url)]);
    let token = service.logged_in();
    let Credential::Token(text) = token.credential() else {
        unreachable!("it has just logged in")
    };
    // What all reads need, and then what only handlers read, behind the bound for reads.
    for (table, least_refused) in [("token", 20), ("instance", 0)] {
        let stuck = format!("BEGIN; LOCK TABLE stuck.{table} IN ACCESS EXCLUSIVE MODE; SELECT pg_sleep(30)");
        std::thread::scope(|scope| {
            scope.spawn(|| server.sql(&stuck).unwrap_err());
            let holder = format!(
                "SELECT pid FROM pg_locks WHERE mode = 'AccessExclusiveLock' AND granted \
                 AND relation = 'stuck.{table}'::regclass"
            );
            let holder = wait("a lock", || {
                Some(server.sql(&holder).unwrap()).filter(|pid| !pid.is_empty())
            });
            let crowd: Vec<_> = (0..40)
                .map(|number| {
                    let caller = service.caller_with(&token.project, Credential::Token(text.clone()));
                    scope.spawn(move || match number % 2 {
                        0 => caller.get("/instances"),
                        _ => caller.get("/instances-logical-nodes"),
                    })
                })
                .collect();
            std::thread::sleep(Duration::from_millis(500));
            for path in ["/healthz", "/readyz"] {
                let began = Instant::now();
                assert_eq!(service.connect().send(&Request::new("GET", path)).status, 200);
                assert!(
                    began.elapsed() < Duration::from_secs(1),
                    "{path}: {:?}",
                    began.elapsed()
                );
            }
            std::thread::sleep(Duration::from_millis(1000));
            server
                .sql(&format!("SELECT pg_terminate_backend({holder})"))
                .unwrap();
            let answers: Vec<_> = crowd.into_iter().map(|one| one.join().unwrap()).collect();
            let refused: Vec<_> = answers.iter().filter(|answer| answer.status != 200).collect();
            for answer in &refused {
                assert_eq!(answer.verdict(), "429 APIGW.0308");
                assert_eq!(answer.header("retry-after"), Some("1"));
            }
            assert!(refused.len() >= least_refused, "{table}: {}", refused.len());
        });
    }
    token.get("/instances").expect(200);
}
