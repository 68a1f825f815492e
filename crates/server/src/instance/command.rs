//! What people ask of an instance: every refusal typed, record and job in one transaction.

use engine::Secret;
use engine::defect;
use engine::process::{Authority, Brand, Certificate, OWN_USERS};
use serde_json::Value;

use super::layout::{Layout, Mode, Place};
use super::record::{self, Changes, Instance, OwnedId, OwnedInstance, SealedAuthority, Status};
use super::{generation, policy};
use crate::app::App;
use crate::catalog::{self, Tx};
use crate::hosts::{self, Home};
use crate::idempotency::{self, Once};
use crate::ids::{GenerationId, InstanceId, Moment, ProjectId, ResizeId};
use crate::jobs::{JobKind, queue};
use crate::limits;
use crate::refusal::Refusal;
use crate::resize::record::Wanted;
use crate::{backup, resize, restore, secrets};

/// A checked wish for instances.
#[derive(Debug)]
pub struct Create {
    /// Name; `-000`, `-001`, ... is appended where there are several.
    pub name: String,
    /// Free text.
    pub description: Option<String>,
    /// Size in MiB.
    pub capacity_mb: i64,
    /// The flavor.
    pub spec_code: String,
    /// Of which engine: brand and version.
    pub engine: (Brand, String),
    /// Of how many nodes.
    pub layout: Layout,
    /// The asked client port.
    pub port: Option<u16>,
    /// The clients' ACL user; `None`: the engine's default one.
    pub user: Option<String>,
    /// Password of the clients; `None`: none needed.
    pub password: Option<String>,
    /// Whether clients, nodes and Sentinels speak TLS.
    pub is_tls: bool,
    /// What survives a crash.
    pub persistence: engine::process::Persistence,
    /// JSON kept for DCS clients.
    pub attributes: String,
    /// The backup policy as given.
    pub policy: Option<Value>,
    /// How many.
    pub count: u16,
}

/// The rule for names: 4 to 64 characters, a letter first, then letters, digits, `_` and `-`.
///
/// # Errors
/// [`Refusal::NameInvalid`].
pub fn check_name(name: &str) -> Result<(), Refusal> {
    let legal = name
        .bytes()
        .all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'-'));
    let first = name.bytes().next().is_some_and(|byte| byte.is_ascii_alphabetic());
    if (4..=64).contains(&name.len()) && legal && first {
        Ok(())
    } else {
        Err(Refusal::NameInvalid)
    }
}

/// The rule for names of clients' users: 1 to 64 letters, digits, `_` and `-`, a letter first; none of ours or the engine's.
/// `Ok(None)`: the engine's default one is meant.
///
/// # Errors
/// [`Refusal::Parameter`].
pub fn check_user(name: &str) -> Result<Option<String>, Refusal> {
    let legal = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'-');
    let first = name.bytes().next().is_some_and(|byte| byte.is_ascii_alphabetic());
    match name {
        "" | "default" => Ok(None),
        _ if name.len() <= 64 && first && name.bytes().all(legal) && !name.starts_with(OWN_USERS) => {
            Ok(Some(name.to_owned()))
        }
        _ => Err(Refusal::Parameter("access_user")),
    }
}

/// The rule for passwords: 8 to 32 characters, three of lower case, upper case, digits, signs.
///
/// # Errors
/// [`Refusal::PasswordWeak`].
pub fn check_password(password: &str) -> Result<(), Refusal> {
    let any = |class: fn(&u8) -> bool| usize::from(password.bytes().any(|byte| class(&byte)));
    let classes = any(u8::is_ascii_lowercase)
        + any(u8::is_ascii_uppercase)
        + any(u8::is_ascii_digit)
        + any(u8::is_ascii_punctuation);
    let printable = password.bytes().all(|byte| byte.is_ascii_graphic());
    if (8..=32).contains(&password.len()) && classes >= 3 && printable {
        Ok(())
    } else {
        Err(Refusal::PasswordWeak)
    }
}

/// An instance that was accepted.
#[derive(Debug, serde::Serialize, serde::Deserialize)]
pub struct Made {
    /// Its id.
    pub id: InstanceId,
    /// Its name.
    pub name: String,
}

