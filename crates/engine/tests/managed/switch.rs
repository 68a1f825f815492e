//! The switch, seen by clients and by a process that dies in it.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use engine::process::{self, Engine};
use engine::switch::{self, SwitchPlan, SwitchReport};
use engine::{Error, Kind, Node};

use crate::child;
use crate::harness::{Home, client, free_port, run, text, wait_until};

/// Two generations; the old one serves, and each says which it is under the key `who`.
struct Pair {
    home: Home,
    port: u16,
    old: Engine,
    new: Engine,
}

impl Pair {
    fn new() -> Self {
        let home = Home::new();
        let port = free_port();
        let mut spec = home.spec("old");
        spec.port = port;
        let old = process::start(&spec).unwrap();
        let new = process::start(&home.spec("new")).unwrap();
        run(&mut old.control().unwrap(), "SET who old");
        run(&mut new.control().unwrap(), "SET who new");
        Self { home, port, old, new }
    }

    fn plan(&self) -> SwitchPlan<'_> {
        SwitchPlan {
            old: Some(&self.old),
            new: &self.new,
            port: self.port,
        }
    }

    fn undo(&self) -> SwitchPlan<'_> {
        SwitchPlan {
            old: Some(&self.new),
            new: &self.old,
            ..self.plan()
        }
    }

    /// The generation that a new client reaches and can write to.
    fn serving(&self) -> String {
        let mut node = client(self.port).unwrap();
        run(&mut node, "SET written v");
        text(&mut node, "GET who")
    }

    fn ports(&self) -> (u16, u16) {
        (self.old.current_port().unwrap(), self.new.current_port().unwrap())
    }
}

#[test]
fn switch_and_undo_move_the_port_there_and_back() {
    let pair = Pair::new();
    assert_eq!(pair.serving(), "old");
    switch::run(&pair.plan()).unwrap();
    assert_eq!(pair.serving(), "new");
    assert_eq!(pair.ports(), (0, pair.port));
    // Once more does nothing.
    switch::run(&pair.plan()).unwrap();
    assert_eq!(pair.serving(), "new");
    switch::run(&pair.undo()).unwrap();
    assert_eq!(pair.serving(), "old");
    assert_eq!(pair.ports(), (pair.port, 0));
}

#[test]
fn the_gap_is_known_but_is_unknown_where_an_earlier_run_began() {
    let pair = Pair::new();
    let gap = switch::run(&pair.plan()).unwrap().gap.unwrap();
    assert!(gap > Duration::ZERO && gap < Duration::from_secs(2), "{gap:?}");
    assert_eq!(switch::run(&pair.plan()).unwrap().gap, None);
    let pair = Pair::new();
    child::run_to("switch.after_old_port", "switch", pair.home.path(), pair.port);
    assert_eq!(switch::run(&pair.plan()).unwrap().gap, None);
}

#[test]
fn what_fails_after_the_new_port_is_open_turns_nothing_back() {
    for step in ["switch.after_new_port", "switch.after_kill_replica"] {
        let pair = Pair::new();
        child::run_to(&format!("{step}:error"), "switch", pair.home.path(), pair.port);
        assert_eq!(child::answer(pair.home.path()), "switched", "{step}");
        assert_eq!(pair.serving(), "new", "{step}");
        assert_eq!(pair.ports(), (0, pair.port), "{step}");
    }
}

#[test]
fn clients_subscribers_monitors_and_replicas_are_ended_and_our_own_connections_stay() {
    let pair = Pair::new();
    let mut ours = pair.old.control().unwrap();
    let mut streams: Vec<TcpStream> = [
        "PING",
        "SUBSCRIBE c",
        "PSUBSCRIBE *",
        "MONITOR",
        "BLPOP nothing 0",
        "MULTI",
        "SYNC",
    ]
    .iter()
    .map(|words| {
        let mut stream = TcpStream::connect(("127.0.0.1", pair.port)).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
        stream.write_all(format!("{words}\r\n").as_bytes()).unwrap();
        stream
    })
    .collect();
    wait_until("the commands have arrived", || {
        let list = text(&mut ours, "CLIENT LIST");
        [
            "cmd=ping",
            "cmd=subscribe",
            "cmd=psubscribe",
            "cmd=monitor",
            "cmd=blpop",
            "cmd=multi",
            "cmd=sync",
        ]
        .iter()
        .all(|command| list.contains(command))
    });
    let report = switch::run(&pair.plan()).unwrap();
    assert!(report.clients_ended >= 6);
    for stream in &mut streams {
        // Reads what was under way, then the end.
        let mut rest = Vec::new();
        let end = stream.read_to_end(&mut rest);
        assert!(end.is_ok() || end.is_err_and(|e| e.kind() == std::io::ErrorKind::ConnectionReset));
    }
    assert_eq!(text(&mut ours, "GET who"), "old");
}

