//! What was measured, beside what was expected: printed, and kept in `docs/benchmarks.md`.

use std::fmt::Write as _;
use std::process::Command;
use std::time::Duration;

use crate::Stop;
use crate::setup::repository;

/// One line of the result.
pub struct Row {
    /// What was compared.
    pub what: String,
    /// Median of the other's figure.
    pub peer: String,
    /// Median of ours.
    pub ours: String,
    /// Median of the ratios of the pairs, or a figure that stands alone.
    pub result: String,
    /// Smallest and largest.
    pub spread: String,
    /// What it must be.
    pub wanted: &'static str,
    /// What was expected before the first measurement.
    pub predicted: &'static str,
}

impl Row {
    /// Times of pairs: each ratio is ours divided by the peer's of the same pair.
    pub fn of_pairs(
        what: impl Into<String>,
        pairs: &[(Duration, Duration)],
        wanted: &'static str,
        predicted: &'static str,
    ) -> Self {
        let ratios: Vec<f64> = pairs
            .iter()
            .map(|(peer, ours)| ours.as_secs_f64() / peer.as_secs_f64())
            .collect();
        let column = |pick: fn(&(Duration, Duration)) -> Duration| {
            median(
                &pairs
                    .iter()
                    .map(|pair| pick(pair).as_secs_f64())
                    .collect::<Vec<f64>>(),
            )
        };
        Self {
            what: what.into(),
            peer: time(column(|pair| pair.0)),
            ours: time(column(|pair| pair.1)),
            result: format!("{:.2}x", median(&ratios)),
            spread: spread(&ratios, |ratio| format!("{ratio:.2}")),
            wanted,
            predicted,
        }
    }

    /// Times that stand alone.
    pub fn of_times(
        what: impl Into<String>,
        times: &[Duration],
        wanted: &'static str,
        predicted: &'static str,
    ) -> Self {
        let seconds: Vec<f64> = times.iter().map(Duration::as_secs_f64).collect();
        Self {
            what: what.into(),
            peer: String::new(),
            ours: time(median(&seconds)),
            result: time(median(&seconds)),
            spread: spread(&seconds, time),
            wanted,
            predicted,
        }
    }

    /// Requests per second of pairs: each ratio is ours divided by the peer's of the same pair.
    pub fn of_rates(
        what: impl Into<String>,
        pairs: &[(f64, f64)],
        wanted: &'static str,
        predicted: &'static str,
    ) -> Self {
        let ratios: Vec<f64> = pairs.iter().map(|(peer, ours)| ours / peer).collect();
        let rate = |values: Vec<f64>| format!("{:.0}/s", median(&values));
        Self {
            what: what.into(),
            peer: rate(pairs.iter().map(|pair| pair.0).collect()),
            ours: rate(pairs.iter().map(|pair| pair.1).collect()),
            result: format!("{:.2}x", median(&ratios)),
            spread: spread(&ratios, |ratio| format!("{ratio:.2}")),
            wanted,
            predicted,
        }
    }

    /// Prints the row as soon as it is known.
    #[must_use]
    pub fn shown(self) -> Self {
        let peer = if self.peer.is_empty() {
            String::new()
        } else {
            format!(" against {}", self.peer)
        };
        println!(
            "  {}: {}, {} ({}{peer}); wanted {}, predicted {}",
            self.what, self.result, self.spread, self.ours, self.wanted, self.predicted
        );
        self
    }
}

fn spread(values: &[f64], show: impl Fn(f64) -> String) -> String {
    let low = values.iter().copied().fold(f64::INFINITY, f64::min);
    let high = values.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    format!("{} to {}", show(low), show(high))
}

/// The middle value; of an even number the mean of the two middle ones.
pub fn median(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    match sorted.len() {
        0 => f64::NAN,
        count if count % 2 == 1 => sorted[count / 2],
        count => f64::midpoint(sorted[count / 2 - 1], sorted[count / 2]),
    }
}

fn time(seconds: f64) -> String {
    match seconds {
        seconds if seconds >= 1.0 => format!("{seconds:.2} s"),
        seconds if seconds >= 0.001 => format!("{:.1} ms", seconds * 1e3),
        seconds => format!("{:.0} us", seconds * 1e6),
    }
}

/// A group of rows under one heading.
pub struct Section {
    /// The heading.
    pub title: &'static str,
    /// How it was measured.
    pub how: String,
    /// The figures.
    pub rows: Vec<Row>,
}

/// Writes the whole document.
///
/// # Errors
/// The file cannot be written.
pub fn write(sections: &[Section], pairs: usize) -> Result<(), Stop> {
    let mut text = String::from(
        "# Benchmarks\n\nWritten by `cargo xtask bench`; do not edit. Medians of pairs: ours and the other are \
         measured in turn in one run, and the ratio is taken within each pair. The figures of another machine, or of \
         another run, are not comparable; the ratios are. \"Predicted\" was written into the program before the \
         first measurement.\n\n",
    );
    let _a_string_takes_all = write!(text, "{}\nPairs per figure: {pairs}.\n", machine());
    for section in sections {
        text.push_str(&rendered(section, ""));
    }
    let path = repository().join("docs/benchmarks.md");
    std::fs::write(&path, text).map_err(|e| Stop::file("write", &path, &e))?;
    println!("written to {}", path.display());
    Ok(())
}

