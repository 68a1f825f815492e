//! An instance as the wire has it.

use engine::discover::HostPort;
use serde::Serialize;
use serde_json::{Value, json};
use utoipa::ToSchema;

use super::error::Version;
use super::failure;
use super::instances::CREATED_BY;
use super::request::Request;
use super::schedules::ObjectiveShown;
use crate::catalog::Tx;
use crate::config::minor;
use crate::ids::InstanceId;
use crate::instance::command;
use crate::instance::layout::Mode;
use crate::instance::record::persistence_word;
use crate::instance::{Instance, Status};
use crate::jobs::{JobKind, queue};
use crate::refusal::Refusal;
use crate::resize::record as resize;

/// What the instance is shown to be: its state, or what is being done to it.
///
/// # Errors
/// The catalogue failed.
pub fn status_word(tx: &Tx<'_>, instance: &Instance) -> Result<&'static str, Refusal> {
    Ok(word_of(instance, command::activity(tx, &instance.id)?))
}

/// As [`status_word`], where it is known what is being done.
fn word_of(instance: &Instance, activity: Option<JobKind>) -> &'static str {
    match (instance.status, activity) {
        (Status::Creating, _) => "CREATING",
        (Status::CreateFailed, _) => "CREATEFAILED",
        (_, Some(JobKind::Restore)) => "RESTORING",
        (_, Some(JobKind::Restart)) => "RESTARTING",
        (_, Some(JobKind::Flush)) => "FLUSHING",
        (_, Some(JobKind::Resize)) => "EXTENDING",
        (Status::Error, _) => "ERROR",
        // A backup leaves the status as it is: contract §6.3.
        (Status::Running, _) => "RUNNING",
        // Shown only where deleted ones are asked for.
        (Status::Deleting, _) => "DELETING",
        (Status::Deleted, _) => "DELETED",
    }
}

