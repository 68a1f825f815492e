//! Verbs on the catalogue: how far its mirror is, and making it anew from a store.

use std::path::{Path, PathBuf};

use clap::{Args, Subcommand};
use engine::store::{Patience, Store};
use serde_json::{Value, json};

use super::admin::{administer, open, print, print_one};
use super::alone::told;
use super::catalog_copies::{self as copies, RestoreCopy};
use super::place::{Place, Reach};
use super::{Global, Output};
use crate::config::Config;
use crate::identity::record as identity;
use crate::ids::Moment;
use crate::journal::guard::{self, Behind};
use crate::journal::rebuild::{self, Source, Wish};
use crate::journal::record as journal;
use crate::serve::{self, Begin};
use crate::storage::{LOCAL, record as storages};

/// Verbs on the catalogue.
#[derive(Subcommand)]
pub(crate) enum CatalogVerb {
    /// Say how far the mirror of the catalogue in the stores is
    #[command(after_help = "Example:\n  cachekeep catalog status")]
    Status,
    /// Make a lost catalog.sqlite anew from a store and the data directory's keys/: projects, instances, backups, the
    /// history of restores. No object of the store is changed
    #[command(
        after_help = "Needed are <data-dir>/keys/ (master.key and signing.key) and the store. Backups count only where the \
        manifest is signed by signing.key, has the recorded digest, and every object is there with its size. Instances \
        whose engine or data is still on this machine go on; the others come up empty, to be restored into. Users and \
        access keys are not mirrored: those of admin.json work again where that file is still there, others are made anew.\n\n\
        Examples:\n  \
        cachekeep catalog rebuild --from-store local\n  \
        cachekeep catalog rebuild --from-store s3://my-backups/cachekeep --endpoint https://s3.eu-central-1.amazonaws.com \\\n    \
            --region eu-central-1 --access-key AKIA... --secret-key-file secret.txt"
    )]
    Rebuild(Rebuild),
    /// Copy the catalogue into the store now, all of it, as is done every day by itself where it is a file
    #[command(
        after_help = "The copy is encrypted to a key that only keys/master.key opens, and signed. It lies in the store where backups go of \
        projects that have no choice of their own (`storage default`); the newest 7 are kept. A catalogue in PostgreSQL is copied by \
        PostgreSQL's own tools.\n\n\
        Example:\n  cachekeep catalog copy"
    )]
    Copy,
    /// List the copies of the catalogue in that store, newest first
    #[command(after_help = "Example:\n  cachekeep catalog copies")]
    Copies,
    /// Bring a lost catalog.sqlite back from its newest copy, with users, access keys, hooks, schedules and the audit log
    #[command(
        after_help = "Needed are <data-dir>/keys/ (master.key and signing.key) and the store; no service may run. The copy does not know \
        what has happened since it was made. Where the store's mirror does, `serve` refuses it and says so: `catalog keep-older --yes` \
        goes on with it and loses the records of that time; `catalog rebuild`, in the place of this file, has them, and none of what \
        is listed above.\n\n\
        Examples:\n  \
        cachekeep catalog restore-copy\n  \
        cachekeep catalog restore-copy --from-store s3://my-backups/cachekeep --endpoint https://s3.eu-central-1.amazonaws.com \\\n    \
            --region eu-central-1 --access-key AKIA... --secret-key-file secret.txt"
    )]
    RestoreCopy(RestoreCopy),
    /// Go on with a catalogue that is older than its mirror: `serve` refuses it, for what happened since its copy was made is lost
    #[command(
        after_help = "A catalogue that was put back from an old copy does not know the instances, backups and restores of the time since. \
        Their records are lost from it for good; engines that only they knew are stopped, with their data, at the next start; backups \
        that only they knew stay in the store, and nobody removes them. `catalog rebuild` loses nothing of that.\n\n\
        Example:\n  cachekeep catalog keep-older --yes"
    )]
    KeepOlder {
        /// Yes, what happened since is to be lost
        #[arg(long)]
        yes: bool,
    },
}

