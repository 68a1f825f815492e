//! Files that real engines wrote, kept beside the tests: `fixtures/make.py` makes them.

use std::collections::BTreeMap;

use crate::build::*;
use rdb::{Checksum, Distinctness, Family, Type};

/// Engine and options in the name, and the file.
pub const FIXTURES: [(&str, &[u8]); 5] = [
    ("redis-7.0", include_bytes!("../fixtures/redis-7.0.rdb")),
    ("redis-8.0", include_bytes!("../fixtures/redis-8.0.rdb")),
    (
        "redis-8.0-cluster",
        include_bytes!("../fixtures/redis-8.0-cluster.rdb"),
    ),
    ("valkey-9.1", include_bytes!("../fixtures/valkey-9.1.rdb")),
    ("valkey-9.1-lfu", include_bytes!("../fixtures/valkey-9.1-lfu.rdb")),
];

#[test]
fn files_of_every_engine_are_valid_and_hold_what_was_put_into_them() {
    for (name, bytes) in FIXTURES {
        let (report, keys) = read([bytes]).unwrap_or_else(|error| panic!("{name}: {error}"));
        assert_eq!(
            read(bytes.chunks(7)).unwrap(),
            (report.clone(), read([bytes]).unwrap().1),
            "{name}"
        );
        let (family, version) = match name {
            "redis-7.0" => (Family::Redis, 10),
            _ if name.starts_with("redis") => (Family::Redis, 12),
            _ => (Family::Valkey, 80),
        };
        assert_eq!((report.family, report.rdb_version), (family, version), "{name}");
        assert!(matches!(report.checksum, Checksum::Verified(_)));
        assert_eq!(
            (report.warning_count, report.distinctness),
            (0, Distinctness::Proven),
            "{name}"
        );
        let is_cluster = name.ends_with("cluster");
        let totals = report.census.totals();
        assert_eq!(
            (totals.keys, totals.expires),
            (if is_cluster { 58 } else { 59 }, 2),
            "{name}"
        );
        assert_eq!(report.functions[0].name.as_deref(), Some("lib"), "{name}");
        assert_eq!(report.slot_infos > 0, is_cluster, "{name}");
        let expiring = if name == "redis-7.0" { 0 } else { 6 };
        assert_eq!(
            report.census.dbs[&0].types[&Type::Hash].expiring_elements,
            expiring,
            "{name}"
        );
        assert_eq!(
            keys.keys.iter().map(|key| key.expiring).sum::<u64>(),
            expiring,
            "{name}"
        );
    }
}

#[test]
fn the_same_value_has_the_same_digest_whatever_engine_wrote_it() {
    let mut digests: BTreeMap<(u32, Vec<u8>), (rdb::Digest, &str)> = BTreeMap::new();
    let mut compared = 0;
    for (name, bytes) in FIXTURES {
        for key in read([bytes]).unwrap().1.keys {
            // Redis 7.0 cannot let fields expire, and pending entries keep the time of the run.
            if key.key.starts_with(b"hash:expiring") && name == "redis-7.0" || key.key == b"stream" {
                continue;
            }
            let seen = digests
                .entry((key.db, key.key.clone()))
                .or_insert((key.digest, name));
            assert_eq!(
                key.digest,
                seen.0,
                "{:?} of {name} and {}",
                String::from_utf8_lossy(&key.key),
                seen.1
            );
            compared += 1;
        }
    }
    assert_eq!(compared - digests.len(), 229);
}
