//! Builds RDB bytes by hand, and reads them back.

use rdb::{DumpSummary, DumpValidator, Error, Family, KeySummary, Report, Sink, Type, Validator};

/// A string to be packed: as text, or as an integer.
#[derive(Clone, Copy)]
pub enum E<'a> {
    S(&'a [u8]),
    I(i64),
}

pub fn length(value: u64) -> Vec<u8> {
    match value {
        0..64 => vec![value as u8],
        64..16_384 => vec![0x40 | (value >> 8) as u8, value as u8],
        16_384..=0xffff_ffff => [&[0x80], &(value as u32).to_be_bytes()[..]].concat(),
        _ => [&[0x81], &value.to_be_bytes()[..]].concat(),
    }
}

pub fn string(text: &[u8]) -> Vec<u8> {
    [&length(text.len() as u64), text].concat()
}

/// A compressed string that consists of literals only.
pub fn lzf_literals(text: &[u8]) -> Vec<u8> {
    let packed: Vec<u8> = text
        .chunks(32)
        .flat_map(|run| [&[run.len() as u8 - 1], run].concat())
        .collect();
    [
        &[0xc3],
        &length(packed.len() as u64)[..],
        &length(text.len() as u64),
        &packed,
    ]
    .concat()
}

fn back_length(entry: usize) -> Vec<u8> {
    let groups = match entry {
        0..=127 => 1,
        128..16_383 => 2,
        16_383..2_097_151 => 3,
        2_097_151..268_435_455 => 4,
        _ => 5,
    };
    let group = |i: usize| (entry >> (7 * i) & 0x7f) as u8 | if i + 1 < groups { 0x80 } else { 0 };
    (0..groups).rev().map(group).collect()
}

pub fn listpack_entry(e: E<'_>) -> Vec<u8> {
    let mut out = match e {
        E::I(v @ 0..=127) => vec![v as u8],
        E::I(v @ -4096..=4095) => vec![0xc0 | (v >> 8 & 0x1f) as u8, v as u8],
        E::I(v @ -32_768..=32_767) => [&[0xf1], &v.to_le_bytes()[..2]].concat(),
        E::I(v @ -8_388_608..=8_388_607) => [&[0xf2], &v.to_le_bytes()[..3]].concat(),
        E::I(v @ -2_147_483_648..=2_147_483_647) => [&[0xf3], &v.to_le_bytes()[..4]].concat(),
        E::I(v) => [&[0xf4], &v.to_le_bytes()[..]].concat(),
        E::S(s) if s.len() < 64 => [&[0x80 | s.len() as u8], s].concat(),
        E::S(s) if s.len() < 4096 => [&[0xe0 | (s.len() >> 8) as u8, s.len() as u8], s].concat(),
        E::S(s) => [&[0xf0], &(s.len() as u32).to_le_bytes()[..], s].concat(),
    };
    out.extend(back_length(out.len()));
    out
}

