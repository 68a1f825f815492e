//! Instances that speak TLS, from outside: made, used, restored, undone, failed over, and never a byte in clear.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use engine::{Address, Endpoint, Kind, Node, Reply, Secret, Tls};
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use serde_json::{Value, json};

use crate::cluster::{ask, kill_node, nodes, ports};
use crate::cluster_restore::{restore, undo};
use crate::ha;
use crate::http::Request;
use crate::service::{Caller, Service, wait};

const PASSWORD: &str = "Tls-pass-1";
const SINGLE: &str = "redis.single.xu1.tiny.128";
const CLUSTER: &str = "redis.cluster.xu1.large.r2.4";

/// An instance's clients: they trust its authority, where it has one, and follow `MOVED`.
struct Client {
    trust: Option<Arc<rustls::ClientConfig>>,
    user: Option<String>,
    places: Vec<(String, u16)>,
}

impl Client {
    fn new(authority: &str, places: Vec<(String, u16)>) -> Self {
        let mut roots = rustls::RootCertStore::empty();
        for certificate in CertificateDer::pem_slice_iter(authority.as_bytes()) {
            roots.add(certificate.unwrap()).unwrap();
        }
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let config = rustls::ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(roots)
            .with_no_client_auth();
        Self {
            trust: Some(Arc::new(config)),
            user: None,
            places,
        }
    }

    fn open(&self, place: &(String, u16), password: Option<&str>) -> Result<Node, engine::Error> {
        self.open_as(self.user.as_deref(), place, password)
    }

    fn open_as(
        &self,
        user: Option<&str>,
        (host, port): &(String, u16),
        password: Option<&str>,
    ) -> Result<Node, engine::Error> {
        Node::connect(&Endpoint {
            address: Address::Tcp(host.clone(), *port),
            user: user.map(str::to_owned),
            password: password.map(Secret::new),
            tls: self.trust.as_ref().map(|config| Tls {
                config: Arc::clone(config),
                name: None,
            }),
            timeout: Duration::from_secs(5),
        })
    }

    /// What whoever has the key answers, once so many replicas have it; `None` while nobody does.
    fn try_call(&self, words: &[&str], replicas: usize) -> Option<Reply> {
        let words: Vec<&[u8]> = words.iter().map(|word| word.as_bytes()).collect();
        let mut place = self.places[0].clone();
        for at in 0..10 {
            let asked = self.open(&place, Some(PASSWORD)).and_then(|mut node| {
                let reply = node.ask(&words)?;
                if replicas > 0 && reply == Reply::Simple("OK".to_owned()) {
                    let wait = node.run(&["WAIT", &replicas.to_string(), "5000"])?;
                    assert_eq!(wait.int(), i64::try_from(replicas).ok());
                }
                Ok(reply)
            });
            match asked {
                Ok(Reply::Error(text)) if text.starts_with("MOVED ") => {
                    let (host, port) = text.rsplit_once(' ').unwrap().1.rsplit_once(':').unwrap();
                    place = (host.to_owned(), port.parse().unwrap());
                }
                Ok(Reply::Error(text)) if text.starts_with("CLUSTERDOWN") => return None,
                Ok(reply) => return Some(reply),
                Err(_) => place = self.places[at % self.places.len()].clone(),
            }
        }
        None
    }

    #[track_caller]
    fn call(&self, words: &[&str]) -> Reply {
        wait("an answer over TLS", || self.try_call(words, 0))
    }

    #[track_caller]
    fn fill(&self, mark: &str, replicas: usize) {
        for number in 0..20 {
            let key = format!("key:{number}");
            let reply = wait("a write over TLS", || {
                self.try_call(&["SET", &key, mark], replicas)
            });
            assert_eq!(reply, Reply::Simple("OK".to_owned()));
        }
    }

    #[track_caller]
    fn check(&self, mark: &str) {
        for number in 0..20 {
            let reply = self.call(&["GET", &format!("key:{number}")]);
            assert_eq!(reply.text().as_deref(), Some(mark), "key:{number}");
        }
    }
}

/// Knocks in clear at every port of the service's engines, and at the own addresses of watched nodes, again and again.
struct Eavesdropper {
    is_over: Arc<AtomicBool>,
    places: Arc<Mutex<Vec<SocketAddr>>>,
    heard: Arc<Mutex<Vec<String>>>,
    rounds: Arc<AtomicU64>,
    thread: Option<std::thread::JoinHandle<()>>,
}

