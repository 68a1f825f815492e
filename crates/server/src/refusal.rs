//! Every way in which a command is refused: the client acts. One `match` in `api/error.rs` gives each its status
//! and code.

use crate::backup::quota_record::Exceeded;
use crate::catalog;
use crate::jobs::JobKind;

/// Why servers are not attached.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum NotAttached {
    /// Nothing that may be connected to answers there as an engine.
    Unreachable,
    /// They refuse the user or the password, or want one.
    Credentials,
    /// The user may not ask what must be known.
    Forbidden,
    /// They are not as they must be, in our own words.
    Shape(String),
}

/// Why a command was refused, or could not be carried out. Nothing was changed.
#[derive(Debug)]
pub enum Refusal {
    /// No such instance in this project.
    InstanceUnknown,
    /// No such backup of this instance.
    BackupUnknown,
    /// No such restore record of this instance.
    RestoreUnknown,
    /// Another management operation has the instance.
    Busy(JobKind),
    /// The instance is not running: it has nothing to back up and nothing to restore into.
    NotRunning,
    /// The instance is in a state in which this cannot be done.
    WrongState,
    /// The instance cannot be deleted while it is being made.
    DeleteWhileCreating,
    /// The backup is not restorable: not finished, failed, expired, found damaged, or its data is gone.
    NotRestorable,
    /// The flavor is of another kind: single, with replicas, or a cluster.
    OtherNodes,
    /// The instance holds more than the flavor may: megabytes of memory.
    DataTooLarge {
        /// What it holds.
        data_mb: u64,
        /// The flavor's limit.
        limit_mb: u64,
    },
    /// The project may not have so many bytes stored.
    Quota(Exceeded),
    /// Nobody speaks TLS with the instance, so it has no certificate.
    NoTls,
    /// The backup has no file to hand out: it is a retired generation.
    NoFile,
    /// The backup holds more than the other instance may: megabytes of memory there and here.
    TooLarge {
        /// What the backup's data took in its instance.
        data_mb: u64,
        /// The limit of the instance that it was to go into.
        limit_mb: u64,
    },
    /// The engine of the instance loads no file as the backup's: which engine, and why.
    EngineCannotLoad {
        /// `redis 7.0.15`
        engine: String,
        /// A clause.
        why: String,
    },
    /// The backup has keys in this database, and a cluster has only database 0.
    OtherDatabases(u32),
    /// The remark is too long.
    RemarkTooLong,
    /// A field of the request is missing or has a value that is not allowed.
    Parameter(&'static str),
    /// A change that names nothing to change.
    NothingToChange,
    /// The Idempotency-Key was given with another request.
    KeyReused,
    /// A query parameter has a value that is not allowed (times).
    Query(&'static str),
    /// A paging parameter is no number in range.
    Paging(&'static str),
    /// `begin_time` is after `end_time`.
    WindowReversed,
    /// The body is empty but needed.
    BodyEmpty,
    /// The body is not a JSON object.
    BodyNotJson,
    /// The name breaks the rules.
    NameInvalid,
    /// The description is too long.
    DescriptionTooLong,
    /// The engine is not offered.
    EngineUnsupported,
    /// The engine version is not offered.
    EngineVersionUnsupported,
    /// Engines of this version cannot be the nodes of such an instance, and why.
    EngineUnfit(String, &'static str),
    /// No such flavor.
    SpecUnknown,
    /// The capacity does not exist or is not that of the flavor.
    CapacityInvalid,
    /// The password breaks the rules.
    PasswordWeak,
    /// The port is taken, by an instance of ours or by a stranger.
    PortTaken(u16),
    /// No port of the configured range is free.
    PortsExhausted,
    /// No node is there that runs instances, or none that runs the engine.
    NoHome,
    /// The node that ran the instance was forgotten.
    HomeForgotten,
    /// The backup lies in the local folder of this node only.
    ElsewhereOnly(String),
    /// The host has too little memory: megabytes needed and free.
    MemoryShort {
        /// What the operation needs.
        needed_mb: u64,
        /// What the host has.
        free_mb: u64,
    },
    /// The instances list of a batch call is missing.
    InstancesMissing,
    /// Too many instances in a batch call.
    InstancesTooMany,
    /// Unknown action.
    ActionInvalid,
    /// Backup policy: save_days.
    PolicySaveDays,
    /// Backup policy: backup_type.
    PolicyType,
    /// Backup policy: period_type.
    PolicyPeriod,
    /// Backup policy: backup_at.
    PolicyDays,
    /// Backup policy: begin_at.
    PolicyBegin,
    /// The maintenance window is incomplete or not an hour.
    MaintenanceWindow,
    /// Nothing left to undo: the generation is gone, or the restore did not succeed.
    NothingToUndo(&'static str),
    /// What the named plan rests on is not so any more.
    PlanOutdated,
    /// The stored objects of the backup cannot be read now.
    Unreadable(engine::Error),
    /// The restore, backup or change of nodes cannot be given up any more, and why.
    NotCancellable(&'static str),
    /// No such import task of the project.
    MigrationUnknown,
    /// No such schedule of this instance.
    ScheduleUnknown,
    /// The instance has a schedule of that name.
    ScheduleNameTaken,
    /// As many schedules as an instance may have.
    TooManySchedules,
    /// The five fields cannot be read, and why.
    CronInvalid(String),
    /// No such time zone.
    ZoneUnknown,
    /// The backup is held.
    Held,
    /// Another call is deleting the backup.
    BeingDeleted,
    /// The stored files of the backup could not be removed; its record stays.
    DeleteFailed,
    /// The backup is being verified at another level.
    BeingVerified,
    /// As many imports are at work as may be.
    TooManyImports,
    /// The file of a cluster's instance is several files, which are not taken from URLs.
    ImportOfCluster,
    /// The servers cannot be attached, and why.
    NotAttachable(NotAttached),
    /// As many servers are being looked at as may be.
    TooManyAttachments,
    /// The instance is attached, and this is its owner's to do, or cannot be done yet: what that is.
    Attached(&'static str),
    /// Single-node instances have no backup and restore in strict mode.
    SingleNode,
    /// Two generations of a cluster must fit in memory: it is not restored in place.
    NotForClusters,
    /// Engines listen on every address of the machine: a cluster could not tell its clients where its nodes are.
    AddressOpen,
    /// The catalogue failed.
    Catalog(catalog::Error),
    /// Something of ours failed; the text is for the log.
    Internal(String),
}

impl From<catalog::Error> for Refusal {
    fn from(error: catalog::Error) -> Self {
        Refusal::Catalog(error)
    }
}
