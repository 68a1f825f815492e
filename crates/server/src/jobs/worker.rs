//! The loop that runs jobs: claim, run, settle. New, retried and left behind by a crash are the same path.

use std::collections::{HashMap, HashSet};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use engine::{Control, Kind, Lease, uptime};

use super::JobKind;
use super::queue::{self, Claim};
use crate::app::App;
use crate::backup::verification_record::{self as verifications, Verification};
use crate::catalog::{self, Tx};
use crate::ids::{InstanceId, JobId, Moment, ResizeId, RestoreId};
use crate::{backup, instance, limits, metrics, resize, restore};

/// How a job ended, for the log; the records say the rest.
#[derive(Debug)]
pub enum Ended {
    /// It did what it was asked.
    Done,
    /// It did not, and that is recorded.
    Failed(String),
}

impl Ended {
    /// From what the data plane returned.
    pub fn from_result(result: Result<(), engine::Error>) -> Self {
        match result {
            Ok(()) => Ended::Done,
            Err(error) => Ended::Failed(engine::chain(&error)),
        }
    }
}

/// Why a job stopped without being settled.
#[derive(Debug)]
pub enum Stop {
    /// Another claim has the job, or it was ended from outside: touch nothing more.
    ClaimLost,
    /// The catalogue failed; the job is taken up again.
    Catalog(catalog::Error),
    /// A step that must not fail did (a directory that does not go, a process that does not end); taken up again.
    Engine(engine::Error),
    /// The catalogue contradicts itself: a bug.
    Broken(String),
}

impl From<catalog::Error> for Stop {
    fn from(error: catalog::Error) -> Self {
        Stop::Catalog(error)
    }
}

impl From<engine::Error> for Stop {
    fn from(error: engine::Error) -> Self {
        Stop::Engine(error)
    }
}

/// Ends the job and its record in one transaction.
///
/// # Errors
/// [`Stop::ClaimLost`] (nothing is written), [`Stop::Catalog`].
pub fn settle(
    app: &App,
    claim: &Claim,
    record: impl FnOnce(&Tx<'_>) -> Result<(), catalog::Error>,
) -> Result<(), Stop> {
    check_lease(claim)?;
    app.catalog.write(|tx| {
        if !queue::settle(tx, claim, Moment::now())? {
            return Err(Stop::ClaimLost);
        }
        record(tx).map_err(Stop::Catalog)
    })
}

/// Writes something of a running job, only while its claim holds.
///
/// # Errors
/// [`Stop::ClaimLost`] (nothing is written), [`Stop::Catalog`].
pub fn step<T>(
    app: &App,
    claim: &Claim,
    write: impl FnOnce(&Tx<'_>) -> Result<T, catalog::Error>,
) -> Result<T, Stop> {
    check_lease(claim)?;
    app.catalog.write(|tx| {
        if !queue::holds(tx, claim)? {
            return Err(Stop::ClaimLost);
        }
        write(tx).map_err(Stop::Catalog)
    })
}

/// A job whose lease is over ends here, and not with a failure that is of no interest: another host is at it, or takes it up.
fn check_lease(claim: &Claim) -> Result<(), Stop> {
    match claim.lease.is_over() {
        true => Err(Stop::ClaimLost),
        false => Ok(()),
    }
}

/// Runs `work` while a second thread writes its progress every [`limits::PROGRESS_EVERY`].
///
/// # Errors
/// What `work` returns.
pub fn with_progress<T>(
    control: &Control,
    report: impl Fn(&engine::Progress) + Sync,
    work: impl FnOnce() -> T,
) -> T {
    with_progress_while(control, report, || true, work)
}

/// As [`with_progress`], and cancels `control` when `is_wanted` says no. It is asked as often, whether there is progress or not.
///
/// # Errors
/// What `work` returns.
pub fn with_progress_while<T>(
    control: &Control,
    report: impl Fn(&engine::Progress) + Sync,
    is_wanted: impl Fn() -> bool + Sync,
    work: impl FnOnce() -> T,
) -> T {
    let done = (Mutex::new(false), Condvar::new());
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let mut last = control.progress();
            let mut finished = lock(&done.0);
            while !*finished {
                finished = done
                    .1
                    .wait_timeout(finished, limits::PROGRESS_EVERY)
                    .map_or_else(|poisoned| poisoned.into_inner().0, |(guard, _)| guard);
                let now = control.progress();
                if !*finished && now != last {
                    report(&now);
                    last = now;
                }
                if !*finished && !is_wanted() {
                    control.cancel();
                }
            }
        });
        let result = work();
        *lock(&done.0) = true;
        done.1.notify_all();
        result
    })
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
}

