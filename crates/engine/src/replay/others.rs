//! What else the target has: found after all of the backup is there, or before any of it is, written down, and then removed.
//!
//! The names that the backup's keys have in the target are compared with those that the target has, both cut into parts by
//! a hash so that memory holds one part at a time. What is found is a list in a file; to remove what it names is one more
//! pass, with positions and a journal as any.

use std::collections::HashSet;
use std::fs::File;
use std::io::{BufReader, BufWriter, Read, Seek, SeekFrom, Write};
use std::time::Instant;

use rdb::{Copied, Entries, KeySummary, Taker};

use super::account::Account;
use super::feeder::{PAYLOAD_BYTES_MAX, Pass};
use super::input::Valid;
use super::journal::Stage;
use super::ledger::Position;
use super::target::Primary;
use super::{APPLY, Others, Run, keys_of, nameless};
use crate::Control;
use crate::error::{Error, Kind};
use crate::node::{Node, Reply};
use crate::selection::Candidate;

const FIND: &str = "find other keys";
/// Names of one part: 16 bytes of each are held.
const PART_KEYS: u64 = 512 * 1024;
/// Most parts: each has a buffer for two files.
const PARTS_MAX: u64 = 128;
const BUFFER_BYTES: usize = 32 * 1024;
/// Keys that a node is asked for at once.
const SCAN_KEYS: &str = "1000";

/// Two sets of names, in parts.
struct Parts {
    /// 16 bytes for each name that the backup gives.
    given: Vec<BufWriter<File>>,
    /// Each name of the target: database, length, bytes.
    found: Vec<BufWriter<File>>,
}

fn print_of(db: u32, name: &[u8]) -> u128 {
    let mut hasher = blake3::Hasher::new();
    hasher.update(&db.to_le_bytes()).update(name);
    let mut print = [0; 16];
    hasher.finalize_xof().fill(&mut print);
    u128::from_le_bytes(print)
}

fn failed(error: std::io::Error) -> Error {
    Error::io(
        Kind::Io,
        FIND,
        "in the folder for what memory does not hold",
        error,
    )
}

impl Parts {
    fn new(count: u64, folder: &std::path::Path) -> Result<Self, Error> {
        let file = |_| Ok(BufWriter::with_capacity(BUFFER_BYTES, nameless(folder)?));
        Ok(Self {
            given: (0..count).map(file).collect::<Result<_, Error>>()?,
            found: (0..count).map(file).collect::<Result<_, Error>>()?,
        })
    }

    fn part(&self, print: u128) -> usize {
        // Less than there are parts.
        (print % self.given.len() as u128) as usize
    }

    fn give(&mut self, db: u32, name: &[u8]) -> std::io::Result<()> {
        let print = print_of(db, name);
        let part = self.part(print);
        self.given[part].write_all(&print.to_le_bytes())
    }

    fn find(&mut self, db: u32, name: &[u8]) -> std::io::Result<()> {
        let part = self.part(print_of(db, name));
        write_name(&mut self.found[part], db, name)
    }

    /// Each name that was found and not given, once.
    fn others(self, mut tell: impl FnMut(u32, &[u8]) -> std::io::Result<()>) -> std::io::Result<()> {
        for (given, found) in self.given.into_iter().zip(self.found) {
            let mut prints = HashSet::new();
            let mut given = rewound(given)?;
            let mut print = [0; 16];
            while read_whole(&mut given, &mut print)? {
                prints.insert(u128::from_le_bytes(print));
            }
            let mut found = rewound(found)?;
            let mut name = Vec::new();
            while let Some((db, _)) = read_name(&mut found, &mut name)? {
                // A node may tell a key twice.
                if prints.insert(print_of(db, &name)) {
                    tell(db, &name)?;
                }
            }
        }
        Ok(())
    }
}

fn rewound(file: BufWriter<File>) -> std::io::Result<BufReader<File>> {
    let mut file = file.into_inner().map_err(|error| error.into_error())?;
    file.rewind()?;
    Ok(BufReader::with_capacity(BUFFER_BYTES, file))
}