/// Accepts instances: rows, first generations and jobs in one transaction, once for each `once`.
///
/// # Errors
/// Every rule of the fields, and [`Refusal::PortTaken`], [`Refusal::PortsExhausted`], [`Refusal::EngineUnfit`] or [`Refusal::AddressOpen`].
pub fn create(
    app: &App,
    project: &ProjectId,
    wish: &Create,
    once: Option<&Once>,
    now: Moment,
) -> Result<Vec<Made>, Refusal> {
    check_name(&wish.name)?;
    if let Some(password) = &wish.password {
        check_password(password)?;
    }
    let policy = match &wish.policy {
        Some(given) => Some(policy::accept(given, None, project, app.config.strict_dcs, now)?),
        None => None,
    };
    if let Some(why) = wish.layout.mode.obstacle_of(&wish.engine.1) {
        return Err(Refusal::EngineUnfit(wish.engine.1.clone(), why));
    }
    let made = app.catalog.write(|tx| {
        idempotency::once(tx, project, once, now, || {
            let home = hosts::choose(app, tx, &wish.engine)?;
            if wish.layout.mode != Mode::Single && home.bind.is_unspecified() {
                return Err(Refusal::AddressOpen);
            }
            (0..wish.count)
                .map(|number| insert_one(app, tx, project, (wish, &home), number, policy.clone(), now))
                .collect()
        })
    })?;
    app.board.wake();
    Ok(made)
}

fn insert_one(
    app: &App,
    tx: &Tx<'_>,
    project: &ProjectId,
    (wish, home): (&Create, &Home),
    number: u16,
    policy: Option<String>,
    now: Moment,
) -> Result<Made, Refusal> {
    let id = InstanceId::random();
    let (nodes, sentinels) = choose_places(app, tx, home, wish.layout, wish.port)?;
    let port = nodes.first().ok_or(Refusal::PortsExhausted)?.port;
    let name = if wish.count == 1 {
        wish.name.clone()
    } else {
        format!("{}-{number:03}", wish.name)
    };
    let admin = secrets::random_hex(32);
    let authority = match wish.is_tls {
        true => Some(make_authority(app, &id)?),
        false => None,
    };
    let instance = Instance {
        host: Some(home.host.clone()),
        project_id: project.clone(),
        name,
        description: wish.description.clone(),
        status: Status::Creating,
        engine: wish.engine.0,
        engine_version: wish.engine.1.clone(),
        capacity_mb: wish.capacity_mb,
        spec_code: wish.spec_code.clone(),
        layout: wish.layout,
        sentinels,
        bind: home.bind.to_string(),
        port,
        persistence: wish.persistence,
        admin_password_sealed: app
            .vault
            .master
            .seal(&format!("instance.admin:{id}"), admin.as_bytes()),
        client_user: wish.user.clone(),
        client_password_sealed: seal_client_password(app, &id, wish.password.as_deref()),
        authority,
        attributes: wish.attributes.clone(),
        backup_policy: policy,
        objective: None,
        attachment: None,
        failure: None,
        created_at: now,
        updated_at: now,
        id,
    };
    record::insert(tx, &instance)?;
    generation::insert(tx, &GenerationId::random(), &instance.id, &nodes, now)?;
    queue::insert(tx, &instance.id, JobKind::Create, None)?;
    Ok(Made {
        id: instance.id,
        name: instance.name,
    })
}

/// Places for every node and Sentinel: ports for clients follow each other from the asked one on, or are the first free
/// ones of the range; what nodes and Sentinels have for themselves is from the range.
fn choose_places(
    app: &App,
    tx: &Tx<'_>,
    home: &Home,
    layout: Layout,
    asked: Option<u16>,
) -> Result<(Vec<Place>, Vec<Place>), Refusal> {
    let free = FreePorts::new(app, tx, home)?;
    let count = usize::from(layout.client_ports());
    let ports: Vec<u16> = match asked {
        Some(first) => {
            let ports: Vec<u16> = (first..=u16::MAX).take(count).collect();
            if ports.len() < count {
                return Err(Refusal::Parameter("port"));
            }
            if let Some(port) = ports.iter().find(|port| !free.has(**port)) {
                return Err(Refusal::PortTaken(*port));
            }
            ports
        }
        None => free.take(count, &[])?,
    };
    if layout.mode == Mode::Ha {
        let sentinel_ports = free.take(usize::from(engine::sentinel::COUNT), &ports)?;
        let port = *ports.first().ok_or(Refusal::PortsExhausted)?;
        let sentinels = Layout::SINGLE.places(&sentinel_ports, &[]);
        return Ok((watched_places(app, tx, home, layout, port)?, sentinels));
    }
    let bus_ports = free.take(usize::from(layout.bus_ports()), &ports)?;
    Ok((layout.places(&ports, &bus_ports), Vec::new()))
}