impl Eavesdropper {
    fn new(service: &Service) -> Self {
        let line = std::fs::read_to_string(format!("/proc/{}/cmdline", service.pid())).unwrap();
        let range = line
            .split('\0')
            .skip_while(|word| *word != "--engine-ports")
            .nth(1)
            .unwrap();
        let (first, last) = range.split_once('-').unwrap();
        let range = first.parse::<u16>().unwrap()..=last.parse().unwrap();
        let own = Self {
            is_over: Arc::default(),
            places: Arc::new(Mutex::new(
                range.map(|port| ([127, 0, 0, 1], port).into()).collect(),
            )),
            heard: Arc::default(),
            rounds: Arc::default(),
            thread: None,
        };
        let (is_over, places, heard, rounds) = (
            Arc::clone(&own.is_over),
            Arc::clone(&own.places),
            Arc::clone(&own.heard),
            Arc::clone(&own.rounds),
        );
        let thread = std::thread::spawn(move || {
            while !is_over.load(Ordering::Relaxed) {
                let all = places.lock().unwrap().clone();
                for place in all {
                    if let Some(answer) = speak_in_clear(place) {
                        heard.lock().unwrap().push(format!("{place}: {answer}"));
                    }
                }
                rounds.fetch_add(1, Ordering::Relaxed);
            }
        });
        Self {
            thread: Some(thread),
            ..own
        }
    }

    fn knock_at(&self, ip: &str, port: u16) {
        self.places
            .lock()
            .unwrap()
            .push(SocketAddr::new(ip.parse().unwrap(), port));
    }

    /// How often it knocked everywhere; nobody may have answered.
    fn end(mut self) -> u64 {
        self.is_over.store(true, Ordering::Relaxed);
        self.thread.take().unwrap().join().unwrap();
        let heard = self.heard.lock().unwrap();
        assert!(heard.is_empty(), "answers in clear: {heard:#?}");
        self.rounds.load(Ordering::Relaxed)
    }
}

/// What answers as an engine does: a status, an error, or anything else of that protocol.
fn speak_in_clear(place: SocketAddr) -> Option<String> {
    let mut stream = TcpStream::connect_timeout(&place, Duration::from_millis(200)).ok()?;
    stream.set_read_timeout(Some(Duration::from_millis(200))).ok()?;
    stream.write_all(b"PING\r\n").ok()?;
    let mut answer = [0; 64];
    let count = stream.read(&mut answer).ok()?;
    let text = String::from_utf8_lossy(&answer[..count]).into_owned();
    text.starts_with(['+', '-', '*', '$', ':']).then_some(text)
}

fn make(caller: &Caller, name: &str, spec: &str, engine: Option<&str>) -> (String, Value) {
    let capacity = if spec == CLUSTER { 4.0 } else { 0.125 };
    let instance = ask(
        caller,
        name,
        spec,
        &json!({"capacity": capacity, "enable_ssl": true, "no_password_access": false, "password": PASSWORD,
                "engine_version": engine}),
    );
    let shown = caller.wait_idle(&instance);
    assert_eq!(shown["enable_ssl"], json!(true));
    (instance, shown)
}

/// What clients are told to trust, by the documented way.
fn authority(caller: &Caller, instance: &str) -> String {
    let told = caller
        .get(&format!("/instances/{instance}/ssl"))
        .expect(200)
        .json();
    assert_eq!(
        (&told["enabled"], &told["ssl_validated"]),
        (&json!(true), &json!(true))
    );
    let path = format!("/instances/{instance}/ssl-certs/download");
    let told = caller.v2("POST", &path, Some(&json!({}))).expect(200).json();
    let link = told["link"].as_str().unwrap();
    let (_, path) = link.split_once("//").unwrap().1.split_once('/').unwrap();
    let answer = caller.send(Request::new("GET", &format!("/{path}"))).expect(200);
    answer.text()
}

fn client(caller: &Caller, instance: &str, shown: &Value) -> Client {
    let places = ports(shown)
        .into_iter()
        .map(|port| ("127.0.0.1".to_owned(), port));
    Client::new(&authority(caller, instance), places.collect())
}

/// Backs up, writes, restores and undoes.
fn there_and_back(caller: &Caller, instance: &str, client: &Client) {
    client.fill("old", 0);
    let backup = caller.make_backup(instance, "old");
    client.fill("new", 0);
    let done = restore(caller, instance, &json!({"backup_id": backup, "verify": "full"}));
    assert_eq!(done["status"], "succeed", "{done}");
    client.check("old");
    let undone = undo(caller, instance, &done);
    assert_eq!(undone["status"], "succeed", "{undone}");
    client.check("new");
}

