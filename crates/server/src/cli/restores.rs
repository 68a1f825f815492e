//! Verbs on restores.

use std::process::ExitCode;

use clap::Subcommand;
use serde_json::json;

use super::remote::{self, NewInstance, Page, Persistence};
use super::target::{Target, UNDOABLE, print_one, print_rows};
use super::{Global, watch};
use crate::instance::layout::Layout;
use crate::secrets;

/// Verbs on restores.
#[derive(Subcommand)]
pub(crate) enum RestoreVerb {
    /// Put a backup's data into its instance, or another one: loaded beside the old data, verified, then switched in about
    /// a millisecond. The old data serves until then and is kept for undo
    #[command(
        after_help = "Examples:\n  cachekeep restore create cache1 --backup latest --wait\n  \
        cachekeep restore create cache1 --backup backup_20260102030405 --verify full --wait\n  \
        cachekeep restore create cache1 --backup latest --into staging1 --wait\n  \
        cachekeep restore create cache1 --backup latest --new cluster1 --shards 3 --replicas 1 --wait\n\n\
        What is restored into has the backup's data afterwards and no other, whatever its layout: a backup of a single node goes\n\
        into a cluster of any size and the other way round, each key to the shard that has its slot. A cluster has only database\n\
        0: a backup with keys in others is refused. The record is the target's: `restore list`, `undo` and so on take its name.\n\n\
        Writes that arrive before the switch are not in the result."
    )]
    Create {
        /// Name or id of the instance that the backup is of (the id, where it is deleted)
        instance: String,
        /// Id or name of the backup, or latest
        #[arg(long)]
        backup: String,
        /// Up to 128 characters
        #[arg(long)]
        remark: Option<String>,
        /// sample: counters and up to 10,000 keys; full: the digest of everything
        #[arg(long, value_parser = ["sample", "full"], default_value = "sample")]
        verify: String,
        /// Where two copies do not fit in memory: back up, stop the old one, load the new one
        #[arg(long)]
        allow_downtime: bool,
        /// Restore into this instance instead (name or id); what it holds is replaced and kept for undo
        #[arg(long, value_name = "INSTANCE")]
        into: Option<String>,
        /// Restore into a new instance of this name
        #[arg(long, value_name = "NAME", conflicts_with = "into")]
        new: Option<String>,
        /// Of a new instance: make it a cluster with so many primaries, 3 to 128 [default: a single node]
        #[arg(long, requires = "new", value_parser = clap::value_parser!(u16).range(3..=128))]
        shards: Option<u16>,
        /// Of a new instance: replicas of each primary, 0 to 4 [default: 0]
        #[arg(long, requires = "shards", value_parser = clap::value_parser!(u16).range(0..=4))]
        replicas: Option<u16>,
        /// Of a new instance: size in GB, as of `instance create` [default: that of the backup's instance]
        #[arg(long, requires = "new")]
        capacity: Option<f64>,
        /// Of a new instance: read its password from the first line of standard input [default: a random one, printed]
        #[arg(long, requires = "new", conflicts_with = "no_password")]
        password_stdin: bool,
        /// Of a new instance: clients need no password
        #[arg(long, requires = "new")]
        no_password: bool,
        /// Show the progress and return when it has ended
        #[arg(long)]
        wait: bool,
    },
    /// List every restore of an instance, newest first
    #[command(
        after_help = "Examples:\n  cachekeep restore list cache1\n  cachekeep restore list cache1 --limit 100 --offset 100 -o json"
    )]
    List {
        /// Name or id of the instance (the id, where it is deleted)
        instance: String,
        #[command(flatten)]
        page: Page,
    },
    /// Show one record
    #[command(after_help = "Example:\n  cachekeep restore show cache1 latest")]
    Show {
        /// Name or id of the instance
        instance: String,
        /// Id or name of the restore, or latest
        restore: String,
    },
    /// Give up a restore that has not switched yet: the old data goes on serving, and the record says failed
    #[command(
        after_help = "Once the switch has begun a restore is finished; `cachekeep restore undo` takes it back then.\n\n\
        Examples:\n  cachekeep restore cancel cache1\n  cachekeep restore cancel cache1 restore_20260102030405 --wait"
    )]
    Cancel {
        /// Name or id of the instance
        instance: String,
        /// Id or name of the restore, or latest
        #[arg(default_value = "latest")]
        restore: String,
        /// Return when it has ended
        #[arg(long)]
        wait: bool,
    },
    /// Put the data back as it was before a restore; writes since then are discarded
    #[command(
        after_help = "Possible until the replaced data is dropped: a day after the restore (`serve --undo-keep`), at the next \
        restore, where memory is short, or when its backup (kind generation) is deleted. ext.undo_until of \
        `restore show` says when at the latest. An undo can be undone the same way.\n\n\
        Examples:\n  cachekeep restore undo cache1 --wait\n  cachekeep restore undo cache1 restore_20260102030405"
    )]
    Undo {
        /// Name or id of the instance
        instance: String,
        /// Id or name of the restore, or latest: the newest that succeeded and is not undone
        #[arg(default_value = "latest")]
        restore: String,
        /// Show the progress and return when it has ended
        #[arg(long)]
        wait: bool,
    },
}

