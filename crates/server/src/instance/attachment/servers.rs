//! The servers of attached instances: connected to, looked at, chosen from for a capture, and left as they were.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use engine::backup::Shard;
use engine::discover::{self, Aim, As, Found, HostPort, ShardFound, Wanted, Way};
use engine::node::{Address, Bounds, Endpoint, Node, Tls};
use engine::psync::{Entry, Setting};
use engine::{Error, Kind, Secret};

use super::{Attachment, Reach, Secrets, sealed_for};
use crate::app::App;
use crate::catalog::{self, Tx};
use crate::egress;
use crate::ids::{InstanceId, Moment};
use crate::instance::record::{self, Instance, Status};
use crate::jobs::{Claim, queue};
use crate::{limits, tls};

/// Servers that can be dialled: only where the operator allows it, each time anew.
pub struct Servers<'a> {
    reach: &'a Reach,
    secrets: Secrets,
    allowed: egress::Servers,
    tls: Option<Tls>,
    until: Instant,
    reply_bytes_max: usize,
}

impl<'a> Servers<'a> {
    /// Those that this reaches; everything must have been said within `limit`.
    ///
    /// # Errors
    /// [`Kind::Io`] where the catalogue fails, [`Kind::Key`] for certificates that are none.
    pub fn new(app: &App, reach: &'a Reach, secrets: Secrets, limit: Duration) -> Result<Self, Error> {
        let allowed = egress::Servers::of(app).map_err(crate::instance::job::catalog_failed)?;
        let unusable = |e: anyhow::Error| Error::new(Kind::Key, "read certificates", format!("{e:#}"));
        let tls = match &reach.tls {
            None => None,
            Some(trust) => {
                let own = trust.certificate.as_deref().zip(secrets.private_key.as_deref());
                Some(Tls {
                    config: tls::connector(&trust.ca, own).map_err(unusable)?,
                    name: trust.server_name.clone(),
                })
            }
        };
        Ok(Self {
            reach,
            secrets,
            allowed,
            tls,
            until: Instant::now() + limit,
            reply_bytes_max: Bounds::narrow(limit).reply_bytes_max,
        })
    }

    /// As they are, but with replies of so many bytes: lists of keys are longer than what a server says of itself.
    pub fn with_replies(self, reply_bytes_max: usize) -> Self {
        Self {
            reply_bytes_max,
            ..self
        }
    }

    /// Those of an instance; everything must have been said within `limit`.
    ///
    /// # Errors
    /// As [`Servers::new`]; [`Kind::Key`] where the sealed column does not open.
    pub fn of(
        app: &App,
        id: &InstanceId,
        attachment: &'a Attachment,
        limit: Duration,
    ) -> Result<Self, Error> {
        let text = app.vault.master.open(&sealed_for(id), &attachment.sealed)?;
        let secrets = serde_json::from_str(&text)
            .map_err(|_not_ours| Error::new(Kind::Key, "open secret", "it is of another form"))?;
        Self::new(app, &attachment.reach, secrets, limit)
    }

    /// Connects to a host where it is allowed to be, and says how.
    ///
    /// # Errors
    /// As [`Node::connect`]; [`Kind::Connection`] where it is not allowed, [`Kind::Idle`] where the time is over.
    pub fn reach(&self, wanted: &HostPort, role: As) -> Result<(Endpoint, Node), Error> {
        let moved = self.reach.moved.iter().find(|(named, _)| named == wanted);
        let wanted = moved.map_or(wanted, |(_, here)| here);
        // A look-up takes time, too.
        self.left(wanted)?;
        let mut last = None;
        for at in self.allowed.resolve(wanted)? {
            let endpoint = self.endpoint(wanted, at, role)?;
            match self.connect(&endpoint, wanted) {
                Ok(node) => return Ok((endpoint, node)),
                Err(error) => last = Some(error),
            }
        }
        Err(last.unwrap_or_else(|| Error::new(Kind::Connection, "connect", "it has no address")))
    }

    fn endpoint(&self, host: &HostPort, at: SocketAddr, role: As) -> Result<Endpoint, Error> {
        let (user, password) = match role {
            As::Node => (&self.reach.user, &self.secrets.password),
            As::Sentinel => (&self.reach.sentinel_user, &self.secrets.sentinel_password),
        };
        Ok(Endpoint {
            address: Address::Checked(host.host.clone(), at),
            user: user.clone(),
            password: password.clone().map(Secret::new),
            tls: self.tls.clone(),
            timeout: limits::ATTACHED_ANSWER.min(self.left(host)?),
        })
    }

