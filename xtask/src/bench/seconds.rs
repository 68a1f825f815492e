//! What the machine did in each second of a run: where p99 is missed by some seconds out of hundreds, these are looked up.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use serde_json::Value;

/// How many of the late seconds are told of, and how many processes of each.
const TOLD: usize = 12;
const PROCESSES_TOLD: usize = 6;
/// Ticks of `/proc` in a second.
const TICKS: f64 = 100.0;

/// Ticks since the system began.
#[derive(Clone, Copy, Default)]
struct Processors {
    user: u64,
    system: u64,
    waits: u64,
    stolen: u64,
}

/// Looks at `/proc` once in a second.
pub struct Seconds {
    began: Instant,
    taken: Instant,
    processors: Processors,
    processes: BTreeMap<u32, (String, u64)>,
    told: BTreeMap<u64, String>,
}

impl Seconds {
    /// The run begins now.
    pub fn begin() -> Self {
        Self {
            began: Instant::now(),
            taken: Instant::now(),
            processors: processors(),
            processes: processes(),
            told: BTreeMap::new(),
        }
    }

    /// To be called more often than once in a second.
    pub fn look(&mut self) {
        let second = self.taken.duration_since(self.began).as_secs();
        let passed = self.taken.elapsed();
        if passed < Duration::from_secs(1) {
            return;
        }
        self.taken = Instant::now();
        let (now, all) = (processors(), processes());
        let share = |ticks: u64| ticks as f64 / TICKS / passed.as_secs_f64() * 100.0;
        let of = |now: u64, before: u64| share(now.saturating_sub(before));
        let mut busiest: Vec<(f64, &str, u32)> = all
            .iter()
            .map(|(process, (name, ticks))| {
                let before = self.processes.get(process).map_or(0, |(_, ticks)| *ticks);
                (of(*ticks, before), name.as_str(), *process)
            })
            .filter(|(share, ..)| *share >= 2.0)
            .collect();
        busiest.sort_by(|one, other| other.0.total_cmp(&one.0));
        let busiest: Vec<String> = busiest
            .iter()
            .take(PROCESSES_TOLD)
            .map(|(share, name, process)| format!("{name} ({process}) {share:.0} %"))
            .collect();
        let line = format!(
            "user {:.0} %, system {:.0} %, waits for disks {:.0} %, stolen {:.0} %; {}",
            of(now.user, self.processors.user),
            of(now.system, self.processors.system),
            of(now.waits, self.processors.waits),
            of(now.stolen, self.processors.stolen),
            busiest.join(", ")
        );
        self.told.insert(second, line);
        (self.processors, self.processes) = (now, all);
    }

    /// Prints the worst of the late seconds of the generator's report, in their order. The generator began a little later than
    /// this, and what was due in a second may have been late by what happened in the next.
    pub fn tell(&self, report: &Value) {
        let mut late: Vec<(u64, u64, u64)> = report["late_seconds"]
            .as_array()
            .into_iter()
            .flatten()
            .map(|one| {
                let number = |name: &str| one[name].as_u64().unwrap_or(0);
                (number("late"), number("second"), number("max_us"))
            })
            .collect();
        let answers: u64 = late.iter().map(|(late, ..)| late).sum();
        println!(
            "  {answers} answers came later than 100 ms, of requests of {} seconds; the worst of these:",
            late.len()
        );
        late.sort_unstable_by(|one, other| other.cmp(one));
        late.truncate(TOLD);
        late.sort_unstable_by_key(|(_, second, _)| *second);
        for (late, second, slowest) in late {
            println!(
                "  second {second}: {late} late, the slowest by {} ms",
                slowest / 1000
            );
            for at in second..second + 2 {
                println!("    {at}: {}", self.told.get(&at).map_or("-", String::as_str));
            }
        }
    }
}

fn processors() -> Processors {
    let text = std::fs::read_to_string("/proc/stat").unwrap_or_default();
    let line = text.lines().next().unwrap_or_default();
    let ticks: Vec<u64> = line
        .split_whitespace()
        .skip(1)
        .map(|word| word.parse().unwrap_or(0))
        .collect();
    let of = |at: usize| ticks.get(at).copied().unwrap_or(0);
    Processors {
        user: of(0) + of(1),
        system: of(2) + of(5) + of(6),
        waits: of(4),
        stolen: of(7),
    }
}

/// Each process's title, which PostgreSQL's have what they do in, and its ticks.
fn processes() -> BTreeMap<u32, (String, u64)> {
    let mut found = BTreeMap::new();
    for entry in std::fs::read_dir("/proc").into_iter().flatten().flatten() {
        let Some(process) = entry.file_name().to_str().and_then(|name| name.parse().ok()) else {
            continue;
        };
        let stat = std::fs::read_to_string(entry.path().join("stat")).unwrap_or_default();
        let Some((head, fields)) = stat.rsplit_once(')') else {
            continue;
        };
        let fields: Vec<&str> = fields.split_whitespace().collect();
        let ticks = |at: usize| {
            fields
                .get(at)
                .and_then(|text| text.parse::<u64>().ok())
                .unwrap_or(0)
        };
        let title = std::fs::read(entry.path().join("cmdline")).unwrap_or_default();
        let title = String::from_utf8_lossy(&title);
        let name = match title.strip_prefix("postgres: ") {
            Some(what) => format!("postgres {}", what.trim_end_matches(['\0', ' '])),
            None => head.split_once('(').map_or("", |(_, name)| name).to_owned(),
        };
        found.insert(process, (name, ticks(11) + ticks(12)));
    }
    found
}