fn rendered(section: &Section, behind_how: &str) -> String {
    let mut text = format!("\n## {}\n\n{}{behind_how}\n\n", section.title, section.how);
    text.push_str("| what | other | ours | result | smallest to largest | wanted | predicted |\n");
    text.push_str("|---|---|---|---|---|---|---|\n");
    for row in &section.rows {
        let _a_string_takes_all = writeln!(
            text,
            "| {} | {} | {} | **{}** | {} | {} | {} |",
            row.what, row.peer, row.ours, row.result, row.spread, row.wanted, row.predicted
        );
    }
    text
}

/// Writes sections that were measured alone in place of those of the same title, with their own commit and load.
///
/// # Errors
/// The document cannot be read or written.
pub fn replace(sections: &[Section]) -> Result<(), Stop> {
    let path = repository().join("docs/benchmarks.md");
    let mut text = std::fs::read_to_string(&path).map_err(|e| Stop::file("read", &path, &e))?;
    let machine = machine();
    let line = |name: &str| {
        let found = machine.lines().find_map(|line| line.strip_prefix(name));
        found.unwrap_or_default().trim().to_owned()
    };
    let alone = format!(
        " Measured alone, on {}, at {}, with a load average of {} before.",
        line("- Date:"),
        line("- Commit:"),
        line("- Load average when the run began:")
    );
    for section in sections {
        let heading = format!("\n## {}\n", section.title);
        let new = rendered(section, &alone);
        match text.find(&heading) {
            Some(start) => {
                let behind = start + heading.len();
                let end = text[behind..].find("\n## ").map_or(text.len(), |at| behind + at);
                text.replace_range(start..end, &new);
            }
            None => text.push_str(&new),
        }
    }
    std::fs::write(&path, text).map_err(|e| Stop::file("write", &path, &e))?;
    println!("written to {}", path.display());
    Ok(())
}

/// Processor, memory, kernel and versions, as Markdown lines.
pub fn machine() -> String {
    let field = |file: &str, name: &str| {
        let text = std::fs::read_to_string(file).unwrap_or_default();
        let line = text
            .lines()
            .find(|line| line.starts_with(name))
            .unwrap_or_default()
            .to_owned();
        line.split_once(':')
            .map(|(_, value)| value.trim().to_owned())
            .unwrap_or_default()
    };
    let says = |program: &str, words: &[&str]| {
        let output = Command::new(program).args(words).output();
        let text = output
            .map(|output| String::from_utf8_lossy(&output.stdout).into_owned())
            .unwrap_or_default();
        text.lines().next().unwrap_or_default().to_owned()
    };
    let release = std::fs::read_to_string("/etc/os-release").unwrap_or_default();
    let system = release
        .lines()
        .find_map(|line| line.strip_prefix("PRETTY_NAME="))
        .unwrap_or_default();
    format!(
        "- Processor: {} x {}\n- Memory: {}\n- Kernel: {}; system: {}\n- {}\n- Commit: {}; {}\n- Date: {}\n\
         - Load average when the run began: {}\n",
        std::thread::available_parallelism().map_or(0, std::num::NonZero::get),
        field("/proc/cpuinfo", "model name"),
        field("/proc/meminfo", "MemTotal"),
        says("uname", &["-r"]),
        system.trim_matches('"'),
        says("redis-server", &["--version"]),
        says(
            "git",
            &[
                "-C",
                &repository().display().to_string(),
                "describe",
                "--always",
                "--dirty"
            ]
        ),
        says("rustc", &["--version"]),
        says("date", &["-u", "+%Y-%m-%d"]),
        std::fs::read_to_string("/proc/loadavg")
            .unwrap_or_default()
            .trim(),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ratios_are_taken_within_pairs() {
        let ms = Duration::from_millis;
        let row = Row::of_pairs(
            "x",
            &[(ms(100), ms(50)), (ms(1000), ms(900)), (ms(10), ms(20))],
            "",
            "",
        );
        assert_eq!(row.result, "0.90x");
        assert_eq!(row.spread, "0.50 to 2.00");
        assert_eq!((row.peer.as_str(), row.ours.as_str()), ("100.0 ms", "50.0 ms"));
    }

    #[test]
    fn the_median_of_an_even_number_lies_between() {
        assert!((median(&[4.0, 1.0, 2.0, 3.0]) - 2.5).abs() < 1e-9);
        assert!((median(&[3.0, 1.0, 2.0]) - 2.0).abs() < 1e-9);
        assert!(median(&[]).is_nan());
    }
}
