//! A file read by several threads is what it is when one reads it.

use rdb::parallel::{Spills, validate_in_parts_of};
use rdb::{Census, KeySummary, Report, Sink, Spill, Validator};

use crate::build::{all_types, counted, entry, file, file_of, length, string};

/// Small enough that files of a few hundred kilobytes are cut; larger than any item that is waited for.
const PART_BYTES: usize = 32 * 1024;

#[derive(Default)]
struct Kept(Vec<u8>);

impl Spill for Kept {
    fn append(&mut self, bytes: &[u8]) -> std::io::Result<()> {
        self.0.extend_from_slice(bytes);
        Ok(())
    }

    fn read_at(&mut self, offset: u64, buffer: &mut [u8]) -> std::io::Result<()> {
        let start = usize::try_from(offset).map_err(std::io::Error::other)?;
        buffer.copy_from_slice(&self.0[start..start + buffer.len()]);
        Ok(())
    }

    fn clear(&mut self) -> std::io::Result<()> {
        self.0.clear();
        Ok(())
    }
}

/// Everything that is told of each key.
#[derive(Default, Debug, PartialEq)]
struct Told(Vec<String>);

impl Sink for Told {
    fn key(&mut self, key: &KeySummary<'_>) {
        self.0.push(format!("{:012} {key:?}", key.offset));
    }
}

fn by_threads(bytes: &[u8], readers: usize, piece: usize) -> Option<(Report, Told)> {
    let mut rest = bytes;
    let read = |buffer: &mut [u8]| {
        let count = buffer.len().min(rest.len()).min(piece);
        buffer[..count].copy_from_slice(&rest[..count]);
        rest = &rest[count..];
        Ok(count)
    };
    let spills = Spills {
        keys: Box::<Kept>::default(),
        members: || Ok(Box::<Kept>::default() as Box<_>),
    };
    let sinks = (0..=readers).map(|_| Told::default()).collect();
    let (report, sinks) = validate_in_parts_of(PART_BYTES, sinks, Some(spills), read).unwrap()?;
    let mut told: Vec<String> = sinks.into_iter().flat_map(|sink| sink.0).collect();
    told.sort();
    Some((report, Told(told)))
}

fn by_one(bytes: &[u8]) -> Option<(Report, Told)> {
    let mut validator = Validator::new()
        .with_spills(Box::<Kept>::default(), Box::<Kept>::default())
        .accept_trailing_bytes();
    let mut told = Told::default();
    validator.feed(bytes, &mut told).ok()?;
    Some((validator.finish().ok()?, told))
}

/// Keys of every form, in several databases, with what may stand between them: some 400 KB.
fn varied() -> Vec<u8> {
    let mut body = [&[250][..], &string(b"ctime"), &string(b"1700000000")].concat();
    for db in [0, 3, 0, 9] {
        body.extend([254, db]);
        body.extend([&[251][..], &length(3000), &length(100)].concat());
        for number in 0..3000_usize {
            let key = format!("key:{}:{number}", body.len());
            let value = string(&vec![b'v'; number % 50]);
            match number % 7 {
                0 => body.extend(
                    [
                        &[252][..],
                        &(1_700_000_000_000_u64 + number as u64 * 10_000_000).to_le_bytes(),
                    ]
                    .concat(),
                ),
                1 => body.extend([248, number as u8 % 64]),
                2 => body.extend([249, number as u8]),
                _ => {}
            }
            match number % 5 {
                0 => body.extend(entry(
                    2,
                    key.as_bytes(),
                    &counted(2, &[string(b"a"), string(b"b")]),
                )),
                1 => body.extend(entry(
                    4,
                    key.as_bytes(),
                    &counted(1, &[[string(b"field"), value].concat()]),
                )),
                _ => body.extend(entry(0, key.as_bytes(), &value)),
            }
        }
        // Longer than a part, and in the middle.
        let key = format!("long:{}", body.len());
        body.extend(entry(0, key.as_bytes(), &string(&vec![b'x'; 3 * PART_BYTES])));
    }
    file(12, &body)
}