/// What the data of instances takes in memory.
#[derive(Default)]
struct Memory {
    seen: HashMap<InstanceId, u64>,
    /// As the catalogue has it.
    told: HashMap<InstanceId, u64>,
}

/// Plain bytes that jobs have moved.
#[derive(Debug, Clone, Copy, Default)]
pub struct Moved {
    /// Captured.
    pub captured: u64,
    /// Loaded or applied.
    pub restored: u64,
}

impl Moved {
    fn add(&mut self, control: &Control) {
        self.captured += control.captured_bytes.load(Ordering::Relaxed);
        self.restored += control.restored_bytes.load(Ordering::Relaxed);
    }
}

/// What runs now, and the bell that wakes the loop.
pub struct Board {
    running: Mutex<HashMap<JobId, (Claim, Arc<Control>)>>,
    /// By those that do not run any more; locked after `running`.
    moved: Mutex<Moved>,
    verifying: Mutex<Option<(Verification, Arc<Lease>)>>,
    held: Mutex<HashSet<InstanceId>>,
    memory: Mutex<Memory>,
    looked: Mutex<HashMap<InstanceId, Instant>>,
    rung: AtomicU64,
    bell: (Mutex<()>, Condvar),
    untidy: (Mutex<u64>, Condvar),
    closing: AtomicBool,
}

impl Board {
    /// An empty board of this process.
    pub fn new() -> Self {
        Self {
            running: Mutex::new(HashMap::new()),
            moved: Mutex::default(),
            verifying: Mutex::new(None),
            held: Mutex::new(HashSet::new()),
            memory: Mutex::default(),
            looked: Mutex::new(HashMap::new()),
            rung: AtomicU64::new(0),
            bell: (Mutex::new(()), Condvar::new()),
            untidy: (Mutex::new(0), Condvar::new()),
            closing: AtomicBool::new(false),
        }
    }

    /// From now on the claim of a verify is renewed with those of jobs.
    pub fn verify_begun(&self, of: &Verification, lease: &Arc<Lease>) {
        *lock(&self.verifying) = Some((of.clone(), lease.clone()));
    }

    /// It is not any more.
    pub fn verify_ended(&self) {
        *lock(&self.verifying) = None;
    }

    /// Tells the loop that there may be a job.
    pub fn wake(&self) {
        self.rung.fetch_add(1, Ordering::SeqCst);
        let _held = lock(&self.bell.0);
        self.bell.1.notify_all();
    }

    /// Asks the instance's running jobs to stop.
    pub fn cancel(&self, instance: &InstanceId) {
        for (claim, control) in lock(&self.running).values() {
            if claim.instance_id == *instance {
                control.cancel();
            }
        }
    }

    /// Asks the job that works on this record to stop, and no other one that the instance may have by now.
    pub fn cancel_subject(&self, subject: &str) {
        for (claim, control) in lock(&self.running).values() {
            if claim.subject_id.as_deref() == Some(subject) {
                control.cancel();
            }
        }
    }

    /// Whether a job of the instance is at work, be it one that was ended from outside and does not know it yet.
    pub fn is_at_work(&self, instance: &InstanceId) -> bool {
        lock(&self.running)
            .values()
            .any(|(claim, _)| claim.instance_id == *instance)
    }

