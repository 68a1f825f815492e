//! Restores into servers of somebody else's, hit at every place: what the record says of them is so, by the engine's own digest.

use std::path::Path;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use xtask::foreign::{Access, Deployment, Form, Node};
use xtask::resp::Reply;
use xtask::scratch::Scratch;

use crate::checker::{Catalogue, Restore};
use crate::lifecycle::wait_until;
use crate::world::{Run, World, text};

/// Every place that a restore passes which succeeds.
const FORTH: [&str; 6] = [
    "replay.begun",
    "replay.validated",
    "replay.loading",
    "replay.half_made",
    "replay.clearing",
    "replay.applied",
];
/// Those that one passes besides which is put back.
const BACK: [&str; 3] = ["replay.giving_up", "replay.putting_back", "replay.put_back"];
/// In three shards some of these are in each.
const TAGS: [&str; 8] = ["a", "b", "c", "d", "e", "f", "g", "h"];
/// A list of so many elements of 120 bytes is made by commands, step by step.
const LARGE: &str = "60000";
/// How long a restore may take with whatever happens to it.
const PATIENCE: Duration = Duration::from_secs(150);

/// Every place that only restores into attached servers pass.
pub fn places() -> impl Iterator<Item = &'static str> {
    FORTH.into_iter().chain(BACK)
}

/// Attached servers, and a backup of other data than they have.
pub struct Target {
    pub world: World,
    pub foreign: Deployment,
    pub id: String,
    pub backup: String,
    /// Digests of the backup's data, and of what is there before each restore.
    pub new: String,
    pub old: String,
}

impl Target {
    pub fn new() -> Self {
        Self::on(Form::Single, None, None)
    }

    /// With the service's data and the servers' on these disks.
    pub fn on(form: Form, ours: Option<&Path>, theirs: Option<&Path>) -> Self {
        let settings = [
            ("enable-debug-command", "local"),
            ("appendonly", "yes"),
            ("appendfsync", "everysec"),
        ];
        let temporary = std::env::temp_dir();
        let below = theirs.unwrap_or(&temporary);
        let program = Path::new("redis-server");
        let foreign = Deployment::start_below(below, program, form, Access::Open, &settings).unwrap();
        let allow = ["--attach-allow", "127.0.0.1"];
        let world = match ours {
            Some(disk) => World::start_on(Scratch::new("crash").unwrap(), disk.join("data"), &allow),
            None => World::start(&allow),
        };
        let mut target = Self {
            world,
            foreign,
            id: String::new(),
            backup: String::new(),
            new: String::new(),
            old: String::new(),
        };
        target.fill("key", 4000, "of the backup");
        let fills = format!(
            "for i = 1, {LARGE} do redis.call('RPUSH', KEYS[1], string.rep(redis.sha1hex(i), 3)) end"
        );
        target
            .owner("a")
            .ask(&["EVAL", &fills, "1", "{a}key:large"])
            .unwrap();
        target.new = target.held();
        let address = format!("127.0.0.1:{}", target.foreign.nodes[0].port);
        let wish = json!({"name": "foreign", "addresses": [address]});
        let made = target
            .world
            .call("POST", "/ck/v1/{project}/attachments", Some(&wish));
        target.id = text(&made, "instance_id").unwrap();
        let path = format!("/v2/{{project}}/instances/{}/backups", target.id);
        let made = target.world.call("POST", &path, Some(&json!({})));
        target.backup = text(&made, "backup_id").unwrap();
        target.world.wait_idle();
        let made = Catalogue::open(&target.world).backup(&target.backup);
        assert_eq!(made.status, "succeeded", "{made:?}");
        target.reset();
        target
    }

    /// The node that takes writes of keys with this tag.
    pub fn owner(&self, tag: &str) -> &Node {
        let ask = ["EXISTS".to_owned(), format!("{{{tag}}}")];
        let takes = |node: &&Node| !matches!(node.open().unwrap().call(&ask).unwrap(), Reply::Refused(_));
        let mut owner = None;
        wait_until("a node takes writes", || {
            owner = self.foreign.primaries().unwrap().into_iter().find(takes);
            owner.is_some()
        });
        owner.unwrap()
    }