fn write_name(out: &mut impl Write, db: u32, name: &[u8]) -> std::io::Result<()> {
    // At most 512 MiB.
    let length = name.len() as u32;
    out.write_all(&db.to_le_bytes())?;
    out.write_all(&length.to_le_bytes())?;
    out.write_all(name)
}

/// Fills all of the buffer; `false` at the end of the file.
fn read_whole(from: &mut impl Read, buffer: &mut [u8]) -> std::io::Result<bool> {
    match from.read_exact(buffer) {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == std::io::ErrorKind::UnexpectedEof => Ok(false),
        Err(error) => Err(error),
    }
}

/// The next name, its database and the bytes it takes in the file; `None` at the end.
fn read_name(from: &mut impl Read, name: &mut Vec<u8>) -> std::io::Result<Option<(u32, u64)>> {
    let mut head = [0; 8];
    if !read_whole(from, &mut head)? {
        return Ok(None);
    }
    let [a, b, c, d, rest @ ..] = head;
    let length = u32::from_le_bytes(rest);
    name.clear();
    from.take(u64::from(length)).read_to_end(name)?;
    if name.len() as u64 != u64::from(length) {
        return Err(std::io::ErrorKind::UnexpectedEof.into());
    }
    Ok(Some((u32::from_le_bytes([a, b, c, d]), 8 + u64::from(length))))
}

/// Gathers the names that a file's keys get.
struct Given<'a, 'r> {
    run: &'a Run<'r>,
    valid: &'a Valid,
    parts: &'a mut Parts,
    failure: Option<std::io::Error>,
}

impl Given<'_, '_> {
    fn take(&mut self, key: &Candidate<'_>) {
        let plan = self.run.plan;
        let over_by = plan
            .shape
            .over_by(self.run.state.judged_at_ms, self.valid.written_ms);
        // Who fails stays what it was in the target; who is over goes.
        if !plan.selection.takes(key) || key.expire_at_ms.is_some_and(|at_ms| at_ms <= over_by) {
            return;
        }
        let Some(name) = plan.shape.name(key.key) else {
            return;
        };
        if let Err(error) = self.parts.give(plan.shape.db(key.db), &name) {
            self.failure.get_or_insert(error);
        }
    }
}

impl Taker for Given<'_, '_> {
    fn copied(&mut self, entry: &Copied<'_>) {
        self.take(&Candidate {
            db: entry.db,
            key: entry.key,
            kind: entry.kind,
            expire_at_ms: entry.expire_at_ms,
            bytes: Some(entry.bytes),
        });
    }

    fn read(&mut self, key: &KeySummary<'_>) {
        self.take(&Candidate {
            db: key.db,
            key: key.key,
            kind: key.kind,
            expire_at_ms: key.expire_at_ms,
            bytes: Some(key.bytes),
        });
    }
}

