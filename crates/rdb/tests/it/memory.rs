//! Values far larger than memory should be.

use crate::build::*;
use rdb::{DumpValidator, Validator};

const MIB: usize = 1024 * 1024;
/// What a validator may hold back at any time.
const BUFFERED_MAX: usize = 2 * MIB;

/// Feeds a head, `size` bytes of filler and a tail, and returns the digest of the only key.
fn digest(head: &[u8], size: usize, tail: &[u8], chunk: usize) -> rdb::Digest {
    let (mut validator, mut keys) = (Validator::new(), Keys::default());
    let start = [b"REDIS0011", head].concat();
    validator.feed(&start, &mut keys).unwrap();
    let filler = vec![b'x'; chunk];
    let mut left = size;
    while left > 0 {
        let take = left.min(chunk);
        validator.feed(&filler[..take], &mut keys).unwrap();
        assert!(validator.buffered_bytes() < BUFFERED_MAX);
        left -= take;
    }
    // A checksum of zero is none.
    validator
        .feed(&[tail, &[255], &[0; 8]].concat(), &mut keys)
        .unwrap();
    validator.finish().unwrap();
    assert_eq!(keys.keys[0].elements, 1);
    keys.keys[0].digest
}

#[test]
fn string_of_600_mb_is_not_buffered_whatever_its_encoding() {
    let size = 600 * MIB;
    let plain = digest(
        &[&[0, 1, b'k'], &length(size as u64)[..]].concat(),
        size,
        &[],
        3 * MIB + 7,
    );

    // The same string compressed: one literal, then references to the byte before, of 264 bytes each.
    let references = (size - 8) / 264;
    assert_eq!(8 + references * 264 + (size - 8) % 264, size);
    let mut packed = [&[7][..], &[b'x'; 8]].concat();
    packed.extend([0xe0, 255, 0].repeat(references));
    packed.extend([0xe0, ((size - 8) % 264 - 9) as u8, 0]);
    let mut payload = [
        &[0, 0xc3],
        &length(packed.len() as u64)[..],
        &length(size as u64),
        &packed,
        &[10, 0],
    ]
    .concat();
    payload.extend(rdb::crc64(&payload).to_le_bytes());
    let mut validator = DumpValidator::new(payload.len() as u64, rdb::Family::Redis);
    for chunk in payload.chunks(10_007) {
        validator.feed(chunk).unwrap();
        assert!(validator.buffered_bytes() < BUFFERED_MAX);
    }
    let summary = validator.finish().unwrap();
    assert_eq!(summary.value_digest, plain);
}

#[test]
fn list_item_of_300_mb_is_not_buffered_whatever_its_node() {
    let size = 300 * MIB;
    let plain = [&[18, 1, b'k', 1, 1], &length(size as u64)[..]].concat();
    let plain = digest(&plain, size, &[], 64 * 1024);

    let entry = size + 5;
    let head = [
        &(entry as u32 + 12).to_le_bytes()[..],
        &[1, 0, 0xf0],
        &(size as u32).to_le_bytes(),
    ]
    .concat();
    let group = |i: usize| (entry >> (7 * i) & 0x7f) as u8 | if i < 4 { 0x80 } else { 0 };
    let tail: Vec<u8> = (0..5).rev().map(group).chain([0xff]).collect();
    // The leftmost group has no mark, all others do.
    let tail: Vec<u8> = tail
        .iter()
        .enumerate()
        .map(|(i, b)| if i == 0 || i == 5 { *b } else { b | 0x80 })
        .collect();
    let node = (head.len() + size + tail.len()) as u64;
    let head = [&[18, 1, b'k', 1, 2], &length(node)[..], &head].concat();
    assert_eq!(digest(&head, size, &tail, MIB), plain);
}

#[test]
fn key_beyond_the_limit_is_cut_but_counted_whole() {
    struct Lengths(usize, u64);
    impl rdb::Sink for Lengths {
        fn key(&mut self, key: &rdb::KeySummary<'_>) {
            (self.0, self.1) = (key.key.len(), key.key_bytes);
        }
    }
    for size in [rdb::KEY_BYTES_MAX, rdb::KEY_BYTES_MAX + 1, 20 * MIB] {
        let bytes = file(10, &entry(0, &vec![b'k'; size], b"\x01v"));
        let mut censuses = Vec::new();
        for chunk in [100_000, bytes.len()] {
            let (mut validator, mut lengths) = (Validator::new(), Lengths(0, 0));
            for piece in bytes.chunks(chunk) {
                validator.feed(piece, &mut lengths).unwrap();
                assert!(validator.buffered_bytes() < BUFFERED_MAX);
            }
            assert_eq!(
                (lengths.0, lengths.1),
                (size.min(rdb::KEY_BYTES_MAX), size as u64)
            );
            censuses.push(validator.finish().unwrap().census);
        }
        assert_eq!(censuses[0], censuses[1]);
    }
}
