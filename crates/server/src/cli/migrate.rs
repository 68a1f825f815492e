//! `cachekeep migrate`: a catalogue of an older version becomes one of the present version.

use clap::Args;
use serde_json::json;

use super::Global;
use super::admin::{administer, print_one};
use crate::catalog::version;
use crate::serve;

#[derive(Args)]
#[command(
    after_help = "All or nothing of it is done. What it is done to in a file is copied first, to catalog.version-N.sqlite beside it: to go back, \
    stop the service, put that in place of catalog.sqlite, and remove catalog.sqlite-wal and catalog.sqlite-shm. For a catalogue in \
    PostgreSQL make a dump of the database first (pg_dump): that is the way back. What has happened since is lost then, as with any old \
    copy: once the service has run on the new catalogue, the old program starts after `cachekeep catalog keep-older --yes` only.\n\n\
    The service must not run on a catalogue in a file. Nodes that share one may run on: those of the version before go on with what \
    they know until they are ended; started again they have to be of the new version.\n\n\
    Examples:\n  cachekeep migrate --dry-run\n  cachekeep migrate --data-dir /srv/cachekeep"
)]
pub(crate) struct Migrate {
    /// The PostgreSQL that holds it, where this data directory does not know it
    #[arg(long, env = "CACHEKEEP_CATALOG", value_name = "URL", hide_env_values = true)]
    catalog: Option<String>,
    /// Say what would be done, and do nothing
    #[arg(long)]
    dry_run: bool,
}

/// Runs the verb.
///
/// # Errors
/// No catalogue, one that is newer or of others, one in a file that is in use. It is as it was then.
pub(crate) fn run(global: &Global, verb: &Migrate) -> anyhow::Result<()> {
    let config = administer(global)?;
    let database = verb.catalog.clone().or(config.database.clone());
    let (done, _lock) = match &database {
        Some(url) => (version::migrate_database(url, verb.dry_run)?, None),
        None => {
            anyhow::ensure!(
                config.catalog_file().exists(),
                "{} has no catalogue: name the data directory with --data-dir",
                config.data_dir.display()
            );
            let lock = match verb.dry_run {
                true => None,
                false => Some(serve::lock(&config.data_dir)?),
            };
            (version::migrate_file(&config.catalog_file(), verb.dry_run)?, lock)
        }
    };
    let is_old = done.from != done.to;
    print_one(
        global,
        &json!({"version_before": done.from, "version": if verb.dry_run { done.from } else { done.to }, "version_of_program": done.to,
                "copy_of_before": done.copy, "is_dry_run": verb.dry_run}),
    );
    if !global.quiet {
        let told = match (is_old, verb.dry_run, &done.copy) {
            (false, ..) => "there is nothing to do".to_owned(),
            (true, true, Some(copy)) => format!(
                "nothing was done. The catalogue would be brought from version {} to {}, after a copy of it to {}",
                done.from,
                done.to,
                copy.display()
            ),
            (true, true, None) => format!(
                "nothing was done. The database would be brought from version {} to {}: make a dump of it first (pg_dump), which is the \
                 only way back",
                done.from, done.to
            ),
            (true, false, Some(copy)) => format!(
                "done. To go back, stop the service, remove {file}-wal and {file}-shm, and put {} in place of {file}; what has happened \
                 since is lost then (`cachekeep migrate --help`)",
                copy.display(),
                file = config.catalog_file().display()
            ),
            (true, false, None) => {
                "done. Nodes of the version before go on until they are ended; start new ones".to_owned()
            }
        };
        eprintln!("cachekeep: {told}");
    }
    Ok(())
}