impl Run<'_> {
    /// Finds what else the target has, and removes it; or only counts it.
    pub(super) fn others(&mut self, is_dry: bool) -> Result<(), Error> {
        if is_dry || self.state.stage == Stage::Searching {
            self.control.enter("searching", self.bytes());
            let list = self.again(|run, _| run.search(is_dry))?;
            if is_dry {
                return Ok(());
            }
            self.list = Some(list);
            let end = Position {
                file: self.files.len(),
                offset: 0,
                db: 0,
                key: keys_of(self.files),
            };
            (self.state.position, self.state.sent_below) = (end, end.key);
            self.state.stage = Stage::Removing;
            self.write()?;
        } else if let Some(journal) = self.journal {
            let path = journal.others_path();
            self.list = Some(
                File::open(&path).map_err(|e| Error::io(Kind::Io, FIND, path.display().to_string(), e))?,
            );
        }
        let bytes = self
            .list
            .as_ref()
            .map_or(Ok(0), |list| list.metadata().map(|about| about.len()));
        (self.enter)(Stage::Removing)?;
        self.control.enter("removing", bytes.map_err(failed)?);
        self.passes(Pass::Remove)
    }

    /// The list of other keys. Where it only counts, they are in the account, and the list is empty.
    fn search(&mut self, is_dry: bool) -> Result<File, Error> {
        let before = self.target.nodes(&self.primaries)?;
        let mut target_keys = 0;
        let mut links = Vec::new();
        for primary in &before.primaries {
            let mut node = self.target.connect(&primary.address)?;
            let dbs = dbs_of(&mut node)?;
            target_keys += dbs.iter().map(|(_, keys)| keys).sum::<u64>();
            links.push((node, dbs));
        }
        let count = keys_of(self.files)
            .max(target_keys)
            .div_ceil(PART_KEYS)
            .clamp(1, PARTS_MAX);
        let mut parts = Parts::new(count, &self.plan.spill)?;
        for valid in self.files {
            self.give(valid, &mut parts)?;
        }
        for (node, dbs) in &mut links {
            // Whose database no selected key goes to keeps all of it, unless all go.
            let is_of_all = self.plan.others == Others::All && self.plan.selection.dbs.is_empty();
            let is_searched = |db: &u32| is_of_all || self.sources.contains_key(db);
            for (db, _) in dbs.iter().filter(|(db, _)| is_searched(db)) {
                self.scan(node, *db, &mut parts)?;
            }
        }
        let after = self.target.nodes(&self.primaries)?;
        let address = |primary: &Primary| primary.address.clone();
        let moved = (0..super::target::SLOTS as u16).any(|slot| {
            let owner = |nodes: &super::target::Nodes| nodes.primaries.get(nodes.owner(slot)).map(address);
            owner(&before) != owner(&after)
        });
        if moved {
            // A key may have gone past the search.
            return Err(Error::new(Kind::Connection, FIND, "slots moved meanwhile"));
        }
        let list = match self.journal.filter(|_| !is_dry) {
            None => nameless(&self.plan.spill)?,
            Some(journal) => {
                let path = journal.others_path();
                let made = File::options()
                    .read(true)
                    .write(true)
                    .create(true)
                    .truncate(true)
                    .open(&path);
                made.map_err(|e| Error::io(Kind::Io, FIND, path.display().to_string(), e))?
            }
        };
        let mut out = BufWriter::new(&list);
        let mut account = Account::default();
        let told = parts.others(|db, name| match is_dry {
            true => {
                account.removed.add(db, name, "");
                Ok(())
            }
            false => write_name(&mut out, db, name),
        });
        told.and_then(|()| out.flush())
            .and_then(|()| list.sync_all())
            .map_err(failed)?;
        drop(out);
        self.state.account.absorb(account);
        Ok(list)
    }

    fn give(&self, valid: &Valid, parts: &mut Parts) -> Result<(), Error> {
        let mut given = Given {
            run: self,
            valid,
            parts,
            failure: None,
        };
        let mut entries = Entries::new(rdb::Target::by_name("redis-8.6"), PAYLOAD_BYTES_MAX);
        valid.read(0, self.control, |piece| {
            let changed = |e: rdb::Error| Error::new(Kind::Malformed, APPLY, e.to_string());
            entries.feed(piece, &mut given).map_err(changed)?;
            given.failure.take().map_or(Ok(()), |error| Err(failed(error)))
        })
    }

    fn scan(&self, node: &mut Node, db: u32, parts: &mut Parts) -> Result<(), Error> {
        select(node, db)?;
        names_in(node, &[], self.control, |name| match self.is_in_scope(db, name) {
            true => parts.find(db, name).map_err(failed),
            false => Ok(()),
        })
    }

    /// Whether a key of the target is where a selected key of the backup could be.
    fn is_in_scope(&self, db: u32, name: &[u8]) -> bool {
        let shape = &self.plan.shape;
        let (from, key) = shape.source_of(self.sources, db, name);
        shape.could_be_made(name) && self.plan.selection.takes_name(from, &key)
    }

    /// Hands the names of the list from `offset` on to `push`, each with its bytes in the file.
    pub(super) fn listed(
        list: &File,
        offset: u64,
        mut push: impl FnMut(u32, &[u8], u64) -> Result<(), Error>,
    ) -> Result<(), Error> {
        let mut file = BufReader::with_capacity(BUFFER_BYTES, list);
        file.seek(SeekFrom::Start(offset)).map_err(failed)?;
        let mut name = Vec::new();
        while let Some((db, bytes)) = read_name(&mut file, &mut name).map_err(failed)? {
            push(db, &name, bytes)?;
        }
        Ok(())
    }

    /// Acts, as often as something interrupts it that may get on again.
    pub(super) fn again<T>(
        &mut self,
        mut act: impl FnMut(&mut Self, bool) -> Result<T, Error>,
    ) -> Result<T, Error> {
        let (mut since, mut pause) = (Instant::now(), *super::PAUSE.start());
        let mut is_first = true;
        loop {
            let before = self.state.position;
            let error = match act(self, is_first) {
                Ok(done) => return Ok(done),
                Err(error) => error,
            };
            is_first = false;
            if !matches!(error.kind, Kind::Connection | Kind::Idle) {
                return Err(error);
            }
            if self.state.position != before {
                (since, pause) = (Instant::now(), *super::PAUSE.start());
            }
            if since.elapsed() >= self.plan.patience {
                return Err(error);
            }
            tracing::info!(
                error = crate::chain(&error),
                "a replay was interrupted and goes on"
            );
            let until = Instant::now() + pause;
            while Instant::now() < until {
                self.control.check(APPLY)?;
                std::thread::sleep(super::PAUSE.start().min(&pause).to_owned() / 5);
            }
            pause = (pause * 2).min(*super::PAUSE.end());
        }
    }
}