#[derive(Args)]
pub(crate) struct Rebuild {
    /// `local` for <data-dir>/store, s3://BUCKET/PREFIX or obs://BUCKET/PREFIX
    #[arg(long, value_name = "STORE")]
    from_store: String,
    /// The PostgreSQL to make it in, where it was in one and catalog.url is lost or names another: an empty database or schema
    #[arg(long, env = "CACHEKEEP_CATALOG", value_name = "URL", hide_env_values = true)]
    catalog: Option<String>,
    #[command(flatten)]
    reach: Reach,
    /// Read every stored byte and compare its digest, not only names and sizes
    #[arg(long)]
    prove_all: bool,
    /// Go on where a store that some backups lie in does not answer: these backups are not taken
    #[arg(long)]
    skip_unreachable: bool,
}

/// `cachekeep catalog ...`
///
/// # Errors
/// No data directory; what cannot be rebuilt, and why.
pub(crate) fn catalog(global: &Global, verb: &CatalogVerb) -> anyhow::Result<()> {
    match verb {
        CatalogVerb::Status => status(global),
        CatalogVerb::Rebuild(verb) => make_anew(global, verb),
        CatalogVerb::Copy => copies::make(global),
        CatalogVerb::Copies => copies::list(global),
        CatalogVerb::RestoreCopy(verb) => copies::restore(global, verb),
        CatalogVerb::KeepOlder { yes } => keep_older(global, *yes),
    }
}

fn keep_older(global: &Global, yes: bool) -> anyhow::Result<()> {
    let config = administer(global)?;
    let _lock = serve::lock(&config.data_dir)?;
    let app = open(global)?;
    let told = |one: &Behind| json!({"project_id": one.project.as_str(), "storage": one.storage, "known_entry": one.known, "newest_entry": one.newest});
    if !yes {
        let behind: Vec<String> = guard::behind(&app)?
            .iter()
            .map(|one| {
                format!(
                    "{} in {}: {} of {}",
                    one.project, one.storage, one.known, one.newest
                )
            })
            .collect();
        anyhow::ensure!(
            behind.is_empty(),
            "this would lose what the stores know beyond the catalogue ({}): say --yes if that is meant",
            behind.join("; ")
        );
    }
    let rows: Vec<Value> = guard::keep_older(&app)?.iter().map(told).collect();
    print(
        global,
        &["project_id", "storage", "known_entry", "newest_entry"],
        &rows,
    );
    Ok(())
}

fn status(global: &Global) -> anyhow::Result<()> {
    let app = open(global)?;
    let rows = app.catalog.read(|tx| {
        let stores = storages::all(tx)?;
        let mut rows = Vec::new();
        for project in identity::projects(tx)? {
            let journal = journal::journal(tx, &project.id)?;
            let id = journal.as_ref().and_then(|journal| journal.storage_id.as_ref());
            let store = stores.iter().find(|row| Some(&row.id) == id);
            rows.push(json!({
                "project": project.name, "project_id": project.id.as_str(),
                "storage": store.map_or(LOCAL, |row| &row.name),
                "newest_entry": journal.and_then(|journal| journal.written),
                "rows_not_mirrored": journal::unsent(tx, &project.id)?,
            }));
        }
        Ok::<_, crate::catalog::Error>(rows)
    })?;
    print(
        global,
        &["project", "storage", "newest_entry", "rows_not_mirrored"],
        &rows,
    );
    Ok(())
}

