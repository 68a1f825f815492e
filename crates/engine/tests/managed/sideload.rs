//! Placing data for a new generation.

use std::time::{Duration, Instant};

use engine::process::{self, Persistence};
use engine::sideload;
use engine::verify::{VerifyLevel, verify};
use engine::{Control, Error, Kind};

use crate::child;
use crate::harness::{Home, data, digest, fill, in_pieces, run, side_load, wait_until};

const LIMIT: Duration = Duration::from_secs(20);

/// Where a feed puts its pieces.
type Push<'a> = &'a mut dyn FnMut(&[u8]) -> Result<(), Error>;

#[test]
fn data_of_every_type_is_whole_in_the_new_generation_and_after_its_restart() {
    whole_after_restart(false);
}

#[test]
fn data_that_is_loaded_through_a_pipe_is_whole_and_in_the_directory_for_the_next_start() {
    whole_after_restart(true);
}

fn whole_after_restart(through_pipe: bool) {
    for persistence in [Persistence::Aof, Persistence::Rdb, Persistence::None] {
        let home = Home::new();
        let (bytes, expected) = data(&home, fill);
        let mut spec = home.spec("g1");
        spec.persistence = persistence;
        let (engine, expectation) = match through_pipe {
            true => sideload::load(&spec, &Control::new(None), |push| in_pieces(&bytes, push)).unwrap(),
            false => side_load(&spec, &bytes),
        };
        for level in [VerifyLevel::Sample, VerifyLevel::Full] {
            let report = verify(&engine, &expectation, level, &Control::new(None)).unwrap();
            assert_eq!(report.keys_loaded, expectation.keys());
            assert_eq!(report.keys_compared, expectation.keys());
            assert_eq!((report.functions, report.keys_expired_meanwhile), (1, 0));
        }
        engine.promote(0).unwrap();
        assert_eq!(digest(&engine), expected, "{persistence:?}");
        sideload::sync(&spec.directory).unwrap();

        run(&mut engine.control().unwrap(), "SET written:later v");
        let before = digest(&engine);
        if persistence == Persistence::None {
            engine.forget_snapshot().unwrap();
            engine.stop(LIMIT).unwrap();
        } else {
            engine.stop_saved(LIMIT).unwrap();
        }
        let engine = process::start(&spec).unwrap();
        engine.wait_loaded(&Control::new(None)).unwrap();
        if persistence == Persistence::None {
            assert_eq!(run(&mut engine.control().unwrap(), "DBSIZE").int(), Some(0));
        } else {
            assert_eq!(digest(&engine), before, "{persistence:?}");
        }
    }
}

#[test]
fn keys_whose_time_is_up_are_counted_exactly_and_gone_once_it_serves() {
    for persistence in [Persistence::Aof, Persistence::Rdb] {
        let home = Home::new();
        let (bytes, _) = data(&home, |node| {
            run(node, "DEBUG SET-ACTIVE-EXPIRE 0");
            for number in 0..500 {
                run(node, &format!("SET gone:{number} v PX 1"));
                run(node, &format!("SET soon:{number} v PX 1500"));
                run(node, &format!("SET stays:{number} v"));
            }
        });
        let mut spec = home.spec("g1");
        spec.persistence = persistence;
        let (engine, expectation) = side_load(&spec, &bytes);
        assert_eq!(expectation.keys(), 1500);
        for level in [VerifyLevel::Sample, VerifyLevel::Full] {
            let report = verify(&engine, &expectation, level, &Control::new(None)).unwrap();
            assert_eq!(report.keys_loaded, 1500);
            assert!((500..=1000).contains(&report.keys_expired_meanwhile));
        }
        engine.promote(0).unwrap();
        let mut node = engine.control().unwrap();
        wait_until("expiry", || run(&mut node, "DBSIZE").int() == Some(500));
    }
}

#[test]
fn keys_whose_time_has_passed_are_counted_all_and_not_only_those_of_the_sample() {
    let home = Home::new();
    let (bytes, _) = data(&home, |node| {
        run(node, "DEBUG SET-ACTIVE-EXPIRE 0");
        for number in 0..12_000 {
            run(node, &format!("SET gone:{number} v PX 1"));
        }
        run(node, "SET later v PX 1000000");
        run(node, "SET stays v");
    });
    std::thread::sleep(Duration::from_millis(5));
    let (_, expectation) = side_load(&home.spec("g1"), &bytes);
    assert_eq!((expectation.keys(), expectation.expired_keys), (12_002, 12_000));
}

