//! Nodes that are killed in the middle of what is no backup: a restore into a server of somebody else's before its first key and
//! between its keys, a verify, and an import.

use std::fmt::Write as _;
use std::time::{Duration, Instant};

use serde_json::json;
use xtask::scratch::Scratch;

use crate::beside_api::{FileServer, dump, import};
use crate::service::wait;
use crate::shared::{Shared, Source, pause, seed, times};
use crate::sleeping_restore::{End, Field};

/// What the work of a node that is killed may take until another one has ended it, or it itself where nobody else can.
const SETTLED_WITHIN: Duration = Duration::from_secs(60);
/// The backup that is verified: so many thousand keys of a kilobyte, which an engine loads for half a second.
const VERIFIED_THOUSANDS: u32 = 60;
const UNTHROTTLED: u32 = 1_000_000_000;

/// What is under way when the node dies.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Work {
    /// A restore that makes its safety point: another worker makes it anew.
    SafetyPoint,
    /// A restore that writes: how far it was is known to its own node alone, which is started again at once and goes on.
    Keys,
    /// The same, of a node that is not started again: another one takes back what it wrote.
    KeysForGood,
    /// Another worker verifies anew.
    Verify,
    /// Nobody has the file: it has failed, and what it stored goes.
    Import,
}

impl Work {
    const ALL: [Self; 5] = [
        Self::SafetyPoint,
        Self::Keys,
        Self::KeysForGood,
        Self::Verify,
        Self::Import,
    ];
}

/// Everything that dies, and what its work is about.
struct Deaths {
    field: Field,
    large: Source,
    large_instance: String,
    large_backup: String,
    files: FileServer,
    moments: u64,
}

impl Deaths {
    fn lay_out() -> Self {
        let outside = Scratch::new("far").unwrap();
        let files = FileServer::start(&dump(outside.path()));
        let mut field = Field::lay_out();
        field
            .shared
            .join("gate", &["--role", "api", "--import-allow", "127.0.0.1"], &[]);
        let large = Source::start(VERIFIED_THOUSANDS, UNTHROTTLED);
        let caller = field.shared.nodes["api"].caller();
        let large_instance = large.attach(&caller, "large");
        let large_backup = caller.make_backup(&large_instance, "to be verified");
        Self {
            field,
            large,
            large_instance,
            large_backup,
            files,
            moments: seed(),
        }
    }

    fn kill(&mut self, node: &str) -> Instant {
        self.field.shared.nodes.get_mut(node).unwrap().kill();
        Instant::now()
    }

    fn start_again(&mut self, node: &str) {
        self.field.shared.nodes.get_mut(node).unwrap().start_again();
    }

    /// One death, and how long it was until its work had ended; whether that was in the middle of it.
    fn die(&mut self, work: Work) -> (Duration, bool) {
        match work {
            Work::SafetyPoint | Work::Keys | Work::KeysForGood => (self.die_restoring(work), true),
            Work::Verify => self.die_verifying(),
            Work::Import => (self.die_importing(), true),
        }
    }

    fn die_restoring(&mut self, work: Work) -> Duration {
        let restore = self.field.begin();
        let is_writing = work != Work::SafetyPoint;
        let is_back = work == Work::Keys;
        let node = wait("a worker at work", || match is_writing {
            true => self.field.writing(&restore),
            false => self.field.saving(),
        });
        pause(&mut self.moments, Duration::from_millis(1200));
        let since = self.kill(node);
        if is_back {
            // It has to be there before the others have missed it for a lease, also where the machine is busy.
            pause(&mut self.moments, Duration::from_millis(300));
            self.start_again(node);
        }
        let caller = self.field.shared.nodes["api"].caller();
        let record = caller.wait_end(&self.field.instance, "restores", &restore);
        let took = since.elapsed();
        let end = match work {
            Work::KeysForGood => End::TakenBack,
            _ => End::Done,
        };
        let told = [&record["status"], &record["ext"]["target_state"]];
        assert_eq!(told, end.told(), "{work:?}: {record}");
        let rows = self.field.check(&restore, end, &format!("{work:?}"));
        let is_its = rows.owner == Some(node);
        assert_eq!(is_its, is_back, "{work:?}: {rows:?}, killed was {node}");
        if !is_back {
            self.start_again(node);
        }
        self.field.check_swept();
        took
    }

