//! The kernel out of memory: in a control group of our own, so that the rest of the machine has no part in it.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};

use crate::checker::{self, Catalogue, Form};
use crate::faults::{last_restore, not_shown};
use crate::lifecycle::wait_until;
use crate::world::{World, signal};

/// What a limit leaves to those that live below it: enough for a service that does nothing new, too little for data.
const ROOM_BYTES: u64 = 8 * 1024 * 1024;

/// A group of processes whose memory is limited together. On drop its processes go back to where they came from.
pub struct Group {
    folder: PathBuf,
    limit: &'static str,
    usage: &'static str,
}

impl Group {
    /// `None` where we may not make one.
    pub fn new() -> Option<Self> {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let kinds = [
            ("/sys/fs/cgroup", "memory.max", "memory.current"),
            (
                "/sys/fs/cgroup/memory",
                "memory.limit_in_bytes",
                "memory.usage_in_bytes",
            ),
        ];
        kinds.into_iter().find_map(|(root, limit, usage)| {
            let name = format!("cachekeep-test-{}-{number}", std::process::id());
            let folder = Path::new(root).join(name);
            std::fs::create_dir(&folder).ok()?;
            let group = Self { folder, limit, usage };
            group.folder.join(limit).exists().then_some(group)
        })
    }

    /// From now on what the process takes is counted, and what its children will be belongs to the group, too.
    pub fn take(&self, pid: u32) {
        std::fs::write(self.folder.join("cgroup.procs"), pid.to_string()).unwrap();
    }

    fn used_bytes(&self) -> u64 {
        let text = std::fs::read_to_string(self.folder.join(self.usage)).unwrap();
        text.trim().parse().unwrap()
    }

    /// The file cache of the group goes first; where that is not enough, the kernel kills.
    pub fn leave(&self, bytes: u64) {
        let limit = self.used_bytes() + bytes;
        std::fs::write(self.folder.join(self.limit), limit.to_string()).unwrap();
    }

    /// Has somebody ask for more than there is, until the kernel has killed this process of the group. It is the first to
    /// go; who asks goes after it.
    pub fn exhaust(&self, victim: u32) {
        std::fs::write(format!("/proc/{victim}/oom_score_adj"), "1000").unwrap();
        let procs = self.folder.join("cgroup.procs");
        // By the program itself: what the kernel writes for it is refused, and nobody is killed.
        let text = r#"echo $$ > "$1" && exec awk 'BEGIN { s = "x"; while (length(s) < 67108864) s = s s }'"#;
        let mut asking = Command::new("sh")
            .args(["-c", text, "sh"])
            .arg(&procs)
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let lives = || std::fs::read_link(format!("/proc/{victim}/exe")).is_ok();
        wait_until("the kernel to kill the node", || !lives());
        let _already_gone = asking.kill();
        let _reaped = asking.wait();
    }

    /// How often the kernel has killed a process of the group.
    pub fn killed(&self) -> u64 {
        ["memory.events", "memory.oom_control"]
            .iter()
            .filter_map(|name| std::fs::read_to_string(self.folder.join(name)).ok())
            .flat_map(|text| text.lines().map(str::to_owned).collect::<Vec<_>>())
            .find_map(|line| line.strip_prefix("oom_kill ")?.parse().ok())
            .unwrap()
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        let out = self.folder.parent().unwrap().join("cgroup.procs");
        let processes = std::fs::read_to_string(self.folder.join("cgroup.procs")).unwrap_or_default();
        for pid in processes.lines() {
            let _already_gone = std::fs::write(&out, pid);
        }
        let _still_in_use = std::fs::remove_dir(&self.folder);
    }
}

#[test]
fn where_the_kernel_runs_out_of_memory_the_new_engine_goes_and_the_old_data_serves() {
    let Some(group) = Group::new() else {
        not_shown("the kernel out of memory", "making a control group needs root");
        return;
    };
    let mut world = World::start(&[]);
    world.create("one", "redis.single.xu1.large.1", "aof");
    let old = world.serving_pid("one").unwrap();
    group.take(world.pid());
    group.take(old);
    world
        .client("one")
        .ask(&["DEBUG", "POPULATE", "1500000", "key", "16"])
        .unwrap();
    let backup = world.backup("one");
    world.change("one");

    let (status, _) = world.ask_for_restore("one", &backup, false).unwrap();
    assert_eq!(status, 200);
    let mut new = None;
    wait_until("the new engine has some of the data", || {
        new = world.engines().into_iter().find(|(pid, _)| *pid != old);
        Catalogue::open(&world)
            .count("SELECT count(*) FROM restore WHERE status = 'running' AND target_state = 'loading'")
            == 1
            && new
                .as_ref()
                .is_some_and(|(pid, _)| resident_bytes(*pid) > 48 << 20)
    });
    // Stopped while the limit is set, so that it finds it in the middle of its data.
    let (new, _) = new.unwrap();
    signal(new, "STOP");
    group.leave(ROOM_BYTES);
    signal(new, "CONT");

    checker::settle(&mut world, "out of memory");
    assert_eq!(
        group.killed(),
        1,
        "the kernel has killed nobody, or more than one"
    );
    assert_eq!(world.serving_pid("one"), Some(old), "the old engine serves on");
    let last = last_restore(&world);
    assert_eq!(last.status, "failed", "{last:?}");
    assert_eq!(last.error_code.as_deref(), Some("dcs.08.0007"), "{last:?}");
    assert_eq!(last.target_state, "rolled_back", "{last:?}");
    let why = last.failure.as_deref().unwrap();
    assert!(why.contains("was killed, by somebody or by the kernel"), "{why}");
    checker::check(&mut world, Form::Cheap, "out of memory");

    // With room again the same works.
    group.leave(1 << 30);
    let (status, _) = world.ask_for_restore("one", &backup, false).unwrap();
    assert_eq!(status, 200);
    checker::check(&mut world, Form::Full, "with room again");
    assert_eq!(last_restore(&world).status, "succeeded");
}

fn resident_bytes(pid: u32) -> u64 {
    let pages = std::fs::read_to_string(format!("/proc/{pid}/statm"))
        .ok()
        .and_then(|text| text.split(' ').nth(1)?.parse::<u64>().ok());
    pages.unwrap_or(0) * 4096
}
