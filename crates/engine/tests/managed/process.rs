//! Starting, finding, watching and ending one engine.

use std::net::TcpListener;
use std::os::unix::fs::MetadataExt;
use std::time::{Duration, Instant};

use engine::process::{self, Persistence};
use engine::{Control, Kind, Secret};

use crate::child;
use crate::harness::{
    ADMIN_PASSWORD, Home, client, client_with, config, data, free_port, is_alive, run, side_load, text,
    wait_until,
};

const LIMIT: Duration = Duration::from_secs(20);

#[test]
fn engine_is_found_again_after_its_handle_is_dropped() {
    let home = Home::new();
    let spec = home.spec("g1");
    let pid = process::start(&spec).unwrap().pid();
    let found = process::find(&spec.directory, &spec.admin_password)
        .unwrap()
        .unwrap();
    assert_eq!(found.pid(), pid);
    assert!(found.is_alive());
    assert_eq!(text(&mut found.control().unwrap(), "PING"), "PONG");
    assert_eq!(
        process::find_orphans(home.path()),
        [(pid, spec.directory.clone())]
    );
    assert!(
        process::find(&home.path().join("g2"), &spec.admin_password)
            .unwrap()
            .is_none()
    );
}

#[test]
fn stop_leaves_no_process_and_may_be_repeated() {
    let home = Home::new();
    for save in [false, true] {
        let spec = home.spec("g1");
        let engine = process::start(&spec).unwrap();
        let stop = || match save {
            true => engine.stop_saved(LIMIT),
            false => engine.stop(LIMIT),
        };
        stop().unwrap();
        assert!(!is_alive(engine.pid()));
        assert!(!engine.is_alive());
        assert!(
            process::find(&spec.directory, &spec.admin_password)
                .unwrap()
                .is_none()
        );
        stop().unwrap();
        assert_eq!(engine.control().err().unwrap().kind, Kind::EngineExited);
    }
}

#[test]
fn an_engine_that_is_stopped_saved_has_its_data_on_disk_whatever_its_persistence() {
    for persistence in [Persistence::Aof, Persistence::Rdb, Persistence::None] {
        let home = Home::new();
        let mut spec = home.spec("g1");
        spec.persistence = persistence;
        let engine = process::start(&spec).unwrap();
        run(&mut engine.control().unwrap(), "SET k v");
        engine.stop_saved(LIMIT).unwrap();
        let engine = process::start(&spec).unwrap();
        engine.wait_loaded(&Control::new(None)).unwrap();
        let mut node = engine.control().unwrap();
        assert_eq!(run(&mut node, "DBSIZE").int(), Some(1), "{persistence:?}");
        if persistence == Persistence::None {
            engine.forget_snapshot().unwrap();
            engine.stop(LIMIT).unwrap();
            let engine = process::start(&spec).unwrap();
            engine.wait_loaded(&Control::new(None)).unwrap();
            assert_eq!(run(&mut engine.control().unwrap(), "DBSIZE").int(), Some(0));
        }
    }
}

#[test]
fn a_standby_goes_before_an_engine_that_serves_where_memory_runs_out() {
    let home = Home::new();
    let score = |engine: &process::Engine| -> i32 {
        let text = std::fs::read_to_string(format!("/proc/{}/oom_score_adj", engine.pid())).unwrap();
        text.trim().parse().unwrap()
    };
    let serving = process::start(&home.spec("serving")).unwrap();
    let standby = process::start_standby(&home.spec("standby")).unwrap();
    wait_until("it says so", || score(&standby) == score(&serving) + 500);
    standby.promote(0).unwrap();
    wait_until("it serves", || score(&standby) == score(&serving));
}

#[test]
fn an_engine_that_cannot_save_serves_on_and_is_not_killed() {
    for persistence in [Persistence::Rdb, Persistence::None] {
        let home = Home::new();
        let mut spec = home.spec("g1");
        spec.persistence = persistence;
        let engine = process::start(&spec).unwrap();
        let mut node = engine.control().unwrap();
        run(&mut node, "SET k v");
        // A directory in the place of the file that a save writes last.
        let in_the_way = spec.directory.join("dump.rdb");
        std::fs::create_dir(&in_the_way).unwrap();
        assert_eq!(engine.stop_saved(LIMIT).err().unwrap().kind, Kind::Refused);
        assert!(engine.is_alive());
        assert_eq!(text(&mut node, "GET k"), "v");
        std::fs::remove_dir(&in_the_way).unwrap();
        engine.stop_saved(LIMIT).unwrap();
        assert!(!engine.is_alive());
    }
}

