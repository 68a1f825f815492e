//! SQLite: one connection writes, others read.
//!
//! Reads never wait for a writer (WAL). Writes share one connection, begin at once (`BEGIN IMMEDIATE`: a deferred
//! transaction that reads and then writes fails under concurrency) and are on disk when the call returns
//! (`synchronous = FULL`).

use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard};
use std::time::Duration;

use engine::defect;
use rusqlite::config::DbConfig;
use rusqlite::types::{ToSqlOutput, ValueRef};
use rusqlite::{CachedStatement, Connection, OpenFlags};

use super::readers::Readers;
pub use super::readers::Seen;
use super::version::{self, Migration};
use super::{Error, Params, Row, SCHEMA, SCHEMA_VERSION, Value};

/// Another process (a backup program, an operator's shell) may hold the file for a moment.
const BUSY_WAIT: Duration = Duration::from_secs(5);
/// Prepared statements kept per connection; there are fewer different ones.
const STATEMENTS_CACHED: usize = 256;

impl From<rusqlite::Error> for Error {
    fn from(error: rusqlite::Error) -> Self {
        match &error {
            rusqlite::Error::SqliteFailure(code, text)
                if code.code == rusqlite::ErrorCode::ConstraintViolation =>
            {
                Error::Constraint(text.clone().unwrap_or_default())
            }
            _ => Error::Database(Box::new(error)),
        }
    }
}

/// An open file.
pub struct Database {
    path: PathBuf,
    writer: Mutex<Connection>,
    readers: Readers,
}

impl Database {
    /// Opens the file, creating it with its tables where it is empty.
    ///
    /// # Errors
    /// [`Error::Unusable`] for a file of another version, of another form or of another program,
    /// [`Error::Database`] otherwise.
    pub fn open(path: &Path) -> Result<Self, Error> {
        let writer = connect(path, OpenFlags::default())?;
        writer.pragma_update(None, "journal_mode", "WAL")?;
        let synchronous = match defect::is_planted("catalogue-unsynced") {
            true => "NORMAL",
            false => "FULL",
        };
        writer.pragma_update(None, "synchronous", synchronous)?;
        let unusable = |why: String| Err(Error::Unusable(format!("{} {why}", path.display())));
        let version: i64 = writer.query_row("PRAGMA user_version", [], |row| row.get(0))?;
        if version == 0 && form(&writer)?.is_empty() {
            let script =
                format!("BEGIN IMMEDIATE;\n{SCHEMA}\nPRAGMA user_version = {SCHEMA_VERSION};\nCOMMIT;");
            writer.execute_batch(&script)?;
        } else if version != SCHEMA_VERSION {
            return match version::steps_from(version) {
                Some(_) => Err(Error::Old(version)),
                None => unusable(version::unknown(version)),
            };
        }
        if form(&writer)? != our_form()? {
            return unusable(
                "was made by an unreleased version of this program and has other tables: use that version, \
                 or choose another --data-dir"
                    .to_owned(),
            );
        }
        Ok(Self {
            path: path.to_owned(),
            writer: Mutex::new(writer),
            readers: Readers::of(path)?,
        })
    }

    /// What is committed now, for [`Self::read`].
    ///
    /// # Errors
    /// [`Error::Unusable`] where SQLite's WAL index cannot be read.
    pub fn seen(&self) -> Result<Seen, Error> {
        self.readers.seen()
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
        self.readers.read(seen, work)
    }

