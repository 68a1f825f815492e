//! Restores into a server of somebody else's, by a worker that sleeps past its lease. Before the first key another worker does the
//! restore; after it another one takes back what was written, for how far it was lies in the sleeper's data directory.

use std::time::{Duration, Instant};

use serde_json::json;
use xtask::foreign::Node;
use xtask::resp::{Connection, Reply};

use crate::service::wait;
use crate::shared::{LEASE, Shared, Source, TAKEN_OVER_WITHIN, pause, seed, times};

/// Thousands of keys of a kilobyte that the target holds before, and as many others after.
const THOUSANDS: u32 = 4;
const KEYS: i64 = 4000;
/// Of which so many are written in a second.
const OPS_MAX: u32 = 1500;
/// A safety point of the target takes three seconds.
const BYTES_PER_SECOND: u32 = 1_500_000;
/// When the worker falls asleep, and when it wakes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Sleep {
    /// While it makes the safety point; it wakes while its successor writes.
    BeforeTheFirstKey,
    /// While it writes; it wakes while its successor takes that back.
    BetweenKeys,
    /// The same; it wakes when its successor has done so.
    UntilAllIsTakenBack,
    /// As the first; it wakes when its successor has done all.
    UntilAllIsDone,
}

impl Sleep {
    const ALL: [Self; 4] = [
        Self::BeforeTheFirstKey,
        Self::BetweenKeys,
        Self::UntilAllIsDone,
        Self::UntilAllIsTakenBack,
    ];

    fn end(self) -> End {
        match self {
            Self::BeforeTheFirstKey | Self::UntilAllIsDone => End::Done,
            Self::BetweenKeys | Self::UntilAllIsTakenBack => End::TakenBack,
        }
    }
}

/// What became of a restore.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum End {
    /// The target holds the backup.
    Done,
    /// It holds what it held before.
    TakenBack,
}

impl End {
    /// What the API says of it: its status, and what the target holds.
    pub fn told(self) -> [&'static str; 2] {
        match self {
            Self::Done => ["succeed", "replaced"],
            Self::TakenBack => ["failed", "rolled_back"],
        }
    }
}

/// Two workers, and the server that they restore into.
pub struct Field {
    pub shared: Shared,
    target: Source,
    pub instance: String,
    backup: String,
    /// What the target holds before each restore, and after it.
    before: String,
    digest: String,
}

/// What the catalogue says of a restore and its job.
#[derive(Debug, PartialEq, Eq)]
pub struct Rows {
    text: String,
    fence: u32,
    pub owner: Option<&'static str>,
}

impl Field {
    pub fn lay_out() -> Self {
        let mut shared = Shared::start("api", &["--role", "api,scheduler"], &[]);
        for worker in ["first", "second"] {
            shared.join(worker, &["--role", "worker"], &[]);
        }
        let target = Source::start(THOUSANDS, BYTES_PER_SECOND);
        let caller = shared.nodes["api"].caller();
        let instance = target.attach(&caller, "target");
        let backup = caller.make_backup(&instance, "what it holds afterwards");
        let digest = target.server.digest().unwrap();
        let mut field = Self {
            shared,
            target,
            instance,
            backup,
            before: String::new(),
            digest,
        };
        field.put_others_in();
        field.before = field.target.server.digest().unwrap();
        assert_ne!(field.before, field.digest);
        field
    }

    fn node(&self) -> &Node {
        &self.target.server.nodes[0]
    }

    fn put_others_in(&self) {
        self.node().ask(&["FLUSHALL"]).unwrap();
        let keys = KEYS.to_string();
        self.node()
            .ask(&["DEBUG", "POPULATE", &keys, "other", "1000"])
            .unwrap();
    }

    /// Puts other keys into the target and asks for the backup.
    pub fn begin(&self) -> String {
        self.put_others_in();
        assert_eq!(self.target.server.digest().unwrap(), self.before);
        let wish = json!({"backup_id": self.backup, "replay": {"max_ops": OPS_MAX}});
        let path = format!("/instances/{}/restores", self.instance);
        let caller = self.shared.nodes["api"].caller();
        let asked = caller.v2("POST", &path, Some(&wish)).expect(200).json();
        asked["restore_id"].as_str().unwrap().to_owned()
    }

    fn state(&self, restore: &str) -> String {
        self.shared.sql(&format!(
            "SELECT target_state FROM restore WHERE id = '{restore}'"
        ))
    }

