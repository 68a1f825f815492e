//! `Entries` and `PayloadWriter` against the validator: the same keys at the same places, and payloads of the same values.

use rdb::{
    Copied, Digest, DumpValidator, Entries, Family, KeySummary, PayloadWriter, Report, Taker, Target,
    Validator,
};

use crate::fixtures::FIXTURES;

/// Small enough that some of the fixtures' values are above it.
const SMALL: usize = 200;

#[derive(Debug, Clone, PartialEq)]
struct Seen {
    db: u32,
    key: Vec<u8>,
    type_code: u8,
    expire_at_ms: Option<i64>,
    offset: u64,
    bytes: u64,
    digest: Digest,
}

/// What the validator says.
fn validated(bytes: &[u8]) -> (Report, Vec<Seen>) {
    struct All(Vec<Seen>);
    impl rdb::Sink for All {
        fn key(&mut self, key: &KeySummary<'_>) {
            self.0.push(seen(key));
        }
    }
    let (mut validator, mut all) = (Validator::new(), All(Vec::new()));
    validator.feed(bytes, &mut all).unwrap();
    (validator.finish().unwrap(), all.0)
}

fn seen(key: &KeySummary<'_>) -> Seen {
    Seen {
        db: key.db,
        key: key.key.to_vec(),
        type_code: key.type_code,
        expire_at_ms: key.expire_at_ms,
        offset: key.offset,
        bytes: key.bytes,
        digest: key.value_digest,
    }
}

/// The digest of the value in a payload, judged as one.
fn digest_of(payload: &[u8], family: Family) -> Digest {
    let mut validator = DumpValidator::new(payload.len() as u64, family);
    validator.feed(payload).unwrap();
    validator.finish().unwrap().value_digest
}

struct Told {
    family: Family,
    target: Target,
    keys: Vec<Seen>,
    copied: usize,
    functions: usize,
}

impl Taker for Told {
    fn copied(&mut self, entry: &Copied<'_>) {
        let mut payload = vec![entry.type_code];
        payload.extend_from_slice(entry.value);
        rdb::push_footer(&mut payload, 0, self.target);
        assert_eq!(payload.len(), 1 + entry.value.len() + rdb::FOOTER_BYTES);
        self.copied += 1;
        self.keys.push(Seen {
            db: entry.db,
            key: entry.key.to_vec(),
            type_code: entry.type_code,
            expire_at_ms: entry.expire_at_ms,
            offset: entry.offset,
            bytes: entry.bytes,
            digest: digest_of(&payload, self.family),
        });
    }

    fn read(&mut self, key: &KeySummary<'_>) {
        self.keys.push(seen(key));
    }

    fn function(&mut self, _code: &[u8]) {
        self.functions += 1;
    }
}

#[test]
fn entries_are_those_that_the_validator_tells_however_they_are_cut() {
    for (name, bytes) in FIXTURES {
        let (report, expected) = validated(bytes);
        let target = Target::of(&report);
        for copied_bytes_max in [0, SMALL, 1 << 20] {
            for piece in [1, 7, 1000, bytes.len()] {
                let mut told = Told {
                    family: report.family,
                    target,
                    keys: Vec::new(),
                    copied: 0,
                    functions: 0,
                };
                let mut entries = Entries::new(Some(target), copied_bytes_max);
                for piece in bytes.chunks(piece) {
                    entries.feed(piece, &mut told).unwrap();
                }
                assert_eq!(
                    told.keys, expected,
                    "{name}, {copied_bytes_max}, pieces of {piece}"
                );
                assert_eq!(told.functions, report.functions.len());
                match copied_bytes_max {
                    0 => assert_eq!(told.copied, 0),
                    SMALL => assert!(told.copied > 0 && told.copied < expected.len()),
                    _ => assert_eq!(told.copied, expected.len(), "{name}"),
                }
            }
        }
    }
}

#[test]
fn reading_goes_on_at_any_entry() {
    let (name, bytes) = FIXTURES[0];
    let (report, expected) = validated(bytes);
    let target = Target::of(&report);
    for (at, from) in expected.iter().enumerate() {
        let mut told = Told {
            family: report.family,
            target,
            keys: Vec::new(),
            copied: 0,
            functions: 0,
        };
        // As whoever goes on knows it: the database of the entry before. A file selects before it changes.
        let end = if at == 0 { continue } else { &expected[at - 1] };
        let offset = end.offset + end.bytes;
        let mut entries = Entries::resume(&report, offset, end.db, Some(target), SMALL).unwrap();
        entries
            .feed(&bytes[usize::try_from(offset).unwrap()..], &mut told)
            .unwrap();
        assert_eq!(told.keys, expected[at..], "{name} from {:?}", from.key);
    }
}

#[test]
fn payloads_for_every_target_hold_the_value_that_the_file_has() {
    let (mut made, mut left_out) = (0, 0);
    for (name, bytes) in FIXTURES {
        struct Each<'a> {
            bytes: &'a [u8],
            family: Family,
            target: Target,
            counts: (u64, u64),
        }
        impl rdb::Sink for Each<'_> {
            fn key(&mut self, key: &KeySummary<'_>) {
                let bytes = self.bytes;
                let read = |offset: u64, buffer: &mut [u8]| {
                    let from = usize::try_from(offset).unwrap();
                    buffer.copy_from_slice(&bytes[from..from + buffer.len()]);
                    Ok(())
                };
                let mut writer = PayloadWriter::new(self.family, self.target, read).unwrap();
                let (mut payload, mut losses) = (b"before".to_vec(), Vec::new());
                let header = writer
                    .payload(key, &mut payload, |loss| losses.push(loss.is_left_out))
                    .unwrap();
                if losses.contains(&true) {
                    assert_eq!((header, &payload[..]), (None, &b"before"[..]));
                    self.counts.1 += 1;
                    return;
                }
                assert!(header.is_some());
                let digest = digest_of(&payload[6..], self.target.family());
                // A stream without what an older layout does not take has another digest.
                assert!(digest == key.value_digest || !losses.is_empty(), "{:?}", key.key);
                self.counts.0 += 1;
            }
        }
        let (report, _) = validated(bytes);
        for (target, ..) in rdb::TARGETS {
            let mut each = Each {
                bytes,
                family: report.family,
                target: Target::by_name(target).unwrap(),
                counts: (0, 0),
            };
            Validator::new().feed(bytes, &mut each).unwrap();
            assert!(each.counts.0 > 40, "{name} for {target}");
            made += each.counts.0;
            left_out += each.counts.1;
        }
    }
    assert!(made > 4000 && left_out > 0, "{made} made, {left_out} left out");
}