fn make_anew(global: &Global, verb: &Rebuild) -> anyhow::Result<()> {
    let mut config = administer(global)?;
    config.database = verb.catalog.clone().or(config.database);
    let _lock = serve::lock(&config.data_dir)?;
    let catalog = config.catalog_file();
    check_is_lost(&catalog, "a rebuild")?;
    // Under its own name only when it is whole.
    let beside = catalog.with_extension("rebuilt");
    remove(&beside)?;
    let report = std::thread::scope(|scope| {
        // Its connections close with the thread.
        let made = scope.spawn(|| -> anyhow::Result<_> {
            let app = serve::open_with(config.clone(), &beside, Begin::Rebuild)?;
            let has_projects = !app.catalog.read(identity::projects)?.is_empty();
            anyhow::ensure!(
                !has_projects,
                "the catalogue's database is not empty: a rebuild takes the place of a lost one only. Name an empty database or \
                 schema with --catalog"
            );
            let source = source(&app.config, &verb.from_store, &verb.reach)?;
            let wish = Wish {
                prove_all: verb.prove_all,
                skip_unreachable: verb.skip_unreachable,
            };
            let report = rebuild::rebuild(&app, &source, wish, Moment::now()).map_err(|error| match config.database {
                Some(_) => error.context("the database may hold a part now: empty it before the next try"),
                None => error,
            })?;
            app.catalog.gather()?;
            Ok(report)
        });
        made.join()
            .unwrap_or_else(|_| Err(anyhow::anyhow!("the rebuild panicked: this is a bug")))
    });
    let report = match report {
        Ok(report) => report,
        Err(error) => {
            remove(&beside)?;
            return Err(error);
        }
    };
    if config.database.is_none() {
        std::fs::rename(&beside, &catalog)?;
        remove(&beside)?;
    }
    std::fs::File::open(&config.data_dir)?.sync_all()?;
    let report = serde_json::to_value(&report)?;
    match global.output {
        Output::Json => println!("{report:#}"),
        Output::Table => print_report(global, &report),
    }
    if !global.quiet {
        eprintln!(
            "cachekeep: users and access keys are not mirrored; {}",
            match report["admin_credentials"] == true {
                true => "those of admin.json work again, make the others anew",
                false => "`cachekeep serve` writes an admin.json with new ones, make the others anew",
            }
        );
    }
    Ok(())
}

/// Refuses what would take the place of a catalogue that is there, or mix with what is left of it.
///
/// # Errors
/// Which file is there, and what to do.
pub(super) fn check_is_lost(catalog: &Path, what: &str) -> anyhow::Result<()> {
    anyhow::ensure!(
        !catalog.exists(),
        "{} is there: {what} takes the place of a lost one only. Move it away if you mean it",
        catalog.display()
    );
    for ending in ["-wal", "-shm"] {
        let mut left = catalog.as_os_str().to_owned();
        left.push(ending);
        let left = PathBuf::from(left);
        anyhow::ensure!(
            !left.exists(),
            "{} is there: it holds the last changes of the lost catalogue, and would be applied to the new one. Put \
             {} back beside it if you have it, else move it away",
            left.display(),
            catalog.display()
        );
    }
    Ok(())
}

/// What `--from-store` names.
///
/// # Errors
/// It is no store, or is described wrongly.
pub(super) fn source(config: &Config, named: &str, reach: &Reach) -> anyhow::Result<Source> {
    if named == LOCAL {
        return Ok(Source {
            store: Store::open(config.store_dir()).map_err(told)?,
            spec: None,
        });
    }
    match Place::read(named, reach)? {
        Place::Folder(folder) => anyhow::bail!(
            "--from-store takes `{LOCAL}`, s3:// or obs://: copy {} to {} and say `{LOCAL}`",
            folder.display(),
            config.store_dir().display()
        ),
        Place::Bucket(spec) => Ok(Source {
            store: Store::open_remote(&spec, Patience::JOB).map_err(told)?,
            spec: Some(spec),
        }),
    }
}

/// Lists as lines of their own.
fn print_report(global: &Global, report: &Value) {
    let mut short = serde_json::Map::new();
    for (name, value) in report.as_object().into_iter().flatten() {
        short.insert(
            name.clone(),
            value
                .as_array()
                .map_or_else(|| value.clone(), |list| json!(list.len())),
        );
    }
    print_one(global, &Value::Object(short));
    for name in [
        "journal_lost",
        "rows_not_fitting",
        "restores_of_unknown_end",
        "backups_from_manifest_only",
    ] {
        for item in report[name].as_array().into_iter().flatten() {
            println!("{name}: {}", super::target::plain(item));
        }
    }
    for item in report["backups_not_taken"].as_array().into_iter().flatten() {
        let of = |field: &str| super::target::plain(&item[field]);
        println!("not taken: {} {}: {}", of("backup_id"), of("prefix"), of("why"));
    }
}

/// Removes a catalogue that was not finished.
///
/// # Errors
/// It is there and does not go.
pub(super) fn remove(file: &Path) -> anyhow::Result<()> {
    for ending in ["", "-wal", "-shm"] {
        let mut name = file.as_os_str().to_owned();
        name.push(ending);
        match std::fs::remove_file(&name) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(error.into()),
            _ => {}
        }
    }
    Ok(())
}
