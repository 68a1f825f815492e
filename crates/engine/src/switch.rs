//! Giving the clients' port to another generation.
//!
//! Between two generations on one machine the port moves in well under a millisecond: the old engine stops writes,
//! closes the port and ends its client connections, the new one opens the port. Open connections survive a change of
//! port, so they must be ended: otherwise some clients would go on with the old data while others see the new. That
//! happens before the new engine opens the port, so nobody reads new data and then old. Ending one takes the old
//! engine some 7 to 10 microseconds, so a thousand open connections make it ten milliseconds: opening the port first
//! would be faster for some and would let a crash of ours in between leave two generations serving.
//!
//! Every step can be repeated and the ports themselves say how far a run came, so a run that died anywhere is
//! finished by running it again. An undo is [`run`] with old and new swapped. Once the new engine has opened the port
//! nothing is turned back any more: clients may have been told that their writes are done.

use std::time::{Duration, Instant};

use crate::error::{Error, Kind, chain};
use crate::failpoint;
use crate::node::{Node, Reply};
use crate::process::{Engine, port_of, take_port};

/// How long the new generation tries to take the port. A child that the old engine forked this very moment, for a
/// snapshot or a rewrite, still has the old listening socket until it is scheduled for the first time; and the kernel
/// closes that of a dead one a moment after it has left the process table.
const TAKE_OVER_LIMIT: Duration = Duration::from_millis(100);
const TAKE_OVER_POLL: Duration = Duration::from_micros(200);
/// How long [`run`] tries to give a port back that somebody took in the moment when nobody held it.
const GIVE_BACK_LIMIT: Duration = Duration::from_secs(2);
const GIVE_BACK_POLL: Duration = Duration::from_millis(5);

/// Who gives the port to whom.
#[derive(Debug, Clone, Copy)]
pub struct SwitchPlan<'a> {
    /// The generation that serves; `None` where it is dead.
    pub old: Option<&'a Engine>,
    /// The generation that is to serve: a primary, loaded and verified.
    pub new: &'a Engine,
    /// The clients' port.
    pub port: u16,
    /// Longest time for which writes to the old generation wait. A run that could not close the old port in this
    /// time gives up and leaves the old generation serving.
    pub write_pause_limit: Duration,
}

/// What a switch did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SwitchReport {
    /// From the command that pauses writes to the answer that the new port is open. `None` where an earlier run had
    /// begun, or nothing served: how long clients waited is not known then.
    pub gap: Option<Duration>,
    /// Client connections to the old generation that were ended.
    pub clients_ended: u64,
}

/// Moves the port to the new generation. The old one stays alive, reachable for us alone.
///
/// Also finishes a run that died at any point, and does no harm after one that did not.
///
/// # Errors
/// The old generation serves as before: [`Kind::PortTaken`] where somebody else holds an address of the new one's,
/// [`Kind::Deadline`] where the pause may have ended before the port moved, [`Kind::Refused`] where the new one is no
/// primary or still loads, [`Kind::EngineExited`] and the kinds of a broken connection.
/// Only where the old one cannot have its port back either, nobody serves: the context says so, and running again
/// is right. After the new one has the port there are no errors: what is left to do then is only logged.
pub fn run(plan: &SwitchPlan<'_>) -> Result<SwitchReport, Error> {
    let mut new = plan.new.control()?;
    check_can_serve(&mut new).map_err(|e| plan.new.explain(e))?;
    let new_port = port_of(&mut new).map_err(|e| plan.new.explain(e))?;
    let Some(old_engine) = plan.old.filter(|old| old.is_alive()) else {
        take_over(plan, &mut new)?;
        return Ok(SwitchReport {
            gap: None,
            clients_ended: 0,
        });
    };
    if new_port == plan.port {
        tidy(old_engine);
        return Ok(SwitchReport {
            gap: None,
            clients_ended: 0,
        });
    }
    let mut old = old_engine.control()?;
    failpoint::hit("switch.before_pause")?;
    let given_up = match give_up_port(plan, &mut old) {
        // An engine that died gave everything up.
        Err(_) if !old_engine.is_alive() => Ok((None, 0)),
        other => other,
    };
    let moved = given_up.and_then(|(paused_at, clients_ended)| {
        take_over(plan, &mut new)?;
        Ok(SwitchReport {
            gap: paused_at.map(|at| at.elapsed()),
            clients_ended,
        })
    });
    match moved {
        Ok(report) => {
            tidy(old_engine);
            Ok(report)
        }
        Err(error) => Err(put_back(plan, old_engine, error)),
    }
}

