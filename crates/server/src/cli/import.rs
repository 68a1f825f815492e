//! `cachekeep import`: files that something else wrote become a backup of an instance: an RDB, one of each shard of a
//! cluster, or append-only files, which an engine replays that is thrown away.
//!
//! Works on the data directory, whether the service runs or not: the files are where the operator is.
//! The record is there from the start, as of any backup. Who imports holds a lock for it, by which the service knows
//! that the record's work goes on; where nobody holds it, the record has failed (see `reconcile`).

mod cluster;
mod folder;

use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

use anyhow::Context;
use clap::Args;
use engine::aof::load::{self, Files};
use engine::backup::{ImportPlan, ShardFile};
use engine::process::{self, Persistence, Program};
use engine::{Control, Error, Kind};
use serde_json::json;

use super::Global;
use super::admin::{find_instance, open, print_one};
use crate::app::App;
use crate::backup::import::job::{self, Lock};
use crate::backup::import::url::{self, Target};
use crate::backup::proof::job::{Room, throw_away_engine};
use crate::backup::record as backups;
use crate::egress::{Allowed, Asker, Rules};
use crate::hosts::job::present;
use crate::ids::{BackupId, Moment};
use crate::instance::Instance;
use crate::instance::layout::Mode;
use crate::refusal::Refusal;

/// Take files of another server as a backup of an instance: validated to their last byte, stored as any other backup,
/// restorable as any other. Works on the data directory, while the service runs or not
#[derive(Args)]
#[command(
    after_help = "Taken are files of Redis up to RDB version 13 and of Valkey; whether the engine here loads them the restore \
    finds out before anything is switched. A folder is that of a server: its dump.rdb, or its append-only files. Commands of \
    append-only files are replayed by an engine that is started for that and thrown away; only commands that change data are \
    let through, and a command that the file ends in is left out and told.\n\
    For an instance that is a cluster, one file of each shard is given, and no slot may be in two of them or in none: --nodes \
    takes the cluster's own list.\n\n\
    Examples:\n  \
    cachekeep import cache1 dump.rdb --remark 'from the old server'\n  \
    cachekeep import cache1 /var/lib/redis\n  \
    cachekeep import cache1 appendonly.aof\n  \
    cachekeep import cluster1 node1.rdb node2.rdb node3.rdb --nodes nodes.conf\n  \
    cachekeep import cache1 https://example.com/dump.rdb\n  \
    cachekeep import cache1 http://files.internal:9000/dump.rdb --allow 10.0.0.0/8:9000\n  \
    cachekeep import cluster1 https://example.com/node1.rdb https://example.com/node2.rdb https://example.com/node3.rdb --nodes nodes.conf"
)]
pub(crate) struct Import {
    /// Name or id of the instance (the id, where it is deleted)
    instance: String,
    /// The file, a server's folder, a URL, or - for standard input; for a cluster a file of each shard
    #[arg(required = true, value_name = "FILE")]
    files: Vec<PathBuf>,
    /// Of a cluster: the list of its nodes, as CLUSTER NODES prints it or a node's nodes.conf has it
    #[arg(long, value_name = "FILE")]
    nodes: Option<PathBuf>,
    /// Of a cluster, without a list of its nodes: slots that have no key in any file are empty, and no file is missing
    #[arg(long, conflicts_with = "nodes")]
    accept_empty_slots: bool,
    /// Up to 128 characters, shown with the backup and its restores
    #[arg(long)]
    remark: Option<String>,
    /// Of a URL: an address that may be connected to, by http and on any port too, where ADDRESS[/BITS][:PORT] covers it.
    /// Without it only public addresses are, by https on port 443. Holds for redirects as well
    #[arg(long, value_name = "ADDRESS")]
    allow: Vec<Allowed>,
    /// Of a URL: refuse what is larger, so that no mistake fills the store
    #[arg(long, value_name = "GB", default_value_t = crate::limits::IMPORT_URL_GB_DEFAULT, value_parser = clap::value_parser!(u64).range(1..=1_000_000))]
    size_limit_gb: u64,
    /// Take libraries of functions too: they are code, which the engine runs when it loads them
    #[arg(long)]
    accept_functions: bool,
}

/// Runs the verb.
///
/// # Errors
/// No data directory, unknown instance, a file that is no valid RDB, a store that does not take it.
pub(crate) fn run(global: &Global, verb: &Import) -> anyhow::Result<()> {
    let app = open(global)?;
    crate::backup::command::check_remark(verb.remark.as_deref())
        .map_err(|_too_long| anyhow::anyhow!("a remark has at most 128 characters"))?;
    let instance = find_instance(&app, &verb.instance)?;
    let fetched = Fetched::read(&app, verb, &instance)?;
    let id = BackupId::random();
    // Before the record, which without it would be taken for one whose import has died.
    let lock = Lock::take(&app, &id).map_err(|error| anyhow::anyhow!("{}", engine::chain(&error)))?;
    let imported = import(&app, &instance, verb, &id, fetched);
    drop(lock);
    let made = imported?;
    let row = app
        .catalog
        .read(|tx| backups::load(tx, &id))?
        .context("the record is gone")?;
    print_one(
        global,
        &json!({"backup_id": id.as_str(), "backup_name": row.name, "instance_id": instance.id.as_str(),
                "keys": made.keys, "plain_bytes": made.plain_bytes, "size": made.stored_bytes,
                "rdb_version": made.rdb_version, "engine_version": made.engine_version,
                "warnings": made.rdb.warning_count}),
    );
    if !global.quiet {
        eprintln!(
            "imported; to restore it: cachekeep restore create {} --backup {}",
            verb.instance, row.name
        );
    }
    Ok(())
}