/// The databases that have keys, and how many.
pub(super) fn dbs_of(node: &mut Node) -> Result<Vec<(u32, u64)>, Error> {
    let dbs = node.info("keyspace")?;
    Ok(dbs
        .iter()
        .filter_map(|(name, value)| {
            let db = name.strip_prefix("db")?.parse().ok()?;
            let keys = value.split(',').find_map(|part| part.strip_prefix("keys="))?;
            Some((db, keys.parse().ok()?))
        })
        .collect())
}

/// Goes to a database of a node on which none was chosen yet.
pub(super) fn select(node: &mut Node, db: u32) -> Result<(), Error> {
    match db {
        0 => Ok(()),
        _ => node.run(&["SELECT", &db.to_string()]).map(drop),
    }
}

/// Each name of the node's database, some of them twice; `more` is what SCAN is asked for besides.
pub(super) fn names_in(
    node: &mut Node,
    more: &[&str],
    control: &Control,
    mut tell: impl FnMut(&[u8]) -> Result<(), Error>,
) -> Result<(), Error> {
    let odd = || Error::new(Kind::Protocol, FIND, "SCAN answers something else");
    let mut cursor = "0".to_owned();
    loop {
        control.check(FIND)?;
        let reply = node.run(&[&["SCAN", &cursor, "COUNT", SCAN_KEYS], more].concat())?;
        let Reply::Array(pair) = reply else {
            return Err(odd());
        };
        let [next, Reply::Array(names)] = &pair[..] else {
            return Err(odd());
        };
        for name in names {
            let Reply::Bulk(Some(name)) = name else {
                return Err(odd());
            };
            tell(name)?;
        }
        cursor = next.text().ok_or_else(odd)?;
        if cursor == "0" {
            return Ok(());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_that_were_found_and_not_given_are_told_once() {
        let mut parts = Parts::new(3, &std::env::temp_dir()).unwrap();
        for number in 0..1000 {
            parts.give(0, format!("key:{number}").as_bytes()).unwrap();
        }
        for number in (500..1500).chain(900..1100) {
            parts.find(0, format!("key:{number}").as_bytes()).unwrap();
        }
        parts.find(1, b"key:0").unwrap();
        let mut others = HashSet::new();
        parts
            .others(|db, name| {
                assert!(others.insert((db, name.to_vec())));
                Ok(())
            })
            .unwrap();
        assert_eq!(others.len(), 501);
        assert!(others.contains(&(1, b"key:0".to_vec())) && others.contains(&(0, b"key:1000".to_vec())));
    }
}
