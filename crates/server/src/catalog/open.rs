//! A connection to PostgreSQL in use: what is prepared on it, and what of a transaction has been sent.

use std::borrow::Cow;
use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use postgres::types::ToSql;
use postgres::{Client, Statement};
use tokio_postgres::Config;
use tokio_postgres_rustls::MakeRustlsConnect;

use super::sent::Sent;
use super::wire::Wire;
use super::{Error, Params, dialect};

/// One of ours takes milliseconds. A statement that waits for a stuck writer ends by this, and so does a transaction whose
/// client is frozen or gone: all who share the catalogue wait for it, and their leases are short. Probes are sent where nothing is under
/// way alone; an answer that nobody takes would be sent for a quarter of an hour, and no other time ends that.
/// A plan is made once for all values, so it is taken to read a ninth of a table where it reads a page of a list: compiled for that, or
/// shared among processes, each of its runs takes a hundred times as long.
const SETTINGS: &str = "SET jit = off; SET max_parallel_workers_per_gather = 0; \
    SET statement_timeout = '20s'; SET lock_timeout = '15s'; \
    SET idle_in_transaction_session_timeout = '5s'; SET client_min_messages = warning; \
    SET tcp_keepalives_idle = 5; SET tcp_keepalives_interval = 2; SET tcp_keepalives_count = 3; \
    SET tcp_user_timeout = '10s'; \
    SET synchronous_commit = on; SET TIME ZONE 'UTC'";
/// A rebuild, which has the catalogue alone, fetches from a store inside its transaction.
const PATIENT: &str = "SET idle_in_transaction_session_timeout = '10min'";

/// How it is connected to.
#[derive(Clone)]
pub struct Way {
    /// Where, and as whom.
    pub config: Config,
    /// What is trusted.
    pub tls: MakeRustlsConnect,
    /// See [`super::Catalog::patient`].
    pub is_patient: bool,
}

impl Way {
    /// A connection with our settings.
    ///
    /// # Errors
    /// As [`Wire::connect`].
    pub fn connect(&self) -> Result<Wire, Error> {
        let wire = Wire::connect(&self.config, &self.tls)?;
        wire.batch(SETTINGS)?;
        if self.is_patient {
            wire.batch(PATIENT)?;
        }
        Ok(wire)
    }

    /// For what is done once, each step after the other.
    ///
    /// # Errors
    /// As [`Way::connect`].
    pub fn client(&self) -> Result<Client, Error> {
        let mut client = postgres::Config::from(self.config.clone()).connect(self.tls.clone())?;
        client.batch_execute(SETTINGS)?;
        Ok(client)
    }
}

/// What is open on a connection.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Phase {
    /// No transaction: a statement is one by itself.
    Alone,
    /// One that is begun together with its first statement.
    Unbegun,
    /// One.
    Begun,
}