    /// Tells the reconciler and the sweeper that there may be something to tidy up.
    pub fn tidy(&self) {
        *lock(&self.untidy.0) += 1;
        self.untidy.1.notify_all();
    }

    /// Waits for the next [`Board::tidy`] after the one `seen`, up to `limit`; returns the last one.
    pub fn wait_to_tidy(&self, seen: u64, limit: Duration) -> u64 {
        let (mutex, condition) = &self.untidy;
        let waited = condition.wait_timeout_while(lock(mutex), limit, |count| *count == seen);
        *waited.unwrap_or_else(|poisoned| poisoned.into_inner()).0
    }

    /// Remembers what the instance's engine last said that its data takes, in bytes.
    pub fn note_memory(&self, instance: &InstanceId, bytes: u64) {
        lock(&self.memory).seen.insert(instance.clone(), bytes);
    }

    /// What others have not been told yet of what was noted here.
    pub fn memory_to_tell(&self) -> Vec<(InstanceId, u64)> {
        let memory = lock(&self.memory);
        let untold = memory.seen.iter().filter(|(instance, bytes)| {
            let told = memory.told.get(instance).copied().unwrap_or(0);
            told.abs_diff(**bytes) >= limits::MEMORY_TOLD_BYTES
        });
        untold
            .map(|(instance, bytes)| (instance.clone(), *bytes))
            .collect()
    }

    /// Takes over what the catalogue has, ours included: what has changed there since, others have noted.
    pub fn learn_memory(&self, all: Vec<(InstanceId, u64)>) {
        let mut memory = lock(&self.memory);
        for (instance, bytes) in all {
            if memory.told.insert(instance.clone(), bytes) != Some(bytes) {
                memory.seen.insert(instance, bytes);
            }
        }
    }

    /// What [`Board::note_memory`] was last told; at most some seconds old while the instance runs.
    pub fn memory_of(&self, instance: &InstanceId) -> u64 {
        lock(&self.memory).seen.get(instance).copied().unwrap_or(0)
    }

    /// Whether it is time to look at the instance again: the first time it is, and then each time after `every`.
    pub fn is_due(&self, instance: &InstanceId, every: Duration) -> bool {
        let mut looked = lock(&self.looked);
        let is_due = looked.get(instance).is_none_or(|last| last.elapsed() >= every);
        if is_due {
            looked.insert(instance.clone(), Instant::now());
        }
        is_due
    }

    /// No new job is begun from now on.
    pub fn close(&self) {
        self.closing.store(true, Ordering::SeqCst);
        self.wake();
    }

    /// How many jobs run.
    pub fn running(&self) -> usize {
        lock(&self.running).len()
    }

    /// What the jobs of this process have moved since its start, those that run included: it never falls.
    pub fn moved(&self) -> Moved {
        let running = lock(&self.running);
        let mut moved = *lock(&self.moved);
        for (_, control) in running.values() {
            moved.add(control);
        }
        moved
    }

    /// A job does not run any more.
    fn left(&self, job: &JobId) {
        // Under both locks: whoever asks meanwhile counts it once.
        let mut running = lock(&self.running);
        if let Some((_, control)) = running.remove(job) {
            lock(&self.moved).add(&control);
        }
    }

    /// Ends the leases of all that run: each job stops at its next step and is given back, to be taken up by another host or
    /// at the next start.
    pub fn end_leases(&self) {
        for claim in self.claims() {
            claim.lease.end();
        }
    }

    fn claims(&self) -> Vec<Claim> {
        lock(&self.running)
            .values()
            .map(|(claim, _)| claim.clone())
            .collect()
    }