    pub fn fill(&self, kind: &str, keys: u64, value: &str) {
        for tag in TAGS {
            let mut link = self.owner(tag).open().unwrap();
            for number in 0..keys / TAGS.len() as u64 {
                let key = format!("{{{tag}}}{kind}:{number}");
                link.send(&["SET", &key, &format!("{value} {number}")]).unwrap();
            }
            link.settle().unwrap();
        }
    }

    /// What the servers hold, once all of them are in sync.
    pub fn held(&self) -> String {
        self.foreign.wait_in_sync().unwrap();
        self.foreign.digest().unwrap()
    }

    /// Other data than the backup's.
    pub fn reset(&mut self) {
        self.foreign.wait_in_sync().unwrap();
        for node in self.foreign.primaries().unwrap() {
            node.ask(&["FLUSHALL"]).unwrap();
        }
        self.fill("key", 2400, "of before");
        self.fill("other", 400, "of before");
        self.old = self.held();
    }

    pub fn ask(&self, replay: &Value) {
        let path = format!("/v2/{{project}}/instances/{}/restores", self.id);
        let wish = json!({"backup_id": self.backup, "replay": replay});
        let _answered_or_not = self.world.try_call("POST", &path, Some(&wish));
    }

    /// What the newest record says, once everything has ended.
    pub fn newest(&self, label: &str) -> Restore {
        let since = Instant::now();
        while Catalogue::open(&self.world).count("SELECT count(*) FROM job WHERE state <> 'done'") > 0 {
            assert!(since.elapsed() < PATIENCE, "{label}: it does not end");
            std::thread::sleep(Duration::from_millis(10));
        }
        let records = Catalogue::open(&self.world).restores(&self.id);
        records.last().expect("a record").clone()
    }

    /// The record's state is what the servers hold.
    pub fn check(&self, label: &str) -> Restore {
        let told = self.newest(label);
        let held = self.held();
        match (told.status.as_str(), told.target_state.as_str()) {
            ("succeeded", "replaced") => assert_eq!(held, self.new, "{label}"),
            ("failed", "untouched" | "rolled_back") => {
                assert_eq!(held, self.old, "{label}: {:?}", told.failure);
            }
            ("failed", "partial") => assert_ne!(held, self.new, "{label}"),
            _ => panic!("{label}: {told:?}"),
        }
        let left = std::fs::read_dir(self.world.data().join("replays"));
        assert_eq!(left.map_or(0, Iterator::count), 0, "{label}: journals");
        told
    }

    /// Names of unfinished values in the servers.
    fn unfinished(&self) -> usize {
        let count = |node: &Node| match node.ask(&["KEYS", "cachekeep:*"]).unwrap() {
            Reply::List(names) => names.len(),
            other => panic!("{other:?}"),
        };
        self.foreign.primaries().unwrap().into_iter().map(count).sum()
    }
}

#[test]
fn a_restore_into_attached_servers_hit_anywhere_says_what_they_hold() {
    let mut target = Target::new();
    for place in FORTH {
        for action in ["kill", "error"] {
            let label = format!("{place}:{action}");
            target.reset();
            target.world.restart(&Run::armed(&label));
            target.ask(&json!({}));
            if action == "kill" {
                wait_until(&label, || target.world.ended().is_some());
                target.world.restart(&Run::default());
            }
            let told = target.check(&label);
            assert!(
                target.world.marks().contains(&place.to_owned()) || action == "kill",
                "{label}"
            );
            match action {
                "kill" => assert_eq!(told.status, "succeeded", "{label}: it goes on"),
                _ => assert_ne!(told.target_state, "partial", "{label}: there is a safety point"),
            }
        }
    }
}

#[test]
fn a_restore_that_fails_half_way_is_put_back_whatever_hits_that() {
    let mut target = Target::new();
    for place in BACK {
        for action in ["kill", "error"] {
            let label = format!("{place}:{action}");
            target.reset();
            target
                .world
                .restart(&Run::armed(&format!("replay.clearing:error,{label}")));
            target.ask(&json!({}));
            if action == "kill" {
                wait_until(&label, || target.world.ended().is_some());
                target.world.restart(&Run::default());
            }
            let told = target.check(&label);
            assert_eq!(
                (told.status.as_str(), told.target_state.as_str()),
                ("failed", "rolled_back"),
                "{label}"
            );
        }
    }
}

