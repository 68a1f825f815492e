//! When something is due: five fields of minutes, hours, days of the month, months and days of the week, in a time zone.
//!
//! ```text
//! minute 0-59   hour 0-23   day 1-31   month 1-12 or jan-dec   weekday 0-7 or sun-sat (0 and 7 are Sunday)
//! each: *   5   1-5   */15   10-50/20   1,2,10-12
//! ```
//!
//! Where day and weekday are both restricted, either of them will do, as in every cron. Where clocks are put forward, what is
//! due in the hour that does not exist is due as much later; where they are put back, what is due in the hour that comes twice is
//! due the first time only, unless it is due in every hour.

use jiff::civil::{Date, Weekday};
use jiff::tz::{AmbiguousOffset, TimeZone};

use crate::ids::Moment;

/// A day that is due comes within so many days: 29 February, over a century that is no leap year.
const DAYS_LOOKED_AT: u32 = 8 * 366 + 1;
const MONTHS: [&str; 12] = [
    "jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec",
];
const WEEKDAYS: [&str; 7] = ["sun", "mon", "tue", "wed", "thu", "fri", "sat"];

/// What may stand in a field.
struct Field {
    name: &'static str,
    least: u8,
    most: u8,
    words: &'static [&'static str],
}

const FIELDS: [Field; 5] = [
    Field {
        name: "minute",
        least: 0,
        most: 59,
        words: &[],
    },
    Field {
        name: "hour",
        least: 0,
        most: 23,
        words: &[],
    },
    Field {
        name: "day",
        least: 1,
        most: 31,
        words: &[],
    },
    Field {
        name: "month",
        least: 1,
        most: 12,
        words: &MONTHS,
    },
    Field {
        name: "weekday",
        least: 0,
        most: 7,
        words: &WEEKDAYS,
    },
];

/// See the module.
#[derive(Debug, Clone)]
pub struct Cron {
    /// Bit sets, in the order of the fields.
    minutes: u64,
    hours: u64,
    days: u64,
    months: u64,
    weekdays: u64,
    /// Whether the hour is `*`: then every hour that comes counts, also one that comes twice.
    is_every_hour: bool,
    /// Whether day and weekday are both restricted.
    is_either_day: bool,
    zone: TimeZone,
}

impl Cron {
    /// Reads five fields.
    ///
    /// # Errors
    /// What is wrong, and in which field.
    pub fn parse(text: &str, zone: TimeZone) -> Result<Self, String> {
        let words: Vec<&str> = text.split_whitespace().collect();
        let [minute, hour, day, month, weekday] = words[..] else {
            return Err(format!(
                "{} fields where five are wanted: minute hour day month weekday, like \"0 2 * * *\"",
                words.len()
            ));
        };
        let [minutes, hours, days, months, weekdays] = [
            set(minute, &FIELDS[0])?,
            set(hour, &FIELDS[1])?,
            set(day, &FIELDS[2])?,
            set(month, &FIELDS[3])?,
            set(weekday, &FIELDS[4])?,
        ];
        let cron = Self {
            minutes,
            hours,
            days,
            months,
            // Sunday has two numbers.
            weekdays: (weekdays | weekdays >> 7) & 0x7f,
            is_every_hour: hour == "*",
            is_either_day: !day.starts_with('*') && !weekday.starts_with('*'),
            zone,
        };
        match cron.next_after(Moment(0)) {
            Some(_) => Ok(cron),
            None => Err("there is no such day".to_owned()),
        }
    }

    /// Every week on these days (1 is Monday, 7 Sunday), at this hour of a clock that is so many seconds ahead of UTC.
    ///
    /// # Errors
    /// As [`Cron::parse`].
    pub fn weekly(days: &[u8], hour: u8, offset_seconds: i32) -> Result<Self, String> {
        let days: Vec<String> = days.iter().map(u8::to_string).collect();
        let offset = jiff::tz::Offset::from_seconds(offset_seconds).map_err(|error| error.to_string())?;
        Self::parse(
            &format!("0 {hour} * * {}", days.join(",")),
            TimeZone::fixed(offset),
        )
    }

    /// The first moment after `after` that is due.
    pub fn next_after(&self, after: Moment) -> Option<Moment> {
        let from = jiff::Timestamp::from_millisecond(after.0).ok()?;
        let mut date = self.zone.to_datetime(from).date();
        for _ in 0..DAYS_LOOKED_AT {
            if self.is_due_on(date)
                && let Some(found) = self.first_of(date, after)
            {
                return Some(found);
            }
            date = date.tomorrow().ok()?;
        }
        None
    }

