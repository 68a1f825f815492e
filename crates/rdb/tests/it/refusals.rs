//! Structures that no engine writes, and things that are not read, each with its name.

use crate::build::*;
use E::{I, S};
use rdb::{Error, ErrorKind, Family};

fn error(code: u8, value: &[u8]) -> Error {
    let bytes = file(11, &entry(code, b"key", value));
    let error = read([&bytes[..]]).unwrap_err();
    let slowly = read(bytes.chunks(1)).unwrap_err();
    assert_eq!(error.kind, slowly.kind);
    assert!(read_dump(&dump(code, value), 3).is_err());
    error
}

fn what(code: u8, value: &[u8]) -> &'static str {
    let error = error(code, value);
    assert_eq!(
        (error.type_code, error.key.map(|key| key.prefix)),
        (Some(code), Some("key".to_owned()))
    );
    match error.kind {
        ErrorKind::Malformed { what } | ErrorKind::Duplicate { what } => what,
        kind => panic!("type {code}: {kind:?}"),
    }
}

#[test]
fn headers_of_other_formats_and_versions_are_refused_by_name() {
    let kind = |bytes: &[u8]| {
        let error = read([bytes]).unwrap_err();
        assert_eq!(error.offset, 0, "the header is what is wrong: {error}");
        error.kind
    };
    assert_eq!(kind(b"RIDES0010"), ErrorKind::BadMagic);
    assert_eq!(kind(b"REDIS001x"), ErrorKind::BadMagic);
    for (header, family, version, origin) in [
        (b"REDIS0000", Family::Redis, 0, "which no known engine writes"),
        (b"REDIS0014", Family::Redis, 14, "written by Redis 8.8"),
        (b"REDIS0015", Family::Redis, 15, "written by Redis 8.10"),
        (b"REDIS0080", Family::Redis, 80, "a number of Valkey"),
        (b"REDIS9999", Family::Redis, 9999, "which no known engine writes"),
        (b"VALKEY011", Family::Valkey, 11, "under the magic REDIS"),
        (b"VALKEY079", Family::Valkey, 79, "which no known engine writes"),
        (b"VALKEY081", Family::Valkey, 81, "written by Valkey 9.2"),
    ] {
        let error = kind(header);
        assert_eq!(error, ErrorKind::UnsupportedVersion { family, version });
        let text = error.to_string();
        assert!(
            text.contains(&version.to_string()) && text.contains(origin),
            "{text}"
        );
    }
}

#[test]
fn later_and_unknown_codes_are_refused_by_number_at_their_offset() {
    use Family::{Redis, Valkey};
    for (family, version, code, name) in [
        (Redis, 13, 6, "unsupported"),
        (Redis, 13, 8, "unknown_type"),
        (Redis, 13, 27, "unsupported"),
        (Redis, 13, 28, "unsupported"),
        (Redis, 13, 100, "unknown_type"),
        (Redis, 13, 242, "unknown_opcode"),
        (Redis, 13, 243, "unsupported"),
        (Valkey, 80, 6, "unsupported"),
        (Valkey, 80, 23, "unsupported"),
        (Valkey, 80, 24, "unsupported"),
        (Valkey, 80, 26, "unsupported"),
        (Valkey, 80, 242, "unsupported"),
        (Valkey, 80, 241, "unknown_opcode"),
    ] {
        let bytes = file_of(family, version, &[&[254, 0, code][..], &[0; 20]].concat());
        let error = read([&bytes[..]]).unwrap_err();
        assert_eq!((error.kind.name(), error.offset), (name, 11), "code {code}");
        assert!(error.to_string().contains(&code.to_string()));
        assert_eq!(read(bytes.chunks(1)).unwrap_err(), error);
    }
}

#[test]
fn empty_collections_are_refused() {
    for code in [1, 2, 3, 4, 5, 14, 18] {
        assert_eq!(what(code, &[0]), "empty value", "type {code}");
    }
    for code in [10, 12, 13] {
        assert_eq!(what(code, &string(&ziplist(&[]))), "empty value", "type {code}");
    }
    for code in [16, 17, 20] {
        assert_eq!(what(code, &string(&listpack(&[]))), "empty value", "type {code}");
    }
    assert_eq!(what(9, &string(&zipmap(&[], 0))), "empty value");
    assert_eq!(what(11, &string(&intset(2, &[]))), "empty value");
    let nodes = [string(&ziplist(&[I(1)])), string(&ziplist(&[]))];
    assert_eq!(what(14, &counted(2, &nodes)), "empty list node");
}

