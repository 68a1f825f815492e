//! Replay: a backup applied as commands to servers that are not ours.
//!
//! ```text
//! validate all of it ── look at the target ── judge: which keys are there already (unless they are replaced)
//!      ── apply: entries ─feeder─> batches ─lane of each node─> answers ─ledger─> what is committed, journal
//!      ── remove what else the target has (where that is asked for; before all is applied, where that is)
//! ```
//!
//! Nothing is sent before the last byte was accepted, and nothing is sent that is not what was accepted. Whatever ends an attempt (a crash of ours, a connection
//! that breaks, a failover of theirs) the next one goes on at the position that is committed, by the same path: what was sent
//! behind it is sent again. That does no harm where keys are replaced; where they are not, it is known of every key whether
//! it was there before anything was sent, and so whether one that is found there later is ours.
//!
//! Memory: that of a validator and of the reading of an archive, 4 MiB under way to the nodes, 4 MiB twice for an entry; and
//! a bit for each key where keys are not replaced.

mod account;
mod feeder;
mod input;
mod journal;
mod lane;
mod ledger;
mod making;
mod needs;
mod others;
mod pace;
mod reach;
mod room;
mod shape;
mod target;
mod unfinished;
mod words;

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::Receiver;
use std::time::{Duration, Instant};

use crate::control::Control;
use crate::defect;
use crate::error::{Error, Kind};
use crate::selection::Selection;

pub use account::{Account, NAMED_MAX, Named, Tally};
use feeder::{Feeder, Pass, Written};
pub use input::{Input, Valid};
pub use journal::Stage;
use journal::{Journal, State};
use lane::{APPLY, Bits, Budget, Lane, Shared, WRITE};
use ledger::Ledger;
pub use ledger::Position;
use pace::Pace;
pub use pace::SLOWEST as SLOWEST_PACE;
pub use reach::Reach;
pub use shape::{Expiry, Naming, Shape};
pub use target::check_answers;
use target::{Primary, Target};
pub use unfinished::{remove_labelled, remove_left as remove_unfinished};

/// Bytes under way to all nodes together: what is held until it is answered, beside the segments of an archive (ADR 55).
const UNDER_WAY_BYTES: usize = 4 * 1024 * 1024;
/// Keys of which a bit each is kept: 32 MiB.
const JUDGED_KEYS_MAX: u64 = 256 * 1024 * 1024;
/// Why a key of another database is not applied to a cluster.
const DATABASE_0_ONLY: &str = "a cluster has database 0 only: map this one to it, or select another";
/// Between two attempts: at first, and at most.
const PAUSE: std::ops::RangeInclusive<Duration> = Duration::from_millis(50)..=Duration::from_secs(2);

/// What becomes of a key that the target has already.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Conflict {
    /// Nothing is written if there is any.
    Fail,
    /// It stays as it is.
    Skip,
    /// It is overwritten, in one step.
    #[default]
    Replace,
}

/// What becomes of the target's other keys.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Others {
    /// They stay.
    #[default]
    Stay,
    /// They are removed after all of the backup is there: of the databases and names that the backup's selected keys go to.
    Go,
    /// As [`Others::Go`], of all databases that are selected, whether the backup has keys there or not: the target holds the
    /// backup and nothing else.
    All,
}

/// How values are sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Form {
    /// As they are serialised, where the target reads that.
    #[default]
    Payloads,
    /// By the commands that make them: for what does not know `RESTORE ... ABSTTL`, which is all before Redis 5.0.
    Commands,
}

/// What becomes of libraries of functions: they are code.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Functions {
    /// Those of the target stay, and those of the backup are left out.
    #[default]
    Stay,
    /// Those of the backup are loaded; they replace others of the same name where keys do.
    Load,
    /// The target has those of the backup and no others, from one moment to the next.
    Exact,
}

