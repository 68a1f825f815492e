//! A file that something else wrote becomes a backup: asked for by a caller of the API, who names a URL. The operator's own
//! imports take the same steps in his process (`cli/import.rs`).

pub mod job;
pub mod url;

use std::sync::Arc;

use engine::Control;

use self::url::Target;
use super::command::check_remark;
use super::record::{self, FailureCode};
use crate::app::App;
use crate::egress::{self, Asker, Rules};
use crate::idempotency::{self, Once};
use crate::ids::{BackupId, InstanceId, Moment, ProjectId};
use crate::instance::command as instances;
use crate::instance::layout::Mode;
use crate::jobs::aside::{Seat, Task};
use crate::limits;
use crate::refusal::Refusal;

/// What a caller asks for.
#[derive(Debug, Clone)]
pub struct Wish {
    /// Where the file is.
    pub url: String,
    /// Shown with the backup.
    pub remark: Option<String>,
    /// Take libraries of functions, which are code.
    pub accept_functions: bool,
}

/// Accepts an import: its record is there when this returns, and says from then on what becomes of it. The URL is kept in
/// memory only, for its query may be a signature: an import that the end of the service interrupts has failed.
///
/// # Errors
/// Remark, URL, unknown instance, a cluster, too many at once, no room in the project's quota, key of another request.
pub fn submit(
    app: &Arc<App>,
    project: &ProjectId,
    instance: &InstanceId,
    wish: &Wish,
    once: Option<&Once>,
    now: Moment,
) -> Result<BackupId, Refusal> {
    check_remark(wish.remark.as_deref())?;
    let target = Target::parse(&wish.url).map_err(|_told_by_the_field| Refusal::Parameter("url"))?;
    let size_limit = limits::IMPORT_URL_GB_DEFAULT * 1_000_000_000;
    let control = Arc::new(Control::new(Some(
        limits::OPERATION_TIME_BASE + limits::time_for(size_limit),
    )));
    let (id, mut lock, mut begun) = (BackupId::random(), None, None);
    let answer = app.catalog.write(|tx| {
        idempotency::once(tx, project, once, now, || {
            let owned = instances::find(tx, project, instance)?;
            if owned.layout.mode == Mode::Cluster {
                return Err(Refusal::ImportOfCluster);
            }
            let seat = Seat::take(app, Task::Import, &control).ok_or(Refusal::TooManyImports)?;
            // Before the record, which without it would be taken for one whose import has died.
            let held = job::Lock::take(app, &id).map_err(|error| Refusal::Internal(engine::chain(&error)))?;
            lock = Some((seat, held));
            begun = Some(job::begin(
                tx,
                &app.host,
                &id,
                project,
                instance,
                wish.remark.as_deref(),
                0,
                now,
            )?);
            Ok::<_, Refusal>(id.clone())
        })
    })?;
    // Else a call that was sent again: what it asks for was begun when it came first.
    if let Some((held, begun)) = lock.zip(begun) {
        let rules = Rules {
            allowed: app.config.import_allowed.clone(),
            asker: Asker::Caller {
                ours: egress::our_ports(app)?,
            },
        };
        let (shared, accept_functions) = (app.clone(), wish.accept_functions);
        let work = move || {
            let fetched = |plan: &mut _| job::fetched(&target, &rules, size_limit, plan);
            job::run_in_the_service(&shared, &begun, &target.name, accept_functions, &control, fetched);
            drop(held);
        };
        let thread = std::thread::Builder::new().name("import".to_owned()).spawn(work);
        if let Err(error) = thread {
            let why = format!("no thread for it: {error}");
            app.catalog
                .write(|tx| record::fail(tx, &id, FailureCode::NotStarted, &why, now))?;
        }
    }
    Ok(answer)
}
