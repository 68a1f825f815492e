//! What later versions and the other family brought, and what is told of a file besides its keys.

use crate::build::*;
use rdb::{Checksum, Distinctness, ErrorKind, Family, Type, Validator};

fn key_of(family: Family, version: u32, code: u8, value: &[u8]) -> Key {
    let bytes = file_of(family, version, &entry(code, b"key", value));
    let (_, keys) = read([&bytes[..]]).unwrap_or_else(|error| panic!("type {code}: {error}"));
    assert_eq!(read(bytes.chunks(1)).unwrap().1, keys, "type {code}, in pieces");
    keys.keys[0].clone()
}

#[test]
fn field_expiry_counts_and_reads_alike_in_every_encoding_of_both_families() {
    let keys: Vec<Key> = [
        (Family::Redis, 13, 22),
        (Family::Redis, 12, 23),
        (Family::Redis, 12, 24),
        (Family::Redis, 13, 25),
        (Family::Valkey, 80, 22),
    ]
    .map(|(family, version, code)| key_of(family, version, code, &expiring_hash(code, family)))
    .into();
    for key in &keys {
        assert_eq!((key.kind, key.elements, key.expiring), (Type::Hash, 4, 2));
        assert_eq!(key.digest, keys[0].digest, "type {}", key.type_code);
    }
    // Without expiry the same fields are the same hash as in an encoding that knows none.
    let plain = [
        b"soon",
        &b"1"[..],
        b"later",
        b"text",
        b"never",
        b"",
        b"4",
        b"four",
    ]
    .map(string);
    let without = value(4, &counted(4, &plain)).digest;
    assert_ne!(keys[0].digest, without);
    let mut never = expiring_hash(22, Family::Valkey);
    let at = |never: &[u8], time: u64| {
        never
            .windows(8)
            .position(|bytes| bytes == time.to_le_bytes())
            .unwrap()
    };
    for time in [FIELD_EXPIRES_AT, FIELD_EXPIRES_AT + 5000] {
        let at = at(&never, time);
        never[at..at + 8].fill(0xff);
    }
    let never = key_of(Family::Valkey, 80, 22, &never);
    assert_eq!((never.digest, never.expiring), (without, 0));
}

#[test]
fn numbers_that_both_families_use_are_read_by_the_magic() {
    let of_redis = expiring_hash(22, Family::Redis);
    let of_valkey = expiring_hash(22, Family::Valkey);
    for (family, version, value) in [(Family::Redis, 13, &of_valkey), (Family::Valkey, 80, &of_redis)] {
        let bytes = file_of(family, version, &entry(22, b"key", value));
        assert!(read([&bytes[..]]).is_err(), "{family:?}");
    }
    let import = [
        &[243],
        &string(b"job")[..],
        &[2, 0, 0x40, 99, 0x7f, 0xff, 0x7f, 0xff],
    ]
    .concat();
    let (report, _) = read([&file_of(Family::Valkey, 80, &import)[..]]).unwrap();
    assert_eq!(report.slot_imports[0].job, "job");
    assert_eq!(report.slot_imports[0].slots, 101);
    let error = read([&file_of(Family::Redis, 13, &import)[..]]).unwrap_err();
    assert_eq!((error.kind.name(), error.offset), ("unsupported", 9));
}

#[test]
fn a_dump_is_read_by_the_family_of_its_footer() {
    let of_valkey = dump_of(80, 22, &expiring_hash(22, Family::Valkey));
    let of_redis = dump_of(12, 22, &expiring_hash(22, Family::Redis));
    let (valkey, redis) = (
        read_dump(&of_valkey, 3).unwrap(),
        read_dump(&of_redis, 3).unwrap(),
    );
    assert_eq!(valkey.value_digest, redis.value_digest);
    assert_eq!((valkey.rdb_version, valkey.elements), (80, 4));
    // Said to be of the other family.
    let mut validator = rdb::DumpValidator::new(of_valkey.len() as u64, Family::Redis);
    assert!(
        validator
            .feed(&of_valkey)
            .and_then(|()| validator.finish())
            .is_err()
    );
    let shared = dump_of(80, 0, &string(b"text"));
    let mut validator = rdb::DumpValidator::new(shared.len() as u64, Family::Redis);
    validator.feed(&shared).unwrap();
    assert_eq!(validator.finish().unwrap_err().kind.name(), "malformed");
    for version in [14, 15, 79, 81, 255] {
        let error = read_dump(&dump_of(version, 0, &string(b"text")), 100).unwrap_err();
        assert_eq!(error.kind.name(), "unsupported_version", "{version}");
    }
}

