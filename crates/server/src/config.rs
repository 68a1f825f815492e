//! What an operator decides, checked once at the start.

use std::net::{IpAddr, SocketAddr};
use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Context as _;
use engine::process::{Brand, Program};
use engine::{Error, Kind};

use crate::egress::{Allowed, Network};
use crate::ids::{BackupId, GenerationId, HostId, InstanceId};

/// What a service does. Several share the work where they share a catalogue.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Roles {
    /// It answers the API.
    pub api: bool,
    /// It runs jobs, and has instances.
    pub worker: bool,
    /// It begins what is due by itself, and tidies up; one at a time of those who may.
    pub scheduler: bool,
}

impl Roles {
    /// Everything.
    pub const ALL: Self = Self {
        api: true,
        worker: true,
        scheduler: true,
    };

    /// Their words, separated by commas.
    pub fn words(self) -> String {
        let all = [
            (self.api, "api"),
            (self.worker, "worker"),
            (self.scheduler, "scheduler"),
        ];
        let ours = all.iter().filter(|(is_ours, _)| *is_ours);
        ours.map(|(_, word)| *word).collect::<Vec<_>>().join(",")
    }
}

/// The service's settings.
#[derive(Debug, Clone)]
pub struct Config {
    /// Everything that the service keeps lies below it.
    pub data_dir: PathBuf,
    /// URL of the PostgreSQL that holds the catalogue; `None`: it is a file below the data directory.
    pub database: Option<String>,
    /// Where the API listens; port 0 chooses one.
    pub listen: SocketAddr,
    /// Where metrics are told, by plain http; `None`: nowhere.
    pub metrics_listen: Option<SocketAddr>,
    /// Certificate chain and key, PEM.
    pub tls: Option<(PathBuf, PathBuf)>,
    /// The name of the region, and of the first project.
    pub region: String,
    /// Address that managed engines listen on.
    pub engine_bind: IpAddr,
    /// Ports for instances that ask for none.
    pub engine_ports: RangeInclusive<u16>,
    /// The engines that instances can be of: where nobody asks for one, the first. Empty where no engine is ever started.
    pub engines: Vec<Program>,
    /// Whom engines run as; `None`: as ourselves.
    pub run_as: Option<(u32, u32)>,
    /// How long a replaced generation is kept for undo.
    pub undo_keep_seconds: i64,
    /// How long a job goes on trying while a remote store fails.
    pub store_patience: Duration,
    /// Beyond public addresses by https, where callers of the API may have files imported from.
    pub import_allowed: Vec<Allowed>,
    /// Where servers may be that are attached.
    pub attach_allowed: Vec<Network>,
    /// What people call this service among those that share a catalogue; `None`: as its machine.
    pub node_name: Option<String>,
    /// Where the master key and the signing key are; `None`: below the data directory.
    pub keys_dir: Option<PathBuf>,
    /// What this service does of what there is to do.
    pub roles: Roles,
    /// Jobs that run at once here.
    pub jobs_at_once: usize,
    /// Jobs of one project that run at once on all nodes; `None`: as many as find a place.
    pub jobs_per_project: Option<usize>,
    /// How long a claim of a job holds that is not renewed.
    pub lease: Duration,
    /// How long jobs may go on after the service was told to stop.
    pub drain: Duration,
    /// Refuse what DCS refuses (single-node backup and restore).
    pub strict_dcs: bool,
}

impl Config {
    /// The catalogue's file.
    pub fn catalog_file(&self) -> PathBuf {
        self.data_dir.join("catalog.sqlite")
    }

    /// Names [`Self::database`] for whoever is told of the data directory only.
    pub fn database_file(&self) -> PathBuf {
        database_file(&self.data_dir)
    }

    /// Names this data directory in such a database.
    fn host_file(&self) -> PathBuf {
        self.data_dir.join("node")
    }

    /// The name of this data directory in such a database, made where there is none.
    ///
    /// # Errors
    /// Its file cannot be written or read.
    pub fn host(&self) -> anyhow::Result<HostId> {
        let file = self.host_file();
        if !file.exists() {
            crate::secrets::write_private(&file, HostId::random().as_str().as_bytes())?;
        }
        let text =
            std::fs::read_to_string(&file).with_context(|| format!("cannot read {}", file.display()))?;
        HostId::parse(text.trim()).with_context(|| format!("{} does not hold 16 hex digits", file.display()))
    }

    /// Whether the data directory has or had a catalogue.
    pub fn has_catalog(&self) -> bool {
        self.catalog_file().exists() || self.database_file().exists()
    }

    /// Where the keys are.
    pub fn keys_dir(&self) -> PathBuf {
        self.keys_dir
            .clone()
            .unwrap_or_else(|| self.data_dir.join("keys"))
    }

    /// The local folder that serves as object store.
    pub fn store_dir(&self) -> PathBuf {
        self.data_dir.join("store")
    }

    /// Where captures spool what the store has not taken yet.
    pub fn spool_dir(&self) -> PathBuf {
        self.data_dir.join("spool")
    }

    /// Whoever imports a file as this backup holds the lock on it.
    pub fn import_lock(&self, backup: &BackupId) -> PathBuf {
        self.spool_dir().join(format!("import-{backup}.lock"))
    }