#[test]
fn a_save_that_takes_longer_than_its_limit_or_dies_is_no_success() {
    let home = Home::new();
    let mut spec = home.spec("g1");
    spec.persistence = Persistence::Rdb;
    let engine = process::start(&spec).unwrap();
    let mut node = engine.control().unwrap();
    run(&mut node, "SET k v");
    run(&mut node, "CONFIG SET rdb-key-save-delay 3000000");
    let begun = Instant::now();
    assert_eq!(
        engine.stop_saved(Duration::from_millis(300)).err().unwrap().kind,
        Kind::Idle
    );
    assert!(begun.elapsed() < Duration::from_secs(2));
    assert!(engine.is_alive(), "it still saves");
    std::thread::scope(|scope| {
        let stopping = scope.spawn(|| engine.stop_saved(LIMIT));
        std::thread::sleep(Duration::from_millis(300));
        engine.kill().unwrap();
        assert!(stopping.join().unwrap().is_err());
    });
}

#[test]
fn an_engine_that_was_killed_is_dead_at_once_and_no_zombie() {
    let home = Home::new();
    let spec = home.spec("g1");
    let engine = process::start(&spec).unwrap();
    engine.kill().unwrap();
    assert!(!engine.is_alive());
    assert!(
        process::find(&spec.directory, &spec.admin_password)
            .unwrap()
            .is_none()
    );
    // The next one starts on the socket file that the dead one left.
    assert!(process::start(&spec).unwrap().is_alive());
    let stat = format!("/proc/{}/stat", engine.pid());
    wait_until("the zombie is reaped", || !std::path::Path::new(&stat).exists());
}

#[test]
fn engine_survives_the_death_of_the_process_that_started_it() {
    let home = Home::new();
    let port = free_port();
    let mut parent = child::spawn("start and wait", home.path(), port, None);
    wait_until("the child's engine", || !child::answer(home.path()).is_empty());
    parent.kill().unwrap();
    parent.wait().unwrap();
    let engine = process::find(&home.path().join("g1"), &Secret::new(ADMIN_PASSWORD))
        .unwrap()
        .unwrap();
    assert_eq!(engine.pid().to_string(), child::answer(home.path()));
    run(&mut client(port).unwrap(), "SET k v");
    engine.stop(LIMIT).unwrap();
}

#[test]
fn death_of_the_starter_at_any_point_leaves_no_engine_or_one_that_is_found() {
    for (failpoint, is_found, has_port) in [
        ("process.before_spawn", false, false),
        ("process.after_spawn", true, false),
        ("process.after_ready", true, true),
    ] {
        let home = Home::new();
        let port = free_port();
        child::run_to(failpoint, "start and wait", home.path(), port);
        let found = process::find(&home.path().join("g1"), &Secret::new(ADMIN_PASSWORD)).unwrap();
        assert_eq!(found.is_some(), is_found, "{failpoint}");
        if let Some(engine) = found {
            wait_until("the engine answers", || engine.control().is_ok());
            assert_eq!(
                engine.current_port().unwrap(),
                if has_port { port } else { 0 },
                "{failpoint}"
            );
        }
    }
}

#[test]
fn two_engines_never_share_a_directory() {
    let home = Home::new();
    let spec = home.spec("g1");
    let first = process::start(&spec).unwrap();
    assert_eq!(process::start(&spec).err().unwrap().kind, Kind::EngineStart);
    assert!(first.is_alive());
    assert_eq!(process::find_orphans(home.path()).len(), 1);
}

