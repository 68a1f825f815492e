//! PostgreSQL: the same promises as SQLite's file gives.
//!
//! Writes come one after the other: each takes one advisory lock of its schema, which other processes respect too, and
//! sees all that was committed before it (READ COMMITTED, begun with the lock in hand). Reads see one state
//! (REPEATABLE READ). A connection that breaks while a transaction is committed leaves open whether it was: the
//! database is asked for the transaction by its number, until it answers.
//!
//! The protocol runs on the calling thread. Where that is one of the service's runtime, the runtime is told that it blocks.
//!
//! Source: PostgreSQL manual 13.3.5 (advisory locks), 9.27 (`pg_xact_status`), 55 (protocol).

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::error::Error as _;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use postgres::types::{FromSql, IsNull, ToSql, Type, to_sql_checked};
use postgres::{Client, Config, SimpleQueryMessage, Statement};
use tokio::task::block_in_place;

use super::version::{self, Migration};
use super::{Error, Params, SCHEMA, SCHEMA_VERSION, Value, dialect};

/// Connections of this process, at most: the service's threads for requests and jobs are not many more.
const CONNECTIONS_MAX: usize = 16;
/// A read waits so long for one of them.
const CONNECTION_WAIT: Duration = Duration::from_secs(10);
/// A server that is started anew answers after some seconds; a request does not wait for that.
const CONNECT_WAIT: Duration = Duration::from_secs(3);
/// A connection on which nothing comes back for this long is given up: as long as a lease of the default length is gone by.
const SILENCE: Duration = Duration::from_secs(20);
/// How often somebody who is silent is asked whether he is there.
const PROBED_EVERY: Duration = Duration::from_secs(2);
/// How long it is asked what became of a commit.
const COMMIT_WAIT: Duration = Duration::from_secs(30);
const COMMIT_ASKED_EVERY: Duration = Duration::from_millis(200);
/// One of ours takes milliseconds. A statement that waits for a stuck writer ends by this, and so does a transaction whose
/// client is frozen or gone: all who share the catalogue wait for it, and their leases are short. Probes are sent where nothing is under
/// way alone; an answer that nobody takes would be sent for a quarter of an hour, and no other time ends that.
const SETTINGS: &str = "SET statement_timeout = '20s'; SET lock_timeout = '15s'; \
    SET idle_in_transaction_session_timeout = '5s'; SET client_min_messages = warning; \
    SET tcp_keepalives_idle = 5; SET tcp_keepalives_interval = 2; SET tcp_keepalives_count = 3; \
    SET tcp_user_timeout = '10s'; \
    SET synchronous_commit = on; SET TIME ZONE 'UTC'";
/// The first half of the advisory lock's key, the second is the schema: `cake`.
const LOCK: &str = "1667328869, hashtext(current_schema())";
/// A rebuild, which has the catalogue alone, fetches from a store inside its transaction.
const PATIENT: &str = "SET idle_in_transaction_session_timeout = '10min'";
const PRELUDE: &str = concat!(include_str!("functions.sql"), "\n", include_str!("postgres.sql"));
const FUNCTIONS: &str = include_str!("functions.sql");

/// See [`version`].
const LEAST_PROGRAM: &str = "SELECT least_program FROM compatibility";

/// An open database.
pub struct Database {
    config: Config,
    tls: tokio_postgres_rustls::MakeRustlsConnect,
    idle: Mutex<Idle>,
    returned: Condvar,
    is_patient: bool,
    /// Whether the catalogue has been migrated past what this program understands.
    is_outgrown: AtomicBool,
    /// Who waits for the advisory lock waits here first, and holds no connection meanwhile.
    writer: Mutex<()>,
    /// For the question whether it answers: all others may be in use.
    health: Mutex<Option<Open>>,
}

struct Idle {
    sessions: Vec<Open>,
    lent: usize,
}

/// A connection, and what was prepared on it.
pub struct Open {
    client: RefCell<Client>,
    statements: RefCell<HashMap<String, Statement>>,
    /// Whether a statement of the open transaction was refused: then COMMIT undoes it, and answers as if all were well.
    failed: Cell<bool>,
}

