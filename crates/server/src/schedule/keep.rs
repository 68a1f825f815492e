//! Retention: which backups stay, which go, and why. Pure: of the records of one instance and the time.
//!
//! What is held, what is being restored, the newest backup that can be restored and the newest proven one always stay. Of the
//! rest, those of a schedule with rules stay as long as a rule wants them, and the others until their time is up.

use std::collections::{BTreeMap, BTreeSet};

use engine::defect;
use jiff::tz::TimeZone;
use serde::{Deserialize, Serialize};

use crate::ids::{BackupId, Moment};

const DAY_MS: i64 = 24 * 3_600_000;

/// The rules of a schedule. A backup stays if one of them wants it; without any, all stay until somebody deletes them.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Keeps {
    /// Every backup of the last so many days of 24 hours.
    pub days: u32,
    /// The newest so many.
    pub last: u32,
    /// The newest one of each of so many hours that have one, the newest hours.
    pub hourly: u32,
    /// The same of calendar days, in the schedule's zone.
    pub daily: u32,
    /// The same of weeks from Monday.
    pub weekly: u32,
    /// The same of months.
    pub monthly: u32,
    /// The same of years.
    pub yearly: u32,
}

impl Keeps {
    /// Whether there is no rule.
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}

/// What a schedule says of its backups.
#[derive(Debug, Clone)]
pub struct Rules {
    /// Its name.
    pub name: String,
    /// Its rules.
    pub keeps: Keeps,
    /// Where its days begin.
    pub zone: TimeZone,
}

/// A backup that succeeded and has an archive, as retention sees it.
#[derive(Debug, Clone)]
pub struct Archived {
    /// Its id.
    pub id: BackupId,
    /// Its name.
    pub name: String,
    /// Somebody asked for it, or a schedule; not taken before a restore.
    pub counts: bool,
    /// Whose run it is.
    pub schedule: Option<String>,
    /// When it was accepted.
    pub created_at: Moment,
    /// From when on it may go, where no rule says it.
    pub expires_at: Option<Moment>,
    /// Why it is held; `None`: it is not.
    pub held: Option<String>,
    /// A restore reads it.
    pub is_in_use: bool,
    /// A verify found it damaged.
    pub is_damaged: bool,
    /// An engine has loaded it.
    pub is_proven: bool,
}

/// What is to become of a backup, and why.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// It stays.
    Stays(String),
    /// It goes.
    Goes(String),
}

/// Judges the backups of an instance, newest first.
pub fn judge(archived: &[Archived], rules: &BTreeMap<String, Rules>, now: Moment) -> Vec<Verdict> {
    let can_be_restored = |one: &&Archived| one.counts && !one.is_damaged;
    let newest = archived.iter().find(can_be_restored).map(|one| &one.id);
    let proven = archived
        .iter()
        .filter(can_be_restored)
        .find(|one| one.is_proven)
        .map(|one| &one.id);
    let wanted = wanted(archived, rules, now);
    archived
        .iter()
        .map(|one| {
            let rules = one.schedule.as_ref().and_then(|schedule| rules.get(schedule));
            let rules = rules.filter(|rules| !rules.keeps.is_empty());
            let held = one.held.as_ref();
            if let Some(why) = held.filter(|_| !defect::is_planted("held-expires")) {
                Verdict::Stays(format!("it is held: {why}"))
            } else if one.is_in_use {
                Verdict::Stays("it is being restored".to_owned())
            } else if newest == Some(&one.id) {
                Verdict::Stays("it is the newest that can be restored".to_owned())
            } else if proven == Some(&one.id) {
                Verdict::Stays("it is the newest that is proven".to_owned())
            } else if let Some(why) = wanted.get(&one.id) {
                Verdict::Stays(why.clone())
            } else if let Some(rules) = rules {
                Verdict::Goes(format!("no rule of the schedule {} wants it", rules.name))
            } else {
                match one.expires_at {
                    None => Verdict::Stays("until somebody deletes it".to_owned()),
                    Some(at) if at > now => Verdict::Stays(format!("until {}", at.iso())),
                    Some(at) => Verdict::Goes(format!("its time was up at {}", at.iso())),
                }
            }
        })
        .collect()
}