#[test]
fn engine_is_found_when_its_directory_was_deleted_and_can_be_ended() {
    let home = Home::new();
    let spec = home.spec("g1");
    let engine = process::start(&spec).unwrap();
    std::fs::remove_dir_all(&spec.directory).unwrap();
    let found = process::find(&spec.directory, &spec.admin_password)
        .unwrap()
        .unwrap();
    assert_eq!(found.pid(), engine.pid());
    assert_eq!(
        process::find_orphans(home.path()),
        [(engine.pid(), spec.directory.clone())]
    );
    found.stop(LIMIT).unwrap();
    assert!(!is_alive(engine.pid()));
}

#[test]
fn children_that_an_engine_forks_are_no_engines() {
    let home = Home::new();
    let spec = home.spec("g1");
    let engine = process::start(&spec).unwrap();
    let mut node = engine.control().unwrap();
    run(&mut node, "DEBUG POPULATE 1000");
    run(&mut node, "CONFIG SET rdb-key-save-delay 100000");
    run(&mut node, "BGSAVE");
    wait_until("the fork", || {
        node.info("persistence")
            .unwrap()
            .contains(&("rdb_bgsave_in_progress".to_owned(), "1".to_owned()))
    });
    assert_eq!(
        process::find_orphans(home.path()),
        [(engine.pid(), spec.directory.clone())]
    );
}

#[test]
fn a_port_of_a_stranger_is_refused_and_no_process_is_left() {
    let home = Home::new();
    let stranger = TcpListener::bind(("127.0.0.1", 0)).unwrap();
    let mut spec = home.spec("g1");
    spec.port = stranger.local_addr().unwrap().port();
    assert_eq!(process::start(&spec).err().unwrap().kind, Kind::PortTaken);
    assert!(process::find_orphans(home.path()).is_empty());

    let served = free_port();
    let moved = process::start(&process::EngineSpec {
        port: served,
        ..spec.clone()
    })
    .unwrap();
    assert_eq!(moved.set_port(spec.port).err().unwrap().kind, Kind::PortTaken);
    assert_eq!(moved.current_port().unwrap(), served);
    assert_eq!(text(&mut client(served).unwrap(), "PING"), "PONG");
}

#[test]
fn a_program_that_is_no_engine_is_reported_and_left_nowhere() {
    let home = Home::new();
    let mut spec = home.spec("g1");
    spec.program.binary = "/bin/true".into();
    assert_eq!(process::start(&spec).err().unwrap().kind, Kind::EngineStart);
    spec.program.binary = "/nowhere/redis-server".into();
    assert_eq!(process::start(&spec).err().unwrap().kind, Kind::EngineStart);
    assert_eq!(
        process::version(&spec.program.binary).err().unwrap().kind,
        Kind::EngineStart
    );
    spec.bind = "127.0.0.1\nport 1".to_owned();
    assert_eq!(process::start(&spec).err().unwrap().kind, Kind::EngineStart);
    assert!(
        process::version(&process::find_binary().unwrap())
            .unwrap()
            .starts_with(|c: char| c.is_ascii_digit())
    );
}

#[test]
fn clients_have_their_own_password_and_cannot_reconfigure() {
    let home = Home::new();
    let mut spec = home.spec("g1");
    spec.port = free_port();
    spec.clients.password = Some(Secret::new("client \" pass"));
    let engine = process::start(&spec).unwrap();
    let mut anonymous = client(spec.port).unwrap();
    assert_eq!(anonymous.run(&["PING"]).err().unwrap().kind, Kind::Refused);
    let wrong = client_with(spec.port, Some("wrong")).err().unwrap();
    assert_eq!(wrong.kind, Kind::Auth);

    let mut node = client_with(spec.port, Some("client \" pass")).unwrap();
    for words in [
        "CONFIG SET port 1",
        "CONFIG REWRITE",
        "ACL SETUSER x on",
        "ACL DELUSER cachekeep",
        "ACL LOAD",
        "ACL SAVE",
        "MODULE LIST",
        "REPLICAOF 127.0.0.1 1",
        "SLAVEOF 127.0.0.1 1",
        "SHUTDOWN NOSAVE",
        "FAILOVER",
    ] {
        let words: Vec<&str> = words.split(' ').collect();
        let refused = node.run(&words).err().unwrap();
        assert!(refused.context.contains("NOPERM"), "{refused}");
    }
    for words in [
        "CONFIG GET port",
        "SET k v",
        "DEBUG SLEEP 0",
        "REPLCONF capa eof",
        "FLUSHALL",
    ] {
        run(&mut node, words);
    }

    engine.let_clients_in(&process::Clients::default()).unwrap();
    assert_eq!(text(&mut client(spec.port).unwrap(), "PING"), "PONG");
    let other = process::Clients {
        password: Some(Secret::new("other")),
        ..process::Clients::default()
    };
    engine.let_clients_in(&other).unwrap();
    assert!(client_with(spec.port, Some("client \" pass")).is_err());
    run(&mut client_with(spec.port, Some("other")).unwrap(), "SET k v");
    assert!(engine.used_memory().unwrap() > 0);
    engine.flush_all().unwrap();
    assert_eq!(run(&mut engine.control().unwrap(), "DBSIZE").int(), Some(0));
}

