//! Keys and members that occur twice, wherever the bytes are cut and however many there are.

use rdb::{Distinctness, ErrorKind, Report, Spill, Validator};

use crate::build::{counted, entry, file, string};

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

fn read(mut validator: Validator, bytes: &[u8], chunk: usize) -> Result<Report, rdb::Error> {
    for piece in bytes.chunks(chunk) {
        validator.feed(piece, &mut ())?;
    }
    validator.finish()
}

fn exact() -> Validator {
    Validator::new().with_spills(Box::<Kept>::default(), Box::<Kept>::default())
}

/// A key of more than 16 KiB is not waited for: it is read in pieces as they come.
#[test]
fn a_long_key_that_occurs_twice_is_refused_wherever_it_is_cut() {
    let key = vec![b'k'; 20_000];
    let first = entry(0, &key, b"\x01v");
    let bytes = file(11, &[&first[..], &first].concat());
    let second = (9 + first.len()) as u64;
    let ends = 9 + 2 * first.len();
    // Around the ends of both keys, and far from them.
    let cuts = (0..40).flat_map(|near| {
        [
            second as usize - near,
            second as usize + near,
            ends - near,
            9 + near,
        ]
    });
    for cut in cuts.chain([10_000, 16_384, 16_400, 36_400, ends - 16_384]) {
        let mut validator = Validator::new();
        let fed = [&bytes[..cut], &bytes[cut..]]
            .into_iter()
            .try_for_each(|piece| validator.feed(piece, &mut ()));
        let error = fed.unwrap_err();
        assert_eq!(
            (error.offset, &error.kind),
            (second, &ErrorKind::DuplicateKey { first: 9 }),
            "cut at {cut}"
        );
        assert!(error.key.is_some(), "cut at {cut}");
    }
    for chunk in [1, 1000, 16 * 1024, 20_000, bytes.len()] {
        let error = read(Validator::new(), &bytes, chunk).unwrap_err();
        assert_eq!(
            error.kind,
            ErrorKind::DuplicateKey { first: 9 },
            "chunks of {chunk}"
        );
    }
}

/// A value of a type code with this many members, the last of which is the one of this number.
fn large(code: u8, count: usize, last: usize) -> Vec<u8> {
    let numbers = (0..count - 1).chain([last]);
    let members: Vec<Vec<u8>> = numbers
        .map(|number| {
            let member = string(format!("member:{number}").as_bytes());
            match code {
                2 => member,
                4 => [&member[..], b"\x01v"].concat(),
                _ => [&member[..], &1.5f64.to_le_bytes()].concat(),
            }
        })
        .collect();
    entry(code, b"large", &counted(count, &members))
}

#[test]
fn a_member_that_occurs_twice_is_refused_however_many_members_there_are() {
    // Above what is kept in memory of a value, and above one sorted run of what goes beyond.
    let count = rdb::MEMBERS_IN_MEMORY_MAX + 2 * rdb::KEYS_IN_MEMORY_MAX + 1000;
    for (code, what) in [(2, "set member"), (4, "hash field"), (5, "sorted set member")] {
        let small = entry(2, b"small", &counted(1, &[string(b"member:7")]));
        let distinct = file(11, &[&large(code, count, count)[..], &small].concat());
        let report = read(exact(), &distinct, 1 << 20).unwrap();
        assert_eq!(report.distinctness, Distinctness::Proven);
        for again in [
            0,
            rdb::MEMBERS_IN_MEMORY_MAX - 1,
            rdb::MEMBERS_IN_MEMORY_MAX,
            count / 2,
            count - 2,
        ] {
            let bytes = file(11, &[&small[..], &large(code, count, again)].concat());
            let error = read(exact(), &bytes, 1 << 20).unwrap_err();
            assert_eq!(error.kind, ErrorKind::Duplicate { what }, "{again}");
            assert!(error.key.is_some_and(|key| key.prefix == "large"));
        }
        // Nobody is told what was not looked at.
        let report = read(Validator::new(), &distinct, 1 << 20).unwrap();
        assert_eq!(report.distinctness, Distinctness::FirstKeysOnly);
    }
}