/// What the rules of the schedules want, and which rule.
fn wanted(archived: &[Archived], rules: &BTreeMap<String, Rules>, now: Moment) -> BTreeMap<BackupId, String> {
    let mut wanted = BTreeMap::new();
    for (schedule, rules) in rules {
        let own: Vec<&Archived> = archived
            .iter()
            .filter(|one| one.schedule.as_ref() == Some(schedule) && !one.is_damaged)
            .collect();
        let mut want = |id: &BackupId, why: String| {
            wanted.entry(id.clone()).or_insert(why);
        };
        for one in &own {
            if one.created_at.0 > now.0.saturating_sub(i64::from(rules.keeps.days) * DAY_MS) {
                want(&one.id, format!("of the last {} days", rules.keeps.days));
            }
        }
        for one in own.iter().take(count(rules.keeps.last)) {
            want(&one.id, format!("of the last {}", rules.keeps.last));
        }
        let date = |at: Moment| {
            jiff::Timestamp::from_millisecond(at.0)
                .map(|at| rules.zone.to_datetime(at))
                .unwrap_or_default()
        };
        let periods = [
            (rules.keeps.hourly, "hourly", "%Y-%m-%d %H:00"),
            (rules.keeps.daily, "daily", "%Y-%m-%d"),
            (rules.keeps.weekly, "weekly", "%G-W%V"),
            (rules.keeps.monthly, "monthly", "%Y-%m"),
            (rules.keeps.yearly, "yearly", "%Y"),
        ];
        for (most, word, form) in periods {
            let mut seen = BTreeSet::new();
            for one in own.iter().filter(|_| most > 0) {
                let period = date(one.created_at).strftime(form).to_string();
                // The newest one of it was before this one.
                if seen.contains(&period) {
                    continue;
                }
                if seen.len() >= count(most) {
                    break;
                }
                want(&one.id, format!("{word}: {period}"));
                seen.insert(period);
            }
        }
    }
    wanted
}

