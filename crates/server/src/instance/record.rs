//! The instance row, its states and their SQL.

use engine::defect;
use engine::discover::Found;
use engine::process::{Brand, Persistence};
use engine::psync::Setting;

use super::attachment::{self, Attachment};
use super::layout::{self, Layout, Place};
use crate::catalog::{Error, FromSql, Row, Tx, Value, params};
use crate::ids::{HostId, InstanceId, Moment, ProjectId};
use crate::resize::record::Wanted;
use crate::schedule::objective::Objective;
use crate::schedule::objective_record;

/// What an instance is, apart from what is being done to it: that is the kind of its unsettled job.
///
/// ```text
/// Creating ──> Running <──> Error
///     └──> CreateFailed        │
/// any ──> Deleting ──> Deleted
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Status {
    /// Accepted, its engine is being started for the first time.
    Creating,
    /// Its engine serves, or the reconciler is bringing it back.
    Running,
    /// Its engine cannot be brought back; the reconciler goes on trying.
    Error,
    /// It never served.
    CreateFailed,
    /// Being removed; hidden.
    Deleting,
    /// Gone; its records stay.
    Deleted,
}

impl Status {
    const ALL: [Status; 6] = [
        Status::Creating,
        Status::Running,
        Status::Error,
        Status::CreateFailed,
        Status::Deleting,
        Status::Deleted,
    ];

    /// The word in the table.
    pub fn word(self) -> &'static str {
        match self {
            Status::Creating => "creating",
            Status::Running => "running",
            Status::Error => "error",
            Status::CreateFailed => "create_failed",
            Status::Deleting => "deleting",
            Status::Deleted => "deleted",
        }
    }
}

impl FromSql for Status {
    fn from_sql(value: Value<'_>) -> Option<Self> {
        let word = value.text()?;
        Self::ALL.into_iter().find(|s| s.word() == word)
    }
}

/// The word of a persistence policy in the table and the API.
pub fn persistence_word(persistence: Persistence) -> &'static str {
    match persistence {
        Persistence::None => "none",
        Persistence::Rdb => "rdb",
        Persistence::Aof => "aof",
    }
}

/// Reads [`persistence_word`].
pub fn persistence_from_word(word: &str) -> Option<Persistence> {
    [Persistence::None, Persistence::Rdb, Persistence::Aof]
        .into_iter()
        .find(|p| persistence_word(*p) == word)
}

/// An authority as the row has it.
#[derive(Debug, Clone)]
pub struct SealedAuthority {
    /// Its certificate, PEM.
    pub certificate: String,
    /// Its private key, sealed for `instance.tls:<id>`.
    pub key_sealed: Vec<u8>,
}

/// A row of the table.
#[derive(Debug, Clone)]
pub struct Instance {
    /// Whose processes its engines are; `None`: somebody else runs them.
    pub host: Option<HostId>,
    /// Its id.
    pub id: InstanceId,
    /// Its project.
    pub project_id: ProjectId,
    /// Its name; not unique.
    pub name: String,
    /// Free text.
    pub description: Option<String>,
    /// See [`Status`].
    pub status: Status,
    /// Whose engine it is.
    pub engine: Brand,
    /// `7.0.15`: as found at creation. It stays with this and its patches.
    pub engine_version: String,
    /// Size in MiB: the engine's `maxmemory`.
    pub capacity_mb: i64,
    /// The flavor.
    pub spec_code: String,
    /// Of how many nodes it is.
    pub layout: Layout,
    /// Its Sentinels, in no order: they stay whichever generation serves. Empty where it has none.
    pub sentinels: Vec<Place>,
    /// The address that the engine listens on.
    pub bind: String,
    /// The client port: always that of the serving generation; of a cluster that of its first node.
    pub port: u16,
    /// What survives a crash of the engine.
    pub persistence: Persistence,
    /// Password of our own control user, sealed for `instance.admin:<id>`.
    pub admin_password_sealed: Vec<u8>,
    /// The clients' ACL user; `None`: the engine's default one.
    pub client_user: Option<String>,
    /// Its password, sealed for `instance.client:<id>`.
    pub client_password_sealed: Option<Vec<u8>>,
    /// Who signs its engines' certificates; `None`: nobody speaks TLS.
    pub authority: Option<SealedAuthority>,
    /// JSON: what DCS clients give at creation and want back.
    pub attributes: String,
    /// JSON: the backup policy as shown.
    pub backup_policy: Option<String>,
    /// How old its newest backup may become; `None`: nobody has said so.
    pub objective: Option<Objective>,
    /// How its servers are reached, where somebody else runs them.
    pub attachment: Option<Attachment>,
    /// Why the status is `Error` or `CreateFailed`.
    pub failure: Option<String>,
    /// When it was asked for.
    pub created_at: Moment,
    /// When its row last changed.
    pub updated_at: Moment,
}