/// Places for watched nodes at this port, at addresses that nobody has there.
fn watched_places(
    app: &App,
    tx: &Tx<'_>,
    home: &Home,
    layout: Layout,
    port: u16,
) -> Result<Vec<Place>, Refusal> {
    let taken = record::addresses_taken(tx, &home.host, port)?;
    let is_here = home.host == app.host;
    let is_free = |address: &str| {
        !taken.iter().any(|other| other == address)
            && (!is_here || std::net::TcpListener::bind((address, port)).is_ok())
    };
    layout
        .watched_places(port, is_free)
        .ok_or(Refusal::PortsExhausted)
}

/// Places for a generation beside `serving`, whose client ports it is to have, as many as there are; more nodes have ports of
/// their own.
///
/// # Errors
/// [`Refusal::PortsExhausted`].
pub fn places_beside(
    app: &App,
    tx: &Tx<'_>,
    layout: Layout,
    serving: &[Place],
) -> Result<Vec<Place>, Refusal> {
    let mut ports: Vec<u16> = serving.iter().map(|place| place.port).collect();
    let home = Home::ours(app);
    if layout.mode == Mode::Ha {
        let port = *ports.first().ok_or(Refusal::PortsExhausted)?;
        return watched_places(app, tx, &home, layout, port);
    }
    ports.truncate(usize::from(layout.client_ports()));
    let more = usize::from(layout.client_ports()) - ports.len();
    let buses = usize::from(layout.bus_ports());
    let mut own =
        FreePorts::new(app, tx, &home)?.take(more + buses + usize::from(layout.side_ports()), &[])?;
    let mut bus_ports = own.split_off(more);
    let side_ports = bus_ports.split_off(buses);
    ports.append(&mut own);
    Ok(layout.places_beside(&ports, &bus_ports, &side_ports))
}

/// The ports that nobody has; of another host, that no instance has: whether a stranger has one turns out there.
struct FreePorts<'a> {
    home: &'a Home,
    is_here: bool,
    taken: Vec<u16>,
}

impl<'a> FreePorts<'a> {
    fn new(app: &App, tx: &Tx<'_>, home: &'a Home) -> Result<Self, catalog::Error> {
        let taken = record::ports_taken(tx, &home.host, &home.bind.to_string())?;
        let is_here = home.host == app.host;
        Ok(Self { home, is_here, taken })
    }

    fn has(&self, port: u16) -> bool {
        !self.taken.contains(&port)
            && (!self.is_here || std::net::TcpListener::bind((self.home.bind, port)).is_ok())
    }

    /// The first ones of the range, without these.
    fn take(&self, count: usize, without: &[u16]) -> Result<Vec<u16>, Refusal> {
        let range = self.home.ports.clone();
        let free = range.filter(|port| !without.contains(port) && self.has(*port));
        let found: Vec<u16> = free.take(count).collect();
        match found.len() == count {
            true => Ok(found),
            false => Err(Refusal::PortsExhausted),
        }
    }
}

/// What an instance's authority is called to people.
fn authority_name(id: &InstanceId) -> String {
    format!("cachekeep instance {id}")
}

fn make_authority(app: &App, id: &InstanceId) -> Result<SealedAuthority, Refusal> {
    let made =
        Authority::make(&authority_name(id)).map_err(|error| Refusal::Internal(engine::chain(&error)))?;
    let key = made.key.expose().as_bytes();
    Ok(SealedAuthority {
        key_sealed: app.vault.master.seal(&format!("instance.tls:{id}"), key),
        certificate: made.certificate,
    })
}

