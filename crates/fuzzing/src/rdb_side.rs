//! RDB files, and what is packed in them.

use std::io::Write as _;

use rdb::parallel::{Spills, validate_in_parts_of};
use rdb::{
    Compression, DumpValidator, Error, ErrorKind, Event, Family, KeyStart, KeySummary, Part, Report, Sink,
    Spill, Target, Validator, Writer,
};

use crate::{INPUT_BYTES_MAX, fixtures};

/// A value of every kind that is written down here is in a file of this version, which knows the most.
const HEADER: &[u8] = b"REDIS0013";
/// Bytes a validator may hold back: a key, a library, two strings that are expanded as a whole, and items.
const HELD_BYTES_MAX: usize = 8 * 1024 * 1024;

/// All that a sink is told, with long strings as if they had come whole.
#[derive(Default, PartialEq)]
struct Told {
    text: Vec<u8>,
    is_open: bool,
}

impl Told {
    fn string(&mut self, part: Part, bytes: &[u8]) {
        if !std::mem::replace(&mut self.is_open, true) {
            self.text.extend([0, part as u8]);
        }
        self.text.extend_from_slice(bytes);
    }

    fn end(&mut self) {
        self.is_open = false;
        self.text.push(0xff);
    }

    fn note(&mut self, what: &dyn std::fmt::Debug) {
        let _memory_takes_all = write!(self.text, "{what:?}");
    }
}

impl Sink for Told {
    const VALUES: bool = true;

    fn key(&mut self, key: &KeySummary<'_>) {
        self.note(key);
    }

    fn function(&mut self, code: &[u8]) {
        self.note(&code);
    }

    fn begin(&mut self, key: &KeyStart<'_>) {
        assert!(!self.is_open, "a value begins inside a string");
        self.note(key);
    }

    fn event(&mut self, event: Event<'_>) {
        match event {
            Event::Whole(part, bytes) => {
                assert!(!self.is_open, "a string inside a string");
                self.string(part, bytes);
                self.end();
            }
            // That it is long depends on how the bytes come.
            Event::Long(..) => assert!(!self.is_open, "a string inside a string"),
            Event::Piece(part, bytes) => self.string(part, bytes),
            Event::End(_) => self.end(),
            other => self.note(&other),
        }
    }
}

fn read(bytes: &[u8], chunk: usize) -> Result<(Report, Told), Error> {
    let (mut validator, mut told) = (Validator::new().accept_trailing_bytes(), Told::default());
    for piece in bytes.chunks(chunk) {
        validator.feed(piece, &mut told)?;
        assert!(validator.buffered_bytes() <= HELD_BYTES_MAX);
    }
    Ok((validator.finish()?, told))
}

/// Reads whole and in pieces, which must agree; a file whose checksum alone is wrong is read on without it.
fn check(bytes: &[u8]) -> Option<(Report, Told)> {
    let chunk = 1 + bytes.len() % 61;
    let (whole, pieces) = (read(bytes, bytes.len().max(1)), read(bytes, chunk));
    match (whole, pieces) {
        (Ok((report, told)), Ok((again, told_again))) => {
            assert_eq!(report, again);
            assert!(told == told_again, "whole and pieces tell different things");
            assert_eq!(report.bytes + report.trailing_bytes, bytes.len() as u64);
            Some((report, told))
        }
        (Err(one), Err(other)) => {
            for error in [&one, &other] {
                assert!(error.offset <= bytes.len() as u64, "{error}");
            }
            if let ErrorKind::ChecksumMismatch { .. } = one.kind {
                assert_eq!(one.kind, other.kind);
                let end = usize::try_from(one.offset).unwrap_or(usize::MAX).min(bytes.len());
                let mut without = bytes.to_vec();
                without[end.saturating_sub(8)..end].fill(0);
                return check(&without);
            }
            None
        }
        (Ok(_), Err(error)) => panic!("in pieces: {error}"),
        (Err(error), Ok(_)) => panic!("whole: {error}"),
    }
}

fn length(value: usize) -> Vec<u8> {
    [&[0x80], &(value as u32).to_be_bytes()[..]].concat()
}

/// A file of one key with this value, without a checksum.
fn around(code: u8, value: &[u8]) -> Vec<u8> {
    [HEADER, &[code, 1, b'k'], value, &[255], &[0; 8]].concat()
}

