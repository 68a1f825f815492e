//! `cachekeep restore --from BACKUP --to redis://...`: a backup is applied to a server or cluster that is not ours.

use std::fs::File;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;

use anyhow::Context as _;
use clap::Args;
use engine::archive::Archive;
use engine::replay::{self, Account, Input, Others, Outcome, Plan};
use engine::{Control, Identity};
use serde_json::json;

use super::selectors::Selectors;
use super::source::archive_of;
use super::{Global, Output, admin, alone};
use crate::ids::{BackupId, Moment};
use crate::jobs::worker::with_progress;
use crate::restore::account::{self, key_as_json};
use crate::restore::options::{Mode, OnConflict, OnExpiry, Options};

/// The environment's word for the password of a target.
const PASSWORD: &str = "CACHEKEEP_TARGET_PASSWORD";
/// Exit status where all was done but for what is named.
const NOT_ALL: u8 = 3;
/// Keys of each kind that a person is told.
const TOLD_MAX: usize = 10;

/// How a backup is applied to a server.
#[derive(Args)]
#[command(next_help_heading = "To a server")]
pub(crate) struct ReplayOptions {
    /// Say what would happen to every key, and write nothing
    #[arg(long)]
    dry_run: bool,
    /// merge leaves the target's other keys alone; replace removes them after all of the backup is there: of the databases and
    /// names that the selected keys go to
    #[arg(long, value_enum, default_value_t = Mode::Merge)]
    mode: Mode,
    #[command(flatten)]
    choice: Choice,
    /// Connections to each node that takes writes: more than one helps over long distances only
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u64).range(1..=16))]
    connections: u64,
    /// Write down in this file how far it is: the same command goes on there after whatever has ended it
    #[arg(long, value_name = "FILE")]
    journal: Option<PathBuf>,
    /// Certificates that a rediss:// target's one must be signed by, PEM
    #[arg(long, value_name = "FILE")]
    ca: Option<PathBuf>,
}

/// What becomes of which keys, wherever a backup is applied key by key.
#[derive(Args)]
#[command(next_help_heading = "Key by key")]
pub(crate) struct Choice {
    /// What becomes of a key that the target has already; fail writes nothing at all if there is one
    #[arg(long, value_enum, default_value_t = OnConflict::Replace)]
    on_conflict: OnConflict,
    /// When keys expire: when they would have, as long from now as they would have when the backup was made, or never;
    /// fields of hashes that expire by themselves do so when they would have, and their keys are counted as reduced
    #[arg(long, value_enum, default_value_t = OnExpiry::Absolute)]
    expiry: OnExpiry,
    /// Keys of database A go to database B; may be given many times
    #[arg(long = "map-db", value_name = "A:B", value_parser = pair_of_dbs)]
    db_map: Vec<(u32, u32)>,
    /// Each key gets this before its name, so that it stands beside what is there
    #[arg(long, value_name = "TEXT", conflicts_with = "rewrite")]
    into_prefix: Option<String>,
    /// Names that begin with OLD begin with NEW instead
    #[arg(long, value_name = "OLD=NEW", value_parser = pair_of_prefixes)]
    rewrite: Option<(String, String)>,
    /// Load libraries of functions too: they are code, which the target then runs
    #[arg(long)]
    functions: bool,
    /// Send the commands that make a value instead of the serialised value: for what does not know RESTORE with ABSTTL
    #[arg(long)]
    commands: bool,
    /// At most so many keys in a second
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    max_ops: Option<u64>,
    /// Write more slowly while the target takes longer to answer a PING
    #[arg(long, value_name = "MS", value_parser = clap::value_parser!(u64).range(1..))]
    max_latency_ms: Option<u64>,
    /// Seconds for which it is tried to go on after a connection broke or a node failed
    #[arg(long, value_name = "SECONDS", default_value_t = 60, value_parser = clap::value_parser!(u64).range(..=3600))]
    patience: u64,
    #[command(flatten)]
    selectors: Selectors,
}

fn pair_of_dbs(text: &str) -> Result<(u32, u32), String> {
    let numbers = text
        .split_once(':')
        .and_then(|(from, to)| Some((from.parse().ok()?, to.parse().ok()?)));
    numbers.ok_or_else(|| "two databases are wanted, such as 3:0".to_owned())
}

