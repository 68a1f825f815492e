//! `cachekeep catalog copy`, `copies` and `restore-copy`: the catalogue as a whole, into the store and back.

use anyhow::Context as _;
use clap::Args;
use serde_json::{Value, json};

use super::Global;
use super::admin::{administer, open, print, print_one};
use super::alone::told;
use super::catalog::{check_is_lost, remove, source};
use super::place::Reach;
use crate::app::App;
use crate::catalog::{SCHEMA_VERSION, version};
use crate::ids::Moment;
use crate::journal::copies;
use crate::serve;
use crate::storage::LOCAL;

#[derive(Args)]
pub(crate) struct RestoreCopy {
    /// `local` for <data-dir>/store, s3://BUCKET/PREFIX or obs://BUCKET/PREFIX
    #[arg(long, value_name = "STORE", default_value = LOCAL)]
    from_store: String,
    #[command(flatten)]
    reach: Reach,
    /// An older one, by its name
    #[arg(long, value_name = "NAME")]
    copy: Option<String>,
}

/// `cachekeep catalog copy`
///
/// # Errors
/// The catalogue is in PostgreSQL; no room; the store.
pub(super) fn make(global: &Global) -> anyhow::Result<()> {
    let app = open(global)?;
    check_is_file(&app)?;
    let made = copies::make(&app, Moment::now()).map_err(told)?;
    print_one(
        global,
        &json!({"copy": made.copy.name, "made_at": made.copy.at.iso(), "storage": made.storage, "bytes": made.bytes,
                "stored_bytes": made.stored_bytes}),
    );
    Ok(())
}

/// `cachekeep catalog copies`
///
/// # Errors
/// The catalogue is in PostgreSQL; the store.
pub(super) fn list(global: &Global) -> anyhow::Result<()> {
    let app = open(global)?;
    check_is_file(&app)?;
    let (storage, store) = copies::place(&app).map_err(told)?;
    let key = app.vault.signer.verifying_key();
    let found = copies::list(&store, &key, Moment::now()).map_err(told)?;
    let rows: Vec<Value> = found
        .iter()
        .map(|copy| json!({"copy": copy.name, "made_at": copy.at.iso(), "storage": storage}))
        .collect();
    print(global, &["copy", "made_at", "storage"], &rows);
    Ok(())
}

fn check_is_file(app: &App) -> anyhow::Result<()> {
    anyhow::ensure!(
        !app.catalog.is_shared(),
        "the catalogue is in PostgreSQL: copy the database by PostgreSQL's own tools"
    );
    Ok(())
}

/// `cachekeep catalog restore-copy`
///
/// # Errors
/// A catalogue is there, or a service runs; keys are missing; there is no such copy, or it is not whole. Nothing is left behind then.
pub(super) fn restore(global: &Global, verb: &RestoreCopy) -> anyhow::Result<()> {
    let config = administer(global)?;
    anyhow::ensure!(
        config.database.is_none(),
        "the catalogue of {} is in PostgreSQL: bring the database back by PostgreSQL's own tools",
        config.data_dir.display()
    );
    let (master, signer) = serve::load_keys(&config.keys_dir(), false)?;
    let _lock = serve::lock(&config.data_dir)?;
    let catalog = config.catalog_file();
    check_is_lost(&catalog, "a copy")?;
    let store = source(&config, &verb.from_store, &verb.reach)?.store;
    let key = signer.verifying_key();
    let all = copies::list(&store, &key, Moment::now()).map_err(told)?;
    let wanted = match &verb.copy {
        Some(name) => all.iter().find(|copy| copy.name == *name),
        None => all.first(),
    };
    let copy = wanted.with_context(|| {
        let names: Vec<&str> = all.iter().map(|copy| copy.name.as_str()).collect();
        match names.is_empty() {
            true => format!(
                "{} has no copy of a catalogue that these keys signed",
                verb.from_store
            ),
            false => format!(
                "there is no such copy in {}: there are {}",
                verb.from_store,
                names.join(", ")
            ),
        }
    })?;
    // Under its own name only when it is whole.
    let beside = catalog.with_extension("restored");
    remove(&beside)?;
    let fetched = copies::fetch(&store, (&master, &key), copy, &beside)
        .map_err(told)
        .and_then(|bytes| Ok((bytes, version::check_file(&beside)?)));
    let (bytes, found) = match fetched {
        Ok(fetched) => fetched,
        Err(error) => {
            remove(&beside)?;
            return Err(error.context(format!(
                "the copy {} cannot be brought back; --copy takes an older one",
                copy.name
            )));
        }
    };
    std::fs::rename(&beside, &catalog)?;
    remove(&beside)?;
    std::fs::File::open(&config.data_dir)?.sync_all()?;
    print_one(
        global,
        &json!({"copy": copy.name, "made_at": copy.at.iso(), "bytes": bytes, "version": found, "version_of_program": SCHEMA_VERSION}),
    );
    if !global.quiet {
        let next = match found == SCHEMA_VERSION {
            true => "start the service",
            false => "run `cachekeep migrate`, then start the service",
        };
        eprintln!(
            "cachekeep: {next}. What has happened since is not in the copy: where the store's mirror has some of that, `serve` refuses \
             it. Then `cachekeep catalog keep-older --yes` goes on with the copy and loses that; or move it away, and `cachekeep catalog \
             rebuild --from-store` has it, but no users, access keys, hooks and schedules"
        );
    }
    Ok(())
}