/// An instance of the caller's project. Only the look-ups that take the project make one, and every query for what
/// belongs to an instance wants one: a query that forgot the project would not compile.
#[derive(Debug, Clone)]
pub struct OwnedInstance(Instance);

/// The id of an [`OwnedInstance`], for who wants no more of it.
#[derive(Debug)]
pub struct OwnedId(InstanceId);

impl OwnedId {
    /// The id.
    pub fn id(&self) -> &InstanceId {
        &self.0
    }
}

impl std::ops::Deref for OwnedInstance {
    type Target = Instance;

    fn deref(&self) -> &Instance {
        &self.0
    }
}

macro_rules! columns {
    () => {
        "id, project_id, name, description, status, engine_version, capacity_mb, spec_code, bind, port, persistence, \
         admin_password_sealed, client_password_sealed, attributes, backup_policy, failure, created_at_ms, updated_at_ms, \
         cache_mode, shards, replicas, sentinels, engine, tls_authority, tls_authority_key_sealed, \
         attachment, attachment_sealed, attachment_settings, client_user, host_id, rpo_ms, rpo_since_ms, rpo_keep_ms"
    };
}

fn row(row: &Row<'_>) -> Result<Instance, Error> {
    let (persistence, engine): (String, String) = (row.get(10)?, row.get(22)?);
    let attachment = match row.get::<Option<String>>(25)? {
        None => None,
        Some(text) => {
            let (reach, found) = attachment::from_json(&text)?;
            Some(Attachment {
                reach,
                found,
                sealed: row.get(26)?,
                settings: settings(&row.get::<String>(27)?)?,
            })
        }
    };
    Ok(Instance {
        host: row.get(29)?,
        id: row.get(0)?,
        project_id: row.get(1)?,
        name: row.get(2)?,
        description: row.get(3)?,
        status: row.get(4)?,
        engine_version: row.get(5)?,
        capacity_mb: row.get(6)?,
        spec_code: row.get(7)?,
        bind: row.get(8)?,
        port: row.get(9)?,
        persistence: persistence_from_word(&persistence)
            .ok_or_else(|| Error::Unreadable(format!("{persistence} is no persistence")))?,
        admin_password_sealed: row.get(11)?,
        client_user: row.get(28)?,
        client_password_sealed: row.get(12)?,
        attributes: row.get(13)?,
        backup_policy: row.get(14)?,
        failure: row.get(15)?,
        created_at: row.get(16)?,
        updated_at: row.get(17)?,
        layout: Layout {
            mode: row.get(18)?,
            shards: row.get(19)?,
            replicas: row.get(20)?,
        },
        sentinels: layout::from_json(&row.get::<String>(21)?)?,
        engine: Brand::from_word(&engine)
            .ok_or_else(|| Error::Unreadable(format!("{engine} is no engine")))?,
        authority: match (row.get(23)?, row.get(24)?) {
            (Some(certificate), Some(key_sealed)) => Some(SealedAuthority {
                certificate,
                key_sealed,
            }),
            _ => None,
        },
        attachment,
        objective: objective_record::read(row, 30)?,
    })
}

fn settings(text: &str) -> Result<Vec<Setting>, Error> {
    serde_json::from_str(text).map_err(|error| Error::Unreadable(format!("these are no settings: {error}")))
}