/// An instance as lists and ShowInstance give it.
#[derive(Debug, Serialize, ToSchema)]
pub struct InstanceShown {
    /// The instance.
    pub instance_id: String,
    /// Its name.
    pub name: String,
    /// Free text.
    pub description: Option<String>,
    /// `CREATING`, `CREATEFAILED`, `RUNNING`, `RESTARTING`, `RESTORING`, `FLUSHING`, `EXTENDING`, `ERROR`; `DELETING` and `DELETED`
    /// in a list with deleted ones
    pub status: &'static str,
    /// `normal`
    pub sub_status: &'static str,
    /// `Redis`
    pub engine: &'static str,
    /// `7.0`
    pub engine_version: String,
    /// GB; 0 below one.
    pub capacity: i64,
    /// `.125`, `.25`, `.5` below one GB, else null.
    pub capacity_minor: Option<String>,
    /// MB.
    pub max_memory: i64,
    /// MB.
    pub used_memory: i64,
    /// Address of the client port.
    pub ip: String,
    /// The client port.
    pub port: u16,
    /// Same as `ip`.
    pub domain_name: String,
    /// Not offered.
    pub readonly_domain_name: Option<String>,
    /// `"true"` or `"false"`
    pub no_password_access: &'static str,
    /// Of an attached instance its user; not offered else: clients are the default user.
    pub access_user: Option<String>,
    /// The flavor.
    pub spec_code: String,
    /// `x86_64`
    pub cpu_type: &'static str,
    /// As given at creation.
    #[schema(value_type = Vec<String>)]
    pub az_codes: Value,
    /// Same.
    #[schema(value_type = Vec<String>)]
    pub available_zones: Value,
    /// As given at creation.
    pub vpc_id: Option<String>,
    /// Not offered.
    pub vpc_name: Option<String>,
    /// As given at creation.
    pub subnet_id: Option<String>,
    /// Not offered.
    pub subnet_name: Option<String>,
    /// Not offered.
    pub subnet_cidr: Option<String>,
    /// As given at creation.
    pub security_group_id: Option<String>,
    /// Not offered.
    pub security_group_name: Option<String>,
    /// As given at creation.
    pub enterprise_project_id: Option<String>,
    /// As given at creation.
    #[schema(value_type = Vec<Object>)]
    pub tags: Value,
    /// 0: nobody is charged.
    pub charging_mode: i64,
    /// Not offered.
    pub order_id: Option<String>,
    /// As given at creation.
    pub maintain_begin: String,
    /// As given at creation.
    pub maintain_end: String,
    /// When it was asked for.
    pub created_at: String,
    /// When it last changed.
    pub updated_at: String,
    /// Same; the name is DCS's.
    pub update_at: String,
    /// When it was asked for.
    pub launched_at: String,
    /// Who asks.
    pub user_id: Option<String>,
    /// Who asks.
    pub user_name: Option<String>,
    /// Whether clients have to speak TLS.
    pub enable_ssl: bool,
    /// Not offered.
    pub enable_publicip: bool,
    /// Not offered.
    pub publicip_id: Option<String>,
    /// Not offered.
    pub publicip_address: Option<String>,
    /// Not offered.
    pub service_upgrade: bool,
    /// Not offered.
    pub service_task_id: String,
    /// What the instance can do.
    pub features: Features,
    /// The policy as stored, or null.
    #[schema(value_type = Option<Object>)]
    pub instance_backup_policy: Option<Value>,
    /// `BACKUPING` while a backup runs, `RESTORING`, `RESTARTING`, `FLUSHING`, `EXTENDING`; null when idle.
    pub task: Option<&'static str>,
    /// `ip:port` of each node, separated by commas; a list on v1.0.
    pub backend_addrs: String,
    /// `single`, `cluster`
    pub cache_mode: &'static str,
    /// Copies of the data: a primary and its replicas.
    pub replica_count: i64,
    /// Primaries, each with a share of the slots.
    pub sharding_count: i64,
    /// 256; 1 for a cluster.
    pub db_number: i64,
    /// `generic`
    pub product_type: &'static str,
    /// `DRAM`
    pub storage_type: &'static str,
    /// `"false"`
    pub support_slow_log_flag: &'static str,
    /// Not offered.
    pub transparent_client_ip_enable: bool,
    /// Not offered.
    pub bandwidth_info: Option<i64>,
    /// What DCS does not tell; absent in strict mode.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(required = false, nullable = false)]
    pub ext: Option<InstanceDetails>,
}

/// What an instance can do.
#[derive(Debug, Serialize, ToSchema)]
pub struct Features {
    /// Not offered.
    pub support_acl: bool,
    /// Not offered.
    pub support_transparent_client_ip: bool,
    /// TLS can be asked for when an instance is made.
    pub support_ssl: bool,
    /// Not offered.
    pub support_audit_log: bool,
}

/// What we tell beyond DCS about an instance.
#[derive(Debug, Serialize, ToSchema)]
pub struct InstanceDetails {
    /// `redis` or `valkey`
    pub engine: &'static str,
    /// The engine's whole version.
    pub engine_version: String,
    /// `aof`, `rdb`, `none`
    pub persistence: &'static str,
    /// The serving generation.
    pub generation_id: Option<String>,
    /// Where its Sentinels answer, which call the primary `mymaster`; they tell its own address, good on the service's machine.
    /// Empty where it has none.
    pub sentinels: Vec<String>,
    /// Whether somebody else runs its servers, which are attached (`/ck/v1/{project_id}/attachments`).
    pub is_attached: bool,
    /// Of an attached one: what is renamed, forbidden, hidden or out of reach, and what that means.
    pub notes: Vec<String>,
    /// How old its newest backup may become, and is; null: nobody has said so.
    pub rpo: Option<ObjectiveShown>,
    /// The newest change of its nodes; null: they have never been changed.
    pub resize: Option<ResizeShown>,
    /// Why the status is ERROR or CREATEFAILED.
    pub failure: Option<String>,
}