    fn connect(&self, endpoint: &Endpoint, host: &HostPort) -> Result<Node, Error> {
        let bounds = Bounds {
            reply_bytes_max: self.reply_bytes_max,
            ..Bounds::narrow(self.left(host)?)
        };
        Node::connect_within(endpoint, bounds)
    }

    /// The time that is left, which is some.
    fn left(&self, wanted: &HostPort) -> Result<Duration, Error> {
        let left = self.until.saturating_duration_since(Instant::now());
        match left.is_zero() {
            false => Ok(left),
            true => {
                let context = format!("no time is left for {wanted}");
                Err(Error::new(Kind::Idle, "discover", context))
            }
        }
    }

    fn dial(&self, wanted: &HostPort, role: As) -> Result<Node, Error> {
        Ok(self.reach(wanted, role)?.1)
    }

    /// Finds out what is there, from what was given and from what was found before.
    ///
    /// # Errors
    /// As [`discover::discover`]; [`Kind::Refused`] where they say that they have more than may be read of them.
    pub fn discover(&self, before: Option<&Found>, aim: Aim) -> Result<Found, Error> {
        let wanted = Wanted {
            seeds: &self.reach.seeds,
            name: self.reach.primary_name.as_deref(),
            before,
            aim,
        };
        let found = discover::discover(&wanted, &|at, role| self.dial(at, role))?;
        // What they say later bounds what is read and spooled as well.
        if found.used_bytes > limits::ATTACHED_BYTES_MAX {
            let what = "its servers say that their data takes more than a terabyte";
            return Err(Error::new(Kind::Refused, "discover", what));
        }
        Ok(found)
    }

    fn put_back(&self, setting: &Setting) -> Result<(), Error> {
        let unreadable = || {
            let context = format!("{} is no place", setting.node);
            Error::new(Kind::Io, "put settings back", context)
        };
        let host: HostPort = setting.node.parse().map_err(|_| unreadable())?;
        let mut node = match setting.at {
            // What was noted is where it was reached: it is not what a node calls itself, which leads elsewhere from here.
            Some(at) => {
                self.allowed.check(&host, &at)?;
                self.connect(&self.endpoint(&host, at, As::Node)?, &host)?
            }
            None => self.dial(&host, As::Node)?,
        };
        setting.put_back(&mut node)
    }

    /// The node of a shard to capture: a replica that has caught up spares the primary the fork. Where keys are read one by one
    /// nothing forks, and a cluster's replica sends who asks it for a key on to the primary.
    fn choose(&self, shard: &ShardFound, way: Way) -> Result<(Endpoint, HostPort), Error> {
        let replica = match way {
            Way::Scan => None,
            Way::Psync | Way::None => {
                let mut primary = self.dial(&shard.primary, As::Node)?;
                let dial = |at: &HostPort, role: As| self.dial(at, role);
                discover::caught_up(shard, &mut primary, limits::CATCH_UP, &dial)?
            }
        };
        let chosen = replica.unwrap_or(&shard.primary);
        let (mut endpoint, mut node) = self.reach(chosen, As::Node)?;
        discover::check_before_capture(&mut node)?;
        endpoint.timeout = limits::ATTACHED_SILENCE;
        Ok((endpoint, chosen.clone()))
    }
}

/// How long a capture may ask what it is to read: each shard may keep it waiting for its replica, and how many there are a
/// stranger says.
fn capture_limit(attachment: &Attachment) -> Duration {
    let shards = u32::try_from(attachment.found.shards.len()).unwrap_or(u32::MAX);
    let of_shards = (limits::CATCH_UP + limits::ATTACHED_ANSWER).saturating_mul(shards);
    limits::ATTACHED_CHOICE_MAX.min(limits::DISCOVERY_TIME_MAX.saturating_add(of_shards))
}

/// What a capture of an attached instance reads.
pub struct Chosen {
    /// The nodes, one for each shard.
    pub shards: Vec<Shard>,
    /// What is there now.
    pub found: Found,
    /// Where it is one: primary or replica, a space, and where.
    pub captured_from: Option<String>,
}