/// A valid file is also written for an old engine, for one of the other family and for its own: each file is valid in
/// turn, and has as many keys as were written.
pub(crate) fn file(input: &[u8]) {
    let Some((report, _)) = check(input) else {
        return;
    };
    let named = ["redis-6.2", "redis-7.4", "valkey-9.1"].map(Target::by_name);
    for (number, target) in named
        .into_iter()
        .flatten()
        .chain([Target::of(&report)])
        .enumerate()
    {
        let compression =
            [Compression::Keep, Compression::Expand, Compression::Compress][(number + input.len()) % 3];
        let read = |offset: u64, buffer: &mut [u8]| {
            let from = usize::try_from(offset).unwrap_or(usize::MAX);
            let bytes = input.get(from..).and_then(|rest| rest.get(..buffer.len()));
            buffer.copy_from_slice(bytes.ok_or(std::io::ErrorKind::UnexpectedEof)?);
            Ok(())
        };
        let writer = Writer::new(&report, target, compression, read, Vec::new());
        let mut through = Through {
            writer: writer.unwrap_or_else(|error| panic!("{error}")),
            failure: None,
        };
        // The checksum alone may be wrong, and comes last.
        let _read_before = Validator::new().feed(input, &mut through);
        assert!(through.failure.is_none(), "for {target:?}: {:?}", through.failure);
        let keys = through.writer.keys();
        let written = through.writer.finish().unwrap_or_default();
        match self::read(&written, written.len()) {
            Ok((again, _)) => assert_eq!(again.census.totals().keys, keys),
            Err(error) => panic!("for {target:?}: {error}"),
        }
    }
}

struct Through<R> {
    writer: Writer<R, Vec<u8>>,
    failure: Option<std::io::Error>,
}

impl<R: FnMut(u64, &mut [u8]) -> std::io::Result<()>> Sink for Through<R> {
    fn key(&mut self, key: &KeySummary<'_>) {
        if let Err(error) = self.writer.key(key, |_| {}) {
            self.failure.get_or_insert(error);
        }
    }

    fn function(&mut self, code: &[u8]) {
        if let Err(error) = self.writer.function(code, |_| {}) {
            self.failure.get_or_insert(error);
        }
    }
}

pub(crate) fn file_seeds() -> Vec<Vec<u8>> {
    let mut seeds = fixtures();
    for (code, value) in values() {
        seeds.push(around(code, &value));
    }
    seeds
}

/// Bytes of a part in which every input lies whole: what one thread accepts, two must accept.
const PART_BYTES: usize = 2 * INPUT_BYTES_MAX;
/// Bytes of a part with which an input is cut often. An item may be larger than that, so that only the other direction holds:
/// what two threads accept, one accepts, and they say the same of it.
const SMALL_PART_BYTES: usize = 2048;

type NoSpill = fn() -> std::io::Result<Box<dyn Spill + Send>>;

struct Nothing;

