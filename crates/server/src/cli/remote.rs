//! Verbs that call the API.

use std::io::{BufRead, Read, Write};
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::Context;
use clap::{Subcommand, ValueEnum};
use serde_json::{Value, json};

use super::client::Client;
use super::target::{Target, UNENDED, plain, print_one, print_rows};
use super::{Global, Output, attach, copy, objective, schedule, verify, watch};
use crate::api::system::Flavor;
use crate::instance::layout::{Layout, Mode};
use crate::secrets;
use signature::encode;

/// A password has 32 characters at most; what is longer than this is something else.
const PASSWORD_LINE_BYTES_MAX: u64 = 1024;
/// How long `instance create` and `instance delete` wait.
const INSTANCE_WAIT: Duration = Duration::from_secs(120);

/// Verbs on instances.
#[derive(Subcommand)]
pub(crate) enum InstanceVerb {
    /// Create an instance and wait until it serves; prints how to connect
    #[command(
        after_help = "Examples:\n  cachekeep instance create --name cache1 --capacity 1\n  \
        cachekeep instance create --name cache2 --capacity 0.5 --port 21100 --no-password\n  \
        cachekeep instance create --name cache3 --password-stdin < password.txt\n  \
        cachekeep instance create --name ha1 --replicas 1\n  \
        cachekeep instance create --name cluster1 --shards 3 --replicas 1\n  \
        cachekeep instance create --name cache4 --engine valkey-8.1 --tls\n\n\
        Sizes in GB: 0.125 0.25 0.5 1 2 4 8 16 24 32 48 64; of clusters, all shards together: 4 8 16 24 32 48 64"
    )]
    Create {
        /// 4 to 64 characters: a letter, then letters, digits, _ and -
        #[arg(long)]
        name: String,
        /// Size in GB: the engine's memory limit [default: 1, of a cluster 4]
        #[arg(long)]
        capacity: Option<f64>,
        /// Make a cluster with so many primaries, 3 to 128
        #[arg(long, value_parser = clap::value_parser!(u16).range(3..=128))]
        shards: Option<u16>,
        /// Replicas of each primary, 0 to 4; without --shards a primary with so many and three Sentinels [default: 0]
        #[arg(long, value_parser = clap::value_parser!(u16).range(0..=4))]
        replicas: Option<u16>,
        /// Clients have to speak TLS, and nodes and Sentinels do among each other; `instance certificate` is what clients trust
        #[arg(long)]
        tls: bool,
        /// Its engine, of those that `serve` has found: redis-7.0, valkey-8.1, or a version alone [default: the service's first]
        #[arg(long, value_name = "ENGINE")]
        engine: Option<String>,
        /// Client port; a cluster's nodes have this one and those after it [default: free ones]
        #[arg(long)]
        port: Option<u16>,
        /// Password of the clients [default: a random one, printed]; other users of this machine see it in the list of
        /// processes: the environment or --password-stdin keep it to yourself
        #[arg(long, env = "CACHEKEEP_PASSWORD", hide_env_values = true)]
        password: Option<String>,
        /// Read the password from the first line of standard input
        #[arg(long, conflicts_with = "no_password")]
        password_stdin: bool,
        /// Clients need no password
        #[arg(long)]
        no_password: bool,
        /// Clients come in as this ACL user, and the engine's default one is off [default: as the default one]
        #[arg(long, value_name = "NAME", conflicts_with = "no_password")]
        access_user: Option<String>,
        /// What survives a crash of the engine
        #[arg(long, value_enum, default_value_t = Persistence::Aof)]
        persistence: Persistence,
        /// Free text
        #[arg(long)]
        description: Option<String>,
    },
    Attach(attach::Attach),
    /// List all instances
    #[command(after_help = "Example:\n  cachekeep instance list")]
    List,
    /// Show one instance
    #[command(after_help = "Example:\n  cachekeep instance show cache1 -o json")]
    Show {
        /// Name or id
        instance: String,
    },
    /// Write the certificate of the authority that clients of an instance with TLS are to trust
    #[command(
        after_help = "Example:\n  cachekeep instance certificate cache1 --to ca.pem\n  \
        redis-cli --tls --cacert ca.pem -p 21000"
    )]
    Certificate {
        /// Name or id
        instance: String,
        /// Into this file [default: standard output]
        #[arg(long, value_name = "FILE")]
        to: Option<PathBuf>,
    },
    /// Stop and start the engine (ends a running backup as failed)
    #[command(after_help = "Example:\n  cachekeep instance restart cache1")]
    Restart {
        /// Name or id
        instance: String,
    },
    /// Give it another size, or another number of shards or replicas
    #[command(after_help = "Examples:\n  cachekeep instance resize cache1 --capacity 2\n  \
        cachekeep instance resize cluster1 --shards 5 --replicas 1\n  \
        cachekeep instance resize cluster1 --cancel\n\nThe memory limit alone changes at once. For another number of shards or \
        replicas the data is loaded into new nodes beside the old ones, what clients write meanwhile follows, and they move in a \
        moment: nothing written is lost, and the replaced nodes are not kept. What kind an instance is cannot be changed: \
        `cachekeep restore create cache1 --backup latest --new NAME --shards N` makes an instance of another.")]
    Resize {
        /// Name or id
        instance: String,
        /// New size in GB [default: as it is]
        #[arg(long, required_unless_present_any = ["shards", "replicas", "cancel"])]
        capacity: Option<f64>,
        /// Shards of a cluster, 3 to 128 [default: as it is]
        #[arg(long, value_name = "N")]
        shards: Option<u16>,
        /// Replicas of each primary, 0 to 4 [default: as it is]
        #[arg(long, value_name = "N")]
        replicas: Option<u16>,
        /// Give a change of the nodes up that is under way: the old ones go on serving
        #[arg(long, conflicts_with_all = ["capacity", "shards", "replicas"])]
        cancel: bool,
    },
    /// Say how old the newest backup may become: one is made whenever it would become older
    #[command(
        after_help = "Backups of people and of schedules count: where they come often enough none is made. `instance show` tells whether the \
        objective is met, and cachekeep_instance_rpo_age_seconds its alarm.\n\nExamples:\n  cachekeep instance rpo cache1 6h\n  \
        cachekeep instance rpo cache1 30m --keep-days 2\n  cachekeep instance rpo cache1\n  cachekeep instance rpo cache1 --none"
    )]
    Rpo(objective::Objective),
    /// Remove all keys
    #[command(
        after_help = "Example:\n  cachekeep backup create cache1 --wait && cachekeep instance flush cache1"
    )]
    Flush {
        /// Name or id
        instance: String,
    },
    /// Delete an instance, or detach it where it is attached; its backups and records stay
    #[command(
        after_help = "Example:\n  cachekeep instance delete cache1\n\nBackups and records are then found by the instance's id."
    )]
    Delete {
        /// Name or id
        instance: String,
    },
}

