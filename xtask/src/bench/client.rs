//! The service's API as the measurements need it: one kept connection, plain HTTP, no time lost in a library.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::Stop;
use crate::service::Service;

/// How often a record under way is looked at.
const POLL_EVERY: Duration = Duration::from_millis(10);
/// A connection that was idle for longer is made anew: the service closes one after ten seconds.
const IDLE_MAX: Duration = Duration::from_secs(5);

/// A connection with the headers that authenticate it.
pub struct Client {
    host: String,
    stream: BufReader<TcpStream>,
    project: String,
    headers: String,
    used: Instant,
}

/// An answer.
pub struct Answer {
    /// HTTP status.
    pub status: u16,
    /// The value of `X-Subject-Token`, where there is one.
    pub token: Option<String>,
    /// The body's bytes.
    pub body: Vec<u8>,
}

impl Client {
    /// Connects and gets a token.
    ///
    /// # Errors
    /// The service does not answer or refuses its own admin.
    pub fn login(service: &Service) -> Result<Self, Stop> {
        let mut client = Self::connect(&address(service)?, &service.admin("project_id")?)?;
        let user = json!({"name": service.admin("user")?, "password": service.admin("password")?,
                          "domain": {"name": service.admin("domain")?}});
        let body = json!({"auth": {"identity": {"methods": ["password"], "password": {"user": user}},
                                   "scope": {"project": {"id": client.project}}}});
        let answer = client.send("POST", "/v3/auth/tokens", Some(&body))?;
        let token = answer
            .token
            .ok_or_else(|| Stop::new("the service gave no token"))?;
        client.headers = format!("X-Auth-Token: {token}\r\n");
        Ok(client)
    }

    /// Connects without any credential.
    ///
    /// # Errors
    /// Nobody listens there.
    pub fn connect(address: &str, project: &str) -> Result<Self, Stop> {
        Ok(Self {
            host: address.to_owned(),
            stream: dial(address)?,
            project: project.to_owned(),
            headers: String::new(),
            used: Instant::now(),
        })
    }

    /// Another connection with these headers instead of the token.
    ///
    /// # Errors
    /// Nobody listens there any more.
    pub fn with_headers(&self, headers: &str) -> Result<Self, Stop> {
        let mut other = Self::connect(&self.host, &self.project)?;
        headers.clone_into(&mut other.headers);
        Ok(other)
    }

    /// The project that all calls are for.
    pub fn project(&self) -> &str {
        &self.project
    }

    /// The path of a call on API v2.
    pub fn path(&self, rest: &str) -> String {
        format!("/v2/{}{rest}", self.project)
    }

    /// The headers that authenticate, each with its line end.
    pub fn headers(&self) -> &str {
        &self.headers
    }

    /// Host and port.
    pub fn host(&self) -> &str {
        &self.host
    }

    /// One call; a refusal is an answer.
    ///
    /// # Errors
    /// The connection broke or the answer is not HTTP.
    pub fn send(&mut self, method: &str, path: &str, body: Option<&Value>) -> Result<Answer, Stop> {
        let body = body.map(Value::to_string).unwrap_or_default();
        let kind = if body.is_empty() {
            ""
        } else {
            "Content-Type: application/json\r\n"
        };
        let length = if method == "GET" {
            String::new()
        } else {
            format!("Content-Length: {}\r\n", body.len())
        };
        let request = format!(
            "{method} {path} HTTP/1.1\r\nHost: {}\r\n{}{kind}{length}\r\n{body}",
            self.host, self.headers
        );
        if self.used.elapsed() > IDLE_MAX {
            self.stream = dial(&self.host)?;
        }
        self.stream.get_mut().write_all(request.as_bytes())?;
        let answer = self.read_answer();
        self.used = Instant::now();
        answer
    }

    /// A call that must succeed; its JSON.
    ///
    /// # Errors
    /// As [`Client::send`], or the call was refused.
    pub fn ask(&mut self, method: &str, path: &str, body: Option<&Value>) -> Result<Value, Stop> {
        let answer = self.send(method, path, body)?;
        if !(200..300).contains(&answer.status) {
            let text = String::from_utf8_lossy(&answer.body);
            return Err(Stop::new(format!("{method} {path}: {} {text}", answer.status)));
        }
        if answer.body.is_empty() {
            return Ok(Value::Null);
        }
        serde_json::from_slice(&answer.body).map_err(|e| Stop::new(format!("{method} {path}: {e}")))
    }

    /// Makes a single instance of that many GiB and waits until it runs.
    ///
    /// # Errors
    /// The creation was refused or did not end well.
    pub fn create_instance(&mut self, name: &str, gib: u64) -> Result<Instance, Stop> {
        self.create_as(name, gib, &format!("redis.single.xu1.large.{gib}"), &Value::Null)
    }

