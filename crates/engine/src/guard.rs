//! Watches a source while it is captured, on a connection of its own, and gives the capture up before the service suffers:
//! the source then ends its child, and is as before.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use crate::control::Control;
use crate::discover::number;
use crate::error::{Error, Kind};
use crate::node::{Endpoint, Node, Reply};
use crate::psync;

/// Between two looks at a source.
const EVERY: Duration = Duration::from_millis(200);
/// Memory is asked for each so many looks: that answer is longer.
const LOOKS_PER_MEMORY: u32 = 5;
/// What the connection of a capture is called in its source, where the user may name it.
pub(crate) const CAPTURE: &str = "cachekeep-capture";
/// So many answers in a row may be too slow: a fork makes one so, however large the source is.
const SLOW_ANSWERS_MAX: u32 = 3;

/// What a source must not suffer.
#[derive(Debug, Clone, Copy)]
pub struct Guardrails {
    /// A `PING` takes longer than this, several times in a row.
    pub latency_max: Duration,
    /// More than this waits for the capture, in bytes; of a source that does not tell captures from its replicas: the buffers of all of
    /// them grow by more than this.
    pub buffers_max: u64,
}

/// One source that is watched.
struct Watched {
    endpoint: Endpoint,
    node: Option<Node>,
    slow_answers: u32,
    /// Buffers of all replicas at the first look.
    buffers_before: Option<u64>,
    /// Whether it tells what waits for the capture: it is not asked again where it does not.
    tells_ours: bool,
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
            tells_ours: true,
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
        let ours = match self.tells_ours {
            true => waiting_for_captures(node)?,
            false => None,
        };
        self.tells_ours = ours.is_some();
        let memory = node.info("memory")?;
        let (buffers, of) = match ours {
            Some(bytes) => (bytes, "the buffer of the capture in"),
            // Of all replicas: the first name is of engine 7.0 and later.
            None => {
                let buffers = number(&memory, "mem_total_replication_buffers")
                    .max(number(&memory, "mem_clients_slaves"));
                let before = *self.buffers_before.get_or_insert(buffers);
                (buffers.saturating_sub(before), "the buffers of replicas of")
            }
        };
        if buffers > rails.buffers_max {
            let context = format!(
                "{of} {} grew by {} MB, more than {} MB",
                self.endpoint.address,
                buffers >> 20,
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

/// Bytes that wait in a source for captures of ours. `None`: it does not tell them from its replicas, or the user may not ask.
fn waiting_for_captures(node: &mut Node) -> Result<Option<u64>, Error> {
    // Who may not name this connection has not named that of the capture either.
    let named = node.ask(&[b"CLIENT", b"SETNAME", CAPTURE.as_bytes()])?;
    if matches!(named, Reply::Error(_)) {
        return Ok(None);
    }
    Ok(match node.ask(&[b"CLIENT", b"LIST", b"TYPE", b"replica"])? {
        Reply::Bulk(Some(list)) => Some(buffers_of_captures(&String::from_utf8_lossy(&list))),
        _ => None,
    })
}

/// The output buffers of captures in what `CLIENT LIST` answers, in bytes.
fn buffers_of_captures(list: &str) -> u64 {
    let field = |line: &str, wanted: &str| -> Option<String> {
        let mut fields = line.split(' ').filter_map(|field| field.split_once('='));
        fields
            .find(|(name, _)| *name == wanted)
            .map(|(_, value)| value.to_owned())
    };
    list.lines()
        .filter(|line| field(line, "name").as_deref() == Some(CAPTURE))
        .filter_map(|line| field(line, "omem")?.parse::<u64>().ok())
        .fold(0, u64::saturating_add)
}

fn at_risk(context: String) -> Error {
    Error::new(Kind::SourceAtRisk, "watch source", context)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_waits_for_a_capture_is_told_from_what_waits_for_replicas() {
        let list = "id=3 addr=127.0.0.1:1 name= age=1 obl=0 oll=9 omem=900000000 tot-mem=900000100 cmd=replconf\n\
                    id=4 addr=127.0.0.1:2 name=cachekeep-capture age=1 oll=3 omem=5000 cmd=psync\n\
                    id=5 addr=127.0.0.1:3 name=cachekeep-capture-of-others omem=70\n\
                    id=6 addr=127.0.0.1:4 name=cachekeep-capture omem=secret\n";
        assert_eq!(buffers_of_captures(list), 5000);
        assert_eq!(buffers_of_captures(""), 0);
    }
}