const RESTORE_COLUMNS: [&str; 9] = [
    "restore_name",
    "status",
    "progress",
    "backup_name",
    "ext.target_state",
    "ext.unavailable_us",
    "error_code",
    "restore_remark",
    "restore_id",
];

/// `cachekeep restore ...`
///
/// # Errors
/// The service does not answer, or what it refused and why.
pub(crate) fn restore(global: &Global, verb: &RestoreVerb) -> anyhow::Result<ExitCode> {
    match verb {
        RestoreVerb::Create {
            instance,
            backup,
            remark,
            verify,
            allow_downtime,
            into,
            new,
            shards,
            replicas,
            capacity,
            password_stdin,
            no_password,
            wait,
        } => {
            let source = Target::find(global, instance)?;
            let wish = json!({"backup_id": source.backup(backup)?, "source_instance_id": source.id, "remark": remark,
                              "verify": verify, "allow_downtime": allow_downtime});
            let start = |target: &Target| target.ours("POST", "/restores", Some(&wish));
            let Some(name) = new else {
                let target = match into {
                    Some(into) => Target::find(global, into)?,
                    None => source,
                };
                return target.finish(global, "restore", &start(&target)?, *wait);
            };
            let layout = remote::layout(*shards, *replicas);
            let new = NewInstance {
                name,
                capacity: Some(capacity.unwrap_or_else(|| capacity_of(&source, layout))),
                layout,
                port: None,
                password: match (no_password, password_stdin) {
                    (true, _) => None,
                    (false, true) => Some(remote::first_line(std::io::stdin())?),
                    (false, false) => Some(secrets::random_password()),
                },
                persistence: Persistence::Aof,
                description: None,
            };
            let target = new.make(global)?;
            let started = match start(&target) {
                Ok(started) => started,
                Err(refused) => {
                    let gone = target.call("DELETE", "", "", None);
                    let what = match gone {
                        Ok(_) => format!("{name} is deleted again"),
                        Err(error) => format!("and {name} stays, empty: {error:#}"),
                    };
                    return Err(refused.context(format!("nothing was restored, {what}")));
                }
            };
            let code = target.finish(global, "restore", &started, *wait)?;
            if code != ExitCode::SUCCESS {
                eprintln!("{name} stays, empty: `cachekeep instance delete {name}` removes it");
            }
            Ok(code)
        }
        RestoreVerb::List { instance, page } => {
            let target = Target::find(global, instance)?;
            let answer = target.call("GET", "/restores", &page.query(), None)?;
            let rows = answer["restore_record_response"]
                .as_array()
                .map_or(&[][..], Vec::as_slice);
            print_rows(global, &RESTORE_COLUMNS, rows, &answer);
            Ok(ExitCode::SUCCESS)
        }
        RestoreVerb::Show { instance, restore } => {
            let target = Target::find(global, instance)?;
            let id = target.restore(restore)?;
            print_one(global, &target.ours("GET", &format!("/restores/{id}"), None)?);
            Ok(ExitCode::SUCCESS)
        }
        RestoreVerb::Cancel {
            instance,
            restore,
            wait,
        } => {
            let target = Target::find(global, instance)?;
            let id = target.restore(restore)?;
            let asked = target.ours("POST", &format!("/restores/{id}/cancel"), None)?;
            if !wait {
                return target.finish(global, "restore", &asked, false);
            }
            let record = watch::follow(global, "restore", || {
                target.ours("GET", &format!("/restores/{id}"), None)
            })?;
            print_one(global, &record);
            let is_cancelled = record["status"] == "failed" && record["ext"]["target_state"] != "unknown";
            Ok(match is_cancelled {
                true => ExitCode::SUCCESS,
                false => ExitCode::FAILURE,
            })
        }
        RestoreVerb::Undo {
            instance,
            restore,
            wait,
        } => {
            let target = Target::find(global, instance)?;
            let wanted = if restore == "latest" { UNDOABLE } else { restore };
            let id = target.restore(wanted)?;
            let started = target.ours("POST", &format!("/restores/{id}/undo"), None)?;
            target.finish(global, "restore", &started, *wait)
        }
    }
}

/// The size in GB of the instance that a backup is of, where it is still there; at least what the layout begins with.
fn capacity_of(source: &Target, layout: Layout) -> f64 {
    let least = remote::least_capacity(layout);
    let shown = source.call("GET", "", "", None).unwrap_or_default();
    let megabytes = shown["max_memory"].as_f64().unwrap_or(0.0);
    (megabytes / 1024.0).max(least)
}
