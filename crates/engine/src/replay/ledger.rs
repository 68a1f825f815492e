//! Which part of the backup is done with: keys are applied by several connections, and each in its own order.
//!
//! The backup is cut into chunks in the order of its bytes. A chunk is done once everything that was sent of it is answered,
//! and committed once all before it are. What is committed is never sent again, and what is not is sent again after any
//! interruption: so a position and an account are enough to go on from, whichever connection was how far.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard};

use serde::{Deserialize, Serialize};

use super::account::Account;

/// A place between two entries of a backup.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Position {
    /// Which of the files.
    pub file: usize,
    /// Offset of what comes next; 0 is the start of the file.
    pub offset: u64,
    /// The database of the entry before.
    pub db: u32,
    /// Keys before it, of all files: the number of the key that comes next.
    pub key: u64,
}

#[derive(Default)]
struct Inner {
    account: Account,
    /// Batches that are not answered, and one for who still adds some.
    open: usize,
    end: Option<Position>,
    /// Something of it has to be sent again: neither it nor what follows is ever committed.
    is_spoilt: bool,
}

/// Some entries that follow each other.
#[derive(Default)]
pub(super) struct Chunk(Mutex<Inner>);

impl Chunk {
    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.0.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    /// A batch more has to be answered.
    pub(super) fn begin_batch(&self) {
        self.inner().open += 1;
    }

    /// A batch is answered.
    pub(super) fn end_batch(&self, account: Account) {
        let mut inner = self.inner();
        inner.account.absorb(account);
        inner.open -= 1;
    }

    /// A batch is answered, but some of it has to be sent again.
    pub(super) fn spoil(&self, account: Account) {
        let mut inner = self.inner();
        inner.account.absorb(account);
        inner.is_spoilt = true;
    }

    fn close(&self, end: Position, account: Account) {
        let mut inner = self.inner();
        inner.account.absorb(account);
        inner.end = Some(end);
    }
}

/// What is committed, and what is under way.
pub(super) struct Ledger {
    chunks: VecDeque<Arc<Chunk>>,
    /// Where to go on.
    pub(super) position: Position,
    /// What became of all keys before.
    pub(super) account: Account,
}

impl Ledger {
    pub(super) fn new(position: Position, account: Account) -> Self {
        Self {
            chunks: VecDeque::new(),
            position,
            account,
        }
    }

    pub(super) fn open(&mut self) -> Arc<Chunk> {
        let chunk = Arc::new(Chunk::default());
        self.chunks.push_back(chunk.clone());
        chunk
    }

    /// Nothing more is added to the chunk, which ends here.
    pub(super) fn close(&mut self, chunk: &Chunk, end: Position, account: Account) {
        chunk.close(end, account);
        self.commit();
    }

    /// Commits what is done; whether that was anything.
    pub(super) fn commit(&mut self) -> bool {
        let mut any = false;
        while let Some(first) = self.chunks.front() {
            let mut inner = first.inner();
            let (true, false, Some(end)) = (inner.open == 0, inner.is_spoilt, inner.end) else {
                break;
            };
            let account = std::mem::take(&mut inner.account);
            drop(inner);
            self.account.absorb(account);
            self.position = end;
            self.chunks.pop_front();
            any = true;
        }
        any
    }

    /// What is known to have happened, committed or not.
    pub(super) fn known(&self) -> Account {
        let mut account = self.account.clone();
        for chunk in &self.chunks {
            account.absorb(chunk.inner().account.clone());
        }
        account
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn one(key: &str) -> Account {
        let mut account = Account::default();
        account.applied.add(0, key.as_bytes(), "");
        account
    }

    fn at(key: u64) -> Position {
        Position {
            key,
            ..Position::default()
        }
    }

    #[test]
    fn only_what_all_before_it_is_done_is_committed() {
        let mut ledger = Ledger::new(Position::default(), Account::default());
        let (first, second) = (ledger.open(), ledger.open());
        first.begin_batch();
        second.begin_batch();
        second.end_batch(one("b"));
        ledger.close(&first, at(1), Account::default());
        ledger.close(&second, at(2), Account::default());
        assert_eq!((ledger.position, ledger.account.keys()), (at(0), 0));
        assert_eq!(ledger.known().keys(), 1, "what is answered is known");
        first.end_batch(one("a"));
        assert!(ledger.commit());
        assert_eq!((ledger.position, ledger.account.keys()), (at(2), 2));
        let third = ledger.open();
        third.begin_batch();
        third.spoil(one("c"));
        ledger.close(&third, at(3), Account::default());
        assert!(!ledger.commit());
        assert_eq!((ledger.position, ledger.known().keys()), (at(2), 3));
    }
}