#[test]
fn report_and_keys_are_those_of_one_thread() {
    let every_form = {
        // Behind enough of others to be skimmed, so that each form's end is told by its lengths.
        let filler: Vec<u8> = (0..4000)
            .flat_map(|number| entry(0, format!("f{number}").as_bytes(), b"\x03abc"))
            .collect();
        let values = crate::build::values();
        let values: Vec<u8> = (0..20)
            .flat_map(|round| {
                values
                    .iter()
                    .enumerate()
                    .map(move |(at, value)| (round, at, value.clone()))
            })
            .flat_map(|(round, at, (code, value))| entry(code, format!("{round}:{at}").as_bytes(), &value))
            .collect();
        file(12, &[filler.clone(), values].concat())
    };
    for bytes in [
        varied(),
        every_form,
        all_types(),
        file(11, b""),
        [&varied()[..], b"behind the end"].concat(),
    ] {
        let expected = by_one(&bytes);
        assert!(expected.is_some());
        for (readers, piece) in [(1, usize::MAX), (2, 4096), (3, 7777)] {
            assert!(
                by_threads(&bytes, readers, piece) == expected,
                "{readers} threads"
            );
        }
    }
}

#[test]
fn databases_without_keys_and_files_of_another_family_are_told_alike() {
    let keys = |from: usize| -> Vec<u8> {
        (from..from + 4000)
            .flat_map(|number| entry(0, format!("k{number}").as_bytes(), b"\x03abc"))
            .collect()
    };
    let body = [&[254, 5, 254, 1][..], &keys(0), &[254, 5], &keys(9000)].concat();
    for bytes in [file(6, &body), file_of(rdb::Family::Valkey, 80, &body)] {
        let (report, told) = by_threads(&bytes, 2, usize::MAX).unwrap();
        assert_eq!(Some((report.clone(), told)), by_one(&bytes));
        let census: &Census = &report.census;
        assert_eq!(census.dbs.keys().copied().collect::<Vec<_>>(), [1, 5]);
    }
}

#[test]
fn what_one_thread_refuses_is_never_valid_to_several() {
    let whole = varied();
    let mut damaged = Vec::new();
    for cut in (0..whole.len()).step_by(9973) {
        damaged.push(whole[..cut].to_vec());
    }
    for at in (0..whole.len()).step_by(6007) {
        for value in [0, 0xff, whole[at] ^ 1] {
            let mut bytes = whole.clone();
            bytes[at] = value;
            // With its checksum mended, so that only the structure tells.
            damaged.push(crate::build::sealed(&bytes[..bytes.len() - 8]));
            damaged.push(bytes);
        }
    }
    let mut refused = 0;
    for bytes in damaged {
        let expected = by_one(&bytes);
        refused += usize::from(expected.is_none());
        let seen = by_threads(&bytes, 2, usize::MAX);
        // A duplicate across threads may be found at another moment, and is found.
        assert!(
            seen == expected,
            "by one {}, by threads {}",
            expected.is_some(),
            seen.is_some()
        );
    }
    assert!(refused > 300, "{refused}");
}

#[test]
fn a_key_that_two_threads_read_is_found_twice() {
    let keys = |from: usize, count: usize| -> Vec<u8> {
        (from..from + count)
            .flat_map(|number| entry(0, format!("key:{number}").as_bytes(), b"\x03abc"))
            .collect()
    };
    let many = 150_000;
    let whole = file(11, &keys(0, many));
    assert!(by_threads(&whole, 2, usize::MAX).is_some());
    for again in [0, many / 2, many - 1] {
        let bytes = file(11, &[keys(0, many), keys(again, 1)].concat());
        assert!(by_threads(&bytes, 2, usize::MAX).is_none(), "{again}");
    }
}

#[test]
fn a_source_that_fails_is_told() {
    let failed = rdb::parallel::validate(vec![(), ()], None::<Spills<fn() -> _>>, |_| {
        Err(std::io::ErrorKind::BrokenPipe.into())
    });
    assert_eq!(failed.unwrap_err().kind(), std::io::ErrorKind::BrokenPipe);
}