/// What becomes a backup.
enum Input {
    /// An RDB, what it is called, and its size (0 where that is not known).
    Snapshot(Box<dyn Read>, String, u64),
    /// An RDB of each shard.
    Cluster(Vec<cluster::Part>),
    /// Commands, which an engine replays.
    Commands(Files),
}

/// What is to be imported, and where those of its files are that had to be fetched first.
struct Fetched {
    input: Input,
    /// What the files are called, where that is not their path.
    name: Option<String>,
    _room: Option<Room>,
}

fn of_url(path: &Path) -> Option<&str> {
    path.to_str().filter(|text| url::is_url(text))
}

impl Fetched {
    /// Looks at what is named. What must be looked through before it is taken is fetched into the spool first: files of a
    /// cluster, and commands. An RDB is taken as it comes.
    fn read(app: &App, verb: &Import, instance: &Instance) -> anyhow::Result<Self> {
        let rules = Rules {
            allowed: verb.allow.clone(),
            asker: Asker::Operator,
        };
        let limit = verb.size_limit_gb * 1_000_000_000;
        let open = |text: &str| Target::parse(text)?.open(&rules, limit);
        if instance.layout.mode == Mode::Single
            && let [path] = &verb.files[..]
            && let Some(text) = of_url(path)
        {
            let mut opened = open(text)?;
            let mut first = [0];
            let begun = opened
                .source
                .read(&mut first)
                .with_context(|| format!("{} is not read", opened.name))?;
            opened.source = Box::new(
                std::io::Cursor::new(first)
                    .take(begun as u64)
                    .chain(opened.source),
            );
            if opened.name.ends_with(".aof") || matches!(first[..begun], [b'*' | b'#']) {
                let room = Room::take(app).map_err(super::alone::told)?;
                let name = Some(opened.name.clone());
                let base = Some(put(&room, 0, opened)?);
                return Ok(Self {
                    input: Input::Commands(Files {
                        base,
                        increments: Vec::new(),
                    }),
                    name,
                    _room: Some(room),
                });
            }
            return Ok(Self {
                input: Input::Snapshot(opened.source, opened.name, opened.bytes),
                name: None,
                _room: None,
            });
        }
        let (mut files, mut names, mut room) = (Vec::new(), Vec::new(), None);
        for (number, path) in verb.files.iter().enumerate() {
            let Some(text) = of_url(path) else {
                files.push(path.clone());
                names.push(path.display().to_string());
                continue;
            };
            anyhow::ensure!(
                instance.layout.mode == Mode::Cluster,
                "{} is no cluster: one file is wanted",
                instance.name
            );
            let opened = open(text)?;
            names.push(opened.name.clone());
            if room.is_none() {
                room = Some(Room::take(app).map_err(super::alone::told)?);
            }
            if let Some(room) = &room {
                files.push(put(room, number, opened)?);
            }
        }
        Ok(Self {
            input: Input::read(verb, &files, instance)?,
            name: room.is_some().then(|| names.join(", ")),
            _room: room,
        })
    }
}

/// Writes what is behind a URL into the room; it has the last part of its name there, for messages.
fn put(room: &Room, number: usize, mut opened: url::Opened) -> anyhow::Result<PathBuf> {
    let last = opened.name.rsplit('/').next().unwrap_or_default();
    let shown: String = last
        .chars()
        .filter(|letter| letter.is_ascii_alphanumeric() || matches!(letter, '.' | '-' | '_'))
        .take(100)
        .collect();
    let path = room.directory.join(format!("{number}-{shown}"));
    let failed = || format!("{} is not fetched", opened.name);
    let mut file = File::create_new(&path).with_context(failed)?;
    std::io::copy(&mut opened.source, &mut file).with_context(failed)?;
    Ok(path)
}

impl Input {
    /// Looks at what is named; files of a cluster are read for that.
    fn read(verb: &Import, named: &[PathBuf], instance: &Instance) -> anyhow::Result<Self> {
        if instance.layout.mode == Mode::Cluster {
            let mut files = Vec::new();
            for path in named {
                match folder::kept_in(path)? {
                    folder::Kept::Snapshot(file) => files.push(file),
                    folder::Kept::Commands(_) => anyhow::bail!(
                        "{} holds commands: for a cluster an RDB of each shard is wanted (BGREWRITEAOF makes one of it)",
                        path.display()
                    ),
                }
            }
            let parts = cluster::assign(
                &files,
                verb.nodes.as_deref(),
                verb.accept_empty_slots,
                instance.layout.shards,
            )?;
            return Ok(Self::Cluster(parts));
        }
        let [path] = named else {
            anyhow::bail!("{} is no cluster: one file is wanted", instance.name);
        };
        if path.as_os_str() == "-" {
            return Ok(Self::Snapshot(
                Box::new(std::io::stdin()),
                "standard input".to_owned(),
                0,
            ));
        }
        Ok(match folder::kept_in(path)? {
            folder::Kept::Commands(files) => Self::Commands(files),
            folder::Kept::Snapshot(path) => {
                let file = File::open(&path).with_context(|| format!("cannot open {}", path.display()))?;
                let bytes = file.metadata()?.len();
                Self::Snapshot(Box::new(file), path.display().to_string(), bytes)
            }
        })
    }

