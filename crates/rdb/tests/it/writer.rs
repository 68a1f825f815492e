//! Files for other engines: what is written reads back as what was read, or is named as lost.

use std::collections::BTreeMap;
use std::io;

use crate::build::*;
use crate::engine::Engine;
use crate::fixtures::FIXTURES;
use rdb::{
    AofWriter, Compression, Family, KeySummary, Loss, Report, Sink, TARGETS, Target, Type, Validator, Writer,
};

pub type Losses = BTreeMap<(Option<u32>, Vec<u8>), (bool, Vec<&'static str>)>;

fn note(losses: &mut Losses, loss: Loss<'_>) {
    let known = losses.entry((loss.db, loss.key.to_vec())).or_default();
    known.0 |= loss.is_left_out;
    known.1.push(loss.reason);
}

/// What a file is written by.
trait Writes {
    fn key(&mut self, key: &KeySummary<'_>, losses: &mut Losses) -> io::Result<()>;
    fn function(&mut self, code: &[u8], losses: &mut Losses) -> io::Result<()>;
}

impl<R: FnMut(u64, &mut [u8]) -> io::Result<()>> Writes for Writer<R, Vec<u8>> {
    fn key(&mut self, key: &KeySummary<'_>, losses: &mut Losses) -> io::Result<()> {
        Writer::key(self, key, |loss| note(losses, loss))
    }
    fn function(&mut self, code: &[u8], losses: &mut Losses) -> io::Result<()> {
        Writer::function(self, code, |loss| note(losses, loss))
    }
}

impl<R: FnMut(u64, &mut [u8]) -> io::Result<()>> Writes for AofWriter<R, Vec<u8>> {
    fn key(&mut self, key: &KeySummary<'_>, losses: &mut Losses) -> io::Result<()> {
        AofWriter::key(self, key, |loss| note(losses, loss))
    }
    fn function(&mut self, code: &[u8], losses: &mut Losses) -> io::Result<()> {
        AofWriter::function(self, code, |loss| note(losses, loss))
    }
}

struct Through<'a, T> {
    writer: &'a mut T,
    losses: Losses,
    failure: Option<io::Error>,
}

impl<T: Writes> Sink for Through<'_, T> {
    fn key(&mut self, key: &KeySummary<'_>) {
        if let Err(error) = self.writer.key(key, &mut self.losses) {
            self.failure.get_or_insert(error);
        }
    }

    fn function(&mut self, code: &[u8]) {
        if let Err(error) = self.writer.function(code, &mut self.losses) {
            self.failure.get_or_insert(error);
        }
    }
}

fn pass<T: Writes>(bytes: &[u8], writer: &mut T) -> Losses {
    let mut through = Through {
        writer,
        losses: Losses::new(),
        failure: None,
    };
    Validator::new().feed(bytes, &mut through).unwrap();
    assert!(through.failure.is_none(), "{:?}", through.failure);
    through.losses
}

fn reader(bytes: &[u8]) -> impl FnMut(u64, &mut [u8]) -> io::Result<()> {
    |offset, buffer| {
        buffer.copy_from_slice(&bytes[offset as usize..][..buffer.len()]);
        Ok(())
    }
}

fn report(bytes: &[u8]) -> Report {
    read([bytes]).unwrap().0
}

pub fn written(bytes: &[u8], target: Target, compression: Compression) -> (Vec<u8>, Losses) {
    let mut writer = Writer::new(&report(bytes), target, compression, reader(bytes), Vec::new()).unwrap();
    let losses = pass(bytes, &mut writer);
    (writer.finish().unwrap(), losses)
}

fn aof(bytes: &[u8], target: Target) -> (Vec<u8>, Losses) {
    let mut writer = AofWriter::new(&report(bytes), target, reader(bytes), Vec::new());
    let losses = pass(bytes, &mut writer);
    (writer.finish().unwrap(), losses)
}

