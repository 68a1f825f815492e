//! What a Sentinel runs once it has promoted a replica: the clients' address goes to the new primary. It needs nobody
//! else: the service may be gone.
//!
//! All Sentinels of an instance run it at about the same time, in their own directories, as the engines' user. What it may
//! do stands in a [`Plan`] beside the Sentinel's settings, and goes with it: after a switch the plan is of another
//! generation, and nobody moves anything for the one that was replaced.

use std::fs::File;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use super::{MOVER_USER, password_of};
use crate::error::{Error, Kind};
use crate::node::{Address, Endpoint, Node, Reply, Secret};
use crate::process::{self, SOCKET};
use crate::switch::{Door, step_aside};

/// The plan, in the Sentinel's directory.
const PLAN: &str = "failover.json";
/// How long it is tried. A Sentinel ends its script after 60 s.
const LIMIT: Duration = Duration::from_secs(20);
/// Between two tries.
const POLL: Duration = Duration::from_millis(5);
/// A primary that was deposed and does not say within this time that it lets clients go hangs: it is ended, for the kernel
/// sends clients to whoever has the address, and those that it has would wait for ever.
const HANG: Duration = Duration::from_millis(500);

/// Which nodes may have the clients' address, and how they are reached.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Plan {
    /// The clients' address.
    pub shared: String,
    /// Of all nodes.
    pub port: u16,
    /// The nodes' own addresses, and their directories as seen from the Sentinel's.
    pub nodes: Vec<(String, PathBuf)>,
    password: String,
}

impl Plan {
    /// For these nodes of the generation.
    pub fn new(
        admin: &Secret,
        generation: &str,
        (shared, port): (String, u16),
        nodes: Vec<(String, PathBuf)>,
    ) -> Self {
        let password = password_of(MOVER_USER, admin, generation).expose().to_owned();
        Self {
            shared,
            port,
            nodes,
            password,
        }
    }
}

/// Lets the Sentinel of this directory move the address between these nodes.
///
/// # Errors
/// [`Kind::Io`].
pub fn arm(home: &Path, run_as: Option<(u32, u32)>, plan: &Plan) -> Result<(), Error> {
    let text = serde_json::to_string(plan)
        .map_err(|e| Error::new(Kind::Io, "write plan", home.display().to_string()).because(e))?;
    super::write(home, PLAN, &text, 0o600, run_as)
}

/// On return the Sentinel of this directory moves nothing any more, nor will it for what it has noticed before.
///
/// # Errors
/// [`Kind::Io`].
pub fn disarm(home: &Path) -> Result<(), Error> {
    let path = home.join(PLAN);
    let failed = |e| Error::io(Kind::Io, "remove plan", path.display().to_string(), e);
    let file = match File::open(&path) {
        Ok(file) => file,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(()),
        Err(e) => return Err(failed(e)),
    };
    // Who moves something at this moment holds it.
    file.lock().map_err(failed)?;
    std::fs::remove_file(&path).map_err(failed)
}

/// Runs the script of the Sentinel in `home`: a replica at `to` was promoted in the place of the primary at `from`.
///
/// # Errors
/// [`Kind::Idle`] where the new primary did not get the address in time; the Sentinel runs the script again then. What the
/// nodes say; [`Kind::Io`].
pub fn run(home: &Path, from: &str, to: &str) -> Result<(), Error> {
    let until = Instant::now() + LIMIT;
    let hangs_at = Instant::now() + HANG;
    loop {
        let held = match hold(home)? {
            Some(held) => held,
            None => return Ok(()),
        };
        let is_hanging = Instant::now() >= hangs_at;
        match step(home, &held.0, from, to, is_hanging) {
            Ok(true) => return Ok(()),
            Ok(false) => {}
            Err(e) if Instant::now() >= until => return Err(e),
            Err(_) => {}
        }
        drop(held);
        if Instant::now() >= until {
            let context = format!("{to} did not get the clients' address");
            return Err(Error::new(Kind::Idle, "fail over", context));
        }
        std::thread::sleep(POLL);
    }
}

/// The plan, which nobody takes away while it is held; `None`: there is none any more.
fn hold(home: &Path) -> Result<Option<(Plan, File)>, Error> {
    let path = home.join(PLAN);
    let failed = |e| Error::io(Kind::Io, "read plan", path.display().to_string(), e);
    let file = match File::open(&path) {
        Ok(file) => file,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(e) => return Err(failed(e)),
    };
    file.lock_shared().map_err(failed)?;
    let now = std::fs::metadata(&path).ok().map(|meta| meta.ino());
    if now != file.metadata().ok().map(|meta| meta.ino()) {
        // Another one is in its place by now, or none.
        return match now {
            None => Ok(None),
            Some(_) => hold(home),
        };
    }
    let plan = serde_json::from_reader(&file)
        .map_err(|e| Error::new(Kind::Io, "read plan", path.display().to_string()).because(e))?;
    Ok(Some((plan, file)))
}

/// One try; `true`: nothing is left to do.
fn step(home: &Path, plan: &Plan, from: &str, to: &str, is_hanging: bool) -> Result<bool, Error> {
    let find = |address: &str| plan.nodes.iter().find(|(own, _)| own == address);
    let Some((own, directory)) = find(to) else {
        // A failover of another generation.
        return Ok(true);
    };
    let door = |own: &str| Door::Address {
        own: own.to_owned(),
        shared: plan.shared.clone(),
        port: plan.port,
    };
    // An engine that is given its addresses again, even the same, lets those clients go that it has not taken yet.
    let _turn = one_at_a_time(&home.join(directory))?;
    let mut new = reach(home, plan, directory)?;
    match new.run(&["ROLE"])? {
        Reply::Array(words) if words.first().and_then(Reply::text).as_deref() == Some("master") => {}
        _ => return Ok(true),
    }
    let taken = door(own);
    if taken.is_open(&mut new)? {
        return Ok(true);
    }
    if let Some((own, directory)) = find(from).filter(|_| from != to) {
        let given_up = reach(home, plan, directory).and_then(|mut old| {
            let door = door(own);
            match door.is_open(&mut old)? {
                true => step_aside(&door, &mut old),
                false => Ok(()),
            }
        });
        if given_up.is_err() {
            let password = Secret::new(String::new());
            match process::find(&home.join(directory), &password)? {
                None => {}
                Some(engine) if is_hanging => engine.kill()?,
                // It has the address still.
                Some(_) => return Ok(false),
            }
        }
    }
    taken.open(&mut new).map(|()| true)
}

/// Of those who run this for the same new primary, one looks and moves while this is held.
fn one_at_a_time(directory: &Path) -> Result<File, Error> {
    let failed = |e| Error::io(Kind::Io, "fail over", directory.display().to_string(), e);
    let held = File::open(directory).map_err(failed)?;
    held.lock().map_err(failed)?;
    Ok(held)
}

fn reach(home: &Path, plan: &Plan, directory: &Path) -> Result<Node, Error> {
    Node::connect(&Endpoint {
        address: Address::Unix(home.join(directory).join(SOCKET)),
        user: Some(MOVER_USER.to_owned()),
        password: Some(Secret::new(plan.password.clone())),
        tls: None,
        timeout: HANG,
    })
}
