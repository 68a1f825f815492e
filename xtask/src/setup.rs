//! Makes a fresh Debian machine able to run, test and measure cachekeep. Quick where everything is there already.
//!
//! Says what is missing and why before it installs anything. What comes from Debian needs root (or sudo); the rest
//! stays inside the repository: `.venv` (Python clients, and the S3 server moto) and `.tools` (cargo-deny).

use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::Stop;
use crate::args::Args;

/// What the machine is made ready for; each purpose includes the ones before it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Purpose {
    /// `cargo xtask run`: only the engine.
    Run,
    /// `cargo xtask test`.
    Test,
    /// `cargo xtask bench`.
    Bench,
}

struct Package {
    name: &'static str,
    /// The program that shows that the package is there.
    program: &'static str,
    purpose: Purpose,
    why: &'static str,
}

const PACKAGES: [Package; 11] = [
    Package {
        name: "redis-server",
        program: "redis-server",
        purpose: Purpose::Run,
        why: "the engine: every managed instance is a process of it",
    },
    Package {
        name: "redis-tools",
        program: "redis-check-rdb",
        purpose: Purpose::Test,
        why: "redis-cli and redis-check-rdb judge what cachekeep made",
    },
    Package {
        name: "age",
        program: "age",
        purpose: Purpose::Test,
        why: "stored backups must open with this stock program",
    },
    Package {
        name: "zstd",
        program: "zstd",
        purpose: Purpose::Test,
        why: "stored backups must open with this stock program",
    },
    Package {
        name: "openssl",
        program: "openssl",
        purpose: Purpose::Test,
        why: "makes the self-signed certificate of the https tests",
    },
    Package {
        name: "sqlite3",
        program: "sqlite3",
        purpose: Purpose::Test,
        why: "reads the catalogue from outside cachekeep",
    },
    Package {
        name: "postgresql",
        program: "pg_ctlcluster",
        purpose: Purpose::Test,
        why: "holds the catalogue of services that keep it there",
    },
    Package {
        name: "prometheus",
        program: "promtool",
        purpose: Purpose::Test,
        why: "its promtool judges metrics and alert rules",
    },
    Package {
        name: "curl",
        program: "curl",
        purpose: Purpose::Test,
        why: "plain HTTP client of the tests",
    },
    Package {
        name: "python3-venv",
        program: "python3",
        purpose: Purpose::Test,
        why: "the official clients and the S3 server of the tests are Python programs",
    },
    Package {
        name: "wrk",
        program: "wrk",
        purpose: Purpose::Bench,
        why: "HTTP load of the benchmark",
    },
];

/// Run as root by `sh -c`. Debian starts and enables the services of redis, PostgreSQL and Prometheus when their packages are
/// installed, on ports 6379, 5432 and 9090; `policy-rc.d` forbids the start and the units are disabled afterwards. The trap removes the policy file however
/// the script ends, an interrupted one included.
const INSTALL_SCRIPT: &str = r#"
set -eu
policy=/usr/sbin/policy-rc.d
if [ ! -e "$policy" ]; then
    trap 'rm -f "$policy"' EXIT
    trap 'exit 130' INT
    trap 'exit 143' TERM HUP
    printf '#!/bin/sh\nexit 101\n' > "$policy"
    chmod 755 "$policy"
fi
export DEBIAN_FRONTEND=noninteractive
apt-get update -q
apt-get install -y -q --no-install-recommends "$@"
for name in "$@"; do
    case "$name" in redis-server | postgresql | prometheus) ;; *) continue ;; esac
    if command -v systemctl > /dev/null; then
        systemctl --quiet disable "$name.service" > /dev/null 2>&1 || true
        [ ! -d /run/systemd/system ] || systemctl --quiet stop "$name.service" || true
    else
        update-rc.d "$name" disable > /dev/null 2>&1 || true
    fi
done
"#;

const CARGO_DENY_VERSION: &str = "0.20.2";
/// The newest that the toolchain named in Cargo.toml builds.
const S3S_FS_VERSION: &str = "0.14.1";

/// Fetches engines of other versions, see the script.
const ENGINES_SCRIPT: &str = include_str!("engines.sh");

/// `cargo xtask setup [run|test|bench|long|engines]`.
///
/// # Errors
/// Whatever could not be installed, with what to do by hand.
pub fn command(mut args: Args) -> Result<(), Stop> {
    let purpose = match args.names()?.as_slice() {
        [] => Purpose::Bench,
        [name] if name == "run" => Purpose::Run,
        [name] if name == "test" => Purpose::Test,
        [name] if name == "bench" => Purpose::Bench,
        [name] if name == "long" => {
            prepare(Purpose::Test)?;
            install_s3s_fs()?;
            return fetch_engines();
        }
        [name] if name == "engines" => {
            prepare(Purpose::Test)?;
            return fetch_engines();
        }
        _ => return Err(Stop::new("setup takes one of: run, test, bench, long, engines")),
    };
    prepare(purpose)?;
    println!("ready");
    Ok(())
}