/// A value of every encoding, with strings long enough to be compressed, cut into pieces, and more than one piece.
fn all_values() -> Vec<u8> {
    let long: Vec<u8> = (0..200_000u32).map(|i| (i / 7 % 251) as u8).collect();
    let mut body = vec![254, 0];
    for (i, (code, value)) in values().into_iter().enumerate() {
        body.extend(entry(code, format!("key {i} of type {code}").as_bytes(), &value));
    }
    let strings = counted(2, &[string(&long), string(b"short, but long enough")]);
    body.extend([254, 5]);
    body.extend(entry(0, b"long", &string(&long)));
    body.extend(entry(0, b"long and compressed", &lzf_literals(&long)));
    body.extend(entry(1, b"long in a list", &strings));
    body.extend([248, 9]);
    body.extend(entry(
        4,
        b"long in a hash",
        &counted(1, &[string(&long), lzf_literals(&long)]),
    ));
    body.extend([249, 200]);
    body.extend([&[252][..], &4_102_444_800_000i64.to_le_bytes()].concat());
    body.extend(entry(
        16,
        b"long in a listpack",
        &string(&listpack(&[
            E::S(&long),
            E::S(b"value"),
            E::S(b"5"),
            E::S(&long[1..]),
        ])),
    ));
    body.extend(entry(
        17,
        b"long in a packed sorted set",
        &string(&listpack(&[E::S(&long), E::I(1), E::S(b"a"), E::S(b"2.5")])),
    ));
    body.extend(entry(
        18,
        b"long in a node",
        &counted(1, &[[length(1), string(&long)].concat()]),
    ));
    body.extend(entry(
        24,
        b"long with an expiry",
        &[
            &5000u64.to_le_bytes()[..],
            &counted(1, &[[length(3), string(&long), string(&long)].concat()]),
        ]
        .concat(),
    ));
    file(13, &body)
}

/// Each key with what makes it equal to another.
fn content(keys: Keys) -> BTreeMap<(u32, Vec<u8>), Key> {
    keys.keys
        .into_iter()
        .map(|key| ((key.db, key.key.clone()), key))
        .collect()
}

#[test]
fn what_is_written_for_any_engine_is_valid_and_equal_or_named_as_lost() {
    let all = all_values();
    let mut files = FIXTURES.to_vec();
    files.push(("all", &all));
    let mut converted = 0;
    for (name, bytes) in files {
        let source = report(bytes);
        let named = TARGETS.iter().map(|(name, ..)| Target::by_name(name).unwrap());
        for target in named.chain([Target::of(&source)]) {
            for compression in [Compression::Keep, Compression::Expand, Compression::Compress] {
                let what = format!("{name} for {target:?}, {compression:?}");
                let (out, losses) = written(bytes, target, compression);
                let (report, keys) = read([&out[..]]).unwrap_or_else(|error| panic!("{what}: {error}"));
                assert_eq!(
                    (report.family, report.rdb_version),
                    (target.family(), target.version())
                );
                assert_eq!(
                    report.functions.len() + usize::from(losses.contains_key(&(None, b"lib".to_vec()))),
                    source.functions.len(),
                    "{what}"
                );
                let mut after = content(keys);
                for (place, before) in content(read([bytes]).unwrap().1) {
                    let loss = losses.get(&(Some(place.0), place.1.clone()));
                    let (Some(after), lost) = (after.remove(&place), loss.map(|loss| loss.0)) else {
                        assert!(loss.is_some_and(|loss| loss.0), "{what}: {before:?} is gone");
                        continue;
                    };
                    assert_ne!(lost, Some(true), "{what}: {before:?}");
                    converted += u32::from(after.type_code != before.type_code);
                    assert_eq!(
                        (after.kind, after.elements, after.expiring, after.expire_at_ms),
                        (before.kind, before.elements, before.expiring, before.expire_at_ms),
                        "{what}"
                    );
                    if lost.is_none() {
                        assert_eq!(after.digest, before.digest, "{what}: {before:?}");
                    }
                }
                assert!(after.is_empty(), "{what}: {after:?}");
                if compression == Compression::Expand {
                    assert!(report.bytes >= written(bytes, target, Compression::Compress).0.len() as u64);
                }
            }
        }
    }
    assert!(converted > 500, "{converted}");
}