    /// Waits until no job runs or the time is over; `true` where none runs.
    pub fn drain(&self, limit: Duration) -> bool {
        let end = Instant::now() + limit;
        while self.running() > 0 && Instant::now() < end {
            let held = lock(&self.bell.0);
            let _woken = self.bell.1.wait_timeout(held, Duration::from_millis(100));
        }
        self.running() == 0
    }

    fn wait(&self, seen: u64) {
        let held = lock(&self.bell.0);
        if self.rung.load(Ordering::SeqCst) == seen {
            let _woken = self.bell.1.wait_timeout(held, Duration::from_secs(1));
        }
    }
}

/// The right to touch an instance's engines, of a job or of the reconciler; given back when dropped. The catalogue
/// admits one operation at a time, but one that was ended from outside may still be on its way out.
///
/// Nobody waits for one: a thread that did would take a place from the other instances.
pub struct Gate {
    app: Arc<App>,
    instance: InstanceId,
}

impl Gate {
    /// `None` while somebody else has it.
    pub fn enter(app: &Arc<App>, instance: &InstanceId) -> Option<Self> {
        let is_free = lock(&app.board.held).insert(instance.clone());
        is_free.then(|| Self {
            app: app.clone(),
            instance: instance.clone(),
        })
    }
}

impl Drop for Gate {
    fn drop(&mut self) {
        lock(&self.app.board.held).remove(&self.instance);
        self.app.board.wake();
    }
}

/// Runs jobs until the board closes. One thread calls this; each job gets a thread of its own.
pub fn run(app: &Arc<App>) {
    while !app.board.closing.load(Ordering::SeqCst) {
        let seen = app.board.rung.load(Ordering::SeqCst);
        let claim = if app.board.running() < app.config.jobs_at_once {
            claim(app)
        } else {
            None
        };
        match claim {
            Some((claim, gate)) => start(app, claim, gate),
            None => app.board.wait(seen),
        }
    }
}

/// Renews the claims of all jobs that run, and of the verify, until the board closes and no job does. One thread calls this.
///
/// Where the catalogue is a file nobody else can claim a job: the lock of the data directory is the lease.
pub fn keep_leases(app: &App) {
    if !app.catalog.is_shared() {
        return;
    }
    let length = app.config.lease;
    while !app.board.closing.load(Ordering::SeqCst) || app.board.running() > 0 {
        let (claims, verify) = (app.board.claims(), lock(&app.board.verifying).clone());
        // Before the transaction: what that takes counts.
        let until = uptime() + limits::lease_holds(length);
        let renew = |tx: &Tx<'_>| {
            let mut renewed = Vec::new();
            for claim in &claims {
                renewed.push((&claim.lease, queue::renew(tx, claim, length)?));
            }
            if let Some((of, lease)) = &verify {
                renewed.push((lease, verifications::renew(tx, of, length)?));
            }
            Ok::<_, catalog::Error>(renewed)
        };
        let mut pause = length / 3;
        if !claims.is_empty() || verify.is_some() {
            match app.catalog.write(renew) {
                Ok(renewed) => {
                    for (lease, is_ours) in renewed {
                        match is_ours {
                            true => lease.extend(until),
                            false => lease.end(),
                        }
                    }
                }
                Err(error) => {
                    tracing::warn!(
                        error = engine::chain(&error),
                        "leases cannot be renewed; trying again"
                    );
                    pause = Duration::from_secs(1).min(pause);
                }
            }
        }
        std::thread::sleep(pause);
    }
}

