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
