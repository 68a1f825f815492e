//! A whole file read by several threads: one finds where entries end, by their lengths, and computes the checksum; others
//! read the entries, part by part.
//!
//! Only the answer "valid" is given here. Whatever else it is, a [`Validator`](crate::Validator) that reads the file from its
//! start tells what and where, as if nobody had looked before.

use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Mutex, PoisonError};

use crate::census::DATABASES_MAX;
use crate::distinct::{Distinct, Entry, Spill};
use crate::event::Sink;
use crate::parser::{Parser, Place, State};
use crate::report::Report;

/// Bytes of a part: a value that is larger is read by the first thread, while the others wait.
const PART_BYTES: usize = 1024 * 1024;
/// Less of a part than this is not worth handing over.
const SHARE_MIN: usize = 32;

/// Entries to be read, and the room in which they travel; it comes back empty.
struct Part {
    bytes: Vec<u8>,
    entries: std::ops::Range<usize>,
    keys: u64,
    place: Place,
    gathered: Vec<Entry>,
}

/// What each search for duplicates may put on disk.
pub struct Spills<F> {
    /// For keys.
    pub keys: Box<dyn Spill + Send>,
    /// Makes one for the members of values, for each thread.
    pub members: F,
}

/// Validates the file that `read` reads, with one thread more than there are `sinks`, this one: the last sink is told what it
/// reads itself, and the others what theirs read. Bytes behind the end are accepted. Returns the sinks with the report.
///
/// Keys are told to a sink in the order of the file, but which sink is told a key is chance. Memory: that of a validator for
/// each thread, and two parts of 1 MiB.
///
/// `None`: the file is not valid, or has warnings that another thread came upon, whose order is lost, or a spill failed.
///
/// # Errors
/// Those of `read`, and of the making of spills.
pub fn validate<S: Sink + Send>(
    sinks: Vec<S>,
    spills: Option<Spills<impl FnMut() -> std::io::Result<Box<dyn Spill + Send>>>>,
    read: impl FnMut(&mut [u8]) -> std::io::Result<usize>,
) -> std::io::Result<Option<(Report, Vec<S>)>> {
    validate_in_parts_of(PART_BYTES, sinks, spills, read)
}

/// As [`validate`], with parts of another size: 32 KiB at least.
///
/// # Errors
/// As [`validate`].
#[doc(hidden)]
pub fn validate_in_parts_of<S: Sink + Send>(
    part_bytes: usize,
    mut sinks: Vec<S>,
    spills: Option<Spills<impl FnMut() -> std::io::Result<Box<dyn Spill + Send>>>>,
    read: impl FnMut(&mut [u8]) -> std::io::Result<usize>,
) -> std::io::Result<Option<(Report, Vec<S>)>> {
    let Some(mut own) = sinks.pop() else {
        return Ok(None);
    };
    let mut first = Parser::new();
    first.accepts_trailing_bytes = true;
    let (keys, mut members) = match spills {
        Some(spills) => (Some(spills.keys), Some(spills.members)),
        None => (None, None),
    };
    if let Some(keys) = keys {
        first.distinct = Distinct::new(Some(keys));
    }
    let mut parsers = Vec::new();
    for _ in &sinks {
        let mut parser = first.for_parts();
        if let Some(members) = &mut members {
            parser.keep_members_in(members()?);
        }
        parsers.push(parser);
    }
    if let Some(members) = &mut members {
        first.keep_members_in(members()?);
    }
    let rooms = 2 * sinks.len() + 1;
    let (to_readers, parts) = sync_channel(rooms);
    // Room for every part, and a word of each thread: nobody waits to give back.
    let (back, returned) = sync_channel(rooms + sinks.len());
    let parts = Mutex::new(parts);
    let (reached, readers) = std::thread::scope(|scope| {
        let readers: Vec<_> = parsers
            .into_iter()
            .zip(sinks)
            .map(|(parser, sink)| {
                let (parts, back) = (&parts, back.clone());
                scope.spawn(move || read_parts(parser, sink, parts, &back))
            })
            .collect();
        drop(back);
        let mut split = Split {
            parser: &mut first,
            sink: &mut own,
            to_readers,
            returned,
            part_bytes,
            rooms,
            away: 0,
        };
        let reached = split.run(read);
        drop(split);
        let readers: Vec<_> = readers.into_iter().map(|reader| reader.join()).collect();
        (reached, readers)
    });
    let readers: Vec<(Parser, S)> = readers
        .into_iter()
        .map(|reader| reader.unwrap_or_else(|panic| std::panic::resume_unwind(panic)))
        .collect();
    if !reached? {
        return Ok(None);
    }
    let Ok(mut report) = first.into_report() else {
        return Ok(None);
    };
    let mut sinks = Vec::new();
    for (parser, sink) in readers {
        if !Parser::absorb(&mut report, parser) {
            return Ok(None);
        }
        sinks.push(sink);
    }
    sinks.push(own);
    // Each thread counted its own.
    if report.census.dbs.len() > DATABASES_MAX {
        return Ok(None);
    }
    Ok(Some((report, sinks)))
}

