//! Verbs on restores.

use std::process::ExitCode;

use clap::{Args, Subcommand};
use serde_json::{Value, json};

use super::remote::{self, NewInstance, Page, Persistence};
use super::replay::Choice;
use super::target::{Target, UNDOABLE, plain, print_one, print_rows};
use super::{Global, Output, watch};
use crate::instance::layout::Layout;
use crate::restore::options::{Mode, Options};
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
        /// Only if it is still what this plan says: see `restore plan`
        #[arg(long, value_name = "ID", conflicts_with = "new")]
        plan: Option<String>,
        /// Restore into this instance instead (name or id); what it holds is replaced and kept for undo
        #[arg(long, value_name = "INSTANCE")]
        into: Option<String>,
        #[command(flatten)]
        by_keys: ByKeys,
        /// Restore into a new instance of this name
        #[arg(long, value_name = "NAME", conflicts_with = "into")]
        new: Option<String>,
        /// Of a new instance: make it a cluster with so many primaries, 3 to 128 [default: a single node]
        #[arg(long, requires = "new", value_parser = clap::value_parser!(u16).range(3..=128))]
        shards: Option<u16>,
        /// Of a new instance: replicas of each primary, 0 to 4; without --shards a primary with so many [default: 0]
        #[arg(long, requires = "new", value_parser = clap::value_parser!(u16).range(0..=4))]
        replicas: Option<u16>,
        /// Of a new instance: clients have to speak TLS
        #[arg(long, requires = "new")]
        tls: bool,
        /// Of a new instance: its engine, as of `instance create` [default: that of the backup's instance]
        #[arg(long, requires = "new", value_name = "ENGINE")]
        engine: Option<String>,
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
    /// Say what a restore would do: layout, keys and bytes of each shard, memory, time, what can be undone afterwards. Nothing
    /// is begun
    #[command(
        after_help = "A plan is refused where the restore would be. Its id makes sure that what is done is what was planned: the restore is \
        refused where instance, backup or engine are not as they were.\n\n\
        Examples:\n  cachekeep restore plan cache1 --backup latest\n  \
        cachekeep restore plan cache1 --backup latest --into cluster1 -o json\n  \
        cachekeep restore create cache1 --backup latest --into cluster1 --plan 0123456789abcdef0123456789abcdef"
    )]
    Plan {
        /// Name or id of the instance that the backup is of (the id, where it is deleted)
        instance: String,
        /// Id or name of the backup, or latest
        #[arg(long)]
        backup: String,
        /// Of a restore into this instance (name or id)
        #[arg(long, value_name = "INSTANCE")]
        into: Option<String>,
        /// How the restore would be verified
        #[arg(long, value_parser = ["sample", "full"], default_value = "sample")]
        verify: String,
        /// Of a restore that may stop the instance where two copies do not fit in memory
        #[arg(long)]
        allow_downtime: bool,
        #[command(flatten)]
        by_keys: ByKeys,
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

/// How a backup is applied key by key. To servers that somebody else runs it always is.
#[derive(Args)]
#[command(next_help_heading = "While the target serves (of an instance of ours where any of these is given)")]
pub(crate) struct ByKeys {
    /// replace removes all other keys after all of the backup is there, where keys are selected those that could have been;
    /// merge leaves them alone [default: replace]
    #[arg(long, value_enum)]
    mode: Option<Mode>,
    /// Take no backup of the target before: what fails half-way then cannot be put back, and nothing can be undone
    #[arg(long)]
    no_safety_point: bool,
    #[command(flatten)]
    choice: Choice,
}

impl ByKeys {
    /// The field of the request; `None`: nothing is said.
    fn field(&self) -> Option<Options> {
        let options = self
            .choice
            .options(self.mode.unwrap_or_default(), !self.no_safety_point);
        (options != Options::default() || self.mode.is_some()).then_some(options)
    }
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
            plan,
            into,
            by_keys,
            new,
            shards,
            replicas,
            tls,
            engine,
            capacity,
            password_stdin,
            no_password,
            wait,
        } => {
            let source = Target::find(global, instance)?;
            let wish = json!({"backup_id": source.backup(backup)?, "source_instance_id": source.id, "remark": remark,
                              "verify": verify, "allow_downtime": allow_downtime, "plan_id": plan, "replay": by_keys.field()});
            let start = |target: &Target| target.ours("POST", "/restores", Some(&wish));
            let Some(name) = new else {
                let target = match into {
                    Some(into) => Target::find(global, into)?,
                    None => source,
                };
                return target.finish(global, "restore", &start(&target)?, *wait);
            };
            let layout = remote::layout(*shards, *replicas);
            let of_source = engine_of(&source);
            let new = NewInstance {
                name,
                capacity: Some(capacity.unwrap_or_else(|| capacity_of(&source, layout))),
                layout,
                is_tls: *tls,
                engine: engine.as_deref().or(of_source.as_deref()),
                port: None,
                user: None,
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
        RestoreVerb::Plan {
            instance,
            backup,
            into,
            verify,
            allow_downtime,
            by_keys,
        } => {
            let source = Target::find(global, instance)?;
            let wish = json!({"backup_id": source.backup(backup)?, "source_instance_id": source.id, "verify": verify,
                              "allow_downtime": allow_downtime, "replay": by_keys.field()});
            let target = match into {
                Some(into) => Target::find(global, into)?,
                None => source,
            };
            let plan = target.ours("POST", "/restores/plan", Some(&wish))?;
            print_plan(global, &plan);
            Ok(ExitCode::SUCCESS)
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

/// The name of the engine that an instance is of, unless that is not told.
fn engine_of(source: &Target) -> Option<String> {
    let shown = source.call("GET", "", "", None).ok()?;
    let (engine, version) = (
        shown["ext"]["engine"].as_str()?,
        shown["engine_version"].as_str()?,
    );
    Some(format!("{engine}-{version}"))
}

/// The size in GB of the instance that a backup is of, where it is still there; at least what the layout begins with.
fn capacity_of(source: &Target, layout: Layout) -> f64 {
    let least = remote::least_capacity(layout);
    let shown = source.call("GET", "", "", None).unwrap_or_default();
    let megabytes = shown["max_memory"].as_f64().unwrap_or(0.0);
    (megabytes / 1024.0).max(least)
}

const SHARD_COLUMNS: [&str; 5] = ["first_slot", "last_slot", "keys", "bytes", "is_counted"];

fn print_plan(global: &Global, plan: &Value) {
    if global.output == Output::Json {
        println!("{plan:#}");
        return;
    }
    let megabytes = |value: &Value| value.as_u64().unwrap_or(0) >> 20;
    let (memory, engines) = (&plan["memory"], &plan["engines"]);
    println!("plan_id: {}", plain(&plan["plan_id"]));
    println!(
        "from: {} ({}, {})",
        plain(&plan["source_instance_name"]),
        plain(&plan["source_layout"]),
        plain(&plan["source_instance_id"])
    );
    println!("into: {}", plain(&plan["layout"]));
    println!(
        "method: {}{}",
        plain(&plan["method"]),
        match plan["is_cut"] == true {
            true => ", keys cut anew for the shards",
            false => "",
        }
    );
    println!("keys: {}, bytes: {}", plan["keys"], plan["bytes"]);
    println!(
        "memory: {} MB needed beside the {} MB of the present data, {} MB free",
        megabytes(&memory["needed"]),
        megabytes(&memory["present"]),
        megabytes(&memory["free"])
    );
    println!(
        "engines: {} (RDB {}) into {}",
        plain(&engines["backup"]),
        engines["rdb_version"],
        plain(&engines["instance"])
    );
    let rests_on = match plan["measured_restores"].as_u64() {
        None | Some(0) => "assumed: nothing was restored into it yet".to_owned(),
        Some(count) => format!("measured on {count} restores"),
    };
    println!("time: about {} s ({rests_on})", plan["estimated_seconds"]);
    if let Some(gap) = plan["gap_seconds"].as_f64() {
        println!("clients wait: about {gap} s");
    }
    match plan["undo_until"].as_str() {
        Some(until) => println!("undo: possible until {until} at the latest"),
        None => println!("undo: not possible: there is no safety point"),
    }
    if let Some(counts) = plan["counts"].as_object() {
        let counts: Vec<String> = counts
            .iter()
            .map(|(kind, count)| format!("{count} {kind}"))
            .collect();
        println!("every key: {}", counts.join(", "));
    }
    if let Some(restore) = plan["ends_undo_of"].as_str() {
        println!("undo: of {restore} it is not possible any more then");
    }
    for gap in plan["gaps"].as_array().into_iter().flatten() {
        println!("gap: {}", plain(gap));
    }
    let shards = plan["shards"].as_array().map_or(&[][..], Vec::as_slice);
    if shards.len() > 1 {
        print_rows(global, &SHARD_COLUMNS, shards, plan);
    }
}