    /// As [`Self::write`] of this process's last change: what is overwritten is overwritten in the file too, and then moved
    /// out of the log beside it. `false`: a reader kept the log from being emptied; it is when it next can be.
    ///
    /// # Errors
    /// As [`Self::write`].
    pub fn write_erasing<E: From<Error>>(
        &self,
        work: impl FnOnce(&Connection) -> Result<(), E>,
    ) -> Result<bool, E> {
        let pragma = self.lock().pragma_update(None, "secure_delete", true);
        pragma.map_err(Error::from)?;
        self.write(work)?;
        let _snapshots_ended = self.readers.pause();
        let busy = self
            .lock()
            .query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |row| row.get::<_, i64>(0));
        // It is committed: an error would say that it is not.
        Ok(busy.is_ok_and(|busy| busy == 0))
    }

    /// Moves everything into the file itself, so that it may be renamed: nobody else has it open.
    ///
    /// # Errors
    /// [`Error::Database`]; [`Error::Unusable`] where somebody has.
    pub fn gather(&self) -> Result<(), Error> {
        let _snapshots_ended = self.readers.pause();
        let busy: i64 = self
            .lock()
            .query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |row| row.get(0))?;
        if busy != 0 {
            return Err(Error::Unusable(format!("{} is in use", self.path.display())));
        }
        Ok(())
    }

    /// Runs `work` alone; what it did is durable when this returns `Ok`, and undone where it returns `Err`.
    ///
    /// # Errors
    /// What `work` returns, or [`Error::Database`].
    pub fn write<T, E: From<Error>>(&self, work: impl FnOnce(&Connection) -> Result<T, E>) -> Result<T, E> {
        let writer = self.lock();
        if defect::is_planted("acknowledged-before-commit") && !writer.is_autocommit() {
            begin(&writer, "COMMIT").map_err(E::from)?;
        }
        begin(&writer, "BEGIN IMMEDIATE").map_err(E::from)?;
        match work(&writer) {
            Ok(value) if defect::is_planted("acknowledged-before-commit") && has_waiting_backup(&writer) => {
                Ok(value)
            }
            Ok(value) => {
                let _snapshots_ended = self.readers.pause();
                match begin(&writer, "COMMIT") {
                    Ok(()) => Ok(value),
                    Err(failed) => {
                        roll_back(&writer);
                        Err(E::from(failed))
                    }
                }
            }
            Err(error) => {
                roll_back(&writer);
                Err(error)
            }
        }
    }

    /// Writes all that is committed into a file of its own. Nobody waits for that: it has a connection of its own.
    ///
    /// # Errors
    /// [`Error::Unusable`] where the file cannot be written; [`Error::Database`].
    pub fn copy_to(&self, copy: &Path) -> Result<(), Error> {
        let file = connect(&self.path, OpenFlags::SQLITE_OPEN_READ_WRITE)?;
        copy_into(&file, copy)
    }

    fn lock(&self) -> MutexGuard<'_, Connection> {
        // A panic inside `work` left the transaction open; it is rolled back here.
        self.writer.lock().unwrap_or_else(|poisoned| {
            let guard = poisoned.into_inner();
            roll_back(&guard);
            guard
        })
    }
}

/// See [`version::migrate_file`].
pub fn migrate(path: &Path, is_dry: bool) -> Result<Migration, Error> {
    let unusable = |why: String| Error::Unusable(format!("{} {why}", path.display()));
    // One that is not there is not made.
    let file = connect(path, OpenFlags::SQLITE_OPEN_READ_WRITE)?;
    file.pragma_update(None, "synchronous", "FULL")?;
    let from: i64 = file.query_row("PRAGMA user_version", [], |row| row.get(0))?;
    let mut done = Migration {
        from,
        to: SCHEMA_VERSION,
        copy: None,
    };
    if from == SCHEMA_VERSION {
        return Ok(done);
    }
    let Some(steps) = version::steps_from(from) else {
        return Err(unusable(version::unknown(from)));
    };
    let found = form(&file)?;
    let is_known = steps
        .first()
        .is_some_and(|step| digest(&found) == step.sqlite_form);
    if !is_known {
        return Err(unusable(format!(
            "has other tables than version {from} has: an unreleased version of this program made it, which is to be used on"
        )));
    }
    let copy = version::copy_of(path, from);
    done.copy = Some(copy.clone());
    if is_dry {
        return Ok(done);
    }
    // Verbs of the operator open the file without the service's lock: what they change has to be in the copy.
    let changes = || file.query_row("PRAGMA data_version", [], |row| row.get::<_, i64>(0));
    let copied = changes()?;
    copy_into(&file, &copy)?;
    begin(&file, "BEGIN IMMEDIATE")?;
    let work = || -> Result<(), Error> {
        if changes()? != copied {
            return Err(unusable("was changed meanwhile: run it again".to_owned()));
        }
        for step in steps {
            file.execute_batch(step.sql)?;
        }
        file.pragma_update(None, "user_version", SCHEMA_VERSION)?;
        if form(&file)? != our_form()? {
            let why = format!("cannot be brought from version {from} to {SCHEMA_VERSION}: this is a bug");
            return Err(unusable(why));
        }
        begin(&file, "COMMIT")
    };
    let worked = work();
    roll_back(&file);
    worked.map(|()| done)
}