/// Tells the first thread of a panic, which would wait for the part for ever.
struct Alarm<'a>(&'a SyncSender<Option<Part>>);

impl Drop for Alarm<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let _nobody_waits = self.0.send(None);
        }
    }
}

/// Reads parts until there are no more. One that is not valid is not given back, which ends everything.
fn read_parts<S: Sink>(
    mut parser: Parser,
    mut sink: S,
    parts: &Mutex<Receiver<Part>>,
    back: &SyncSender<Option<Part>>,
) -> (Parser, S) {
    let _alarm = Alarm(back);
    loop {
        let next = parts.lock().unwrap_or_else(PoisonError::into_inner).recv();
        let Ok(mut part) = next else {
            return (parser, sink);
        };
        let bytes = &part.bytes[part.entries.clone()];
        let is_valid = matches!(
            parser.read_part(&part.place, bytes, part.keys, &mut sink),
            Ok(true)
        );
        parser.distinct.gathered(&mut part.gathered);
        if back.send(is_valid.then_some(part)).is_err() || !is_valid {
            return (parser, sink);
        }
    }
}

/// The first thread.
struct Split<'a, S> {
    parser: &'a mut Parser,
    sink: &'a mut S,
    to_readers: SyncSender<Part>,
    returned: Receiver<Option<Part>>,
    part_bytes: usize,
    /// Rooms that may still be made.
    rooms: usize,
    /// Parts that are being read.
    away: usize,
}

impl<S: Sink> Split<'_, S> {
    /// `false`: not valid.
    fn run(&mut self, mut read: impl FnMut(&mut [u8]) -> std::io::Result<usize>) -> std::io::Result<bool> {
        let (mut room, mut gathered) = (vec![0; self.part_bytes], Vec::new());
        // What is not read yet lies from `start` to `filled`.
        let (mut start, mut filled, mut is_end) = (0, 0, false);
        loop {
            while filled < room.len() && !is_end {
                match read(&mut room[filled..]) {
                    Ok(0) => is_end = true,
                    Ok(count) => filled += count,
                    Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
                    Err(error) => return Err(error),
                }
            }
            let seen = self.parser.skim(&room[start..filled]);
            let is_worth_it = seen.bytes >= self.part_bytes / SHARE_MIN;
            if !is_worth_it && seen.wants_more && start > 0 && !is_end {
                room.copy_within(start..filled, 0);
                (start, filled) = (0, filled - start);
                continue;
            }
            if is_worth_it {
                let place = self.parser.place();
                let end = start + seen.bytes;
                self.parser.pass_over(&room[start..end], seen.keys);
                let Some((mut next, empty)) = self.empty_room() else {
                    return Ok(false);
                };
                next[..filled - end].copy_from_slice(&room[end..filled]);
                let part = Part {
                    bytes: std::mem::replace(&mut room, next),
                    entries: start..end,
                    keys: seen.keys,
                    place,
                    gathered: std::mem::replace(&mut gathered, empty),
                };
                (start, filled) = (0, filled - end);
                if self.to_readers.send(part).is_err() {
                    return Ok(false);
                }
                self.away += 1;
                continue;
            }
            // Up to the end of what was skimmed, or of the one entry or the other thing that was not.
            let target = self.parser.base + seen.bytes as u64;
            let goes_on = |parser: &Parser, at: u64| !parser.is_between_entries() || at < target;
            let Ok(done) = self.parser.run_while(&room[start..filled], self.sink, goes_on) else {
                return Ok(false);
            };
            start += done.consumed;
            if done.consumed == 0 || start == filled {
                if is_end || (start == 0 && filled == room.len()) {
                    break;
                }
                room.copy_within(start..filled, 0);
                (start, filled) = (0, filled - start);
            }
        }
        Ok(self.parser.state == State::Done && start == filled && self.all_are_back())
    }

    /// Room for the next part: new, or that of one that has been read. `None`: one was not valid.
    fn empty_room(&mut self) -> Option<(Vec<u8>, Vec<Entry>)> {
        if self.rooms > 0 {
            self.rooms -= 1;
            return Some((vec![0; self.part_bytes], Vec::new()));
        }
        let part = self.take_back()?;
        Some((part.bytes, part.gathered))
    }

    fn take_back(&mut self) -> Option<Part> {
        let mut part = self.returned.recv().ok().flatten()?;
        self.parser.distinct.take(&mut part.gathered).ok()?;
        part.gathered.clear();
        self.away -= 1;
        Some(part)
    }

    /// Waits for every part that is still being read.
    fn all_are_back(&mut self) -> bool {
        (0..self.away).all(|_| self.take_back().is_some())
    }
}
