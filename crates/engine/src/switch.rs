//! Giving the clients' port to another generation.
//!
//! Between two generations on one machine the port moves in well under a millisecond: the old engine closes it and ends
//! its client connections, the new one opens it. Open connections survive a change of port, so they must be ended:
//! otherwise some clients would go on with the old data while others see the new.
//!
//! Ending one takes the old engine some 7 microseconds. It is told to do all of this as one transaction, and an engine
//! serves nobody while it carries one out: as soon as its port is free it has served its last client. So the new one
//! opens the port while the old one is still ending connections, nobody reads new data and then old, and the old
//! engine comes to the end of it whether we live or not.
//!
//! Every step can be repeated and the ports themselves say how far a run came, so a run that died anywhere is
//! finished by running it again. An undo is [`run`] with old and new swapped. Once the new engine has opened the port
//! nothing is turned back any more: clients may have been told that their writes are done.
//!
//! Redis before 6.2.1 cannot move its port while it runs: see [`run_by_restart`].

mod door;
mod restart;
mod together;

use std::time::{Duration, Instant};

use crate::error::{Error, Kind, chain};
use crate::failpoint;
use crate::node::{Node, Reply};
use crate::process::{Engine, client_users, port_of};
use door::Command;

pub use door::Door;
pub use restart::{RestartPlan, run_by_restart};
pub use together::{Place, run_together, serves};

/// How long the new generation tries to take the port. A child that the old engine forked this very moment, for a
/// snapshot or a rewrite, still has the old listening socket until it is scheduled for the first time; and the kernel
/// closes that of a dead one a moment after it has left the process table.
const TAKE_OVER_LIMIT: Duration = Duration::from_millis(100);
const TAKE_OVER_POLL: Duration = Duration::from_micros(200);
/// While an old engine is busy with a long command of a client.
const TAKE_OVER_POLL_MAX: Duration = Duration::from_millis(20);
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
}