/// What survives a crash of the engine.
#[derive(Clone, Copy, ValueEnum)]
pub(crate) enum Persistence {
    /// All but the last second
    Aof,
    /// What the last snapshot had
    Rdb,
    /// Nothing
    None,
}

/// Verbs on backups.
#[derive(Subcommand)]
pub(crate) enum BackupVerb {
    /// Back up an instance
    #[command(after_help = "Example:\n  cachekeep backup create cache1 --remark 'before the upgrade' --wait")]
    Create {
        /// Name or id of the instance
        instance: String,
        /// Up to 128 characters, shown with the backup and its restores
        #[arg(long)]
        remark: Option<String>,
        /// Form of the file when downloaded
        #[arg(long, value_parser = ["rdb", "aof"], default_value = "rdb")]
        format: String,
        /// Show the progress and return when it has ended
        #[arg(long)]
        wait: bool,
    },
    /// List the backups of an instance, newest first
    #[command(
        after_help = "Examples:\n  cachekeep backup list cache1\n  cachekeep backup list cache1 --limit 100 --begin-time 20260101000000"
    )]
    List {
        /// Name or id of the instance (the id, where it is deleted)
        instance: String,
        #[command(flatten)]
        page: Page,
    },
    /// Show one backup
    #[command(after_help = "Example:\n  cachekeep backup show cache1 latest -o json")]
    Show {
        /// Name or id of the instance
        instance: String,
        /// Id or name of the backup, or latest
        backup: String,
    },
    /// Find out whether a backup still holds what was captured, and write that on its record (works on the data directory).
    /// It is no operation on the instance: backups and restores go on beside it
    #[command(
        after_help = "The record's ext.proof tells the outcome. A backup that is found damaged is not restorable, and nothing of it \
        is removed. Exit status 1 then.\n\nExamples:\n  \
        cachekeep backup verify cache1 latest\n  \
        cachekeep backup verify cache1 backup_20260102030405 --level proven\n  \
        cachekeep backup verify cache1 latest --level proven --engine /opt/valkey/bin/valkey-server"
    )]
    Verify(verify::Verify),
    /// Copy a backup into another store as a second place, and read every byte of it back (works on the data directory)
    #[command(
        after_help = "Restores, downloads, verifies and exports use the copy where the first place is lost or damaged. It is \
        deleted with the backup. A catalogue can be made anew from the store of the copy alone.\n\nExamples:\n  \
        cachekeep backup copy cache1 latest --to offsite\n  \
        cachekeep backup copy cache1 backup_20260102030405 --to local\n  \
        cachekeep backup copy cache1 latest --remove"
    )]
    Copy(copy::Copy),
    /// Give up a backup or an import that waits or is at work: nothing is stored of it, and the record says failed
    #[command(
        after_help = "The instance serves on, and can be backed up again at once; settings of servers that somebody else runs are what they \
        were. A cancelled run of a schedule is tried again like one that failed. The backup that a restore takes first ends with \
        `cachekeep restore cancel`.\n\n\
        Examples:\n  cachekeep backup cancel cache1\n  cachekeep backup cancel cache1 backup_20260102030405 --wait"
    )]
    Cancel {
        /// Name or id of the instance
        instance: String,
        /// Id or name of the backup [default: the newest that has not ended]
        backup: Option<String>,
        /// Return when it has ended
        #[arg(long)]
        wait: bool,
    },
    /// Give up the verify of a backup that was asked of the service, a drill too; it says nothing of the backup then
    #[command(after_help = "Example:\n  cachekeep backup cancel-verify cache1 latest")]
    CancelVerify {
        /// Name or id of the instance
        instance: String,
        /// Id or name of the backup, or `latest`
        backup: String,
    },
    /// Delete a backup; records of restores that used it stay
    #[command(after_help = "Example:\n  cachekeep backup delete cache1 backup_20260102030405")]
    Delete {
        /// Name or id of the instance
        instance: String,
        /// Id or name of the backup
        backup: String,
    },
    /// Hold a backup: neither retention nor a deletion takes it until it is released
    #[command(after_help = "Example:\n  cachekeep backup hold cache1 latest --reason 'case 1234'")]
    Hold {
        /// Name or id of the instance
        instance: String,
        /// Id or name of the backup, or latest
        backup: String,
        /// Why, up to 128 characters
        #[arg(long)]
        reason: String,
    },
    /// Take a hold back
    #[command(after_help = "Example:\n  cachekeep backup release cache1 backup_20260102030405")]
    Release {
        /// Name or id of the instance
        instance: String,
        /// Id or name of the backup, or latest
        backup: String,
    },
    /// Download a backup as a plain RDB file
    #[command(after_help = "Example:\n  cachekeep backup download cache1 latest --to dump.rdb")]
    Download {
        /// Name or id of the instance
        instance: String,
        /// Id or name of the backup, or latest
        backup: String,
        /// Where to: a file, or a directory, as for the files of a cluster [default: the names that the service gives them, here]
        #[arg(long, value_name = "FILE")]
        to: Option<PathBuf>,
    },
}