fn pair_of_prefixes(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((old, new)) if old != new => Ok((old.to_owned(), new.to_owned())),
        _ => Err("two beginnings of names are wanted, such as user:=u:".to_owned()),
    }
}

impl Choice {
    /// What a restore is told.
    pub(super) fn options(&self, mode: Mode, safety_point: bool) -> Options {
        Options {
            mode,
            on_conflict: self.on_conflict,
            expiry: self.expiry,
            map_db: self.db_map.iter().map(|(from, to)| [*from, *to]).collect(),
            into_prefix: self.into_prefix.clone(),
            rewrite: self.rewrite.clone().map(|(old, new)| [old, new]),
            functions: self.functions,
            functions_exact: false,
            commands: self.commands,
            max_ops: self.max_ops,
            max_latency_ms: self.max_latency_ms,
            patience: self.patience,
            safety_point,
            select: self.selectors.select(),
        }
    }
}

impl ReplayOptions {
    /// The plan, and what about it cannot be.
    fn plan(&self) -> anyhow::Result<Plan> {
        let options = self.choice.options(self.mode, false);
        let plan = options
            .plan(self.journal.clone(), &std::env::temp_dir(), Moment::now())
            .map_err(|field| match field {
                "replay.map_db" => anyhow::anyhow!("--map-db sends one database to two others"),
                "replay.mode" => anyhow::anyhow!(
                    "--mode replace decides by database and name which other keys go, so no type, size or time to live can be selected"
                ),
                other => anyhow::anyhow!("{other} cannot be read"),
            })?;
        Ok(Plan {
            // Nobody asked for databases that the backup has no keys in.
            others: match plan.others {
                Others::All => Others::Go,
                others => others,
            },
            connections: usize::try_from(self.connections)?,
            ..plan
        })
    }
}

/// Whether a place is a server.
pub(super) fn is_server(to: &str) -> bool {
    ["redis://", "rediss://", "unix:"]
        .iter()
        .any(|scheme| to.starts_with(scheme))
}

/// Applies a backup to the server at `to`. `open` opens an archive by its place, where `from` is one.
///
/// # Errors
/// What was asked for cannot be, or cannot be begun. What went wrong after that is told and is the exit status.
pub(super) fn run(
    global: &Global,
    options: &ReplayOptions,
    from: &str,
    to: &str,
    open: impl FnOnce() -> anyhow::Result<(Archive, Identity)>,
) -> anyhow::Result<ExitCode> {
    let plan = options.plan()?;
    let target = alone::endpoint_with(to, options.ca.as_deref(), PASSWORD)?;
    let inputs = inputs(global, from, open)?;
    let control = Arc::new(Control::new(None));
    stop_when_asked(&control)?;
    let replay = if options.dry_run {
        replay::dry_run
    } else {
        replay::run
    };
    let outcome = with_progress(
        &control,
        |seen| alone::tell(global, seen),
        || replay(&plan, &target, inputs, &control),
    );
    Ok(show(
        global,
        options.dry_run,
        to,
        &control.phases_taken(),
        &outcome,
    ))
}

/// What is to be applied: a file, a backup of the service by its id, or an archive.
fn inputs(
    global: &Global,
    from: &str,
    open: impl FnOnce() -> anyhow::Result<(Archive, Identity)>,
) -> anyhow::Result<Vec<Input>> {
    let path = std::path::Path::new(from);
    if path.is_file() {
        let file = File::open(path).with_context(|| format!("cannot open {from}"))?;
        return Ok(vec![Input::File(file)]);
    }
    anyhow::ensure!(
        !path.exists() || path.is_dir(),
        "{from} is no file and no folder: what is applied is read twice, so a pipe cannot be"
    );
    let (archive, identity) = match BackupId::parse(from).filter(|_| !path.exists()) {
        Some(id) => archive_of(&admin::open(global)?, &id).with_context(|| format!("cannot open {from}"))?,
        None => open()?,
    };
    Input::all(&archive, &identity).map_err(alone::told)
}