    fn is_due_on(&self, date: Date) -> bool {
        let has = |set: u64, number: i8| set >> number & 1 == 1;
        let weekday = match date.weekday() {
            Weekday::Sunday => 0,
            other => other.to_monday_one_offset(),
        };
        let (by_day, by_weekday) = (has(self.days, date.day()), has(self.weekdays, weekday));
        has(self.months, date.month())
            && if self.is_either_day {
                by_day || by_weekday
            } else {
                by_day && by_weekday
            }
    }

    /// The first moment of a day after `after`.
    fn first_of(&self, date: Date, after: Moment) -> Option<Moment> {
        let mut first: Option<Moment> = None;
        for hour in (0..24).filter(|hour| self.hours >> hour & 1 == 1) {
            for minute in (0..60).filter(|minute| self.minutes >> minute & 1 == 1) {
                let ambiguous = self.zone.to_ambiguous_timestamp(date.at(hour, minute, 0, 0));
                let again = match ambiguous.offset() {
                    AmbiguousOffset::Fold { .. } if self.is_every_hour => ambiguous.later().ok(),
                    _ => None,
                };
                let found = [ambiguous.compatible().ok(), again];
                for at in found.into_iter().flatten() {
                    let at = Moment(at.as_millisecond());
                    if at > after && first.is_none_or(|first| at < first) {
                        first = Some(at);
                    }
                }
            }
            // Later hours come later, but for one that comes twice.
            if first.is_some() && !self.is_every_hour {
                return first;
            }
        }
        first
    }
}

