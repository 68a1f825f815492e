//! Work of the service that takes no instance's one operation: imports and verifies that callers ask for. It is told to
//! stop when the service stops, and what it was about is settled by whoever ran it.

use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::time::Duration;

use engine::Control;

use crate::app::App;
use crate::limits;

/// What is done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Task {
    /// A file becomes a backup.
    Import,
    /// A backup is looked through.
    Verify,
    /// Servers are looked at that are to be attached.
    Attach,
    /// It is counted what a restore key by key would do.
    Plan,
}

/// What is at work.
#[derive(Default)]
pub struct Aside {
    state: Mutex<State>,
    left: Condvar,
}

#[derive(Default)]
struct State {
    is_closed: bool,
    at_work: Vec<(Task, Arc<Control>)>,
}

impl Aside {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    /// Lets nothing begin any more, tells all to stop, and waits so long for their end.
    pub fn close(&self, limit: Duration) {
        let mut state = self.state();
        state.is_closed = true;
        for (_, control) in &state.at_work {
            control.cancel();
        }
        let waited = self
            .left
            .wait_timeout_while(state, limit, |state| !state.at_work.is_empty());
        drop(waited);
    }
}

/// A place to work at; given back when dropped.
pub struct Seat {
    app: Arc<App>,
    control: Arc<Control>,
}

impl Seat {
    /// `None` where as many are at work as may be ([`limits::IMPORTS_AT_ONCE`] and its like), or the service
    /// stops.
    pub fn take(app: &Arc<App>, task: Task, control: &Arc<Control>) -> Option<Self> {
        let limit = match task {
            Task::Import => limits::IMPORTS_AT_ONCE,
            Task::Verify => limits::VERIFIES_AT_ONCE,
            Task::Attach => limits::ATTACHMENTS_AT_ONCE,
            Task::Plan => limits::PLANS_AT_ONCE,
        };
        let mut state = app.aside.state();
        let busy = state.at_work.iter().filter(|(other, _)| *other == task).count();
        if state.is_closed || busy >= limit {
            return None;
        }
        state.at_work.push((task, control.clone()));
        Some(Self {
            app: app.clone(),
            control: control.clone(),
        })
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        let aside = &self.app.aside;
        aside
            .state()
            .at_work
            .retain(|(_, control)| !Arc::ptr_eq(control, &self.control));
        aside.left.notify_all();
    }
}