/// A change of an instance's nodes.
#[derive(Debug, Serialize, ToSchema)]
pub struct ResizeShown {
    /// `waiting`, `running`, `switching`, `succeeded`, `failed`
    pub status: &'static str,
    /// What the instance is to become, in words.
    pub layout: String,
    /// What is being done.
    pub phase: Option<String>,
    /// Of the phase.
    pub bytes_done: i64,
    /// Of the phase; 0: not known.
    pub bytes_total: i64,
    /// Of the phase.
    pub keys_done: i64,
    /// How long writes waited, in microseconds; null: not known.
    pub halted_us: Option<i64>,
    /// Why the old nodes serve.
    pub failure: Option<String>,
}

impl ResizeShown {
    fn newest(request: &Request, tx: &Tx<'_>, instance: &Instance) -> Result<Option<Self>, Refusal> {
        let found = resize::newest(tx, &instance.id)?;
        Ok(found.map(|found| Self {
            status: found.status.word(),
            layout: found.layout.to_string(),
            phase: found.phase,
            bytes_done: found.bytes_done,
            bytes_total: found.bytes_total,
            keys_done: found.keys_done,
            halted_us: found.halted_us,
            failure: failure::shown(&request.app.config, found.failure.as_deref()),
        }))
    }
}

impl InstanceShown {
    /// Before the instance is found whose id this is, or others are shown: see [`Tx::soon`].
    ///
    /// # Errors
    /// None in truth.
    pub fn soon(tx: &Tx<'_>, instance: &InstanceId) -> Result<(), Refusal> {
        queue::active_soon(tx, instance)?;
        crate::instance::generation::serving_soon(tx, instance)?;
        Ok(resize::newest_soon(tx, instance)?)
    }