/// Takes the first job of [`queue::claimable`] whose instance nobody is at.
fn claim(app: &Arc<App>) -> Option<(Claim, Gate)> {
    let config = &app.config;
    let count = |jobs: usize| i64::try_from(jobs).unwrap_or(i64::MAX);
    let places = queue::Places {
        scheduled: count(limits::scheduled_of(config.jobs_at_once)),
        project: config.jobs_per_project.map_or(i64::MAX, count),
        may_lose_hosts: app.catalog.is_shared(),
    };
    let one = || {
        for (job, instance) in app.catalog.read(|tx| queue::claimable(tx, &app.host, places))? {
            let Some(gate) = Gate::enter(app, &instance) else {
                continue;
            };
            let lease = Arc::new(match app.catalog.is_shared() {
                true => Lease::until(uptime() + limits::lease_holds(config.lease)),
                false => Lease::endless(),
            });
            let claim = app
                .catalog
                .write(|tx| queue::claim(tx, &job, &app.host, config.lease, places, &lease))?;
            if let Some(claim) = claim.as_ref().filter(|claim| claim.fence > 1) {
                app.counters
                    .add(metrics::TAKEN_OVER, &[("kind", claim.kind.word())]);
            }
            // Where another host was faster, what comes next may be another project's.
            return Ok(Looked::At(claim.map(|claim| (claim, gate))));
        }
        Ok::<_, catalog::Error>(Looked::Nothing)
    };
    for _ in 0..CLAIM_TRIES {
        match one() {
            Ok(Looked::At(Some(claimed))) => return Some(claimed),
            Ok(Looked::At(None)) => {}
            Ok(Looked::Nothing) => return None,
            Err(error) => {
                tracing::error!(error = engine::chain(&error), "cannot look for jobs");
                // A gate that was given back rings the bell, which would make this a loop without a pause.
                std::thread::sleep(Duration::from_secs(1));
                return None;
            }
        }
    }
    None
}

/// How often other hosts may be faster, until the next second.
const CLAIM_TRIES: usize = 16;

/// What came of looking for a job.
enum Looked {
    /// There was one; `None`: another host has it.
    At(Option<(Claim, Gate)>),
    /// None may be claimed.
    Nothing,
}

/// When the job must have come to its end: see [`limits::operation_time`].
///
/// One that must be done at whatever age is only bounded from now on: the catalogue says already what it is to bring
/// about.
fn time_left(app: &App, claim: &Claim) -> Result<Duration, catalog::Error> {
    let expected_bytes = match (claim.kind, &claim.subject_id) {
        (JobKind::Resize, Some(_)) => app
            .catalog
            .read(|tx| instance::record::load(tx, &claim.instance_id))?
            .map_or(0, |instance| instance::job::max_memory_bytes(&instance)),
        // As much as it may hold: what it does hold is not known yet after a start.
        (JobKind::Backup, _) => app
            .catalog
            .read(|tx| instance::record::load(tx, &claim.instance_id))?
            .map_or(0, |instance| match instance.attachment {
                // A stranger says how much it may hold.
                Some(_) => instance::job::max_memory_bytes(&instance).min(limits::ATTACHED_BYTES_MAX),
                None => instance::job::max_memory_bytes(&instance),
            }),
        (JobKind::Restore, Some(restore)) => app
            .catalog
            .read(|tx| restore::record::expected_bytes(tx, restore))?,
        (JobKind::Migration, Some(task)) => app
            .catalog
            .read(|tx| restore::migration::record::expected_bytes(tx, task))?,
        _ => 0,
    };
    // The target is backed up first, and says how much it may hold.
    let safety_bytes = match restore_key_by_key(app, claim) {
        // The job itself says so.
        Err(catalog::Error::Unreadable(_)) => 0,
        Err(error) => return Err(error),
        Ok(Some(options)) if options.safety_point => app
            .catalog
            .read(|tx| instance::record::load(tx, &claim.instance_id))?
            .map_or(0, |instance| instance::job::max_memory_bytes(&instance))
            .min(limits::ATTACHED_BYTES_MAX),
        Ok(_) => 0,
    };
    let at_pace = match (claim.kind, &claim.subject_id) {
        (JobKind::Restore, Some(restore)) => app
            .catalog
            .read(|tx| restore::replay_record::seconds_at_pace(tx, restore))?,
        _ => 0,
    };
    let limit =
        limits::operation_time(expected_bytes.saturating_add(safety_bytes)) + Duration::from_secs(at_pace);
    let age = match claim.kind {
        JobKind::Create | JobKind::Delete | JobKind::Password | JobKind::Resize => 0,
        JobKind::Restart | JobKind::Flush | JobKind::Backup | JobKind::Restore | JobKind::Migration => {
            let now = app.catalog.read(|tx| tx.clock())?;
            u64::try_from(now.0 - claim.created_at.0).unwrap_or(0)
        }
    };
    Ok(limit.saturating_sub(Duration::from_millis(age)))
}