#[test]
fn duplicate_members_are_refused_whatever_their_encoding() {
    let five = [string(b"5"), vec![0xc0, 5]];
    assert_eq!(what(2, &counted(2, &five)), "set member");
    assert_eq!(
        what(
            4,
            &counted(2, &[&five[0][..], b"\0", &five[1], b"\0"].map(<[u8]>::to_vec))
        ),
        "hash field"
    );
    let scored = [&five[0][..], &[0; 8], &five[1], &[0; 8]].map(<[u8]>::to_vec);
    assert_eq!(what(5, &counted(2, &scored)), "sorted set member");
    assert_eq!(
        what(16, &string(&listpack(&[S(b"a"), I(1), S(b"a"), I(2)]))),
        "hash field"
    );
    assert_eq!(
        what(13, &string(&ziplist(&[S(b"5"), I(1), I(5), I(2)]))),
        "hash field"
    );
    assert_eq!(
        what(17, &string(&listpack(&[S(b"a"), I(1), S(b"a"), I(2)]))),
        "sorted set member"
    );
    assert_eq!(
        what(9, &string(&zipmap(&[(b"a", b"b"), (b"a", b"c")], 0))),
        "hash field"
    );
    let many: Vec<Vec<u8>> = (0..5000)
        .chain([77])
        .map(|i| string(format!("m{i}").as_bytes()))
        .collect();
    assert_eq!(what(2, &counted(many.len(), &many)), "set member");
    assert_eq!(
        what(11, &string(&intset(2, &[1, 1]))),
        "intset members out of order"
    );
}