/// A certificate for an engine or Sentinel of the instance that is reached at these addresses besides the instance's; `None`:
/// nobody speaks TLS.
///
/// # Errors
/// [`engine::Kind::Key`] where the sealed column does not open.
pub(super) fn certificate(
    app: &App,
    instance: &Instance,
    addresses: &[&str],
) -> Result<Option<Certificate>, engine::Error> {
    let Some(sealed) = &instance.authority else {
        return Ok(None);
    };
    let place = format!("instance.tls:{}", instance.id);
    let authority = Authority {
        certificate: sealed.certificate.clone(),
        key: Secret::new(app.vault.master.open(&place, &sealed.key_sealed)?),
    };
    let mut all = vec!["localhost".to_owned(), instance.bind.clone()];
    if app.config.engine_bind.is_unspecified() {
        all.push("127.0.0.1".to_owned());
    }
    all.extend(addresses.iter().map(|address| (*address).to_owned()));
    all.dedup();
    authority.certify(&authority_name(&instance.id), &all).map(Some)
}

fn seal_client_password(app: &App, id: &InstanceId, password: Option<&str>) -> Option<Vec<u8>> {
    password.map(|text| {
        app.vault
            .master
            .seal(&format!("instance.client:{id}"), text.as_bytes())
    })
}

/// The instance, or the one answer for everything that is not there.
///
/// # Errors
/// [`Refusal::InstanceUnknown`].
pub fn find(tx: &Tx<'_>, project: &ProjectId, id: &InstanceId) -> Result<OwnedInstance, Refusal> {
    if defect::is_planted("foreign-told-apart")
        && record::load(tx, id)?.is_some_and(|found| found.project_id != *project)
    {
        return Err(Refusal::NotRunning);
    }
    record::find(tx, project, id)?.ok_or(Refusal::InstanceUnknown)
}

/// As [`find`], deleted ones too: their records outlive them.
///
/// # Errors
/// [`Refusal::InstanceUnknown`].
pub fn find_with_deleted(
    tx: &Tx<'_>,
    project: &ProjectId,
    id: &InstanceId,
) -> Result<OwnedInstance, Refusal> {
    record::find_with_deleted(tx, project, id)?.ok_or(Refusal::InstanceUnknown)
}

/// As [`find`] or [`find_with_deleted`], and nothing is read but that it is there.
///
/// # Errors
/// [`Refusal::InstanceUnknown`].
pub fn find_id(tx: &Tx<'_>, project: &ProjectId, id: &InstanceId, deleted: bool) -> Result<OwnedId, Refusal> {
    record::find_id(tx, project, id, deleted)?.ok_or(Refusal::InstanceUnknown)
}

/// Refuses while a job has the instance.
///
/// # Errors
/// [`Refusal::Busy`].
pub fn check_idle(tx: &Tx<'_>, id: &InstanceId) -> Result<(), Refusal> {
    match queue::active(tx, id)? {
        Some((kind, _)) => Err(Refusal::Busy(kind)),
        None => Ok(()),
    }
}

/// Refuses unless the instance serves.
///
/// # Errors
/// [`Refusal::NotRunning`].
pub fn check_running(instance: &Instance) -> Result<(), Refusal> {
    // What is attached may be there again and not have been looked at since: the job finds out.
    let may_be_there = instance.attachment.is_some() && instance.status == Status::Error;
    if instance.status == Status::Running || may_be_there {
        Ok(())
    } else {
        Err(Refusal::NotRunning)
    }
}

/// Refuses what is to be done to engines whose host was forgotten: nobody has them.
///
/// # Errors
/// [`Refusal::HomeForgotten`].
fn check_has_home(tx: &Tx<'_>, instance: &Instance) -> Result<(), Refusal> {
    match &instance.host {
        Some(host) if hosts::record::load(tx, host)?.is_none() => Err(Refusal::HomeForgotten),
        _ => Ok(()),
    }
}

/// Refuses what cannot be done to servers of somebody else's, with what is to be known about that.
///
/// # Errors
/// [`Refusal::Attached`].
pub fn check_managed(instance: &Instance, what: &'static str) -> Result<(), Refusal> {
    match instance.attachment {
        None => Ok(()),
        Some(_) => Err(Refusal::Attached(what)),
    }
}