/// What is asked for, where a backup is applied key by key.
fn restore_key_by_key(app: &App, claim: &Claim) -> Result<Option<restore::options::Options>, catalog::Error> {
    let Some(id) = claim.subject_id.as_deref().and_then(RestoreId::parse) else {
        return Ok(None);
    };
    let found = app.catalog.read(|tx| match claim.kind {
        JobKind::Restore => restore::replay_record::load(tx, &id),
        JobKind::Migration => restore::migration::record::replay(tx, &id),
        _ => Ok(None),
    })?;
    Ok(found.map(|replay| replay.options))
}

fn start(app: &Arc<App>, claim: Claim, gate: Gate) {
    let left = match time_left(app, &claim) {
        Ok(left) => left,
        Err(error) => {
            tracing::error!(job.id = %claim.job_id, error = engine::chain(&error), "cannot begin a job; it is taken up again");
            std::thread::sleep(Duration::from_secs(1));
            give_back(app, &claim);
            return;
        }
    };
    let control = Arc::new(Control::leased(Some(left), claim.lease.clone()));
    lock(&app.board.running).insert(claim.job_id.clone(), (claim.clone(), control.clone()));
    let (shared, unstarted) = (app.clone(), claim.clone());
    let name = format!("job-{}", claim.kind.word());
    let thread = std::thread::Builder::new().name(name).spawn(move || {
        let app = shared;
        let fenced =
            std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| run_one(&app, &claim, &control)));
        if let Err(panic) = fenced {
            tracing::error!(job.id = %claim.job_id, panic = panic_text(&panic), "a job panicked: this is a bug");
            give_back(&app, &claim);
        }
        drop(gate);
        leave(&app, &claim.job_id);
    });
    if let Err(error) = thread {
        tracing::error!(%error, "cannot start a thread for a job; it is taken up again");
        std::thread::sleep(Duration::from_secs(1));
        give_back(app, &unstarted);
        leave(app, &unstarted.job_id);
    }
}

/// What a panic said.
pub fn panic_text(panic: &Box<dyn std::any::Any + Send>) -> &str {
    panic
        .downcast_ref::<String>()
        .map(String::as_str)
        .or_else(|| panic.downcast_ref::<&str>().copied())
        .unwrap_or("no message")
}

fn leave(app: &App, job: &JobId) {
    app.board.left(job);
    app.board.wake();
    app.board.tidy();
}