#[test]
fn libraries_of_functions_are_put_back_with_the_keys_and_by_an_undo() {
    const OLD: [&str; 2] = [
        "#!lua name=both\nredis.register_function('of_both', function() return 'old' end)",
        "#!lua name=old\nredis.register_function('of_old', function() return 'old' end)",
    ];
    const NEW: [&str; 2] = [
        "#!lua name=both\nredis.register_function('of_both', function() return 'new' end)",
        "#!lua name=new\nredis.register_function('of_new', function() return 'new' end)",
    ];
    let mut target = Target::new();
    let have = |target: &Target, libraries: &[&str]| {
        let node = &target.foreign.nodes[0];
        node.ask(&["FUNCTION", "FLUSH"]).unwrap();
        for library in libraries {
            node.ask(&["FUNCTION", "LOAD", library]).unwrap();
        }
    };
    let libraries = |target: &Target| {
        let place = xtask::resp::Target::local(target.foreign.nodes[0].port, None);
        xtask::fill::function_code(&place).unwrap()
    };
    // A backup of the same keys with libraries.
    target.ask(&json!({}));
    assert_eq!(target.check("without functions").target_state, "replaced");
    have(&target, &NEW);
    let path = format!("/v2/{{project}}/instances/{}/backups", target.id);
    let made = target.world.call("POST", &path, Some(&json!({})));
    target.backup = text(&made, "backup_id").unwrap();
    target.world.wait_idle();
    let wish = json!({"functions": true});

    target.reset();
    have(&target, &OLD);
    target.world.restart(&Run::armed("replay.clearing:error"));
    target.ask(&wish);
    let told = target.check("functions");
    assert_eq!(
        (told.status.as_str(), told.target_state.as_str()),
        ("failed", "rolled_back")
    );
    assert_eq!(libraries(&target), OLD, "put back");

    target.world.restart(&Run::default());
    target.ask(&wish);
    let told = target.check("functions, whole");
    assert_eq!(told.target_state, "replaced");
    assert_eq!(libraries(&target).len(), 3, "{:?}", libraries(&target));
    let path = format!(
        "/ck/v1/{{project}}/instances/{}/restores/{}/undo",
        target.id, told.id
    );
    target.world.call("POST", &path, None);
    target.world.wait_idle();
    assert_eq!(libraries(&target), OLD, "undone");
    assert_eq!(target.held(), target.old);
}

/// What becomes of an attempt that has made half of a value.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Then {
    FailsItself,
    IsGivenUpBeforeAnyValue,
    /// As where another node takes it over.
    IsGoneWithItsJournal,
}

#[test]
fn half_of_a_large_value_is_left_in_no_target_whatever_ends_a_merge() {
    let cut_off = json!({"mode": "merge", "select": {"prefix": "{a}"}});
    let mut unsafe_one = cut_off.clone();
    unsafe_one["safety_point"] = json!(false);
    for form in [Form::Single, Form::Cluster] {
        let mut target = Target::on(form, None, None);
        for then in [
            Then::FailsItself,
            Then::IsGivenUpBeforeAnyValue,
            Then::IsGoneWithItsJournal,
        ] {
            for (wish, state) in [(&cut_off, "rolled_back"), (&unsafe_one, "partial")] {
                let label = format!("{form:?}, {then:?}, {state}");
                target.reset();
                let action = if then == Then::FailsItself {
                    "error"
                } else {
                    "kill"
                };
                target
                    .world
                    .restart(&Run::armed(&format!("replay.half_made:{action}")));
                target.ask(wish);
                if then != Then::FailsItself {
                    wait_until(&label, || target.world.ended().is_some());
                    assert_eq!(target.unfinished(), 1, "{label}: it was half made");
                }
                match then {
                    Then::FailsItself => {}
                    Then::IsGivenUpBeforeAnyValue => {
                        target.world.restart(&Run::armed("replay.begun:error"));
                    }
                    Then::IsGoneWithItsJournal => {
                        std::fs::remove_dir_all(target.world.data().join("replays")).unwrap();
                        target.world.restart(&Run::default());
                    }
                }
                let told = target.check(&label);
                if then == Then::IsGoneWithItsJournal {
                    let why = told.failure.as_deref().unwrap_or_default();
                    assert!(why.contains("the node that wrote it is gone"), "{label}: {why}");
                }
                assert_eq!(
                    (told.status.as_str(), told.target_state.as_str()),
                    ("failed", state),
                    "{label}"
                );
                assert_eq!(target.unfinished(), 0, "{label}");
            }
        }
    }
}