/// Finds the instance's servers again and chooses those to capture, in this way where it is given, else as was found.
///
/// # Errors
/// As [`look`]; [`Kind::Refused`] where no snapshot can be had, [`Kind::SourceAtRisk`].
pub fn choose(
    app: &App,
    instance: &Instance,
    attachment: &Attachment,
    way: Option<Way>,
    now: Moment,
) -> Result<Chosen, Error> {
    let servers = Servers::of(app, &instance.id, attachment, capture_limit(attachment))?;
    let found = find_again(app, instance, attachment, &servers, now)?;
    if found.way == Way::None {
        let context = found.notes.join("; ");
        return Err(Error::new(Kind::Refused, "find servers", context));
    }
    let mut shards = Vec::new();
    let mut captured_from = None;
    for shard in &found.shards {
        let (source, at) = servers.choose(shard, way.unwrap_or(found.way))?;
        let role = if at == shard.primary { "primary" } else { "replica" };
        captured_from = Some(format!("{role} {at}"));
        shards.push(Shard {
            source,
            port: shard.primary.port,
            slots: shard.slots.clone(),
        });
    }
    Ok(Chosen {
        captured_from: captured_from.filter(|_| instance.layout.mode.is_whole()),
        shards,
        found,
    })
}

/// The slots of each shard as they are now.
///
/// # Errors
/// As [`look`].
pub fn slots(
    app: &App,
    instance: &Instance,
    attachment: &Attachment,
    now: Moment,
) -> Result<Vec<Vec<(u16, u16)>>, Error> {
    let servers = Servers::of(app, &instance.id, attachment, capture_limit(attachment))?;
    let found = find_again(app, instance, attachment, &servers, now)?;
    Ok(found.shards.into_iter().map(|shard| shard.slots).collect())
}

/// Why a capture of attached servers failed, as their instance's record may tell: what they answer is told in their own words
/// in the log alone, and so is where a name leads and what is there: else who attaches one address could ask by its replicas'
/// names what our network has.
pub fn told(instance: &Instance, error: &Error) -> String {
    const CODES: [&str; 11] = [
        "NOPERM",
        "NOAUTH",
        "WRONGPASS",
        "LOADING",
        "MASTERDOWN",
        "NOMASTERLINK",
        "MISCONF",
        "BUSY",
        "OOM",
        "READONLY",
        "NOREPLICAS",
    ];
    let is_theirs = match error.kind {
        Kind::Refused | Kind::Memory => {
            matches!(
                error.operation,
                "ask for snapshot" | "run command" | "write to target"
            )
        }
        Kind::Protocol => error.operation != "read snapshot",
        Kind::Auth | Kind::Connection => true,
        Kind::Idle => error.operation != "read snapshot",
        _ => false,
    };
    if !is_theirs {
        return engine::chain(error);
    }
    tracing::warn!(instance.id = %instance.id, error = engine::chain(error), "what attached servers answered");
    // Our own words, and of no address.
    if error.operation == discover::NO_SENTINEL {
        return error.context.clone();
    }
    let has_begun = matches!(error.operation, "ask for snapshot" | "read keys" | "apply backup");
    // What is no engine is told like what is not there, as when servers are attached.
    if matches!(error.kind, Kind::Connection | Kind::Idle) || (error.kind == Kind::Protocol && !has_begun) {
        return "one of its servers cannot be reached, or does not answer in time as an engine does"
            .to_owned();
    }
    let mut words = error.context.split(|letter: char| !letter.is_ascii_uppercase());
    let code = words.find_map(|word| CODES.into_iter().find(|code| *code == word));
    match (error.kind, code) {
        (Kind::Protocol, _) => format!(
            "{}: the server does not answer as an engine does",
            error.operation
        ),
        (_, Some("NOPERM")) if error.operation == "ask for snapshot" => format!(
            "{}: the server refuses it (NOPERM): the user needs +psync and +replconf",
            error.operation
        ),
        (_, Some("NOPERM")) => format!(
            "{}: the server refuses it (NOPERM): the user lacks a permission, `cachekeep instance attach --print-acl` prints which it needs",
            error.operation
        ),
        (_, Some(code)) => format!("{}: the server refuses it ({code})", error.operation),
        (_, None) if error.context.contains("ERR unknown command") => format!(
            "{}: the server knows no such command: a provider has renamed it or taken it away",
            error.operation
        ),
        (_, None) => format!("{}: the server refuses it", error.operation),
    }
}

