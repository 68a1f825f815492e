//! The reading connections. A read transaction costs more in locks than a page of a list costs to read, so one stays
//! open from read to read for as long as nothing was committed, by this process or by another.

use std::cell::Cell;
use std::fs::File;
use std::mem::ManuallyDrop;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, MutexGuard, TryLockError};

use rusqlite::{Connection, OpenFlags};

use super::Error;
use super::sqlite::{begin, connect, roll_back};

/// Connections kept: the service's threads for requests and jobs are fewer, and each prefers one of its own, whose pages
/// then stay in its core's cache.
const SLOTS: usize = 16;

/// All that was committed up to a moment, as the header of SQLite's WAL index: the number of the last commit, its frame
/// and its checksums. It changes with each commit and with each restart of the log. Source: SQLite "WAL-mode File Format",
/// section 2.1.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Seen([u8; 48]);

impl Default for Seen {
    /// Nothing at all.
    fn default() -> Self {
        Self([0; 48])
    }
}

/// The connections and what tells them of commits.
pub struct Readers {
    path: PathBuf,
    slots: [Mutex<Reader>; SLOTS],
    /// While this is not 0 no snapshot is left open.
    pauses: AtomicUsize,
    /// Never closed: a process that closes any descriptor of a file loses its POSIX locks on it, SQLite's among them.
    index: ManuallyDrop<File>,
}

#[derive(Default)]
struct Reader {
    connection: Option<Connection>,
    /// The header from before the open snapshot was taken; `None` where none is open.
    snapshot: Option<Seen>,
}

static THREADS: AtomicUsize = AtomicUsize::new(0);

thread_local! {
    /// The slot that this thread tries first.
    static PREFERRED: Cell<usize> = Cell::new(THREADS.fetch_add(1, Ordering::Relaxed) % SLOTS);
}

impl Readers {
    /// The catalogue must be open in WAL mode and have been read.
    ///
    /// # Errors
    /// [`Error::Unusable`] where it has no WAL index.
    pub fn of(path: &Path) -> Result<Self, Error> {
        let mut index = path.as_os_str().to_owned();
        index.push("-shm");
        let index = File::open(&index).map_err(|error| {
            Error::Unusable(format!(
                "{} cannot be read, and the catalogue is not safe without it: {error}",
                Path::new(&index).display()
            ))
        })?;
        Ok(Self {
            path: path.to_owned(),
            slots: Default::default(),
            pauses: AtomicUsize::new(0),
            index: ManuallyDrop::new(index),
        })
    }

    /// Runs `work` on one state, with all in it that was committed before `seen`.
    ///
    /// # Errors
    /// What `work` returns, or [`Error::Database`].
    pub fn read<T, E: From<Error>>(
        &self,
        seen: Seen,
        work: impl FnOnce(&Connection) -> Result<T, E>,
    ) -> Result<T, E> {
        self.with_reader(|reader| {
            let result = work(self.begin(reader, seen)?);
            if result.is_err() {
                reader.end();
            }
            result
        })
    }

    fn with_reader<T>(&self, work: impl FnOnce(&mut Reader) -> T) -> T {
        let mine = PREFERRED.get();
        let mut free = (mine..SLOTS)
            .chain(0..mine)
            .filter_map(|at| free(&self.slots[at]));
        match free.next() {
            Some(mut reader) => {
                let result = work(&mut reader);
                if self.pauses.load(Ordering::SeqCst) > 0 {
                    reader.end();
                }
                result
            }
            None => work(&mut Reader::default()),
        }
    }

    /// A connection whose open snapshot has all that was committed before `seen`.
    fn begin<'r>(&self, reader: &'r mut Reader, seen: Seen) -> Result<&'r Connection, Error> {
        if reader.snapshot.is_some_and(|taken| taken != seen) {
            // Older or newer than asked for, that cannot be told.
            reader.end();
        }
        let connection = match &mut reader.connection {
            Some(connection) => connection,
            none => none.insert(connect(&self.path, OpenFlags::SQLITE_OPEN_READ_ONLY)?),
        };
        if reader.snapshot.is_none() {
            // Read again, before the snapshot is taken: a commit in between makes it look older than it is, never newer.
            let taken = self.seen()?;
            begin(connection, "BEGIN")?;
            reader.snapshot = Some(taken);
        }
        Ok(connection)
    }

    /// Ends the snapshots that nobody reads from, and has the others end after their read, until the guard is dropped.
    /// SQLite's log starts anew only at a checkpoint that no reader stands behind: with snapshots that never end it would
    /// grow for ever. A reader that is just about to let go of its slot may be missed: the next commit ends that one.
    pub fn pause(&self) -> Pause<'_> {
        self.pauses.fetch_add(1, Ordering::SeqCst);
        for mut reader in self.slots.iter().filter_map(free) {
            reader.end();
        }
        Pause(self)
    }

    /// What is committed now.
    ///
    /// # Errors
    /// [`Error::Unusable`] where the WAL index cannot be read.
    pub fn seen(&self) -> Result<Seen, Error> {
        let mut header = [0; 48];
        match self.index.read_exact_at(&mut header, 0) {
            Ok(()) => Ok(Seen(header)),
            Err(error) => Err(Error::Unusable(format!(
                "{}-shm cannot be read: {error}",
                self.path.display()
            ))),
        }
    }
}

