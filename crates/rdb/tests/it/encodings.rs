//! The same value in every encoding, and what tells values apart.

use crate::build::*;
use E::{I, S};
use rdb::{Checksum, Type, Validator};

/// Requires that all encodings agree, and returns the digest.
fn same(kind: Type, elements: u64, encodings: &[(u8, Vec<u8>)]) -> rdb::Digest {
    let keys: Vec<Key> = encodings
        .iter()
        .map(|(code, bytes)| value(*code, bytes))
        .collect();
    for (i, key) in keys.iter().enumerate() {
        assert_eq!((key.kind, key.elements), (kind, elements), "encoding {i}");
        assert_eq!(key.digest, keys[0].digest, "encoding {i}, type {}", key.type_code);
    }
    keys[0].digest
}

#[test]
fn string_digest_does_not_depend_on_encoding() {
    for (text, packed) in [
        (&b"-7"[..], vec![0xc0, 0xf9]),
        (b"12345", vec![0xc1, 0x39, 0x30]),
        (b"-100000", [&[0xc2], &(-100_000i32).to_le_bytes()[..]].concat()),
    ] {
        same(
            Type::String,
            1,
            &[(0, string(text)), (0, packed), (0, lzf_literals(text))],
        );
    }
    for size in [1, 63, 64, 500, 16_383, 16_384, 16_385, 70_000, 300_000] {
        let text: Vec<u8> = (0..size).map(|i| (i * 31 % 251) as u8).collect();
        let long = [&[0x81], &(size as u64).to_be_bytes()[..], &text].concat();
        same(
            Type::String,
            1,
            &[(0, string(&text)), (0, long), (0, lzf_literals(&text))],
        );
    }
    let digests = [&b"1"[..], b"01", b"", b"-0", b"0"].map(|text| value(0, &string(text)).digest);
    for (i, digest) in digests.iter().enumerate() {
        assert!(!digests[..i].contains(digest));
    }
}