/// `cargo xtask run [-- arguments of cachekeep serve]`: replaces this process by the service.
///
/// # Errors
/// The engine could not be installed or the build failed.
pub fn run(args: Args) -> Result<(), Stop> {
    prepare(Purpose::Run)?;
    build_service()?;
    let service = service_program();
    let failure = Command::new(&service).arg("serve").args(args.passed_on()).exec();
    Err(Stop::file("start", &service, &failure))
}

/// Puts engines of other versions into `.tools/engines`, where the matrix of engines finds them. Nothing is installed.
fn fetch_engines() -> Result<(), Stop> {
    println!("fetching engines of other versions into .tools/engines (some 60 MB, once)");
    run_engines_script("all")
}

/// As [`fetch_engines`], only those before 7.0. Some day nobody has them any more: what is shown with them is not shown then, and the
/// tests say so.
fn fetch_oldest_engines() {
    let is_there = |engine: &&str| repository().join(".tools/engines").join(engine).is_file();
    if ["redis-6.0", "redis-6.2"].iter().all(is_there) {
        return;
    }
    println!("fetching redis 6.0 and 6.2 into .tools/engines (20 MB, once)");
    if let Err(stop) = run_engines_script("oldest") {
        println!("not fetched, so not tested with: {stop}");
    }
}

fn run_engines_script(which: &str) -> Result<(), Stop> {
    run_visibly(
        Command::new("sh")
            .args(["-c", ENGINES_SCRIPT, "sh"])
            .arg(repository().join(".tools/engines"))
            .arg(python())
            .arg(which),
    )
}

/// Installs what is missing for the purpose.
///
/// # Errors
/// As [`command`].
pub fn prepare(purpose: Purpose) -> Result<(), Stop> {
    install_packages(purpose)?;
    if purpose >= Purpose::Test {
        install_python_clients()?;
        install_cargo_deny()?;
        fetch_oldest_engines();
    }
    Ok(())
}

/// Builds the service in release mode.
///
/// # Errors
/// The build failed; the compiler has said why.
pub fn build_service() -> Result<(), Stop> {
    println!("building cachekeep in release mode (a few minutes the first time)");
    run_visibly(cargo().args(["build", "--release", "--package", "cachekeep"]))
}

/// Where the built service lies.
pub fn service_program() -> PathBuf {
    target_directory().join("release/cachekeep")
}

/// The repository's root: the commands do the same from any folder.
pub fn repository() -> PathBuf {
    let xtask = Path::new(env!("CARGO_MANIFEST_DIR"));
    xtask.parent().unwrap_or(xtask).to_owned()
}

/// The second S3 server of the tests, see [`install_s3s_fs`].
pub fn s3s_fs() -> PathBuf {
    repository().join(".tools/bin/s3s-fs")
}

/// The Python that has the clients.
pub fn python() -> PathBuf {
    repository().join(".venv/bin/python")
}

/// The cargo that runs this command, in the repository, as if called from a shell.
///
/// `cargo run` tells this program about itself in variables like CARGO_PKG_NAME. Build scripts watch some of them:
/// passed on, they would make the next build of the same crates start from scratch, and the one after that again.
pub fn cargo() -> Command {
    let program = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let mut command = Command::new(program);
    command.current_dir(repository());
    for (name, _) in std::env::vars_os() {
        let text = name.to_string_lossy();
        if text.starts_with("CARGO_PKG_") || text.starts_with("CARGO_MANIFEST_") {
            command.env_remove(&name);
        }
    }
    command
}

/// Runs a program with its output going to ours.
///
/// # Errors
/// It could not be started or did not exit with 0.
pub fn run_visibly(command: &mut Command) -> Result<(), Stop> {
    let name = command.get_program().to_string_lossy().into_owned();
    let status = command
        .status()
        .map_err(|e| Stop::new(format!("cannot start {name}: {e}")))?;
    if status.success() {
        Ok(())
    } else {
        Err(Stop::new(format!("{name} failed: {status}")))
    }
}

fn target_directory() -> PathBuf {
    let repository = repository();
    match std::env::var_os("CARGO_TARGET_DIR") {
        Some(chosen) => repository.join(chosen),
        None => repository.join("target"),
    }
}

fn install_packages(purpose: Purpose) -> Result<(), Stop> {
    let missing: Vec<&Package> = PACKAGES
        .iter()
        .filter(|package| package.purpose <= purpose && !is_installed(package))
        .collect();
    if missing.is_empty() {
        return Ok(());
    }
    println!("missing on this machine:");
    for package in &missing {
        println!("  {:<14} {}", package.name, package.why);
    }
    let names: Vec<&str> = missing.iter().map(|package| package.name).collect();
    let by_hand = format!("apt-get install --no-install-recommends {}", names.join(" "));
    if find_program("apt-get").is_none() {
        return Err(Stop::new("this is not a Debian machine: no apt-get")
            .advice(format!("install the equivalents of: {}", names.join(" "))));
    }
    let mut install = if is_root() {
        Command::new("sh")
    } else if find_program("sudo").is_some() {
        let mut sudo = Command::new("sudo");
        sudo.arg("sh");
        sudo
    } else {
        return Err(
            Stop::new("installing needs root, and there is no sudo").advice(format!("as root: {by_hand}"))
        );
    };
    println!("installing from Debian: {by_hand}");
    run_visibly(install.args(["-c", INSTALL_SCRIPT, "sh"]).args(&names))
        .map_err(|e| e.advice(format!("try by hand as root: apt-get update && {by_hand}")))
}

