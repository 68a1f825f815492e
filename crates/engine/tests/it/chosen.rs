//! A few keys are read out of an archive without the rest.

use engine::key_index::hash_of;
use engine::{Control, Error, Kind};

use crate::harness::{Bench, Redis, fill, start_on};

/// The RDB that an archive gives for these keys, and what was read for it.
fn chosen(bench: &Bench, keys: &[String]) -> Result<(Vec<u8>, engine::archive::Chosen), Error> {
    let hashes: Vec<u64> = keys.iter().map(|key| hash_of(key.as_bytes())).collect();
    let mut rdb = Vec::new();
    let read = bench
        .open()?
        .read_chosen(&bench.identity, &hashes, &Control::new(None), |piece| {
            rdb.extend_from_slice(piece);
            Ok(())
        })?;
    Ok((rdb, read.unwrap()))
}

fn named(names: impl IntoIterator<Item = &'static str>) -> Vec<String> {
    names.into_iter().map(str::to_owned).collect()
}

#[test]
fn chosen_keys_come_as_a_file_that_a_stock_server_loads_with_their_values_and_databases() {
    let redis = Redis::start(&["--rdbcompression", "no"]);
    let mut node = redis.node();
    fill(&mut node, 60);
    // A key of many blocks and three segments, and many small ones.
    node.run(&["DEBUG", "POPULATE", "1", "big", "12000000"]).unwrap();
    node.run(&["DEBUG", "POPULATE", "100000", "small", "50"]).unwrap();
    let bench = Bench::new(redis.endpoint());
    bench.run().unwrap();
    let wanted = named([
        "small:7",
        "small:99999",
        "big:0",
        "third",
        "random:5",
        "random:777",
        "hash",
        "absent",
        "12345",
    ]);
    let (rdb, read) = chosen(&bench, &wanted).unwrap();
    let copy = start_on(&rdb);
    let mut copy = copy.node();
    for (db, keys) in [
        ("0", ["small:7", "small:99999", "big:0"]),
        ("3", ["third", "random:5", "random:777"]),
    ] {
        node.run(&["SELECT", db]).unwrap();
        copy.run(&["SELECT", db]).unwrap();
        for key in keys {
            let value = node.run(&["GET", key]).unwrap();
            assert_eq!(copy.run(&["GET", key]).unwrap(), value, "{key}");
        }
    }
    copy.run(&["SELECT", "0"]).unwrap();
    node.run(&["SELECT", "0"]).unwrap();
    assert_eq!(
        copy.run(&["HGETALL", "hash"]).unwrap(),
        node.run(&["HGETALL", "hash"]).unwrap()
    );
    assert!(read.blocks.0 < read.blocks.1 / 2, "{read:?}");
    // Nothing at all, and no more read than the index.
    let (rdb, read) = chosen(&bench, &named(["absent"])).unwrap();
    assert!(rdb.len() < 3_000_000 && read.blocks.0 <= 3, "{read:?}");
    start_on(&rdb);
}

#[test]
fn every_key_of_a_backup_is_found_by_its_name() {
    let redis = Redis::start(&[]);
    let mut node = redis.node();
    fill(&mut node, 1);
    node.run(&["DEBUG", "POPULATE", "300000", "k", "40"]).unwrap();
    let bench = Bench::new(redis.endpoint());
    bench.run().unwrap();
    let whole = bench.read().unwrap();
    let mut keys = Keys::default();
    let mut validator = rdb::Validator::new();
    validator.feed(&whole, &mut keys).unwrap();
    let all = keys.0;
    assert!(all.len() > 300_000);
    for wanted in all.chunks(all.len() / 7 + 1) {
        let (rdb, _) = chosen(&bench, wanted).unwrap();
        let mut found = Keys::default();
        let mut validator = rdb::Validator::new();
        validator.feed(&rdb, &mut found).unwrap();
        validator.finish().unwrap();
        let found: std::collections::HashSet<_> = found.0.iter().collect();
        assert!(wanted.iter().all(|key| found.contains(key)));
    }
}