/// What a switch did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SwitchReport {
    /// From the command that closes the old port until its last client was ended and the new port open. `None` where an
    /// earlier run had begun, or nothing served: how long clients waited is not known then.
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
/// [`Kind::Refused`] where the new one is no primary or still loads, [`Kind::EngineExited`] and the kinds of a broken connection.
/// Only where the old one cannot have its port back either, nobody serves: the context says so, and running again
/// is right. After the new one has the port there are no errors: what is left to do then is only logged.
pub fn run(plan: &SwitchPlan<'_>) -> Result<SwitchReport, Error> {
    let mut new = plan.new.control()?;
    check_can_serve(&mut new).map_err(|e| plan.new.explain(e))?;
    let new_port = port_of(&mut new).map_err(|e| plan.new.explain(e))?;
    let Some(old_engine) = plan.old.filter(|old| old.is_alive()) else {
        take_over(plan.new, &Door::Port(plan.port), &mut new, || true)?;
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
    failpoint::hit("switch.before_old_port")?;
    let moved = match exchange(plan, &mut old, &mut new) {
        // An engine that died gave everything up.
        Err(_) if !old_engine.is_alive() => take_over(plan.new, &Door::Port(plan.port), &mut new, || true)
            .map(|()| SwitchReport {
                gap: None,
                clients_ended: 0,
            }),
        other => other,
    };
    match moved {
        Ok(report) => {
            tidy(old_engine);
            Ok(report)
        }
        Err(error) => Err(give_back(old_engine, &Door::Port(plan.port), error)),
    }
}

/// What is left to do for the old generation once the new one serves. Nobody waits for it, and its failure is no reason
/// to turn back. A replica that a client attached would follow the old generation for ever.
fn tidy(old: &Engine) {
    let tidied = failpoint::hit("switch.after_new_port")
        .and_then(|()| old.control())
        .and_then(|mut node| {
            for user in client_users(&mut node)? {
                node.run(&["CLIENT", "KILL", "TYPE", "replica", "USER", &user])?;
            }
            failpoint::hit("switch.after_kill_replica")
        });
    if let Err(e) = tidied
        && old.is_alive()
    {
        tracing::warn!(pid = old.pid(), error = %chain(&e), "the replaced generation is not tidied up");
    }
}

/// Takes the port off the old generation and gives it to the new one.
fn exchange(plan: &SwitchPlan<'_>, old: &mut Node, new: &mut Node) -> Result<SwitchReport, Error> {
    let door = Door::Port(plan.port);
    let served = door.is_open(old)?;
    let commands = door.give_up(old)?;
    let begun_at = Instant::now();
    let mut next = commands.iter();
    let mut tell_next = |old: &mut Node| {
        next.next()
            .map_or(Ok(false), |command| tell(old, command).map(|()| true))
    };
    tell_next(old)?;
    failpoint::hit("switch.after_multi")?;
    tell_next(old)?;
    failpoint::hit("switch.after_close_port")?;
    tell_next(old)?;
    failpoint::hit("switch.after_end_normal")?;
    tell_next(old)?;
    failpoint::hit("switch.before_exec")?;
    // Of more than one user of the clients' the other ones; EXEC is the last.
    while tell_next(old)? {}
    let (given_up, taken) = std::thread::scope(|scope| {
        let giving = scope.spawn(|| given_up(old, commands.len()));
        let taken = failpoint::hit("switch.after_old_port").and_then(|()| match served {
            true => take_over(plan.new, &door, new, || giving.is_finished()),
            // The port is free already and no sign that the transaction has begun.
            false => Ok(()),
        });
        let given_up = giving
            .join()
            .unwrap_or_else(|panic| std::panic::resume_unwind(panic));
        (given_up, taken)
    });
    match (given_up, taken) {
        (Ok(clients_ended), Ok(())) => {
            if !served {
                take_over(plan.new, &door, new, || true)?;
            }
            Ok(SwitchReport {
                gap: served.then(|| begun_at.elapsed()),
                clients_ended,
            })
        }
        // The new one has the port, so the old one has begun, and ends it all unless it dies.
        (Err(_), Ok(())) if served => Ok(SwitchReport {
            gap: None,
            clients_ended: 0,
        }),
        (Err(error), _) | (_, Err(error)) => Err(error),
    }
}

fn tell(node: &mut Node, command: &Command) -> Result<(), Error> {
    let words: Vec<&[u8]> = command.iter().map(Vec::as_slice).collect();
    node.send(&words)
}

/// Lets clients in at this node no more, where it goes on as a replica.
///
/// # Errors
/// As [`Node::ask`]; [`Kind::Refused`].
pub fn step_aside(door: &Door, node: &mut Node) -> Result<(), Error> {
    let commands = door.step_aside(node)?;
    commands.iter().try_for_each(|command| tell(node, command))?;
    given_up(node, commands.len()).map(drop)
}

/// Reads the old generation's answers to so many commands: how many clients were ended.
fn given_up(old: &mut Node, commands: usize) -> Result<u64, Error> {
    let mut answers = Vec::with_capacity(commands);
    for _ in 0..commands {
        answers.push(old.reply()?);
    }
    match answers.last() {
        Some(Reply::Array(done)) if done.iter().all(|reply| !matches!(reply, Reply::Error(_))) => {
            Ok(done.iter().map(ended).sum())
        }
        _ => {
            let context = format!("{}: it does not give up its port: {answers:?}", old.label());
            Err(Error::new(Kind::Refused, "switch", context))
        }
    }
}

/// Gives the port to the new generation, which can have it for good once the old one `has_given_up`; tries before, too.
/// Where the answer got lost, a look at its port tells.
fn take_over(
    engine: &Engine,
    door: &Door,
    new: &mut Node,
    has_given_up: impl Fn() -> bool,
) -> Result<(), Error> {
    let mut until = None;
    // The old one needs a moment to close its port, and the new one logs each try that is too early.
    let mut pause = TAKE_OVER_POLL;
    loop {
        if until.is_none() {
            match has_given_up() {
                true => until = Some(Instant::now() + TAKE_OVER_LIMIT),
                false => {
                    std::thread::sleep(pause);
                    pause = (pause * 2).min(TAKE_OVER_POLL_MAX);
                }
            }
        }
        let Err(error) = door.open(new) else {
            return Ok(());
        };
        match error.kind {
            Kind::PortTaken => match until {
                None => {}
                Some(until) if Instant::now() < until => std::thread::sleep(TAKE_OVER_POLL),
                Some(_) => return Err(error),
            },
            Kind::Refused => return Err(error),
            _ if engine.lets_in(door).is_ok_and(|open| open) => return Ok(()),
            _ => return Err(engine.explain(error)),
        }
    }
}

fn ended(reply: &Reply) -> u64 {
    reply.int().and_then(|count| count.try_into().ok()).unwrap_or(0)
}

/// After a failure before the new generation had the port: lets the old one serve again. Returns the failure, with
/// what came of this.
fn give_back(old: &Engine, door: &Door, failure: Error) -> Error {
    let until = Instant::now() + GIVE_BACK_LIMIT;
    loop {
        // A new connection: the one that failed may be the reason.
        let given_back = old.control().and_then(|mut node| match door.is_open(&mut node)? {
            true => Ok(()),
            false => door.open(&mut node),
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