/// The slot's reader, where no thread has it.
fn free(slot: &Mutex<Reader>) -> Option<MutexGuard<'_, Reader>> {
    match slot.try_lock() {
        Ok(reader) => Some(reader),
        Err(TryLockError::WouldBlock) => None,
        // A panic inside `work`: what it was doing on the connection is undone.
        Err(TryLockError::Poisoned(poisoned)) => {
            slot.clear_poison();
            let mut reader = poisoned.into_inner();
            reader.end();
            Some(reader)
        }
    }
}

impl Reader {
    fn end(&mut self) {
        self.snapshot = None;
        if let Some(connection) = &self.connection {
            roll_back(connection);
        }
    }
}

/// See [`Readers::pause`].
pub struct Pause<'r>(&'r Readers);

impl Drop for Pause<'_> {
    fn drop(&mut self) {
        self.0.pauses.fetch_sub(1, Ordering::SeqCst);
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicI64;

    use super::super::{Catalog, Tx};
    use super::*;

    struct Scratch(PathBuf);

    impl Scratch {
        fn new() -> Self {
            let directory = std::env::temp_dir().join(format!("cachekeep-{}", crate::secrets::random_hex(8)));
            std::fs::create_dir(&directory).unwrap();
            Self(directory)
        }

        fn open(&self) -> Catalog {
            let catalog = Catalog::open(&self.0.join("catalog.sqlite")).unwrap();
            let made = catalog
                .write(|tx| tx.execute("CREATE TABLE setting (name TEXT PRIMARY KEY, value TEXT)", ()));
            made.unwrap();
            catalog
        }
    }

    impl Drop for Scratch {
        fn drop(&mut self) {
            let _left_behind = std::fs::remove_dir_all(&self.0);
        }
    }

    const SET: &str =
        "INSERT INTO setting (name, value) VALUES ('n', ?1) ON CONFLICT DO UPDATE SET value = ?1";

    fn set(tx: &Tx<'_>, n: i64) -> Result<(), Error> {
        tx.execute(SET, (n.to_string(),)).map(drop)
    }

    fn get(tx: &Tx<'_>) -> Result<i64, Error> {
        let text = tx.one("SELECT value FROM setting WHERE name = 'n'", (), |row| {
            row.get::<String>(0)
        })?;
        Ok(text.and_then(|text| text.parse().ok()).unwrap_or(-1))
    }

    fn ask(catalog: &Catalog) -> i64 {
        catalog.read(get).unwrap()
    }

    #[test]
    fn what_was_committed_before_a_read_began_is_seen_by_it() {
        let scratch = Scratch::new();
        let catalog = scratch.open();
        let committed = AtomicI64::new(-1);
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    while committed.load(Ordering::SeqCst) < 500 {
                        let least = committed.load(Ordering::SeqCst);
                        assert!(ask(&catalog) >= least);
                    }
                });
            }
            for n in 0..=500 {
                catalog.write(|tx| set(tx, n)).unwrap();
                committed.store(n, Ordering::SeqCst);
                assert_eq!(ask(&catalog), n);
            }
        });
    }

    #[test]
    fn what_another_process_committed_is_seen() {
        let scratch = Scratch::new();
        let catalog = scratch.open();
        for n in 0..20 {
            let script = format!("{};", SET.replace("?1", &format!("'{n}'")));
            let done = std::process::Command::new("sqlite3")
                .arg(scratch.0.join("catalog.sqlite"))
                .arg(script)
                .status()
                .unwrap();
            assert!(done.success());
            assert_eq!(ask(&catalog), n);
        }
    }

    #[test]
    fn what_was_seen_before_is_in_a_later_read_and_a_failed_one_costs_nothing() {
        let scratch = Scratch::new();
        let catalog = scratch.open();
        catalog.write(|tx| set(tx, 7)).unwrap();
        let seen = catalog.seen().unwrap();
        let refused = catalog.read_since(seen, |_| Err::<i64, _>(Error::Unusable("no".to_owned())));
        assert!(refused.is_err());
        assert_eq!(catalog.read_since(seen, get).unwrap(), 7);
        catalog.write(|tx| set(tx, 8)).unwrap();
        // Of what was committed since, a read may have seen all or nothing.
        assert!(catalog.read_since(seen, get).unwrap() >= 7);
        assert_eq!(catalog.read_since(catalog.seen().unwrap(), get).unwrap(), 8);
    }

    #[test]
    fn the_log_starts_anew_under_reads_that_never_cease() {
        let scratch = Scratch::new();
        let catalog = scratch.open();
        let log = scratch.0.join("catalog.sqlite-wal");
        for n in 0..3000 {
            catalog.write(|tx| set(tx, n)).unwrap();
            assert_eq!(ask(&catalog), n);
        }
        // SQLite makes a checkpoint at 1,000 pages of 4 KiB and a frame's head.
        let bytes = std::fs::metadata(&log).unwrap().len();
        assert!(bytes < 2 * 1000 * 4120, "{bytes} bytes of log");
    }

    #[test]
    fn a_panic_inside_a_read_costs_that_read_only() {
        let scratch = Scratch::new();
        let catalog = scratch.open();
        let panics = || {
            let _never = catalog.read::<(), Error>(|tx| {
                get(tx)?;
                panic!("on purpose")
            });
        };
        for n in 0..2 * i64::try_from(SLOTS).unwrap() {
            assert!(std::panic::catch_unwind(std::panic::AssertUnwindSafe(panics)).is_err());
            catalog.write(|tx| set(tx, n)).unwrap();
            assert_eq!(catalog.read(get).unwrap(), n);
        }
    }
}