#[test]
fn a_file_for_its_own_engine_holds_the_same_bytes_of_every_key() {
    for (name, bytes) in FIXTURES {
        let (out, losses) = written(bytes, Target::of(&report(bytes)), Compression::Keep);
        assert!(losses.is_empty(), "{name}: {losses:?}");
        let slice = |bytes: &[u8], key: &Key| bytes[key.offset as usize..][..key.bytes as usize].to_vec();
        let (before, after) = (read([bytes]).unwrap().1, read([&out[..]]).unwrap().1);
        assert_eq!(before.keys.len(), after.keys.len());
        for (one, other) in before.keys.iter().zip(&after.keys) {
            assert_eq!(slice(bytes, one), slice(&out, other), "{name}: {one:?}");
        }
    }
}

#[test]
fn what_an_older_engine_cannot_hold_is_named() {
    let (out, losses) = written(
        &all_values(),
        Target::by_name("redis-7.0").unwrap(),
        Compression::Keep,
    );
    let left_out: Vec<_> = losses.iter().filter(|(_, loss)| loss.0).collect();
    assert_eq!(left_out.len(), 5, "{left_out:?}");
    for (_, (_, reasons)) in left_out {
        assert_eq!(
            reasons,
            &["fields that expire by themselves need redis-7.4 or valkey-9.0"]
        );
    }
    let reduced: Vec<_> = losses.values().filter(|loss| !loss.0).collect();
    // Of the third and the fourth layout of streams.
    assert_eq!(reduced.len(), 2, "{reduced:?}");
    assert_eq!(
        reduced[1].1,
        [
            "when a consumer was last active needs redis-7.2",
            "message ids of producers need redis-8.6"
        ]
    );
    assert!(out.starts_with(b"REDIS0010"));

    let old = Target::by_name("redis-6.2").unwrap();
    let (_, losses) = written(FIXTURES[0].1, old, Compression::Keep);
    let library = &losses[&(None, b"lib".to_vec())];
    assert_eq!(library, &(true, vec!["function libraries need redis-7.0"]));
    assert_eq!(
        losses[&(Some(0), b"stream".to_vec())].1,
        [
            "entries ever added and the greatest deleted id need redis-7.0",
            "how many entries a consumer group has read needs redis-7.0"
        ]
    );
}

#[test]
fn a_field_that_expires_later_than_redis_can_hold_is_not_written_for_it() {
    // Two below 2^48 is the last that it holds.
    for (at_ms, is_held) in [
        ((1i64 << 48) - 2, true),
        ((1 << 48) - 1, false),
        (i64::MAX, false),
    ] {
        let value = counted(1, &[string(b"f"), string(b"v"), at_ms.to_le_bytes().to_vec()]);
        let bytes = file_of(rdb::Family::Valkey, 80, &entry(22, b"key", &value));
        let redis = Target::by_name("redis-8.0").unwrap();
        let (out, losses) = written(&bytes, redis, Compression::Keep);
        assert_eq!(
            (losses.is_empty(), read([&out[..]]).unwrap().1.keys.len()),
            (is_held, usize::from(is_held))
        );
        assert_eq!(aof(&bytes, redis).1.is_empty(), is_held);
        let valkey = Target::by_name("valkey-9.0").unwrap();
        assert!(written(&bytes, valkey, Compression::Compress).1.is_empty());
        assert!(aof(&bytes, valkey).1.is_empty());
    }
}

/// Loads a file into the engine and returns the engine's own digest and the file it saves.
fn loaded(name: &str, file: &str, bytes: &[u8]) -> (Vec<u8>, Vec<u8>) {
    let mut engine = Engine::start_on(name, file, bytes);
    let digest = engine.words("DEBUG DIGEST");
    (digest, engine.save(true))
}