/// Ctrl-C, or a request to end, stops it in good order; a second one at once.
fn stop_when_asked(control: &Arc<Control>) -> anyhow::Result<()> {
    use tokio::signal::unix::{SignalKind, signal};
    let control = control.clone();
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    let (interrupts, terminations) = {
        let _inside = runtime.enter();
        (signal(SignalKind::interrupt())?, signal(SignalKind::terminate())?)
    };
    std::thread::spawn(move || {
        runtime.block_on(async move {
            let (mut interrupts, mut terminations) = (interrupts, terminations);
            for is_first in [true, false] {
                tokio::select! {
                    _ = interrupts.recv() => {}
                    _ = terminations.recv() => {}
                }
                if is_first {
                    eprintln!("cachekeep: stopping; what is under way is waited for");
                    control.cancel();
                } else {
                    std::process::exit(130);
                }
            }
        });
    });
    Ok(())
}

/// Tells how it ended, and returns the exit status.
fn show(global: &Global, is_dry: bool, to: &str, phases: &str, outcome: &Outcome) -> ExitCode {
    let account = &outcome.account;
    let state = if is_dry { "untouched" } else { outcome.state.word() };
    let mut told = json!({
        "target": without_password(to), "target_version": outcome.target_version, "dry_run": is_dry, "target_state": state,
        "resumed": outcome.resumed, "keys": account.keys(), "applied_bytes": account.applied_bytes,
    });
    for (name, tally) in account::kinds(account) {
        told[name] = json!(tally.count);
    }
    told["functions"] = json!(account.functions);
    told["phases"] = json!(phases);
    let failure = outcome.failure.as_ref().map(|error| engine::chain(error));
    if global.output == Output::Json {
        told["first"] = account::named(account);
        told["failure"] = json!(failure);
        told["functions_refused"] = json!(account.functions_refused);
        println!("{told:#}");
    } else {
        super::target::print_one(global, &told);
        tell_named(account);
    }
    if outcome.is_unconfirmed {
        eprintln!(
            "cachekeep: a replica did not confirm within 5 s: where it takes over now, compare with `cachekeep diff`"
        );
    }
    match failure {
        Some(failure) => {
            eprintln!("cachekeep: {failure}");
            eprintln!("{}", advice(outcome));
            ExitCode::FAILURE
        }
        None if account.failed.count > 0 || !account.functions_refused.is_empty() => ExitCode::from(NOT_ALL),
        None => ExitCode::SUCCESS,
    }
}

/// The keys that somebody has to look at.
fn tell_named(account: &Account) {
    let kinds = [
        ("failed", &account.failed),
        ("conflicting", &account.conflicting),
        ("reduced", &account.reduced),
    ];
    for (name, tally) in kinds {
        for named in tally.first.iter().take(TOLD_MAX) {
            let why = match named.reason.as_str() {
                "" => String::new(),
                reason => format!(": {}", super::target::plain(&json!(reason))),
            };
            eprintln!("{name}: db {}, key {}{why}", named.db, key_as_json(&named.key));
        }
        let told = tally.first.len().min(TOLD_MAX);
        if tally.count > told as u64 {
            eprintln!(
                "{name}: {} more; -o json names the first hundred",
                tally.count - told as u64
            );
        }
    }
    for text in &account.functions_refused {
        eprintln!("function library refused: {}", super::target::plain(&json!(text)));
    }
}

fn advice(outcome: &Outcome) -> &'static str {
    match outcome.state {
        replay::TargetState::Untouched => "Nothing was written to the target.",
        replay::TargetState::Partial => {
            "The target holds a part of the backup: what is counted as applied is there. With --journal the same command goes on; \
             without, it begins anew, which does no harm where conflicts are replaced."
        }
        replay::TargetState::Applied => "",
    }
}

/// A URL as it may be shown.
fn without_password(url: &str) -> String {
    match url
        .split_once("://")
        .and_then(|(scheme, rest)| Some((scheme, rest.rsplit_once('@')?.1)))
    {
        Some((scheme, place)) => format!("{scheme}://{place}"),
        None => url.to_owned(),
    }
}