/// See [`version::check_file`].
pub fn check(path: &Path) -> Result<i64, Error> {
    let unusable = |why: String| Error::Unusable(format!("{} {why}", path.display()));
    let file = connect(path, OpenFlags::SQLITE_OPEN_READ_ONLY)?;
    let found: String = file.query_row("PRAGMA integrity_check(1)", [], |row| row.get(0))?;
    if found != "ok" {
        return Err(unusable(format!("is damaged: {found}")));
    }
    let version: i64 = file.query_row("PRAGMA user_version", [], |row| row.get(0))?;
    if version != SCHEMA_VERSION && version::steps_from(version).is_none() {
        return Err(unusable(version::unknown(version)));
    }
    Ok(version)
}

/// Writes all that is committed into a file of its own, which only its owner reads and which a power cut leaves whole or absent.
fn copy_into(file: &Connection, copy: &Path) -> Result<(), Error> {
    use std::os::unix::fs::OpenOptionsExt;
    let failed = |error: std::io::Error| Error::Unusable(format!("cannot write {}: {error}", copy.display()));
    let beside = copy.with_extension("part");
    match std::fs::remove_file(&beside) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(failed(error)),
        _ => {}
    }
    // The database writes into a file that is there, as long as it is empty.
    let made = std::fs::OpenOptions::new()
        .create_new(true)
        .write(true)
        .mode(0o600)
        .open(&beside)
        .map_err(failed)?;
    let name = beside
        .to_str()
        .ok_or_else(|| Error::Unusable(format!("{} is no name that SQLite takes", beside.display())))?;
    file.execute("VACUUM INTO ?1", [name])?;
    made.sync_all().map_err(failed)?;
    std::fs::rename(&beside, copy).map_err(failed)?;
    let folder = copy.parent().unwrap_or(Path::new("."));
    std::fs::File::open(folder)
        .and_then(|folder| folder.sync_all())
        .map_err(failed)
}

/// The form of `schema.sql`.
fn our_form() -> Result<Vec<String>, Error> {
    let ours = Connection::open_in_memory()?;
    ours.execute_batch(SCHEMA)?;
    form(&ours)
}

/// Which transaction the defect of that name leaves open.
fn has_waiting_backup(open: &Connection) -> bool {
    let sql = "SELECT EXISTS (SELECT 1 FROM backup WHERE status = 'waiting')";
    open.query_row(sql, [], |row| row.get(0)).unwrap_or(false)
}

/// Runs a statement and returns how many rows it changed.
pub fn execute(open: &Connection, sql: &str, params: &impl Params) -> Result<usize, Error> {
    let mut statement = open.prepare_cached(sql)?;
    bind(&mut statement, params)?;
    Ok(statement.raw_execute()?)
}