/// What the engine of the tests, 7.0, makes of files for it and for older ones: it holds what we say was written.
#[test]
fn the_engine_loads_what_was_written_for_it_and_holds_the_same() {
    for (name, bytes) in FIXTURES {
        let mut digests = Vec::new();
        for (number, of) in ["redis-7.0", "redis-6.2"].into_iter().enumerate() {
            let target = Target::by_name(of).unwrap();
            for compression in [Compression::Keep, Compression::Compress] {
                let (out, losses) = written(bytes, target, compression);
                let label = format!("w-{name}-{number}-{compression:?}");
                let (digest, saved) = loaded(&label, "dump.rdb", &out);
                digests.push(digest);
                let (ours, theirs) = (
                    content(read([&out[..]]).unwrap().1),
                    content(read([&saved[..]]).unwrap().1),
                );
                assert_eq!(ours.len(), theirs.len(), "{label}");
                for (place, key) in ours {
                    let is_reduced = losses.contains_key(&(Some(place.0), place.1.clone()));
                    if !is_reduced {
                        assert_eq!(key.digest, theirs[&place].digest, "{label}: {key:?}");
                    }
                    assert_eq!(key.expire_at_ms, theirs[&place].expire_at_ms);
                }
            }
            let (commands, losses) = aof(bytes, target);
            let label = format!("a-{name}-{number}");
            let (digest, saved) = loaded(&label, "appendonly.aof", &commands);
            digests.push(digest);
            let (before, after) = (
                content(read([bytes]).unwrap().1),
                content(read([&saved[..]]).unwrap().1),
            );
            for (place, key) in before {
                match losses.get(&(Some(place.0), place.1.clone())) {
                    Some((true, _)) => assert!(!after.contains_key(&place)),
                    Some((false, reasons)) => assert_eq!(key.elements, after[&place].elements, "{reasons:?}"),
                    // The counters of a stream belong to its digest, and are no part of the older commands.
                    None if number == 1 && key.kind == Type::Stream => {}
                    None => assert_eq!(key.digest, after[&place].digest, "{label}: {key:?}"),
                }
            }
        }
        if name == "redis-7.0" {
            digests.push(loaded("w-as-it-was", "dump.rdb", bytes).0);
        }
        digests.dedup();
        assert_eq!(digests.len(), 1, "{name}: the engine finds different content");
    }
}

/// Further engines, where there are any: `CACHEKEEP_TEST_ENGINES="redis-8.0=COMMAND;valkey-9.1=COMMAND"`.
#[test]
fn other_engines_load_what_was_written_for_them_and_hold_the_same() {
    let engines = std::env::var("CACHEKEEP_TEST_ENGINES").unwrap_or_default();
    for (name, command) in engines.split(';').filter_map(|engine| engine.split_once('=')) {
        let target = Target::by_name(name).unwrap();
        let mut loaded = 0;
        for (of, bytes) in FIXTURES {
            let (out, losses) = written(bytes, target, Compression::Compress);
            let mut engine = Engine::start_other(command, &format!("o-{name}-{of}"), "dump.rdb", &out);
            let saved = engine.save(true);
            let (ours, theirs) = (
                content(read([&out[..]]).unwrap().1),
                content(read([&saved[..]]).unwrap().1),
            );
            assert_eq!(ours.len(), theirs.len(), "{of} for {name}");
            for (place, key) in ours {
                if !losses.contains_key(&(Some(place.0), place.1.clone())) {
                    assert_eq!(key.digest, theirs[&place].digest, "{of} for {name}: {key:?}");
                    loaded += 1;
                }
            }
        }
        assert!(loaded > 250, "{name}: {loaded}");
    }
}

/// A file whose middle is one byte over and over.
struct Huge {
    head: Vec<u8>,
    middle: u64,
    tail: Vec<u8>,
}

impl Huge {
    fn read(&self, offset: u64, buffer: &mut [u8]) {
        let (head, end) = (self.head.len() as u64, offset + buffer.len() as u64);
        buffer.fill(b'x');
        for (part, from) in [(&self.head, 0), (&self.tail, head + self.middle)] {
            let to = from + part.len() as u64;
            for at in offset.max(from)..end.min(to) {
                buffer[(at - offset) as usize] = part[(at - from) as usize];
            }
        }
    }

