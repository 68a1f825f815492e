//! `cachekeep backup verify`: how far a backup can be trusted, found out now and written on its record.
//!
//! Works on the data directory, beside the service: it is no operation on the instance, and waits for none. The steps are
//! those of a verify that a caller of the API asks for (`backup/proof`).

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Context;
use clap::{Args, ValueEnum};
use engine::Control;
use indicatif::HumanBytes;
use serde_json::json;

use super::Global;
use super::admin::{find_instance, open, print_one};
use crate::app::App;
use crate::backup::proof::job::look;
use crate::backup::proof_record::ProofLevel;
use crate::backup::record::{self as backups, Backup};
use crate::ids::{BackupId, Moment};
use crate::instance::Instance;
use crate::jobs::worker::with_progress;

/// Most backups that a name or `latest` is looked up among.
const LOOKED_THROUGH_MAX: u64 = 100_000;

#[derive(Args)]
pub(crate) struct Verify {
    /// Name or id of the instance
    instance: String,
    /// Id or name of the backup, or latest
    backup: String,
    /// stored: every stored byte is the one that was stored; parsed: they decode to the valid data of the capture; proven:
    /// a throw-away engine loads it and holds exactly that
    #[arg(long, value_enum, default_value_t = Level::Parsed)]
    level: Level,
    /// For proven: another engine's program, such as that of a newer version; what it does not load is told, and not held
    /// against the backup
    #[arg(long, value_name = "PROGRAM")]
    engine: Option<PathBuf>,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Level {
    Stored,
    Parsed,
    Proven,
}

impl Level {
    fn of_record(self) -> ProofLevel {
        match self {
            Level::Stored => ProofLevel::Stored,
            Level::Parsed => ProofLevel::Parsed,
            Level::Proven => ProofLevel::Proven,
        }
    }
}

/// Runs the verb. Exit code 1 where the backup does not hold what it should.
///
/// # Errors
/// No data directory, no such backup, nothing that could be verified, or not now.
pub(crate) fn run(global: &Global, verb: &Verify) -> anyhow::Result<ExitCode> {
    let app = open(global)?;
    let instance = find_instance(&app, &verb.instance)?;
    let backup = find(&app, &instance, &verb.backup)?;
    anyhow::ensure!(
        backup.is_kept() && backup.generation_id.is_none(),
        "{} has no archive that could be verified",
        backup.name
    );
    let control = Control::new(None);
    let tell = |seen: &engine::Progress| {
        if !global.quiet {
            eprintln!("{}: {}", seen.phase, HumanBytes(seen.bytes_done));
        }
    };
    let level = verb.level.of_record();
    let looked = with_progress(&control, tell, || {
        look(&app, &backup, level, verb.engine.as_deref(), &control)
    });
    let seen = looked.map_err(|error| anyhow::anyhow!("not verified: {}", engine::chain(&error)))?;
    if let Some(why) = &seen.promotion {
        eprintln!(
            "cachekeep: {} is damaged where it was made ({why}); its copy holds and takes that place. Make another copy",
            backup.name
        );
    }
    let proof = seen.proof(level, Moment::now());
    app.catalog.write(|tx| seen.keep(tx, &backup, level, proof.at))?;
    print_one(
        global,
        &json!({"backup_id": backup.id.as_str(), "backup_name": backup.name, "level": proof.level.word(),
                "holds": proof.failure.is_none(), "verified_at": proof.at.iso(), "engine": proof.engine,
                "load_ms": proof.load_ms, "failure": proof.failure, "shards": seen.shards, "skew_ms": seen.skew_ms}),
    );
    let Some(failure) = proof.failure else {
        return Ok(ExitCode::SUCCESS);
    };
    eprintln!(
        "cachekeep: {} is damaged ({failure}); nothing is removed, and it is not restorable until a verify of this level finds \
         it whole. Make another: cachekeep backup create {}",
        backup.name, verb.instance
    );
    Ok(ExitCode::FAILURE)
}

/// The backup of that id or name, or the newest one that is kept.
///
/// # Errors
/// There is none.
pub(super) fn find(app: &App, instance: &Instance, named: &str) -> anyhow::Result<Backup> {
    let rows = app.catalog.read(|tx| {
        let owned = crate::instance::record::find_with_deleted(tx, &instance.project_id, &instance.id)?;
        match (owned, BackupId::parse(named)) {
            (None, _) => Ok((0, Vec::new())),
            (Some(owned), Some(id)) => {
                Ok::<_, crate::catalog::Error>((1, backups::find(tx, &owned, &id)?.into_iter().collect()))
            }
            (Some(owned), None) => backups::list(tx, &owned, None, None, 0, LOOKED_THROUGH_MAX),
        }
    })?;
    let found = rows.1.into_iter().find(|row| match named {
        "latest" => row.is_kept() && row.generation_id.is_none(),
        _ => row.name == named || row.id.as_str() == named,
    });
    found.with_context(|| {
        format!(
            "there is no backup {named}: `cachekeep backup list {}` shows all",
            instance.name
        )
    })
}