impl Sink for Nothing {
    fn key(&mut self, _: &KeySummary<'_>) {}
}

fn by_two(input: &[u8], part_bytes: usize) -> Option<Report> {
    let mut rest = input;
    let read = |buffer: &mut [u8]| std::io::Read::read(&mut rest, buffer);
    // No input has so many keys that a spill is needed.
    let spills = None::<Spills<NoSpill>>;
    let done = validate_in_parts_of(part_bytes, vec![Nothing, Nothing], spills, read);
    let done = done.unwrap_or_else(|error| panic!("nothing to fail here: {error}"));
    done.map(|(report, _)| report)
}

/// What is valid for one thread is valid for two, and they report the same.
pub(crate) fn threads(input: &[u8]) {
    let mut validator = Validator::new().accept_trailing_bytes();
    let fed = validator.feed(input, &mut Nothing);
    let one = fed.and_then(|()| validator.finish()).ok();
    let is_plain = one.as_ref().is_some_and(|report| report.warning_count == 0);
    let two = by_two(input, PART_BYTES);
    // Warnings that another thread comes upon have lost their order.
    assert!(two.is_some() || !is_plain, "two threads refuse what one accepts");
    for told in [two, by_two(input, SMALL_PART_BYTES)].into_iter().flatten() {
        assert_eq!(Some(told), one);
    }
}

/// As those of [`file`], and one that is cut into many parts of either size.
pub(crate) fn threads_seeds() -> Vec<Vec<u8>> {
    let mut seeds = file_seeds();
    let mut long = HEADER.to_vec();
    for number in 0..1500_u32 {
        let key = format!("key:{number:05}");
        long.extend([&[0, key.len() as u8], key.as_bytes(), &[5], b"value"].concat());
    }
    long.extend([&[255][..], &[0; 8]].concat());
    seeds.push(long);
    seeds
}

/// Feeds one packed value; by the high bit of the form, its total size is put right.
fn packed(input: &[u8], codes: &[u8]) {
    let Some((form, packed)) = input.split_first() else {
        return;
    };
    let code = codes[usize::from(form & 0x7f) % codes.len()];
    let mut packed = packed.to_vec();
    let size = packed.len() as u32;
    if let (true, Some(head)) = (*form & 0x80 == 0, packed.first_chunk_mut::<4>()) {
        *head = size.to_le_bytes();
    }
    let string = [length(packed.len()), packed].concat();
    let value = match code {
        14 => [&[1], &string[..]].concat(),
        18 => [&[1, 2], &string[..]].concat(),
        25 => [&[0; 8], &string[..]].concat(),
        _ => string,
    };
    check(&around(code, &value));
}

const LISTPACK_CODES: [u8; 6] = [16, 17, 18, 20, 23, 25];
const ZIPLIST_CODES: [u8; 5] = [10, 12, 13, 14, 9];

pub(crate) fn listpack(input: &[u8]) {
    packed(input, &LISTPACK_CODES);
}

pub(crate) fn ziplist(input: &[u8]) {
    packed(input, &ZIPLIST_CODES);
}

pub(crate) fn listpack_seeds() -> Vec<Vec<u8>> {
    let mut seeds = packed_seeds(&LISTPACK_CODES);
    let entries: &[&[u8]] = &[
        b"\x81a\x02\x05\x01",
        b"\x81f\x02\x81v\x02\xc1\x2c\x02\xf1\x00\x80\x03\xf2\x01\x02\x83\x04\xf3\x01\x02\x03\x84\x05",
        b"\xf4\x01\x02\x03\x04\x05\x06\x07\x88\x09\xe0\x03abc\x05",
        b"\xf0\x02\0\0\0ab\x07",
    ];
    for (form, entry) in entries.iter().enumerate() {
        seeds.push([&[form as u8], &[0; 4][..], &[0xff, 0xff], *entry, &[0xff]].concat());
    }
    seeds
}

pub(crate) fn ziplist_seeds() -> Vec<Vec<u8>> {
    let mut seeds = packed_seeds(&ZIPLIST_CODES);
    seeds.push(
        [
            &[0u8][..],
            &[0; 4],
            &13u32.to_le_bytes(),
            &[2, 0],
            b"\0\x01a\x03\xf5\xff",
        ]
        .concat(),
    );
    seeds.push(
        [
            &[0u8][..],
            &[0; 4],
            &10u32.to_le_bytes(),
            &[1, 0],
            b"\0\xc0\x01\x02\xff",
        ]
        .concat(),
    );
    seeds.push(
        [
            &[0u8][..],
            &[0; 4],
            &10u32.to_le_bytes(),
            &[1, 0],
            b"\0\xf0\x01\x02\x03\xff",
        ]
        .concat(),
    );
    // A zipmap has no total size.
    seeds.push(b"\x84\x01\x01f\x01\x02v\0\0\xff".to_vec());
    seeds
}

/// Packed values out of the fixtures, found by what stands before them.
fn packed_seeds(codes: &[u8]) -> Vec<Vec<u8>> {
    #[derive(Default)]
    struct Places(Vec<(u8, u64, u64)>);
    impl Sink for Places {
        fn key(&mut self, key: &KeySummary<'_>) {
            self.0.push((key.type_code, key.offset, key.bytes));
        }
    }
    let mut seeds = Vec::new();
    for bytes in fixtures() {
        let (mut validator, mut places) = (Validator::new(), Places::default());
        if validator.feed(&bytes, &mut places).is_err() {
            continue;
        }
        for (code, offset, size) in places.0 {
            let Some(form) = codes.iter().position(|known| *known == code) else {
                continue;
            };
            let entry = &bytes[offset as usize..][..size as usize];
            // An uncompressed packed value says its own size: look for it.
            for at in 0..entry.len().saturating_sub(4) {
                let rest = &entry[at..];
                if rest.starts_with(&(rest.len() as u32).to_le_bytes()) {
                    seeds.push([&[form as u8], rest].concat());
                }
            }
        }
    }
    seeds
}

/// LZF by its definition, one byte after the other.
fn expanded(input: &[u8]) -> Option<Vec<u8>> {
    let mut out: Vec<u8> = Vec::new();
    let mut bytes = input.iter().copied();
    while let Some(control) = bytes.next() {
        if control < 32 {
            for _ in 0..=control {
                out.push(bytes.next()?);
            }
            continue;
        }
        let mut count = usize::from(control >> 5) + 2;
        if count == 9 {
            count += usize::from(bytes.next()?);
        }
        let back = (usize::from(control & 31) << 8 | usize::from(bytes.next()?)) + 1;
        for _ in 0..count {
            out.push(*out.get(out.len().checked_sub(back)?)?);
        }
    }
    Some(out)
}

/// The input is a compressed string. What a second decoder makes of it, and nothing else, is accepted.
pub(crate) fn lzf(input: &[u8]) {
    let plain = expanded(input);
    let claims = match &plain {
        Some(plain) => vec![plain.len(), plain.len() + 1, plain.len().saturating_sub(1)],
        None => vec![1, 300, 300_000],
    };
    for claimed in claims {
        let value = [&[0xc3], &length(input.len())[..], &length(claimed), input].concat();
        let read = check(&around(0, &value));
        let right = plain
            .as_ref()
            .filter(|plain| plain.len() == claimed && claimed > 0);
        match (read, right) {
            (Some((_, told)), Some(right)) => {
                let mut expected = Told::default();
                expected.string(Part::Text, right);
                expected.end();
                let found = told
                    .text
                    .windows(expected.text.len())
                    .any(|window| window == expected.text);
                assert!(found, "another text than the second decoder's");
            }
            (None, None) => {}
            (read, _) => panic!("accepted: {}, claim of {claimed}", read.is_some()),
        }
    }
}

pub(crate) fn lzf_seeds() -> Vec<Vec<u8>> {
    vec![
        b"\x02abc".to_vec(),
        b"\x01ab\xe0\xff\x01\x40\x00".to_vec(),
        b"\x00a\xe0\xff\x00\xe0\xff\x00\x3f\xff\x02xyz".to_vec(),
        [&b"\x00a"[..], &b"\xe0\xff\x00".repeat(1100)].concat(),
    ]
}

const STREAM_CODES: [u8; 4] = [15, 19, 21, 26];

/// The input is a layout, and the bytes of a stream.
pub(crate) fn stream(input: &[u8]) {
    if let Some((form, value)) = input.split_first() {
        check(&around(
            STREAM_CODES[usize::from(*form) % STREAM_CODES.len()],
            value,
        ));
    }
}

pub(crate) fn stream_seeds() -> Vec<Vec<u8>> {
    values()
        .into_iter()
        .filter_map(|(code, value)| {
            let form = STREAM_CODES.iter().position(|known| *known == code)?;
            Some([&[form as u8], &value[..]].concat())
        })
        .collect()
}

/// The input is a payload of DUMP, once as it is and once with its checksum put right.
pub(crate) fn dump(input: &[u8]) {
    let mut mended = input.to_vec();
    if let Some((body, checksum)) = mended.split_last_chunk_mut::<8>() {
        *checksum = rdb::crc64(body).to_le_bytes();
    }
    for bytes in [input, &mended] {
        for family in [Family::Redis, Family::Valkey] {
            let read = |chunk| {
                let mut validator = DumpValidator::new(bytes.len() as u64, family);
                for piece in bytes.chunks(chunk) {
                    validator.feed(piece)?;
                    assert!(validator.buffered_bytes() <= HELD_BYTES_MAX);
                }
                validator.finish()
            };
            let (whole, pieces) = (read(bytes.len().max(1)), read(1 + bytes.len() % 17));
            match (whole, pieces) {
                (Ok(whole), Ok(pieces)) => assert_eq!(whole, pieces),
                (Err(_), Err(_)) => {}
                (whole, pieces) => panic!("whole {whole:?}, in pieces {pieces:?}"),
            }
        }
    }
}

pub(crate) fn dump_seeds() -> Vec<Vec<u8>> {
    let footer = |code: u8| if code == 122 { [80, 0] } else { [11, 0] };
    values()
        .into_iter()
        .map(|(code, value)| [&[code], &value[..], &footer(code), &[0; 8]].concat())
        .collect()
}

/// A value of the kinds that the fixtures hold packed only, or not at all.
fn values() -> Vec<(u8, Vec<u8>)> {
    let mut values: Vec<(u8, Vec<u8>)> = vec![
        (0, b"\x05plain".to_vec()),
        (0, b"\xc1\x39\x30".to_vec()),
        (1, b"\x02\x01x\xc0\x07".to_vec()),
        (2, b"\x02\x01x\x01y".to_vec()),
        (3, b"\x02\x01a\x032.5\x01b\xfe".to_vec()),
        (4, b"\x01\x01f\x01v".to_vec()),
        (5, [&b"\x01\x01a"[..], &2.5f64.to_le_bytes()].concat()),
        (11, b"\x10\x04\0\0\0\x02\0\0\0\x01\0\0\0\x07\0\0\0".to_vec()),
        (
            7,
            b"\x81\x44\x8a\x78\x2c\x25\x34\xa8\x03\x02\x07\x05\x02ab\x00".to_vec(),
        ),
        (
            22,
            b"\x02\x81\0\0\x01\xba\x5b\x1b\x17\x80\x01f\x01v\0\x01g\x01v".to_vec(),
        ),
        (
            24,
            b"\0\x20\x1b\x5b\xba\x01\0\0\x02\x01\x01f\x01v\0\x01g\x01v".to_vec(),
        ),
    ];
    for (form, code) in STREAM_CODES.iter().enumerate() {
        values.push((*code, one_stream(form + 1)));
    }
    values
}

/// A stream of one entry, and a group with a consumer that has it.
fn one_stream(generation: usize) -> Vec<u8> {
    let id = [1000u64.to_be_bytes(), 9u64.to_be_bytes()].concat();
    let items: &[u8] = b"\x01\x01\x00\x01\x01\x01\x81a\x02\x00\x01\x02\x01\x00\x01\x00\x01\x811\x02\x04\x01";
    let node = [
        &(items.len() as u32 + 7).to_le_bytes()[..],
        &[10, 0],
        items,
        &[0xff],
    ]
    .concat();
    let mut out = [&[1, 16], &id[..], &[node.len() as u8], &node].concat();
    // The length, and the last id; then the first, the greatest that was deleted, and entries added.
    out.extend(b"\x01\x43\xe8\x09");
    if generation >= 2 {
        out.extend(b"\x43\xe8\x09\x00\x00\x01");
    }
    out.extend(b"\x01\x01g\x43\xe8\x09");
    if generation >= 2 {
        out.extend(b"\x01");
    }
    out.extend(
        [
            &[1],
            &id[..],
            &1_700_000_000_000u64.to_le_bytes(),
            &[1, 1, 1, b'c'],
            &[3; 8],
        ]
        .concat(),
    );
    if generation >= 3 {
        out.extend([3; 8]);
    }
    out.extend([&[1], &id[..]].concat());
    if generation >= 4 {
        out.extend(b"\x40\x64\x40\x64\x01\x01p\x01\x01m\x43\xe8\x09\x01\x00");
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_hand_made_values_are_valid() {
        for (code, value) in values() {
            let read = read(&around(code, &value), 1000);
            assert!(read.is_ok(), "type {code}: {}", read.map(drop).unwrap_err());
        }
        assert!(packed_seeds(&LISTPACK_CODES).len() > 10);
    }

    #[test]
    fn the_second_decoder_repeats_what_overlaps() {
        assert_eq!(expanded(b"\x01ab\x40\x01").unwrap(), b"ababab");
        assert_eq!(expanded(b"\x01a"), None);
        assert_eq!(expanded(b"\x20\x00"), None);
    }
}