fn count(rule: u32) -> usize {
    let rule = rule.saturating_sub(u32::from(defect::is_planted("one-fewer-kept")));
    usize::try_from(rule).unwrap_or(usize::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOUR: i64 = 3_600_000;

    /// Numbers that look random, the same for the same seed.
    struct Dice(u64);

    impl Dice {
        fn roll(&mut self, sides: u64) -> u64 {
            self.0 = self
                .0
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1_442_695_040_888_963_407);
            (self.0 >> 33) % sides
        }
    }

    fn archived(at: i64, schedule: Option<&str>) -> Archived {
        Archived {
            id: BackupId::random(),
            name: String::new(),
            counts: true,
            schedule: schedule.map(str::to_owned),
            created_at: Moment(at),
            expires_at: None,
            held: None,
            is_in_use: false,
            is_damaged: false,
            is_proven: false,
        }
    }

    fn one_schedule(keeps: Keeps) -> BTreeMap<String, Rules> {
        let rules = Rules {
            name: "s".to_owned(),
            keeps,
            zone: TimeZone::UTC,
        };
        [("s".to_owned(), rules)].into()
    }

    #[test]
    fn grandfathers_fathers_and_sons_are_kept_as_the_rules_say() {
        // Every six hours for two years.
        let mut all: Vec<Archived> = (0..2 * 365 * 4)
            .map(|n| archived(n * 6 * HOUR, Some("s")))
            .collect();
        all.reverse();
        let keeps = Keeps {
            last: 3,
            daily: 7,
            weekly: 4,
            monthly: 12,
            yearly: 5,
            ..Keeps::default()
        };
        let verdicts = judge(&all, &one_schedule(keeps), all[0].created_at);
        let stays = verdicts
            .iter()
            .filter(|verdict| matches!(verdict, Verdict::Stays(_)))
            .count();
        // 3 newest, of which one is the newest day's; 6 more days; of 4 weeks the newest two may be among the days; months; years.
        assert!((3 + 6 + 2 + 10..=3 + 7 + 4 + 12 + 2).contains(&stays), "{stays}");
        assert_eq!(
            verdicts[0],
            Verdict::Stays("it is the newest that can be restored".to_owned())
        );
        assert_eq!(
            verdicts[3],
            Verdict::Goes("no rule of the schedule s wants it".to_owned())
        );
        let oldest = verdicts
            .iter()
            .rposition(|verdict| matches!(verdict, Verdict::Stays(_)))
            .unwrap();
        assert_eq!(verdicts[oldest], Verdict::Stays("yearly: 1970".to_owned()));
    }

    /// What must stay, found out by another way: sets of everything, oldest first.
    fn must_stay(all: &[Archived], keeps: Keeps, now: i64) -> BTreeSet<BackupId> {
        let mut stay = BTreeSet::new();
        let mut oldest_first: Vec<&Archived> = all.iter().collect();
        oldest_first.reverse();
        let good = |one: &&&Archived| one.counts && !one.is_damaged;
        stay.extend(oldest_first.iter().rfind(good).map(|one| one.id.clone()));
        let proven = oldest_first.iter().rfind(|one| good(one) && one.is_proven);
        stay.extend(proven.map(|one| one.id.clone()));
        let mut of_rules = Vec::new();
        for one in &oldest_first {
            let by_rules = one.schedule.is_some() && keeps != Keeps::default();
            if one.held.is_some()
                || one.is_in_use
                || (!by_rules && one.expires_at.is_none_or(|at| at.0 > now))
            {
                stay.insert(one.id.clone());
            }
            if by_rules && !one.is_damaged {
                of_rules.push(*one);
                if now - one.created_at.0 < i64::from(keeps.days) * DAY_MS {
                    stay.insert(one.id.clone());
                }
            }
        }
        let last = of_rules.len().saturating_sub(keeps.last as usize);
        stay.extend(of_rules[last..].iter().map(|one| one.id.clone()));
        // Periods of UTC by hand: a day is 86,400 s, 1970-01-05 was a Monday.
        let year_month = |at: i64| {
            let text = Moment(at).iso();
            (
                text[..4].parse::<i64>().unwrap(),
                text[5..7].parse::<i64>().unwrap(),
            )
        };
        let hours = |at: i64| at.div_euclid(HOUR);
        let days = |at: i64| at.div_euclid(DAY_MS);
        let weeks = |at: i64| (at - 4 * DAY_MS).div_euclid(7 * DAY_MS);
        let months = |at: i64| year_month(at).0 * 12 + year_month(at).1;
        let years = |at: i64| year_month(at).0;
        let numbers: [(u32, &dyn Fn(i64) -> i64); 5] = [
            (keeps.hourly, &hours),
            (keeps.daily, &days),
            (keeps.weekly, &weeks),
            (keeps.monthly, &months),
            (keeps.yearly, &years),
        ];
        for (most, number) in numbers {
            // The last one of a period overwrites those before it.
            let mut newest_of: BTreeMap<i64, BackupId> = BTreeMap::new();
            for one in &of_rules {
                newest_of.insert(number(one.created_at.0), one.id.clone());
            }
            stay.extend(newest_of.into_values().rev().take(most as usize));
        }
        stay
    }

    #[test]
    fn of_random_histories_no_backup_goes_that_must_stay_and_none_stays_that_must_go() {
        let is_long = std::env::var_os("CACHEKEEP_TEST_LONG").is_some();
        let (seeds, steps) = if is_long { (100, 100_000) } else { (10, 2_000) };
        let (mut gone, mut judged) = (0, 0);
        for seed in 0..seeds {
            let mut dice = Dice(seed);
            let mut rule = |sides| u32::try_from(dice.roll(sides)).unwrap();
            let keeps = Keeps {
                days: rule(4),
                last: rule(4),
                hourly: rule(6),
                daily: rule(8),
                weekly: rule(5),
                monthly: rule(6),
                yearly: rule(3),
            };
            let rules = one_schedule(keeps);
            let mut now = i64::try_from(dice.roll(50 * 365)).unwrap() * DAY_MS;
            let mut all: Vec<Archived> = Vec::new();
            for step in 0..steps {
                now += i64::try_from(dice.roll(30)).unwrap() * HOUR / 2;
                let some = (!all.is_empty()).then(|| usize::try_from(dice.roll(all.len() as u64)).unwrap());
                match (dice.roll(10), some) {
                    (0, Some(at)) => all[at].held = all[at].held.is_none().then(|| "why".to_owned()),
                    (1, Some(at)) => all[at].is_proven = true,
                    (2, Some(at)) => all[at].is_damaged = !all[at].is_damaged,
                    (3, Some(at)) => all[at].is_in_use = !all[at].is_in_use,
                    (4, Some(at)) if all[at].held.is_none() => drop(all.remove(at)),
                    (roll, _) => {
                        let mut new = archived(now, (roll != 5).then_some("s"));
                        new.counts = roll != 6;
                        new.expires_at = (dice.roll(3) > 0)
                            .then(|| Moment(now + i64::try_from(dice.roll(9)).unwrap() * DAY_MS));
                        all.insert(0, new);
                    }
                }
                let stay = must_stay(&all, keeps, now);
                for (one, verdict) in all.iter().zip(judge(&all, &rules, Moment(now))) {
                    judged += 1;
                    match verdict {
                        Verdict::Stays(why) => assert!(
                            stay.contains(&one.id),
                            "seed {seed} step {step}: {one:?} stays: {why}"
                        ),
                        Verdict::Goes(why) => {
                            gone += 1;
                            assert!(
                                !stay.contains(&one.id),
                                "seed {seed} step {step}: {one:?} goes: {why}"
                            );
                        }
                    }
                }
                all.retain(|one| stay.contains(&one.id));
            }
        }
        println!(
            "{seeds} seeds of {steps} steps: {judged} judged, {gone} gone, 0 that had to stay, 0 left that had to go"
        );
        assert!(gone > seeds);
    }
}