/// Adds an instance.
///
/// # Errors
/// `Constraint` where the port is another instance's.
pub fn insert(tx: &Tx<'_>, instance: &Instance) -> Result<(), Error> {
    tx.execute(
        "INSERT INTO instance (id, project_id, name, description, status, engine_version, capacity_mb, spec_code, bind, \
         port, persistence, admin_password_sealed, client_password_sealed, attributes, backup_policy, created_at_ms, \
         updated_at_ms, cache_mode, shards, replicas, sentinels, engine, tls_authority, tls_authority_key_sealed, \
         attachment, attachment_sealed, client_user, host_id) \
         VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12, ?13, ?14, ?15, ?16, ?17, ?18, ?19, ?20, ?21, ?22, ?23, \
         ?24, ?25, ?26, ?27, ?28)",
        params![
            instance.id,
            instance.project_id,
            instance.name,
            instance.description,
            instance.status.word(),
            instance.engine_version,
            instance.capacity_mb,
            instance.spec_code,
            instance.bind,
            instance.port,
            persistence_word(instance.persistence),
            instance.admin_password_sealed,
            instance.client_password_sealed,
            instance.attributes,
            instance.backup_policy,
            instance.created_at,
            instance.updated_at,
            instance.layout.mode.word(),
            instance.layout.shards,
            instance.layout.replicas,
            layout::to_json(&instance.sentinels),
            instance.engine.word(),
            instance.authority.as_ref().map(|authority| &authority.certificate),
            instance.authority.as_ref().map(|authority| &authority.key_sealed),
            instance
                .attachment
                .as_ref()
                .map(|attached| attachment::to_json(&attached.reach, &attached.found)),
            instance.attachment.as_ref().map(|attached| &attached.sealed),
            instance.client_user,
            instance.host,
        ],
    )?;
    Ok(())
}

/// The instance, if it is this project's and not deleted.
///
/// # Errors
/// The catalogue failed.
pub fn find(tx: &Tx<'_>, project: &ProjectId, id: &InstanceId) -> Result<Option<OwnedInstance>, Error> {
    let found = find_with_deleted(tx, project, id)?;
    Ok(found.filter(|found| !matches!(found.status, Status::Deleting | Status::Deleted)))
}

/// The instance, if it is this project's, deleted ones too: their records outlive them.
///
/// # Errors
/// The catalogue failed.
pub fn find_with_deleted(
    tx: &Tx<'_>,
    project: &ProjectId,
    id: &InstanceId,
) -> Result<Option<OwnedInstance>, Error> {
    let owner = match defect::is_planted("project-unfiltered") {
        true => load(tx, id)?.map(|instance| instance.project_id),
        false => None,
    };
    let project = owner.as_ref().unwrap_or(project);
    let found = tx.one(
        concat!(
            "SELECT ",
            columns!(),
            " FROM instance WHERE id = ?1 AND project_id = ?2"
        ),
        (id, project),
        row,
    )?;
    Ok(found.map(OwnedInstance))
}

/// Whether the instance is this project's. `deleted`: deleted ones count too, for their records outlive them.
///
/// # Errors
/// The catalogue failed.
pub fn find_id(
    tx: &Tx<'_>,
    project: &ProjectId,
    id: &InstanceId,
    deleted: bool,
) -> Result<Option<OwnedId>, Error> {
    tx.one(
        "SELECT 1 FROM instance WHERE id = ?1 AND project_id = ?2 AND (?3 OR status NOT IN ('deleting', 'deleted'))",
        (id, project, deleted),
        |_| Ok(OwnedId(id.clone())),
    )
}

/// The instance a job names; jobs are ours and know no project.
///
/// # Errors
/// The catalogue failed.
pub fn load(tx: &Tx<'_>, id: &InstanceId) -> Result<Option<Instance>, Error> {
    tx.one(
        concat!("SELECT ", columns!(), " FROM instance WHERE id = ?1"),
        (id,),
        row,
    )
}

/// All instances of a project that are not deleted, oldest first.
///
/// # Errors
/// The catalogue failed.
pub fn list(tx: &Tx<'_>, project: &ProjectId) -> Result<Vec<Instance>, Error> {
    tx.all(
        concat!(
            "SELECT ",
            columns!(),
            " FROM instance WHERE project_id = ?1 AND status NOT IN ('deleting', 'deleted') ORDER BY created_at_ms, id"
        ),
        (project,),
        row,
    )
}

/// As [`list`], deleted ones too: their records outlive them.
///
/// # Errors
/// The catalogue failed.
pub fn list_with_deleted(tx: &Tx<'_>, project: &ProjectId) -> Result<Vec<Instance>, Error> {
    tx.all(
        concat!(
            "SELECT ",
            columns!(),
            " FROM instance WHERE project_id = ?1 ORDER BY created_at_ms, id"
        ),
        (project,),
        row,
    )
}

/// Every instance of every project that is not deleted: for the reconciler.
///
/// # Errors
/// The catalogue failed.
pub fn all_living(tx: &Tx<'_>) -> Result<Vec<Instance>, Error> {
    tx.all(
        concat!(
            "SELECT ",
            columns!(),
            " FROM instance WHERE status <> 'deleted' ORDER BY created_at_ms, id"
        ),
        (),
        row,
    )
}

