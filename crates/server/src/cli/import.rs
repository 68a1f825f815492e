//! `cachekeep import`: an RDB file that something else wrote becomes a backup of an instance.
//!
//! Works on the data directory, whether the service runs or not: the file is where the operator is, and is read once.
//! The record is there from the start, as of any backup. Who imports holds a lock for it, by which the service knows
//! that the record's work goes on; where nobody holds it, the record has failed (see `reconcile`).

use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

use anyhow::Context;
use clap::Args;
use engine::Control;
use engine::backup::{ImportPlan, Labels};
use engine::keys::Recipient;
use serde_json::json;

use super::Global;
use super::admin::{find_instance, open, print_one};
use crate::app::App;
use crate::backup::record::{self as backups, Finished};
use crate::identity::record as identity;
use crate::ids::{BackupId, Moment};
use crate::instance::Instance;
use crate::instance::layout::Mode;
use crate::jobs::worker::{failure_code, with_progress};
use crate::storage::{self, record as storages};

/// Take an RDB file of another server as a backup of an instance: validated to its last byte, stored as any other
/// backup, restorable as any other. Works on the data directory, while the service runs or not
#[derive(Args)]
#[command(
    after_help = "Taken are files of Redis up to RDB version 13 and of Valkey; whether the engine here loads them the restore \
    finds out before anything is switched. A folder is that of a server: its dump.rdb, or its appendonlydir where no \
    command follows the base. Other AOF files are not taken: start a redis-server on them and use `cachekeep backup`.\n\n\
    Examples:\n  \
    cachekeep import cache1 dump.rdb --remark 'from the old server'\n  \
    cachekeep import cache1 /var/lib/redis\n  \
    curl -s https://example.com/dump.rdb | cachekeep import cache1 -"
)]
pub(crate) struct Import {
    /// Name or id of the instance (the id, where it is deleted)
    instance: String,
    /// The file, a server's folder, or - for standard input
    file: PathBuf,
    /// Up to 128 characters, shown with the backup and its restores
    #[arg(long)]
    remark: Option<String>,
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
    anyhow::ensure!(
        instance.layout.mode == Mode::Single,
        "{} is a cluster: backups of clusters are not offered yet",
        instance.name
    );
    let (mut source, name, bytes) = source(&verb.file)?;
    let id = BackupId::random();
    let lock_file = app.config.import_lock(&id);
    // Before the record, which without it would be taken for one whose import has died.
    let lock = File::create(&lock_file).with_context(|| format!("cannot write {}", lock_file.display()))?;
    lock.try_lock()
        .with_context(|| format!("cannot lock {}", lock_file.display()))?;
    let imported = import(&app, &instance, verb, &id, (&mut *source, &name, bytes));
    let _the_reconciler_removes_it_else = std::fs::remove_file(&lock_file);
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

/// What is read, its name, and its size (0 where that is not known).
type Source = (Box<dyn Read>, String, u64);

fn source(path: &Path) -> anyhow::Result<Source> {
    if path.as_os_str() == "-" {
        return Ok((Box::new(std::io::stdin()), "standard input".to_owned(), 0));
    }
    let path = match path.is_dir() {
        true => dump_in(path)?,
        false => path.to_owned(),
    };
    let file = File::open(&path).with_context(|| format!("cannot open {}", path.display()))?;
    let bytes = file.metadata()?.len();
    Ok((Box::new(file), path.display().to_string(), bytes))
}

/// The RDB file that holds everything of a server's folder.
fn dump_in(folder: &Path) -> anyhow::Result<PathBuf> {
    let parts = match folder.join("appendonlydir") {
        below if below.is_dir() => below,
        _ => folder.to_owned(),
    };
    let mut manifests = Vec::new();
    for entry in std::fs::read_dir(&parts)? {
        let path = entry?.path();
        // An engine that died while it wrote one left that as temp-.
        let is_whole = !path
            .file_name()
            .is_some_and(|name| name.to_string_lossy().starts_with("temp-"));
        if is_whole && path.extension().is_some_and(|ending| ending == "manifest") {
            manifests.push(path);
        }
    }
    anyhow::ensure!(
        manifests.len() <= 1,
        "{} holds several manifests of append-only files: which one counts is not known",
        parts.display()
    );
    let Some(manifest) = manifests.pop() else {
        let dump = folder.join("dump.rdb");
        anyhow::ensure!(
            dump.is_file(),
            "{} holds neither a dump.rdb nor an appendonlydir",
            folder.display()
        );
        return Ok(dump);
    };
    let text = std::fs::read_to_string(&manifest)?;
    let mut base = None;
    for line in text.lines() {
        let words: Vec<&str> = line.split_whitespace().collect();
        let of = |name: &str| {
            let at = words.iter().position(|word| *word == name)?;
            words.get(at + 1).copied()
        };
        let (Some(file), Some(kind)) = (of("file"), of("type")) else {
            continue;
        };
        // A name with a path would lead out of the folder.
        let name = Path::new(file).file_name().unwrap_or_default();
        match kind {
            "b" => base = Some(parts.join(name)),
            "i" => {
                let increment = parts.join(name);
                let about = std::fs::metadata(&increment)
                    .with_context(|| format!("the manifest names {}", increment.display()))?;
                let bytes = about.len();
                anyhow::ensure!(
                    bytes == 0,
                    "{file} holds commands, which are not taken: start a redis-server on {} and use `cachekeep backup`",
                    folder.display()
                );
            }
            _ => {}
        }
    }
    base.filter(|path| path.extension().is_some_and(|ending| ending == "rdb"))
        .with_context(|| {
            format!(
                "{} names no base in RDB form: start a redis-server on {} and use `cachekeep backup`",
                manifest.display(),
                folder.display()
            )
        })
}

fn import(
    app: &App,
    instance: &Instance,
    verb: &Import,
    id: &BackupId,
    (source, name, expected_bytes): (&mut dyn Read, &str, u64),
) -> anyhow::Result<engine::BackupReport> {
    let prefix = format!("{}/{}/{id}/1", instance.project_id, instance.id);
    let (storage, recipient, created_at) = app.catalog.write(|tx| {
        let storage = storages::default_of(tx, &instance.project_id)?;
        let recipient = identity::project_recipient(tx, &instance.project_id)?;
        backups::insert_import(
            tx,
            id,
            &instance.project_id,
            &instance.id,
            verb.remark.as_deref(),
            Moment::now(),
        )?;
        backups::begin(tx, id, &prefix, storage.as_ref(), Moment::now())?;
        let created_at = backups::load(tx, id)?.map_or(Moment::now(), |row| row.created_at);
        Ok::<_, crate::catalog::Error>((storage, recipient, created_at))
    })?;
    let control = Control::new(None);
    let report = |seen: &engine::Progress| {
        let share = (seen.bytes_done.min(seen.bytes_total) * 9500)
            .checked_div(seen.bytes_total)
            .unwrap_or(0);
        let share = i64::try_from(share).unwrap_or(0);
        let written = app
            .catalog
            .write(|tx| backups::progress(tx, id, share, seen, Moment::now()));
        if let Err(error) = written {
            tracing::warn!(error = engine::chain(&error), "the progress is not written");
        }
    };
    let imported = with_progress(&control, report, || {
        let recipient = recipient.unwrap_or_default();
        let plan = ImportPlan {
            prefix: prefix.clone(),
            labels: Labels {
                project: instance.project_id.to_string(),
                instance: instance.id.to_string(),
                backup: id.to_string(),
                attempt: 1,
                created_at_ms: created_at.0,
            },
            recipient: Recipient::parse(&recipient)?,
            spill_dir: app.config.spool_dir(),
            source: format!("import of {name}"),
            expected_bytes,
            accept_functions: verb.accept_functions,
        };
        let store = storage::open(app, storage.as_ref())?;
        engine::backup::import(&plan, source, &store, &app.vault.signer, &control)
    });
    match imported {
        Ok(made) => {
            let finished = Finished {
                size_bytes: made.stored_bytes,
                plain_bytes: made.plain_bytes,
                keys: made.keys,
                used_memory_bytes: made.used_memory_bytes,
                manifest_blake3: made.manifest_blake3.clone(),
            };
            let kept = app
                .catalog
                .write(|tx| backups::succeed(tx, id, &finished, Moment::now()))?;
            anyhow::ensure!(
                kept,
                "the record has ended otherwise meanwhile: import the file again"
            );
            Ok(made)
        }
        Err(error) => {
            let code = failure_code(&error, false, false);
            let why = engine::chain(&error);
            app.catalog
                .write(|tx| backups::fail(tx, id, code, &why, Moment::now()))?;
            let is_aof = name.ends_with(".aof") && error.kind == engine::Kind::Malformed;
            anyhow::bail!(
                "{name} is not taken: {why}{}",
                if is_aof {
                    ". Of an AOF only one that is an RDB and nothing more is taken: start a redis-server on it and use `cachekeep \
                     backup`"
                } else {
                    ""
                }
            )
        }
    }
}