/// What is asked for.
#[derive(Debug, Clone)]
pub struct Plan {
    /// Which keys.
    pub selection: Selection,
    /// What becomes of their database, name and expiry.
    pub shape: Shape,
    /// What becomes of a key that is there already.
    pub conflict: Conflict,
    /// What becomes of the target's other keys.
    pub others: Others,
    /// How values are sent.
    pub form: Form,
    /// What becomes of libraries of functions.
    pub functions: Functions,
    /// Whether it is for nothing where a single key cannot be applied: then nothing is sent where that is known before, and it ends
    /// before other keys are removed.
    pub is_whole: bool,
    /// Whether other keys are removed before the first is applied, where keys are replaced: a target whose memory is full removes,
    /// and takes nothing before it has.
    pub removes_first: bool,
    /// Whether a target is refused that can never have as much in memory as the backup takes. Not where it is to be put back as far as it
    /// takes that.
    pub needs_room: bool,
    /// Whether a target is refused that has not, or forbids, a command that this takes. Not where it is to be put back as far as it lets us.
    pub needs_commands: bool,
    /// Connections to each node that takes writes; at least 1.
    pub connections: usize,
    /// Keys in a second.
    pub ops_max: Option<u64>,
    /// How late the target may answer others before it is written to more slowly.
    pub latency_max: Option<Duration>,
    /// How long it is tried to go on without getting any further.
    pub patience: Duration,
    /// Where the position is written down, so that another process can go on.
    pub journal: Option<PathBuf>,
    /// Part of the names of values that are half made, by which [`remove_labelled`] finds them without the journal: letters, digits and
    /// hyphens that no other replay has; empty where nobody will ask.
    pub label: String,
    /// Where what does not fit in memory is kept meanwhile, without a name.
    pub spill: PathBuf,
    /// The time now, Unix milliseconds: it decides which keys have expired, unless a journal says when that was decided.
    pub now_ms: i64,
}

/// What the target holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TargetState {
    /// Nothing was sent.
    Untouched,
    /// Some of what was asked for.
    Partial,
    /// All of it, but for what the account names.
    Applied,
}

impl TargetState {
    /// A stable word.
    pub fn word(self) -> &'static str {
        match self {
            Self::Untouched => "untouched",
            Self::Partial => "partial",
            Self::Applied => "applied",
        }
    }
}

/// How a replay ended.
#[derive(Debug)]
pub struct Outcome {
    /// What became of the keys: of all of them, or of those up to where it ended.
    pub account: Account,
    /// What the target holds now.
    pub state: TargetState,
    /// How often it was gone on with, by whichever process.
    pub resumed: u32,
    /// `redis 7.0.15`; empty where the target was not reached.
    pub target_version: String,
    /// A replica did not say in time that it has what its primary has: a failover then may have lost something.
    pub is_unconfirmed: bool,
    /// Why it did not come to its end.
    pub failure: Option<Error>,
}

/// Everything that a run knows.
struct Run<'a> {
    plan: &'a Plan,
    control: &'a Control,
    files: &'a [Valid],
    /// As [`Shape::sources`].
    sources: &'a BTreeMap<u32, u32>,
    target: &'a Target<'a>,
    pace: &'a Pace,
    /// As they were found last.
    primaries: Vec<Primary>,
    state: State,
    journal: Option<&'a Journal>,
    /// Told of each stage before the target sees anything of it.
    enter: Enter<'a>,
    /// Other keys of the target, which are to be removed.
    list: Option<std::fs::File>,
    present: Option<Bits>,
    /// What is known to have happened beyond what is committed.
    known: Account,
    is_touched: bool,
}

/// Is told of each stage before anything of it is sent; an error ends the replay there.
pub type Enter<'a> = &'a dyn Fn(Stage) -> Result<(), Error>;

/// Applies a backup: the files of one engine, or of all shards of a cluster. Phases: `validating`, `judging`, `applying`,
/// `searching`, `removing`.
pub fn run(plan: &Plan, reach: &dyn Reach, inputs: Vec<Input>, control: &Control) -> Outcome {
    match Ready::new(plan, reach, inputs, control) {
        Ok(ready) => ready.run(&|_| Ok(())),
        Err(error) => nothing(error),
    }
}

/// Says what [`run`] would do now, and sends nothing but questions.
pub fn dry_run(plan: &Plan, reach: &dyn Reach, inputs: Vec<Input>, control: &Control) -> Outcome {
    match Ready::new(plan, reach, inputs, control) {
        Ok(ready) => ready.dry_run(),
        Err(error) => nothing(error),
    }
}

/// Nothing was sent.
fn nothing(failure: Error) -> Outcome {
    Outcome {
        account: Account::default(),
        state: TargetState::Untouched,
        resumed: 0,
        target_version: String::new(),
        is_unconfirmed: false,
        failure: Some(failure),
    }
}