    fn die_verifying(&mut self) -> (Duration, bool) {
        let caller = self.field.shared.nodes["api"].caller();
        let path = format!(
            "/instances/{}/backups/{}/verify",
            self.large_instance, self.large_backup
        );
        let asked = caller
            .ck("POST", &path, Some(&json!({"level": "proven"})))
            .expect(200)
            .json();
        let id = asked["verification_id"].as_str().unwrap().to_owned();
        let row = |shared: &Shared| {
            shared.sql(&format!(
                "SELECT status, attempts, owner FROM verification WHERE id = '{id}'"
            ))
        };
        let shared = &self.field.shared;
        let node = wait("a worker that verifies", || {
            shared.named(row(shared).split('|').nth(2)?)
        });
        pause(&mut self.moments, Duration::from_millis(300));
        let since = self.kill(node);
        let attempts = wait("the verify's end", || {
            let row = row(&self.field.shared);
            let cells: Vec<&str> = row.split('|').collect();
            assert!(["waiting", "running", "holds"].contains(&cells[0]), "{row}");
            (cells[0] == "holds").then(|| cells[1].to_owned())
        });
        let took = since.elapsed();
        self.start_again(node);
        (took, attempts != "1")
    }

    fn die_importing(&mut self) -> Duration {
        let gate = self.field.shared.nodes["gate"].caller();
        let id = import(&gate, &self.field.instance, &self.files.url("/stuck"));
        let first = "SELECT count(*) FROM backup_place WHERE backup_id = ";
        wait("a place for its objects", || {
            (self.field.shared.sql(&format!("{first}'{id}'")) != "0").then_some(())
        });
        pause(&mut self.moments, Duration::from_millis(1000));
        let since = self.kill("gate");
        let caller = self.field.shared.nodes["api"].caller();
        let record = caller.wait_end(&self.field.instance, "backups", &id);
        let took = since.elapsed();
        assert_eq!(record["status"], "failed", "{record}");
        let why = record["ext"]["failure"].as_str().unwrap();
        assert!(why.contains("import the file again"), "{record}");
        wait("what it stored to be gone", || {
            let places = self.field.shared.sql(&format!("{first}'{id}'"));
            (places == "0" && self.field.shared.attempts(&id).0.is_empty()).then_some(())
        });
        self.start_again("gate");
        took
    }
}

#[test]
fn whatever_a_killed_node_was_about_is_done_by_another_or_ends_with_its_reason() {
    let rounds = times(1, 20);
    let mut deaths = Deaths::lay_out();
    let mut slowest = [Duration::ZERO; Work::ALL.len()];
    let mut hit = [0; Work::ALL.len()];
    for _ in 0..rounds {
        for (at, work) in Work::ALL.into_iter().enumerate() {
            let (took, is_in_the_middle) = deaths.die(work);
            assert!(took < SETTLED_WITHIN, "{work:?}: {took:?}");
            slowest[at] = slowest[at].max(took);
            hit[at] += i32::from(is_in_the_middle);
        }
    }
    let shared = &deaths.field.shared;
    let left = shared.sql(
        "SELECT (SELECT count(*) FROM job WHERE state <> 'done'), \
         (SELECT count(*) FROM restore WHERE status NOT IN ('succeeded', 'failed')), \
         (SELECT count(*) FROM verification WHERE status <> 'holds')",
    );
    assert_eq!(left, "0|0|0");
    assert_eq!(
        deaths.large.server.nodes[0]
            .setting("repl-diskless-sync-delay")
            .unwrap(),
        "0"
    );
    let mut told = String::new();
    for (work, (hit, slowest)) in Work::ALL.iter().zip(hit.iter().zip(&slowest)) {
        write!(
            told,
            " {work:?} {hit}, the slowest over {:.1} s after the kill;",
            slowest.as_secs_f64()
        )
        .unwrap();
    }
    println!(
        "{} nodes killed, of these in the middle of{told} all done or told as failed",
        5 * rounds
    );
    assert!(hit.iter().sum::<i32>() >= 4 * i32::try_from(rounds).unwrap());
}