#[test]
fn list_digest_depends_on_order_but_not_on_encoding() {
    let long = vec![b'l'; 5000];
    let longer = vec![b'm'; 40_000];
    let numbers = [
        0, 12, 13, 127, 128, -1, -128, 4095, -4096, 4096, -32_768, 32_767, 8_388_607, -8_388_608,
    ];
    let wide = [2_147_483_647, -2_147_483_648, 2_147_483_648, i64::MAX, i64::MIN];
    let texts: Vec<String> = numbers.iter().chain(&wide).map(i64::to_string).collect();
    let mut plain: Vec<&[u8]> = vec![b"", b"a", &[b'k'; 63], &[b'k'; 64], &[b'k'; 300], &long, &longer];
    let mut items: Vec<E<'_>> = plain.iter().map(|text| S(text)).collect();
    items.extend(numbers.iter().chain(&wide).map(|number| I(*number)));
    plain.extend(texts.iter().map(String::as_bytes));
    let as_text: Vec<E<'_>> = plain.iter().map(|text| S(text)).collect();
    let (head, tail) = items.split_at(9);
    let nodes = |pack: fn(&[E<'_>]) -> Vec<u8>| vec![string(&pack(head)), string(&pack(tail))];
    let mut formed = Vec::new();
    for item in &items {
        match item {
            S(text) if text.len() > 4000 => formed.extend([length(1), string(text)]),
            _ => formed.extend([length(2), string(&listpack(&[*item]))]),
        }
    }
    let strings: Vec<Vec<u8>> = plain.iter().map(|text| string(text)).collect();
    let digest = same(
        Type::List,
        items.len() as u64,
        &[
            (1, counted(strings.len(), &strings)),
            (10, string(&ziplist(&items))),
            (10, lzf_literals(&ziplist(&as_text))),
            (14, counted(2, &nodes(ziplist))),
            (14, counted(1, &[string(&ziplist(&items))])),
            (18, counted(1, &[length(2), string(&listpack(&items))])),
            (18, counted(1, &[length(2), lzf_literals(&listpack(&as_text))])),
            (18, counted(items.len(), &formed)),
        ],
    );
    let reversed: Vec<Vec<u8>> = strings.into_iter().rev().collect();
    assert_ne!(value(1, &counted(reversed.len(), &reversed)).digest, digest);
}

#[test]
fn set_digest_depends_on_neither_order_nor_encoding() {
    let texts = |members: &[i64]| {
        let strings: Vec<Vec<u8>> = members.iter().map(|m| string(m.to_string().as_bytes())).collect();
        counted(strings.len(), &strings)
    };
    let small = [-300, 0, 7, 1000];
    let digest = same(
        Type::Set,
        4,
        &[
            (2, texts(&small)),
            (2, texts(&[7, -300, 1000, 0])),
            (11, string(&intset(2, &small))),
            (11, string(&intset(4, &small))),
            (11, lzf_literals(&intset(8, &small))),
            (20, string(&listpack(&[I(7), S(b"0"), I(1000), I(-300)]))),
        ],
    );
    let wide: Vec<i64> = (0..30_000).map(|i| i64::MIN + i * 1_000_003).collect();
    same(
        Type::Set,
        30_000,
        &[(2, texts(&wide)), (11, string(&intset(8, &wide)))],
    );
    assert_ne!(value(2, &texts(&[-300, 0, 7, 1001])).digest, digest);
    // The same members as a list are another value.
    assert_ne!(value(1, &texts(&small)).digest, digest);
}

#[test]
fn hash_digest_depends_on_neither_order_nor_encoding() {
    let big = vec![b'v'; 20_000];
    let pairs: [(&[u8], &[u8]); 4] = [(b"f", b"1"), (b"g", b""), (b"hh", b"text"), (b"i", &big)];
    let strings = |order: [usize; 4]| {
        let parts: Vec<Vec<u8>> = order
            .iter()
            .flat_map(|i| [string(pairs[*i].0), string(pairs[*i].1)])
            .collect();
        counted(4, &parts)
    };
    let items = [
        S(b"g"),
        S(b""),
        S(b"f"),
        I(1),
        S(b"i"),
        S(&big),
        S(b"hh"),
        S(b"text"),
    ];
    let digest = same(
        Type::Hash,
        4,
        &[
            (4, strings([0, 1, 2, 3])),
            (4, strings([3, 1, 0, 2])),
            (9, string(&zipmap(&pairs, 0))),
            (9, lzf_literals(&zipmap(&pairs, 3))),
            (13, string(&ziplist(&items))),
            (16, string(&listpack(&items))),
            (16, lzf_literals(&listpack(&items))),
        ],
    );
    let swapped = [
        S(b"f"),
        S(b""),
        S(b"g"),
        I(1),
        S(b"i"),
        S(&big),
        S(b"hh"),
        S(b"text"),
    ];
    assert_ne!(value(16, &string(&listpack(&swapped))).digest, digest);
}

#[test]
fn sorted_set_digest_depends_on_scores_as_numbers() {
    let binary = |scores: [(&[u8], f64); 5]| {
        let parts: Vec<Vec<u8>> = scores
            .iter()
            .flat_map(|(m, s)| [string(m), s.to_le_bytes().to_vec()])
            .collect();
        counted(5, &parts)
    };
    let scores = [
        (&b"a"[..], f64::NEG_INFINITY),
        (b"b", 0.0),
        (b"c", 3.0),
        (b"d", 0.1),
        (b"5", f64::INFINITY),
    ];
    let mut minus_zero = scores;
    minus_zero[1].1 = -0.0;
    let text = |text: &[u8]| [&[text.len() as u8], text].concat();
    let texts = [
        (&b"b"[..], text(b"-0")),
        (b"a", vec![255]),
        (b"5", vec![254]),
        (b"d", text(b"0.10000000000000001")),
        (b"c", text(b"3")),
    ];
    let texts: Vec<Vec<u8>> = texts.iter().flat_map(|(m, s)| [string(m), s.clone()]).collect();
    let packed = [
        [S(b"a"), S(b"-inf")],
        [S(b"b"), I(0)],
        [S(b"d"), S(b"0.10000000000000001")],
        [S(b"c"), I(3)],
        [I(5), S(b"inf")],
    ]
    .concat();
    let digest = same(
        Type::ZSet,
        5,
        &[
            (5, binary(scores)),
            (5, binary(minus_zero)),
            (3, counted(5, &texts)),
            (12, string(&ziplist(&packed))),
            (17, string(&listpack(&packed))),
            (17, lzf_literals(&listpack(&packed))),
        ],
    );
    let mut other = scores;
    other[3].1 = 0.2;
    assert_ne!(value(5, &binary(other)).digest, digest);
}

#[test]
fn stream_digest_depends_on_neither_generation_nor_when_consumers_were_seen() {
    let encodings = [
        (15, stream(1, 3)),
        (15, stream(1, 4)),
        (19, stream(2, 5)),
        (21, stream(3, 6)),
    ];
    let digest = same(Type::Stream, 4, &encodings);
    // The fourth layout is the third with what producers sent: without any, it is the same stream.
    let mut unused = stream(3, 6);
    unused.extend([0x40, 100, 0x40, 100, 0, 0, 0]);
    assert_eq!(value(26, &unused).digest, digest);
    assert_ne!(value(26, &stream(4, 6)).digest, digest);
}

#[test]
fn one_by_one_and_whole_agree_on_everything_of_a_file_with_all_types() {
    let bytes = all_types();
    let whole = read([&bytes[..]]).unwrap();
    assert_eq!(read(bytes.chunks(1)).unwrap(), whole);
    let mut seed = 7u64;
    for _ in 0..200 {
        let mut chunks = Vec::new();
        let mut rest = &bytes[..];
        while !rest.is_empty() {
            seed = seed
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1_442_695_040_888_963_407);
            let (chunk, tail) = rest.split_at((1 + (seed >> 33) as usize % 97).min(rest.len()));
            chunks.push(chunk);
            rest = tail;
        }
        assert_eq!(read(chunks).unwrap(), whole);
    }
    let (report, keys) = whole;
    assert_eq!((report.magic.as_str(), report.rdb_version), ("REDIS", 11));
    assert_eq!(report.bytes, bytes.len() as u64);
    assert!(matches!(report.checksum, Checksum::Verified(_)));
    assert_eq!(report.aux[0], (b"redis-ver".to_vec(), b"7.0.15".to_vec()));
    assert_eq!(report.functions[0].name.as_deref(), Some("lib"));
    assert_eq!(keys.functions, [b"#!lua name=lib\nreturn 1".to_vec()]);
    let totals = report.census.totals();
    assert_eq!((totals.keys, totals.expires), (28, 2));
    assert_eq!(totals.bytes, keys.keys.iter().map(|key| key.bytes).sum::<u64>());
    assert_eq!(report.census.dbs.keys().copied().collect::<Vec<_>>(), [0, 200]);
    assert_eq!(report.census.dbs[&0].types[&Type::String].keys, 4);
    assert_eq!(report.census.dbs[&0].ttl.buckets.iter().sum::<u64>(), 2);
    assert_eq!(keys.keys[3].expire_at_ms, Some(1_700_000_000_000));
    assert_eq!(keys.keys[5].expire_at_ms, Some(1_700_000_000_000));
    for pair in keys.keys.windows(2) {
        assert!(pair[0].offset + pair[0].bytes <= pair[1].offset);
    }
    for (key, first) in [(3, 252), (5, 253), (6, 3), (9, 9)] {
        assert_eq!(bytes[keys.keys[key].offset as usize], first);
    }
}

#[test]
fn database_digest_depends_on_keys_values_and_expiry_but_not_on_order() {
    let digest = |body: &[u8]| {
        let (report, _) = read([&file(10, &[&[254, 0], body].concat())[..]]).unwrap();
        report.census.dbs[&0].digest
    };
    let (a, b) = (entry(0, b"a", &string(b"1")), entry(0, b"b", &string(b"2")));
    let crossed = [entry(0, b"a", &string(b"2")), entry(0, b"b", &string(b"1"))].concat();
    let expiring = [&[252, 1, 0, 0, 0, 0, 0, 0, 0], &a[..], &b].concat();
    let idle = [&[248, 9], &a[..], &[249, 9], &b].concat();
    let plain = digest(&[a.clone(), b.clone()].concat());
    assert_eq!(digest(&[b, a.clone()].concat()), plain);
    assert_eq!(digest(&idle), plain);
    assert_ne!(digest(&crossed), plain);
    assert_ne!(digest(&expiring), plain);
    assert_ne!(digest(&a), plain);
}

#[test]
fn start_of_latest_key_is_its_first_opcode_and_not_the_database() {
    let mut validator = Validator::new();
    validator.feed(b"REDIS0010\xfe\x00\xfb\x02\x00", &mut ()).unwrap();
    assert_eq!((validator.last_key_start(), validator.offset()), (0, 14));
    validator
        .feed(&[&[248, 5], &entry(0, b"a", b"\x03abc")[..]].concat(), &mut ())
        .unwrap();
    assert_eq!((validator.last_key_start(), validator.keys_so_far()), (14, 1));
    validator.feed(b"\xfe\x01\x00\x01b", &mut ()).unwrap();
    assert_eq!((validator.last_key_start(), validator.keys_so_far()), (25, 1));
    assert!(!validator.is_complete());
}

#[test]
fn old_versions_have_no_checksum_and_zero_disables_it() {
    let (report, _) = read([&file(3, &entry(0, b"a", b"\x01b"))[..]]).unwrap();
    assert_eq!(report.checksum, Checksum::Disabled);
    let mut bytes = file(10, &entry(0, b"a", b"\x01b"));
    let end = bytes.len();
    bytes[end - 8..].fill(0);
    let (report, _) = read([&bytes[..]]).unwrap();
    assert_eq!(report.checksum, Checksum::Disabled);
}
