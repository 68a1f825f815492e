//! A real PostgreSQL of the test's own on a free port, of loopback where nobody says else; it and its files are gone when the value is, or when the
//! test's process ends in whatever way.

use std::io::Write as _;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use crate::Stop;
use crate::scratch::Scratch;
use crate::setup::{has_other_users, is_root};

const START_TIME: Duration = Duration::from_secs(60);
/// Runs the server until its own input ends: whoever holds the other end may be killed, and nothing is left.
/// `$1` is the server, `$2` the data, `$3` the port, `$4` the address, `$5` what else it is told.
const KEEPER: &str = r#"
"$1" -D "$2" -p "$3" -k "$2" -h "$4" -c max_connections=200 $5 > "$2/log" 2>&1 &
server=$!
echo "$server" > "$2/keeper.server"
cat > /dev/null
kill -INT "$server" 2> /dev/null
wait "$server"
"#;

/// A running server.
pub struct Postgres {
    keeper: Child,
    folder: Scratch,
    address: SocketAddr,
    settings: &'static str,
}

impl Postgres {
    /// Starts one that keeps nothing through a crash of the machine, which is quick.
    ///
    /// # Errors
    /// It is not installed, with the command that installs it; it does not start.
    pub fn start() -> Result<Self, Stop> {
        Self::start_with("-c fsync=off -c full_page_writes=off")
    }

    /// Starts one that is told the words of `settings`.
    ///
    /// # Errors
    /// As [`Postgres::start`].
    pub fn start_with(settings: &'static str) -> Result<Self, Stop> {
        Self::start_at(Ipv4Addr::LOCALHOST.into(), settings)
    }

    /// As [`Postgres::start_with`], at an address of this machine, where everybody is let in.
    ///
    /// # Errors
    /// As [`Postgres::start`].
    pub fn start_at(address: IpAddr, settings: &'static str) -> Result<Self, Stop> {
        let folder = Scratch::new("postgres")?;
        let data = folder.path().join("data");
        std::fs::create_dir(&data)?;
        if is_root() {
            use std::os::unix::fs::PermissionsExt as _;
            std::fs::set_permissions(folder.path(), std::fs::Permissions::from_mode(0o711))?;
            if has_other_users() {
                done(Command::new("chown").arg(user()).arg(&data))?;
            }
        }
        done(
            unprivileged(&program("initdb")?)
                .args([
                    "--no-sync",
                    "--auth=trust",
                    "--username=cachekeep",
                    "--encoding=UTF8",
                    "--locale=C",
                    "-D",
                ])
                .arg(&data),
        )?;
        if !address.is_loopback() {
            let rules = data.join("pg_hba.conf");
            let mut open = std::fs::File::options()
                .append(true)
                .open(&rules)
                .map_err(|e| Stop::file("open", &rules, &e))?;
            writeln!(open, "host all all all trust")?;
        }
        // Freed again at once: PostgreSQL takes no port 0.
        let address = TcpListener::bind((address, 0))?.local_addr()?;
        let keeper = keep(&data, address, settings)?;
        let server = Self {
            keeper,
            folder,
            address,
            settings,
        };
        server.wait_until_ready()?;
        Ok(server)
    }

