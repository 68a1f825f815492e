//! The clocks: the wall clock, and the steady one that schedules and retention go by.
//!
//! A wall clock may be set, by a person or by a time service that was wrong; what it then says is not what has passed.
//! A backup must not be taken for old because of that, nor a run be made twice or not at all. So the steady clock is the wall
//! clock only as long as both go alike (ADR 59).

use std::path::PathBuf;
use std::sync::OnceLock;
use std::time::Duration;

use crate::ids::Moment;
use crate::limits;

/// What a test does to the clocks: the file that `CACHEKEEP_CLOCK_FILE` names holds two numbers of milliseconds, which are
/// added to the wall clock and to the time since the start of the machine. No operator needs that.
#[derive(Debug, Clone, Copy, Default)]
struct Shift {
    wall_ms: i64,
    passed_ms: i64,
}

fn shift() -> Shift {
    static FILE: OnceLock<Option<PathBuf>> = OnceLock::new();
    let file = FILE.get_or_init(|| std::env::var_os("CACHEKEEP_CLOCK_FILE").map(PathBuf::from));
    let told = file.as_ref().and_then(|file| std::fs::read_to_string(file).ok());
    let numbers: Vec<i64> = told
        .iter()
        .flat_map(|text| text.split_whitespace())
        .filter_map(|word| word.parse().ok())
        .collect();
    match numbers[..] {
        [wall_ms, passed_ms] => Shift { wall_ms, passed_ms },
        _ => Shift::default(),
    }
}

/// Milliseconds since 1970 by the wall clock. Inner code is handed a moment: see [`Moment::now`].
pub fn wall_ms() -> i64 {
    jiff::Timestamp::now()
        .as_millisecond()
        .saturating_add(shift().wall_ms)
}

/// Time since the machine was started, sleep included: no clock that anybody sets.
pub fn passed() -> Duration {
    let ms = i64::try_from(engine::uptime().as_millis())
        .unwrap_or(i64::MAX)
        .saturating_add(shift().passed_ms);
    Duration::from_millis(u64::try_from(ms).unwrap_or(0))
}

/// The steady clock. It follows the wall clock while that goes as time passes; where the wall clock leaps, it goes on as time
/// passes until the leap has stood for [`limits::LEAP_BELIEVED_AFTER`].
#[derive(Debug)]
pub struct Steady {
    told: Moment,
    at: Duration,
    /// Since when, and by how much the wall clock is ahead.
    doubted: Option<(Duration, i64)>,
}

/// What a look at the steady clock found out besides the time.
#[derive(Debug, PartialEq, Eq)]
pub enum Leap {
    /// Nothing.
    None,
    /// The wall clock has leapt by so many milliseconds.
    Doubted(i64),
    /// A leap by so many milliseconds has stood long enough.
    Believed(i64),
}

impl Steady {
    /// Begins with what the wall clock says: there is nothing yet to doubt it by.
    pub fn start(wall: Moment, passed: Duration) -> Self {
        Self {
            told: wall,
            at: passed,
            doubted: None,
        }
    }

    /// The time, by what the wall clock says and how much time has passed since the machine was started.
    pub fn read(&mut self, wall: Moment, passed: Duration) -> (Moment, Leap) {
        let since = i64::try_from(passed.saturating_sub(self.at).as_millis()).unwrap_or(0);
        let carried = Moment(self.told.0.saturating_add(since));
        self.at = passed;
        let by = wall.0.saturating_sub(carried.0);
        if by.unsigned_abs() <= limits::CLOCK_LEEWAY_MS {
            self.doubted = None;
            self.told = wall;
            return (wall, Leap::None);
        }
        self.told = carried;
        // A leap from where an earlier one led is another one: that the earlier one stood says nothing of it.
        let doubted = self
            .doubted
            .filter(|(_, before)| by.saturating_sub(*before).unsigned_abs() <= limits::CLOCK_LEEWAY_MS);
        match doubted {
            None => {
                self.doubted = Some((passed, by));
                (carried, Leap::Doubted(by))
            }
            Some((since, _)) if passed.saturating_sub(since) >= limits::LEAP_BELIEVED_AFTER => {
                self.doubted = None;
                self.told = wall;
                (wall, Leap::Believed(by))
            }
            Some(_) => (carried, Leap::None),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOUR: i64 = 3_600_000;

    fn hours(count: i64) -> Duration {
        Duration::from_millis(u64::try_from(count * HOUR).unwrap())
    }

    #[test]
    fn a_leap_is_not_followed_before_it_has_stood_for_a_day() {
        let mut clock = Steady::start(Moment(0), hours(1));
        assert_eq!(clock.read(Moment(HOUR), hours(2)), (Moment(HOUR), Leap::None));
        for leap in [25 * HOUR, -25 * HOUR, -1_000_000 * HOUR] {
            let mut at = 2;
            let mut clock = Steady::start(Moment(HOUR), hours(at));
            assert_eq!(
                clock.read(Moment(HOUR + leap), hours(at)),
                (Moment(HOUR), Leap::Doubted(leap))
            );
            for stood in 1..24 {
                at += 1;
                let told = clock.read(Moment((stood + 1) * HOUR + leap), hours(at));
                assert_eq!(told, (Moment((stood + 1) * HOUR), Leap::None), "{leap}");
            }
            at += 1;
            let wall = Moment(25 * HOUR + leap);
            assert_eq!(clock.read(wall, hours(at)), (wall, Leap::Believed(leap)));
        }
    }

    #[test]
    fn a_leap_on_top_of_a_leap_has_to_stand_for_a_day_of_its_own() {
        let mut clock = Steady::start(Moment(0), hours(0));
        let mut told = Vec::new();
        for at in 1..=47 {
            let leap = if at < 23 { HOUR } else { 1_000_000 * HOUR };
            let wall = Moment(at * HOUR + leap);
            let (now, found) = clock.read(wall, hours(at));
            assert_eq!(now, if at < 47 { Moment(at * HOUR) } else { wall }, "{at}");
            if found != Leap::None {
                told.push((at, found));
            }
        }
        let doubted = |by| Leap::Doubted(by * HOUR);
        let expected = [
            (1, doubted(1)),
            (23, doubted(1_000_000)),
            (47, Leap::Believed(1_000_000 * HOUR)),
        ];
        assert_eq!(told, expected);
    }

    #[test]
    fn a_hundred_leaps_and_back_leave_no_trace() {
        let mut clock = Steady::start(Moment(0), Duration::ZERO);
        let mut passed = 0;
        for turn in 0..100 {
            passed += HOUR / 2;
            let leap = [25, -25, 1, -1][turn % 4] * HOUR;
            let at = Duration::from_millis(u64::try_from(passed).unwrap());
            assert_eq!(clock.read(Moment(passed + leap), at).0, Moment(passed));
            passed += HOUR / 2;
            let at = Duration::from_millis(u64::try_from(passed).unwrap());
            assert_eq!(clock.read(Moment(passed), at), (Moment(passed), Leap::None));
        }
    }

    #[test]
    fn what_a_time_service_corrects_bit_by_bit_is_followed() {
        let mut clock = Steady::start(Moment(0), Duration::ZERO);
        for step in 1..1000 {
            let wall = Moment(step * 5_000 + step * 40);
            let at = Duration::from_millis(u64::try_from(step * 5_000).unwrap());
            assert_eq!(clock.read(wall, at), (wall, Leap::None));
        }
    }
}