#[test]
fn passwords_are_in_no_file_no_command_line_and_no_environment() {
    let home = Home::new();
    let mut spec = home.spec("g1");
    spec.admin_password = Secret::new("canary-admin");
    spec.clients.password = Some(Secret::new("canary-client"));
    let engine = process::start(&spec).unwrap();
    run(&mut engine.control().unwrap(), "SET k v");
    let mut places = vec![
        format!("/proc/{}/cmdline", engine.pid()).into(),
        format!("/proc/{}/environ", engine.pid()).into(),
    ];
    for directory in [spec.directory.clone(), spec.directory.join("appendonlydir")] {
        places.extend(
            std::fs::read_dir(directory)
                .unwrap()
                .map(|entry| entry.unwrap().path()),
        );
    }
    for place in places {
        if place.is_file() {
            let bytes = std::fs::read(&place).unwrap();
            assert!(
                !String::from_utf8_lossy(&bytes).contains("canary"),
                "{}",
                place.display()
            );
        }
    }
    assert!(!format!("{spec:?} {engine:?}").contains("canary"));
    engine.kill().unwrap();
}

#[test]
fn engine_runs_as_its_own_user_below_a_directory_that_only_root_can_enter() {
    if !rustix::process::geteuid().is_root() {
        eprintln!("skipped: needs root");
        return;
    }
    let home = Home::new();
    std::fs::set_permissions(home.path(), std::os::unix::fs::PermissionsExt::from_mode(0o700)).unwrap();
    let (bytes, _) = data(&home, |node| drop(run(node, "SET k v")));
    let mut spec = home.spec("g1");
    spec.run_as = Some((65534, 65534));
    let (engine, _) = side_load(&spec, &bytes);
    engine.promote(0).unwrap();
    let status = std::fs::read_to_string(format!("/proc/{}/status", engine.pid())).unwrap();
    let line = |name: &str| {
        status
            .lines()
            .find(|line| line.starts_with(name))
            .unwrap()
            .to_owned()
    };
    assert_eq!(line("Uid:"), "Uid:\t65534\t65534\t65534\t65534");
    assert_eq!(line("Gid:"), "Gid:\t65534\t65534\t65534\t65534");
    assert_eq!(line("Groups:").trim_end(), "Groups:");
    let meta = std::fs::metadata(&spec.directory).unwrap();
    assert_eq!((meta.uid(), meta.mode() & 0o777), (65534, 0o700));

    // Root in a container may often not see the working directory of another user's process.
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let mut own = rustix::thread::capabilities(None).unwrap();
            own.effective.remove(rustix::thread::CapabilitySet::SYS_PTRACE);
            rustix::thread::set_capabilities(None, own).unwrap();
            assert!(std::fs::read_link(format!("/proc/{}/cwd", engine.pid())).is_err());
            let found = process::find(&spec.directory, &spec.admin_password).unwrap();
            assert_eq!(found.map(|engine| engine.pid()), Some(engine.pid()));
            assert_eq!(
                process::find_orphans(home.path()),
                [(engine.pid(), spec.directory.clone())]
            );
            assert_eq!(process::start(&spec).err().unwrap().kind, Kind::EngineStart);
        });
    });

    // It can write its files, and start again on them.
    let mut node = engine.control().unwrap();
    run(&mut node, "SET k2 v");
    run(&mut node, "SAVE");
    run(&mut node, "BGREWRITEAOF");
    wait_until("the rewrite", || {
        let fields = node.info("persistence").unwrap();
        let has = |name: &str, value: &str| fields.contains(&(name.to_owned(), value.to_owned()));
        has("aof_rewrite_in_progress", "0") && has("aof_rewrite_scheduled", "0")
    });
    engine.stop(LIMIT).unwrap();
    let engine = process::start(&spec).unwrap();
    engine.wait_loaded(&Control::new(None)).unwrap();
    assert_eq!(run(&mut engine.control().unwrap(), "DBSIZE").int(), Some(2));
}