/// A backup that is valid to its last byte, and a target that was looked at.
pub struct Ready<'a> {
    plan: Plan,
    reach: &'a dyn Reach,
    control: &'a Control,
    files: Vec<Valid>,
    /// As [`Shape::sources`].
    sources: BTreeMap<u32, u32>,
    target: Target<'a>,
}

impl<'a> Ready<'a> {
    /// Validates all, and looks at the target. Nothing but questions is sent.
    ///
    /// # Errors
    /// [`Kind::Refused`] with what cannot be; those of [`Input::validate`] and of [`Reach`].
    pub fn new(
        plan: &Plan,
        reach: &'a dyn Reach,
        inputs: Vec<Input>,
        control: &'a Control,
    ) -> Result<Self, Error> {
        let mut bytes = 0;
        for input in &inputs {
            bytes += input.bytes()?;
        }
        if defect::is_planted("connected-before-validation") {
            let _told_later = Target::look(reach);
        }
        control.enter("validating", bytes);
        let mut files = Vec::new();
        for input in inputs {
            files.push(input.validate(&plan.spill, control)?);
        }
        let refused = |what: String| Err(Error::new(Kind::Refused, "plan replay", what));
        let selected = files
            .iter()
            .flat_map(|file| file.report.census.dbs.keys().copied())
            .filter(|db| plan.selection.dbs.is_empty() || plan.selection.dbs.contains(db));
        let mut selected: BTreeSet<u32> = selected.collect();
        if plan.others == Others::All {
            selected.extend(&plan.selection.dbs);
        }
        if let Some(db) = plan.shape.crowded(&selected) {
            return refused(format!(
                "two databases would go to database {db}, where keys of one name cannot be told apart: select one of them"
            ));
        }
        let needs_time = plan.shape.expiry != Expiry::Absolute || plan.selection.ttl.is_some();
        if needs_time && files.iter().any(|file| file.written_ms.is_none()) {
            return refused(
                "the file does not say when it was written, which expiries are to be counted from".to_owned(),
            );
        }
        if plan.conflict != Conflict::Replace && keys_of(&files) > JUDGED_KEYS_MAX {
            return refused(format!(
                "more than {JUDGED_KEYS_MAX} keys can only be applied where those that are there are replaced"
            ));
        }
        if plan.others != Others::Stay && plan.selection.judges_values() {
            return refused(
                "which other keys go is decided by database and name, so no type, size or time to live can be selected"
                    .to_owned(),
            );
        }
        let is_resumed = plan.journal.as_deref().is_some_and(Path::exists);
        let target = look(plan, reach, is_resumed, control)?;
        if plan.needs_room && !is_resumed {
            room::check(&target, &files, plan)?;
        }
        let sources = plan.shape.sources(&selected);
        if plan.is_whole && target.is_cluster && sources.keys().any(|db| *db != 0) {
            return refused(format!(
                "{DATABASE_0_ONLY} (keys would go to database {})",
                sources.keys().max().unwrap_or(&0)
            ));
        }
        if plan.needs_commands && !is_resumed {
            needs::check(&target, &files, plan, &sources)?;
        }
        Ok(Self {
            sources,
            plan: plan.clone(),
            reach,
            control,
            files,
            target,
        })
    }

    /// The databases of the target that keys are written to.
    pub fn dbs(&self) -> BTreeSet<u32> {
        self.sources.keys().copied().collect()
    }

    /// Applies it, from where the journal says.
    pub fn run(self, enter: Enter<'_>) -> Outcome {
        self.perform(false, enter)
    }

    /// Says what [`Ready::run`] would do now.
    pub fn dry_run(self) -> Outcome {
        self.perform(true, &|_| Ok(()))
    }