fn run_one(app: &App, claim: &Claim, control: &Control) {
    let began = Instant::now();
    tracing::info!(job.id = %claim.job_id, job.kind = claim.kind.word(), instance.id = %claim.instance_id, fence = claim.fence, "job begins");
    let nodes = claim.subject_id.as_deref().and_then(ResizeId::parse);
    let ended = match claim.kind {
        JobKind::Backup => backup::job::run(app, claim, control),
        JobKind::Restore | JobKind::Migration => restore::job::run(app, claim, control),
        JobKind::Create | JobKind::Delete | JobKind::Restart | JobKind::Flush | JobKind::Password => {
            instance::job::run(app, claim, control)
        }
        JobKind::Resize => match &nodes {
            Some(id) => resize::job::run(app, claim, id, control),
            // Of the same nodes.
            None => instance::job::run(app, claim, control),
        },
    };
    let duration_ms = began.elapsed().as_millis();
    let outcome = match &ended {
        Ok(Ended::Done) => "done",
        Ok(Ended::Failed(_)) => "failed",
        Err(_) => "lost",
    };
    app.counters.add(
        metrics::JOBS_ENDED,
        &[("kind", claim.kind.word()), ("outcome", outcome)],
    );
    match ended {
        Ok(Ended::Done) => {
            tracing::info!(job.id = %claim.job_id, job.kind = claim.kind.word(), duration_ms, phases = control.phases_taken(), "job done");
        }
        Ok(Ended::Failed(why)) => {
            tracing::warn!(job.id = %claim.job_id, job.kind = claim.kind.word(), duration_ms, phases = control.phases_taken(), why, "job failed");
        }
        Err(Stop::ClaimLost) => {
            app.counters
                .add(metrics::CLAIMS_LOST, &[("kind", claim.kind.word())]);
            tracing::info!(job.id = %claim.job_id, "job was ended from outside, or its lease is over");
            // Of no effect where another claim has it.
            give_back(app, claim);
        }
        Err(stop) => {
            let why = match &stop {
                Stop::Catalog(error) => engine::chain(error),
                Stop::Engine(error) => engine::chain(error),
                Stop::Broken(why) => why.clone(),
                Stop::ClaimLost => String::new(),
            };
            tracing::error!(job.id = %claim.job_id, why, "job stopped unsettled; it is taken up again");
            std::thread::sleep(Duration::from_secs(1));
            give_back(app, claim);
        }
    }
}

/// A job that stopped unsettled waits again.
///
/// Goes on until the catalogue has it: it may be the catalogue that failed, for want of room, and a job that is
/// neither worked on nor waiting would block its instance until the next start.
fn give_back(app: &App, claim: &Claim) {
    while let Err(error) = app.catalog.write(|tx| queue::release(tx, claim)) {
        tracing::error!(job.id = %claim.job_id, error = engine::chain(&error), "cannot give a job back; trying again");
        if app.board.closing.load(Ordering::SeqCst) {
            return;
        }
        std::thread::sleep(Duration::from_secs(1));
    }
}

/// Whether the job was begun too often without coming to an end: one that brings the process down must not do so
/// for ever. It is settled as failed then, by its own code for failures.
pub fn begun_too_often(claim: &Claim) -> Option<engine::Error> {
    (claim.fence > limits::JOB_ATTEMPTS_MAX).then(|| {
        let context = format!("begun {} times without coming to an end", claim.fence - 1);
        engine::Error::new(Kind::Deadline, "run job", context)
    })
}

/// The wire code of a failure of the data plane; `moved` says whether data had begun to move.
pub fn failure_code(error: &engine::Error, moved: bool, restoring: bool) -> backup::record::FailureCode {
    use crate::backup::record::FailureCode;
    match error.kind {
        Kind::Idle | Kind::Deadline => FailureCode::TimedOut,
        Kind::Key | Kind::StoreAccess => FailureCode::NoCredentials,
        // Of a restore too: it is its safety backup that finds no room.
        Kind::Quota => FailureCode::NoStore,
        Kind::NotFound => FailureCode::NotReadable,
        Kind::Cancelled | Kind::EngineStart | Kind::Auth => FailureCode::NotStarted,
        Kind::Store | Kind::StoreFull if !restoring => FailureCode::NoStore,
        Kind::Store => FailureCode::NotReadable,
        Kind::Tampered
        | Kind::Malformed
        | Kind::Mismatch
        | Kind::Memory
        | Kind::SourceAtRisk
        | Kind::PortTaken
        | Kind::StoreFull
        | Kind::EngineExited
        | Kind::Connection
        | Kind::Refused
        | Kind::Protocol
        | Kind::Io => match (restoring, moved) {
            (true, _) => FailureCode::NotLoaded,
            (false, true) => FailureCode::TimedOut,
            (false, false) => FailureCode::NotStarted,
        },
    }
}
