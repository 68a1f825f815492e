//! Reading: stock programs open an archive, and nothing that was changed is ever delivered.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use engine::archive::{
    self, FileReader, Manifest, ObjectRecord, SegmentRecord, segment_name, write_manifest,
};
use engine::segment::Sealer;
use engine::{Archive, Control, Identity, Kind, SigningKey};

use crate::harness::{Bench, Redis, digest, fill, start_on};

fn captured(megabytes: usize) -> (Redis, Bench) {
    let redis = Redis::start(&[]);
    fill(&mut redis.node(), megabytes);
    let bench = Bench::new(redis.endpoint());
    bench.run().unwrap();
    (redis, bench)
}

fn prefix_of(bench: &Bench) -> PathBuf {
    bench.store.root().join(&bench.plan.prefix)
}

#[test]
fn stock_programs_give_the_rdb_that_a_stock_server_loads() {
    let (redis, bench) = captured(20);
    let key = bench.scratch.join("key.txt");
    fs::write(&key, bench.identity.to_secret().expose()).unwrap();
    let script =
        "set -e -o pipefail; for s in seg-*; do age -d -i \"$0\" $s | zstd -d; done > ../../dump.rdb";
    let status = Command::new("bash")
        .args(["-c", script])
        .arg(&key)
        .current_dir(prefix_of(&bench).join("shard-0"))
        .status()
        .unwrap();
    assert!(status.success());
    let opened = fs::read(prefix_of(&bench).join("../dump.rdb")).unwrap();
    assert!(opened == bench.read().unwrap());
    let copy = start_on(&opened);
    assert_eq!(digest(&mut copy.node()), digest(&mut redis.node()));
}

#[test]
fn segments_start_at_keys_and_tell_their_database() {
    let (_redis, bench) = captured(40);
    let archive = bench.open().unwrap();
    let manifest = archive.manifest();
    assert!(manifest.segments.len() >= 5, "{}", manifest.segments.len());
    let rdb = bench.read().unwrap();
    for segment in &manifest.segments[1..] {
        assert!(!segment.mid_key);
        assert_eq!(segment.db, 3);
        // The key's first opcode: type 0, a string, then the name.
        let start = usize::try_from(segment.first_offset).unwrap();
        assert_eq!(rdb[start], 0);
        assert!(rdb[start + 2..].starts_with(b"random:"));
    }
    assert_eq!(manifest.plain_bytes, rdb.len() as u64);
}

#[test]
fn key_bigger_than_a_segment_is_cut_and_flagged() {
    let redis = Redis::start(&["--rdbcompression", "no"]);
    let mut node = redis.node();
    node.run(&["SET", "before", "x"]).unwrap();
    node.run(&["DEBUG", "POPULATE", "1", "big", "20000000"]).unwrap();
    let bench = Bench::new(redis.endpoint());
    bench.run().unwrap();
    let archive = bench.open().unwrap();
    let flags: Vec<_> = archive.manifest().segments.iter().map(|s| s.mid_key).collect();
    assert!(
        flags.len() >= 3 && !flags[0] && flags[flags.len() - 1],
        "{flags:?}"
    );
    let copy = start_on(&bench.read().unwrap());
    assert_eq!(digest(&mut copy.node()), digest(&mut node));
}

#[test]
fn details_hold_the_census() {
    let (_redis, bench) = captured(1);
    let details = bench.open().unwrap().details(&bench.identity).unwrap();
    let [zero, third] = &details.dbs[..] else {
        panic!("{:?}", details.dbs)
    };
    assert_eq!((zero.db, zero.keys, zero.expires), (0, 9, 1));
    assert_eq!(zero.types["set"].keys, 2);
    assert_eq!(zero.types["hash"].elements, 2);
    assert_eq!((third.db, third.keys), (3, 17));
    assert_eq!(details.biggest_keys.len(), 26);
    assert!(details.biggest_keys.is_sorted_by(|a, b| a.bytes >= b.bytes));
    assert!(details.biggest_keys[0].key_hex.starts_with("72616e646f6d3a"));
    assert_eq!(details.functions[0].name.as_deref(), Some("lib"));
    assert!(
        details
            .aux
            .iter()
            .any(|(name, value)| name == "redis-ver" && value.starts_with('7'))
    );
    let other = Identity::generate();
    let archive = bench.open().unwrap();
    assert_eq!(archive.details(&other).unwrap_err().kind, Kind::Key);
    let read = archive.read(&other, &Control::new(None), 2, |_| panic!("delivered"));
    assert_eq!(read.unwrap_err().kind, Kind::Key);
}