    /// The URL of an empty schema of its own, made now.
    ///
    /// # Errors
    /// The server refuses it.
    pub fn make_schema(&self, name: &str) -> Result<String, Stop> {
        self.sql(&format!("CREATE SCHEMA {name}"))?;
        Ok(self.url(name))
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// The URL of a schema.
    pub fn url(&self, schema: &str) -> String {
        format!(
            "postgresql://cachekeep@{}/postgres?sslmode=disable&options=-csearch_path%3D{schema}",
            self.address
        )
    }

    /// Runs SQL by `psql` and returns what it prints: a line a row, columns separated by `|`.
    ///
    /// # Errors
    /// What `psql` says.
    pub fn sql(&self, sql: &str) -> Result<String, Stop> {
        let output = Command::new(program("psql")?)
            .args([
                "-qtAX",
                "-v",
                "ON_ERROR_STOP=1",
                "-U",
                "cachekeep",
                "-d",
                "postgres",
            ])
            .args(["-h", &self.address.ip().to_string()])
            .args(["-p", &self.address.port().to_string()])
            .args(["-c", sql])
            .output()?;
        if !output.status.success() {
            return Err(Stop::new(format!(
                "{sql}: {}",
                String::from_utf8_lossy(&output.stderr)
            )));
        }
        Ok(String::from_utf8_lossy(&output.stdout).trim_end().to_owned())
    }

    /// As [`Postgres::sql`], of a text that may be longer than a word of a command line.
    ///
    /// # Errors
    /// What `psql` says.
    pub fn script(&self, text: &str) -> Result<String, Stop> {
        let mut psql = Command::new(program("psql")?)
            .args([
                "-qtAX",
                "-v",
                "ON_ERROR_STOP=1",
                "-U",
                "cachekeep",
                "-d",
                "postgres",
            ])
            .args(["-h", &self.address.ip().to_string()])
            .args(["-p", &self.address.port().to_string()])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()?;
        if let Some(mut input) = psql.stdin.take() {
            input.write_all(text.as_bytes())?;
        }
        let output = psql.wait_with_output()?;
        if !output.status.success() {
            let errors = String::from_utf8_lossy(&output.stderr);
            return Err(Stop::new(format!("psql: {errors}")));
        }
        Ok(String::from_utf8_lossy(&output.stdout).trim_end().to_owned())
    }

    /// Where it keeps its data: the working folder of all its processes.
    pub fn data_folder(&self) -> PathBuf {
        self.folder.path().join("data")
    }

    /// Kills every process of the server at once, as a crash of the machine would.
    ///
    /// # Errors
    /// Its process cannot be named.
    pub fn kill(&mut self) -> Result<(), Stop> {
        let pid = std::fs::read_to_string(self.folder.path().join("data/keeper.server"))?;
        // Its children are their own sessions' leaders, and end when they find their parent gone.
        let _already_gone = Command::new("kill").args(["-9", pid.trim()]).status();
        self.end();
        Ok(())
    }

    /// Starts it on the data that there is.
    ///
    /// # Errors
    /// It does not start.
    pub fn start_again(&mut self) -> Result<(), Stop> {
        let data = self.folder.path().join("data");
        let until = Instant::now() + START_TIME;
        loop {
            // Shared memory of the old server's last process may be in use for a moment.
            let _left = std::fs::remove_file(data.join("postmaster.pid"));
            self.keeper = keep(&data, self.address, self.settings)?;
            match self.wait_until_ready() {
                Ok(()) => return Ok(()),
                Err(error) if Instant::now() > until => return Err(error),
                Err(_) => self.end(),
            }
        }
    }

    fn end(&mut self) {
        drop(self.keeper.stdin.take());
        let _already_gone = self.keeper.wait();
    }

    fn wait_until_ready(&self) -> Result<(), Stop> {
        let until = Instant::now() + START_TIME;
        let pid = self.folder.path().join("data/keeper.server");
        while Instant::now() < until {
            if TcpStream::connect(self.address).is_ok() && self.sql("SELECT 1").is_ok() {
                return Ok(());
            }
            let is_over = std::fs::read_to_string(&pid)
                .is_ok_and(|pid| !PathBuf::from(format!("/proc/{}", pid.trim())).exists());
            if is_over {
                break;
            }
            std::thread::sleep(Duration::from_millis(50));
        }
        let log = std::fs::read_to_string(self.folder.path().join("data/log")).unwrap_or_default();
        Err(Stop::new(format!("PostgreSQL does not start: {log}")))
    }
}

impl Drop for Postgres {
    fn drop(&mut self) {
        self.end();
    }
}

fn keep(data: &std::path::Path, address: SocketAddr, settings: &str) -> Result<Child, Stop> {
    let _of_the_last_one = std::fs::remove_file(data.join("keeper.server"));
    let mut keeper = unprivileged(&PathBuf::from("sh"))
        .args(["-c", KEEPER, "sh"])
        .arg(program("postgres")?)
        .arg(data)
        .args([&address.port().to_string(), &address.ip().to_string(), settings])
        .current_dir("/")
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .map_err(|e| Stop::new(format!("cannot start sh: {e}")))?;
    if let Some(input) = &mut keeper.stdin {
        input.flush()?;
    }
    Ok(keeper)
}

/// PostgreSQL does not run as root.
fn unprivileged(program: &std::path::Path) -> Command {
    if !is_root() {
        return Command::new(program);
    }
    if !has_other_users() {
        // The user whom this root stands for, by another number.
        let mut command = Command::new("unshare");
        command
            .args(["--user", "--map-user=65534", "--map-group=65534"])
            .arg(program);
        return command;
    }
    let mut command = Command::new("setpriv");
    let user = user();
    command
        .args([format!("--reuid={user}"), format!("--regid={}", group(user))])
        .arg("--clear-groups")
        .arg(program);
    command
}

fn user() -> &'static str {
    let users = std::fs::read_to_string("/etc/passwd").unwrap_or_default();
    if users.lines().any(|line| line.starts_with("postgres:")) {
        "postgres"
    } else {
        "nobody"
    }
}

fn group(user: &str) -> &'static str {
    if user == "postgres" { "postgres" } else { "nogroup" }
}

/// A program of PostgreSQL: Debian keeps those of the server out of the PATH.
/// Debian's programs themselves before those of the `PATH`, which there are a script that looks for them: 60 ms for each call of `psql`.
fn program(name: &str) -> Result<PathBuf, Stop> {
    let mut versions: Vec<PathBuf> = std::fs::read_dir("/usr/lib/postgresql")
        .into_iter()
        .flatten()
        .flatten()
        .map(|version| version.path().join("bin").join(name))
        .filter(|program| program.is_file())
        .collect();
    versions.sort();
    versions
        .pop()
        .or_else(|| crate::setup::find_program(name))
        .ok_or_else(|| {
            Stop::new(format!("{name} of PostgreSQL is missing"))
                .advice("cargo xtask setup test   installs it")
        })
}

fn done(command: &mut Command) -> Result<(), Stop> {
    let output = command.stdin(Stdio::null()).current_dir("/").output()?;
    if output.status.success() {
        return Ok(());
    }
    Err(Stop::new(format!(
        "{command:?}: {}",
        String::from_utf8_lossy(&output.stderr)
    )))
}
