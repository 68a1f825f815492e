//! PostgreSQL: the same promises as SQLite's file gives.
//!
//! Writes come one after the other: each takes one advisory lock of its schema, which other processes respect too, and
//! sees all that was committed before it (READ COMMITTED, begun with the lock in hand). Reads see one state
//! (REPEATABLE READ). A connection that breaks while a transaction is committed leaves open whether it was: the
//! database is asked for the transaction by its number, until it answers.
//!
//! The protocol runs on the calling thread. Where that is one of the service's runtime, a read has its turn, of which there are fewer
//! than threads (ADR 95); of a write the runtime is told that it blocks.
//!
//! Source: PostgreSQL manual 13.3.5 (advisory locks), 9.27 (`pg_xact_status`), 55 (protocol).

use std::error::Error as _;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, TryLockError, Weak};
use std::time::{Duration, Instant};

use postgres::SimpleQueryMessage;
use tokio::task::block_in_place;
use tokio_postgres::Config;
use tokio_postgres_rustls::MakeRustlsConnect;

use super::open::{Open, Phase, Way};
use super::version::{self, Migration};
use super::{Error, SCHEMA, SCHEMA_VERSION, dialect};

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
/// How long it is waited for an answer to the question whether it answers.
const HEALTH_WAIT: Duration = Duration::from_secs(2);
const HEALTH_ASKED_EVERY: Duration = Duration::from_millis(10);
/// How long it is asked what became of a commit.
const COMMIT_WAIT: Duration = Duration::from_secs(30);
const COMMIT_ASKED_EVERY: Duration = Duration::from_millis(200);
/// How long the end of a transaction that has read waits for something that it can be sent together with.
const OWED_AT_MOST: Duration = Duration::from_millis(100);
/// The first half of the advisory lock's key, the second is the schema: `cake`.
const LOCK: &str = "1667328869, hashtext(current_schema())";
const PRELUDE: &str = concat!(include_str!("functions.sql"), "\n", include_str!("postgres.sql"));
const FUNCTIONS: &str = include_str!("functions.sql");

/// See [`version`].
const LEAST_PROGRAM: &str = "SELECT least_program FROM compatibility";

/// An open database.
pub struct Database {
    way: Arc<Way>,
    idle: Arc<Mutex<Idle>>,
    returned: Condvar,
    /// Whether the catalogue has been migrated past what this program understands.
    is_outgrown: AtomicBool,
    /// Whether somebody writes. Who waits for the advisory lock waits here first, and holds no connection meanwhile.
    is_written: Mutex<bool>,
    written: Condvar,
    /// For the question whether it answers: all others may be in use.
    health: Mutex<Option<Open>>,
}