#[test]
fn ranges_are_the_bytes_of_the_whole() {
    let (_redis, bench) = captured(20);
    let archive = bench.open().unwrap();
    let rdb = bench.read().unwrap();
    let len = rdb.len() as u64;
    let second = archive.manifest().segments[1].first_offset;
    for range in [
        0..0,
        0..9,
        0..len,
        second - 1..second + 1,
        second..second,
        5..second,
        second..len,
        len - 1..len + 100,
        len..len + 1,
        len + 7..len + 9,
    ] {
        let mut got = Vec::new();
        archive
            .read_range(&bench.identity, range.clone(), |piece| {
                got.extend_from_slice(piece);
                Ok(())
            })
            .unwrap();
        let (start, end) = (range.start.min(len), range.end.min(len));
        let expected = &rdb[usize::try_from(start).unwrap()..usize::try_from(end).unwrap()];
        assert!(got == expected, "{range:?}");
    }
    // The last byte needs the last segment only.
    for segment in &archive.manifest().segments[..2] {
        bench
            .store
            .delete(&format!("{}/{}", bench.plan.prefix, segment.object.name))
            .unwrap();
    }
    archive
        .read_range(&bench.identity, len - 1..len, |_| Ok(()))
        .unwrap();
    assert_eq!(
        archive
            .read_range(&bench.identity, 0..1, |_| Ok(()))
            .unwrap_err()
            .kind,
        Kind::NotFound
    );
}

/// Every object in turn is damaged in every way, then put back.
#[test]
fn any_place_is_read_again_while_the_whole_is_read() {
    let (_redis, bench) = captured(20);
    let rdb = bench.read().unwrap();
    let reader = FileReader::new(bench.open().unwrap(), bench.identity.clone(), 0).unwrap();
    assert_eq!(reader.bytes(), rdb.len() as u64);
    let at = |offset: usize, count: usize| {
        let mut buffer = vec![0; count];
        reader.read_at(offset as u64, &mut buffer).map(|()| buffer)
    };
    let mut whole = Vec::new();
    reader
        .read(&Control::new(None), 1, |piece| {
            whole.extend_from_slice(piece);
            // What was just delivered, what lies before and what comes later, across the ends of segments too.
            for offset in [
                0,
                whole.len() - 10,
                whole.len() - piece.len(),
                rdb.len() - 3_000_000,
            ] {
                let count = 3_000_000.min(rdb.len() - offset);
                assert!(at(offset, count)? == rdb[offset..offset + count], "{offset}");
            }
            Ok(())
        })
        .unwrap();
    assert!(whole == rdb);
    assert_eq!(at(rdb.len() - 1, 2).unwrap_err().kind, Kind::NotFound);
    let second = prefix_of(&bench).join(segment_name(1));
    let mut stored = fs::read(&second).unwrap();
    stored[1000] ^= 1;
    fs::write(&second, stored).unwrap();
    assert_eq!(at(9_000_000, 10).unwrap_err().kind, Kind::Tampered);
    assert_eq!(at(0, 10).unwrap(), rdb[..10]);
    assert_eq!(at(9_000_000, 10).unwrap_err().kind, Kind::Tampered);
}