    /// The instance as it is now, for who asks.
    ///
    /// # Errors
    /// The catalogue failed.
    pub fn new(request: &Request, tx: &Tx<'_>, instance: &Instance) -> Result<Self, Refusal> {
        let kept: Value = serde_json::from_str(&instance.attributes).unwrap_or_default();
        let text = |name: &str| kept[name].as_str().map(str::to_owned);
        let list = |name: &str| {
            if kept[name].is_array() {
                kept[name].clone()
            } else {
                json!([])
            }
        };
        let capacity_mb = instance.capacity_mb;
        let activity = command::activity(tx, &instance.id)?;
        let generation = crate::instance::generation::serving(tx, &instance.id)?;
        let ports = match &generation {
            Some(found) if instance.layout.mode != Mode::Ha => {
                found.nodes.iter().map(|place| place.port).collect()
            }
            _ => vec![instance.port],
        };
        let attached = instance.attachment.as_ref();
        let addresses: Vec<String> = match attached {
            Some(attached) => attached.found.nodes().map(HostPort::to_string).collect(),
            None => ports
                .iter()
                .map(|port| format!("{}:{port}", instance.bind))
                .collect(),
        };
        let resize = ResizeShown::newest(request, tx, instance)?;
        let rpo = match request.tells_more() {
            true => ObjectiveShown::new(tx, instance, request.now)?,
            false => None,
        };
        let needs_password = match attached {
            Some(attached) => attached.reach.has_password,
            None => instance.client_password_sealed.is_some(),
        };
        Ok(Self {
            instance_id: instance.id.to_string(),
            name: instance.name.clone(),
            description: instance.description.clone(),
            status: word_of(instance, activity),
            sub_status: "normal",
            engine: "Redis",
            engine_version: minor(&instance.engine_version),
            capacity: capacity_mb / 1024,
            capacity_minor: match capacity_mb {
                128 => Some(".125".to_owned()),
                256 => Some(".25".to_owned()),
                512 => Some(".5".to_owned()),
                _ => None,
            },
            max_memory: capacity_mb,
            used_memory: i64::try_from(request.app.board.memory_of(&instance.id) >> 20).unwrap_or(0),
            ip: instance.bind.clone(),
            port: instance.port,
            domain_name: instance.bind.clone(),
            readonly_domain_name: None,
            no_password_access: if needs_password { "false" } else { "true" },
            access_user: match attached {
                Some(attached) => attached.reach.user.clone(),
                None => instance.client_user.clone(),
            },
            spec_code: instance.spec_code.clone(),
            cpu_type: "x86_64",
            az_codes: list("az_codes"),
            available_zones: list("az_codes"),
            vpc_id: text("vpc_id"),
            vpc_name: None,
            subnet_id: text("subnet_id"),
            subnet_name: None,
            subnet_cidr: None,
            security_group_id: text("security_group_id"),
            security_group_name: None,
            enterprise_project_id: text("enterprise_project_id"),
            tags: list("tags"),
            charging_mode: 0,
            order_id: None,
            maintain_begin: text("maintain_begin").unwrap_or_else(|| "02:00:00".to_owned()),
            maintain_end: text("maintain_end").unwrap_or_else(|| "06:00:00".to_owned()),
            created_at: instance.created_at.iso(),
            updated_at: instance.updated_at.iso(),
            update_at: instance.updated_at.iso(),
            launched_at: instance.created_at.iso(),
            user_id: text(CREATED_BY),
            user_name: text(CREATED_BY),
            enable_ssl: instance.authority.is_some()
                || attached.is_some_and(|attached| attached.reach.tls.is_some()),
            enable_publicip: false,
            publicip_id: None,
            publicip_address: None,
            service_upgrade: false,
            service_task_id: String::new(),
            features: Features {
                support_acl: false,
                support_transparent_client_ip: false,
                support_ssl: true,
                support_audit_log: false,
            },
            instance_backup_policy: instance
                .backup_policy
                .as_deref()
                .and_then(|text| serde_json::from_str(text).ok()),
            task: match (instance.status, activity) {
                (Status::Running, Some(JobKind::Backup)) => Some("BACKUPING"),
                (Status::Running, Some(JobKind::Restore)) => Some("RESTORING"),
                (_, Some(JobKind::Restart)) => Some("RESTARTING"),
                (_, Some(JobKind::Flush)) => Some("FLUSHING"),
                (_, Some(JobKind::Password)) => Some("RESETPASSWORD"),
                (_, Some(JobKind::Resize)) => Some("EXTENDING"),
                _ => None,
            },
            backend_addrs: addresses.join(","),
            cache_mode: instance.layout.mode.word(),
            replica_count: i64::from(1 + instance.layout.replicas),
            sharding_count: i64::from(instance.layout.shards),
            db_number: match instance.layout.mode {
                Mode::Single | Mode::Ha => 256,
                Mode::Cluster => 1,
            },
            product_type: "generic",
            storage_type: "DRAM",
            support_slow_log_flag: "false",
            transparent_client_ip_enable: false,
            bandwidth_info: None,
            ext: request.tells_more().then(|| InstanceDetails {
                engine: instance.engine.word(),
                engine_version: instance.engine_version.clone(),
                persistence: persistence_word(instance.persistence),
                generation_id: generation.map(|found| found.id.to_string()),
                sentinels: match attached {
                    Some(attached) => attached.found.sentinels.iter().map(HostPort::to_string).collect(),
                    None => instance
                        .sentinels
                        .iter()
                        .map(|place| format!("{}:{}", instance.bind, place.port))
                        .collect(),
                },
                is_attached: attached.is_some(),
                notes: attached
                    .map(|attached| attached.found.notes.clone())
                    .unwrap_or_default(),
                rpo,
                resize,
                failure: failure::shown(&request.app.config, instance.failure.as_deref()),
            }),
        })
    }

    /// The version's spelling: contract C25 and §9.1.
    pub fn into_value(self, version: Version) -> Value {
        let mut value = serde_json::to_value(&self).unwrap_or_default();
        if version == Version::V1 {
            let addresses: Vec<&str> = self.backend_addrs.split(',').collect();
            value["backend_addrs"] = json!(addresses);
            value["domainName"] = json!(self.domain_name);
            value["resource_spec_code"] = json!(match self.cache_mode {
                "cluster" => "dcs.cluster",
                "ha" => "dcs.master_standby",
                _ => "dcs.single_node",
            });
            value["product_id"] = json!(self.spec_code);
            value["internal_version"] = Value::Null;
            value["error_code"] = Value::Null;
        }
        value
    }
}