#[test]
fn a_fork_of_the_old_engine_at_the_wrong_moment_does_not_hold_the_port() {
    for _ in 0..30 {
        let pair = Pair::new();
        let mut node = pair.old.control().unwrap();
        run(&mut node, "BGSAVE");
        switch::run(&pair.plan()).unwrap();
        assert_eq!(pair.serving(), "new");
    }
}

#[test]
fn a_new_generation_that_cannot_bind_leaves_the_old_one_serving() {
    let home = Home::new();
    let port = free_port();
    let stranger = TcpListener::bind(("127.0.0.2", port)).unwrap();
    let mut spec = home.spec("old");
    spec.port = port;
    let old = process::start(&spec).unwrap();
    let mut spec = home.spec("new");
    spec.bind = "127.0.0.1 127.0.0.2".to_owned();
    let new = process::start(&spec).unwrap();
    let plan = SwitchPlan {
        old: Some(&old),
        new: &new,
        port,
    };
    assert_eq!(switch::run(&plan).err().unwrap().kind, Kind::PortTaken);
    assert_eq!(
        (old.current_port().unwrap(), new.current_port().unwrap()),
        (port, 0)
    );
    run(&mut client(port).unwrap(), "SET k v");
    drop(stranger);
    switch::run(&plan).unwrap();
    assert_eq!(
        (old.current_port().unwrap(), new.current_port().unwrap()),
        (0, port)
    );
}

#[test]
fn a_dead_old_generation_is_no_hindrance_and_a_dead_new_one_changes_nothing() {
    let pair = Pair::new();
    pair.new.kill().unwrap();
    assert_eq!(switch::run(&pair.plan()).err().unwrap().kind, Kind::EngineExited);
    assert_eq!(pair.serving(), "old");

    let pair = Pair::new();
    pair.old.kill().unwrap();
    switch::run(&pair.plan()).unwrap();
    assert_eq!(pair.serving(), "new");
    let without = SwitchPlan {
        old: None,
        ..pair.plan()
    };
    switch::run(&without).unwrap();
    assert_eq!(pair.serving(), "new");
}

#[test]
fn a_standby_does_not_get_the_port() {
    let pair = Pair::new();
    let standby = process::start_standby(&pair.home.spec("standby")).unwrap();
    let plan = SwitchPlan {
        new: &standby,
        ..pair.plan()
    };
    assert_eq!(switch::run(&plan).err().unwrap().kind, Kind::Refused);
    assert_eq!(pair.serving(), "old");
}

const STEPS: [&str; 8] = [
    "switch.before_old_port",
    "switch.after_multi",
    "switch.after_close_port",
    "switch.after_end_normal",
    "switch.before_exec",
    "switch.after_old_port",
    "switch.after_new_port",
    "switch.after_kill_replica",
];

#[test]
fn a_switch_that_died_anywhere_is_finished_by_the_next_run() {
    for step in STEPS {
        let pair = Pair::new();
        child::run_to(step, "switch", pair.home.path(), pair.port);
        switch::run(&pair.plan()).unwrap();
        assert_eq!(pair.serving(), "new", "{step}");
        assert_eq!(pair.ports(), (0, pair.port), "{step}");
        // Nobody's writes wait any more.
        run(&mut pair.old.control().unwrap(), "SET k v");
    }
}

#[test]
fn a_switch_that_died_anywhere_can_be_turned_back() {
    for step in STEPS {
        let pair = Pair::new();
        child::run_to(step, "switch", pair.home.path(), pair.port);
        switch::run(&pair.undo()).unwrap();
        assert_eq!(pair.serving(), "old", "{step}");
        assert_eq!(pair.ports(), (pair.port, 0), "{step}");
        run(&mut pair.new.control().unwrap(), "SET k v");
    }
}

#[test]
fn a_switch_that_fails_anywhere_before_the_new_port_leaves_the_old_generation_serving() {
    for step in &STEPS[..6] {
        let pair = Pair::new();
        child::run_to(&format!("{step}:error"), "switch", pair.home.path(), pair.port);
        assert_eq!(child::answer(pair.home.path()), "io", "{step}");
        assert_eq!(pair.serving(), "old", "{step}");
        assert_eq!(pair.ports(), (pair.port, 0), "{step}");
    }
}