#[test]
fn damage_of_any_object_is_refused() {
    let (_redis, bench) = captured(20);
    let archive = bench.open().unwrap();
    let names: Vec<_> = archive
        .manifest()
        .segments
        .iter()
        .map(|s| s.object.name.clone())
        .collect();
    assert!(names.len() >= 3);
    let rdb = bench.read().unwrap();

    let check = |name: &str, kind: Kind, probe_notices: bool| {
        let failure = if name == archive::segment_name(0) || name.starts_with("shard-0") {
            // What was pushed before the failure is a true prefix.
            let mut got = 0;
            let result = archive.read(&bench.identity, &Control::new(None), 2, |piece| {
                assert!(piece == &rdb[got..got + piece.len()]);
                got += piece.len();
                Ok(())
            });
            result.unwrap_err()
        } else {
            archive.details(&bench.identity).unwrap_err()
        };
        assert_eq!(failure.kind, kind, "{name}: {failure}");
        assert!(failure.context.contains(name), "{name}: {failure}");
        assert_eq!(archive.probe().is_err(), probe_notices, "{name}");
    };
    for name in names.iter().map(String::as_str).chain(["details.age"]) {
        let path = prefix_of(&bench).join(name);
        let good = fs::read(&path).unwrap();
        for at in [0, 30, good.len() / 2, good.len() - 1] {
            let mut bad = good.clone();
            bad[at] ^= 1;
            fs::write(&path, &bad).unwrap();
            check(name, Kind::Tampered, false);
        }
        for len in [0, 10, good.len() - 1] {
            fs::write(&path, &good[..len]).unwrap();
            check(name, Kind::Tampered, true);
        }
        fs::write(&path, [&good[..], b"x"].concat()).unwrap();
        check(name, Kind::Tampered, true);
        fs::remove_file(&path).unwrap();
        check(name, Kind::NotFound, true);
        fs::write(&path, &good).unwrap();
    }
    swap(
        &prefix_of(&bench).join(&names[0]),
        &prefix_of(&bench).join(&names[1]),
    );
    check(&names[0], Kind::Tampered, true);
    swap(
        &prefix_of(&bench).join(&names[0]),
        &prefix_of(&bench).join(&names[1]),
    );
    archive.probe().unwrap();
    assert!(bench.read().unwrap() == rdb);
}

fn swap(one: &Path, other: &Path) {
    let (a, b) = (fs::read(one).unwrap(), fs::read(other).unwrap());
    fs::write(one, b).unwrap();
    fs::write(other, a).unwrap();
}

#[test]
fn damage_of_the_manifest_is_refused() {
    let (redis, bench) = captured(0);
    let path = prefix_of(&bench).join("manifest.json");
    let good = fs::read(&path).unwrap();
    let recorded = blake3::hash(&good).to_string();
    let keys = [
        SigningKey::generate().unwrap().verifying_key(),
        bench.signer.verifying_key(),
    ];
    let open = |keys: &[_], recorded: Option<&str>| {
        Archive::open(&bench.store, &bench.plan.prefix, keys, recorded)
            .map(drop)
            .map_err(|e| e.kind)
    };
    assert_eq!(open(&keys, Some(&recorded)), Ok(()));
    assert_eq!(
        open(&keys[..1], None),
        Err(Kind::Tampered),
        "a key that is not trusted"
    );
    assert_eq!(open(&[], None), Err(Kind::Tampered));
    for at in 0..good.len() {
        let mut bad = good.clone();
        bad[at] ^= 1;
        fs::write(&path, &bad).unwrap();
        assert_eq!(
            open(&keys, None),
            Err(Kind::Tampered),
            "byte {at} of {}",
            good.len()
        );
    }
    for len in 0..good.len() {
        fs::write(&path, &good[..len]).unwrap();
        assert_eq!(open(&keys, None), Err(Kind::Tampered), "cut to {len}");
    }
    fs::remove_file(&path).unwrap();
    assert_eq!(open(&keys, None), Err(Kind::NotFound));
    fs::write(&path, &good).unwrap();

    // Another archive by the same author: only the recorded digest tells.
    let mut later = Bench::new(redis.endpoint());
    later.signer = SigningKey::parse(bench.signer.to_secret().expose()).unwrap();
    later.run().unwrap();
    fs::copy(prefix_of(&later).join("manifest.json"), &path).unwrap();
    assert_eq!(open(&keys, None), Ok(()));
    assert_eq!(open(&keys, Some(&recorded)), Err(Kind::Tampered));
}