    /// The worker that makes the safety point.
    pub fn saving(&self) -> Option<&'static str> {
        let running = "SELECT count(*) FROM backup WHERE kind = 'safety' AND status = 'running'";
        let owner = self.shared.owner(&self.instance);
        owner.filter(|_| self.shared.sql(running) == "1")
    }

    /// The worker that writes: some keys are there that the target had not.
    pub fn writing(&self, restore: &str) -> Option<&'static str> {
        let keys = self.node().open().unwrap().ask(&["DBSIZE"]).unwrap();
        let has_some = matches!(keys, Reply::Number(count) if count > KEYS);
        let owner = self.shared.owner(&self.instance);
        owner.filter(|_| has_some && self.state(restore) == "loading")
    }

    /// Another worker than this one, once it has the restore.
    fn successor(&self, sleeper: &str) -> Option<&'static str> {
        self.shared
            .owner(&self.instance)
            .filter(|owner| *owner != sleeper)
    }

    /// The job of the restore: its state, its fence, whose it is.
    fn job(&self, restore: &str) -> String {
        self.shared.sql(&format!(
            "SELECT state, fence, owner FROM job WHERE subject_id = '{restore}'"
        ))
    }

    /// All that is said of a restore, which has one row and one job.
    fn rows(&self, restore: &str) -> Rows {
        let text = self.shared.sql(&format!(
            "SELECT job.fence, job.owner, restore.status, restore.target_state, restore.keys_applied, restore.keys_removed, \
             restore.resumed > 0, restore.safety_backup_id, restore.finished_at_ms, restore.updated_at_ms, job.state, \
             job.settled_at_ms FROM restore JOIN job ON job.subject_id = restore.id WHERE restore.id = '{restore}'"
        ));
        assert_eq!(text.lines().count(), 1, "{text}");
        let cells: Vec<&str> = text.split('|').collect();
        Rows {
            fence: cells[0].parse().unwrap(),
            owner: self.shared.named(cells[1]),
            text: cells[2..].join("|"),
        }
    }

    /// The attempts of the restore that have a connection to the target, each as often as it has one.
    fn connected(&self, restore: &str) -> Vec<u32> {
        let list = self.node().ask(&["CLIENT", "LIST"]).unwrap();
        let begins = format!("name=cachekeep-{}-{restore}-", self.instance);
        let names = list.text().unwrap_or_default().split_whitespace();
        let attempts = names.filter_map(|field| field.strip_prefix(begins.as_str())?.split('-').next());
        attempts.map(|fence| fence.parse().unwrap()).collect()
    }

    /// A connection that looks as if an attempt had it.
    fn late(&self, restore: &str, fence: u32) -> Connection {
        let mut late = self.node().open().unwrap();
        let name = format!("cachekeep-{}-{restore}-{fence}-forth", self.instance);
        late.ask(&["CLIENT", "SETNAME", &name]).unwrap();
        late
    }

    /// How many jobs have ended in a worker because its lease was over.
    fn ends(&self, worker: &str) -> usize {
        self.shared.nodes[worker]
            .log()
            .matches("or its lease is over")
            .count()
    }

    /// Wakes a worker, and waits until it has seen that its job is not its own any more; `ended` says how many such it had before.
    fn wake(&self, worker: &str, ended: usize) {
        self.shared.signal(worker, "-CONT");
        wait("the end of the sleeper's job", || {
            (self.ends(worker) > ended).then_some(())
        });
    }

    /// The record is that of its last attempt, and the target holds what that says and nothing of anybody else.
    pub fn check(&self, restore: &str, end: End, label: &str) -> Rows {
        let rows = self.rows(restore);
        let (is_ended, digest) = match end {
            End::Done => (format!("succeeded|replaced|{KEYS}|{KEYS}|"), &self.digest),
            // How many keys the first one had written nobody knows.
            End::TakenBack => ("failed|rolled_back|0|0|".to_owned(), &self.before),
        };
        assert!(rows.text.starts_with(&is_ended), "{label}: {rows:?}");
        assert!(rows.text.contains("|done|"), "{label}: {rows:?}");
        // More than two, where a busy machine has kept an attempt from renewing its claim.
        assert!(rows.fence >= 2, "{label}: {rows:?}");
        assert_eq!(
            self.target.server.digest().unwrap(),
            *digest,
            "{label}: the target holds something else"
        );
        let connected = self.connected(restore);
        assert!(
            connected.iter().all(|fence| *fence == rows.fence),
            "{label}: connections of earlier attempts: {connected:?}, {rows:?}"
        );
        rows
    }

    /// Safety points that were not finished have nothing in the store any more.
    pub fn check_swept(&self) {
        let failed = self
            .shared
            .sql("SELECT id FROM backup WHERE kind = 'safety' AND status <> 'succeeded'");
        for backup in failed.lines() {
            wait("what an unfinished safety point has stored to be gone", || {
                let places = format!("SELECT count(*) FROM backup_place WHERE backup_id = '{backup}'");
                (self.shared.sql(&places) == "0" && self.shared.attempts(backup).0.is_empty()).then_some(())
            });
        }
    }
}

