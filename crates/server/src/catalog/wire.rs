//! A connection to PostgreSQL, driven by the thread that uses it, which sends what needs no answer of its own together with what comes next.
//!
//! The crate `postgres` waits for each answer before it sends the next question. A read of a catalogue is BEGIN, a few statements of some
//! microseconds, and COMMIT: what it takes is the ways there and back.
//!
//! Source: PostgreSQL manual 55.2.4 (pipelining).

use std::cell::{Cell, RefCell};
use std::future::{Future, poll_fn};
use std::pin::{Pin, pin};
use std::task::Poll;
use std::time::{Duration, Instant};

use tokio_postgres::config::TargetSessionAttrs;
use tokio_postgres::error::{DbError, Severity};
use tokio_postgres::tls::MakeTlsConnect;
use tokio_postgres::types::ToSql;
use tokio_postgres::{Client, Config, Error, Row, SimpleQueryMessage, Statement};
use tokio_postgres_rustls::MakeRustlsConnect;

use super::Error as CatalogError;
use super::line::{Line, Place, places};

/// A server that is well answers earlier: its `statement_timeout` is over then. One that is stopped, or has a broken disk, answers
/// never, while its system goes on saying that the connection is fine.
const ANSWER_WAIT: Duration = Duration::from_secs(30);
/// The same for a new connection, all that is said until it can be used.
const GREETING_WAIT: Duration = Duration::from_secs(10);

/// What moves bytes; it ends with the connection.
type Link = Pin<Box<dyn Future<Output = Result<(), Error>> + Send>>;

/// A statement and its parameters.
pub type Question<'q> = (&'q Statement, &'q [&'q (dyn ToSql + Sync)]);

/// See the module.
pub struct Wire {
    client: Client,
    link: RefCell<Option<Link>>,
    line: Line,
    longest_wait: Cell<Duration>,
}

impl Wire {
    /// Connects to the first server of the URL that takes it.
    ///
    /// # Errors
    /// [`CatalogError::Away`], [`CatalogError::Database`]: of the last one.
    pub fn connect(config: &Config, tls: &MakeRustlsConnect) -> Result<Self, CatalogError> {
        let unusable = |why: String| CatalogError::Unusable(format!("the catalogue's URL {why}"));
        let mut refused = CatalogError::Away("no server was tried".into());
        for place in places(config).map_err(unusable)? {
            match Self::to(&place, config, tls.clone()) {
                Ok(wire) => return Ok(wire),
                Err(error) => refused = error,
            }
        }
        Err(refused)
    }

    fn to(place: &Place, config: &Config, mut tls: MakeRustlsConnect) -> Result<Self, CatalogError> {
        let until = Instant::now() + GREETING_WAIT;
        let line = Line::to(place, config, until)
            .map_err(|error| CatalogError::Away(format!("error connecting to server: {error}").into()))?;
        let host = place.host.as_deref().unwrap_or_default();
        let Ok(tls) = MakeTlsConnect::<Line>::make_tls_connect(&mut tls, host);
        let mut greeted = pin!(config.connect_raw(line.clone(), tls));
        let greeted = line.drive(until, |cx| match greeted.as_mut().poll(cx) {
            Poll::Pending if Instant::now() >= until => Poll::Ready(None),
            looked => looked.map(Some),
        });
        let Some(greeted) = greeted else {
            return Err(CatalogError::Away(
                "the server takes connections and says nothing".into(),
            ));
        };
        let (client, connection) = greeted?;
        let wire = Self {
            longest_wait: Cell::new(ANSWER_WAIT),
            client,
            link: RefCell::new(Some(Box::pin(connection))),
            line,
        };
        let wanted = config.get_target_session_attrs();
        if wanted != TargetSessionAttrs::Any {
            let answer = wire.simple("SHOW transaction_read_only")?;
            let only_reads = answer
                .iter()
                .any(|message| matches!(message, SimpleQueryMessage::Row(row) if row.get(0) == Some("on")));
            if only_reads != (wanted == TargetSessionAttrs::ReadOnly) {
                return Err(CatalogError::Away(
                    "the server is not of the kind that target_session_attrs asks for".into(),
                ));
            }
        }
        Ok(wire)
    }

    /// From now on it is given up where it does not answer for so long.
    pub fn wait_at_most(&self, longest: Duration) {
        self.longest_wait.set(longest);
    }