impl From<postgres::Error> for Error {
    fn from(error: postgres::Error) -> Self {
        // Class 23: a rule was broken. 57P, 08, 53: the server ends, starts, or takes no more; 55P03, 57014, 40P01: others keep it, a
        // migration for one; 25P03: we kept it.
        match error.as_db_error() {
            Some(refused) if refused.code().code().starts_with("23") => {
                Error::Constraint(refused.constraint().map_or_else(
                    || refused.message().to_owned(),
                    |name| format!("{name}: {}", refused.message()),
                ))
            }
            Some(refused)
                if ["57P", "08", "53", "55P03", "57014", "40P01", "25P03"]
                    .iter()
                    .any(|class| refused.code().code().starts_with(class)) =>
            {
                Error::Away(Box::new(error))
            }
            Some(_) => Error::Database(Box::new(error)),
            None if is_of_the_connection(&error) => Error::Away(Box::new(error)),
            None => Error::Database(Box::new(error)),
        }
    }
}

fn is_of_the_connection(error: &postgres::Error) -> bool {
    error.is_closed() || error.source().is_some_and(|source| source.is::<std::io::Error>())
}

impl Database {
    /// See [`super::Catalog::connect`].
    pub fn open(url: &str, may_make: bool) -> Result<Self, Error> {
        let database = Self::of(url)?;
        database.prepare(may_make)?;
        Ok(database)
    }

    /// See [`super::Catalog::patient`].
    pub fn be_patient(&mut self) {
        self.is_patient = true;
        lock(&self.idle).sessions.clear();
    }

    /// See [`super::Catalog::is_made`].
    pub fn is_made(url: &str) -> Result<bool, Error> {
        let open = Self::of(url)?.connect()?;
        let asked = "SELECT to_regclass('catalogue') IS NOT NULL";
        let row = open.client.borrow_mut().query_one(asked, &[])?;
        Ok(row.try_get(0)?)
    }

    fn of(url: &str) -> Result<Self, Error> {
        let mut config: Config = url.parse().map_err(|error: postgres::Error| {
            Error::Unusable(format!(
                "the catalogue's URL is none: {}; it is postgresql://USER:PASSWORD@HOST:PORT/DATABASE",
                error
                    .source()
                    .map_or_else(|| error.to_string(), ToString::to_string)
            ))
        })?;
        config.application_name("cachekeep").connect_timeout(CONNECT_WAIT);
        // Nobody hears of a peer that a network has swallowed. Between two of its probes the system lets 75 s go by, so that an
        // answer that was lost would be waited for long after the network works again.
        config
            .tcp_user_timeout(SILENCE)
            .keepalives_idle(SILENCE / 2)
            .keepalives_interval(PROBED_EVERY)
            .keepalives_retries(5);
        let tls = crate::tls::client()
            .map_err(|error| Error::Unusable(format!("no TLS to the catalogue: {error}")))?;
        Ok(Self {
            config,
            tls: tokio_postgres_rustls::MakeRustlsConnect::new(tls),
            idle: Mutex::new(Idle {
                sessions: Vec::new(),
                lent: 0,
            }),
            returned: Condvar::new(),
            is_patient: false,
            is_outgrown: AtomicBool::new(false),
            writer: Mutex::new(()),
            health: Mutex::default(),
        })
    }