#[test]
fn an_old_engine_that_is_busy_gives_its_port_up_when_it_comes_to_it() {
    let pair = Pair::new();
    let mut stream = TcpStream::connect(("127.0.0.1", pair.port)).unwrap();
    stream
        .write_all(b"EVAL \"local n = 0; while n < 60000000 do n = n + 1 end\" 0\r\n")
        .unwrap();
    let report = switch::run(&pair.plan()).unwrap();
    assert!(report.clients_ended >= 1);
    assert_eq!(pair.serving(), "new");
    assert_eq!(pair.ports(), (0, pair.port));
}

/// What clients saw of a switch.
#[derive(Default)]
struct Seen {
    stop: AtomicBool,
    switched: AtomicBool,
    old_after_new: AtomicBool,
    /// Longest time between two successful commands of one client, in microseconds.
    longest_gap_us: AtomicU64,
    refused: AtomicU64,
    ready: AtomicU64,
}

/// One command each millisecond, reconnecting at once, until told to stop.
fn client_loop(port: u16, seen: &Seen, command: impl Fn(&mut Node) -> Result<String, Error>) {
    let mut node = client(port).unwrap();
    let mut last = None;
    while !seen.stop.load(Ordering::SeqCst) {
        let was_switched = seen.switched.load(Ordering::SeqCst);
        match command(&mut node) {
            Ok(who) => {
                if who == "new" {
                    seen.switched.store(true, Ordering::SeqCst);
                } else if who == "old" && was_switched {
                    seen.old_after_new.store(true, Ordering::SeqCst);
                }
                let now = Instant::now();
                match last.replace(now) {
                    None => drop(seen.ready.fetch_add(1, Ordering::SeqCst)),
                    Some(before) => {
                        let gap_us = now.duration_since(before).as_micros() as u64;
                        seen.longest_gap_us.fetch_max(gap_us, Ordering::SeqCst);
                    }
                }
                std::thread::sleep(Duration::from_millis(1));
            }
            Err(_) => loop {
                match client(port) {
                    Ok(new) => {
                        node = new;
                        break;
                    }
                    Err(_) => drop(seen.refused.fetch_add(1, Ordering::SeqCst)),
                }
            },
        }
    }
}

fn watched_switch(idle: usize) -> (SwitchReport, Seen) {
    let pair = Pair::new();
    let connect = || TcpStream::connect(("127.0.0.1", pair.port)).unwrap();
    let _idle: Vec<TcpStream> = (0..idle)
        .map(|number| {
            let mut stream = connect();
            let words: &[u8] = if number % 10 == 0 {
                b"SUBSCRIBE channel\r\n"
            } else {
                b"PING\r\n"
            };
            stream.write_all(words).unwrap();
            let mut reply = [0; 5];
            stream.read_exact(&mut reply).unwrap();
            stream
        })
        .collect();
    let seen = Seen::default();
    let report = std::thread::scope(|scope| {
        scope.spawn(|| {
            client_loop(pair.port, &seen, |node| {
                Ok(node.run(&["GET", "who"])?.text().unwrap())
            })
        });
        scope.spawn(|| {
            client_loop(pair.port, &seen, |node| {
                Ok(node.run(&["SET", "written", "v"])?.text().unwrap())
            })
        });
        let successes = |count| wait_until("clients", || seen.ready.load(Ordering::SeqCst) >= count);
        successes(2);
        let report = switch::run(&pair.plan());
        wait_until("a client sees the new generation", || {
            seen.switched.load(Ordering::SeqCst)
        });
        // Time for old data to turn up, if it could.
        let until = Instant::now() + Duration::from_millis(100);
        wait_until("the end", || Instant::now() > until);
        seen.stop.store(true, Ordering::SeqCst);
        report.unwrap()
    });
    assert!(!seen.old_after_new.load(Ordering::SeqCst), "old data after new");
    assert!(report.clients_ended >= idle as u64);
    (report, seen)
}

#[test]
fn nobody_sees_old_data_after_new_and_the_gap_is_short() {
    for idle in [10, 10, 10, 10, 1_000] {
        let (report, seen) = watched_switch(idle);
        println!(
            "{idle} idle connections: gap {:?}, longest time without success {} us, {} connects refused",
            report.gap,
            seen.longest_gap_us.load(Ordering::SeqCst),
            seen.refused.load(Ordering::SeqCst)
        );
    }
}