#[test]
fn wrong_field_expiry_is_refused() {
    let what = |code: u8, value: &[u8]| {
        let family = if code == 122 {
            Family::Valkey
        } else {
            Family::Redis
        };
        let version = if code == 122 { 80 } else { 13 };
        let bytes = file_of(family, version, &entry(code % 100, b"key", value));
        match read([&bytes[..]]).unwrap_err().kind {
            ErrorKind::Malformed { what } | ErrorKind::Duplicate { what } => what,
            kind => panic!("type {code}: {kind:?}"),
        }
    };
    let beyond = "field expiry is beyond what an engine can hold";
    let far = length((1 << 48) - 1);
    assert_eq!(what(22, &counted(1, &[far, string(b"f"), string(b"v")])), beyond);
    let wrap = [
        &u64::MAX.to_le_bytes()[..],
        &counted(1, &[length(9), string(b"f"), string(b"v")]),
    ]
    .concat();
    assert_eq!(what(24, &wrap), beyond);
    let negative = [string(b"f"), string(b"v"), (-2i64).to_le_bytes().to_vec()];
    assert_eq!(what(122, &counted(1, &negative)), "field expiry is not a time");
    let packed = |items: &[E<'_>]| what(23, &string(&listpack(items)));
    use E::{I, S};
    assert_eq!(
        packed(&[S(b"f"), S(b"v"), S(b"soon")]),
        "field expiry is not a time"
    );
    assert_eq!(packed(&[S(b"f"), S(b"v"), I(-5)]), "field expiry is not a time");
    let order = "hash fields out of the order of their expiry";
    assert_eq!(packed(&[S(b"f"), S(b"v"), I(9), S(b"g"), S(b"v"), I(8)]), order);
    assert_eq!(packed(&[S(b"f"), S(b"v"), I(0), S(b"g"), S(b"v"), I(8)]), order);
    assert_eq!(
        packed(&[S(b"f"), S(b"v"), I(9), S(b"f"), S(b"v"), I(10)]),
        "hash field"
    );
    let thirds = "items of a hash are not field, value and expiry in turn";
    assert_eq!(packed(&[S(b"f"), S(b"v"), I(9), S(b"g"), S(b"v")]), thirds);
    assert_eq!(what(24, &[&[0; 8][..], &[0]].concat()), "empty value");
    assert_eq!(
        what(25, &[&[0; 8][..], &string(&listpack(&[]))].concat()),
        "empty value"
    );
    assert_eq!(what(122, &[0]), "empty value");
}

#[test]
fn modules_are_skipped_and_named() {
    let body = [
        module_aux(b"Aux-only0"),
        entry(7, b"a", &module_value(b"ReJSON-RL")),
        entry(7, b"b", &module_value(b"ReJSON-RL")),
        entry(0, b"c", b"\x01v"),
    ]
    .concat();
    let bytes = file(11, &body);
    let (report, keys) = read([&bytes[..]]).unwrap();
    assert_eq!(
        read(bytes.chunks(1)).unwrap(),
        (report.clone(), read([&bytes[..]]).unwrap().1)
    );
    let seen: Vec<_> = report
        .modules
        .iter()
        .map(|m| (m.name.as_str(), m.version, m.values, m.aux))
        .collect();
    assert_eq!(seen, [("Aux-only0", 3, 0, 1), ("ReJSON-RL", 3, 2, 0)]);
    assert_eq!(keys.keys[0].kind, Type::Module);
    assert_eq!(keys.keys[0].digest, keys.keys[1].digest);
    let mut other = module_value(b"ReJSON-RL");
    other[10] ^= 1;
    assert_ne!(value(7, &other).digest, keys.keys[0].digest);
    for bad in [&[6][..], &[99], &[0xc0]] {
        let value = [&length(module_id(b"ReJSON-RL"))[..], bad, &[0; 9]].concat();
        assert!(read([&file(11, &entry(7, b"a", &value))[..]]).is_err(), "{bad:?}");
    }
    // A string that is passed over in pieces.
    let long = [
        length(module_id(b"ReJSON-RL")),
        vec![5],
        string(&vec![b'l'; 50_000]),
        vec![0],
    ]
    .concat();
    assert_eq!(value(7, &long).kind, Type::Module);
    let mut unmarked = module_aux(b"Aux-only0");
    unmarked[10] = 1;
    assert_eq!(
        read([&file(11, &unmarked)[..]]).unwrap_err().kind.name(),
        "malformed"
    );
}

#[test]
fn more_module_types_than_the_limit_are_refused() {
    let body: Vec<u8> = (0..=rdb::MODULES_MAX as u64)
        .flat_map(|id| [&[7], &string(&id.to_le_bytes())[..], &length(id << 10), &[0]].concat())
        .collect();
    assert_eq!(
        read([&file(11, &body)[..]]).unwrap_err().kind.name(),
        "limit_exceeded"
    );
}

#[test]
fn a_library_of_a_pre_release_reads_like_one_of_the_release() {
    let old = |description: &[u8]| {
        [
            &[246],
            &string(b"lib")[..],
            &string(b"LUA"),
            description,
            &string(b"return 1"),
        ]
        .concat()
    };
    let described = [&[1], &string(b"what it does")[..]].concat();
    for bytes in [old(&[0]), old(&described)].map(|body| file(10, &body)) {
        let (report, keys) = read([&bytes[..]]).unwrap();
        assert_eq!(keys.functions, [b"#!LUA name=lib\nreturn 1".to_vec()]);
        assert_eq!(report.functions[0].name.as_deref(), Some("lib"));
        assert_eq!(read(bytes.chunks(1)).unwrap().1, keys);
    }
}

#[test]
fn slots_are_counted_and_their_numbers_checked() {
    let info = |slot: u64| [&[244], &length(slot)[..], &[5, 0]].concat();
    let (report, _) = read([&file(12, &[info(0), info(16_383)].concat())[..]]).unwrap();
    assert_eq!(report.slot_infos, 2);
    assert!(read([&file(12, &info(16_384))[..]]).is_err());
    for ranges in [[5u64, 4], [0, 16_384]] {
        let import = [
            &[243],
            &string(b"job")[..],
            &[1],
            &length(ranges[0]),
            &length(ranges[1]),
        ]
        .concat();
        assert!(
            read([&file_of(Family::Valkey, 80, &import)[..]]).is_err(),
            "{ranges:?}"
        );
    }
}

#[test]
fn bytes_after_the_end_are_counted_where_they_are_accepted() {
    let plain = all_types();
    for (bytes, after) in [(plain.clone(), 0), ([&plain[..], &[7; 40]].concat(), 40)] {
        for chunk in [1, bytes.len()] {
            let mut validator = Validator::new().accept_trailing_bytes();
            for piece in bytes.chunks(chunk) {
                validator.feed(piece, &mut ()).unwrap();
            }
            let report = validator.finish().unwrap();
            assert_eq!((report.bytes, report.trailing_bytes), (plain.len() as u64, after));
            assert!(matches!(report.checksum, Checksum::Verified(_)));
        }
    }
}

#[test]
fn a_key_twice_in_a_database_is_refused_with_both_places() {
    let (a, b) = (entry(0, b"a", b"\x01v"), entry(2, b"a", b"\x01\x01m"));
    let twice = file(11, &[&[254, 0], &a[..], &[248, 9], &b].concat());
    let error = read([&twice[..]]).unwrap_err();
    assert_eq!(error.kind, ErrorKind::DuplicateKey { first: 11 });
    assert_eq!(
        (error.offset, error.key.clone().unwrap().prefix.as_str()),
        (16, "a")
    );
    assert_eq!(
        error.to_string(),
        format!(
            "key occurs twice, first at offset 11, then at offset 16 in db 0, key {:016x}",
            error.key.unwrap().hash
        )
    );
    // A number and its text are one key; the same key in two databases is two.
    let packed = file(11, &[&[0, 0xc0, 5, 0][..], &entry(0, b"5", b"\0")].concat());
    assert_eq!(read([&packed[..]]).unwrap_err().kind.name(), "duplicate_key");
    let apart = file(11, &[&[254, 0], &a[..], &[254, 1], &a, &[254, 2], &b].concat());
    assert_eq!(read([&apart[..]]).unwrap().0.distinctness, Distinctness::Proven);
    let back = file(11, &[&[254, 0], &a[..], &[254, 1], &a, &[254, 0], &b].concat());
    assert_eq!(read([&back[..]]).unwrap_err().kind.name(), "duplicate_key");
    // Longer than what is kept of a key.
    let mut long = vec![b'k'; rdb::KEY_BYTES_MAX + 9];
    let first = entry(0, &long, b"\x01v");
    let again = file(11, &[&first[..], &first].concat());
    assert_eq!(read([&again[..]]).unwrap_err().kind.name(), "duplicate_key");
    long[rdb::KEY_BYTES_MAX + 1] ^= 1;
    assert!(read([&file(11, &[first, entry(0, &long, b"\x01v")].concat())[..]]).is_ok());
}

#[test]
fn a_database_announced_with_far_more_keys_than_it_has_is_a_warning() {
    let hint = |keys: u64, expires: u64| [&[251], &length(keys)[..], &length(expires)].concat();
    for (keys, expires, excessive) in [
        (1 << 60, 0, true),
        (0, 1 << 40, true),
        (1_000_000, 0, false),
        (1, 0, false),
    ] {
        let bytes = file(
            11,
            &[&[254, 0], &hint(keys, expires)[..], &entry(0, b"a", b"\x01b")].concat(),
        );
        let (report, _) = read([&bytes[..]]).unwrap();
        assert_eq!(report.excessive_hint.is_some(), excessive, "{keys} {expires}");
        assert_eq!(report.warning_count, u64::from(excessive));
        if excessive {
            assert_eq!((report.warnings[0].offset, &report.warnings[0].key), (11, &None));
        }
    }
}

#[test]
fn private_codes_are_named_after_the_fields_that_only_their_vendor_writes() {
    for (name, vendor) in [
        (&b"big-used-ram"[..], "Redis Enterprise"),
        (b"mvcc-tstamp", "KeyDB"),
    ] {
        let bytes = file(12, &[&[250], &string(name)[..], b"\x010", &[107, 0, 0]].concat());
        let text = read([&bytes[..]]).unwrap_err().to_string();
        assert!(text.contains("107") && text.contains(vendor), "{text}");
    }
}

#[test]
fn compressed_strings_that_claim_more_than_they_can_yield_are_refused_before_they_are_read() {
    let claim = |plain: u64| [&[0xc3, 3], &length(plain)[..], &[0, b'a']].concat();
    for (plain, refused_early) in [(88 * 3 + 264, false), (88 * 3 + 265, true), (1 << 62, true)] {
        let bytes = [b"REDIS0011", &entry(0, b"key", &claim(plain))[..]].concat();
        let mut validator = Validator::new();
        let step = validator.feed(&bytes, &mut ());
        assert_eq!(step.is_err(), refused_early, "{plain}");
    }
}