/// The machine's engine; with `CACHEKEEP_TEST_LONG=1` also those that `cargo xtask setup engines` has fetched.
fn engines() -> (Vec<&'static str>, Vec<Option<&'static str>>) {
    const FETCHED: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../.tools/engines");
    match std::env::var("CACHEKEEP_TEST_LONG").is_ok_and(|long| long == "1") {
        true => (
            vec!["--engine", FETCHED],
            vec![None, Some("valkey-8.1"), Some("valkey-9.1")],
        ),
        false => (Vec::new(), vec![None]),
    }
}

#[test]
fn a_single_instance_with_tls_is_restored_undone_and_restarted_and_never_speaks_in_clear() {
    let (words, engines) = engines();
    for engine in engines {
        let service = Service::start_with(&words, &[]);
        let caller = service.caller();
        let ears = Eavesdropper::new(&service);
        let (instance, shown) = make(&caller, "single", SINGLE, engine);
        let client = client(&caller, &instance, &shown);
        there_and_back(&caller, &instance, &client);
        // Nobody else's authority makes it trusted, and its own not somebody else.
        let (other, _) = make(&caller, "other", SINGLE, engine);
        let stranger = Client::new(&authority(&caller, &other), client.places.clone());
        assert!(stranger.open(&client.places[0], Some(PASSWORD)).is_err());
        assert!(client.open(&client.places[0], Some("wrong")).is_err());
        let restart = json!({"instances": [instance], "action": "restart"});
        caller.v2("PUT", "/instances/status", Some(&restart)).expect(200);
        caller.wait_idle(&instance);
        client.check("new");
        let refused = caller.v2(
            "PUT",
            &format!("/instances/{instance}"),
            Some(&json!({"enable_ssl": false})),
        );
        assert!(refused.status == 400, "{}", refused.text());
        assert!(ears.end() > 3);
    }
}

#[test]
fn a_watched_primary_with_tls_is_restored_and_succeeded_while_the_service_is_down_and_never_speaks_in_clear()
{
    let (words, engines) = engines();
    for engine in engines {
        let mut service = Service::start_with(&words, &[]);
        let caller = service.caller();
        let ears = Eavesdropper::new(&service);
        let (instance, shown) = make(&caller, "watched", ha::WITH_TWO, engine);
        let port = ports(&shown)[0];
        let client = client(&caller, &instance, &shown);
        let own = ha::nodes(&caller, &instance);
        own.iter().for_each(|node| ears.knock_at(&node.ip, port));
        there_and_back(&caller, &instance, &client);
        // A client that asks a Sentinel is told where the primary is, and finds it there by a certificate of that address.
        let sentinel = shown["ext"]["sentinels"][0].as_str().unwrap();
        let (_, at) = sentinel.rsplit_once(':').unwrap();
        let mut node = client
            .open(&("127.0.0.1".to_owned(), at.parse().unwrap()), None)
            .unwrap();
        let told = node
            .run(&["SENTINEL", "GET-MASTER-ADDR-BY-NAME", "mymaster"])
            .unwrap();
        let Reply::Array(told) = told else {
            panic!("{told:?}")
        };
        let address = (told[0].text().unwrap(), told[1].text().unwrap().parse().unwrap());
        client.open(&address, Some(PASSWORD)).unwrap();

        let nodes = ha::nodes(&caller, &instance);
        let primary = ha::primary(&nodes).id.clone();
        client.fill("last", 2);
        service.kill();
        ha::kill(&ha::home_of(&service, &instance, &primary));
        client.check("last");
        service.start_again_with(&words, &[]);
        let caller = service.caller();
        caller.wait_idle(&instance);
        client.fill("after", 0);
        assert!(ears.end() > 3);
    }
}

#[test]
fn a_cluster_with_tls_is_restored_and_a_shard_succeeded_and_never_speaks_in_clear() {
    let (words, engines) = engines();
    for engine in engines {
        let mut service = Service::start_with(&words, &[]);
        let caller = service.caller();
        let ears = Eavesdropper::new(&service);
        let (instance, shown) = make(&caller, "cluster", CLUSTER, engine);
        let client = client(&caller, &instance, &shown);
        there_and_back(&caller, &instance, &client);
        client.fill("last", 1);
        let all = nodes(&caller, &instance);
        let (primary, ..) = all.iter().find(|(_, _, role, _)| role == "master").unwrap();
        service.kill();
        kill_node(&service, &instance, primary);
        client.check("last");
        service.start_again_with(&words, &[]);
        service.caller().wait_idle(&instance);
        assert!(ears.end() > 3);
    }
}

