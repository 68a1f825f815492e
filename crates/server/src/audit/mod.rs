//! Who changed what: a row for each change that somebody asked for, in the transaction of the change itself (ADR 62).
//!
//! Whoever acts says so for the thread he acts on; the catalogue appends the row when such a thread commits its first change.
//! So no command can forget it, and none can change anything without it.

pub mod record;

use std::cell::RefCell;

use crate::catalog::{Error, Tx};
use crate::ids::{Moment, ProjectId};

/// What somebody does.
#[derive(Debug, Clone)]
pub struct Act {
    /// When it was asked for.
    pub at: Moment,
    /// In which project.
    pub project: Option<ProjectId>,
    /// A user's id, an access key, the operator, or the scheduler.
    pub who: String,
    /// The operation.
    pub what: String,
    /// What it names.
    pub subject: String,
}

/// Where the chain is broken.
#[derive(Debug)]
pub struct Broken {
    /// The first row that is missing, was changed, or does not follow the one before.
    pub number: i64,
}

thread_local! {
    /// What the thread does for somebody, until it is told.
    static ACTING: RefCell<Option<Act>> = const { RefCell::new(None) };
}

/// Runs `work` as what somebody does: the first of its writes tells it.
pub fn acting<T>(act: Act, work: impl FnOnce() -> T) -> T {
    /// Also where `work` panics: the thread goes back to others.
    struct Done;
    impl Drop for Done {
        fn drop(&mut self) {
            ACTING.set(None);
        }
    }
    ACTING.set(Some(act));
    let _done = Done;
    work()
}

/// The next write of this thread tells this: for a process that does one thing.
pub fn act(act: Act) {
    ACTING.set(Some(act));
}

/// Appends what the thread does for somebody: the catalogue calls this before each commit.
///
/// # Errors
/// The catalogue failed; then the change is not made either.
pub fn tell(tx: &Tx<'_>) -> Result<(), Error> {
    ACTING.with_borrow_mut(|acting| {
        if let Some(act) = acting.as_ref() {
            record::append(tx, act)?;
            *acting = None;
        }
        Ok(())
    })
}