#[test]
fn a_load_through_a_pipe_that_fails_anywhere_leaves_neither_engine_nor_directory() {
    let home = Home::new();
    let (bytes, expected) = data(&home, |node| {
        fill(node);
        run(node, "DEBUG POPULATE 100000 key 100");
    });
    let spec = home.spec("g1");
    let admin = &spec.admin_password;
    let engine = || process::find(&spec.directory, admin).unwrap();
    let half = bytes.len() / 2;
    let fails_with = |kinds: &[Kind], feed: &(dyn Fn(&Control, Push<'_>) -> Result<(), Error> + Sync)| {
        let control = Control::new(None);
        let error = sideload::load(&spec, &control, |push| feed(&control, push))
            .err()
            .unwrap();
        assert!(kinds.contains(&error.kind), "{error:?}");
        assert!(engine().is_none() && !spec.directory.exists(), "{error:?}");
    };
    // The validator finds it; or the end is missing.
    let mut flipped = bytes.clone();
    flipped[half] ^= 0x10;
    fails_with(&[Kind::Malformed], &|_, push| in_pieces(&flipped, push));
    fails_with(&[Kind::Malformed], &|_, push| in_pieces(&bytes[..half], push));
    // The store fails; somebody does not want it any more.
    fails_with(&[Kind::Tampered], &|_, push| {
        in_pieces(&bytes[..half], push)?;
        Err(Error::new(Kind::Tampered, "test", "the second half"))
    });
    fails_with(&[Kind::Cancelled], &|control, push| {
        in_pieces(&bytes[..half], push)?;
        control.cancel();
        in_pieces(&bytes[half..], push)
    });
    // The engine dies under it.
    fails_with(&[Kind::EngineExited, Kind::Connection], &|_, push| {
        in_pieces(&bytes[..half], push)?;
        engine().unwrap().kill().unwrap();
        in_pieces(&bytes[half..], push)
    });
    let (engine, _) = sideload::load(&spec, &Control::new(None), |push| in_pieces(&bytes, push)).unwrap();
    engine.promote(0).unwrap();
    assert_eq!(digest(&engine), expected);
}

#[test]
fn bytes_that_are_not_valid_leave_nothing() {
    let home = Home::new();
    let (bytes, _) = data(&home, |node| {
        fill(node);
        run(node, "DEL string:big");
    });
    let directory = home.path().join("g1");
    let place = |bytes: &[u8]| {
        sideload::place(
            &directory,
            sideload::Form::AppendOnlyFolder,
            None,
            &Control::new(None),
            |push| in_pieces(bytes, push),
        )
    };
    let mut damaged: Vec<Vec<u8>> = Vec::new();
    for step in 0..40 {
        let mut flipped = bytes.clone();
        flipped[step * bytes.len() / 40] ^= 0x10;
        damaged.push(flipped);
        damaged.push(bytes[..step * bytes.len() / 40].to_vec());
    }
    damaged.push([bytes.as_slice(), b"x"].concat());
    for bytes in damaged {
        assert_eq!(place(&bytes).err().unwrap().kind, Kind::Malformed);
        assert!(!directory.exists());
    }
    place(&bytes).unwrap();
}

#[test]
fn valid_data_on_which_an_engine_ends_itself_is_refused_before_any_engine_sees_it() {
    let home = Home::new();
    let directory = home.path().join("g1");
    let place = |header: &[u8], body: &[&[u8]]| {
        let bytes = [header, &body.concat(), &[255], &[0; 8]].concat();
        sideload::place(
            &directory,
            sideload::Form::Snapshot,
            None,
            &Control::new(None),
            |push| in_pieces(&bytes, push),
        )
    };
    let key: &[u8] = b"\x00\x01k\x01v";
    place(b"REDIS0010", &[key]).unwrap();
    sideload::discard(&directory).unwrap();
    let module: &[u8] = b"\x07\x01m\x00\x00";
    let slots: &[u8] = b"\xf3\x03job\x01\x00\x05";
    let hint: &[u8] = b"\xfb\x81\x10\x00\x00\x00\x00\x00\x00\x00\x00";
    for (header, body, word) in [
        (b"REDIS0010", [module, key], "module type AAAAAAAAA"),
        (b"VALKEY080", [slots, key], "job"),
        (b"REDIS0010", [hint, key], "1152921504606846976"),
        (b"REDIS0010", [key, key], "twice"),
    ] {
        let error = place(header, &body).err().unwrap();
        assert_eq!(error.kind, Kind::Malformed);
        assert!(error.to_string().contains(word), "{error}");
        assert!(!directory.exists());
    }
}

#[test]
fn a_key_twice_is_found_among_more_keys_than_fit_into_memory() {
    let home = Home::new();
    let directory = home.path().join("g1");
    let place = |again: u64| {
        let mut bytes = b"REDIS0010".to_vec();
        for key in (0..400_000u64).chain([again]) {
            bytes.extend([0, 8]);
            bytes.extend(key.to_be_bytes());
            bytes.extend(b"\x01v");
        }
        bytes.push(255);
        bytes.extend([0; 8]);
        sideload::place(
            &directory,
            sideload::Form::Snapshot,
            None,
            &Control::new(None),
            |push| in_pieces(&bytes, push),
        )
    };
    for again in [3, 399_999] {
        let error = place(again).err().unwrap();
        let (first, second) = (9 + 12 * again, 9 + 12 * 400_000);
        let text = format!("key occurs twice, first at offset {first}, then at offset {second} in db 0");
        assert_eq!(
            (error.kind, error.context.starts_with(&text)),
            (Kind::Malformed, true),
            "{error}"
        );
        assert!(!directory.exists());
    }
    assert_eq!(place(400_001).unwrap().keys(), 400_001);
}

#[test]
fn a_feed_that_fails_or_is_cancelled_leaves_nothing() {
    let home = Home::new();
    let (bytes, _) = data(&home, fill);
    let directory = home.path().join("g1");
    let control = Control::new(None);
    let failed = sideload::place(&directory, sideload::Form::Snapshot, None, &control, |push| {
        push(&bytes[..bytes.len() / 2])?;
        Err(Error::new(Kind::Tampered, "read archive", "segment 3"))
    });
    assert_eq!(failed.err().unwrap().kind, Kind::Tampered);
    assert!(!directory.exists());
    let cancelled = sideload::place(&directory, sideload::Form::Snapshot, None, &control, |push| {
        push(&bytes[..100])?;
        control.cancel();
        push(&bytes[100..])
    });
    assert_eq!(cancelled.err().unwrap().kind, Kind::Cancelled);
    assert!(!directory.exists());
}

#[test]
fn a_directory_that_exists_is_left_alone_and_one_with_an_engine_is_not_discarded() {
    let home = Home::new();
    let (bytes, _) = data(&home, |node| drop(run(node, "SET k v")));
    let spec = home.spec("g1");
    let engine = process::start(&spec).unwrap();
    let placed = sideload::place(
        &spec.directory,
        sideload::Form::of(&spec),
        None,
        &Control::new(None),
        |push| in_pieces(&bytes, push),
    );
    assert_eq!(placed.err().unwrap().kind, Kind::Io);
    assert_eq!(sideload::discard(&spec.directory).err().unwrap().kind, Kind::Io);
    run(&mut engine.control().unwrap(), "SET still v");
    engine.kill().unwrap();
    sideload::discard(&spec.directory).unwrap();
    sideload::discard(&spec.directory).unwrap();
    assert!(!spec.directory.exists());
}

#[test]
fn death_while_placing_never_leaves_half_a_file_under_the_engines_name() {
    let home = Home::new();
    let (bytes, expected) = data(&home, fill);
    std::fs::write(home.path().join("data.rdb"), &bytes).unwrap();
    for failpoint in [
        "sideload.before_place",
        "sideload.mid_place",
        "sideload.after_place",
        "sideload.after_rename",
    ] {
        child::run_to(failpoint, "place", home.path(), 0);
        let spec = home.spec("g1");
        let engine = process::start(&spec).unwrap();
        engine.wait_loaded(&Control::new(None)).unwrap();
        let keys = run(&mut engine.control().unwrap(), "DBSIZE").int();
        if failpoint == "sideload.after_rename" {
            assert_eq!(digest(&engine), expected);
        } else {
            assert_eq!(keys, Some(0), "{failpoint}");
        }
        engine.kill().unwrap();
        sideload::discard(&spec.directory).unwrap();
        // The next attempt is an ordinary one.
        let (engine, _) = side_load(&spec, &bytes);
        engine.kill().unwrap();
        sideload::discard(&spec.directory).unwrap();
        // An error at the same place leaves nothing.
        child::run_to(&format!("{failpoint}:error"), "place", home.path(), 0);
        assert!(!spec.directory.exists(), "{failpoint}");
    }
}

#[test]
fn placing_needs_little_memory_whatever_the_keys_and_values_are() {
    let home = Home::new();
    let (bytes, _) = data(&home, |node| {
        run(node, "DEBUG POPULATE 200000 small 100");
        run(node, "DEBUG POPULATE 1 huge 100000000");
        for number in 0..8_000 {
            run(node, &format!("SET {number}:{} v", "k".repeat(8_000)));
        }
        for number in 0..40 {
            run(node, &format!("SET {number}:{} v", "k".repeat(500_000)));
        }
    });
    assert!(bytes.len() > 200_000_000);
    std::fs::write(home.path().join("data.rdb"), &bytes).unwrap();
    child::spawn("place", home.path(), 0, None).wait().unwrap();
    let peak_kib: u64 = child::answer(home.path()).parse().unwrap();
    println!(
        "placed {} MB with a peak of {peak_kib} KiB",
        bytes.len() / 1_000_000
    );
    assert!(peak_kib < 64 * 1024, "{peak_kib} KiB");
}

/// Prints what the steps take; `cargo test --release -p engine --test managed half_a_gigabyte -- --ignored --nocapture`.
#[test]
#[ignore = "half a gigabyte: a measurement"]
fn half_a_gigabyte() {
    let home = Home::new();
    let (bytes, expected) = data(&home, |node| {
        run(node, "DEBUG POPULATE 1000000 small 100");
        run(node, "DEBUG POPULATE 100000 middle 1500");
        run(node, "DEBUG POPULATE 40 big 4000000");
        run(node, "SELECT 1");
        for number in 0..20_000 {
            let fields: Vec<String> = (0..20)
                .map(|field| format!("f{field} value-{number}-{field}"))
                .collect();
            run(node, &format!("HSET hash:{number} {}", fields.join(" ")));
        }
        for number in 0..200_000 {
            run(node, &format!("ZADD zset:big {number} member-{number}"));
        }
    });
    let mb = bytes.len() as f64 / 1e6;
    println!("{mb:.0} MB");
    for persistence in [Persistence::Aof, Persistence::Rdb] {
        for round in 0..3 {
            let mut spec = home.spec(&format!("g{round}"));
            spec.persistence = persistence;
            let control = Control::new(None);
            let mut last = Instant::now();
            let mut lap = |what: &str| {
                let took = last.elapsed().as_secs_f64();
                println!("{persistence:?} {what}: {took:.3} s, {:.0} MB/s", mb / took);
                last = Instant::now();
            };
            let expectation = sideload::place(
                &spec.directory,
                sideload::Form::of(&spec),
                None,
                &control,
                |push| bytes.chunks(256 * 1024).try_for_each(push),
            )
            .unwrap();
            lap("place");
            let syncing = sideload::sync_behind(&spec.directory).unwrap();
            let engine = process::start_standby(&spec).unwrap();
            engine.wait_loaded(&control).unwrap();
            lap("start and load");
            syncing.wait().unwrap();
            lap("rest of the sync");
            let report = verify(&engine, &expectation, VerifyLevel::Sample, &control).unwrap();
            lap(&format!("verify {} keys", report.keys_compared));
            verify(&engine, &expectation, VerifyLevel::Full, &control).unwrap();
            lap("verify all");
            engine.promote(0).unwrap();
            assert_eq!(digest(&engine), expected);
            engine.kill().unwrap();
            sideload::discard(&spec.directory).unwrap();
        }
    }
}