    fn perform(self, is_dry: bool, enter: Enter<'_>) -> Outcome {
        let Self {
            plan,
            reach,
            control,
            files,
            sources,
            target,
        } = self;
        // What the selection counts from is what the files say.
        let mut selection = plan.selection.clone();
        selection.written_ms = files.iter().find_map(|file| file.written_ms).unwrap_or(0);
        let plan = &Plan { selection, ..plan };
        let identity = identity(plan, &files, &reach.name());
        let (journal, written) = match plan.journal.as_deref().filter(|_| !is_dry).map(Journal::take) {
            None => (None, None),
            Some(Ok((journal, state))) => (Some(journal), state),
            Some(Err(error)) => return nothing(error),
        };
        if written.as_ref().is_some_and(|state| state.identity != identity) {
            let what =
                "the journal is of another backup, target or choice of keys: name another file, or remove it";
            return nothing(Error::new(Kind::Refused, "read journal", what));
        }
        let pace = Pace::new(plan.ops_max, plan.latency_max);
        let is_resumed = written.is_some();
        let removes_first =
            plan.removes_first && plan.conflict == Conflict::Replace && plan.others != Others::Stay;
        let mut state = written.unwrap_or_else(|| State::new(identity, plan.now_ms));
        if removes_first && !is_resumed {
            state.stage = Stage::Searching;
        }
        let mut run = Run {
            plan,
            control,
            files: &files,
            sources: &sources,
            target: &target,
            enter,
            pace: &pace,
            primaries: Vec::new(),
            journal: journal.as_ref(),
            list: None,
            present: None,
            known: state.account.clone(),
            state,
            is_touched: is_resumed,
        };
        let failure = match is_dry {
            true => run.judge_only().err(),
            false => run.all(is_resumed, removes_first).err(),
        };
        if run.is_touched && !is_dry {
            run.tidy_up();
        }
        let is_done = run.state.stage == Stage::Done;
        if is_done && let Some(journal) = &journal {
            journal.tidy();
        }
        Outcome {
            state: match (&failure, run.is_touched) {
                (_, false) => TargetState::Untouched,
                (None, true) => TargetState::Applied,
                (Some(_), true) => TargetState::Partial,
            },
            account: if failure.is_some() {
                run.known
            } else {
                run.state.account
            },
            resumed: run.state.resumed,
            target_version: target.version.clone(),
            is_unconfirmed: run.state.is_unconfirmed,
            failure,
        }
    }
}

/// Looks at the target; patiently, where an attempt before has begun to write there: what is under way is not given up because of a
/// moment.
fn look<'a>(
    plan: &Plan,
    reach: &'a dyn Reach,
    is_resumed: bool,
    control: &Control,
) -> Result<Target<'a>, Error> {
    let since = Instant::now();
    loop {
        match Target::look(reach) {
            Err(error)
                if is_resumed
                    && matches!(error.kind, Kind::Connection | Kind::Idle)
                    && since.elapsed() < plan.patience =>
            {
                tracing::info!(
                    error = crate::chain(&error),
                    "the target of a replay that is gone on with does not answer yet"
                );
                control.check(APPLY)?;
                std::thread::sleep(PAUSE.end().to_owned() / 5);
            }
            looked => return looked,
        }
    }
}

fn keys_of(files: &[Valid]) -> u64 {
    files.iter().map(|file| file.report.census.totals().keys).sum()
}

/// What tells a replay from every other.
fn identity(plan: &Plan, files: &[Valid], target: &str) -> String {
    let mut hasher = blake3::Hasher::new();
    let mut keys: Vec<&Vec<u8>> = plan.selection.keys.iter().collect();
    keys.sort();
    let selection = Selection {
        keys: std::collections::HashSet::new(),
        ..plan.selection.clone()
    };
    let choice = (
        &selection,
        &keys,
        &plan.shape,
        plan.conflict,
        plan.others,
        plan.form,
        plan.functions,
        plan.removes_first,
    );
    hasher.update(format!("{choice:?}").as_bytes());
    hasher.update(target.as_bytes());
    for file in files {
        hasher.update(file.identity.as_bytes());
    }
    hasher.finalize().to_string()
}