/// Those whose engines are a host's processes.
///
/// # Errors
/// The catalogue failed.
pub fn living_on(tx: &Tx<'_>, host: &HostId) -> Result<Vec<Instance>, Error> {
    tx.all(
        concat!(
            "SELECT ",
            columns!(),
            " FROM instance WHERE host_id = ?1 AND deleted_at_ms IS NULL AND attachment IS NULL ORDER BY created_at_ms, id"
        ),
        (host,),
        row,
    )
}

/// Instances that serve or may again and have a backup policy: for the scheduler.
///
/// # Errors
/// The catalogue failed.
pub fn with_policy(tx: &Tx<'_>) -> Result<Vec<Result<Instance, Error>>, Error> {
    tx.all(
        concat!(
            "SELECT ",
            columns!(),
            " FROM instance WHERE backup_policy IS NOT NULL AND status NOT IN ('deleting', 'deleted') ORDER BY id"
        ),
        (),
        |read| Ok(row(read)),
    )
}

/// Own addresses of watched nodes at this port of the host, whoever's they are.
///
/// # Errors
/// The catalogue failed.
pub fn addresses_taken(tx: &Tx<'_>, host: &HostId, port: u16) -> Result<Vec<String>, Error> {
    let nodes = tx.all(
        "SELECT nodes FROM generation JOIN instance ON instance.id = instance_id \
         WHERE state <> 'removed' AND port = ?1 AND host_id = ?2",
        (port, host),
        |row| layout::from_json(&row.get::<String>(0)?),
    )?;
    Ok(nodes
        .into_iter()
        .flatten()
        .filter_map(|place| place.address)
        .collect())
}

/// Ports of the host's address that instances have, for clients and among their nodes and Sentinels.
///
/// # Errors
/// The catalogue failed.
pub fn ports_taken(tx: &Tx<'_>, host: &HostId, bind: &str) -> Result<Vec<u16>, Error> {
    let mut taken: Vec<u16> = tx.all(
        "SELECT port FROM instance WHERE bind = ?1 AND host_id = ?2 AND deleted_at_ms IS NULL AND attachment IS NULL",
        (bind, host),
        |row| row.get(0),
    )?;
    let nodes = tx.all(
        "SELECT nodes FROM generation JOIN instance ON instance.id = instance_id \
         WHERE state <> 'removed' AND bind = ?1 AND host_id = ?2",
        (bind, host),
        |row| layout::from_json(&row.get::<String>(0)?),
    )?;
    let sentinels = tx.all(
        "SELECT sentinels FROM instance WHERE bind = ?1 AND host_id = ?2 AND deleted_at_ms IS NULL",
        (bind, host),
        |row| layout::from_json(&row.get::<String>(0)?),
    )?;
    for place in nodes.into_iter().chain(sentinels).flatten() {
        taken.push(place.port);
        taken.extend(place.bus_port);
        taken.extend(place.side_port);
    }
    Ok(taken)
}

/// `from` → `to`, once. `false` where the instance is in another state: the caller must stop.
///
/// # Errors
/// The catalogue failed.
pub fn transition(
    tx: &Tx<'_>,
    id: &InstanceId,
    from: Status,
    to: Status,
    failure: Option<&str>,
    now: Moment,
) -> Result<bool, Error> {
    let deleted_at = (to == Status::Deleted).then_some(now);
    let changed = tx.execute(
        "UPDATE instance SET status = ?3, failure = ?4, updated_at_ms = ?5, deleted_at_ms = ?6 WHERE id = ?1 AND status = ?2",
        (id, from.word(), to.word(), failure, now, deleted_at),
    )?;
    Ok(changed == 1)
}

/// What [`update`] may change; `None` leaves a field as it is.
#[derive(Debug, Default)]
pub struct Changes {
    /// New name.
    pub name: Option<String>,
    /// New description.
    pub description: Option<String>,
    /// New attributes, whole.
    pub attributes: Option<String>,
    /// New backup policy, whole.
    pub backup_policy: Option<String>,
}