struct Idle {
    sessions: Vec<Open>,
    lent: usize,
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
        let idle = Arc::downgrade(&database.idle);
        std::thread::Builder::new()
            .name("commits".to_owned())
            .spawn(move || settle(&idle))
            .map_err(|error| Error::Database(Box::new(error)))?;
        Ok(database)
    }

    /// See [`super::Catalog::patient`].
    pub fn be_patient(&mut self) {
        let mut way = (*self.way).clone();
        way.is_patient = true;
        self.way = Arc::new(way);
        lock(&self.idle).sessions.clear();
    }

    /// See [`super::Catalog::is_made`].
    pub fn is_made(url: &str) -> Result<bool, Error> {
        let mut client = Self::of(url)?.way.client()?;
        let asked = "SELECT to_regclass('catalogue') IS NOT NULL";
        Ok(client.query_one(asked, &[])?.try_get(0)?)
    }

    fn of(url: &str) -> Result<Self, Error> {
        let mut config: Config = url.parse().map_err(|error: tokio_postgres::Error| {
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
        let way = Way {
            config,
            tls: MakeRustlsConnect::new(tls),
            is_patient: false,
        };
        Ok(Self {
            way: Arc::new(way),
            idle: Arc::new(Mutex::new(Idle {
                sessions: Vec::new(),
                lent: 0,
            })),
            returned: Condvar::new(),
            is_outgrown: AtomicBool::new(false),
            is_written: Mutex::new(false),
            written: Condvar::new(),
            health: Mutex::default(),
        })
    }

    /// Makes the tables where there are none; refuses those of others.
    fn prepare(&self, may_make: bool) -> Result<(), Error> {
        let mut client = self.way.client()?;
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
        let mut client = Self::of(url)?.way.client()?;
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
        Open::by(&self.way)
    }

    /// A connection to use; it comes back when the guard is dropped.
    fn borrow(&self) -> Result<Lent<'_>, Error> {
        let until = Instant::now() + CONNECTION_WAIT;
        let mut idle = lock(&self.idle);
        loop {
            if let Some(open) = idle.sessions.pop() {
                if open.wire.borrow().is_closed() {
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
            // Whatever of it fails, BEGIN has not: whoever has the connection next would be within what failed.
            lent.get().start(Phase::Begun);
            let sql = lent.get().settled(sql);
            let begun = lent.get().wire.borrow().simple(&sql);
            match begun {
                Ok(answer) => return Ok((lent, answer)),
                Err(error) if !is_fresh && lent.get().wire.borrow().is_closed() => drop(error),
                Err(error) => return Err(error.into()),
            }
        }
    }

    /// To be the one who asks for its health; `None`: the question before has no answer yet.
    fn health_turn(&self) -> Option<MutexGuard<'_, Option<Open>>> {
        let until = Instant::now() + HEALTH_WAIT;
        loop {
            match self.health.try_lock() {
                Ok(kept) => return Some(kept),
                Err(TryLockError::Poisoned(kept)) => return Some(kept.into_inner()),
                Err(TryLockError::WouldBlock) if Instant::now() >= until => return None,
                Err(TryLockError::WouldBlock) => std::thread::sleep(HEALTH_ASKED_EVERY),
            }
        }
    }

    /// To be the one who writes.
    ///
    /// # Errors
    /// [`Error::Away`] where it is another one's for too long: whoever asked is gone by then, or asks again.
    fn writer_turn(&self) -> Result<WriterTurn<'_>, Error> {
        let until = Instant::now() + CONNECTION_WAIT;
        let mut is_written = lock(&self.is_written);
        while *is_written {
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Err(Error::Away("others have been writing for too long".into()));
            }
            is_written = self
                .written
                .wait_timeout(is_written, left)
                .unwrap_or_else(PoisonError::into_inner)
                .0;
        }
        *is_written = true;
        Ok(WriterTurn(self))
    }

    /// Whether it answers, and soon.
    pub fn answers(&self) -> bool {
        block_in_place(|| {
            // Whoever asks again and again must not take a thread each time.
            let Some(mut kept) = self.health_turn() else {
                return false;
            };
            let ask = |open: Result<Open, Error>| {
                let open = open.ok()?;
                open.wire.borrow().wait_at_most(HEALTH_WAIT);
                let sql = "SET statement_timeout = '1s'; SELECT count(*) FROM project";
                let asked = open.wire.borrow().batch(sql);
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
        if self.is_outgrown.load(Ordering::SeqCst) {
            return Err(outgrown().into());
        }
        let lent = self.borrow()?;
        lent.get().start(Phase::Unbegun);
        let result = work(lent.get())?;
        lent.finish_read()?;
        Ok(result)
    }

    /// Runs `work`, which is one statement, outside of a transaction.
    ///
    /// # Errors
    /// What `work` returns, [`Error::Away`], [`Error::Database`].
    pub fn look<T, E: From<Error>>(&self, work: impl FnOnce(&Open) -> Result<T, E>) -> Result<T, E> {
        work(self.borrow()?.get())
    }

    /// Runs `work` alone.
    ///
    /// # Errors
    /// What `work` returns, [`Error::Away`], [`Error::Database`].
    pub fn write<T, E: From<Error>>(&self, work: impl FnOnce(&Open) -> Result<T, E>) -> Result<T, E> {
        block_in_place(|| self.write_here(work))
    }

    fn write_here<T, E: From<Error>>(&self, work: impl FnOnce(&Open) -> Result<T, E>) -> Result<T, E> {
        let _alone = self.writer_turn()?;
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
                let rows = self
                    .borrow()?
                    .get()
                    .query("SELECT pg_xact_status(CAST(?1 AS TEXT)::xid8)", &(number,))?;
                rows.first()
                    .map_or(Ok(None), |row| row.try_get(0))
                    .map_err(Error::from)
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
        lent.get().settle(Duration::ZERO);
        let wire = lent.get().wire.borrow();
        // Statements of one call are one transaction, in which VACUUM is refused (25001).
        wire.batch("VACUUM FULL project")?;
        wire.batch("VACUUM FULL project_old_key")?;
        Ok(())
    }
}

/// Ends transactions that have read and whose connections nobody has used since: the server ends those connections after some seconds,
/// and until then it keeps what others have deleted.
fn settle(idle: &Weak<Mutex<Idle>>) {
    while let Some(idle) = idle.upgrade() {
        // One that has ended meanwhile is of no use to the next one, and that is all.
        lock(&idle).sessions.retain(|open| open.settle(OWED_AT_MOST));
        drop(idle);
        std::thread::sleep(OWED_AT_MOST);
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

/// Of the one who writes, until it is dropped.
struct WriterTurn<'d>(&'d Database);

impl Drop for WriterTurn<'_> {
    fn drop(&mut self) {
        *lock(&self.0.is_written) = false;
        self.0.written.notify_one();
    }
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

    /// Nobody waits for the end of a transaction that has changed nothing.
    fn finish_read(mut self) -> Result<(), Error> {
        if self.get().failed.get() {
            return self.finish("ROLLBACK");
        }
        let Some(open) = self.open.take() else {
            return Ok(());
        };
        open.owe();
        lock(&self.of.idle).sessions.push(open);
        Ok(())
    }

    fn finish(mut self, sql: &str) -> Result<(), Error> {
        let Some(open) = self.open.take() else {
            return Ok(());
        };
        let failed = open.failed.get();
        let sql = if failed { "ROLLBACK" } else { sql };
        let done = open.wire.borrow().batch(sql);
        open.end();
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
        let open = self.open.take().filter(|open| {
            let wire = open.wire.borrow();
            match open.end() {
                Phase::Alone | Phase::Unbegun => !wire.is_closed(),
                Phase::Begun => wire.batch("ROLLBACK").is_ok(),
            }
        });
        let mut idle = lock(&self.of.idle);
        idle.sessions.extend(open);
        idle.lent -= 1;
        self.of.returned.notify_one();
    }
}
