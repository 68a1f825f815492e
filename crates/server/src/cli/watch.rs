//! Follows a record to its end: a live bar on a terminal, plain lines elsewhere.

use std::io::IsTerminal;
use std::time::{Duration, Instant};

use indicatif::{HumanBytes, HumanCount, ProgressBar, ProgressStyle};
use serde_json::Value;

use super::Global;
use crate::rate::Rate;

/// How often the record is looked at.
const LOOK_EVERY: Duration = Duration::from_millis(200);
/// How often a line is printed where there is no terminal.
const LINE_EVERY: Duration = Duration::from_secs(2);

/// Looks until the record is `succeed` or `failed`, and returns it.
///
/// # Errors
/// The service does not answer.
pub(crate) fn follow(
    global: &Global,
    what: &str,
    look: impl Fn() -> anyhow::Result<Value>,
) -> anyhow::Result<Value> {
    let live = std::io::stderr().is_terminal() && !global.quiet;
    let bar = if live {
        ProgressBar::new(10_000)
    } else {
        ProgressBar::hidden()
    };
    // A line that wraps cannot be drawn over: each step would leave one behind. What does not fit is cut, from 40 columns on.
    if let Ok(style) = ProgressStyle::with_template("{prefix} [{bar:20}] {percent:>3}% {wide_msg}") {
        bar.set_style(style);
    }
    bar.set_prefix(what.to_owned());
    let began = Instant::now();
    let mut rate = Rate::default();
    let mut last_line: Option<Instant> = None;
    loop {
        let record = look()?;
        let status = record["status"].as_str().unwrap_or_default().to_owned();
        let progress: f64 = record["progress"]
            .as_str()
            .and_then(|text| text.parse().ok())
            .unwrap_or(0.0);
        let message = describe(&mut rate, &record);
        bar.set_position((progress * 100.0) as u64);
        bar.set_message(message.clone());
        let ended = status == "succeed" || status == "failed";
        let due = last_line.is_none_or(|at| at.elapsed() >= LINE_EVERY);
        if !live && !global.quiet && (due || ended) {
            eprintln!("{what}: {status} {progress:.0}% {message}");
            last_line = Some(Instant::now());
        }
        if ended {
            bar.finish_and_clear();
            if live {
                eprintln!("{what}: {status} in {:.1} s", began.elapsed().as_secs_f64());
            }
            return Ok(record);
        }
        std::thread::sleep(LOOK_EVERY);
    }
}

/// What is being done, how far it is and how fast it gets on.
fn describe(rate: &mut Rate, record: &Value) -> String {
    let ext = &record["ext"];
    let phase = ext["phase"].as_str().unwrap_or_default();
    let done = ext["bytes_done"].as_i64().unwrap_or(0);
    let total = ext["bytes_total"].as_i64().unwrap_or(0);
    let keys = ext["keys_done"].as_i64().unwrap_or(0);
    let mut text = phase.to_owned();
    if done > 0 {
        text.push_str(&format!(" {}", HumanBytes(done.unsigned_abs())));
    }
    if keys > 0 {
        text.push_str(&format!(" {} keys", HumanCount(keys.unsigned_abs())));
    }
    let (bytes_per_second, eta_seconds) = rate.of(phase, done, total, Instant::now());
    if let Some(rate) = bytes_per_second {
        text.push_str(&format!(" {}/s", HumanBytes(rate as u64)));
    }
    if let Some(seconds) = eta_seconds {
        text.push_str(&format!(" ETA {seconds:.0} s"));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    use serde_json::json;

    #[test]
    fn a_phase_that_gets_on_shows_its_rate_and_when_it_will_end() {
        let mut rate = Rate::default();
        let seen = |done: u64| json!({"ext": {"phase": "capturing", "bytes_done": done, "bytes_total": 10_000_000, "keys_done": 1234}});
        let first = describe(&mut rate, &seen(1_000_000));
        assert!(
            first.starts_with("capturing ") && first.contains("1,234 keys"),
            "{first}"
        );
        assert!(!first.contains("ETA"), "nothing is known yet: {first}");
        std::thread::sleep(Duration::from_millis(400));
        let second = describe(&mut rate, &seen(5_000_000));
        assert!(second.contains("/s ETA ") && second.ends_with(" s"), "{second}");
        let ended = describe(
            &mut rate,
            &json!({"ext": {"phase": null, "bytes_done": 10_000_000, "bytes_total": 10_000_000}}),
        );
        assert!(!ended.contains("ETA"), "{ended}");
    }
}
