//! Damaged bytes: cut, flipped, continued.

use crate::build::*;
use rdb::{ErrorKind, Validator};

#[test]
fn every_prefix_is_truncated() {
    let bytes = all_types();
    for end in 0..bytes.len() {
        let error = read([&bytes[..end]]).unwrap_err();
        assert_eq!(
            (error.kind, error.offset),
            (ErrorKind::Truncated, end as u64),
            "prefix of {end}"
        );
    }
}

#[test]
fn every_flip_is_refused() {
    let bytes = all_types();
    let flips = (0..8).map(|bit| 1u8 << bit).chain([0xff, 0x7f]);
    for flip in flips {
        for at in 0..bytes.len() {
            let mut damaged = bytes.clone();
            damaged[at] ^= flip;
            assert!(read([&damaged[..]]).is_err(), "byte {at} with {flip:#x}");
            if flip == 0xff {
                assert!(
                    read(damaged.chunks(5)).is_err(),
                    "byte {at} with {flip:#x}, in pieces"
                );
            }
        }
    }
}

#[test]
fn flips_under_a_disabled_checksum_never_panic_and_read_alike_in_pieces() {
    let mut bytes = all_types();
    let end = bytes.len();
    bytes[end - 8..].fill(0);
    let mut accepted = 0;
    for at in 0..bytes.len() {
        for flip in [1u8, 2, 4, 8, 16, 32, 64, 128, 0xff] {
            let mut damaged = bytes.clone();
            damaged[at] ^= flip;
            let whole = read([&damaged[..]]);
            accepted += u32::from(whole.is_ok());
            match (whole, read(damaged.chunks(3))) {
                (Ok(whole), Ok(pieces)) => assert_eq!(whole, pieces, "byte {at} with {flip:#x}"),
                (Err(_), Err(_)) => {}
                _ => panic!("byte {at} with {flip:#x}: whole and pieces disagree"),
            }
        }
    }
    assert!(accepted > 0);
}

#[test]
fn bytes_after_the_end_are_refused_and_the_error_stays() {
    let bytes = all_types();
    let mut validator = Validator::new();
    validator.feed(&bytes, &mut ()).unwrap();
    assert!(validator.is_complete());
    let error = validator.feed(b"x", &mut ()).unwrap_err();
    assert_eq!(
        (&error.kind, error.offset),
        (&ErrorKind::TrailingBytes, bytes.len() as u64)
    );
    assert_eq!(validator.feed(b"", &mut ()).unwrap_err(), error);
    assert_eq!(validator.finish().unwrap_err(), error);
}

#[test]
fn damaged_dump_payloads_are_refused() {
    let payload = dump(0, &string(b"text"));
    assert!(read_dump(&payload, 3).is_ok());
    for end in 0..payload.len() {
        assert!(read_dump(&payload[..end], 3).is_err(), "prefix of {end}");
    }
    for at in 0..payload.len() {
        let mut damaged = payload.clone();
        damaged[at] ^= 0x10;
        assert!(read_dump(&damaged, 3).is_err(), "byte {at}");
    }
    let mut version = [&[0], &string(b"text")[..], &[14, 0]].concat();
    version.extend(rdb::crc64(&version).to_le_bytes());
    let error = read_dump(&version, 100).unwrap_err();
    assert_eq!(
        error.kind,
        ErrorKind::UnsupportedVersion {
            family: rdb::Family::Redis,
            version: 14
        }
    );
    let error = read_dump(&dump(0, b"\x01ab"), 100).unwrap_err();
    assert_eq!(error.kind, ErrorKind::TrailingBytes);
    let mut validator = rdb::DumpValidator::new(payload.len() as u64, rdb::Family::Redis);
    validator.feed(&payload).unwrap();
    assert_eq!(validator.feed(b"x").unwrap_err().kind, ErrorKind::TrailingBytes);
}

/// Wants everything and keeps nothing.
#[derive(Default)]
struct Devouring {
    keys: u64,
    bytes: u64,
}

impl rdb::Sink for Devouring {
    const VALUES: bool = true;

    fn key(&mut self, _key: &rdb::KeySummary<'_>) {
        self.keys += 1;
    }

    fn event(&mut self, event: rdb::Event<'_>) {
        if let rdb::Event::Whole(_, bytes) | rdb::Event::Piece(_, bytes) = event {
            self.bytes += bytes.len() as u64;
        }
    }
}

fn resident_bytes() -> u64 {
    let text = std::fs::read_to_string("/proc/self/statm").unwrap();
    text.split(' ').nth(1).unwrap().parse::<u64>().unwrap() * 4096
}

/// Every prefix, and every byte with three other values and the checksum mended: of each fixture and of the
/// hand-built file. The short form takes every thirteenth place.
#[test]
fn damaged_files_of_real_engines_end_in_time_in_bounded_memory_with_an_offset() {
    use std::time::{Duration, Instant};
    const GROWTH_MAX: u64 = 64 * 1024 * 1024;
    let is_long = std::env::var("CACHEKEEP_TEST_LONG").is_ok_and(|long| long == "1");
    let step = if is_long { 1 } else { 13 };
    let (mut inputs, mut accepted, mut slowest) = (0u64, 0u64, Duration::ZERO);
    let mut try_one = |bytes: &[u8], chunk: usize| {
        let (mut validator, mut sink) = (Validator::new().accept_trailing_bytes(), Devouring::default());
        let started = Instant::now();
        let mut outcome = Ok(());
        for piece in bytes.chunks(chunk) {
            outcome = validator.feed(piece, &mut sink);
            assert!(validator.buffered_bytes() < 2 * 1024 * 1024);
            if outcome.is_err() {
                break;
            }
        }
        match outcome.and_then(|()| validator.finish().map(|_| ())) {
            Ok(()) => accepted += 1,
            Err(error) => assert!(error.offset <= bytes.len() as u64, "{error}"),
        }
        slowest = slowest.max(started.elapsed());
        inputs += 1;
    };
    let whole = all_types();
    let files = crate::fixtures::FIXTURES.map(|(_, bytes)| bytes);
    let before = resident_bytes();
    for bytes in files.into_iter().chain([&whole[..]]) {
        for at in (0..bytes.len()).step_by(step) {
            try_one(&bytes[..at], 4096);
            for flip in [0x01, 0x80, 0xff] {
                let mut damaged = bytes[..bytes.len() - 8].to_vec();
                let Some(byte) = damaged.get_mut(at) else { continue };
                *byte ^= flip;
                try_one(&sealed(&damaged), if flip == 1 { 61 } else { 4096 });
            }
        }
    }
    let growth = resident_bytes().saturating_sub(before);
    eprintln!(
        "{inputs} damaged inputs, {accepted} accepted, slowest {slowest:?}, memory grew by {growth} bytes"
    );
    assert!(inputs >= if is_long { 200_000 } else { 15_000 });
    assert!(slowest < Duration::from_secs(1) && growth < GROWTH_MAX);
}