#[test]
fn wrong_scores_and_order_are_refused() {
    let nan = [string(b"a"), f64::NAN.to_le_bytes().to_vec()];
    assert_eq!(what(5, &counted(1, &nan)), "score is not a number");
    assert_eq!(
        what(3, &counted(1, &[string(b"a"), vec![253]])),
        "score is not a number"
    );
    assert_eq!(
        what(3, &counted(1, &[string(b"a"), string(b"1x")])),
        "score text is not a number"
    );
    let packed = |items: &[E<'_>]| what(17, &string(&listpack(items)));
    assert_eq!(packed(&[S(b"a"), S(b"nan")]), "score is not a number");
    assert_eq!(packed(&[S(b"a"), S(b"")]), "score text is not a number");
    assert_eq!(
        packed(&[S(b"a"), I(2), S(b"b"), I(1)]),
        "sorted set members out of order"
    );
    assert_eq!(
        packed(&[S(b"b"), I(1), S(b"a"), I(1)]),
        "sorted set members out of order"
    );
    assert_eq!(
        packed(&[S(b"a"), I(1), S(b"b")]),
        "odd number of items in a value of pairs"
    );
    value(
        17,
        &string(&listpack(&[S(b"a"), I(1), S(b"aa"), I(1), I(5), S(b"1.5")])),
    );
}

#[test]
fn wrong_packed_headers_and_lengths_are_refused() {
    let good = listpack(&[S(b"a"), I(1)]);
    let with = |at: usize, byte: u8| {
        let mut bad = good.clone();
        bad[at] = byte;
        what(16, &string(&bad))
    };
    assert_eq!(with(0, 99), "listpack size differs from its string");
    assert_eq!(with(4, 3), "listpack count differs from its elements");
    assert_eq!(with(6, 0x82), "listpack back-length differs from its element");
    assert_eq!(with(6, 0xf5), "unknown listpack encoding");
    assert_eq!(with(11, 5), "listpack reaches beyond its string");
    assert_eq!(with(9, 0xff), "listpack count differs from its elements");
    assert_eq!(
        what(16, &string(&[&good[..], &[0xff]].concat())),
        "listpack size differs from its string"
    );

    let good = ziplist(&[S(b"a"), I(1)]);
    let with = |at: usize, byte: u8| {
        let mut bad = good.clone();
        bad[at] = byte;
        what(13, &string(&bad))
    };
    assert_eq!(with(0, 99), "ziplist size differs from its string");
    assert_eq!(with(4, 10), "ziplist tail offset is wrong");
    assert_eq!(with(8, 1), "ziplist count differs from its entries");
    assert_eq!(
        with(13, 4),
        "ziplist entry differs from the length kept behind it"
    );
    assert_eq!(with(11, 0xc5), "unknown ziplist encoding");

    let mut bad = zipmap(&[(b"a", b"b")], 0);
    bad[0] = 2;
    assert_eq!(what(9, &string(&bad)), "zipmap count differs from its pairs");
    assert_eq!(what(9, &string(&bad[..4])), "zipmap reaches beyond its string");
    assert_eq!(
        what(11, &string(&intset(3, &[1]))),
        "intset width is not 2, 4 or 8"
    );
    assert_eq!(
        what(11, &string(&intset(2, &[1])[..9])),
        "intset size differs from its string"
    );
    assert_eq!(
        what(18, &counted(1, &[length(3), string(b"x")])),
        "list node of an unknown form"
    );
    assert_eq!(
        what(18, &counted(1, &[length(1), string(b"")])),
        "empty plain list node"
    );
    assert_eq!(what(0, &[0xc4]), "string of an unknown encoding");
    assert_eq!(what(0, &[0x82]), "length field of an unknown form");
    assert_eq!(what(1, &[0xc0, 1]), "string marker in place of a count");
    assert_eq!(what(16, &[0xc0, 1]), "number in place of a packed value");
    assert_eq!(
        what(0, &[0xc3, 2, 5, 0, b'a']),
        "compressed string does not yield its length"
    );
}

#[test]
fn defect_inside_a_packed_value_is_reported_at_its_byte() {
    let mut bad = listpack(&[S(b"a"), I(1), S(b"b"), I(2)]);
    bad[11] = 0xf6;
    // Header, type, key, length of the string, then the eleventh byte of the listpack.
    assert_eq!(error(16, &string(&bad)).offset, 9 + 1 + 4 + 1 + 11);
}

#[test]
fn streams_that_do_not_add_up_are_refused() {
    let good = stream(2, 0);
    let id = |ms: u64, seq: u64| [ms.to_be_bytes(), seq.to_be_bytes()].concat();
    let replace = |from: &[u8], to: &[u8], nth: usize| {
        let found: Vec<usize> = (0..good.len())
            .filter(|at| good[*at..].starts_with(from))
            .collect();
        [&good[..found[nth]], to, &good[found[nth] + from.len()..]].concat()
    };
    let pending = id(1005, 10);
    // In the group, an id that no consumer owns; in the consumer, one that is not pending.
    for nth in [0, 1] {
        assert_eq!(
            what(19, &replace(&pending, &id(1005, 11), nth)),
            "pending entries of a group differ from those of its consumers"
        );
    }
    assert_eq!(what(19, &replace(&pending, &id(1000, 9), 0)), "pending entry");
    assert_eq!(
        what(19, &replace(&pending, &id(999, 9), 0)),
        "pending entries out of order"
    );
    assert_eq!(what(19, &replace(b"\x03bob", b"\x05alice", 0)), "consumer");
    assert_eq!(
        what(19, &replace(&id(2000, 9), &id(500, 9), 0)),
        "stream entries out of order"
    );
}

#[test]
fn wrong_stream_length_is_a_warning() {
    let mut value = stream(1, 0);
    let counters = [length(4), length(2300)].concat();
    let at = (0..value.len())
        .find(|at| value[*at..].starts_with(&counters))
        .unwrap();
    value[at] = 6;
    let (report, keys) = read([&file(10, &entry(15, b"key", &value))[..]]).unwrap();
    assert_eq!((report.warning_count, keys.keys[0].elements), (1, 4));
    assert_eq!(report.warnings[0].what, "stream length differs from its entries");
    let key = report.warnings[0].key.as_ref().unwrap();
    assert_eq!((report.warnings[0].offset, key.prefix.as_str()), (9, "key"));
}

#[test]
fn expiry_without_a_key_is_refused() {
    for opcodes in [
        &[252, 1, 0, 0, 0, 0, 0, 0, 0][..],
        &[253, 1, 0, 0, 0],
        &[248, 1],
        &[249, 1],
    ] {
        for next in [&[][..], &[254, 0], &[244, 0, 0, 0]] {
            let bytes = file(11, &[opcodes, next].concat());
            let error = read([&bytes[..]]).unwrap_err();
            assert_eq!(error.kind.name(), "malformed");
            assert_eq!(error.offset, 9 + opcodes.len() as u64);
        }
    }
}

#[test]
fn databases_and_functions_beyond_the_limits_are_refused() {
    let bytes = file(11, &[&[254, 0x80][..], &0x8000_0000u32.to_be_bytes()].concat());
    assert_eq!(read([&bytes[..]]).unwrap_err().kind.name(), "malformed");
    let mut body = Vec::new();
    for db in 0..=rdb::DATABASES_MAX as u32 + 1 {
        body.extend([&[254], &length(db.into())[..], &entry(0, b"k", b"\0")].concat());
    }
    assert_eq!(
        read([&file(11, &body)[..]]).unwrap_err().kind.name(),
        "limit_exceeded"
    );
    let code = vec![b'-'; rdb::FUNCTION_BYTES_MAX + 1];
    for (cut, name) in [(1, None), (0, Some("limit_exceeded"))] {
        let bytes = file(11, &[&[245], &string(&code[cut..])[..]].concat());
        assert_eq!(read([&bytes[..]]).err().map(|error| error.kind.name()), name);
        assert_eq!(
            read(bytes.chunks(100_000)).err().map(|error| error.kind.name()),
            name
        );
    }
}

#[test]
fn huge_hints_and_counts_reserve_nothing() {
    let huge = [&[0x81], &u64::MAX.to_be_bytes()[..]].concat();
    let hints = [&[251], &huge[..], &huge, &entry(0, b"a", b"\x01b")].concat();
    assert!(read([&file(11, &hints)[..]]).is_ok());
    for code in [0, 1, 2, 3, 4, 5, 14, 15, 18, 19] {
        let bytes = [b"REDIS0011", &entry(code, b"key", &huge)[..], &[1, 2, 3, 4, 5]].concat();
        assert!(read([&bytes[..]]).is_err(), "type {code}");
    }
}