pub fn listpack(items: &[E<'_>]) -> Vec<u8> {
    let body: Vec<u8> = items.iter().flat_map(|e| listpack_entry(*e)).collect();
    listpack_of(&body, items.len() as u16)
}

pub fn listpack_of(body: &[u8], count: u16) -> Vec<u8> {
    [
        &(body.len() as u32 + 7).to_le_bytes()[..],
        &count.to_le_bytes(),
        body,
        &[0xff],
    ]
    .concat()
}

pub fn ziplist(items: &[E<'_>]) -> Vec<u8> {
    let (mut body, mut before, mut tail) = (Vec::new(), 0, 10);
    for e in items {
        tail = 10 + body.len();
        let mut entry = match before {
            0..254 => vec![before as u8],
            _ => [&[254], &(before as u32).to_le_bytes()[..]].concat(),
        };
        match *e {
            E::I(v @ 0..=12) => entry.push(0xf1 + v as u8),
            E::I(v @ -128..=127) => entry.extend([0xfe, v as u8]),
            E::I(v @ -32_768..=32_767) => entry.extend([&[0xc0], &v.to_le_bytes()[..2]].concat()),
            E::I(v @ -8_388_608..=8_388_607) => entry.extend([&[0xf0], &v.to_le_bytes()[..3]].concat()),
            E::I(v @ -2_147_483_648..=2_147_483_647) => {
                entry.extend([&[0xd0], &v.to_le_bytes()[..4]].concat());
            }
            E::I(v) => entry.extend([&[0xe0], &v.to_le_bytes()[..]].concat()),
            E::S(s) if s.len() < 64 => entry.extend([&[s.len() as u8], s].concat()),
            E::S(s) if s.len() < 16_384 => {
                entry.extend([&[0x40 | (s.len() >> 8) as u8, s.len() as u8], s].concat());
            }
            E::S(s) => entry.extend([&[0x80], &(s.len() as u32).to_be_bytes()[..], s].concat()),
        }
        before = entry.len();
        body.extend(entry);
    }
    let size = (body.len() as u32 + 11).to_le_bytes();
    let (tail, count) = ((tail as u32).to_le_bytes(), (items.len() as u16).to_le_bytes());
    [&size[..], &tail, &count, &body, &[0xff]].concat()
}

/// A zipmap with `free` unused bytes after each value.
pub fn zipmap(pairs: &[(&[u8], &[u8])], free: u8) -> Vec<u8> {
    let mut out = vec![pairs.len().min(254) as u8];
    let size = |s: &[u8]| match s.len() {
        0..254 => vec![s.len() as u8],
        long => [&[254], &(long as u32).to_le_bytes()[..]].concat(),
    };
    for (field, value) in pairs {
        out.extend([&size(field), *field, &size(value), &[free], value].concat());
        out.extend(vec![0; free.into()]);
    }
    out.push(0xff);
    out
}

pub fn intset(width: usize, members: &[i64]) -> Vec<u8> {
    let head = [(width as u32).to_le_bytes(), (members.len() as u32).to_le_bytes()].concat();
    let body: Vec<u8> = members
        .iter()
        .flat_map(|v| v.to_le_bytes()[..width].to_vec())
        .collect();
    [head, body].concat()
}

/// A value of a count and its parts.
pub fn counted(count: usize, parts: &[Vec<u8>]) -> Vec<u8> {
    [length(count as u64), parts.concat()].concat()
}

/// A stream of five records in two listpacks (the third record is deleted) with two groups, as the layout
/// of the given generation stores it.
pub fn stream(generation: u8, seen: u8) -> Vec<u8> {
    use E::{I, S};
    let id = |ms: u64, seq: u64| [ms.to_be_bytes(), seq.to_be_bytes()].concat();
    let first = listpack(
        &[
            // Two live, one deleted, two fields and their end.
            [I(2), I(1), I(2), S(b"a"), S(b"b"), I(0)].as_slice(),
            &[I(2), I(0), I(0), S(b"1a"), I(77), I(5)],
            &[I(0), I(5), I(1), I(1), S(b"other"), S(b"value"), I(6)],
            &[I(3), I(6), I(0), S(b"x"), S(b"y"), I(5)],
        ]
        .concat(),
    );
    let second = listpack(
        &[
            [I(2), I(0), I(1), S(b"c"), I(0)].as_slice(),
            &[I(2), I(0), I(0), S(b"v"), I(4)],
            &[I(2), I(300), I(-9), I(-100_000), I(4)],
        ]
        .concat(),
    );
    let mut out = length(2);
    for (base, node) in [(id(1000, 9), first), (id(2000, 9), second)] {
        out.extend([string(&base), string(&node)].concat());
    }
    let numbers = |values: &[u64]| values.iter().flat_map(|v| length(*v)).collect::<Vec<_>>();
    out.extend(numbers(&[4, 2300, 0]));
    if generation >= 2 {
        // First id, greatest deleted id (unknown to the first layout: none), entries added.
        out.extend(numbers(&[1000, 9, 0, 0, 4]));
    }
    out.extend(length(2));
    // The first group has two consumers and three pending entries, the second has none.
    out.extend([string(b"workers"), numbers(&[2300, 0])].concat());
    if generation >= 2 {
        out.extend(length(4));
    }
    out.extend(length(3));
    for (pending, deliveries) in [(id(1000, 9), 1), (id(1005, 10), 70), (id(2000, 9), 2)] {
        out.extend(
            [
                pending,
                1_700_000_000_000u64.to_le_bytes().to_vec(),
                length(deliveries),
            ]
            .concat(),
        );
    }
    out.extend(length(2));
    for (name, owned) in [
        (&b"alice"[..], vec![id(1000, 9), id(2000, 9)]),
        (b"bob", vec![id(1005, 10)]),
    ] {
        out.extend([string(name), vec![seen; 8]].concat());
        if generation >= 3 {
            out.extend([seen; 8]);
        }
        out.extend(counted(owned.len(), &owned));
    }
    out.extend([string(b"idle"), numbers(&[1000, 9])].concat());
    if generation >= 2 {
        out.extend(length(1));
    }
    out.extend(numbers(&[0, 0]));
    if generation >= 4 {
        // Seconds and ids remembered; one producer with one message; ids added and refused.
        out.extend(numbers(&[100, 100, 1]));
        out.extend([string(b"producer"), length(1), string(b"message")].concat());
        out.extend(numbers(&[2000, 9, 1, 0]));
    }
    out
}

/// A whole file around the given opcodes and keys.
pub fn file(version: u32, body: &[u8]) -> Vec<u8> {
    let mut out = [format!("REDIS{version:04}").as_bytes(), body, &[255]].concat();
    if version >= 5 {
        out.extend(rdb::crc64(&out).to_le_bytes());
    }
    out
}

pub fn entry(code: u8, key: &[u8], value: &[u8]) -> Vec<u8> {
    [&[code], &string(key)[..], value].concat()
}

pub fn dump(code: u8, value: &[u8]) -> Vec<u8> {
    dump_of(11, code, value)
}

pub fn dump_of(version: u8, code: u8, value: &[u8]) -> Vec<u8> {
    let mut out = [&[code], value, &[version, 0]].concat();
    out.extend(rdb::crc64(&out).to_le_bytes());
    out
}

/// A key as a [`Sink`] sees it.
#[derive(Debug, Clone, PartialEq)]
pub struct Key {
    pub db: u32,
    pub key: Vec<u8>,
    pub kind: Type,
    pub type_code: u8,
    pub expire_at_ms: Option<i64>,
    pub elements: u64,
    pub expiring: u64,
    pub bytes: u64,
    pub digest: rdb::Digest,
    pub offset: u64,
}

#[derive(Default, PartialEq, Debug)]
pub struct Keys {
    pub keys: Vec<Key>,
    pub functions: Vec<Vec<u8>>,
}

impl Sink for Keys {
    fn key(&mut self, key: &KeySummary<'_>) {
        self.keys.push(Key {
            db: key.db,
            key: key.key.to_vec(),
            kind: key.kind,
            type_code: key.type_code,
            expire_at_ms: key.expire_at_ms,
            elements: key.elements,
            expiring: key.expiring_elements,
            bytes: key.bytes,
            digest: key.value_digest,
            offset: key.offset,
        });
    }

    fn function(&mut self, code: &[u8]) {
        self.functions.push(code.to_vec());
    }
}

pub fn read<'a>(chunks: impl IntoIterator<Item = &'a [u8]>) -> Result<(Report, Keys), Error> {
    let (mut validator, mut keys) = (Validator::new(), Keys::default());
    for chunk in chunks {
        validator.feed(chunk, &mut keys)?;
    }
    Ok((validator.finish()?, keys))
}

pub fn read_dump(bytes: &[u8], chunk: usize) -> Result<DumpSummary, Error> {
    let family = Family::of_footer(bytes).unwrap_or(Family::Redis);
    let mut validator = DumpValidator::new(bytes.len() as u64, family);
    for piece in bytes.chunks(chunk) {
        validator.feed(piece)?;
    }
    validator.finish()
}

/// Reads one value as a file and as a payload, whole and byte by byte, and requires that all agree.
pub fn value(code: u8, value: &[u8]) -> Key {
    let bytes = file(11, &entry(code, b"key", value));
    let (_, keys) = read([&bytes[..]]).unwrap_or_else(|error| panic!("type {code}: {error}"));
    let (_, slowly) = read(bytes.chunks(1)).unwrap_or_else(|error| panic!("type {code}, slowly: {error}"));
    assert_eq!(keys, slowly, "type {code}");
    let payload = dump(code, value);
    for chunk in [1, 7, payload.len()] {
        let summary = read_dump(&payload, chunk).unwrap_or_else(|error| panic!("dump of {code}: {error}"));
        assert_eq!(summary.value_digest, keys.keys[0].digest);
        assert_eq!(
            (summary.kind, summary.elements),
            (keys.keys[0].kind, keys.keys[0].elements)
        );
    }
    keys.keys[0].clone()
}

/// One value of every encoding, with its type code.
pub fn values() -> Vec<(u8, Vec<u8>)> {
    use E::{I, S};
    let items = [S(b"one"), I(2), S(b"three"), I(-4000)];
    let pairs = [S(b"field"), S(b"value"), S(b"n"), I(70_000)];
    let scores = [S(b"low"), S(b"-1.5"), S(b"mid"), I(3), S(b"top"), S(b"inf")];
    let texts = counted(3, &[string(b"x"), string(b"y"), vec![0xc0, 7]]);
    vec![
        (0, string(b"plain")),
        (0, vec![0xc1, 0x39, 0x30]),
        (0, vec![0xc2, 1, 2, 3, 4]),
        (0, lzf_literals(&[b'z'; 100])),
        (1, texts.clone()),
        (2, texts),
        (
            3,
            counted(2, &[string(b"a"), string(b"2.5"), string(b"b"), vec![254]]),
        ),
        (4, counted(1, &[string(b"field"), string(b"value")])),
        (5, counted(1, &[string(b"a"), 2.5f64.to_le_bytes().to_vec()])),
        (9, string(&zipmap(&[(b"field", b"value"), (b"n", b"70000")], 2))),
        (10, string(&ziplist(&items))),
        (11, string(&intset(4, &[-70_000, 0, 5]))),
        (12, string(&ziplist(&scores))),
        (13, string(&ziplist(&pairs))),
        (
            14,
            counted(2, &[string(&ziplist(&items)), string(&ziplist(&items))]),
        ),
        (15, stream(1, 3)),
        (16, string(&listpack(&pairs))),
        (17, lzf_literals(&listpack(&scores))),
        (
            18,
            counted(
                2,
                &[
                    length(2),
                    string(&listpack(&items)),
                    length(1),
                    string(b"plain node"),
                ],
            ),
        ),
        (19, stream(2, 3)),
        (20, string(&listpack(&items))),
        (21, stream(3, 3)),
        (7, module_value(b"ReJSON-RL")),
        (22, expiring_hash(22, Family::Redis)),
        (23, expiring_hash(23, Family::Redis)),
        (24, expiring_hash(24, Family::Redis)),
        (25, expiring_hash(25, Family::Redis)),
        (26, stream(4, 3)),
    ]
}

/// The time at which the first field of [`expiring_hash`] expires.
pub const FIELD_EXPIRES_AT: u64 = 1_900_000_000_000;

/// A hash of four fields, the first two of which expire, in an encoding of one family.
pub fn expiring_hash(code: u8, family: Family) -> Vec<u8> {
    use E::{I, S};
    let at = FIELD_EXPIRES_AT;
    let fields: [(&[u8], &[u8], u64); 4] = [
        (b"soon", b"1", at),
        (b"later", b"text", at + 5000),
        (b"never", b"", 0),
        (b"4", b"four", 0),
    ];
    let packed: Vec<E<'_>> = fields
        .iter()
        .flat_map(|(field, value, at)| {
            let field = if *field == b"4" { I(4) } else { S(field) };
            let value = if *value == b"1" { I(1) } else { S(value) };
            [field, value, I(*at as i64)]
        })
        .collect();
    let plain = |place: fn(&[u8], &[u8], u64) -> Vec<u8>| {
        counted(4, &fields.map(|(field, value, at)| place(field, value, at)))
    };
    match (code, family) {
        (22, Family::Valkey) => plain(|field, value, at| {
            let at = if at == 0 { -1 } else { at as i64 };
            [string(field), string(value), at.to_le_bytes().to_vec()].concat()
        }),
        (22, Family::Redis) => plain(|field, value, at| [length(at), string(field), string(value)].concat()),
        (23, _) => string(&listpack(&packed)),
        (24, _) => {
            let fields = plain(|field, value, at| {
                let left = if at == 0 { 0 } else { at - FIELD_EXPIRES_AT + 1 };
                [length(left), string(field), string(value)].concat()
            });
            [&at.to_le_bytes()[..], &fields].concat()
        }
        (25, _) => [&at.to_le_bytes()[..], &string(&listpack(&packed))].concat(),
        _ => panic!("type {code} has no field expiry"),
    }
}

/// The id of a module's type, of version 3.
pub fn module_id(name: &[u8; 9]) -> u64 {
    let letters = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";
    let place = |letter| letters.iter().position(|known| known == letter).unwrap() as u64;
    name.iter().fold(0, |id, letter| id << 6 | place(letter)) << 10 | 3
}

/// Parts of every kind, and the end mark.
pub fn module_parts() -> Vec<u8> {
    let long = vec![b'm'; 200];
    [
        &[1, 7, 2, 0x40, 200, 3][..],
        &1.5f32.to_le_bytes(),
        &[4],
        &2.5f64.to_le_bytes(),
        &[5],
        &string(b"text"),
        &[5],
        &string(&long),
        &[0],
    ]
    .concat()
}

pub fn module_value(name: &[u8; 9]) -> Vec<u8> {
    [length(module_id(name)), module_parts()].concat()
}

/// Data of a module outside of keys.
pub fn module_aux(name: &[u8; 9]) -> Vec<u8> {
    [&[247], &length(module_id(name))[..], &[2, 1], &module_parts()].concat()
}

/// A whole file with the magic of a family.
pub fn file_of(family: Family, version: u32, body: &[u8]) -> Vec<u8> {
    let header = match family {
        Family::Redis => format!("REDIS{version:04}"),
        Family::Valkey => format!("VALKEY{version:03}"),
    };
    sealed(&[header.as_bytes(), body, &[255]].concat())
}

/// Bytes and their checksum.
pub fn sealed(bytes: &[u8]) -> Vec<u8> {
    [bytes, &rdb::crc64(bytes).to_le_bytes()].concat()
}

/// One key of every encoding, in two databases, with expiry, idle time, frequency, AUX fields and functions.
pub fn all_types() -> Vec<u8> {
    let keys = values();
    let mut body = [&[250], &string(b"redis-ver")[..], &string(b"7.0.15")].concat();
    body.extend(module_aux(b"Aux-only0"));
    body.extend([&[250], &string(b"ctime")[..], &[0xc2, 0, 0, 0, 0x60]].concat());
    body.extend(
        [
            &[245],
            &string(b"#!lua name=lib\nreturn 1")[..],
            &[254, 0, 251, 63, 63, 244, 0x7f, 0xff, 5, 0],
        ]
        .concat(),
    );
    for (i, (code, value)) in keys.iter().enumerate() {
        match i {
            3 => body.extend([&[252], &1_700_000_000_000i64.to_le_bytes()[..], &[248, 5]].concat()),
            5 => body.extend([&[253], &1_700_000_000i32.to_le_bytes()[..], &[249, 200]].concat()),
            9 => body.extend([254, 0x40, 200]),
            _ => {}
        }
        body.extend(entry(*code, format!("key-{i}").as_bytes(), value));
    }
    file(11, &body)
}
