//! Places that are dialled: one where nobody answered is not dialled again. Many servers may name the same one that is gone, and
//! each try of it takes the time that the others need.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

use super::{As, Dial, HostPort};
use crate::error::{Error, Kind};
use crate::node::Node;

/// What is dialled in one look.
pub(super) struct Dialled<'a> {
    dial: Dial<'a>,
    in_vain: Mutex<HashMap<HostPort, InVain>>,
}

/// What was said where nobody answered.
struct InVain {
    kind: Kind,
    operation: &'static str,
    context: String,
}

impl<'a> Dialled<'a> {
    pub(super) fn new(dial: Dial<'a>) -> Self {
        Self {
            dial,
            in_vain: Mutex::default(),
        }
    }

    /// Connects, and asks what shows that somebody is there.
    ///
    /// # Errors
    /// Those of the dial and of `ask`; where nobody answered before, the same again at once.
    pub(super) fn open<T>(
        &self,
        at: &HostPort,
        role: As,
        ask: impl FnOnce(&mut Node) -> Result<T, Error>,
    ) -> Result<(Node, T), Error> {
        if let Some(known) = self.in_vain().get(at) {
            return Err(Error::new(known.kind, known.operation, known.context.clone()));
        }
        let answered = (self.dial)(at, role).and_then(|mut node| {
            let answer = ask(&mut node)?;
            Ok((node, answer))
        });
        if let Err(error) = &answered
            && matches!(error.kind, Kind::Connection | Kind::Idle)
        {
            let in_vain = InVain {
                kind: error.kind,
                operation: error.operation,
                context: error.context.clone(),
            };
            self.in_vain().insert(at.clone(), in_vain);
        }
        answered
    }

    fn in_vain(&self) -> MutexGuard<'_, HashMap<HostPort, InVain>> {
        self.in_vain.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
