//! The files of a backup cut anew, for a layout with other shards than the backup has: every key goes to the file of the
//! shard that has its slot.
//!
//! One pass over the backup validates all of it, to its last byte, before an engine is started for any of it. What it
//! writes are files without names: they are gone with the process, however that ends, and their room is given back as
//! they are read. That no key is lost or doubled on the way is shown by the digests: those of all slices add up to
//! those of the backup ([`Slices::check`]).
//!
//! Memory: 24 MiB for reading the archive and 24 MiB more for reading again where keys span its segments
//! ([`FileReader`]), 18 MiB of the validator at most and 4 MiB for writing; some 40 MiB where values are smaller than a
//! segment.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, BufWriter};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::atomic::Ordering;

use rdb::{Census, Compression, Family, KeySummary, Target};

use crate::archive::{Archive, FileReader};
use crate::cluster::{SLOTS, slots_of};
use crate::control::Control;
use crate::duplicate::{invalid, nameless};
use crate::error::{Error, Kind};
use crate::failpoint;
use crate::keys::Identity;
use crate::priority;
use crate::sideload::check_loadable;

const CUT: &str = "cut backup into shards";
/// Validated and handed on at once.
const PART_BYTES: usize = 256 * 1024;
/// Buffers of all slices together, and the largest and least of one.
const WRITE_BYTES: usize = 4 * 1024 * 1024;
const SLICE_BUFFER_BYTES: std::ops::RangeInclusive<usize> = 16 * 1024..=256 * 1024;
/// Threads that decode: a second one would hold two segments more.
const WORKERS: usize = 1;

/// A file for each shard of a layout.
#[derive(Debug)]
pub struct Slices {
    slices: Vec<Slice>,
    target: Target,
    /// What the backup holds.
    source: Census,
}

/// What a shard is to load, but for its head and tail: how many keys there are is known when the last one is there.
#[derive(Debug)]
struct Slice {
    body: File,
    /// Keys, and keys that expire, where an engine is to be told.
    sizes: Option<(u64, u64)>,
}

/// Cuts the backup for `shards` shards of equal shares of the slots; 1: all keys of all files in one. The files lie in
/// `directory`, without names. Counts plain bytes and keys in `control`; the phase is the caller's.
///
/// # Errors
/// As [`Archive::read`]; [`Kind::Malformed`] where the bytes are no valid RDB, or one that no engine of ours loads;
/// [`Kind::Refused`] for what the layout cannot hold: keys of another database than 0 in a cluster, keys of more than 1 MiB
/// whose slot cannot be told, libraries of functions that differ between the files; [`Kind::Io`], [`Kind::StoreFull`].
pub fn cut(
    archive: &Archive,
    identity: &Identity,
    shards: u16,
    directory: &Path,
    control: &Control,
) -> Result<Slices, Error> {
    std::thread::scope(|scope| {
        // Not on the calling thread, which has a switch to make when this is over.
        let cutting = scope.spawn(|| {
            priority::let_engines_go_first();
            cut_all(archive, identity, shards, directory, control)
        });
        cutting
            .join()
            .unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })
}