    /// Makes the tables where there are none; refuses those of others.
    fn prepare(&self, may_make: bool) -> Result<(), Error> {
        let open = self.connect()?;
        let mut client = open.client.borrow_mut();
        let mut work = client.transaction()?;
        work.batch_execute(&format!("SELECT pg_advisory_xact_lock({LOCK})"))?;
        let unusable = |why: &str| Err(Error::Unusable(format!("the catalogue's database {why}")));
        if work
            .query_one("SELECT current_schema()", &[])?
            .try_get::<_, Option<String>>(0)?
            .is_none()
        {
            return unusable(
                "has no schema that its search_path names: CREATE SCHEMA, or mend options=-csearch_path=",
            );
        }
        let tables: i64 = work
            .query_one(
                "SELECT count(*) FROM information_schema.tables WHERE table_schema = current_schema()",
                &[],
            )?
            .try_get(0)?;
        let form = dialect::schema(SCHEMA);
        let digest = digest(PRELUDE, &form);
        if tables == 0 && !may_make {
            return unusable(
                "is empty, and this data directory had a catalogue: put it back from your backup of the database, or make it \
                 anew with `cachekeep catalog rebuild --from-store local`",
            );
        }
        if tables == 0 {
            work.batch_execute(PRELUDE)?;
            work.batch_execute(&form)?;
            work.execute(
                "INSERT INTO catalogue (version, form) VALUES ($1, $2)",
                &[&SCHEMA_VERSION, &digest],
            )?;
            work.commit()?;
            return Ok(());
        }
        let ours = work.query_one("SELECT to_regclass('catalogue') IS NOT NULL", &[])?;
        if !ours.try_get::<_, bool>(0)? {
            return unusable(
                "holds tables of another program: name an empty one, or an empty schema by options=-csearch_path=NAME",
            );
        }
        let row = work.query_one("SELECT version, form FROM catalogue", &[])?;
        let (version, its) = (row.try_get::<_, i64>(0)?, row.try_get::<_, String>(1)?);
        if version > SCHEMA_VERSION {
            // Other nodes are newer. What they have added is passed over here, if they say that this is well.
            let least: i64 = work.query_one(LEAST_PROGRAM, &[])?.try_get(0)?;
            return match least <= SCHEMA_VERSION {
                true => Ok(()),
                false => unusable(&version::unknown(version)),
            };
        }
        if version < SCHEMA_VERSION {
            return match version::steps_from(version) {
                Some(_) => Err(Error::Old(version)),
                None => unusable(&version::unknown(version)),
            };
        }
        if its != digest {
            return unusable(
                "was made by an unreleased version of this program and has other tables: use that version, or an empty database",
            );
        }
        Ok(())
    }

