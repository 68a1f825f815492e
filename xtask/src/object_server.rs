//! A real S3 server of the test's own on a free port, of loopback where nobody says else, gone on drop: moto out of `.venv`, in memory, or s3s-fs
//! out of `.tools`, in a scratch folder.

use std::io::{Read, Write};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use crate::Stop;
use crate::scratch::Scratch;
use crate::setup::repository;

/// How long it may take to start: Python imports some hundred files, on a machine that may be busy.
const START_TIME: Duration = Duration::from_secs(60);

/// What a request shows of who sent it.
const SIGNED: &str =
    "AWS4-HMAC-SHA256 Credential=test/20270101/us-east-1/s3/aws4_request, SignedHeaders=host, Signature=0";

/// A running server.
pub struct ObjectServer {
    child: Child,
    address: SocketAddr,
    /// Where s3s-fs keeps its objects.
    _folder: Option<Scratch>,
}

impl ObjectServer {
    /// Starts moto with an empty bucket of this name.
    ///
    /// # Errors
    /// It is not installed, with the command that installs it; it does not start.
    pub fn start(bucket: &str) -> Result<Self, Stop> {
        // Checks no signature; nobody would have told it of our keys.
        Self::start_with(Ipv4Addr::LOCALHOST.into(), bucket, "inf")
    }

    /// As [`ObjectServer::start`], at an address of this machine.
    ///
    /// # Errors
    /// As [`ObjectServer::start`].
    pub fn start_at(address: IpAddr, bucket: &str) -> Result<Self, Stop> {
        Self::start_with(address, bucket, "inf")
    }

    /// As [`ObjectServer::start`], but the server knows nobody: it makes the bucket and refuses everything after.
    ///
    /// # Errors
    /// As [`ObjectServer::start`].
    pub fn start_refusing(bucket: &str) -> Result<Self, Stop> {
        Self::start_with(Ipv4Addr::LOCALHOST.into(), bucket, "1")
    }

    /// `unchecked` is the number of requests that are served before signatures are checked.
    fn start_with(address: IpAddr, bucket: &str, unchecked: &str) -> Result<Self, Stop> {
        let python = crate::setup::python();
        let program = repository().join(".venv/bin/moto_server");
        if !program.is_file() {
            return Err(Stop::new(format!(
                "the S3 server of the tests is missing: {}",
                program.display()
            ))
            .advice("cargo xtask setup test   installs it (moto, from tests/clients/requirements.txt)"));
        }
        // Freed again at once: moto takes no port 0 that it would tell.
        let address = TcpListener::bind((address, 0))?.local_addr()?;
        let child = Command::new(python)
            .arg(&program)
            .args(["-H", &address.ip().to_string(), "-p", &address.port().to_string()])
            .env("INITIAL_NO_AUTH_ACTION_COUNT", unchecked)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .map_err(|e| Stop::new(format!("cannot start {}: {e}", program.display())))?;
        let mut server = Self {
            child,
            address,
            _folder: None,
        };
        server.wait_until_ready()?;
        server.make_bucket(bucket)?;
        Ok(server)
    }

    /// Starts s3s-fs, which checks signatures, with an empty bucket of this name and one pair of keys.
    ///
    /// # Errors
    /// As [`ObjectServer::start`].
    pub fn start_checking(bucket: &str, access_key: &str, secret_key: &str) -> Result<Self, Stop> {
        let program = crate::setup::s3s_fs();
        if !program.is_file() {
            return Err(
                Stop::new(format!("the second S3 server is missing: {}", program.display()))
                    .advice("cargo xtask setup long   builds it (s3s-fs, some minutes)"),
            );
        }
        let folder = Scratch::new("s3s")?;
        std::fs::create_dir(folder.path().join(bucket))?;
        let address = TcpListener::bind("127.0.0.1:0")?.local_addr()?;
        let child = Command::new(&program)
            .args(["--host", "127.0.0.1", "--port", &address.port().to_string()])
            .args(["--access-key", access_key, "--secret-key", secret_key])
            .arg(folder.path())
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .map_err(|e| Stop::new(format!("cannot start {}: {e}", program.display())))?;
        let mut server = Self {
            child,
            address,
            _folder: Some(folder),
        };
        server.wait_until_ready()?;
        Ok(server)
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Makes an empty bucket.
    ///
    /// # Errors
    /// The server refuses.
    pub fn make_bucket(&self, name: &str) -> Result<(), Stop> {
        let answer = self.ask("PUT", &format!("/{name}"))?;
        match answer.contains(" 200 ") {
            true => Ok(()),
            false => Err(Stop::new(format!(
                "the S3 server makes no bucket {name}: {answer}"
            ))),
        }
    }

    /// The names of all objects of a bucket.
    ///
    /// # Errors
    /// The server does not answer.
    pub fn names(&self, bucket: &str) -> Result<Vec<String>, Stop> {
        let mut names: Vec<String> = Vec::new();
        loop {
            let after = names
                .last()
                .map_or_else(String::new, |last| format!("&start-after={last}"));
            let answer = self.ask("GET", &format!("/{bucket}?list-type=2{after}"))?;
            let keys = answer.split("<Key>").skip(1);
            names.extend(
                keys.filter_map(|rest| rest.split_once("</Key>"))
                    .map(|(key, _)| key.to_owned()),
            );
            if !answer.contains("<IsTruncated>true") {
                return Ok(names);
            }
        }
    }

    /// The bytes of an object; `None`: there is none.
    ///
    /// # Errors
    /// The server does not answer.
    pub fn get(&self, bucket: &str, name: &str) -> Result<Option<Vec<u8>>, Stop> {
        let mut answer = self.ask_for_bytes("GET", &format!("/{bucket}/{name}"))?;
        let end = answer.windows(4).position(|four| four == b"\r\n\r\n");
        let body = answer.split_off(end.map_or(answer.len(), |end| end + 4));
        let head = String::from_utf8_lossy(&answer);
        Ok(head.contains(" 200 ").then_some(body))
    }

    fn wait_until_ready(&mut self) -> Result<(), Stop> {
        let since = Instant::now();
        while TcpStream::connect(self.address).is_err() {
            if let Some(status) = self.child.try_wait()? {
                return Err(Stop::new(format!("the S3 server ended at once ({status})")));
            }
            if since.elapsed() > START_TIME {
                return Err(Stop::new("the S3 server does not listen"));
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        Ok(())
    }

    fn ask(&self, method: &str, target: &str) -> Result<String, Stop> {
        Ok(String::from_utf8_lossy(&self.ask_for_bytes(method, target)?).into_owned())
    }

    /// moto believes every signature, and shows objects to nobody who has none.
    fn ask_for_bytes(&self, method: &str, target: &str) -> Result<Vec<u8>, Stop> {
        let mut stream = TcpStream::connect(self.address)?;
        stream.set_read_timeout(Some(START_TIME))?;
        write!(
            stream,
            "{method} {target} HTTP/1.1\r\nHost: 127.0.0.1\r\nAuthorization: {SIGNED}\r\nContent-Length: 0\r\n\
             Connection: close\r\n\r\n"
        )?;
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer)?;
        Ok(answer)
    }
}

impl Drop for ObjectServer {
    fn drop(&mut self) {
        let _already_gone = self.child.kill();
        let _reaped = self.child.wait();
    }
}