fn cut_all(
    archive: &Archive,
    identity: &Identity,
    shards: u16,
    directory: &Path,
    control: &Control,
) -> Result<Slices, Error> {
    let open = |number| FileReader::new(archive.clone(), identity.clone(), number);
    let files = archive.manifest().files().len();
    let first = open(0)?;
    let family = family_of(&first)?;
    let target = Target::like(family, archive.manifest().rdb_version);
    let source = RefCell::new(first);
    let again = &source;
    let read = |offset: u64, buffer: &mut [u8]| {
        let read = again.borrow().read_at(offset, buffer);
        read.map_err(io::Error::other)
    };
    let buffer_bytes =
        (WRITE_BYTES / usize::from(shards)).clamp(*SLICE_BUFFER_BYTES.start(), *SLICE_BUFFER_BYTES.end());
    let mut writers = Vec::new();
    for _ in 0..shards {
        let out = BufWriter::with_capacity(buffer_bytes, nameless(directory)?);
        writers.push(rdb::Writer::body(family, target, Compression::Keep, read, out));
    }
    let mut slicer = Slicer {
        expires: vec![0; writers.len()],
        writers,
        shard_of: shards_of_slots(shards),
        libraries: BTreeMap::new(),
        keys: 0,
        failure: None,
    };
    let mut census = Census::default();
    for number in 0..files {
        if number > 0 {
            let next = open(number)?;
            if family_of(&next)? != family {
                let context = "its files are of Redis and of Valkey 9: no engine loads both";
                return Err(Error::new(Kind::Refused, CUT, context));
            }
            *source.borrow_mut() = next;
        }
        let mut validator = rdb::Validator::new();
        let malformed = |e: rdb::Error| invalid("validate data", &e);
        source.borrow().read(control, WORKERS, |piece| {
            for part in piece.chunks(PART_BYTES) {
                control.check(CUT)?;
                validator.feed(part, &mut slicer).map_err(malformed)?;
                slicer.failure.take().map_or(Ok(()), Err)?;
                control.bytes_done.fetch_add(part.len() as u64, Ordering::Relaxed);
            }
            control.keys_done.store(slicer.keys, Ordering::Relaxed);
            failpoint::hit("slices.mid_cut")
        })?;
        let report = validator.finish().map_err(malformed)?;
        check_loadable(&report)?;
        census.absorb(&report.census);
        failpoint::hit("slices.file_cut")?;
    }
    let mut slices = Vec::new();
    for (writer, expires) in slicer.writers.into_iter().zip(slicer.expires) {
        let keys = writer.keys();
        let out = writer.finish_body().map_err(not_written)?;
        slices.push(Slice {
            body: out.into_inner().map_err(|e| not_written(e.into_error()))?,
            // One of several has database 0 and no other.
            sizes: (shards > 1).then_some((keys, expires)),
        });
    }
    Ok(Slices {
        slices,
        target,
        source: census,
    })
}

impl Slices {
    /// Hands the RDB of a shard to `push`, in order, once: its room on the disk is given back.
    ///
    /// # Errors
    /// [`Kind::Io`]; what `push` returns.
    pub fn take(&self, shard: usize, mut push: impl FnMut(&[u8]) -> Result<(), Error>) -> Result<(), Error> {
        let failed = |e| Error::io(Kind::Io, CUT, format!("reading the slice of shard {shard}"), e);
        let Some(Slice { body, sizes }) = self.slices.get(shard) else {
            let context = format!("there is no slice of shard {shard}");
            return Err(Error::new(Kind::NotFound, CUT, context));
        };
        let (mut frame, head) = rdb::Frame::head(self.target, *sizes);
        push(&head)?;
        let mut buffer = vec![0; PART_BYTES];
        let mut offset = 0;
        loop {
            let count = match body.read_at(&mut buffer, offset) {
                Err(e) if e.kind() == io::ErrorKind::Interrupted => continue,
                count => count.map_err(failed)?,
            };
            if count == 0 {
                push(&frame.tail())?;
                return body.set_len(0).map_err(failed);
            }
            frame.update(&buffer[..count]);
            push(&buffer[..count])?;
            offset += count as u64;
        }
    }

    /// Compares what all shards have loaded together with what the backup holds: keys, keys that expire, and the digest of
    /// every database.
    ///
    /// # Errors
    /// [`Kind::Mismatch`].
    pub fn check(&self, loaded: &Census) -> Result<(), Error> {
        let told = |census: &Census| -> Vec<_> {
            let dbs = census.dbs.iter();
            dbs.map(|(db, all)| (*db, all.keys, all.expires, all.digest))
                .collect()
        };
        if told(loaded) == told(&self.source) {
            return Ok(());
        }
        let count = |census: &Census| census.totals().keys;
        let context = format!(
            "the shards hold {} keys together and the backup {}, or the same with other values",
            count(loaded),
            count(&self.source)
        );
        Err(Error::new(Kind::Mismatch, CUT, context))
    }
}

fn not_written(error: io::Error) -> Error {
    Error::io(Kind::Io, CUT, "writing a slice", error)
}

/// Which family wrote a file, by its first bytes; all else of the file is the validator's to judge.
fn family_of(file: &FileReader) -> Result<Family, Error> {
    let mut head = [0; Family::Valkey.magic().len()];
    file.read_at(0, &mut head)?;
    Ok(match head.starts_with(Family::Valkey.magic().as_bytes()) {
        true => Family::Valkey,
        false => Family::Redis,
    })
}

/// The shard of each slot.
fn shards_of_slots(shards: u16) -> Vec<u16> {
    let mut shard_of = vec![0; usize::from(SLOTS)];
    for shard in 0..shards {
        let (first, last) = slots_of(shard, shards);
        shard_of[usize::from(first)..=usize::from(last)].fill(shard);
    }
    shard_of
}

