//! `docs/rdb-coverage.md`: what becomes of every number of the format, found out by trying.

use crate::build::*;
use rdb::Family;

const DOCUMENT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/rdb-coverage.md");
/// Set to write the document instead of comparing it.
const WRITE: &str = "CACHEKEEP_WRITE_COVERAGE";
const TESTS: [&str; 6] = [
    include_str!("encodings.rs"),
    include_str!("engine.rs"),
    include_str!("fixtures.rs"),
    include_str!("refusals.rs"),
    include_str!("values.rs"),
    include_str!("versions.rs"),
];

/// Numbers whose content is passed over by its structure.
const SKIPPED: [u8; 3] = [7, 244, 247];

/// Names and the tests that show what is said of them.
const NAMES: [(u8, &str, &str); 47] = [
    (0, "STRING", "string_digest_does_not_depend_on_encoding"),
    (1, "LIST", "list_digest_depends_on_order_but_not_on_encoding"),
    (2, "SET", "set_digest_depends_on_neither_order_nor_encoding"),
    (3, "ZSET", "sorted_set_digest_depends_on_scores_as_numbers"),
    (4, "HASH", "hash_digest_depends_on_neither_order_nor_encoding"),
    (5, "ZSET_2", "sorted_set_digest_depends_on_scores_as_numbers"),
    (6, "MODULE (pre-release)", LATER),
    (7, "MODULE_2", "modules_are_skipped_and_named"),
    (
        9,
        "HASH_ZIPMAP",
        "hash_digest_depends_on_neither_order_nor_encoding",
    ),
    (
        10,
        "LIST_ZIPLIST",
        "list_digest_depends_on_order_but_not_on_encoding",
    ),
    (
        11,
        "SET_INTSET",
        "set_digest_depends_on_neither_order_nor_encoding",
    ),
    (
        12,
        "ZSET_ZIPLIST",
        "sorted_set_digest_depends_on_scores_as_numbers",
    ),
    (
        13,
        "HASH_ZIPLIST",
        "hash_digest_depends_on_neither_order_nor_encoding",
    ),
    (
        14,
        "LIST_QUICKLIST",
        "list_digest_depends_on_order_but_not_on_encoding",
    ),
    (15, "STREAM_LISTPACKS", STREAMS),
    (
        16,
        "HASH_LISTPACK",
        "hash_digest_depends_on_neither_order_nor_encoding",
    ),
    (
        17,
        "ZSET_LISTPACK",
        "sorted_set_digest_depends_on_scores_as_numbers",
    ),
    (
        18,
        "LIST_QUICKLIST_2",
        "list_digest_depends_on_order_but_not_on_encoding",
    ),
    (19, "STREAM_LISTPACKS_2", STREAMS),
    (
        20,
        "SET_LISTPACK",
        "set_digest_depends_on_neither_order_nor_encoding",
    ),
    (21, "STREAM_LISTPACKS_3", STREAMS),
    (22, "HASH_METADATA (pre-release) / HASH_2", FIELDS),
    (23, "HASH_LISTPACK_EX (pre-release) / PATH_HASH", FIELDS),
    (24, "HASH_METADATA", FIELDS),
    (25, "HASH_LISTPACK_EX", FIELDS),
    (26, "STREAM_LISTPACKS_4", STREAMS),
    (27, "STREAM_LISTPACKS_5", LATER),
    (28, "ARRAY", LATER),
    (29, "HASH_TMPL_LP", LATER),
    (30, "HASH_TMPL_LP_REF", LATER),
    (31, "HASH_TMPL_ARRAY", LATER),
    (32, "HASH_TMPL_ARRAY_REF", LATER),
    (33, "GCRA", LATER),
    (242, "UPDATE", LATER),
    (
        243,
        "KEY_META / SLOT_IMPORT",
        "numbers_that_both_families_use_are_read_by_the_magic",
    ),
    (244, "SLOT_INFO", "slots_are_counted_and_their_numbers_checked"),
    (245, "FUNCTION2", ALL),
    (
        246,
        "FUNCTION (pre-release)",
        "a_library_of_a_pre_release_reads_like_one_of_the_release",
    ),
    (247, "MODULE_AUX", "modules_are_skipped_and_named"),
    (248, "IDLE", ALL),
    (249, "FREQ", ALL),
    (250, "AUX", ALL),
    (
        251,
        "RESIZEDB",
        "a_database_announced_with_far_more_keys_than_it_has_is_a_warning",
    ),
    (252, "EXPIRETIME_MS", ALL),
    (253, "EXPIRETIME", ALL),
    (254, "SELECTDB", ALL),
    (255, "EOF", ALL),
];
const STREAMS: &str = "stream_digest_depends_on_neither_generation_nor_when_consumers_were_seen";
const FIELDS: &str = "field_expiry_counts_and_reads_alike_in_every_encoding_of_both_families";
const LATER: &str = "later_and_unknown_codes_are_refused_by_number_at_their_offset";
const ALL: &str = "one_by_one_and_whole_agree_on_everything_of_a_file_with_all_types";