/// Changes name, description, attributes, backup policy: `decide` makes the changes of what the instance is now, in
/// the transaction that writes them, so that of two calls none takes back what the other changed.
///
/// # Errors
/// Rules of the fields, unknown instance, busy, what `decide` refuses.
pub fn update(
    app: &App,
    project: &ProjectId,
    id: &InstanceId,
    now: Moment,
    decide: impl FnOnce(&Instance) -> Result<Changes, Refusal>,
) -> Result<(), Refusal> {
    app.catalog.write(|tx| {
        let instance = find(tx, project, id)?;
        check_idle(tx, id)?;
        let changes = decide(&instance)?;
        if let Some(name) = &changes.name {
            check_name(name)?;
        }
        if changes
            .description
            .as_ref()
            .is_some_and(|text| text.chars().count() > limits::DESCRIPTION_CHARS_MAX)
        {
            return Err(Refusal::DescriptionTooLong);
        }
        Ok(record::update(tx, id, &changes, now)?)
    })
}

/// Accepts the removal of an instance: from now on it is hidden.
///
/// # Errors
/// Unknown instance, busy.
pub fn delete(app: &App, project: &ProjectId, id: &InstanceId, now: Moment) -> Result<(), Refusal> {
    app.catalog.write(|tx| {
        let instance = find(tx, project, id)?;
        match queue::active(tx, id)? {
            Some((JobKind::Create, _)) => return Err(Refusal::DeleteWhileCreating),
            Some((kind, _)) => return Err(Refusal::Busy(kind)),
            None => {}
        }
        if !record::transition(tx, id, instance.status, Status::Deleting, None, now)? {
            return Err(Refusal::InstanceUnknown);
        }
        queue::insert(tx, id, JobKind::Delete, None)?;
        Ok::<_, Refusal>(())
    })?;
    app.board.wake();
    Ok(())
}

/// Accepts a restart or a flush. A restart is also accepted during a backup, which it ends as failed; that is the
/// one documented exception to "one operation at a time".
///
/// # Errors
/// Unknown instance, busy, not running (flush).
pub fn act(
    app: &App,
    project: &ProjectId,
    id: &InstanceId,
    kind: JobKind,
    now: Moment,
) -> Result<(), Refusal> {
    let interrupted = app.catalog.write(|tx| {
        let instance = find(tx, project, id)?;
        check_managed(&instance, "who runs them restarts and empties them")?;
        check_has_home(tx, &instance)?;
        let mut interrupted = false;
        match queue::active(tx, id)? {
            Some((JobKind::Backup, Some(backup))) if kind == JobKind::Restart => {
                interrupted = true;
                queue::revoke_active(tx, id, now)?;
                if let Some(backup) = crate::ids::BackupId::parse(&backup) {
                    let why = "interrupted by a restart of the instance";
                    backup::record::fail(tx, &backup, backup::record::FailureCode::NotStarted, why, now)?;
                }
            }
            Some((other, _)) => return Err(Refusal::Busy(other)),
            None => {}
        }
        let startable = matches!(instance.status, Status::Running | Status::Error);
        if !startable || (kind == JobKind::Flush && instance.status != Status::Running) {
            return Err(Refusal::WrongState);
        }
        queue::insert(tx, id, kind, None)?;
        Ok::<_, Refusal>(interrupted)
    })?;
    if interrupted {
        app.board.cancel(id);
    }
    app.board.wake();
    Ok(())
}

/// Accepts a new client password (`None`: no password); the job gives it to the engine.
///
/// # Errors
/// Weak password, unknown instance, busy, not running.
pub fn reset_password(
    app: &App,
    project: &ProjectId,
    id: &InstanceId,
    password: Option<&str>,
    now: Moment,
) -> Result<(), Refusal> {
    if let Some(password) = password {
        check_password(password)?;
    }
    let sealed = seal_client_password(app, id, password);
    app.catalog.write(|tx| {
        let instance = find(tx, project, id)?;
        check_managed(
            &instance,
            "who runs them changes their password; attach them again with the new one",
        )?;
        check_idle(tx, id)?;
        if instance.status != Status::Running {
            return Err(Refusal::WrongState);
        }
        record::set_client_password(tx, id, sealed.as_deref(), now)?;
        queue::insert(tx, id, JobKind::Password, None)?;
        Ok::<_, Refusal>(())
    })?;
    app.board.wake();
    Ok(())
}