#[test]
fn why_a_restore_was_given_up_outlives_a_crash_while_it_is_put_back() {
    let mut target = Target::new();
    for place in ["replay.giving_up", "replay.putting_back"] {
        target.reset();
        target
            .world
            .restart(&Run::armed(&format!("replay.loading:stall,{place}:kill")));
        target.ask(&json!({"max_ops": 500}));
        wait_until("it is held up", || !target.world.marks().is_empty());
        let id = Catalogue::open(&target.world)
            .restores(&target.id)
            .pop()
            .unwrap()
            .id;
        let path = format!("/ck/v1/{{project}}/instances/{}/restores/{id}/cancel", target.id);
        target.world.call("POST", &path, None);
        wait_until(place, || target.world.ended().is_some());
        target.world.restart(&Run::default());
        let told = target.check(place);
        assert_eq!(
            (told.target_state.as_str(), told.error_code.as_deref()),
            ("rolled_back", Some("dcs.08.0001")),
            "{place}: {told:?}"
        );
        let why = told.failure.unwrap();
        assert!(
            why.contains("cancel") && !why.contains("restore: restore"),
            "{why}"
        );
    }
}

impl Target {
    /// Lets each of the servers use so many bytes.
    pub fn limit_memory(&self, bytes: u64) {
        for node in &self.foreign.nodes {
            node.ask(&["CONFIG", "SET", "maxmemory", &bytes.to_string()])
                .unwrap();
        }
    }

    /// So many keys of 100 kB.
    fn fill_up(&self, name: &str, keys: u32) {
        let fills =
            format!("for i = 1, {keys} do redis.call('SET', KEYS[1] .. i, string.rep('x', 100000)) end");
        self.owner("a").ask(&["EVAL", &fills, "1", name]).unwrap();
    }
}

#[test]
fn servers_that_a_restore_has_filled_up_are_put_back_all_the_same() {
    let mut target = Target::new();
    target.fill_up("of the backup:", 120);
    let path = format!("/v2/{{project}}/instances/{}/backups", target.id);
    let made = target.world.call("POST", &path, Some(&json!({})));
    target.backup = text(&made, "backup_id").unwrap();
    target.world.wait_idle();
    for place in ["", "replay.putting_back:kill"] {
        target.reset();
        target.fill_up("of before:", 60);
        target.old = target.held();
        // The one fits, the other too, and both together do not.
        target.limit_memory(15 << 20);
        target.world.restart(&Run::armed(place));
        target.ask(&json!({}));
        if !place.is_empty() {
            wait_until(place, || target.world.ended().is_some());
            target.world.restart(&Run::default());
        }
        let told = target.newest(place);
        target.limit_memory(0);
        let told_again = target.check(place);
        assert_eq!(told.target_state, told_again.target_state);
        assert_eq!(
            (told.status.as_str(), told.target_state.as_str()),
            ("failed", "rolled_back"),
            "{told:?}"
        );
        assert!(told.failure.unwrap().contains("OOM"), "it was full");
        let log = target.world.log();
        assert!(log.contains("the target is not put back yet"), "and full again");
    }
}

#[test]
fn servers_that_can_never_hold_a_backup_are_not_begun_with() {
    let mut target = Target::new();
    target.limit_memory(6 << 20);
    target.ask(&json!({}));
    let told = target.check("too small");
    assert_eq!(
        (told.status.as_str(), told.target_state.as_str()),
        ("failed", "untouched"),
        "{told:?}"
    );
    let why = told.failure.unwrap();
    assert!(why.contains("MiB in memory at least"), "{why}");
    let backups = Catalogue::open(&target.world).backups();
    assert!(
        backups.iter().all(|backup| backup.kind != "safety"),
        "{backups:?}"
    );
    // A part may have room, and with more memory all of it has.
    target.ask(&json!({"mode": "merge", "select": {"prefix": "{b}"}}));
    assert_eq!(target.newest("a part").status, "succeeded");
    target.limit_memory(0);
    target.reset();
    target.ask(&json!({}));
    assert_eq!(target.check("enough").status, "succeeded");
}