/// Nobody but the clients' user comes in anywhere.
#[track_caller]
fn check_others_are_refused(client: &Client) {
    for place in &client.places {
        let mut nobody = client.open_as(None, place, None).unwrap();
        for words in [["GET", "key:1"], ["CLIENT", "LIST"]] {
            let refused = nobody.run(&words).unwrap_err().to_string();
            assert!(refused.contains("NOAUTH"), "{refused}");
        }
        for (user, password) in [
            (None, PASSWORD),
            (Some("default"), PASSWORD),
            (Some("app"), "Wrong-pass-1"),
            (Some("other"), PASSWORD),
        ] {
            let refused = client.open_as(user, place, Some(password)).err().unwrap();
            assert_eq!(refused.kind, Kind::Auth, "{user:?}");
        }
    }
}

#[test]
fn clients_with_a_user_of_their_own_keep_it_through_restores_failovers_and_restarts_and_nobody_else_comes_in()
{
    for (spec, tls) in [SINGLE, ha::WITH_TWO, CLUSTER]
        .into_iter()
        .flat_map(|spec| [(spec, false), (spec, true)])
    {
        println!("{spec}, TLS: {tls}");
        let mut service = Service::start();
        let caller = service.caller();
        let wish = json!({"capacity": if spec == CLUSTER { 4.0 } else { 0.125 }, "enable_ssl": tls,
                          "no_password_access": false, "password": PASSWORD, "access_user": "app"});
        let instance = ask(&caller, "named", spec, &wish);
        let shown = caller.wait_idle(&instance);
        assert_eq!(shown["access_user"], "app");
        let client = match tls {
            true => client(&caller, &instance, &shown),
            false => Client {
                trust: None,
                user: None,
                places: ports(&shown)
                    .into_iter()
                    .map(|port| ("127.0.0.1".to_owned(), port))
                    .collect(),
            },
        };
        let client = Client {
            user: Some("app".to_owned()),
            ..client
        };
        check_others_are_refused(&client);
        let held: Vec<Node> = client
            .places
            .iter()
            .map(|place| client.open(place, Some(PASSWORD)).unwrap())
            .collect();
        there_and_back(&caller, &instance, &client);
        check_others_are_refused(&client);
        for mut node in held {
            assert!(
                node.run(&["PING"]).is_err(),
                "a client of the replaced nodes is not ended"
            );
        }
        if spec != SINGLE {
            let nodes = ha::nodes(&caller, &instance);
            let primary = ha::primary(&nodes).id.clone();
            client.fill(
                "last",
                usize::from(spec == CLUSTER) + 2 * usize::from(spec != CLUSTER),
            );
            service.kill();
            if spec == CLUSTER {
                kill_node(&service, &instance, &primary);
            } else {
                ha::kill(&ha::home_of(&service, &instance, &primary));
            }
            client.check("last");
            service.start_again();
        }
        let caller = service.caller();
        caller.wait_idle(&instance);
        let restart = json!({"instances": [instance], "action": "restart"});
        caller.v2("PUT", "/instances/status", Some(&restart)).expect(200);
        caller.wait_idle(&instance);
        client.fill("after", 0);
        check_others_are_refused(&client);
        // Another password, for the same user.
        let path = format!("/instances/{instance}/password/reset");
        let other = "Other-pass-1";
        caller
            .v2("POST", &path, Some(&json!({"new_password": other})))
            .expect(200);
        caller.wait_idle(&instance);
        assert!(client.open(&client.places[0], Some(PASSWORD)).is_err());
        client.open(&client.places[0], Some(other)).unwrap();
    }
}

#[test]
fn a_user_that_cannot_be_is_refused() {
    let service = Service::start();
    let caller = service.caller();
    for (user, open) in [
        ("cachekeep", false),
        ("cachekeep-replica", false),
        ("1app", false),
        ("a b", false),
        ("app", true),
    ] {
        let wish = json!({"name": "named", "engine": "Redis", "capacity": 0.125, "spec_code": SINGLE, "access_user": user,
                          "no_password_access": open, "password": PASSWORD});
        let answer = caller.v2("POST", "/instances", Some(&wish));
        assert_eq!(answer.verdict(), "400 DCS.4063", "{user}: {}", answer.text());
    }
    let wish = json!({"capacity": 0.125, "access_user": "default", "no_password_access": false, "password": PASSWORD});
    let instance = ask(&caller, "default", SINGLE, &wish);
    assert_eq!(caller.wait_idle(&instance)["access_user"], Value::Null);
    let path = format!("/instances/{instance}");
    let answer = caller.v2("PUT", &path, Some(&json!({"access_user": "app"})));
    assert_eq!(answer.verdict(), "400 DCS.4063", "{}", answer.text());
}