    /// As [`Client::create_instance`], of another flavor; `parameters` as `spec_param` of the call.
    ///
    /// # Errors
    /// As [`Client::create_instance`].
    pub fn create_as(
        &mut self,
        name: &str,
        gib: u64,
        flavor: &str,
        parameters: &Value,
    ) -> Result<Instance, Stop> {
        let path = self.path("/instances");
        let body = json!({"name": name, "engine": "Redis", "engine_version": "7.0", "capacity": gib,
                          "spec_code": flavor, "spec_param": parameters, "az_codes": ["az1"],
                          "vpc_id": "vpc", "subnet_id": "subnet", "password": PASSWORD});
        let made = self.ask("POST", &path, Some(&body))?;
        let id = text(&made["instances"][0]["instance_id"])?;
        let path = self.path(&format!("/instances/{id}"));
        let started = Instant::now();
        loop {
            let shown = self.ask("GET", &path, None)?;
            match shown["status"].as_str() {
                Some("RUNNING") => {
                    let port = shown["port"].as_u64().and_then(|port| u16::try_from(port).ok());
                    let port = port.ok_or_else(|| Stop::new("the instance has no port"))?;
                    return Ok(Instance { id, port });
                }
                Some("CREATING") if started.elapsed() < Duration::from_secs(60) => {
                    std::thread::sleep(POLL_EVERY)
                }
                other => return Err(Stop::new(format!("instance {name} ended as {other:?}"))),
            }
        }
    }

    /// What is told of an instance.
    ///
    /// # Errors
    /// The call was refused.
    pub fn show(&mut self, instance: &Instance) -> Result<Value, Stop> {
        let path = self.path(&format!("/instances/{}", instance.id));
        self.ask("GET", &path, None)
    }

    /// Deletes an instance and its backups.
    ///
    /// # Errors
    /// The call was refused.
    pub fn delete_instance(&mut self, instance: &Instance) -> Result<(), Stop> {
        let path = self.path(&format!("/instances/{}", instance.id));
        self.ask("DELETE", &path, None).map(drop)
    }

    /// Starts a backup and waits for its end; its id and the time from the call to `succeed`.
    ///
    /// # Errors
    /// It was refused or failed.
    pub fn backup(&mut self, instance: &Instance) -> Result<(String, Duration), Stop> {
        self.run_to_end(instance, "backup", &json!({}))
    }

    /// Starts a restore and waits for its end; its id and the time from the call to `succeed`.
    ///
    /// # Errors
    /// It was refused or failed.
    pub fn restore(&mut self, instance: &Instance, backup: &str) -> Result<(String, Duration), Stop> {
        self.run_to_end(instance, "restore", &json!({"backup_id": backup}))
    }

    /// As [`Client::restore`], of a backup of another instance, and how long each phase was shown.
    ///
    /// # Errors
    /// As [`Client::restore`].
    pub fn restore_of(
        &mut self,
        instance: &Instance,
        source: &Instance,
        backup: &str,
    ) -> Result<(Duration, Phases), Stop> {
        let path = format!("/ck/v1/{}/instances/{}/restores", self.project, instance.id);
        let newest = self.path(&format!("/instances/{}/restores?limit=1", instance.id));
        let started = Instant::now();
        let body = json!({"backup_id": backup, "source_instance_id": source.id});
        self.ask("POST", &path, Some(&body))?;
        self.wait_for_end(instance, "restore", &newest, started)
    }

    fn run_to_end(
        &mut self,
        instance: &Instance,
        kind: &str,
        body: &Value,
    ) -> Result<(String, Duration), Stop> {
        let path = self.path(&format!("/instances/{}/{kind}s", instance.id));
        let newest = format!("{path}?limit=1");
        let started = Instant::now();
        let accepted = self.ask("POST", &path, Some(body))?;
        let id = text(&accepted[format!("{kind}_id")])?;
        let (elapsed, _) = self.wait_for_end(instance, kind, &newest, started)?;
        Ok((id, elapsed))
    }

    fn wait_for_end(
        &mut self,
        instance: &Instance,
        kind: &str,
        newest: &str,
        started: Instant,
    ) -> Result<(Duration, Phases), Stop> {
        let mut phases = Phases::default();
        loop {
            let page = self.ask("GET", newest, None)?;
            let record = &page[format!("{kind}_record_response")][0];
            let elapsed = started.elapsed();
            match record["status"].as_str() {
                Some("succeed") => {
                    self.wait_idle(instance)?;
                    return Ok((elapsed, phases));
                }
                Some("waiting" | "backuping" | "restoring") => {
                    phases.saw(record["ext"]["phase"].as_str().unwrap_or("waiting"), elapsed);
                    std::thread::sleep(POLL_EVERY);
                }
                _ => return Err(Stop::new(format!("{kind} did not succeed: {record}"))),
            }
        }
    }

