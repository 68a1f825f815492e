//! The catalogue, in either database, read and changed without the program under test.

use std::cell::RefCell;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, Weak};
use std::time::Duration;

use rusqlite::OpenFlags;
use rusqlite::types::ValueRef;
use xtask::postgres::Postgres;
use xtask::scratch::Scratch;

use crate::world::World;

/// What keeps a catalogue.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    Sqlite,
    Postgres,
}

impl Kind {
    /// Both.
    pub const ALL: [Self; 2] = [Self::Sqlite, Self::Postgres];

    /// What `CACHEKEEP_TEST_CATALOG` says.
    pub fn wanted() -> Self {
        match std::env::var("CACHEKEEP_TEST_CATALOG").ok().as_deref() {
            None | Some("sqlite") => Self::Sqlite,
            Some("postgres") => Self::Postgres,
            Some(other) => panic!("CACHEKEEP_TEST_CATALOG={other}: it is sqlite or postgres"),
        }
    }

    /// In a table.
    pub fn word(self) -> &'static str {
        match self {
            Self::Sqlite => "SQLite",
            Self::Postgres => "PostgreSQL",
        }
    }
}

/// The database of one catalogue.
pub enum Database {
    /// The file.
    Sqlite(PathBuf),
    /// The URL of a schema, and its server: gone with the last catalogue in it.
    Postgres(
        String,
        #[expect(dead_code, reason = "the server lives for as long as this does")] Arc<Postgres>,
    ),
}

impl Database {
    /// Of a service on this data directory; in PostgreSQL a schema of its own, on one server for all that there are at a time.
    pub fn make(kind: Kind, scratch: &Scratch, data: &Path) -> Self {
        static SERVER: Mutex<Weak<Postgres>> = Mutex::new(Weak::new());
        if kind == Kind::Sqlite {
            return Self::Sqlite(data.join("catalog.sqlite"));
        }
        let mut shared = SERVER.lock().unwrap();
        let server = shared.upgrade().unwrap_or_else(|| {
            let server = Arc::new(Postgres::start().unwrap());
            *shared = Arc::downgrade(&server);
            server
        });
        drop(shared);
        let name = scratch.path().file_name().unwrap().to_string_lossy();
        let url = server.make_schema(&name.replace('-', "_")).unwrap();
        Self::Postgres(url, server)
    }

    /// What tells the service.
    pub fn variable(&self) -> Option<(&'static str, &str)> {
        match self {
            Self::Sqlite(_) => None,
            Self::Postgres(url, _) => Some(("CACHEKEEP_CATALOG", url)),
        }
    }

    /// Runs a statement that changes rows; returns how many.
    pub fn change(&self, sql: &str) -> usize {
        match self {
            Self::Sqlite(file) => rusqlite::Connection::open(file)
                .unwrap()
                .execute(sql, ())
                .unwrap(),
            Self::Postgres(url, _) => usize::try_from(connect(url).execute(sql, &[]).unwrap()).unwrap(),
        }
    }
}

fn connect(url: &str) -> postgres::Client {
    postgres::Client::connect(url, postgres::NoTls).unwrap()
}

/// A catalogue that is read.
pub enum Catalogue {
    Sqlite(rusqlite::Connection),
    Postgres(RefCell<postgres::Client>),
}

impl Catalogue {
    /// Opens the world's.
    pub fn open(world: &World) -> Self {
        Self::of(&world.database)
    }

    /// Opens that of a database.
    pub fn of(database: &Database) -> Self {
        match database {
            Database::Sqlite(file) => {
                let flags = OpenFlags::SQLITE_OPEN_READ_ONLY;
                let connection = rusqlite::Connection::open_with_flags(file, flags).unwrap();
                connection.busy_timeout(Duration::from_secs(10)).unwrap();
                Self::Sqlite(connection)
            }
            Database::Postgres(url, _) => Self::Postgres(RefCell::new(connect(url))),
        }
    }

    /// All rows; bytes as PostgreSQL writes them, `\x` and hexadecimal digits.
    pub fn rows(&self, sql: &str) -> Vec<Row> {
        match self {
            Self::Sqlite(connection) => {
                let mut statement = connection.prepare(sql).unwrap();
                let columns = statement.column_count();
                let rows = statement.query_map((), |row| {
                    let texts: Result<Vec<_>, _> =
                        (0..columns).map(|at| row.get_ref(at).map(text_of)).collect();
                    Ok(Row(texts?.into_iter()))
                });
                rows.unwrap().map(Result::unwrap).collect()
            }
            Self::Postgres(client) => {
                let told = client.borrow_mut().simple_query(sql).unwrap();
                let read = |message| match message {
                    postgres::SimpleQueryMessage::Row(row) => Some(row),
                    _ => None,
                };
                let rows = told.into_iter().filter_map(read).map(|row| {
                    let texts: Vec<_> = (0..row.len()).map(|at| row.get(at).map(str::to_owned)).collect();
                    Row(texts.into_iter())
                });
                rows.collect()
            }
        }
    }

    /// The one number that the query gives.
    pub fn count(&self, sql: &str) -> i64 {
        self.rows(sql).pop().unwrap().number()
    }
}

fn text_of(value: ValueRef<'_>) -> Option<String> {
    match value {
        ValueRef::Null => None,
        ValueRef::Integer(number) => Some(number.to_string()),
        ValueRef::Real(number) => Some(number.to_string()),
        ValueRef::Text(text) => Some(String::from_utf8(text.to_vec()).unwrap()),
        ValueRef::Blob(bytes) => {
            let digits = bytes.iter().map(|byte| format!("{byte:02x}"));
            Some(format!("\\x{}", digits.collect::<String>()))
        }
    }
}

/// The bytes that hexadecimal digits stand for.
pub fn bytes_of(digits: &str) -> Vec<u8> {
    (0..digits.len())
        .step_by(2)
        .map(|at| u8::from_str_radix(&digits[at..at + 2], 16).unwrap())
        .collect()
}

/// One row, read column by column.
pub struct Row(std::vec::IntoIter<Option<String>>);

impl Row {
    /// The next column.
    pub fn next(&mut self) -> Option<String> {
        self.0.next().unwrap()
    }

    /// The next column, which is not null.
    pub fn text(&mut self) -> String {
        self.next().unwrap()
    }

    /// The next column, a number.
    pub fn number(&mut self) -> i64 {
        self.text().parse().unwrap()
    }
}
