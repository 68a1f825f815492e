//! What came of a run.

use std::collections::BTreeMap;
use std::time::Duration;

use hdrhistogram::Histogram;
use serde::{Deserialize, Serialize};

/// What a request asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Kind {
    /// ListRestoreRecords.
    ListRestores,
    /// ListBackupRecords.
    ListBackups,
    /// ListInstances.
    ListInstances,
    /// ShowInstance.
    ShowInstance,
    /// One backup.
    ShowBackup,
    /// One restore.
    ShowRestore,
    /// UpdateInstance: the description.
    UpdateInstance,
    /// UpdateInstance: the backup policy, which is DCS's schedule.
    UpdateSchedule,
    /// CopyInstance.
    SubmitBackup,
}

impl Kind {
    /// All of them.
    pub const ALL: [Self; 9] = [
        Self::ListRestores,
        Self::ListBackups,
        Self::ListInstances,
        Self::ShowInstance,
        Self::ShowBackup,
        Self::ShowRestore,
        Self::UpdateInstance,
        Self::UpdateSchedule,
        Self::SubmitBackup,
    ];

    /// Whether it changes something.
    pub fn is_write(self) -> bool {
        matches!(
            self,
            Self::UpdateInstance | Self::UpdateSchedule | Self::SubmitBackup
        )
    }

    /// For people.
    pub fn word(self) -> &'static str {
        match self {
            Self::ListRestores => "list of restores",
            Self::ListBackups => "list of backups",
            Self::ListInstances => "list of instances",
            Self::ShowInstance => "one instance",
            Self::ShowBackup => "one backup",
            Self::ShowRestore => "one restore",
            Self::UpdateInstance => "change of an instance",
            Self::UpdateSchedule => "change of a schedule",
            Self::SubmitBackup => "backup asked for",
        }
    }
}

/// Latencies, in microseconds from when the requests were due to the last byte of their answers.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Latency {
    /// Of what.
    pub of: String,
    /// Answers.
    pub count: u64,
    /// Half came sooner.
    pub p50_us: u64,
    /// Of a hundred one came later.
    pub p99_us: u64,
    /// Of a thousand.
    pub p999_us: u64,
    /// The last.
    pub max_us: u64,
}

/// A second of the run of which answers came late.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
pub struct LateSecond {
    /// Whole seconds from the first request's moment: when the requests were due.
    pub second: u64,
    /// Answers later than [`LATE`].
    pub late: u64,
    /// The slowest of them, in microseconds.
    pub max_us: u64,
}

/// What [`LateSecond`] counts: what reads may take at p99.
pub const LATE: Duration = Duration::from_millis(100);

/// A request that changes something, and what came of it.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Written {
    /// What was asked for.
    pub kind: Kind,
    /// Whose it was.
    pub tenant: usize,
    /// What it leaves behind.
    pub value: String,
    /// When its first byte was sent, in microseconds of the run.
    pub sent_us: u64,
    /// When its answer was there; 0: none came.
    pub done_us: u64,
    /// The answer's status; 0: none came.
    pub status: u16,
    /// The id that was given out.
    pub id: Option<String>,
}

/// All of it.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct Report {
    /// Requests that became due.
    pub due: u64,
    /// Of these sent: for the others there was no connection.
    pub sent: u64,
    /// Of these answered, in whatever way.
    pub answered: u64,
    /// Requests due in a second.
    pub offered_rate: f64,
    /// Answers with a status of 2xx in a second, from the first request's moment to the last one's, or to the last answer where
    /// that came more than a second later.
    pub achieved_rate: f64,
    /// How many answers had which status.
    pub statuses: BTreeMap<u16, u64>,
    /// Connections that ended under a request.
    pub broken: u64,
    /// How these ended, in words.
    pub broken_by: BTreeMap<String, u64>,
    /// 429 and 503 that do not say when to come again.
    pub without_retry_after: u64,
    /// Of answers with 2xx: each kind, then `reads`, `writes`, `all`.
    pub latencies: Vec<Latency>,
    /// How late the generator itself sent requests for which a connection was free, in microseconds: half, one of a hundred.
    pub lateness_us: (u64, u64),
    /// Processor time of the generator, user and system.
    pub cpu_seconds: f64,
    /// From the first request's moment to the last answer.
    pub seconds: f64,
    /// Slow connections that were ended by the service.
    pub slow_ended: u64,
    /// The seconds of which answers came late, in their order: where p99 is missed, it is by these.
    pub late_seconds: Vec<LateSecond>,
    /// Each write.
    pub written: Vec<Written>,
}