    /// See [`version::migrate_database`].
    pub fn migrate(url: &str, is_dry: bool) -> Result<Migration, Error> {
        let open = Self::of(url)?.connect()?;
        let mut client = open.client.borrow_mut();
        let unusable = |why: &str| Err(Error::Unusable(format!("the catalogue's database {why}")));
        let ours = client.query_one("SELECT to_regclass('catalogue') IS NOT NULL", &[])?;
        if !ours.try_get::<_, bool>(0)? {
            return unusable("holds no catalogue");
        }
        // An index over many rows takes its time.
        client.batch_execute("SET statement_timeout = 0")?;
        let mut work = client.transaction()?;
        work.batch_execute(&format!("SELECT pg_advisory_xact_lock({LOCK})"))?;
        let row = work.query_one("SELECT version, form FROM catalogue", &[])?;
        let (from, form) = (row.try_get::<_, i64>(0)?, row.try_get::<_, String>(1)?);
        let done = Migration {
            from,
            to: SCHEMA_VERSION,
            copy: None,
        };
        if from == SCHEMA_VERSION {
            return Ok(done);
        }
        let Some(steps) = version::steps_from(from) else {
            return unusable(&version::unknown(from));
        };
        if steps.first().is_none_or(|step| step.postgres_form != form) {
            return unusable(&format!(
                "has other tables than version {from} has: an unreleased version of this program made it, which is to be used on"
            ));
        }
        if is_dry {
            return Ok(done);
        }
        for step in steps {
            work.batch_execute(&dialect::schema(step.sql))?;
        }
        work.batch_execute(FUNCTIONS)?;
        work.execute(
            "UPDATE catalogue SET version = $1, form = $2",
            &[&SCHEMA_VERSION, &digest(PRELUDE, &dialect::schema(SCHEMA))],
        )?;
        work.commit()?;
        // What programs that go on have prepared with `SELECT *` fails from now on, and those of version 1 would go on with it.
        // They connect anew; of a commit whose answer they miss they ask what became of it.
        client.batch_execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = current_database() \
             AND usename = current_user AND application_name = 'cachekeep' AND pid <> pg_backend_pid()",
        )?;
        Ok(done)
    }

    fn connect(&self) -> Result<Open, Error> {
        let mut client = self.config.connect(self.tls.clone())?;
        client.batch_execute(SETTINGS)?;
        if self.is_patient {
            client.batch_execute(PATIENT)?;
        }
        Ok(Open {
            client: RefCell::new(client),
            statements: RefCell::default(),
            failed: Cell::new(false),
        })
    }

    /// A connection to use; it comes back when the guard is dropped.
    fn borrow(&self) -> Result<Lent<'_>, Error> {
        let until = Instant::now() + CONNECTION_WAIT;
        let mut idle = lock(&self.idle);
        loop {
            if let Some(open) = idle.sessions.pop() {
                if open.client.borrow().is_closed() {
                    continue;
                }
                idle.lent += 1;
                return Ok(Lent {
                    of: self,
                    open: Some(open),
                });
            }
            if idle.lent < CONNECTIONS_MAX {
                idle.lent += 1;
                drop(idle);
                let mut lent = Lent { of: self, open: None };
                lent.open = Some(self.connect()?);
                return Ok(lent);
            }
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Err(Error::Away(
                    format!("all {CONNECTIONS_MAX} connections are in use").into(),
                ));
            }
            idle = self
                .returned
                .wait_timeout(idle, left)
                .unwrap_or_else(PoisonError::into_inner)
                .0;
        }
    }

    /// Begins a transaction; on a connection that turns out to be broken since it was used last, on another one.
    fn begin(&self, sql: &str) -> Result<(Lent<'_>, Vec<SimpleQueryMessage>), Error> {
        loop {
            let lent = self.borrow()?;
            let is_fresh = lent.get().statements.borrow().is_empty();
            let begun = lent.get().client.borrow_mut().simple_query(sql);
            match begun {
                Ok(answer) => {
                    lent.get().failed.set(false);
                    return Ok((lent, answer));
                }
                Err(error) if !is_fresh && lent.get().client.borrow().is_closed() => drop(error),
                Err(error) => return Err(error.into()),
            }
        }
    }

    /// Whether it answers, and soon.
    pub fn answers(&self) -> bool {
        block_in_place(|| {
            let mut kept = lock(&self.health);
            let ask = |open: Result<Open, Error>| {
                let open = open.ok()?;
                let sql = "SET statement_timeout = '1s'; SELECT count(*) FROM project";
                let asked = open.client.borrow_mut().batch_execute(sql);
                asked.ok().map(|()| open)
            };
            // One that broke since the last question is made anew.
            *kept = kept
                .take()
                .and_then(|open| ask(Ok(open)))
                .or_else(|| ask(self.connect()));
            kept.is_some()
        })
    }

    /// Runs `work` on one state.
    ///
    /// # Errors
    /// What `work` returns, [`Error::Away`], [`Error::Database`].
    pub fn read<T, E: From<Error>>(&self, work: impl FnOnce(&Open) -> Result<T, E>) -> Result<T, E> {
        block_in_place(|| self.read_here(work))
    }

    fn read_here<T, E: From<Error>>(&self, work: impl FnOnce(&Open) -> Result<T, E>) -> Result<T, E> {
        if self.is_outgrown.load(Ordering::SeqCst) {
            return Err(outgrown().into());
        }
        let (lent, _) = self.begin("BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY")?;
        let result = work(lent.get())?;
        lent.finish("COMMIT")?;
        Ok(result)
    }

    /// Runs `work`, which is one statement, outside of a transaction; on a connection that turns out to be broken since it was used
    /// last, again on another one.
    ///
    /// # Errors
    /// What `work` returns, [`Error::Away`], [`Error::Database`].
    pub fn look<T, E: From<Error>>(&self, work: impl Fn(&Open) -> Result<T, E>) -> Result<T, E> {
        block_in_place(|| {
            loop {
                let lent = self.borrow()?;
                let is_fresh = lent.get().statements.borrow().is_empty();
                let result = work(lent.get());
                if result.is_ok() {
                    lent.put_back();
                    return result;
                }
                if is_fresh || !lent.get().client.borrow().is_closed() {
                    return result;
                }
            }
        })
    }

    /// Runs `work` alone.
    ///
    /// # Errors
    /// What `work` returns, [`Error::Away`], [`Error::Database`].
    pub fn write<T, E: From<Error>>(&self, work: impl FnOnce(&Open) -> Result<T, E>) -> Result<T, E> {
        block_in_place(|| self.write_here(work))
    }

    fn write_here<T, E: From<Error>>(&self, work: impl FnOnce(&Open) -> Result<T, E>) -> Result<T, E> {
        let _alone = lock(&self.writer);
        let (lent, answer) = self.begin(&format!(
            "BEGIN; SELECT pg_advisory_xact_lock({LOCK}); {LEAST_PROGRAM}; SELECT pg_current_xact_id()::text"
        ))?;
        let mut told = answer.into_iter().rev().filter_map(|message| match message {
            SimpleQueryMessage::Row(row) => row.get(0).map(str::to_owned),
            _ => None,
        });
        let number = told.next();
        let least: i64 = told
            .next()
            .and_then(|least| least.parse().ok())
            .unwrap_or(i64::MAX);
        // With the lock in hand: a migration takes it too.
        let is_outgrown = least > SCHEMA_VERSION;
        self.is_outgrown.store(is_outgrown, Ordering::SeqCst);
        if is_outgrown {
            return Err(outgrown().into());
        }
        let result = work(lent.get())?;
        match lent.finish("COMMIT") {
            Ok(()) => Ok(result),
            Err(error) if self.was_committed(number.as_deref().unwrap_or_default(), &error) => Ok(result),
            Err(error) => Err(error.into()),
        }
    }

    /// What became of a transaction whose end was not heard of.
    fn was_committed(&self, number: &str, error: &Error) -> bool {
        // Any other error may have come instead of an answer to COMMIT; this one is the answer.
        if matches!(error, Error::Constraint(_)) {
            return false;
        }
        let until = Instant::now() + COMMIT_WAIT;
        while Instant::now() < until {
            let ask = || -> Result<Option<String>, Error> {
                let lent = self.borrow()?;
                let row = lent
                    .get()
                    .client
                    .borrow_mut()
                    .query_one("SELECT pg_xact_status($1::text::xid8)", &[&number])?;
                Ok(row.try_get(0)?)
            };
            match ask() {
                Ok(Some(status)) if status == "committed" => return true,
                Ok(Some(status)) if status == "aborted" => return false,
                _ => std::thread::sleep(COMMIT_ASKED_EVERY),
            }
        }
        false
    }

    /// Overwrites what was overwritten, as far as that can be asked for: the server's log and backups keep it.
    ///
    /// # Errors
    /// [`Error::Away`], [`Error::Database`].
    pub fn vacuum(&self) -> Result<(), Error> {
        let lent = self.borrow()?;
        let mut client = lent.get().client.borrow_mut();
        // Statements of one call are one transaction, in which VACUUM is refused (25001).
        client.batch_execute("VACUUM FULL project")?;
        client.batch_execute("VACUUM FULL project_old_key")?;
        Ok(())
    }
}