#[test]
fn an_engine_that_dies_while_it_loads_is_reported_with_its_log() {
    let home = Home::new();
    let (bytes, _) = data(&home, |node| drop(run(node, "DEBUG POPULATE 50000 key 1000")));
    let spec = home.spec("g1");
    let control = Control::new(None);
    engine::sideload::place(
        &spec.directory,
        engine::sideload::Form::of(&spec),
        None,
        &control,
        |push| crate::harness::in_pieces(&bytes, push),
    )
    .unwrap();
    let engine = process::start_standby(&spec).unwrap();
    config(&engine, "key-load-delay", "100");
    let waiting = std::thread::scope(|scope| {
        let waiter = scope.spawn(|| engine.wait_loaded(&control));
        wait_until("progress", || {
            let progress = control.progress();
            progress.bytes_done > 0 && progress.bytes_done < progress.bytes_total
        });
        engine.kill().unwrap();
        waiter.join().unwrap()
    });
    let error = waiting.err().unwrap();
    assert_eq!(error.kind, Kind::EngineExited);
    assert!(error.context.contains("Server initialized"), "{error}");
}

#[test]
fn an_engine_that_refuses_its_file_is_reported_with_the_reason() {
    let home = Home::new();
    let (mut bytes, _) = data(&home, |node| drop(run(node, "SET k v")));
    // The next version of the format, which this engine does not know.
    let version: u32 = std::str::from_utf8(&bytes[5..9]).unwrap().parse().unwrap();
    bytes[5..9].copy_from_slice(format!("{:04}", version + 1).as_bytes());
    let end = bytes.len() - 8;
    let checksum = rdb::crc64(&bytes[..end]);
    bytes[end..].copy_from_slice(&checksum.to_le_bytes());
    let spec = home.spec("g1");
    let control = Control::new(None);
    let push_all = |push: &mut dyn FnMut(&[u8]) -> Result<(), engine::Error>| push(&bytes);
    engine::sideload::place(
        &spec.directory,
        engine::sideload::Form::of(&spec),
        None,
        &control,
        push_all,
    )
    .unwrap();
    let loaded = process::start_standby(&spec).and_then(|engine| engine.wait_loaded(&control));
    let error = loaded.err().unwrap();
    assert_eq!(error.kind, Kind::EngineExited);
    assert!(
        error.context.contains("Can't handle RDB format version"),
        "{error}"
    );
    assert!(process::find_orphans(home.path()).is_empty());
}

#[test]
fn an_engine_that_hangs_is_ended_all_the_same() {
    let home = Home::new();
    let engine = process::start(&home.spec("g1")).unwrap();
    let pid = rustix::process::Pid::from_raw(i32::try_from(engine.pid()).unwrap()).unwrap();
    rustix::process::kill_process(pid, rustix::process::Signal::STOP).unwrap();
    engine.stop(Duration::from_millis(400)).unwrap();
    assert!(!is_alive(engine.pid()));
}

#[test]
fn a_wait_for_loading_can_be_cancelled_and_leaves_the_engine_alone() {
    let home = Home::new();
    let engine = process::start(&home.spec("g1")).unwrap();
    let control = Control::new(None);
    control.cancel();
    assert_eq!(engine.wait_loaded(&control).err().unwrap().kind, Kind::Cancelled);
    assert!(engine.is_alive());
}