/// What is left to do for the old generation once the new one serves. Nobody waits for it, and its failure is no reason
/// to turn back. A replica that a client attached would follow the old generation for ever; a pause ends by itself.
fn tidy(old: &Engine) {
    let tidied = failpoint::hit("switch.after_new_port")
        .and_then(|()| old.control())
        .and_then(|mut node| {
            node.run(&["CLIENT", "KILL", "TYPE", "replica", "USER", "default"])?;
            failpoint::hit("switch.after_kill_replica")?;
            node.run(&["CLIENT", "UNPAUSE"])
        })
        .and_then(|_reply| failpoint::hit("switch.after_unpause"));
    if let Err(e) = tidied
        && old.is_alive()
    {
        tracing::warn!(pid = old.pid(), error = %chain(&e), "the replaced generation is not tidied up");
    }
}

/// The old generation's part. Returns when its writers began to wait, where this run made them, and how many clients
/// were ended.
fn give_up_port(plan: &SwitchPlan<'_>, old: &mut Node) -> Result<(Option<Instant>, u64), Error> {
    let pause_ms = plan.write_pause_limit.as_millis().max(1).to_string();
    let served = port_of(old)? == plan.port;
    // The engine counts from a later moment than this, so its pause ends later than ours.
    let paused_at = Instant::now();
    old.run(&["CLIENT", "PAUSE", &pause_ms, "WRITE"])?;
    failpoint::hit("switch.after_pause")?;
    let in_time = || {
        if paused_at.elapsed() < plan.write_pause_limit {
            return Ok(());
        }
        let context = "the pause of writes may have ended before the port moved";
        Err(Error::new(Kind::Deadline, "switch", context))
    };
    in_time()?;
    old.config_set("port", "0")?;
    failpoint::hit("switch.after_old_port")?;
    in_time()?;
    // Only the clients' user: our own connections, a backup in progress among them, are none of theirs.
    let normal = ended(old.run(&["CLIENT", "KILL", "TYPE", "normal", "USER", "default"])?);
    failpoint::hit("switch.after_kill_normal")?;
    let pubsub = ended(old.run(&["CLIENT", "KILL", "TYPE", "pubsub", "USER", "default"])?);
    failpoint::hit("switch.after_kill_pubsub")?;
    Ok((served.then_some(paused_at), normal + pubsub))
}

/// Gives the port to the new generation. Where the answer got lost, a look at its port tells.
fn take_over(plan: &SwitchPlan<'_>, new: &mut Node) -> Result<(), Error> {
    let until = Instant::now() + TAKE_OVER_LIMIT;
    loop {
        let Err(error) = take_port(new, plan.port) else {
            return Ok(());
        };
        match error.kind {
            Kind::PortTaken if Instant::now() < until => std::thread::sleep(TAKE_OVER_POLL),
            Kind::PortTaken | Kind::Refused => return Err(error),
            _ if plan.new.current_port().is_ok_and(|port| port == plan.port) => return Ok(()),
            _ => return Err(plan.new.explain(error)),
        }
    }
}

fn ended(reply: Reply) -> u64 {
    reply.int().and_then(|count| count.try_into().ok()).unwrap_or(0)
}

/// After a failure before the new generation had the port: lets the old one serve again. Returns the failure, with
/// what came of this.
fn put_back(plan: &SwitchPlan<'_>, old: &Engine, failure: Error) -> Error {
    let until = Instant::now() + GIVE_BACK_LIMIT;
    loop {
        // A new connection: the one that failed may be the reason.
        let given_back = old.control().and_then(|mut node| {
            if port_of(&mut node)? != plan.port {
                take_port(&mut node, plan.port)?;
            }
            node.run(&["CLIENT", "UNPAUSE"]).map(drop)
        });
        let Err(e) = given_back else {
            return failure;
        };
        if Instant::now() >= until || !old.is_alive() {
            let context = format!(
                "{}; and the old generation could not have its port back, so nobody serves: {}",
                failure.context,
                chain(&e)
            );
            return Error::new(failure.kind, failure.operation, context).because(failure);
        }
        std::thread::sleep(GIVE_BACK_POLL);
    }
}

/// A standby would refuse every write, and a loading engine every command.
fn check_can_serve(new: &mut Node) -> Result<(), Error> {
    let refuse = |what: &str| {
        Err(Error::new(
            Kind::Refused,
            "switch",
            format!("the new generation {what}"),
        ))
    };
    match new.run(&["ROLE"])? {
        Reply::Array(words) if words.first().and_then(Reply::text).as_deref() == Some("master") => {}
        _ => return refuse("is no primary"),
    }
    let fields = new.info("persistence")?;
    if fields
        .iter()
        .any(|(name, value)| name == "loading" && value != "0")
    {
        return refuse("still loads");
    }
    Ok(())
}