/// Asked again, another node may answer; this one has to be ended.
fn outgrown() -> Error {
    let why = format!(
        "it was migrated past version {SCHEMA_VERSION}, which is the newest that this program knows: end it, and start a newer one"
    );
    Error::Away(why.into())
}

/// Names the text of a schema.
pub fn digest(prelude: &str, schema: &str) -> String {
    crate::secrets::hex(&crate::secrets::sha256([prelude, schema].concat().as_bytes()))
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A connection in use. Dropped inside a transaction, it gives that up.
struct Lent<'d> {
    of: &'d Database,
    open: Option<Open>,
}

impl Lent<'_> {
    #[allow(
        clippy::expect_used,
        reason = "taken only by finish and drop, which end the guard"
    )]
    fn get(&self) -> &Open {
        self.open.as_ref().expect("a connection until the guard ends")
    }

    /// No transaction was begun on it.
    fn put_back(mut self) {
        if let Some(open) = self.open.take() {
            lock(&self.of.idle).sessions.push(open);
        }
    }

    fn finish(mut self, sql: &str) -> Result<(), Error> {
        let Some(open) = self.open.take() else {
            return Ok(());
        };
        let failed = open.failed.get();
        let sql = if failed { "ROLLBACK" } else { sql };
        let done = open.client.borrow_mut().batch_execute(sql);
        if done.is_ok() {
            lock(&self.of.idle).sessions.push(open);
        }
        done?;
        match failed {
            true => Err(Error::Database("a statement of it failed".into())),
            false => Ok(()),
        }
    }
}

