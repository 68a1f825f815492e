//! The catalogue: our SQL database. Knows no table by name; the SQL lives in the `record.rs` of each subject.
//!
//! It is a file of SQLite in the data directory, or a database of PostgreSQL. One text of SQL serves both
//! ([`dialect`]), and what is promised is the same: reads never wait for a writer and see all that was committed before
//! they began; writes come one after the other and are on disk when the call returns.

pub mod dialect;
pub mod image;
mod line;
mod open;
mod postgres;
mod readers;
mod sent;
mod sqlite;
mod value;
pub mod version;
mod wire;

use std::path::Path;

use crate::clock;
use crate::ids::Moment;

pub use sqlite::Seen;
pub(crate) use value::params;
pub use value::{FromSql, Params, Row, ToSql, Value};
pub use version::SCHEMA_VERSION;

/// The tables; and, by the edge that knows the words, how a restore record is told.
const SCHEMA: &str = concat!(
    include_str!("schema.sql"),
    "\n",
    include_str!("../api/restores.sql")
);

/// What the catalogue answers when it cannot do what was asked.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A UNIQUE, CHECK or trigger rule forbade it: the text names the rule's columns.
    #[error("the catalogue forbids it: {0}")]
    Constraint(String),
    /// The database itself failed.
    #[error("the catalogue failed")]
    Database(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// The database does not answer: whoever asks again later may be answered.
    #[error("the catalogue's database does not answer")]
    Away(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// It belongs to another program, to a newer version or to another data directory.
    #[error("{0}")]
    Unusable(String),
    /// It is of this older version, and has to be migrated first.
    #[error("it has catalogue version {0}, and this program works with version {SCHEMA_VERSION}")]
    Old(i64),
    /// It holds what no version of this program wrote.
    #[error("the catalogue holds what cannot be: {0}")]
    Unreadable(String),
}

/// An open catalogue.
pub struct Catalog {
    backend: Backend,
    before_commit: BeforeCommit,
}

enum Backend {
    Sqlite(Box<sqlite::Database>),
    Postgres(Box<postgres::Database>),
}

/// What belongs into every transaction that changes something.
pub type BeforeCommit = fn(&Tx<'_>) -> Result<(), Error>;

/// One transaction.
pub struct Tx<'c>(Session<'c>);

enum Session<'c> {
    Sqlite(&'c rusqlite::Connection),
    Postgres(&'c open::Open),
}

impl Catalog {
    /// Opens the file, creating it with its tables where it is empty.
    ///
    /// # Errors
    /// [`Error::Unusable`] for a file of another version, of another form or of another program,
    /// [`Error::Database`] otherwise.
    pub fn open(path: &Path) -> Result<Self, Error> {
        let database = sqlite::Database::open(path)?;
        Ok(Self::of(Backend::Sqlite(Box::new(database))))
    }

    /// Opens a database of PostgreSQL by its URL; where it has no tables they are made, if `may_make` says so.
    ///
    /// # Errors
    /// As [`Self::open`]; [`Error::Away`] where nobody answers; [`Error::Unusable`] for a wrong URL or another's catalogue.
    pub fn connect(url: &str, may_make: bool) -> Result<Self, Error> {
        let database = postgres::Database::open(url, may_make)?;
        Ok(Self::of(Backend::Postgres(Box::new(database))))
    }

    /// Whether the database of that URL holds a catalogue.
    ///
    /// # Errors
    /// As [`Self::connect`].
    pub fn is_made(url: &str) -> Result<bool, Error> {
        postgres::Database::is_made(url)
    }

    fn of(backend: Backend) -> Self {
        Self {
            backend,
            before_commit: |_| Ok(()),
        }
    }

    /// Whether other processes, on other machines too, may have it open and act by it.
    pub fn is_shared(&self) -> bool {
        matches!(self.backend, Backend::Postgres(_))
    }

    /// Lets its transactions wait for something else for minutes: for who has the catalogue alone.
    #[must_use]
    pub fn patient(mut self) -> Self {
        if let Backend::Postgres(database) = &mut self.backend {
            database.be_patient();
        }
        self
    }

    /// Has this done at the end of every transaction that changes something: where it fails, the transaction does.
    #[must_use]
    pub fn telling(mut self, before_commit: BeforeCommit) -> Self {
        self.before_commit = before_commit;
        self
    }

    /// Runs `work` on one consistent state.
    ///
    /// # Errors
    /// What `work` returns, or [`Error::Database`].
    pub fn read<T, E: From<Error>>(&self, work: impl FnOnce(&Tx<'_>) -> Result<T, E>) -> Result<T, E> {
        self.read_since(self.seen()?, work)
    }

    /// What is committed now, for [`Self::read_since`].
    ///
    /// # Errors
    /// [`Error::Unusable`] where SQLite's WAL index cannot be read.
    pub fn seen(&self) -> Result<Seen, Error> {
        match &self.backend {
            Backend::Sqlite(database) => database.seen(),
            // It looks for itself at each read.
            Backend::Postgres(_) => Ok(Seen::default()),
        }
    }

    /// As [`Self::read`], for a request that reads more than once: with all that was committed before it came, `seen`,
    /// which is looked up once.
    ///
    /// # Errors
    /// What `work` returns, or [`Error::Database`].
    pub fn read_since<T, E: From<Error>>(
        &self,
        seen: Seen,
        work: impl FnOnce(&Tx<'_>) -> Result<T, E>,
    ) -> Result<T, E> {
        match &self.backend {
            Backend::Sqlite(database) => database.read(seen, |open| work(&Tx(Session::Sqlite(open)))),
            Backend::Postgres(database) => database.read(|open| work(&Tx(Session::Postgres(open)))),
        }
    }

    /// As [`Self::read_since`], for one statement, which sees one state by itself: over a network a transaction around it would triple
    /// what it takes.
    ///
    /// # Errors
    /// What `work` returns, or [`Error::Database`].
    pub fn look<T, E: From<Error>>(
        &self,
        seen: Seen,
        work: impl FnOnce(&Tx<'_>) -> Result<T, E>,
    ) -> Result<T, E> {
        match &self.backend {
            Backend::Sqlite(database) => database.read(seen, |open| work(&Tx(Session::Sqlite(open)))),
            Backend::Postgres(database) => database.look(|open| work(&Tx(Session::Postgres(open)))),
        }
    }

    /// Runs `work` alone; what it did is durable when this returns `Ok`, and undone where it returns `Err`.
    ///
    /// # Errors
    /// What `work` returns, or [`Error::Database`]; [`Error::Away`] where it is not known whether it was committed.
    pub fn write<T, E: From<Error>>(&self, work: impl FnOnce(&Tx<'_>) -> Result<T, E>) -> Result<T, E> {
        let work = |tx: &Tx<'_>| self.and_tell(tx, work);
        match &self.backend {
            Backend::Sqlite(database) => database.write(|open| work(&Tx(Session::Sqlite(open)))),
            Backend::Postgres(database) => database.write(|open| work(&Tx(Session::Postgres(open)))),
        }
    }

    fn and_tell<T, E: From<Error>>(
        &self,
        tx: &Tx<'_>,
        work: impl FnOnce(&Tx<'_>) -> Result<T, E>,
    ) -> Result<T, E> {
        let value = work(tx)?;
        (self.before_commit)(tx)?;
        Ok(value)
    }

    /// As [`Self::write`] of this process's last change: what is overwritten is overwritten on the disk too. `false`: that
    /// could not be brought about now; of SQLite's log it happens later, of PostgreSQL's its operator decides.
    ///
    /// # Errors
    /// As [`Self::write`].
    pub fn write_erasing<E: From<Error>>(
        &self,
        work: impl FnOnce(&Tx<'_>) -> Result<(), E>,
    ) -> Result<bool, E> {
        let work = |tx: &Tx<'_>| self.and_tell(tx, work);
        match &self.backend {
            Backend::Sqlite(database) => database.write_erasing(|open| work(&Tx(Session::Sqlite(open)))),
            Backend::Postgres(database) => {
                database.write(|open| work(&Tx(Session::Postgres(open))))?;
                // It is committed: an error would say that it is not.
                if let Err(error) = database.vacuum() {
                    tracing::warn!(
                        error = engine::chain(&error),
                        "the tables of keys could not be written anew"
                    );
                }
                Ok(false)
            }
        }
    }

    /// Moves everything into the file itself, so that it may be renamed: nobody else has it open.
    ///
    /// # Errors
    /// [`Error::Database`]; [`Error::Unusable`] where somebody has.
    pub fn gather(&self) -> Result<(), Error> {
        match &self.backend {
            Backend::Sqlite(database) => database.gather(),
            Backend::Postgres(_) => Ok(()),
        }
    }

    /// Writes all that is committed, of a catalogue in a file, into a file of its own, which is whole or absent afterwards; what was
    /// there is replaced. Nobody waits for that.
    ///
    /// # Errors
    /// [`Error::Unusable`] where the file cannot be written, or the catalogue is in PostgreSQL; [`Error::Database`].
    pub fn copy_to(&self, file: &Path) -> Result<(), Error> {
        match &self.backend {
            Backend::Sqlite(database) => database.copy_to(file),
            Backend::Postgres(_) => Err(Error::Unusable(
                "a catalogue in PostgreSQL is copied by PostgreSQL's own tools".to_owned(),
            )),
        }
    }

    /// Whether the database answers at all.
    pub fn is_readable(&self) -> bool {
        match &self.backend {
            Backend::Sqlite(_) => self
                .read(|tx| tx.one("SELECT count(*) FROM project", (), |_| Ok(())))
                .is_ok(),
            Backend::Postgres(database) => database.answers(),
        }
    }
}

impl Tx<'_> {
    /// The time by the database's clock, which is the same one for all who share it; that of a file is ours.
    ///
    /// # Errors
    /// [`Error::Away`], [`Error::Database`].
    pub fn clock(&self) -> Result<Moment, Error> {
        match self.0 {
            Session::Sqlite(_) => Ok(Moment(clock::wall_ms())),
            Session::Postgres(open) => open.clock_ms().map(Moment),
        }
    }

    /// Runs a statement and returns how many rows it changed.
    ///
    /// # Errors
    /// [`Error::Constraint`], [`Error::Database`].
    pub fn execute(&self, sql: &'static str, params: impl Params) -> Result<usize, Error> {
        match self.0 {
            Session::Sqlite(open) => sqlite::execute(open, sql, &params),
            Session::Postgres(open) => open.execute(sql, &params),
        }
    }

    /// Says which statement is going to be asked, word by word, in this transaction: where it only reads, over a network, it is sent
    /// together with the next one, and its rows are there when they are asked for. Else nothing happens.
    ///
    /// # Errors
    /// A parameter that cannot be sent.
    pub fn soon(&self, sql: &'static str, params: impl Params) -> Result<(), Error> {
        match self.0 {
            Session::Sqlite(_) => Ok(()),
            Session::Postgres(open) => open.soon(sql, &params),
        }
    }

    /// The first row, if any.
    ///
    /// # Errors
    /// [`Error::Database`].
    pub fn one<T>(
        &self,
        sql: &'static str,
        params: impl Params,
        read: impl FnOnce(&Row<'_>) -> Result<T, Error>,
    ) -> Result<Option<T>, Error> {
        match self.0 {
            Session::Sqlite(open) => sqlite::one(open, sql, &params, read),
            Session::Postgres(open) => {
                let rows = open.query(sql, &params)?;
                rows.first().map(|row| read(&Row::Postgres(row))).transpose()
            }
        }
    }

    /// All rows: only for statements that bound them.
    ///
    /// # Errors
    /// [`Error::Database`].
    pub fn all<T>(
        &self,
        sql: &'static str,
        params: impl Params,
        mut read: impl FnMut(&Row<'_>) -> Result<T, Error>,
    ) -> Result<Vec<T>, Error> {
        let mut found = Vec::new();
        self.each(sql, params, |row| {
            found.push(read(row)?);
            Ok(())
        })?;
        Ok(found)
    }

    /// As [`Self::all`], for what is used where it lies.
    ///
    /// # Errors
    /// [`Error::Database`].
    pub fn each(
        &self,
        sql: &'static str,
        params: impl Params,
        mut read: impl FnMut(&Row<'_>) -> Result<(), Error>,
    ) -> Result<(), Error> {
        match self.0 {
            Session::Sqlite(open) => sqlite::each(open, sql, &params, read),
            Session::Postgres(open) => {
                let rows = open.query(sql, &params)?;
                rows.iter().try_for_each(|row| read(&Row::Postgres(row)))
            }
        }
    }
}

#[cfg(test)]
mod statements;
#[cfg(test)]
mod trouble;