/// Accepts another size, or another number of shards or replicas. Where the nodes stay the same the job gives the engines the
/// limit, and clients notice nothing; else it makes a generation of other nodes (ADR 42).
///
/// # Errors
/// Unknown instance, busy, not running; [`Refusal::OtherNodes`], [`Refusal::DataTooLarge`], [`Refusal::MemoryShort`].
pub fn resize(
    app: &App,
    project: &ProjectId,
    id: &InstanceId,
    wanted: &Wanted,
    now: Moment,
) -> Result<(), Refusal> {
    app.catalog.write(|tx| {
        let instance = find(tx, project, id)?;
        check_managed(&instance, "who runs them says how much memory they may take")?;
        check_idle(tx, id)?;
        if instance.status != Status::Running {
            return Err(Refusal::WrongState);
        }
        if wanted.layout.mode != instance.layout.mode {
            return Err(Refusal::OtherNodes);
        }
        let data = app.board.memory_of(id);
        let (data_mb, limit_mb) = (data >> 20, u64::try_from(wanted.capacity_mb).unwrap_or(0));
        if data_mb >= limit_mb {
            return Err(Refusal::DataTooLarge { data_mb, limit_mb });
        }
        if wanted.layout == instance.layout {
            record::resize(tx, id, &wanted.spec_code, wanted.capacity_mb, now)?;
            queue::insert(tx, id, JobKind::Resize, None)?;
            return Ok(());
        }
        let (needed, free) = (
            restore::command::memory_for(data, wanted.layout),
            restore::command::free_memory(app, tx, &instance)?,
        );
        if needed > free {
            return Err(Refusal::MemoryShort {
                needed_mb: needed >> 20,
                free_mb: free >> 20,
            });
        }
        let resize = resize::record::insert(tx, id, wanted, now)?;
        queue::insert(tx, id, JobKind::Resize, Some(resize.as_str()))?;
        Ok::<_, Refusal>(())
    })?;
    app.board.wake();
    Ok(())
}

/// Gives a change of the nodes up that has not begun to switch.
///
/// # Errors
/// Unknown instance; [`Refusal::NotCancellable`].
pub fn cancel_resize(app: &App, project: &ProjectId, id: &InstanceId, now: Moment) -> Result<(), Refusal> {
    app.catalog.write(|tx| {
        find(tx, project, id)?;
        let subject = match queue::active(tx, id)? {
            Some((JobKind::Resize, Some(subject))) => ResizeId::parse(&subject),
            _ => None,
        };
        let resize = subject.ok_or(Refusal::NotCancellable(
            "the nodes of the instance are not being changed",
        ))?;
        match resize::record::ask_to_cancel(tx, &resize, now)? {
            true => Ok(()),
            false => Err(Refusal::NotCancellable("the switch has begun and is finished")),
        }
    })?;
    // One that waits for its turn finds it in its record.
    app.board.cancel(id);
    Ok(())
}

/// The clients' password in clear, for who made the instance through the command line.
///
/// # Errors
/// The sealed column does not open.
pub fn client_password(app: &App, instance: &Instance) -> Result<Option<String>, secrets::Unsealable> {
    match &instance.client_password_sealed {
        Some(sealed) => app
            .vault
            .master
            .open(&format!("instance.client:{}", instance.id), sealed)
            .map(Some),
        None => Ok(None),
    }
}

/// What is being done to the instance, for its shown status.
///
/// # Errors
/// The catalogue failed.
pub fn activity(tx: &Tx<'_>, id: &InstanceId) -> Result<Option<JobKind>, catalog::Error> {
    Ok(queue::active(tx, id)?.map(|(kind, _)| kind))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_passwords_follow_the_rules() {
        for good in ["dcs1", "a-b_c", &format!("a{}", "b".repeat(63))] {
            assert!(check_name(good).is_ok(), "{good}");
        }
        for bad in ["abc", "1abc", "ab c", "", &"a".repeat(65), "ab\u{e9}cd"] {
            assert!(check_name(bad).is_err(), "{bad}");
        }
        for good in ["Abcdefg1", "abc_1234", "ABC-1234"] {
            assert!(check_password(good).is_ok(), "{good}");
        }
        for bad in ["Abcde1", "abcdefgh1", "", &"Aa1".repeat(11), "Abc 12345"] {
            assert!(check_password(bad).is_err(), "{bad}");
        }
        assert!(check_password(&secrets::random_password()).is_ok());
    }
}