impl Drop for Lent<'_> {
    fn drop(&mut self) {
        // Where even this fails, the connection is broken and is not used again.
        let open = self
            .open
            .take()
            .filter(|open| open.client.borrow_mut().batch_execute("ROLLBACK").is_ok());
        let mut idle = lock(&self.of.idle);
        idle.sessions.extend(open);
        idle.lent -= 1;
        self.of.returned.notify_one();
    }
}

impl Open {
    /// Runs a statement and returns how many rows it changed.
    pub fn execute(&self, sql: &str, params: &impl Params) -> Result<usize, Error> {
        let changed = self.run(sql, params, |client, statement, params| {
            client.execute(statement, params)
        })?;
        usize::try_from(changed).map_err(|error| Error::Database(Box::new(error)))
    }

    /// All rows.
    pub fn query(&self, sql: &str, params: &impl Params) -> Result<Vec<postgres::Row>, Error> {
        self.run(sql, params, |client, statement, params| {
            client.query(statement, params)
        })
    }

    /// Milliseconds since 1970 by the server's clock.
    pub fn clock_ms(&self) -> Result<i64, Error> {
        let asked = "SELECT CAST(extract(epoch FROM clock_timestamp()) * 1000 AS BIGINT)";
        let rows = self.query(asked, &())?;
        let first = rows
            .first()
            .ok_or_else(|| Error::Unreadable("the server tells no time".to_owned()))?;
        Ok(first.try_get(0)?)
    }

    /// The names of the columns that a statement answers with.
    pub fn columns(&self, sql: &str) -> Result<Vec<String>, Error> {
        let statement = self.prepared(sql)?;
        Ok(statement
            .columns()
            .iter()
            .map(|column| column.name().to_owned())
            .collect())
    }

    /// The columns of a statement's answer that no value can be read from, with their types.
    #[cfg(test)]
    pub fn unread(&self, sql: &str) -> Result<Vec<String>, Error> {
        let statement = self.prepared(sql)?;
        let unread = statement
            .columns()
            .iter()
            .filter(|column| !is_read(column.type_()));
        Ok(unread
            .map(|column| format!("{} is {}", column.name(), column.type_()))
            .collect())
    }

    /// A statement without parameters or answer.
    pub fn run_plain(&self, sql: &str) -> Result<(), Error> {
        let done = self.client.borrow_mut().batch_execute(sql);
        self.noted(done)
    }

    /// After a return to a savepoint: it was taken, so nothing had failed before it.
    pub fn is_back_at_savepoint(&self) {
        self.failed.set(false);
    }

    fn noted<T>(&self, done: Result<T, postgres::Error>) -> Result<T, Error> {
        if done.as_ref().is_err_and(|error| error.as_db_error().is_some()) {
            self.failed.set(true);
        }
        Ok(done?)
    }

    fn prepared(&self, sql: &str) -> Result<Statement, Error> {
        if let Some(statement) = self.statements.borrow().get(sql) {
            return Ok(statement.clone());
        }
        let prepared = self.client.borrow_mut().prepare(&dialect::statement(sql));
        let statement = self.noted(prepared)?;
        self.statements
            .borrow_mut()
            .insert(sql.to_owned(), statement.clone());
        Ok(statement)
    }

    fn run<T>(
        &self,
        sql: &str,
        params: &impl Params,
        run: impl FnOnce(&mut Client, &Statement, &[&(dyn ToSql + Sync)]) -> Result<T, postgres::Error>,
    ) -> Result<T, Error> {
        let statement = self.prepared(sql)?;
        let mut owned = Vec::new();
        params.each(&mut |value| {
            owned.push(Sent::of(value));
            Ok(())
        })?;
        let expected = statement.params().len();
        if owned.len() != expected {
            return Err(Error::Unreadable(format!(
                "a statement of {expected} parameters was given {}",
                owned.len()
            )));
        }
        let params: Vec<&(dyn ToSql + Sync)> = owned.iter().map(|value| value as _).collect();
        let done = run(&mut self.client.borrow_mut(), &statement, &params);
        // `SELECT *`, prepared before a migration added a column: the next transaction prepares it anew.
        if let Err(error) = &done
            && error.code() == Some(&postgres::error::SqlState::FEATURE_NOT_SUPPORTED)
        {
            self.statements.borrow_mut().clear();
            self.failed.set(true);
            return Err(Error::Away("its tables were migrated meanwhile".into()));
        }
        self.noted(done)
    }
}