#[test]
fn piece_that_expands_beyond_its_manifest_is_refused() {
    let redis = Redis::start(&[]);
    let bench = Bench::new(redis.endpoint());
    let recipient = bench.identity.recipient();
    let mut sealer = Sealer::new(&recipient).unwrap();
    let mut piece = vec![0; 64 << 20];
    let sealed = sealer.seal(&mut piece).unwrap();
    for claimed in [0, 10, 33 << 20, 64 << 20] {
        let prefix = format!("bomb-{claimed}");
        let mut object = ObjectRecord::new(segment_name(0), sealed.clone());
        object.plain_bytes = claimed;
        bench
            .store
            .put(&format!("{prefix}/{}", object.name), &piece)
            .unwrap();
        let manifest = manifest_of(object);
        let digest = write_manifest(&bench.store, &prefix, &manifest, &bench.signer).unwrap();
        let keys = [bench.signer.verifying_key()];
        let archive = Archive::open(&bench.store, &prefix, &keys, Some(&digest)).unwrap();
        let read = archive.read(&bench.identity, &Control::new(None), 4, |_| panic!("delivered"));
        assert_eq!(read.unwrap_err().kind, Kind::Tampered, "{claimed}");
        archive::delete(&bench.store, &prefix).unwrap();
    }
    assert!(bench.store_is_bare());
}

fn manifest_of(object: ObjectRecord) -> Manifest {
    Manifest {
        version: archive::MANIFEST_VERSION,
        project: "p".to_owned(),
        instance: "i".to_owned(),
        backup: "b".to_owned(),
        attempt: 1,
        created_at_ms: 0,
        engine_version: "7.0.15".to_owned(),
        rdb_version: 10,
        replid: "0".repeat(40),
        offset: 0,
        keys: 0,
        plain_bytes: object.plain_bytes,
        stored_bytes: object.stored_bytes,
        recipient: String::new(),
        details: object.clone(),
        index: None,
        segments: vec![SegmentRecord {
            object,
            first_offset: 0,
            mid_key: false,
            db: 0,
        }],
        shards: Vec::new(),
    }
}

#[test]
fn newer_format_is_named_not_guessed() {
    let redis = Redis::start(&[]);
    let bench = Bench::new(redis.endpoint());
    let mut manifest = manifest_of(ObjectRecord {
        name: segment_name(0),
        plain_bytes: 0,
        stored_bytes: 0,
        plain_blake3: String::new(),
        stored_blake3: String::new(),
    });
    manifest.version = 2;
    write_manifest(&bench.store, "newer", &manifest, &bench.signer).unwrap();
    let error = Archive::open(&bench.store, "newer", &[bench.signer.verifying_key()], None).unwrap_err();
    assert_eq!(error.kind, Kind::Store);
    assert!(error.context.contains("format 2"), "{error}");
}

#[test]
fn reading_stops_when_asked_or_when_the_reader_fails() {
    let (_redis, bench) = captured(40);
    let archive = bench.open().unwrap();
    let control = Control::new(None);
    let mut pieces = 0;
    let stopped = archive.read(&bench.identity, &control, 3, |_| {
        pieces += 1;
        control.cancel();
        Ok(())
    });
    assert_eq!((stopped.unwrap_err().kind, pieces), (Kind::Cancelled, 1));
    let failed = archive.read(&bench.identity, &Control::new(None), 3, |_| {
        Err(engine::Error::new(Kind::Mismatch, "push", "enough"))
    });
    assert_eq!(failed.unwrap_err().kind, Kind::Mismatch);
}
