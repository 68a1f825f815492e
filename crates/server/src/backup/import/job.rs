//! The steps of an import, whoever asked for it: a lock, a record, the file, and the record's end.

use std::fs::File;
use std::path::PathBuf;

use engine::backup::{BackupReport, ImportPlan, Labels};
use engine::keys::Recipient;
use engine::{Control, Error, Kind, Store, failpoint};

use super::url::{Opened, Target};
use crate::app::App;
use crate::backup::cancel_record as cancels;
use crate::backup::quota;
use crate::backup::quota_record as quotas;
use crate::backup::record::{self, Finished};
use crate::catalog::{self, Tx};
use crate::egress::Rules;
use crate::identity::record as identity;
use crate::ids::{BackupId, HostId, InstanceId, Moment, ProjectId, StorageId};
use crate::jobs::worker::{failure_code, panic_text, with_progress_while};
use crate::metrics;
use crate::refusal::Refusal;
use crate::storage::{self, record as storages};

const IMPORT: &str = "import file";

/// Says that somebody works on an import's record; gone with its process or when dropped.
pub struct Lock {
    path: PathBuf,
    _file: File,
}

impl Lock {
    /// Takes it.
    ///
    /// # Errors
    /// [`Kind::Io`].
    pub fn take(app: &App, id: &BackupId) -> Result<Self, Error> {
        let path = app.config.import_lock(id);
        let failed = |e: std::io::Error| Error::io(Kind::Io, "lock import", path.display().to_string(), e);
        let file = File::create(&path).map_err(failed)?;
        file.try_lock().map_err(|e| failed(e.into()))?;
        Ok(Self { path, _file: file })
    }
}

impl Drop for Lock {
    fn drop(&mut self) {
        let _the_next_start_removes_it_else = std::fs::remove_file(&self.path);
    }
}

/// An import whose record runs.
pub struct Begun {
    id: BackupId,
    project: ProjectId,
    instance: InstanceId,
    prefix: String,
    storage: Option<StorageId>,
    recipient: String,
    reserved: u64,
    created_at: Moment,
}

/// Adds the record, which runs from then on, with what a file of so many bytes (0: not known) will take reserved.
///
/// # Errors
/// [`Refusal::Quota`]: the transaction is to be given up. The catalogue failed.
#[allow(
    clippy::too_many_arguments,
    reason = "one row, two callers; a struct would repeat the names"
)]
pub fn begin(
    tx: &Tx<'_>,
    host: &HostId,
    id: &BackupId,
    project: &ProjectId,
    instance: &InstanceId,
    remark: Option<&str>,
    bytes: u64,
    now: Moment,
) -> Result<Begun, Refusal> {
    let prefix = format!("{project}/{instance}/{id}/1");
    let storage = storages::default_of(tx, project)?;
    record::insert_import(tx, id, project, instance, remark, now)?;
    record::begin(tx, id, &prefix, (storage.as_ref(), host), now)?;
    let reserved = quotas::for_file(bytes);
    quotas::reserve(tx, project, id, reserved)?.map_err(Refusal::Quota)?;
    Ok(Begun {
        reserved,
        id: id.clone(),
        project: project.clone(),
        instance: instance.clone(),
        prefix,
        storage,
        recipient: identity::project_recipient(tx, project)?.unwrap_or_default(),
        created_at: record::load(tx, id)?.map_or(now, |row| row.created_at),
    })
}