    fn feed<S: Sink>(&self, sink: &mut S) -> Report {
        let mut validator = Validator::new();
        let bytes = self.head.len() as u64 + self.middle + self.tail.len() as u64;
        let mut chunk = vec![0; 256 * 1024];
        for offset in (0..bytes).step_by(chunk.len()) {
            let count = (bytes - offset).min(chunk.len() as u64) as usize;
            self.read(offset, &mut chunk[..count]);
            validator.feed(&chunk[..count], sink).unwrap();
        }
        validator.finish().unwrap()
    }
}

/// Counts what is written, and the most that comes at once.
#[derive(Default)]
struct Counting {
    bytes: u64,
    most: usize,
}

impl io::Write for Counting {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.bytes += bytes.len() as u64;
        self.most = self.most.max(bytes.len());
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

struct ThroughBoth<A, B> {
    rdb: A,
    aof: B,
}

impl<A, B> Sink for ThroughBoth<A, B>
where
    A: FnMut(&KeySummary<'_>),
    B: FnMut(&KeySummary<'_>),
{
    fn key(&mut self, key: &KeySummary<'_>) {
        (self.rdb)(key);
        (self.aof)(key);
    }
}

#[test]
fn an_item_of_300_mb_passes_an_older_engine_s_form_and_commands_in_pieces() {
    const ITEM: u64 = 300_000_000;
    let huge = Huge {
        head: [
            &b"REDIS0010\x12\x04list\x02\x01\x05small\x01"[..],
            &[&[0x80], &(ITEM as u32).to_be_bytes()[..]].concat(),
        ]
        .concat(),
        middle: ITEM,
        tail: [&[255], &[0; 8][..]].concat(),
    };
    let report = huge.feed(&mut ());
    let old = Target::by_name("redis-6.2").unwrap();
    let read = |offset: u64, buffer: &mut [u8]| {
        huge.read(offset, buffer);
        Ok(())
    };
    let mut rdb = Writer::new(&report, old, Compression::Compress, read, Counting::default()).unwrap();
    let mut aof = AofWriter::new(&report, old, read, Counting::default());
    huge.feed(&mut ThroughBoth {
        rdb: |key: &KeySummary<'_>| rdb.key(key, |loss| panic!("{loss:?}")).unwrap(),
        aof: |key: &KeySummary<'_>| aof.key(key, |loss| panic!("{loss:?}")).unwrap(),
    });
    for written in [rdb.finish().unwrap(), aof.finish().unwrap()] {
        assert!((ITEM..ITEM + 200).contains(&written.bytes), "{}", written.bytes);
        assert!(written.most <= 64 * 1024, "{} at once", written.most);
    }
}

#[test]
fn a_body_in_its_frame_is_a_file_of_the_same_keys_and_sizes_that_are_not_true_are_told() {
    let mut bytes = b"REDIS0010".to_vec();
    for number in 0..20_000 {
        bytes.extend(entry(0, format!("key:{number}").as_bytes(), &string(b"value")));
    }
    let bytes = sealed(&[&bytes[..], &[255]].concat());
    let before = report(&bytes);
    let target = Target::of(&before);
    let far_more = 10_000_000;
    for (sizes, excessive) in [
        (None, None),
        (Some((20_000, 0)), None),
        (Some((far_more, 0)), Some(far_more)),
    ] {
        let mut writer = Writer::body(
            Family::Redis,
            target,
            Compression::Keep,
            reader(&bytes),
            Vec::new(),
        );
        assert!(pass(&bytes, &mut writer).is_empty());
        let body = writer.finish_body().unwrap();
        let (mut frame, head) = rdb::Frame::head(target, sizes);
        frame.update(&body);
        let after = report(&[&head[..], &body, &frame.tail()].concat());
        assert_eq!(after.census, before.census);
        assert_eq!(after.excessive_hint, excessive, "{sizes:?}");
    }
}