    /// Whoever copies this backup to another store holds the lock on it.
    pub fn copy_lock(&self, backup: &BackupId) -> PathBuf {
        self.spool_dir().join(format!("copy-{backup}.lock"))
    }

    /// Directory of a throw-away engine, and the file whose lock says that somebody uses it.
    pub fn proof_place(&self, name: &str) -> (PathBuf, PathBuf) {
        let directory = self.spool_dir().join(format!("proof-{name}"));
        let lock = self.spool_dir().join(format!("proof-{name}.lock"));
        (directory, lock)
    }

    /// Below it, a directory for each restore that is applied key by key and has not ended: how far it is.
    pub fn replays_dir(&self) -> PathBuf {
        self.data_dir.join("replays")
    }

    /// Below it, a directory per instance and in it one per generation.
    pub fn instances_dir(&self) -> PathBuf {
        self.data_dir.join("instances")
    }

    /// The directory of an instance.
    pub fn instance_dir(&self, instance: &InstanceId) -> PathBuf {
        self.instances_dir().join(instance.as_str())
    }

    /// The directory of a generation.
    pub fn generation_dir(&self, instance: &InstanceId, generation: &GenerationId) -> PathBuf {
        self.instance_dir(instance).join(generation.as_str())
    }

    /// Below it, the directories of an instance's Sentinels.
    pub fn sentinels_dir(&self, instance: &InstanceId) -> PathBuf {
        self.instance_dir(instance).join("sentinels")
    }

    /// The program of an instance's engine: that very version, else another patch of it.
    ///
    /// # Errors
    /// [`Kind::EngineStart`]: it was there when the instance was made, and is not any more.
    pub fn program(&self, brand: Brand, version: &str) -> Result<&Program, Error> {
        let of_brand = || self.engines.iter().filter(|program| program.brand == brand);
        let is_patch = |program: &&Program| minor(&program.version) == minor(version);
        let exact = of_brand().find(|program| program.version == version);
        exact.or_else(|| of_brand().find(is_patch)).ok_or_else(|| {
            let there: Vec<String> = self.engines.iter().map(ToString::to_string).collect();
            let context = format!(
                "the instance is of {} {version}, and this machine has {}: install that engine, or name its program with \
                 serve --engine",
                brand.word(),
                there.join(", ")
            );
            Error::new(Kind::EngineStart, "find engine", context)
        })
    }

    /// A program to try a backup in that an engine of this version has written: that very version, else another patch of it.
    pub fn program_of_version(&self, version: &str) -> Option<&Program> {
        let is_patch = |program: &&Program| minor(&program.version) == minor(version);
        let exact = self.engines.iter().find(|program| program.version == version);
        exact.or_else(|| self.engines.iter().find(is_patch))
    }

    /// What the first start tells its owner.
    pub fn admin_file(&self) -> PathBuf {
        self.data_dir.join("admin.json")
    }
}

fn database_file(data_dir: &Path) -> PathBuf {
    data_dir.join("catalog.url")
}

/// The URL that the data directory's catalogue is known by to be at; `None`: it is a file.
///
/// # Errors
/// The file that says so cannot be read.
pub fn known_database(data_dir: &Path) -> anyhow::Result<Option<String>> {
    let file = database_file(data_dir);
    match std::fs::read_to_string(&file) {
        Ok(url) => Ok(Some(url.trim().to_owned())),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error).with_context(|| {
            format!(
                "cannot read {}, which says where the catalogue is",
                file.display()
            )
        }),
    }
}

/// `7.0.15` is a patch of `7.0`.
pub fn minor(version: &str) -> String {
    version.splitn(3, '.').take(2).collect::<Vec<_>>().join(".")
}

/// The data directory where none is named: `~/.local/share/cachekeep`.
pub fn default_data_dir() -> PathBuf {
    let home = std::env::var_os("HOME").map_or_else(|| PathBuf::from("/root"), PathBuf::from);
    home.join(".local/share/cachekeep")
}

/// The user that engines run as where we are root: named, else Debian's `redis`, else `nobody`.
///
/// # Errors
/// A named user that does not exist.
pub fn engine_user(named: Option<&str>) -> anyhow::Result<Option<(u32, u32)>> {
    if !rustix::process::geteuid().is_root() {
        anyhow::ensure!(
            named.is_none(),
            "--engine-user needs root: leave it out, engines run as yourself"
        );
        return Ok(None);
    }
    let users = std::fs::read_to_string("/etc/passwd")?;
    let find = |name: &str| {
        users.lines().find_map(|line| {
            let mut fields = line.split(':');
            (fields.next() == Some(name)).then(|| {
                let uid = fields.nth(1)?.parse().ok()?;
                let gid = fields.next()?.parse().ok()?;
                Some((uid, gid))
            })?
        })
    };
    match named {
        Some(name) => match find(name) {
            Some(ids) => Ok(Some(ids)),
            None => anyhow::bail!(
                "there is no user {name} on this machine: make one, or name another with --engine-user"
            ),
        },
        None => match find("redis").or_else(|| find("nobody")) {
            Some(ids) => Ok(Some(ids)),
            None => anyhow::bail!("neither user redis nor nobody exists: name one with --engine-user"),
        },
    }
}