/// The first row, if any.
pub fn one<T>(
    open: &Connection,
    sql: &str,
    params: &impl Params,
    read: impl FnOnce(&Row<'_>) -> Result<T, Error>,
) -> Result<Option<T>, Error> {
    let mut statement = open.prepare_cached(sql)?;
    bind(&mut statement, params)?;
    match statement.raw_query().next()? {
        Some(row) => Ok(Some(read(&Row::Sqlite(row))?)),
        None => Ok(None),
    }
}

/// Every row.
pub fn each(
    open: &Connection,
    sql: &str,
    params: &impl Params,
    mut read: impl FnMut(&Row<'_>) -> Result<(), Error>,
) -> Result<(), Error> {
    let mut statement = open.prepare_cached(sql)?;
    bind(&mut statement, params)?;
    let mut rows = statement.raw_query();
    while let Some(row) = rows.next()? {
        read(&Row::Sqlite(row))?;
    }
    Ok(())
}

/// Gives the statement its parameters.
pub fn bind(statement: &mut CachedStatement<'_>, params: &impl Params) -> Result<(), Error> {
    let mut place = 0;
    params.each(&mut |value| {
        place += 1;
        let value = match value {
            Value::Null => ValueRef::Null,
            Value::Integer(number) => ValueRef::Integer(number),
            Value::Real(number) => ValueRef::Real(number),
            Value::Text(text) => ValueRef::Text(text.as_bytes()),
            Value::Blob(bytes) => ValueRef::Blob(bytes),
        };
        Ok(statement.raw_bind_parameter(place, ToSqlOutput::Borrowed(value))?)
    })?;
    let expected = statement.parameter_count();
    if place != expected {
        return Err(Error::Unreadable(format!(
            "a statement of {expected} parameters was given {place}"
        )));
    }
    Ok(())
}

/// A connection of our settings.
pub fn connect(path: &Path, flags: OpenFlags) -> Result<Connection, Error> {
    let connection = Connection::open_with_flags(path, flags | OpenFlags::SQLITE_OPEN_NO_MUTEX)?;
    connection.busy_timeout(BUSY_WAIT)?;
    connection.pragma_update(None, "foreign_keys", true)?;
    // Our SQLite has STAT4, with which a bound value may change a plan: without this each new value has its statement
    // compiled anew, which costs more than to run it. Our statements have one sensible plan each.
    connection.set_db_config(DbConfig::SQLITE_DBCONFIG_ENABLE_QPSG, true)?;
    connection.set_prepared_statement_cache_capacity(STATEMENTS_CACHED);
    Ok(connection)
}

/// What lies in a database: `table backup prefix`, a line for each column, index and trigger; sorted.
pub fn form(connection: &Connection) -> Result<Vec<String>, Error> {
    let mut statement = connection.prepare(
        "SELECT concat_ws(' ', item.type, item.name, part.name) FROM sqlite_schema AS item \
         LEFT JOIN pragma_table_info(item.name) AS part ORDER BY 1",
    )?;
    let lines = statement.query_map([], |row| row.get(0))?;
    Ok(lines.collect::<Result<_, _>>()?)
}

/// Names a form.
pub fn digest(form: &[String]) -> String {
    crate::secrets::hex(&crate::secrets::sha256(form.join("\n").as_bytes()))
}

/// A statement about the transaction.
pub fn begin(connection: &Connection, sql: &'static str) -> Result<(), Error> {
    connection.prepare_cached(sql)?.execute([])?;
    Ok(())
}

/// Gives up what is open.
pub fn roll_back(connection: &Connection) {
    if !connection.is_autocommit() {
        // Where even this fails the connection is broken, and the next BEGIN says so.
        let _next_begin_reports = connection.execute_batch("ROLLBACK");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_catalogue_of_another_form_is_refused_and_left_as_it_was() {
        let directory = std::env::temp_dir().join(format!("cachekeep-{}", crate::secrets::random_hex(8)));
        std::fs::create_dir(&directory).unwrap();
        let path = directory.join("catalog.sqlite");
        for _opened_again in 0..2 {
            Database::open(&path).unwrap();
        }
        let refused = |changed: &str, why: &str| {
            let file = Connection::open(&path).unwrap();
            file.execute_batch(changed).unwrap();
            let before = form(&file).unwrap();
            match Database::open(&path) {
                Err(Error::Unusable(text)) => assert!(text.contains(why), "{changed}: {text}"),
                Err(other) => panic!("{changed}: {other}"),
                Ok(_) => panic!("{changed}: it is opened"),
            }
            assert_eq!(form(&file).unwrap(), before, "{changed}");
        };
        refused("PRAGMA user_version = 3", "use the program that wrote it");
        refused("PRAGMA user_version = 0", "use the program that wrote it");
        for changed in [
            "PRAGMA user_version = 2; DROP TABLE memory_seen",
            "ALTER TABLE restore DROP COLUMN new_generation_id",
        ] {
            refused(changed, "unreleased version");
        }
        std::fs::remove_dir_all(&directory).unwrap();
    }
}