/// A value on its way to the server.
#[derive(Debug)]
enum Sent {
    Null,
    Integer(i64),
    Real(f64),
    Text(String),
    Blob(Vec<u8>),
}

impl Sent {
    fn of(value: Value<'_>) -> Self {
        match value {
            Value::Null => Sent::Null,
            Value::Integer(number) => Sent::Integer(number),
            Value::Real(number) => Sent::Real(number),
            Value::Text(text) => Sent::Text(text.to_owned()),
            Value::Blob(bytes) => Sent::Blob(bytes.to_owned()),
        }
    }
}

impl ToSql for Sent {
    fn to_sql(
        &self,
        ty: &Type,
        out: &mut postgres::types::private::BytesMut,
    ) -> Result<IsNull, Box<dyn std::error::Error + Sync + Send>> {
        match (self, ty) {
            (Sent::Null, _) => Ok(IsNull::Yes),
            (Sent::Integer(number), &Type::INT8) => number.to_sql(ty, out),
            (Sent::Integer(number), &Type::INT4) => i32::try_from(*number)?.to_sql(ty, out),
            (Sent::Integer(number), &Type::INT2) => i16::try_from(*number)?.to_sql(ty, out),
            (Sent::Integer(number), &Type::BOOL) => (*number != 0).to_sql(ty, out),
            (Sent::Real(number), &Type::FLOAT8) => number.to_sql(ty, out),
            // Text as the server holds it has no zero byte.
            (Sent::Text(text), &Type::TEXT | &Type::VARCHAR) if !text.contains('\0') => text.to_sql(ty, out),
            (Sent::Blob(bytes), &Type::BYTEA) => bytes.to_sql(ty, out),
            (value, ty) => Err(format!("{value:?} is no {ty}").into()),
        }
    }

    fn accepts(_: &Type) -> bool {
        true
    }

    to_sql_checked!();
}

/// A value that the server sent.
pub struct Received<'r>(pub Value<'r>);

impl<'r> FromSql<'r> for Received<'r> {
    fn from_sql(ty: &Type, raw: &'r [u8]) -> Result<Self, Box<dyn std::error::Error + Sync + Send>> {
        Ok(Self(match *ty {
            Type::INT8 => Value::Integer(i64::from_sql(ty, raw)?),
            Type::INT4 => Value::Integer(i32::from_sql(ty, raw)?.into()),
            Type::INT2 => Value::Integer(i16::from_sql(ty, raw)?.into()),
            Type::BOOL => Value::Integer(bool::from_sql(ty, raw)?.into()),
            Type::FLOAT8 => Value::Real(f64::from_sql(ty, raw)?),
            Type::BYTEA => Value::Blob(raw),
            Type::TEXT | Type::VARCHAR | Type::NAME | Type::UNKNOWN => Value::Text(std::str::from_utf8(raw)?),
            _ => return Err(format!("the catalogue has no values of type {ty}").into()),
        }))
    }

    fn from_sql_null(_: &Type) -> Result<Self, Box<dyn std::error::Error + Sync + Send>> {
        Ok(Self(Value::Null))
    }

    fn accepts(ty: &Type) -> bool {
        is_read(ty)
    }
}

/// Whether [`Received`] reads values of this type. A sum of BIGINT is NUMERIC and has to be cast.
pub fn is_read(ty: &Type) -> bool {
    matches!(
        *ty,
        Type::INT8
            | Type::INT4
            | Type::INT2
            | Type::BOOL
            | Type::FLOAT8
            | Type::BYTEA
            | Type::TEXT
            | Type::VARCHAR
            | Type::NAME
            | Type::UNKNOWN
    )
}
