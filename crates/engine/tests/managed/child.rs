//! This program once more, as a process that may die.

use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use engine::process::{self, Persistence};
use engine::sideload;
use engine::switch::{self, SwitchPlan};
use engine::{Control, Secret};

use crate::harness::{ADMIN_PASSWORD, wait_until};

/// What the child is to do; unset in the tests themselves.
const BEHAVIOUR: &str = "CACHEKEEP_TEST_BEHAVIOUR";
const HOME: &str = "CACHEKEEP_TEST_HOME";
const PORT: &str = "CACHEKEEP_TEST_PORT";

/// Runs this program as a child. `failpoint` is where it dies, fails or stalls.
pub fn spawn(behaviour: &str, home: &Path, port: u16, failpoint: Option<&str>) -> Child {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command
        .args(["--exact", "child::behave", "--nocapture"])
        .env(BEHAVIOUR, behaviour)
        .env(HOME, home)
        .env(PORT, port.to_string())
        .stdin(Stdio::null())
        .stdout(Stdio::null());
    if let Some(failpoint) = failpoint {
        command
            .env("CACHEKEEP_FAILPOINT", failpoint)
            .env("CACHEKEEP_FAILPOINT_MARK", mark(home));
    }
    command.spawn().unwrap()
}

/// Runs a child that must die or fail at `failpoint`; panics where it never came there.
pub fn run_to(failpoint: &str, behaviour: &str, home: &Path, port: u16) {
    // Absent but for the first of several runs in one home.
    let _absent = std::fs::remove_file(mark(home));
    spawn(behaviour, home, port, Some(failpoint)).wait().unwrap();
    let name = failpoint.split(':').next().unwrap();
    // A line a place, as the failpoint writes them.
    assert_eq!(
        std::fs::read_to_string(mark(home)).unwrap_or_default(),
        format!("{name}\n"),
        "never came to the failpoint"
    );
}

fn mark(home: &Path) -> PathBuf {
    home.join("mark")
}

/// What the child's answer is written to.
pub fn answer(home: &Path) -> String {
    std::fs::read_to_string(home.join("answer")).unwrap_or_default()
}

/// The most memory that this process ever had resident.
fn peak_memory_kib() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix("VmHWM:"))
        .unwrap();
    line.trim().trim_end_matches(" kB").parse().unwrap()
}

/// Nothing, but in a child.
#[test]
fn behave() {
    let Ok(behaviour) = std::env::var(BEHAVIOUR) else {
        return;
    };
    let home = PathBuf::from(std::env::var_os(HOME).unwrap());
    let port: u16 = std::env::var(PORT).unwrap().parse().unwrap();
    let admin = Secret::new(ADMIN_PASSWORD);
    let engine = |name: &str| process::find(&home.join(name), &admin).unwrap().unwrap();
    let answer = match behaviour.as_str() {
        "start and wait" => {
            let spec = process::EngineSpec {
                program: process::Program::ask(&process::find_binary().unwrap()).unwrap(),
                directory: home.join("g1"),
                run_as: None,
                bind: "127.0.0.1".to_owned(),
                port,
                admin_password: admin.clone(),
                clients: process::Clients::default(),
                max_memory_bytes: 0,
                persistence: Persistence::Aof,
                certificate: None,
                cluster: None,
                watched: None,
            };
            let engine = process::start(&spec).unwrap();
            std::fs::write(home.join("answer"), engine.pid().to_string()).unwrap();
            wait_until("the kill", || false);
            "was not killed".to_owned()
        }
        "place" => {
            let mut file = std::fs::File::open(home.join("data.rdb")).unwrap();
            let placed = sideload::place(
                &home.join("g1"),
                sideload::Form::AppendOnlyFolder,
                None,
                &Control::new(None),
                |push| {
                    let mut piece = vec![0; 64 * 1024];
                    loop {
                        match file.read(&mut piece).unwrap() {
                            0 => return Ok(()),
                            count => push(&piece[..count])?,
                        }
                    }
                },
            );
            match placed {
                Ok(_) => peak_memory_kib().to_string(),
                Err(e) => e.kind.word().to_owned(),
            }
        }
        "switch" => {
            let (old, new) = (engine("old"), engine("new"));
            let done = switch::run(&SwitchPlan {
                old: Some(&old),
                new: &new,
                port,
            });
            match done {
                Ok(_) => "switched".to_owned(),
                Err(e) => e.kind.word().to_owned(),
            }
        }
        other => panic!("unknown behaviour {other}"),
    };
    std::fs::write(home.join("answer"), answer).unwrap();
}