impl Report {
    /// The latencies of that name.
    pub fn latency(&self, of: &str) -> Option<&Latency> {
        self.latencies.iter().find(|latency| latency.of == of)
    }

    /// Answers with a status from `from` to before `to`.
    pub fn count(&self, from: u16, to: u16) -> u64 {
        self.statuses.range(from..to).map(|(_, count)| count).sum()
    }
}

/// What is counted while it runs.
pub struct Tally {
    kinds: Vec<(Kind, Histogram<u32>)>,
    lateness: Histogram<u32>,
    late: BTreeMap<u64, LateSecond>,
    /// See [`Report`].
    pub report: Report,
}

/// A tenth of a percent is as exact as anybody reads it; ten minutes are the longest that is told apart.
fn histogram() -> Histogram<u32> {
    const LONGEST_US: u64 = 600_000_000;
    Histogram::new_with_bounds(1, LONGEST_US, 3).unwrap_or_else(|_| unreachable!("these bounds are allowed"))
}

impl Tally {
    /// Nothing yet.
    pub fn new() -> Self {
        Self {
            kinds: Kind::ALL.iter().map(|kind| (*kind, histogram())).collect(),
            lateness: histogram(),
            late: BTreeMap::new(),
            report: Report::default(),
        }
    }

    /// A request for which a connection was free was sent so late.
    pub fn sent(&mut self, late: Duration) {
        self.lateness.saturating_record(micros(late).max(1));
    }

    /// An answer to a request that was due in that second of the run.
    pub fn answered(&mut self, kind: Kind, status: u16, second: u64, latency: Duration) {
        self.report.answered += 1;
        *self.report.statuses.entry(status).or_default() += 1;
        if (200..300).contains(&status)
            && let Some((_, histogram)) = self.kinds.iter_mut().find(|(of, _)| *of == kind)
        {
            histogram.saturating_record(micros(latency).max(1));
        }
        if latency > LATE {
            let of = self.late.entry(second).or_insert(LateSecond {
                second,
                late: 0,
                max_us: 0,
            });
            of.late += 1;
            of.max_us = of.max_us.max(micros(latency));
        }
    }

    /// The report with its latencies.
    pub fn finish(mut self) -> Report {
        let (mut reads, mut writes, mut all) = (histogram(), histogram(), histogram());
        for (kind, histogram) in &self.kinds {
            let sum = if kind.is_write() { &mut writes } else { &mut reads };
            // All have the same bounds.
            let _always = (sum.add(histogram), all.add(histogram));
            if !histogram.is_empty() {
                self.report.latencies.push(latency(kind.word(), histogram));
            }
        }
        for (name, sum) in [("reads", &reads), ("writes", &writes), ("all", &all)] {
            if !sum.is_empty() {
                self.report.latencies.push(latency(name, sum));
            }
        }
        self.report.late_seconds = self.late.into_values().collect();
        self.report.lateness_us = (
            self.lateness.value_at_quantile(0.5),
            self.lateness.value_at_quantile(0.99),
        );
        self.report
    }
}

/// Whole microseconds.
pub fn micros(time: Duration) -> u64 {
    u64::try_from(time.as_micros()).unwrap_or(u64::MAX)
}

fn latency(of: &str, histogram: &Histogram<u32>) -> Latency {
    Latency {
        of: of.to_owned(),
        count: histogram.len(),
        p50_us: histogram.value_at_quantile(0.5),
        p99_us: histogram.value_at_quantile(0.99),
        p999_us: histogram.value_at_quantile(0.999),
        max_us: histogram.max(),
    }
}
