//! What a crowd of strangers can do to the service: little.

use std::io::Write;
use std::net::TcpStream;
use std::time::{Duration, Instant};

use serde_json::json;

use crate::http::Request;
use crate::service::{Caller, Credential, Service};

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