/// Changes what needs no work on the engine.
///
/// # Errors
/// The catalogue failed.
pub fn update(tx: &Tx<'_>, id: &InstanceId, changes: &Changes, now: Moment) -> Result<(), Error> {
    tx.execute(
        "UPDATE instance SET name = coalesce(?2, name), description = coalesce(?3, description), \
         attributes = coalesce(?4, attributes), backup_policy = coalesce(?5, backup_policy), updated_at_ms = ?6 WHERE id = ?1",
        (id, &changes.name, &changes.description, &changes.attributes, &changes.backup_policy, now),
    )?;
    Ok(())
}

/// Gives the instance another flavor of the same nodes.
///
/// # Errors
/// The catalogue failed.
pub fn resize(
    tx: &Tx<'_>,
    id: &InstanceId,
    spec_code: &str,
    capacity_mb: i64,
    now: Moment,
) -> Result<(), Error> {
    tx.execute(
        "UPDATE instance SET spec_code = ?2, capacity_mb = ?3, updated_at_ms = ?4 WHERE id = ?1",
        (id, spec_code, capacity_mb, now),
    )?;
    Ok(())
}

/// Gives the instance other nodes: those of a generation that serves from now on.
///
/// # Errors
/// The catalogue failed.
pub fn change_nodes(tx: &Tx<'_>, id: &InstanceId, to: &Wanted, now: Moment) -> Result<(), Error> {
    resize(tx, id, &to.spec_code, to.capacity_mb, now)?;
    tx.execute(
        "UPDATE instance SET cache_mode = ?2, shards = ?3, replicas = ?4 WHERE id = ?1",
        (id, to.layout.mode.word(), to.layout.shards, to.layout.replicas),
    )?;
    Ok(())
}

/// Stores the clients' new password (sealed; `None` for none) and the attributes that show it.
///
/// # Errors
/// The catalogue failed.
pub fn set_client_password(
    tx: &Tx<'_>,
    id: &InstanceId,
    sealed: Option<&[u8]>,
    now: Moment,
) -> Result<(), Error> {
    tx.execute(
        "UPDATE instance SET client_password_sealed = ?2, updated_at_ms = ?3 WHERE id = ?1",
        (id, sealed, now),
    )?;
    Ok(())
}

/// Stores what was found of an attached instance's servers.
///
/// # Errors
/// The catalogue failed.
pub fn set_found(
    tx: &Tx<'_>,
    id: &InstanceId,
    attached: &Attachment,
    found: &Found,
    now: Moment,
) -> Result<(), Error> {
    let (layout, at) = (attachment::layout(found), attachment::entry(found));
    tx.execute(
        "UPDATE instance SET attachment = ?2, engine = ?12, engine_version = ?3, capacity_mb = ?4, cache_mode = ?5, shards = ?6, \
         replicas = ?7, bind = ?8, port = ?9, persistence = ?10, updated_at_ms = ?11 WHERE id = ?1 AND attachment IS NOT NULL",
        params![
            id,
            attachment::to_json(&attached.reach, found),
            found.version,
            attachment::capacity_mb(found),
            layout.mode.word(),
            layout.shards,
            layout.replicas,
            at.host,
            at.port,
            persistence_word(attachment::persistence(found)),
            now,
            attachment::brand(found).word(),
        ],
    )?;
    Ok(())
}

/// Changes the settings of an attached instance's servers that are to be put back.
///
/// # Errors
/// The catalogue failed.
pub fn change_attached_settings(
    tx: &Tx<'_>,
    id: &InstanceId,
    change: impl FnOnce(&mut Vec<Setting>),
    now: Moment,
) -> Result<(), Error> {
    let before = tx.one(
        "SELECT attachment_settings FROM instance WHERE id = ?1",
        (id,),
        |row| settings(&row.get::<String>(0)?),
    )?;
    let mut noted = before.unwrap_or_default();
    change(&mut noted);
    tx.execute(
        "UPDATE instance SET attachment_settings = ?2, updated_at_ms = ?3 WHERE id = ?1",
        (id, serde_json::json!(noted).to_string(), now),
    )?;
    Ok(())
}

/// Forgets the secrets of an attached instance, which is detached.
///
/// # Errors
/// The catalogue failed.
pub fn forget_attached_secrets(tx: &Tx<'_>, id: &InstanceId) -> Result<(), Error> {
    let nothing: &[u8] = &[];
    tx.execute(
        "UPDATE instance SET attachment_sealed = ?2, attachment_settings = '[]' WHERE id = ?1 AND attachment IS NOT NULL",
        (id, nothing),
    )?;
    Ok(())
}