/// Passes each key to the writer of its shard, and libraries of functions to all.
struct Slicer<R> {
    writers: Vec<rdb::Writer<R, BufWriter<File>>>,
    /// Keys of each that expire.
    expires: Vec<u64>,
    shard_of: Vec<u16>,
    /// BLAKE3 of the code of each library, by its name: every shard of a cluster has them all.
    libraries: BTreeMap<String, blake3::Hash>,
    keys: u64,
    failure: Option<Error>,
}

impl<R> Slicer<R>
where
    R: FnMut(u64, &mut [u8]) -> io::Result<()>,
{
    fn put(&mut self, key: &KeySummary<'_>) -> Result<(), Error> {
        self.keys += 1;
        let shard = match self.writers.len() {
            1 => 0,
            _ if key.db != 0 => {
                let context = format!(
                    "the backup has keys in database {}, and a cluster has only database 0: restore it into a single instance",
                    key.db
                );
                return Err(Error::new(Kind::Refused, CUT, context));
            }
            _ => usize::from(self.shard_of[usize::from(slot(key)?)]),
        };
        self.expires[shard] += u64::from(key.expire_at_ms.is_some());
        let mut lost = None;
        let written = self.writers[shard].key(key, |loss| lost = Some(loss.reason));
        written.map_err(|e| match e.downcast::<Error>() {
            Ok(error) => error,
            Err(e) => not_written(e),
        })?;
        match lost {
            None => Ok(()),
            Some(reason) => {
                let context = format!("the key at byte {} cannot be written: {reason}", key.offset);
                Err(Error::new(Kind::Refused, CUT, context))
            }
        }
    }

    fn put_library(&mut self, code: &[u8]) -> Result<(), Error> {
        let name = library_name(code);
        let digest = blake3::hash(code);
        match self.libraries.insert(name.clone(), digest) {
            None => {}
            Some(same) if same == digest => return Ok(()),
            Some(_) => {
                let context = format!(
                    "the function library {name:?} is not the same in all shards of the backup: load one of them into all \
                     shards of the source (FUNCTION LOAD REPLACE) and back it up again"
                );
                return Err(Error::new(Kind::Refused, CUT, context));
            }
        }
        for writer in &mut self.writers {
            writer.function(code, |_| ()).map_err(not_written)?;
        }
        Ok(())
    }
}

impl<R> rdb::Sink for Slicer<R>
where
    R: FnMut(u64, &mut [u8]) -> io::Result<()>,
{
    fn key(&mut self, key: &KeySummary<'_>) {
        if self.failure.is_none() {
            self.failure = self.put(key).err();
        }
    }

    fn function(&mut self, code: &[u8]) {
        if self.failure.is_none() {
            self.failure = self.put_library(code).err();
        }
    }
}

/// The slot of a key; of one that is not shown whole only where its tag is.
fn slot(key: &KeySummary<'_>) -> Result<u16, Error> {
    let is_whole = key.key_bytes == key.key.len() as u64;
    if is_whole || rdb::has_tag(key.key) {
        return Ok(rdb::slot_of(key.key));
    }
    let context = format!(
        "the key at byte {} is longer than 1 MiB, and its slot cannot be told",
        key.offset
    );
    Err(Error::new(Kind::Refused, CUT, context))
}

/// What the first line of a library calls it: `#!lua name=this`.
fn library_name(code: &[u8]) -> String {
    let line = code.split(|byte| *byte == b'\n').next().unwrap_or_default();
    let name = line
        .split(u8::is_ascii_whitespace)
        .find_map(|word| word.strip_prefix(b"name="));
    String::from_utf8_lossy(name.unwrap_or_default()).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_slot_is_of_the_shard_that_a_cluster_gives_it_to() {
        for shards in [1, 3, 5, 128] {
            let shard_of = shards_of_slots(shards);
            for (slot, shard) in (0..).zip(&shard_of) {
                let (first, last) = slots_of(*shard, shards);
                assert!((first..=last).contains(&slot), "slot {slot} of {shards} shards");
            }
        }
    }

    #[test]
    fn a_library_has_the_name_that_its_first_line_gives_it() {
        assert_eq!(library_name(b"#!lua name=Mine \nreturn 1"), "Mine");
        assert_eq!(library_name(b"return 1"), "");
    }
}