    fn wait_idle(&mut self, instance: &Instance) -> Result<(), Stop> {
        let path = self.path(&format!("/instances/{}", instance.id));
        while !self.ask("GET", &path, None)?["task"].is_null() {
            std::thread::sleep(POLL_EVERY);
        }
        Ok(())
    }

    /// Deletes a backup.
    ///
    /// # Errors
    /// The call was refused.
    pub fn delete_backup(&mut self, instance: &Instance, backup: &str) -> Result<(), Stop> {
        let path = self.path(&format!("/instances/{}/backups/{backup}", instance.id));
        self.ask("DELETE", &path, None).map(|_| ())
    }

    /// Downloads a backup as plain dump files, one for each shard, in their order.
    ///
    /// # Errors
    /// No link for each, or a download failed.
    pub fn download(&mut self, instance: &Instance, backup: &str, to: &[&Path]) -> Result<(), Stop> {
        let path = self.path(&format!("/instances/{}/backups/{backup}/links", instance.id));
        let answer = self.ask("POST", &path, Some(&json!({"expiration": 300})))?;
        for (shard, to) in to.iter().enumerate() {
            fetch(&text(&answer["links"][shard]["link"])?, to)?;
        }
        Ok(())
    }

    fn read_answer(&mut self) -> Result<Answer, Stop> {
        let nonsense = |line: &str| Stop::new(format!("not an HTTP answer: {line:?}"));
        let mut line = String::new();
        self.stream.read_line(&mut line)?;
        let status = line
            .split(' ')
            .nth(1)
            .and_then(|word| word.parse().ok())
            .ok_or_else(|| nonsense(&line))?;
        let (mut length, mut token) = (0, None);
        loop {
            line.clear();
            self.stream.read_line(&mut line)?;
            let Some((name, value)) = line.trim_end().split_once(':') else {
                break;
            };
            if name.eq_ignore_ascii_case("content-length") {
                length = value.trim().parse().map_err(|_| nonsense(&line))?;
            } else if name.eq_ignore_ascii_case("x-subject-token") {
                token = Some(value.trim().to_owned());
            }
        }
        let mut body = vec![0; length];
        self.stream.read_exact(&mut body)?;
        Ok(Answer { status, token, body })
    }
}

fn fetch(link: &str, to: &Path) -> Result<(), Stop> {
    let done = Command::new("curl")
        .args(["-sSf", "-o"])
        .arg(to)
        .arg(link)
        .stdin(Stdio::null())
        .output()?;
    if done.status.success() {
        return Ok(());
    }
    Err(Stop::new(format!(
        "download: {}",
        String::from_utf8_lossy(&done.stderr)
    )))
}

/// How long each phase of an operation was shown, in their order.
#[derive(Debug, Default)]
pub struct Phases(Vec<(String, Duration)>);

impl Phases {
    /// The phase was shown at that time after the call.
    fn saw(&mut self, phase: &str, at: Duration) {
        match self.0.last() {
            Some((last, _)) if last == phase => {}
            _ => self.0.push((phase.to_owned(), at)),
        }
    }

    /// As one line; `end`: when all was over.
    pub fn line(&self, end: Duration) -> String {
        let ends = self.0.iter().skip(1).map(|(_, at)| *at).chain([end]);
        let took = |((phase, from), to): (&(String, Duration), Duration)| {
            format!("{phase} {} ms", to.saturating_sub(*from).as_millis())
        };
        self.0.iter().zip(ends).map(took).collect::<Vec<_>>().join(", ")
    }
}

fn dial(address: &str) -> Result<BufReader<TcpStream>, Stop> {
    let stream = TcpStream::connect(address)?;
    stream.set_nodelay(true)?;
    stream.set_read_timeout(Some(Duration::from_secs(60)))?;
    Ok(BufReader::with_capacity(64 * 1024, stream))
}

/// A running instance.
#[derive(Debug, Clone)]
pub struct Instance {
    /// Its id.
    pub id: String,
    /// Its client port on this machine.
    pub port: u16,
}

impl Instance {
    /// How clients reach its data.
    pub fn target(&self) -> crate::resp::Target {
        crate::resp::Target::local(self.port, Some(PASSWORD))
    }
}

/// The clients' password of every measured instance.
pub const PASSWORD: &str = "Measured-1";

/// Host and port of the service.
///
/// # Errors
/// The admin file does not say.
pub fn address(service: &Service) -> Result<String, Stop> {
    let endpoint = service.admin("endpoint")?;
    let (_, address) = endpoint
        .split_once("://")
        .ok_or_else(|| Stop::new("the endpoint is no URL"))?;
    Ok(address.trim_end_matches('/').to_owned())
}

fn text(value: &Value) -> Result<String, Stop> {
    value
        .as_str()
        .map(str::to_owned)
        .ok_or_else(|| Stop::new("the answer lacks an id or a link"))
}