/// Which part of a list.
#[derive(clap::Args)]
pub(crate) struct Page {
    /// At most so many, 1 to 1000
    #[arg(long, default_value_t = 10)]
    limit: u32,
    /// Skip so many
    #[arg(long, default_value_t = 0)]
    offset: u64,
    /// Created at or after: yyyyMMddHHmmss, UTC
    #[arg(long)]
    begin_time: Option<String>,
    /// Created at or before: yyyyMMddHHmmss, UTC
    #[arg(long)]
    end_time: Option<String>,
}

impl Page {
    pub(crate) fn query(&self) -> String {
        let mut query = format!("include_deleted=true&limit={}&offset={}", self.limit, self.offset);
        for (name, value) in [("begin_time", &self.begin_time), ("end_time", &self.end_time)] {
            if let Some(value) = value {
                query.push_str(&format!("&{name}={}", encode(value.as_bytes())));
            }
        }
        query
    }
}

const INSTANCE_COLUMNS: [&str; 7] = [
    "name",
    "status",
    "ip",
    "port",
    "max_memory",
    "created_at",
    "instance_id",
];
const BACKUP_COLUMNS: [&str; 9] = [
    "backup_name",
    "status",
    "progress",
    "ext.kind",
    "size",
    "ext.keys",
    "is_support_restore",
    "remark",
    "backup_id",
];
/// `cachekeep instance ...`
///
/// # Errors
/// The service does not answer, or what it refused and why.
pub(crate) fn instance(global: &Global, verb: &InstanceVerb) -> anyhow::Result<ExitCode> {
    match verb {
        InstanceVerb::Create {
            name,
            capacity,
            shards,
            replicas,
            tls,
            engine,
            port,
            password,
            password_stdin,
            no_password,
            access_user,
            persistence,
            description,
        } => {
            let password = match (no_password, password_stdin) {
                (true, _) => None,
                (false, true) => Some(first_line(std::io::stdin())?),
                (false, false) => Some(password.clone().unwrap_or_else(secrets::random_password)),
            };
            let new = NewInstance {
                name,
                capacity: *capacity,
                layout: layout(*shards, *replicas),
                is_tls: *tls,
                engine: engine.as_deref(),
                port: *port,
                user: access_user.as_deref(),
                password,
                persistence: *persistence,
                description: description.as_deref(),
            };
            new.make(global)?;
        }
        InstanceVerb::Attach(verb) => attach::run(global, verb)?,
        InstanceVerb::List => {
            let client = Client::find(global)?;
            let page = client.call("GET", "v2", "/instances", "limit=1000&include_failure=true", None)?;
            print_rows(
                global,
                &INSTANCE_COLUMNS,
                page["instances"].as_array().map_or(&[], Vec::as_slice),
                &page,
            );
        }
        InstanceVerb::Certificate { instance, to } => {
            let target = Target::find(global, instance)?;
            let link = target.call("POST", "/ssl-certs/download", "", Some(&json!({})))?;
            let (_, mut source) = target.client.open(&plain(&link["link"]))?;
            let mut text = String::new();
            source
                .read_to_string(&mut text)
                .context("the certificate broke off: run it again")?;
            match to {
                Some(file) => {
                    std::fs::write(file, text).with_context(|| format!("cannot write {}", file.display()))?
                }
                None => print!("{text}"),
            }
        }
        InstanceVerb::Show { instance } => {
            print_one(
                global,
                &Target::find(global, instance)?.call("GET", "", "", None)?,
            );
        }
        InstanceVerb::Rpo(verb) => objective::run(global, verb)?,
        InstanceVerb::Restart { instance } => act(global, instance, "restart")?,
        InstanceVerb::Resize {
            instance,
            cancel: true,
            ..
        } => {
            let target = Target::find(global, instance)?;
            target.ours("POST", "/resize/cancel", Some(&json!({})))?;
            print_one(global, &wait_until(&target, "RUNNING")?);
        }
        InstanceVerb::Resize {
            instance,
            capacity,
            shards,
            replicas,
            cancel: false,
        } => {
            let target = Target::find(global, instance)?;
            let shown = target.call("GET", "", "", None)?;
            let now = Flavor::find(&plain(&shown["spec_code"]))
                .context("the instance is of no flavor that is known here")?;
            let layout = Layout {
                replicas: replicas.unwrap_or(now.layout.replicas),
                ..now.layout
            };
            let capacity = capacity.unwrap_or(now.capacity_mb as f64 / 1024.0);
            let flavor = Flavor::of_size(capacity, layout).context(NO_SUCH_SIZE)?;
            let mut wish = json!({"spec_code": flavor.spec_code, "new_capacity": capacity});
            if let Some(shards) = shards {
                wish["spec_param"] = json!({"sharding_count": shards});
            }
            target.call("POST", "/resize", "", Some(&wish))?;
            let shown = wait_until(&target, "RUNNING")?;
            let wanted = (plain(&shown["spec_code"]), shown["sharding_count"].as_u64());
            let is_so = wanted.0 == flavor.spec_code
                && shards.is_none_or(|shards| wanted.1 == Some(u64::from(shards)));
            if !is_so {
                let why = plain(&shown["ext"]["resize"]["failure"]);
                anyhow::bail!("{instance} is not resized, and serves as before: {why}");
            }
            print_one(global, &shown);
        }
        InstanceVerb::Flush { instance } => act(global, instance, "flush")?,
        InstanceVerb::Delete { instance } => {
            let target = Target::find(global, instance)?;
            target.call("DELETE", "", "", None)?;
            if global.output == Output::Json {
                println!("{:#}", json!({"instance_id": target.id, "deleted": true}));
            }
            if !global.quiet {
                eprintln!(
                    "deleted {}; its backups stay: `cachekeep backup list {}`",
                    instance, target.id
                );
            }
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// The layout that `--shards` and `--replicas` ask for.
pub(crate) fn layout(shards: Option<u16>, replicas: Option<u16>) -> Layout {
    let replicas = replicas.unwrap_or(0);
    let (mode, shards) = match (shards, replicas) {
        (None, 0) => (Mode::Single, 1),
        (None, _) => (Mode::Ha, 1),
        (Some(shards), _) => (Mode::Cluster, shards),
    };
    Layout {
        mode,
        shards,
        replicas,
    }
}

/// An instance that is wanted.
pub(crate) struct NewInstance<'a> {
    /// Its name.
    pub(crate) name: &'a str,
    /// Size in GB; `None`: the least that people mean, see [`least_capacity`].
    pub(crate) capacity: Option<f64>,
    /// Whether clients speak TLS.
    pub(crate) is_tls: bool,
    /// Of which engine and version; `None`: the service's first.
    pub(crate) engine: Option<&'a str>,
    /// Of how many nodes.
    pub(crate) layout: Layout,
    /// The client port.
    pub(crate) port: Option<u16>,
    /// The clients' ACL user; `None`: the engine's default one.
    pub(crate) user: Option<&'a str>,
    /// The clients' password; `None`: none is needed.
    pub(crate) password: Option<String>,
    /// What survives a crash.
    pub(crate) persistence: Persistence,
    /// Free text.
    pub(crate) description: Option<&'a str>,
}

const NO_SUCH_SIZE: &str =
    "no such size: 0.125, 0.25, 0.5, 1, 2, 4, 8, 16, 24, 32, 48 or 64 GB; clusters begin at 4";

/// The size of an instance in GB where none is asked for.
pub(crate) fn least_capacity(layout: Layout) -> f64 {
    match layout.mode {
        Mode::Single | Mode::Ha => 1.0,
        Mode::Cluster => 4.0,
    }
}

impl NewInstance<'_> {
    /// Makes it, waits until it serves, and prints how to connect.
    ///
    /// # Errors
    /// The service does not answer, or what it refused and why.
    pub(crate) fn make(&self, global: &Global) -> anyhow::Result<Target> {
        let client = Client::find(global)?;
        let layout = self.layout;
        let capacity = self.capacity.unwrap_or(least_capacity(layout));
        let flavor = Flavor::of_size(capacity, layout).context(NO_SUCH_SIZE)?;
        let mut wish = json!({
            "name": self.name, "description": self.description, "engine": "Redis", "engine_version": self.engine, "enable_ssl": self.is_tls,
            "capacity": capacity,
            "spec_code": flavor.spec_code, "spec_param": {"sharding_count": layout.shards}, "az_codes": ["local"],
            "port": self.port, "password": self.password, "no_password_access": self.password.is_none(),
            "persistence": match self.persistence { Persistence::Aof => "aof", Persistence::Rdb => "rdb", Persistence::None => "none" },
        });
        if let Some(user) = self.user {
            wish["access_user"] = json!(user);
        }
        let made = client.call("POST", "v2", "/instances", "", Some(&wish))?;
        let target = Target {
            client,
            id: plain(&made["instances"][0]["instance_id"]),
            called: self.name.to_owned(),
        };
        let shown = wait_until(&target, "RUNNING")?;
        print_one(
            global,
            &json!({"instance_id": target.id, "instance_name": self.name, "ip": shown["ip"], "port": shown["port"],
                    "user": self.user.unwrap_or("default"), "password": self.password}),
        );
        Ok(target)
    }
}

/// The line that a password is given as.
pub(crate) fn first_line(source: impl Read) -> anyhow::Result<String> {
    let mut line = String::new();
    let limited = source.take(PASSWORD_LINE_BYTES_MAX);
    std::io::BufReader::new(limited)
        .read_line(&mut line)
        .context("cannot read the password from standard input")?;
    let password = line.trim_end_matches(['\r', '\n']);
    anyhow::ensure!(!password.is_empty(), "standard input gives no password");
    Ok(password.to_owned())
}

fn act(global: &Global, instance: &str, action: &str) -> anyhow::Result<()> {
    let target = Target::find(global, instance)?;
    let wish = json!({"instances": [target.id], "action": action});
    target
        .client
        .call("PUT", "v2", "/instances/status", "", Some(&wish))?;
    print_one(global, &wait_until(&target, "RUNNING")?);
    Ok(())
}

fn wait_until(target: &Target, status: &str) -> anyhow::Result<Value> {
    let end = Instant::now() + INSTANCE_WAIT;
    loop {
        let shown = target.call("GET", "", "", None)?;
        if shown["status"] == status && shown["task"].is_null() {
            return Ok(shown);
        }
        let (now, why) = (plain(&shown["status"]), plain(&shown["ext"]["failure"]));
        anyhow::ensure!(
            now != "CREATEFAILED",
            "the instance could not be created: {why}. `cachekeep instance delete {}` removes what there is of it",
            target.called
        );
        anyhow::ensure!(
            now != "ERROR",
            "the instance is {now}: {why}. `cachekeep instance show {}` says how it goes on",
            target.called
        );
        anyhow::ensure!(
            Instant::now() < end,
            "the instance is still {now} after {} s: it goes on by itself, `cachekeep instance show {}` says how far it is",
            INSTANCE_WAIT.as_secs(),
            target.called
        );
        std::thread::sleep(Duration::from_millis(50));
    }
}

/// `cachekeep backup ...`
///
/// # Errors
/// The service does not answer, or what it refused and why.
pub(crate) fn backup(global: &Global, verb: &BackupVerb) -> anyhow::Result<ExitCode> {
    match verb {
        BackupVerb::Create {
            instance,
            remark,
            format,
            wait,
        } => {
            let target = Target::find(global, instance)?;
            let wish = json!({"remark": remark, "backup_format": format});
            let started = target.call("POST", "/backups", "", Some(&wish))?;
            return target.finish(global, "backup", &started, *wait);
        }
        BackupVerb::List { instance, page } => {
            let target = Target::find(global, instance)?;
            let answer = target.call("GET", "/backups", &page.query(), None)?;
            let rows = answer["backup_record_response"]
                .as_array()
                .map_or(&[][..], Vec::as_slice);
            print_rows(global, &BACKUP_COLUMNS, rows, &answer);
        }
        BackupVerb::Show { instance, backup } => {
            let target = Target::find(global, instance)?;
            let id = target.backup(backup)?;
            print_one(global, &target.ours("GET", &format!("/backups/{id}"), None)?);
        }
        BackupVerb::Verify(verb) => return verify::run(global, verb),
        BackupVerb::Copy(verb) => copy::run(global, verb)?,
        BackupVerb::Cancel {
            instance,
            backup,
            wait,
        } => return cancel(global, instance, backup.as_deref(), *wait),
        BackupVerb::CancelVerify { instance, backup } => {
            let target = Target::find(global, instance)?;
            let id = target.backup(backup)?;
            let path = format!("/backups/{id}/verify/cancel");
            target.ours("POST", &path, None)?;
            if global.output == Output::Json {
                println!("{:#}", json!({"backup_id": id, "cancelled": true}));
            }
            if !global.quiet {
                eprintln!("the verify of {id} ends");
            }
        }
        BackupVerb::Delete { instance, backup } => {
            let target = Target::find(global, instance)?;
            let id = target.backup(backup)?;
            target.call("DELETE", &format!("/backups/{id}"), "", None)?;
            if global.output == Output::Json {
                println!("{:#}", json!({"backup_id": id, "deleted": true}));
            }
            if !global.quiet {
                eprintln!("deleted {id}");
            }
        }
        BackupVerb::Hold {
            instance,
            backup,
            reason,
        } => schedule::hold(global, instance, backup, Some(reason))?,
        BackupVerb::Release { instance, backup } => schedule::hold(global, instance, backup, None)?,
        BackupVerb::Download { instance, backup, to } => {
            let target = Target::find(global, instance)?;
            let id = target.backup(backup)?;
            let links = target.call(
                "POST",
                &format!("/backups/{id}/links"),
                "",
                Some(&json!({"expiration": 3600})),
            )?;
            let links = links["links"].as_array().map_or(&[][..], Vec::as_slice);
            let name = |link: &Value| PathBuf::from(plain(&link["file_name"]));
            let files: Vec<PathBuf> = match links {
                [one] => vec![match to {
                    Some(directory) if directory.is_dir() => directory.join(name(one)),
                    Some(file) => file.clone(),
                    None => name(one),
                }],
                // Of a cluster: a file for each shard, in a directory.
                several => {
                    let directory = to.clone().unwrap_or_default();
                    if to.is_some() {
                        std::fs::create_dir_all(&directory)
                            .with_context(|| format!("cannot make {}", directory.display()))?;
                    }
                    several.iter().map(|link| directory.join(name(link))).collect()
                }
            };
            for (link, file) in links.iter().zip(&files) {
                download(&target.client, &plain(&link["link"]), file)?;
            }
            match (global.output, files.as_slice()) {
                (Output::Json, [one]) => println!("{:#}", json!({"backup_id": id, "file": one})),
                (Output::Json, several) => println!("{:#}", json!({"backup_id": id, "files": several})),
                (Output::Table, all) => all.iter().for_each(|file| println!("{}", file.display())),
            }
        }
    }
    Ok(ExitCode::SUCCESS)
}

fn cancel(global: &Global, instance: &str, backup: Option<&str>, wait: bool) -> anyhow::Result<ExitCode> {
    let target = Target::find(global, instance)?;
    let id = target.backup(backup.unwrap_or(UNENDED))?;
    let path = format!("/backups/{id}");
    let asked = target.ours("POST", &format!("{path}/cancel"), None)?;
    if !wait {
        return target.finish(global, "backup", &asked, false);
    }
    let record = watch::follow(global, "backup", || target.ours("GET", &path, None))?;
    print_one(global, &record);
    Ok(match record["status"] == "failed" {
        true => ExitCode::SUCCESS,
        false => ExitCode::FAILURE,
    })
}

/// Writes the file under another name first: what has the wanted name is whole. Of a download that fails nothing is left.
fn download(client: &Client, link: &str, to: &std::path::Path) -> anyhow::Result<()> {
    let mut name = to.file_name().context("--to names no file")?.to_owned();
    name.push(".part");
    let part = to.with_file_name(name);
    let done = download_part(client, link, &part).and_then(|()| {
        std::fs::rename(&part, to).with_context(|| format!("cannot give {} its name", to.display()))
    });
    if done.is_err() {
        let _never_made = std::fs::remove_file(&part);
    }
    done
}

fn download_part(client: &Client, link: &str, part: &std::path::Path) -> anyhow::Result<()> {
    let (total, mut source) = client.open(link)?;
    let failed = |what: &str| format!("{what} {}", part.display());
    let mut file = std::fs::File::create(part).with_context(|| failed("cannot write"))?;
    let mut buffer = vec![0; 1 << 20];
    let mut done = 0;
    loop {
        let count = source
            .read(&mut buffer)
            .context("the download broke off: run it again")?;
        if count == 0 {
            break;
        }
        file.write_all(&buffer[..count])
            .with_context(|| failed("cannot write"))?;
        done += count as u64;
    }
    anyhow::ensure!(
        done == total,
        "the download broke off after {done} of {total} bytes: run it again"
    );
    file.sync_all().with_context(|| failed("cannot sync"))
}