/// One restore whose worker sleeps; what is said of it then.
fn restore_with(field: &Field, sleep: Sleep, moments: &mut u64) -> (String, Rows) {
    let restore = field.begin();
    let (sleeper, before) = match sleep {
        Sleep::BetweenKeys | Sleep::UntilAllIsTakenBack => {
            let sleeper = wait("a worker that writes", || field.writing(&restore));
            pause(moments, Duration::from_millis(1000));
            (sleeper, "loading")
        }
        Sleep::BeforeTheFirstKey | Sleep::UntilAllIsDone => {
            let sleeper = wait("a worker that makes a safety point", || field.saving());
            pause(moments, Duration::from_millis(1500));
            (sleeper, "untouched")
        }
    };
    let ended = field.ends(sleeper);
    field.shared.signal(sleeper, "-STOP");
    assert_eq!(field.state(&restore), before, "too fast");
    let job = field.job(&restore);
    let fence = job.split('|').nth(1).unwrap().parse().unwrap();
    let mut late = field.late(&restore, fence);
    match sleep {
        Sleep::BetweenKeys => {
            assert!(field.connected(&restore).len() > 1, "it writes by no connection");
            let since = Instant::now();
            wait("a successor", || field.successor(sleeper));
            let took = since.elapsed();
            assert!(
                took < Duration::from_secs(LEASE) * 5 / 3 + TAKEN_OVER_WITHIN,
                "{took:?}"
            );
            wait("a successor at the target", || {
                (!field.connected(&restore).contains(&fence)).then_some(())
            });
            field.wake(sleeper, ended);
        }
        Sleep::BeforeTheFirstKey => {
            let successor = wait("a successor that writes", || field.writing(&restore));
            assert_ne!(successor, sleeper);
            assert!(!field.connected(&restore).contains(&fence));
            field.wake(sleeper, ended);
        }
        Sleep::UntilAllIsDone | Sleep::UntilAllIsTakenBack => {}
    }
    let caller = field.shared.nodes["api"].caller();
    let record = caller.wait_end(&field.instance, "restores", &restore);
    let end = sleep.end();
    let told = [&record["status"], &record["ext"]["target_state"]];
    assert_eq!(told, end.told(), "{sleep:?}: {record}");
    let rows = field.check(&restore, end, &format!("{sleep:?}"));
    let answer = late.ask(&["SET", "late", "of an attempt that is over"]);
    assert!(answer.is_err(), "{sleep:?}: an earlier attempt still writes");
    if end == End::TakenBack {
        let why = record["ext"]["failure"].as_str().unwrap();
        assert!(why.contains("the node that wrote it is gone"), "{record}");
    }
    if rows.fence == 2 {
        assert!(rows.owner.is_some_and(|owner| owner != sleeper), "{rows:?}");
        assert_ne!(rows.text.split('|').nth(4), Some("t"), "{rows:?}");
    }
    if matches!(sleep, Sleep::UntilAllIsDone | Sleep::UntilAllIsTakenBack) {
        field.wake(sleeper, ended);
    }
    (restore, rows)
}

#[test]
fn a_restore_whose_worker_sleeps_past_its_lease_is_done_or_taken_back_once_and_the_sleeper_wakes_to_no_effect()
 {
    let sleeps = times(4, 100);
    let field = Field::lay_out();
    let mut moments = seed();
    let mut taken_back = 0;
    for (number, sleep) in (1..=sleeps).zip(Sleep::ALL.into_iter().cycle()) {
        let (restore, rows) = restore_with(&field, sleep, &mut moments);
        taken_back += u32::from(sleep.end() == End::TakenBack);
        // Whoever has woken has nothing left that it could still do.
        std::thread::sleep(Duration::from_secs(2 * LEASE));
        let label = format!("two leases after {number}, {sleep:?}");
        assert_eq!(field.check(&restore, sleep.end(), &label), rows, "{label}");
        field.check_swept();
        wait("connections to the target to be closed", || {
            (field.target.throttle.connections() == 0).then_some(())
        });
        let shared = &field.shared;
        assert_eq!(shared.sql("SELECT attachment_settings FROM instance"), "[]");
        let counts = shared.sql(
            "SELECT (SELECT count(*) FROM restore), (SELECT count(*) FROM job WHERE kind = 'restore'), \
             (SELECT count(*) FROM job WHERE state <> 'done'), \
             (SELECT count(*) FROM restore JOIN backup ON backup.id = safety_backup_id WHERE backup.status = 'succeeded')",
        );
        assert_eq!(counts, format!("{number}|{number}|0|{number}"), "{label}");
    }
    println!(
        "{sleeps} restores into a server of somebody else's whose worker was stopped past its lease of {LEASE} s and resumed, \
         {taken_back} of them between its keys: done once, or taken back once, by another worker; 0 rows changed afterwards, 0 keys of \
         others, 0 connections of earlier attempts"
    );
}