/// A statement and its parameters.
type Asked = (&'static str, Vec<Sent>);

const BEGIN_READ: &str = "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY";

/// A connection, and what was prepared on it.
pub struct Open {
    way: Arc<Way>,
    /// The connection.
    pub wire: RefCell<Wire>,
    /// By their text.
    pub statements: RefCell<HashMap<String, Statement>>,
    /// How often it was connected anew.
    number: Cell<u64>,
    /// See [`Phase`].
    pub phase: Cell<Phase>,
    /// Whether the transaction only reads.
    reads: Cell<bool>,
    /// Since when a transaction that only read, and has ended for whoever read, waits for its COMMIT to be sent together with what comes
    /// next: see [`Open::owe`].
    owed: Cell<Option<Instant>>,
    /// Statements that are going to be asked: see [`Open::soon`].
    ahead: RefCell<Vec<Asked>>,
    /// Those that have been sent, and what they answered.
    answered: RefCell<Vec<(Asked, Vec<postgres::Row>)>>,
    /// Whether a statement of the open transaction was refused: then COMMIT undoes it, and answers as if all were well.
    pub failed: Cell<bool>,
}

impl Open {
    /// Connects.
    ///
    /// # Errors
    /// As [`Way::connect`].
    pub fn by(way: &Arc<Way>) -> Result<Self, Error> {
        Ok(Self {
            wire: RefCell::new(way.connect()?),
            way: way.clone(),
            statements: RefCell::default(),
            number: Cell::new(0),
            phase: Cell::new(Phase::Alone),
            reads: Cell::new(false),
            owed: Cell::new(None),
            ahead: RefCell::default(),
            answered: RefCell::default(),
            failed: Cell::new(false),
        })
    }

    /// A transaction has ended; in which phase it was.
    pub fn end(&self) -> Phase {
        self.reads.set(false);
        self.ahead.borrow_mut().clear();
        self.answered.borrow_mut().clear();
        self.phase.replace(Phase::Alone)
    }

    /// A transaction begins.
    pub fn start(&self, phase: Phase) {
        self.failed.set(false);
        self.reads.set(phase == Phase::Unbegun);
        self.phase.set(phase);
    }

    /// The end of a transaction that has only read: nobody waits for it, and by itself it would wake the server once more.
    pub fn owe(&self) {
        if self.end() == Phase::Begun {
            self.owed.set(Some(Instant::now()));
        }
    }

    /// The COMMIT that is owed, before these words.
    pub fn settled<'w>(&self, words: &'w str) -> Cow<'w, str> {
        match self.owed.take() {
            Some(_) => Cow::Owned(format!("COMMIT; {words}")),
            None => Cow::Borrowed(words),
        }
    }

    /// Sends a COMMIT that has been owed for so long, and says whether the connection is of use afterwards.
    pub fn settle(&self, after: Duration) -> bool {
        match self.owed.get() {
            Some(since) if since.elapsed() >= after => {
                self.owed.set(None);
                self.wire.borrow().send("COMMIT").is_ok()
            }
            _ => true,
        }
    }

    /// Runs a statement and returns how many rows it changed.
    pub fn execute(&self, sql: &str, params: &impl Params) -> Result<usize, Error> {
        self.begin_now()?;
        let changed = self.run(sql, params, |wire, _, statement, params| {
            wire.execute(statement, params)
        })?;
        usize::try_from(changed).map_err(|error| Error::Database(Box::new(error)))
    }

    /// See [`super::Tx::soon`].
    pub fn soon(&self, sql: &'static str, params: &impl Params) -> Result<(), Error> {
        // What a transaction writes changes what it reads.
        if self.reads.get() {
            self.ahead.borrow_mut().push((sql, Sent::all(params)?));
        }
        Ok(())
    }

    /// All rows.
    pub fn query(&self, sql: &str, params: &impl Params) -> Result<Vec<postgres::Row>, Error> {
        if !self.reads.get() {
            return self.run(sql, params, |wire, before, statement, params| {
                wire.query(before, &[(statement, params)])
                    .map(|rows| rows.into_iter().next().unwrap_or_default())
            });
        }
        let sent = Sent::all(params)?;
        let is_it = |asked: &Asked| asked.0 == sql && asked.1 == sent;
        let mut answered = self.answered.borrow_mut();
        if let Some(at) = answered.iter().position(|(asked, _)| is_it(asked)) {
            return Ok(answered.swap_remove(at).1);
        }
        let mut ahead = std::mem::take(&mut *self.ahead.borrow_mut());
        ahead.retain(|asked| !is_it(asked));
        let statements: Vec<Statement> = ahead
            .iter()
            .map(|(sql, _)| self.prepared(sql))
            .collect::<Result<_, Error>>()
            // Whoever asks for it hears of it, and a connection that is gone is made anew for the first statement.
            .unwrap_or_default();
        let others: Vec<(&Statement, Vec<&(dyn ToSql + Sync)>)> = statements
            .iter()
            .zip(&ahead)
            .map(|(statement, (_, sent))| (statement, sent.iter().map(|value| value as _).collect()))
            .collect();
        let number = self.number.get();
        let mut rows = self.run(sql, params, |wire, before, statement, params| {
            let mut all = vec![(statement, params)];
            // Another connection does not know them.
            if self.number.get() == number {
                all.extend(others.iter().map(|(statement, params)| (*statement, &params[..])));
            }
            wire.query(before, &all)
        })?;
        let own = rows.drain(..1).next().unwrap_or_default();
        answered.extend(ahead.into_iter().zip(rows));
        Ok(own)
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
            .filter(|column| !super::sent::is_read(column.type_()));
        Ok(unread
            .map(|column| format!("{} is {}", column.name(), column.type_()))
            .collect())
    }

    /// A statement without parameters or answer.
    pub fn run_plain(&self, sql: &str) -> Result<(), Error> {
        self.begin_now()?;
        let done = self.wire.borrow().batch(sql);
        self.noted(done)
    }

    /// Begins the transaction, where its first statement would have.
    fn begin_now(&self) -> Result<(), Error> {
        if self.phase.get() == Phase::Unbegun {
            self.wire.borrow().batch(&self.settled(BEGIN_READ))?;
            self.phase.set(Phase::Begun);
        } else if self.owed.take().is_some() {
            self.wire.borrow().batch("COMMIT")?;
        }
        Ok(())
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
        let prepared = self.wire.borrow().prepare(&dialect::statement(sql));
        let statement = self.noted(prepared)?;
        self.statements
            .borrow_mut()
            .insert(sql.to_owned(), statement.clone());
        Ok(statement)
    }

    /// Runs a statement: the first one on a connection that turns out to be broken since it was used last, on another one.
    fn run<T>(
        &self,
        sql: &str,
        params: &impl Params,
        run: impl Fn(&Wire, Option<&str>, &Statement, &[&(dyn ToSql + Sync)]) -> Result<T, postgres::Error>,
    ) -> Result<T, Error> {
        let owned = Sent::all(params)?;
        let params: Vec<&(dyn ToSql + Sync)> = owned.iter().map(|value| value as _).collect();
        let is_fresh = self.statements.borrow().is_empty();
        let done = self.run_here(sql, &params, &run);
        let is_broken = done.is_err() && self.phase.get() != Phase::Begun && self.wire.borrow().is_closed();
        if is_fresh || !is_broken {
            return done;
        }
        let wire = self.way.connect()?;
        self.statements.borrow_mut().clear();
        *self.wire.borrow_mut() = wire;
        self.owed.set(None);
        self.number.set(self.number.get() + 1);
        // What the old one said as it ended was no answer to a statement.
        self.failed.set(false);
        self.run_here(sql, &params, &run)
    }

    fn run_here<T>(
        &self,
        sql: &str,
        params: &[&(dyn ToSql + Sync)],
        run: impl Fn(&Wire, Option<&str>, &Statement, &[&(dyn ToSql + Sync)]) -> Result<T, postgres::Error>,
    ) -> Result<T, Error> {
        let statement = self.prepared(sql)?;
        let expected = statement.params().len();
        if params.len() != expected {
            return Err(Error::Unreadable(format!(
                "a statement of {expected} parameters was given {}",
                params.len()
            )));
        }
        let begins = self.phase.get() == Phase::Unbegun;
        let before = match begins {
            true => Some(self.settled(BEGIN_READ)),
            false => self.owed.take().map(|_since| Cow::Borrowed("COMMIT")),
        };
        let done = run(&self.wire.borrow(), before.as_deref(), &statement, params);
        if begins && !self.wire.borrow().is_closed() {
            self.phase.set(Phase::Begun);
        }
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