/// Stores what `make` reads, tells the record how far it is, and ends it. `name` is what the archive calls its source.
///
/// # Errors
/// Those of `make`; [`Kind::Cancelled`] where the record was ended by somebody else; [`Kind::Io`] where the catalogue fails.
pub fn run(
    app: &App,
    begun: &Begun,
    name: &str,
    accept_functions: bool,
    control: &Control,
    make: impl FnOnce(ImportPlan, &Store) -> Result<BackupReport, Error>,
) -> Result<BackupReport, Error> {
    let Begun { id, prefix, .. } = begun;
    let report = |seen: &engine::Progress| {
        let share = (seen.bytes_done.min(seen.bytes_total) * 9500)
            .checked_div(seen.bytes_total)
            .unwrap_or(0);
        let share = i64::try_from(share).unwrap_or(0);
        let written = app
            .catalog
            .write(|tx| record::progress(tx, id, share, seen, Moment::now()));
        if let Err(error) = written {
            tracing::warn!(error = engine::chain(&error), "the progress is not written");
        }
    };
    let is_wanted = || !matches!(app.catalog.read(|tx| cancels::is_asked(tx, id)), Ok(true));
    let imported = with_progress_while(control, report, is_wanted, || {
        let plan = ImportPlan {
            prefix: prefix.clone(),
            labels: Labels {
                project: begun.project.to_string(),
                instance: begun.instance.to_string(),
                backup: id.to_string(),
                attempt: 1,
                created_at_ms: begun.created_at.0,
            },
            recipient: Recipient::parse(&begun.recipient)?,
            spill_dir: app.config.spool_dir(),
            source: format!("import of {name}"),
            expected_bytes: 0,
            accept_functions,
        };
        failpoint::hit("import.begun")?;
        let store = storage::open(app, begun.storage.as_ref())?;
        let reserve = |bytes| {
            let reserved = app
                .catalog
                .write(|tx| quotas::reserve(tx, &begun.project, id, bytes));
            reserved.map_err(|error: catalog::Error| Error::new(Kind::Io, IMPORT, engine::chain(&error)))
        };
        let (made, put_bytes) = quota::metered(&store, begun.reserved, reserve, |store| {
            make(plan, store).map(|made| (made, store.metered_bytes()))
        })?;
        failpoint::hit("import.before_settle")?;
        Ok((made, put_bytes))
    });
    let unwritten = |error: catalog::Error| Error::new(Kind::Io, IMPORT, engine::chain(&error));
    match imported {
        Ok((made, put_bytes)) => {
            let finished = Finished {
                size_bytes: made.stored_bytes,
                put_bytes,
                plain_bytes: made.plain_bytes,
                keys: made.keys,
                used_memory_bytes: made.used_memory_bytes,
                manifest_blake3: made.manifest_blake3.clone(),
                captured_from: None,
                is_point_in_time: true,
            };
            let write = |tx: &Tx<'_>| cancels::succeed(tx, id, &finished, Moment::now());
            if app.catalog.write(write).map_err(unwritten)? {
                failpoint::hit("import.settled")?;
                return Ok(made);
            }
            let context = "the record has ended otherwise meanwhile: import the file again";
            Err(Error::new(Kind::Cancelled, IMPORT, context))
        }
        Err(error) => {
            let error = match is_wanted() {
                true => error,
                false => Error::new(Kind::Cancelled, IMPORT, cancels::CANCELLED),
            };
            let code = failure_code(&error, false, false);
            app.counters
                .add(metrics::FAILURES, &[("kind", "import"), ("code", &code.text())]);
            let why = engine::chain(&error);
            app.catalog
                .write(|tx| record::fail(tx, id, code, &why, Moment::now()))
                .map_err(unwritten)?;
            Err(error)
        }
    }
}

/// As [`run`], of a URL and within the service: nobody waits for what it returns, the record tells it.
pub fn run_in_the_service(
    app: &App,
    begun: &Begun,
    name: &str,
    accept_functions: bool,
    control: &Control,
    open: impl FnOnce(&mut ImportPlan) -> Result<Opened, Error>,
) {
    let work = || {
        run(app, begun, name, accept_functions, control, |mut plan, store| {
            let mut opened = open(&mut plan)?;
            engine::backup::import(&plan, &mut *opened.source, store, &app.vault.signer, control)
        })
    };
    let done = std::panic::catch_unwind(std::panic::AssertUnwindSafe(work));
    match done {
        Ok(Ok(made)) => tracing::info!(backup.id = %begun.id, keys = made.keys, "imported"),
        Ok(Err(error)) => {
            tracing::warn!(backup.id = %begun.id, error = engine::chain(&error), "an import failed");
        }
        // The lock goes, and the reconciler ends the record.
        Err(panic) => {
            tracing::error!(backup.id = %begun.id, panic = panic_text(&panic), "an import panicked: this is a bug");
        }
    }
}

/// Opens a URL for a plan, which learns the size.
///
/// # Errors
/// [`Kind::NotFound`]: it is not read, and why.
pub fn fetched(target: &Target, rules: &Rules, limit: u64, plan: &mut ImportPlan) -> Result<Opened, Error> {
    let opened = target
        .open(rules, limit)
        .map_err(|error| Error::new(Kind::NotFound, IMPORT, format!("{error:#}")))?;
    plan.expected_bytes = opened.bytes;
    Ok(opened)
}