    /// Whether it has ended, as far as it was noticed.
    pub fn is_closed(&self) -> bool {
        self.client.is_closed()
    }

    /// Runs statements without parameters.
    ///
    /// # Errors
    /// The server's, or the connection ended.
    pub fn simple(&self, sql: &str) -> Result<Vec<SimpleQueryMessage>, Error> {
        self.run(self.client.simple_query(sql))
    }

    /// As [`Wire::simple`], without what they answer.
    ///
    /// # Errors
    /// As [`Wire::simple`].
    pub fn batch(&self, sql: &str) -> Result<(), Error> {
        self.run(self.client.batch_execute(sql))
    }

    /// Prepares a statement.
    ///
    /// # Errors
    /// As [`Wire::simple`].
    pub fn prepare(&self, sql: &str) -> Result<Statement, Error> {
        self.run(self.client.prepare(sql))
    }

    /// The rows of each statement, which are sent together. `before` is sent with them, and succeeds first.
    ///
    /// # Errors
    /// As [`Wire::simple`], the first one of all.
    pub fn query(&self, before: Option<&str>, asked: &[Question<'_>]) -> Result<Vec<Vec<Row>>, Error> {
        let mut begun = before.map(|before| Box::pin(self.client.batch_execute(before)));
        let mut waiting: Vec<_> = asked
            .iter()
            .map(|(statement, params)| Some(Box::pin(self.client.query(*statement, params))))
            .collect();
        let mut rows = vec![Vec::new(); asked.len()];
        // Each is sent when it is looked at for the first time, so in this order.
        self.run(poll_fn(|cx| {
            if let Some(work) = &mut begun
                && let Poll::Ready(done) = work.as_mut().poll(cx)
            {
                done?;
                begun = None;
            }
            for (work, rows) in waiting.iter_mut().zip(&mut rows) {
                if let Some(pending) = work
                    && let Poll::Ready(done) = pending.as_mut().poll(cx)
                {
                    *rows = done?;
                    *work = None;
                }
            }
            match begun.is_none() && waiting.iter().all(Option::is_none) {
                true => Poll::Ready(Ok(())),
                false => Poll::Pending,
            }
        }))?;
        Ok(rows)
    }

    /// Runs a statement, and returns how many rows it changed.
    ///
    /// # Errors
    /// As [`Wire::simple`].
    pub fn execute(&self, statement: &Statement, params: &[&(dyn ToSql + Sync)]) -> Result<u64, Error> {
        self.run(self.client.execute(statement, params))
    }

    /// Sends statements without parameters, and waits for no answer: whoever asks next passes over it.
    ///
    /// # Errors
    /// The connection ended.
    pub fn send(&self, sql: &str) -> Result<(), Error> {
        let mut sent = pin!(self.client.batch_execute(sql));
        let mut is_queued = false;
        self.run(poll_fn(|cx| {
            if is_queued {
                // The link has had its turn since, and has written it.
                return Poll::Ready(Ok(()));
            }
            is_queued = true;
            match sent.as_mut().poll(cx) {
                Poll::Ready(done) => Poll::Ready(done),
                Poll::Pending => {
                    cx.waker().wake_by_ref();
                    Poll::Pending
                }
            }
        }))
    }

    /// Moves bytes until the work is done. Before each look at the work the link has its turn. One on which the answer does not come is
    /// cut.
    fn run<T>(&self, work: impl Future<Output = Result<T, Error>>) -> Result<T, Error> {
        let mut work = pin!(work);
        let mut link = self.link.borrow_mut();
        let until = Instant::now() + self.longest_wait.get();
        let done = self.line.drive(until, |cx| {
            if let Some(open) = link.as_mut()
                && let Poll::Ready(ended) = open.as_mut().poll(cx)
            {
                *link = None;
                if let Err(error) = ended {
                    return Poll::Ready(Err(error));
                }
            }
            if link.is_some() && Instant::now() >= until {
                *link = None;
                self.line.cut();
            }
            // Without a link it is told that the connection is closed.
            work.as_mut().poll(cx)
        });
        // The server's last word, after which it ends the connection: that may be noticed later than the word.
        if done.as_ref().is_err_and(is_last_word) {
            *link = None;
            self.line.cut();
        }
        done
    }
}

fn is_last_word(error: &Error) -> bool {
    let severity = error.as_db_error().and_then(DbError::parsed_severity);
    matches!(severity, Some(Severity::Fatal | Severity::Panic))
}
