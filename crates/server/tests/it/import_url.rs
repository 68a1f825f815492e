//! Files behind URLs: taken from where the operator allows it, and nothing else is as much as connected to.

use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use serde_json::Value;
use xtask::plain_engine::PlainEngine;
use xtask::resp;
use xtask::scratch::Scratch;

use crate::service::Service;

fn told(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

fn dump(folder: &Path) {
    let server = PlainEngine::start(&[]).unwrap();
    let mut client = resp::Connection::open(&server.target()).unwrap();
    client.ask(&["DEBUG", "POPULATE", "20000", "key", "100"]).unwrap();
    client.ask(&["SAVE"]).unwrap();
    std::fs::copy(server.folder().join("dump.rdb"), folder.join("dump.rdb")).unwrap();
}

/// Python's web server over a folder.
pub struct FileServer {
    child: Child,
    pub port: u16,
}

impl FileServer {
    /// With the certificate that lies in the folder, where there is one.
    pub fn start(folder: &Path) -> Self {
        let program = "import http.server, os, ssl, sys\n\
            server = http.server.ThreadingHTTPServer(('127.0.0.1', 0), http.server.SimpleHTTPRequestHandler)\n\
            if os.path.exists('cert.pem'):\n \
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)\n \
 context.load_cert_chain('cert.pem', 'key.pem')\n \
            server.socket = context.wrap_socket(server.socket, server_side=True)\n\
            print(server.server_port, flush=True)\n\
            server.serve_forever()\n";
        let mut child = Command::new("python3")
            .args(["-c", program])
            .current_dir(folder)
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap())
            .read_line(&mut line)
            .unwrap();
        Self {
            child,
            port: line.trim().parse().unwrap(),
        }
    }
}

impl Drop for FileServer {
    fn drop(&mut self) {
        let _ended = self.child.kill().and_then(|()| self.child.wait());
    }
}

/// A server that says what a hostile one might, by the path, and counts who came.
struct Hostile {
    port: u16,
    came: Arc<AtomicUsize>,
}

impl Hostile {
    fn start(elsewhere: u16) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let came = Arc::new(AtomicUsize::new(0));
        let counted = Arc::clone(&came);
        std::thread::spawn(move || {
            for client in listener.incoming() {
                counted.fetch_add(1, Ordering::SeqCst);
                let _gone = client.and_then(|client| answer(client, port, elsewhere));
            }
        });
        Self { port, came }
    }

    fn came(&self) -> usize {
        self.came.load(Ordering::SeqCst)
    }
}

fn answer(mut client: TcpStream, own: u16, elsewhere: u16) -> std::io::Result<()> {
    let mut head = String::new();
    let mut lines = BufReader::new(client.try_clone()?);
    lines.read_line(&mut head)?;
    let mut line = head.clone();
    while !line.trim().is_empty() {
        line.clear();
        lines.read_line(&mut line)?;
    }
    let path = head.split(' ').nth(1).unwrap_or_default();
    let told = match path {
        "/away" => {
            format!("302 Found\r\nLocation: http://127.0.0.1:{elsewhere}/x\r\nContent-Length: 0\r\n\r\n")
        }
        "/metadata" => {
            "302 Found\r\nLocation: http://169.254.169.254/latest\r\nContent-Length: 0\r\n\r\n".to_owned()
        }
        "/file" => "302 Found\r\nLocation: file:///etc/passwd\r\nContent-Length: 0\r\n\r\n".to_owned(),
        "/round" => {
            format!("302 Found\r\nLocation: http://127.0.0.1:{own}/round\r\nContent-Length: 0\r\n\r\n")
        }
        "/large" => "200 OK\r\nContent-Length: 9000000000\r\n\r\nREDIS0010".to_owned(),
        "/cut" => "200 OK\r\nContent-Length: 1000\r\n\r\nREDIS0010".to_owned(),
        "/other" => "200 OK\r\nContent-Length: 6\r\n\r\n<html>".to_owned(),
        _ => "404 Not Found\r\nContent-Length: 0\r\n\r\n".to_owned(),
    };
    // Said, because it is done: a client that kept the connection would now and then send its next request into it.
    let told = told.replacen("\r\n", "\r\nConnection: close\r\n", 1);
    client.write_all(format!("HTTP/1.1 {told}").as_bytes())
}

fn backups(service: &Service, instance: &str) -> u64 {
    let list = service
        .caller()
        .get(&format!("/instances/{instance}/backups"))
        .expect(200);
    list.json()["total_num"].as_u64().unwrap()
}

#[test]
fn a_file_is_taken_by_https_from_an_address_that_was_allowed() {
    let service = Service::start();
    service.caller().make_instance("far-away");
    let outside = Scratch::new("far").unwrap();
    let folder = outside.path();
    dump(folder);
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
        .args([
            "-addext",
            "subjectAltName=IP:127.0.0.1",
            "-addext",
            "basicConstraints=critical,CA:FALSE",
            "-keyout",
            "key.pem",
            "-out",
            "cert.pem",
        ])
        .current_dir(folder)
        .output()
        .unwrap();
    assert!(made.status.success(), "{}", told(&made));
    let server = FileServer::start(folder);
    let url = format!(
        "https://127.0.0.1:{}/dump.rdb?signature=not-to-be-kept",
        server.port
    );
    let data = service.data();
    let import = |certificates: Option<&Path>, allow: &str| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_cachekeep"));
        command
            .args([
                "import",
                "far-away",
                &url,
                "--allow",
                allow,
                "-o",
                "json",
                "--data-dir",
            ])
            .arg(&data);
        if let Some(file) = certificates {
            command.env("SSL_CERT_FILE", file);
        }
        command.output().unwrap()
    };
    let certificate = folder.join("cert.pem");
    for (certificates, allow, why) in [
        (
            Some(certificate.as_path()),
            "127.0.0.2",
            "127.0.0.1 is not a public address",
        ),
        (
            Some(certificate.as_path()),
            "127.0.0.1:1",
            "127.0.0.1 is not a public address",
        ),
        (None, "127.0.0.0/8", "certificate"),
    ] {
        let refused = import(certificates, allow);
        assert!(
            refused.status.code() == Some(1) && told(&refused).contains(why),
            "{}",
            told(&refused)
        );
    }
    let taken = import(Some(&certificate), "127.0.0.0/8");
    assert!(taken.status.success(), "{}", told(&taken));
    let made: Value = serde_json::from_slice(&taken.stdout).unwrap();
    assert_eq!(made["keys"], 20_000);
    let id = made["backup_id"].as_str().unwrap();
    let file = folder.join("dump.rdb");
    let same = service.run(&["diff", id, file.to_str().unwrap()]);
    assert_eq!(same.status.code(), Some(0), "{}", told(&same));
    assert!(!String::from_utf8_lossy(&taken.stdout).contains("not-to-be-kept"));
    assert!(!service.log().contains("not-to-be-kept"));
}