/// The numbers that a field stands for, as bits.
fn set(text: &str, field: &Field) -> Result<u64, String> {
    let mut set = 0;
    for part in text.split(',') {
        let wrong = || {
            format!(
                "{}: {part:?} is no number from {} to {}, nor *, 1-5, */2 or 1-5/2 of such",
                field.name, field.least, field.most
            )
        };
        let (range, step) = match part.split_once('/') {
            Some((range, step)) => (range, step.parse::<u8>().ok().filter(|step| *step > 0)),
            None => (part, Some(1)),
        };
        let step = step.ok_or_else(wrong)?;
        let number = |text: &str| {
            let word = text.to_ascii_lowercase();
            let by_word = field.words.iter().position(|known| *known == word);
            let found = match by_word {
                Some(at) => u8::try_from(at).ok()?.checked_add(field.least)?,
                None if word.bytes().all(|byte| byte.is_ascii_digit()) => word.parse().ok()?,
                None => return None,
            };
            (field.least..=field.most).contains(&found).then_some(found)
        };
        let (first, last) = match (range, range.split_once('-')) {
            ("*", _) => (field.least, field.most),
            (_, Some((first, last))) => (number(first).ok_or_else(wrong)?, number(last).ok_or_else(wrong)?),
            // 5/10 is 5, 15, 25, ...
            (one, None) if part.contains('/') => (number(one).ok_or_else(wrong)?, field.most),
            (one, None) => (number(one).ok_or_else(wrong)?, number(one).ok_or_else(wrong)?),
        };
        if first > last {
            return Err(wrong());
        }
        for number in (first..=last).step_by(usize::from(step)) {
            set |= 1 << number;
        }
    }
    Ok(set)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(text: &str) -> Moment {
        Moment(text.parse::<jiff::Timestamp>().unwrap().as_millisecond())
    }

    /// The next moments after one, as text.
    fn next(cron: &str, zone: &str, after: &str, count: usize) -> Vec<String> {
        let cron = Cron::parse(cron, TimeZone::get(zone).unwrap()).unwrap();
        let mut from = at(after);
        (0..count)
            .map(|_| {
                from = cron.next_after(from).unwrap();
                from.iso()[..16].to_owned()
            })
            .collect()
    }

    #[test]
    fn fields_are_read_as_every_cron_reads_them() {
        let from = "2026-01-01T00:00:00Z";
        for (cron, wanted) in [
            ("0 2 * * *", ["2026-01-01T02:00", "2026-01-02T02:00"]),
            ("*/15 * * * *", ["2026-01-01T00:15", "2026-01-01T00:30"]),
            ("5/20 3 * * *", ["2026-01-01T03:05", "2026-01-01T03:25"]),
            ("0 0 29 feb *", ["2028-02-29T00:00", "2032-02-29T00:00"]),
            ("30 4 1,15 * fri", ["2026-01-01T04:30", "2026-01-02T04:30"]),
            ("0 0 * * 7", ["2026-01-04T00:00", "2026-01-11T00:00"]),
            ("0 0 * * Mon-Wed", ["2026-01-05T00:00", "2026-01-06T00:00"]),
        ] {
            assert_eq!(next(cron, "UTC", from, 2), wanted, "{cron}");
        }
        for wrong in [
            "",
            "* * * *",
            "60 * * * *",
            "* 24 * * *",
            "* * 0 * *",
            "* * * 13 *",
            "* * * * 8",
            "*/0 * * * *",
            "5-1 * * * *",
            "a * * * *",
            "1,, * * * *",
            "+1 * * * *",
            "0 0 31 feb *",
            "* * * * * *",
        ] {
            assert!(Cron::parse(wrong, TimeZone::UTC).is_err(), "{wrong}");
        }
    }

    #[test]
    fn in_the_hour_that_does_not_exist_it_is_due_once_and_later() {
        // 29 March 2026, 02:00 becomes 03:00.
        let told = next("30 2 * * *", "Europe/Berlin", "2026-03-28T00:00:00Z", 3);
        assert_eq!(told, ["2026-03-28T01:30", "2026-03-29T01:30", "2026-03-30T00:30"]);
        let told = next("30 * * * *", "Europe/Berlin", "2026-03-29T00:00:00Z", 3);
        assert_eq!(told, ["2026-03-29T00:30", "2026-03-29T01:30", "2026-03-29T02:30"]);
    }

    #[test]
    fn in_the_hour_that_comes_twice_it_is_due_once_unless_it_is_due_every_hour() {
        // 25 October 2026, 03:00 becomes 02:00.
        let told = next("30 2 * * *", "Europe/Berlin", "2026-10-24T12:00:00Z", 2);
        assert_eq!(told, ["2026-10-25T00:30", "2026-10-26T01:30"]);
        let told = next("15,45 * * * *", "Europe/Berlin", "2026-10-25T00:00:00Z", 5);
        let wanted = [
            "2026-10-25T00:15",
            "2026-10-25T00:45",
            "2026-10-25T01:15",
            "2026-10-25T01:45",
            "2026-10-25T02:15",
        ];
        assert_eq!(told, wanted);
    }

    #[test]
    fn a_fixed_offset_moves_the_day_too() {
        // Monday, 06:00 at +0800 is Sunday, 22:00 UTC; at -1200 it is Monday, 18:00 UTC.
        for (offset, wanted) in [
            (8 * 3600, "2026-01-04T22:00"),
            (-12 * 3600, "2026-01-05T18:00"),
            (0, "2026-01-05T06:00"),
            (5 * 3600 + 1800, "2026-01-05T00:30"),
        ] {
            let cron = Cron::weekly(&[1], 6, offset).unwrap();
            let found = cron.next_after(at("2026-01-01T00:00:00Z")).unwrap();
            assert_eq!(&found.iso()[..16], wanted, "{offset}");
            assert_eq!(cron.next_after(found).unwrap().0 - found.0, 7 * 86_400_000);
        }
        let sunday = Cron::weekly(&[7], 0, 0).unwrap();
        let sunday = sunday.next_after(at("2026-01-01T00:00:00Z")).unwrap();
        assert_eq!(&sunday.iso()[..10], "2026-01-04");
    }

    #[test]
    fn every_zone_has_each_day_once_a_year_long() {
        let from = at("2026-01-01T00:00:00Z");
        for zone in [
            "Europe/Berlin",
            "America/New_York",
            "Australia/Lord_Howe",
            "Asia/Kathmandu",
            "Africa/Cairo",
        ] {
            let zone = TimeZone::get(zone).unwrap();
            let cron = Cron::parse("30 2 * * *", zone.clone()).unwrap();
            let mut moment = from;
            let mut days = std::collections::BTreeSet::new();
            for _ in 0..365 {
                let next = cron.next_after(moment).unwrap();
                assert!(next > moment);
                moment = next;
                let stamp = jiff::Timestamp::from_millisecond(moment.0).unwrap();
                assert!(days.insert(zone.to_datetime(stamp).date()), "a day twice");
            }
        }
    }
}