/// Bytes in which the number has a meaning, if it has one.
fn sample(family: Family, code: u8) -> Vec<u8> {
    let key = entry(0, b"k", b"\x01v");
    match code {
        22 if family == Family::Valkey => entry(22, b"k", &expiring_hash(22, family)),
        243 => [&[243], &string(b"job")[..], &[1, 0, 5]].concat(),
        244 => vec![244, 1, 5, 0],
        245 => [&[245], &string(b"#!lua name=l\nreturn 1")[..]].concat(),
        246 => [
            &[246],
            &string(b"lib")[..],
            &string(b"LUA"),
            &[0],
            &string(b"return 1"),
        ]
        .concat(),
        247 => module_aux(b"Aux-only0"),
        248 | 249 => [&[code, 9], &key[..]].concat(),
        250 => [&[250], &string(b"name")[..], &string(b"value")].concat(),
        251 => vec![251, 1, 1],
        252 => [&[252], &[1; 8][..], &key].concat(),
        253 => [&[253], &[1; 4][..], &key].concat(),
        254 => vec![254, 3],
        255 => Vec::new(),
        _ => match values().into_iter().find(|(of, _)| *of == code) {
            Some((_, value)) => entry(code, b"k", &value),
            None => [&[code][..], &[0; 20]].concat(),
        },
    }
}

fn outcome(family: Family, code: u8) -> &'static str {
    let version = match family {
        Family::Redis => 13,
        Family::Valkey => 80,
    };
    match read([&file_of(family, version, &sample(family, code))[..]]) {
        Ok(_) if SKIPPED.contains(&code) => "skipped",
        Ok(_) => "decoded",
        Err(error) => {
            let name = error.kind.name();
            assert!(
                ["unsupported", "unknown_type", "unknown_opcode"].contains(&name),
                "{family:?} {code}: {error}"
            );
            "refused"
        }
    }
}

#[test]
fn the_document_says_what_becomes_of_every_number() {
    let mut text = "# RDB coverage\n\n\
        Written by the test `the_document_says_what_becomes_of_every_number` from what it tried; set \
        `CACHEKEEP_WRITE_COVERAGE=1` to have it written anew.\n\n\
        Headers read: `REDIS` 1 to 13, `VALKEY` 80. All others are refused with their number and, where known, their \
        writer.\n\
        *decoded*: read to its last element. *skipped*: read by its structure, named and counted, content not \
        understood. *refused*: by number, at its offset; nothing after it is read.\n\n\
        | number | name | REDIS 1-13 | VALKEY 80 | shown by |\n|---|---|---|---|---|\n"
        .to_owned();
    let mut unnamed: Option<(u8, u8)> = None;
    let flush = |unnamed: &mut Option<(u8, u8)>, text: &mut String| {
        if let Some((first, last)) = unnamed.take() {
            let numbers = if first == last {
                first.to_string()
            } else {
                format!("{first}-{last}")
            };
            text.push_str(&format!("| {numbers} | none | refused | refused | `{LATER}` |\n"));
        }
    };
    for code in 0..=255 {
        let (redis, valkey) = (outcome(Family::Redis, code), outcome(Family::Valkey, code));
        match NAMES.iter().find(|(of, _, _)| *of == code) {
            Some((_, name, test)) => {
                assert!(
                    TESTS.iter().any(|source| source.contains(&format!("fn {test}("))),
                    "no test {test}"
                );
                flush(&mut unnamed, &mut text);
                text.push_str(&format!("| {code} | {name} | {redis} | {valkey} | `{test}` |\n"));
            }
            None => {
                assert_eq!((redis, valkey), ("refused", "refused"), "{code}");
                unnamed = Some((unnamed.map_or(code, |(first, _)| first), code));
            }
        }
    }
    flush(&mut unnamed, &mut text);
    if std::env::var_os(WRITE).is_some() {
        std::fs::write(DOCUMENT, &text).unwrap();
    }
    let written = std::fs::read_to_string(DOCUMENT).unwrap_or_default();
    assert!(
        written == text,
        "docs/rdb-coverage.md is stale: run this test with {WRITE}=1"
    );
}