#[derive(Default)]
struct Keys(Vec<String>);

impl rdb::Sink for Keys {
    fn key(&mut self, key: &rdb::KeySummary<'_>) {
        self.0.push(String::from_utf8(key.key.to_vec()).unwrap());
    }
}

/// 100 keys of 2 GB (with CACHEKEEP_TEST_LONG=1; else five of 100 MB), spread over all of it.
#[test]
fn a_hundred_keys_of_two_gigabytes_cost_less_than_a_tenth_of_its_bytes() {
    let is_long = std::env::var_os("CACHEKEEP_TEST_LONG").is_some_and(|value| value == "1");
    let (megabytes, count) = if is_long { (2000, 100) } else { (100, 5) };
    let redis = Redis::start(&["--rdbcompression", "no"]);
    let mut node = redis.node();
    node.set_timeout(std::time::Duration::from_secs(120)).unwrap();
    let keys = megabytes * 2500;
    // Digits that do not compress to much less than their half, as those of real values.
    let script = "for key = ARGV[1], ARGV[2] do local parts = {} for part = 1, 10 do \
        parts[part] = redis.sha1hex(key .. ':' .. part) end \
        redis.call('SET', 'user:' .. key, table.concat(parts)) end";
    for from in (0..keys).step_by(50_000) {
        let to = (from + 50_000).min(keys) - 1;
        node.run(&["EVAL", script, "0", &from.to_string(), &to.to_string()])
            .unwrap();
    }
    let bench = Bench::new(redis.endpoint());
    let report = bench.run().unwrap();
    let wanted: Vec<String> = (0..count)
        .map(|number| format!("user:{}", number * (keys / count)))
        .collect();
    let (rdb, read) = chosen(&bench, &wanted).unwrap();
    let stored: u64 = bench
        .open()
        .unwrap()
        .manifest()
        .objects()
        .map(|object| object.stored_bytes)
        .sum();
    eprintln!(
        "{count} of {keys} keys, {} plain bytes, {stored} stored: {read:?}, {:.2} % of the bytes; the index is {:.1} bits a key",
        report.plain_bytes,
        read.read_bytes as f64 * 100.0 / stored as f64,
        read.index_bytes as f64 * 8.0 / f64::from(keys)
    );
    assert!(read.read_bytes * 10 <= stored && read.blocks.0 * 10 <= read.blocks.1);
    let mut found = Keys::default();
    let mut validator = rdb::Validator::new();
    validator.feed(&rdb, &mut found).unwrap();
    validator.finish().unwrap();
    assert!(wanted.iter().all(|key| found.0.contains(key)));
}

#[test]
fn a_block_of_another_place_and_an_index_that_was_changed_are_refused() {
    let redis = Redis::start(&[]);
    fill(&mut redis.node(), 20);
    let bench = Bench::new(redis.endpoint());
    bench.run().unwrap();
    let wanted = named(["random:5", "random:77", "random:200", "random:300"]);
    chosen(&bench, &wanted).unwrap();
    let folder = bench.store.root().join(&bench.plan.prefix).join("shard-0");
    let (one, other) = (
        folder.join("seg-000000.rdb.zst.age"),
        folder.join("seg-000001.rdb.zst.age"),
    );
    // Both are sealed to the right key, so only their digests tell them apart.
    std::fs::rename(&one, folder.join("beside")).unwrap();
    std::fs::rename(&other, &one).unwrap();
    std::fs::rename(folder.join("beside"), &other).unwrap();
    let refused = |error: Error| assert_eq!(error.kind, Kind::Tampered, "{}", engine::chain(&error));
    refused(chosen(&bench, &wanted).unwrap_err());
    let index = folder.join("keys-000000.json.zst.age");
    let mut bytes = std::fs::read(&index).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    std::fs::write(&index, bytes).unwrap();
    refused(chosen(&bench, &wanted).unwrap_err());
    std::fs::remove_file(&index).unwrap();
    assert_eq!(chosen(&bench, &wanted).unwrap_err().kind, Kind::NotFound);
}