/// Writes down what becomes of a setting, for the job that has the instance, or where no job has.
///
/// # Errors
/// [`Kind::Io`] where the catalogue fails; [`Kind::Cancelled`] where the claim does not hold, or a job has the instance that has
/// begun meanwhile: what becomes of the setting is its business.
pub fn note(
    app: &App,
    id: &InstanceId,
    claim: Option<&Claim>,
    entry: Entry<'_>,
    now: Moment,
) -> Result<(), Error> {
    let change = |settings: &mut Vec<Setting>| match entry {
        Entry::Changing(setting) => settings.push(setting.clone()),
        Entry::Back(setting) => settings.retain(|noted| noted != setting),
    };
    let is_ours = |tx: &Tx<'_>| match claim {
        Some(claim) => Ok::<_, catalog::Error>(!claim.lease.is_over() && queue::holds(tx, claim)?),
        None => Ok(queue::active(tx, id)?.is_none()),
    };
    let noted = app.catalog.write(|tx| {
        let is_ours = is_ours(tx)?;
        if is_ours {
            record::change_attached_settings(tx, id, change, now)?;
        }
        Ok::<_, catalog::Error>(is_ours)
    });
    match noted.map_err(crate::instance::job::catalog_failed)? {
        true => Ok(()),
        false => Err(Error::new(
            Kind::Cancelled,
            "note setting",
            "another job has the instance",
        )),
    }
}

/// Puts settings back that a capture left changed, which a crash may have cut off: all that can be.
///
/// # Errors
/// As [`Node::connect`] and [`Node::command`], the first of them: those stay written down.
pub fn put_settings_back(
    app: &App,
    instance: &Instance,
    attachment: &Attachment,
    claim: Option<&Claim>,
    now: Moment,
) -> Result<(), Error> {
    if attachment.settings.is_empty() {
        return Ok(());
    }
    let servers = Servers::of(app, &instance.id, attachment, limits::DISCOVERY_TIME_MAX)?;
    let mut first = Ok(());
    for setting in &attachment.settings {
        let is_back = servers
            .put_back(setting)
            .and_then(|()| note(app, &instance.id, claim, Entry::Back(setting), now));
        match is_back {
            Ok(()) => {
                tracing::info!(instance.id = %instance.id, node = setting.node, setting = setting.name, "a setting of a source is what it was");
            }
            Err(error) => {
                tracing::warn!(instance.id = %instance.id, node = setting.node, setting = setting.name, error = engine::chain(&error), "a setting of a source is not what it was");
                first = first.and(Err(error));
            }
        }
    }
    first
}

/// Finds the instance's servers again, and keeps what is found: they can be used.
///
/// # Errors
/// As [`Servers::discover`]; [`Kind::Mismatch`] where it is a cluster and was none, or the other way round.
pub fn look(app: &App, instance: &Instance, attachment: &Attachment, now: Moment) -> Result<(), Error> {
    let servers = Servers::of(app, &instance.id, attachment, limits::DISCOVERY_TIME_MAX)?;
    find_again(app, instance, attachment, &servers, now).map(drop)
}

fn find_again(
    app: &App,
    instance: &Instance,
    attachment: &Attachment,
    servers: &Servers<'_>,
    now: Moment,
) -> Result<Found, Error> {
    let found = servers.discover(Some(&attachment.found), Aim::Read)?;
    if found.form != attachment.found.form {
        let context =
            "one of a cluster and one without are not the same instance: detach it, and attach it again";
        return Err(Error::new(Kind::Mismatch, "find servers", context));
    }
    app.board.note_memory(&instance.id, found.used_bytes);
    let is_another = is_another(&found, &attachment.found);
    if is_another || instance.status == Status::Error {
        app.catalog
            .write(|tx| {
                if is_another {
                    record::set_found(tx, &instance.id, attachment, &found, now)?;
                }
                record::transition(tx, &instance.id, Status::Error, Status::Running, None, now).map(drop)
            })
            .map_err(crate::instance::job::catalog_failed)?;
    }
    Ok(found)
}

/// Whether more has changed than how much data there is.
fn is_another(found: &Found, before: &Found) -> bool {
    let of = |found: &Found| Found {
        used_bytes: 0,
        ..found.clone()
    };
    of(found) != of(before)
}