#[test]
fn a_hostile_server_leads_nowhere() {
    let service = Service::start();
    let instance = service.caller().make_instance("wary");
    let elsewhere = Hostile::start(0);
    let hostile = Hostile::start(elsewhere.port);
    let allow = format!("127.0.0.1:{}", hostile.port);
    let import = |path: &str, words: &[&str]| {
        let url = format!("http://127.0.0.1:{}{path}", hostile.port);
        service.run(&[&["import", "wary", &url], words].concat())
    };

    let refused = import("/away", &[]);
    assert!(
        told(&refused).contains("is not a public address"),
        "{}",
        told(&refused)
    );
    assert!(
        told(&refused).contains(&format!("--allow {allow}")),
        "{}",
        told(&refused)
    );
    assert_eq!(hostile.came(), 0);
    for (path, why) in [
        ("/away", format!("--allow 127.0.0.1:{}", elsewhere.port)),
        ("/metadata", "169.254.169.254 is not a public address".to_owned()),
        ("/file", "is not read".to_owned()),
        ("/round", "too many redirects".to_owned()),
        ("/large", "larger than 1 GB".to_owned()),
        ("/nothing", "the server answers 404".to_owned()),
    ] {
        let refused = import(path, &["--allow", &allow, "--size-limit-gb", "1"]);
        assert!(
            refused.status.code() == Some(1) && told(&refused).contains(&why),
            "{path}: {}",
            told(&refused)
        );
    }
    assert_eq!(elsewhere.came(), 0);
    // Nothing was begun until here; what is begun and then turns out to be wrong has a record that says so.
    assert_eq!(backups(&service, &instance), 0);
    for path in ["/cut", "/other"] {
        let refused = import(path, &["--allow", &allow]);
        assert!(
            refused.status.code() == Some(1) && told(&refused).contains("is not taken"),
            "{path}: {}",
            told(&refused)
        );
    }
    let list = service
        .caller()
        .get(&format!("/instances/{instance}/backups"))
        .expect(200)
        .json();
    let states: Vec<&str> = list["backup_record_response"]
        .as_array()
        .unwrap()
        .iter()
        .filter_map(|row| row["status"].as_str())
        .collect();
    assert_eq!(states, ["failed", "failed"]);
}

#[test]
fn urls_are_for_instances_of_one_file() {
    let service = Service::start();
    service.caller().make_instance("one-file");
    let refused = service.run(&["import", "one-file", "https://127.0.0.1/a", "https://127.0.0.1/b"]);
    assert!(
        told(&refused).contains("one file is wanted"),
        "{}",
        told(&refused)
    );
    let refused = service.run(&["import", "one-file", "ftp://127.0.0.1/a"]);
    assert!(
        told(&refused).contains("only https:// and http://"),
        "{}",
        told(&refused)
    );
    let refused = service.run(&[
        "import",
        "one-file",
        "https://127.0.0.1/a",
        "--allow",
        "localhost",
    ]);
    assert!(
        told(&refused).contains("ADDRESS[/BITS][:PORT]"),
        "{}",
        told(&refused)
    );
}

#[test]
fn commands_behind_a_url_are_looked_through_and_replayed() {
    let service = Service::start();
    service.caller().make_instance("replaying");
    let outside = Scratch::new("far").unwrap();
    let set = |key: &str| format!("*3\r\n$3\r\nSET\r\n${}\r\n{key}\r\n$1\r\nv\r\n", key.len());
    std::fs::write(outside.path().join("commands"), [set("a"), set("b")].concat()).unwrap();
    let hostile = [set("a"), "*2\r\n$8\r\nSHUTDOWN\r\n$3\r\nNOW\r\n".to_owned()].concat();
    std::fs::write(outside.path().join("hostile.aof"), hostile).unwrap();
    let server = FileServer::start(outside.path());
    let import = |file: &str| {
        let url = format!("http://127.0.0.1:{}/{file}", server.port);
        service.run(&["import", "replaying", &url, "--allow", "127.0.0.1", "-o", "json"])
    };
    let taken = import("commands");
    assert!(taken.status.success(), "{}", told(&taken));
    let made: Value = serde_json::from_slice(&taken.stdout).unwrap();
    assert_eq!(made["keys"], 2);
    let refused = import("hostile.aof");
    assert_eq!(refused.status.code(), Some(1));
    assert!(told(&refused).contains("SHUTDOWN"), "{}", told(&refused));
    let spool = std::fs::read_dir(service.data().join("spool")).unwrap();
    assert_eq!(spool.count(), 0, "what was fetched is gone");
}