    /// The size of its files, 0 where that is not known.
    fn bytes(&self) -> u64 {
        let size = |path: &PathBuf| path.metadata().map_or(0, |about| about.len());
        match self {
            Self::Snapshot(_, _, bytes) => *bytes,
            Self::Cluster(parts) => parts.iter().map(|part| size(&part.path)).sum(),
            Self::Commands(files) => files.base.iter().chain(&files.increments).map(size).sum(),
        }
    }

    /// Its files, for people.
    fn name(&self) -> String {
        let names = |paths: &mut dyn Iterator<Item = &PathBuf>| {
            let names: Vec<String> = paths.map(|path| path.display().to_string()).collect();
            names.join(", ")
        };
        match self {
            Self::Snapshot(_, name, _) => name.clone(),
            Self::Cluster(parts) => names(&mut parts.iter().map(|part| &part.path)),
            Self::Commands(files) => names(&mut files.base.iter().chain(&files.increments)),
        }
    }
}

/// Lets an engine replay the files, and takes its snapshot as the file.
fn replayed(
    app: &App,
    verb: &Import,
    files: &Files,
    plan: &ImportPlan,
    store: &engine::Store,
    control: &Control,
) -> Result<engine::BackupReport, Error> {
    let mut bytes = 0;
    for path in files.base.iter().chain(&files.increments) {
        let seen = engine::aof::look_through(path, &app.config.spool_dir(), verb.accept_functions)?;
        if seen.is_cut {
            eprintln!(
                "cachekeep: {} ends in the middle of a command, which is left out, as an engine does",
                path.display()
            );
        }
        bytes += path.metadata().map_or(0, |about| about.len());
    }
    let free = crate::restore::command::available_memory();
    if free < bytes {
        let context = format!(
            "an engine needs {} MB at least, {} MB are free",
            bytes >> 20,
            free >> 20
        );
        return Err(Error::new(Kind::Memory, "load append-only files", context));
    }
    let room = Room::take(app)?;
    // Older ones have one such file alone.
    let fitting = app.config.engines.iter().find(|program| !program.is_before_7());
    let program = match fitting {
        Some(program) => program.clone(),
        None => Program::ask(&process::find_binary()?)?,
    };
    let spec = throw_away_engine(app, &room, program, Persistence::Aof)?;
    let mut source = load::run(&spec, files, control)?;
    engine::backup::import(plan, &mut source, store, &app.vault.signer, control)
}

fn import(
    app: &App,
    instance: &Instance,
    verb: &Import,
    id: &BackupId,
    fetched: Fetched,
) -> anyhow::Result<engine::BackupReport> {
    let Fetched { input, name, _room } = fetched;
    let name = name.unwrap_or_else(|| input.name());
    let bytes = input.bytes();
    let begun = app.catalog.write(|tx| {
        job::begin(
            tx,
            &app.host,
            id,
            &instance.project_id,
            &instance.id,
            verb.remark.as_deref(),
            bytes,
            Moment::now(),
        )
    });
    let begun = begun.map_err(|refusal| match refusal {
        Refusal::Quota(exceeded) => anyhow::anyhow!("{exceeded}"),
        Refusal::Catalog(error) => error.into(),
        other => anyhow::anyhow!("{other:?}"),
    })?;
    let control = Control::new(None);
    let make = |mut plan: ImportPlan, store: &engine::Store| match input {
        Input::Snapshot(mut source, _, bytes) => {
            plan.expected_bytes = bytes;
            engine::backup::import(&plan, &mut *source, store, &app.vault.signer, &control)
        }
        Input::Cluster(parts) => {
            let open = |part: cluster::Part| {
                let file = File::open(&part.path)
                    .map_err(|e| Error::io(Kind::Io, "import file", part.path.display().to_string(), e))?;
                Ok(ShardFile {
                    source: Box::new(file),
                    slots: part.slots,
                    port: part.port,
                })
            };
            let files = parts.into_iter().map(open).collect::<Result<Vec<_>, Error>>()?;
            engine::backup::import_shards(&plan, files, store, &app.vault.signer, &control)
        }
        Input::Commands(files) => replayed(app, verb, &files, &plan, store, &control),
    };
    present(app, || {
        job::run(app, &begun, &name, verb.accept_functions, &control, make)
    })
    .map_err(|error| anyhow::anyhow!("{name} is not taken: {}", engine::chain(&error)))
}
