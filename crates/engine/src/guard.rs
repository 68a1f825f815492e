//! Watches a source while it is captured, on a connection of its own, and gives the capture up before the service suffers:
//! the source then ends its child, and is as before.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use crate::control::Control;
use crate::discover::number;
use crate::error::{Error, Kind};
use crate::node::{Endpoint, Node};
use crate::psync;

/// Between two looks at a source.
const EVERY: Duration = Duration::from_millis(200);
/// Memory is asked for each so many looks: that answer is longer.
const LOOKS_PER_MEMORY: u32 = 5;
/// So many answers in a row may be too slow: a fork makes one so, however large the source is.
const SLOW_ANSWERS_MAX: u32 = 3;

/// What a source must not suffer.
#[derive(Debug, Clone, Copy)]
pub struct Guardrails {
    /// A `PING` takes longer than this, several times in a row.
    pub latency_max: Duration,
    /// The buffers of its replicas, ours among them, grow by more than this, in bytes.
    pub buffers_max: u64,
}

/// One source that is watched.
struct Watched {
    endpoint: Endpoint,
    node: Option<Node>,
    slow_answers: u32,
    /// Buffers at the first look.
    buffers_before: Option<u64>,
}

/// Looks after the sources until `is_done`, and aborts `control` where one of them is at risk. A source that does not answer
/// at all is the capture's to notice.
pub fn watch(sources: &[Endpoint], rails: &Guardrails, control: &Control, is_done: &AtomicBool) {
    let mut watched: Vec<Watched> = sources
        .iter()
        .map(|source| Watched {
            endpoint: Endpoint {
                timeout: rails.latency_max * 2,
                ..source.clone()
            },
            node: None,
            slow_answers: 0,
            buffers_before: None,
        })
        .collect();
    let mut look = 0;
    while !is_done.load(Ordering::SeqCst) {
        for source in &mut watched {
            match source.look(rails, look % LOOKS_PER_MEMORY == 0) {
                Ok(()) => {}
                Err(error) if error.kind == Kind::SourceAtRisk => control.abort(error.context),
                Err(error) => {
                    tracing::debug!(error = crate::chain(&error), "a look at a source came to nothing");
                    source.node = None;
                }
            }
        }
        look += 1;
        let until = Instant::now() + EVERY;
        while Instant::now() < until && !is_done.load(Ordering::SeqCst) {
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}

impl Watched {
    /// An answer that drips is as late as one that does not come.
    fn answered_by(&self) -> Option<Instant> {
        Instant::now().checked_add(self.endpoint.timeout)
    }

    fn ping(&mut self) -> Result<(), Error> {
        let until = self.answered_by();
        let node = match &mut self.node {
            Some(node) => node,
            None => self.node.insert(psync::connect(&self.endpoint)?),
        };
        node.bound(until);
        node.run(&["PING"]).map(drop)
    }

    fn look(&mut self, rails: &Guardrails, with_memory: bool) -> Result<(), Error> {
        let began = Instant::now();
        let answered = self.ping();
        let took = began.elapsed();
        if took > rails.latency_max {
            self.slow_answers += 1;
        } else {
            self.slow_answers = 0;
        }
        if self.slow_answers >= SLOW_ANSWERS_MAX {
            let context = format!(
                "{} answered {SLOW_ANSWERS_MAX} times in a row later than after {} ms, last after {} ms",
                self.endpoint.address,
                rails.latency_max.as_millis(),
                took.as_millis()
            );
            return Err(at_risk(context));
        }
        answered?;
        let until = self.answered_by();
        let Some(node) = self.node.as_mut().filter(|_| with_memory) else {
            return Ok(());
        };
        node.bound(until);
        let memory = node.info("memory")?;
        // The first name is of engine 7.0 and later.
        let buffers =
            number(&memory, "mem_total_replication_buffers").max(number(&memory, "mem_clients_slaves"));
        let before = *self.buffers_before.get_or_insert(buffers);
        if buffers.saturating_sub(before) > rails.buffers_max {
            let context = format!(
                "the buffers of replicas of {} grew by {} MB, more than {} MB",
                self.endpoint.address,
                (buffers - before) >> 20,
                rails.buffers_max >> 20
            );
            return Err(at_risk(context));
        }
        let (has, uses) = (
            number(&memory, "total_system_memory"),
            number(&memory, "used_memory_rss"),
        );
        let copied = number(&node.info("persistence")?, "current_cow_size");
        if has > 0 && uses.saturating_add(copied) > has / 100 * 98 {
            let context = format!(
                "{} and its child have {} MB of memory in use, of {} MB",
                self.endpoint.address,
                uses.saturating_add(copied) >> 20,
                has >> 20
            );
            return Err(at_risk(context));
        }
        Ok(())
    }
}

fn at_risk(context: String) -> Error {
    Error::new(Kind::SourceAtRisk, "watch source", context)
}