impl Run<'_> {
    fn bytes(&self) -> u64 {
        self.files.iter().map(|file| file.report.bytes).sum()
    }

    /// Asks or counts, and leaves the answers in the account.
    fn judge_only(&mut self) -> Result<(), Error> {
        let asks = self.plan.conflict != Conflict::Replace;
        self.control.enter("judging", self.bytes());
        self.passes(Pass::Judge { asks })?;
        if self.plan.others != Others::Stay {
            self.others(true)?;
        }
        Ok(())
    }

    /// From where the journal says to the end.
    fn all(&mut self, is_resumed: bool, removes_first: bool) -> Result<(), Error> {
        if is_resumed && self.state.stage != Stage::Done {
            self.state.resumed += 1;
        }
        if self.plan.conflict != Conflict::Replace && self.state.stage == Stage::Applying {
            self.find_present(is_resumed)?;
        }
        self.write()?;
        if removes_first && matches!(self.state.stage, Stage::Searching | Stage::Removing) {
            self.others(false)?;
            (self.state.position, self.state.sent_below) = (Position::default(), 0);
            self.state.stage = Stage::Applying;
            self.write()?;
        }
        if self.state.stage == Stage::Applying {
            (self.enter)(Stage::Applying)?;
            self.control.enter("applying", self.bytes());
            self.passes(Pass::Apply)?;
            if self.plan.is_whole {
                self.state.account.check_whole()?;
            }
            self.state.stage = match self.plan.others {
                Others::Go | Others::All if !removes_first => Stage::Searching,
                Others::Stay | Others::Go | Others::All => Stage::Done,
            };
            self.write()?;
        }
        if self.state.stage != Stage::Done {
            self.others(false)?;
            self.state.stage = Stage::Done;
            self.write()?;
        }
        Ok(())
    }

    /// Removes what is left of values that were half made, where the target answers: else the journal knows of them. Their names are of
    /// this replay's passes alone, so it does no harm whoever is at the target by now.
    fn tidy_up(&mut self) {
        if self.state.unfinished.is_empty() {
            return;
        }
        let nodes = self.target.nodes(&self.primaries);
        let removed = nodes.and_then(|nodes| unfinished::remove(self.target, &nodes, &self.state.unfinished));
        let written = removed.and_then(|()| {
            self.state.unfinished.clear();
            self.write()
        });
        if let Err(error) = written {
            tracing::warn!(
                error = crate::chain(&error),
                "half of a value may be left in the target"
            );
        }
    }

    fn write(&self) -> Result<(), Error> {
        self.journal.map_or(Ok(()), |journal| journal.write(&self.state))
    }

    /// Learns which keys the target has, once: before anything is written.
    fn find_present(&mut self, is_resumed: bool) -> Result<(), Error> {
        let keys = keys_of(self.files);
        if let Some(journal) = self.journal.filter(|_| is_resumed) {
            self.present = Some(journal.read_present(keys)?);
            return Ok(());
        }
        self.present = Some(Bits::new(keys));
        self.control.enter("judging", self.bytes());
        let judged_at_ms = self.state.judged_at_ms;
        self.passes(Pass::Judge { asks: true })?;
        let identity = std::mem::take(&mut self.state.identity);
        let judged = std::mem::replace(&mut self.state, State::new(identity, judged_at_ms));
        let found = judged.account.conflicting.count;
        if found > 0 && self.plan.conflict == Conflict::Fail {
            self.known = Account {
                conflicting: judged.account.conflicting,
                ..Account::default()
            };
            let what = format!(
                "the target has {found} of the keys already, and conflicts are to fail: nothing was written"
            );
            return Err(Error::new(Kind::Refused, APPLY, what));
        }
        if let (Some(journal), Some(present)) = (self.journal, &self.present) {
            journal.write_present(present)?;
        }
        Ok(())
    }

    /// Passes over the backup from the position on, as often as something interrupts one that may get on again.
    fn passes(&mut self, pass: Pass) -> Result<(), Error> {
        self.again(|run, is_first| {
            let in_doubt_below = run.state.sent_below;
            run.pass(pass, in_doubt_below, is_first)
        })
    }

    /// One pass from the position on. What is committed by its end is in the state, whatever the end.
    fn pass(&mut self, pass: Pass, in_doubt_below: u64, is_first: bool) -> Result<(), Error> {
        let needs_nodes = pass != Pass::Judge { asks: false };
        let nodes = match needs_nodes {
            true => self.target.nodes(&self.primaries)?,
            false => target::Nodes::none(),
        };
        self.primaries.clone_from(&nodes.primaries);
        if !is_first && pass.writes() {
            self.state.resumed += 1;
        }
        if pass == Pass::Apply {
            self.state.mark(&self.plan.label)?;
            // What cannot be removed now is no reason not to go on: it is tried again at the end.
            if let Err(error) = unfinished::remove(self.target, &nodes, &self.state.unfinished) {
                tracing::warn!(error = crate::chain(&error), "half of a value is left for now");
            }
        }
        if pass.writes() {
            self.write()?;
        }
        let was_touched = self.is_touched;
        self.is_touched |= pass.writes();
        let addresses: Vec<_> = self
            .primaries
            .iter()
            .map(|primary| primary.address.clone())
            .collect();
        let shared = Shared {
            target: self.target,
            plan: self.plan,
            sources: self.sources,
            control: self.control,
            ledger: Mutex::new(Ledger::new(self.state.position, self.state.account.clone())),
            budget: Budget::new(UNDER_WAY_BYTES),
            present: self.present.as_ref(),
            in_doubt_below: if pass.writes() { in_doubt_below } else { 0 },
            failure: Mutex::new(None),
            is_stopped: AtomicBool::new(false),
            is_stale: AtomicBool::new(false),
            is_unconfirmed: AtomicBool::new(false),
            is_cut: AtomicBool::new(false),
            is_named: AtomicBool::new(self.state.account.applied.first.len() >= NAMED_MAX),
        };
        self.control
            .keys_done
            .store(self.state.position.key, Ordering::Relaxed);
        let pace = self.pace;
        let (fed, sent_below, making) = std::thread::scope(|scope| {
            pace.begin();
            if pace.is_limited() && pass.writes() {
                let (target, addresses) = (self.target, &addresses);
                scope.spawn(move || pace.watch(target, addresses));
            }
            let mut spawn = |lane, batches: Receiver<_>| {
                scope.spawn(move || Lane::run(lane, &batches));
            };
            let judged_at_ms = self.state.judged_at_ms;
            let mut feeder = Feeder::new(&shared, pass, judged_at_ms, pace, nodes, &mut spawn);
            feeder.present = self.present.as_ref();
            feeder.mark.clone_from(&self.state.mark);
            feeder.written = self.journal.filter(|_| pass.writes()).map(|journal| Written {
                journal,
                state: &mut self.state,
                at: Instant::now(),
            });
            let fed = match (pass, &self.list) {
                (Pass::Remove, Some(list)) => feeder.feed_list(list),
                _ => feeder.feed(self.files),
            };
            if let Err(error) = &fed {
                // The connections take what they have been given, and no more comes.
                tracing::debug!(error = crate::chain(error), "a pass ends early");
            }
            let sent_below = feeder.sent_below();
            let making = feeder.making.take();
            feeder.end();
            pace.end();
            (fed, sent_below, making)
        });
        // Where there is a journal it says so already.
        if let Some(value) = making.filter(|_| self.journal.is_none()) {
            self.state.begin_value(value);
        }
        let Shared {
            ledger,
            failure,
            is_unconfirmed,
            is_cut,
            ..
        } = shared;
        let mut ledger = ledger
            .into_inner()
            .unwrap_or_else(|poisoned| poisoned.into_inner());
        ledger.commit();
        self.known = ledger.known();
        (self.state.position, self.state.account) = (ledger.position, ledger.account);
        self.state.is_unconfirmed |= is_unconfirmed.into_inner();
        let first = failure
            .into_inner()
            .unwrap_or_else(|poisoned| poisoned.into_inner());
        // Of what the feeder has sent itself.
        let breaks = |error: &Error| matches!(error.kind, Kind::Connection | Kind::Idle | Kind::Protocol);
        let is_cut = is_cut.into_inner() || fed.as_ref().is_err_and(breaks);
        let ended = match (first, fed) {
            (None, fed) => fed,
            (Some(error), _) => Err(error),
        };
        if pass.writes() {
            // Whatever broke may have broken after everything was fed.
            self.state.sent_below = self.state.sent_below.max(sent_below);
            self.write()?;
        }
        let is_refused =
            |error: &Error| error.operation == WRITE && matches!(error.kind, Kind::Auth | Kind::Refused);
        if ended.as_ref().is_err_and(is_refused) && !is_cut && self.has_left_no_trace() {
            self.is_touched = was_touched;
        }
        ended
    }

    /// Whether what is known says that nothing was changed, where every answer has come. What is made by commands may have been
    /// changed by a command before the one that was refused.
    fn has_left_no_trace(&self) -> bool {
        let has_functions = self.files.iter().any(|file| !file.report.functions.is_empty());
        let changes_functions = match self.plan.functions {
            Functions::Stay => false,
            Functions::Load => has_functions,
            Functions::Exact => true,
        };
        let is_by_payloads = self.plan.form == Form::Payloads && self.target.form.is_some();
        let Account { applied, removed, .. } = &self.known;
        is_by_payloads
            && !changes_functions
            && applied.count == 0
            && removed.count == 0
            && self.state.unfinished.is_empty()
    }
}

/// A file without a name, in `folder`.
fn nameless(folder: &Path) -> Result<std::fs::File, Error> {
    crate::duplicate::nameless(folder)
}