fn is_installed(package: &Package) -> bool {
    let there = find_program(package.program).is_some();
    if package.name != "python3-venv" {
        return there;
    }
    // Debian's python3 comes without the part that makes virtual environments.
    let makes_environments = || {
        let probe = Command::new("python3")
            .args(["-c", "import ensurepip, venv"])
            .output();
        probe.is_ok_and(|output| output.status.success())
    };
    there && makes_environments()
}

/// Looks for a program as a shell would, and in the folders that only root has on its path.
pub fn find_program(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path)
        .chain(["/usr/sbin", "/sbin"].map(PathBuf::from))
        .map(|folder| folder.join(name))
        .find(|program| program.is_file())
}

/// Whether this process is root's.
pub fn is_root() -> bool {
    // The owner of our own /proc entry is the effective user.
    use std::os::unix::fs::MetadataExt as _;
    std::fs::metadata("/proc/self").is_ok_and(|entry| entry.uid() == 0)
}

/// Whether root can become somebody else: in a user namespace it may be the only one.
pub fn has_other_users() -> bool {
    let known = std::fs::read_to_string("/proc/self/uid_map").unwrap_or_default();
    let counts = known.lines().filter_map(|line| line.split_whitespace().nth(2));
    counts.filter_map(|count| count.parse::<u64>().ok()).sum::<u64>() != 1
}

/// `.venv` holds exactly `tests/clients/requirements.txt`; a copy of that file, written last, says so.
fn install_python_clients() -> Result<(), Stop> {
    let environment = repository().join(".venv");
    let requirements = repository().join("tests/clients/requirements.txt");
    let installed = environment.join("requirements.txt");
    let wanted = std::fs::read(&requirements).map_err(|e| Stop::file("read", &requirements, &e))?;
    if std::fs::read(&installed).is_ok_and(|have| have == wanted) {
        return Ok(());
    }
    println!(
        "installing the real DCS clients and an S3 server into {} (the tests speak with both)",
        environment.display()
    );
    run_visibly(
        Command::new("python3")
            .args(["-m", "venv", "--clear"])
            .arg(&environment),
    )?;
    run_visibly(
        Command::new(python())
            .args([
                "-m",
                "pip",
                "install",
                "--quiet",
                "--disable-pip-version-check",
                "--requirement",
            ])
            .arg(&requirements),
    )
    .map_err(|e| e.advice("the clients come from the Python package index: is it reachable?"))?;
    std::fs::write(&installed, wanted).map_err(|e| Stop::file("write", &installed, &e))
}

/// Built without optimisation: 70 CPU seconds instead of several minutes, and its run takes a second either way.
fn install_cargo_deny() -> Result<(), Stop> {
    let root = repository().join(".tools");
    let probe = Command::new(root.join("bin/cargo-deny"))
        .arg("--version")
        .output();
    let have = probe
        .map(|output| String::from_utf8_lossy(&output.stdout).into_owned())
        .unwrap_or_default();
    if have.split_whitespace().last() == Some(CARGO_DENY_VERSION) {
        return Ok(());
    }
    println!(
        "installing cargo-deny {CARGO_DENY_VERSION} into {} (checks licences and sources)",
        root.display()
    );
    run_visibly(
        cargo()
            .args([
                "install",
                "--quiet",
                "--locked",
                "--force",
                "--profile",
                "dev",
                "--root",
            ])
            .arg(&root)
            .args(["--version", CARGO_DENY_VERSION, "cargo-deny"])
            .env("CARGO_PROFILE_DEV_DEBUG", "0")
            .env_remove("CARGO_TARGET_DIR"),
    )
    .map_err(|e| e.advice("cargo-deny comes from the crate registry: is it reachable?"))
}

/// A second S3 server, which checks signatures: for the long form of the tests only, because its build takes four
/// CPU minutes.
///
/// # Errors
/// It could not be built.
pub fn install_s3s_fs() -> Result<(), Stop> {
    let probe = Command::new(s3s_fs()).arg("--version").output();
    let have = probe
        .map(|output| String::from_utf8_lossy(&output.stdout).into_owned())
        .unwrap_or_default();
    if have.split_whitespace().last() == Some(S3S_FS_VERSION) {
        return Ok(());
    }
    println!("installing s3s-fs {S3S_FS_VERSION} (a second S3 server for the long tests; some minutes)");
    run_visibly(
        cargo()
            .args(["install", "--quiet", "--locked", "--force", "--root"])
            .arg(repository().join(".tools"))
            .args(["--version", S3S_FS_VERSION, "--features", "binary", "s3s-fs"])
            .env_remove("CARGO_TARGET_DIR"),
    )
    .map_err(|e| e.advice("s3s-fs comes from the crate registry: is it reachable?"))
}
