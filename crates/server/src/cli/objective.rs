//! `cachekeep instance rpo`: how old the newest backup of an instance may become.

use clap::Args;
use serde_json::json;

use super::Global;
use super::target::{Target, print_one};

const MINUTES: [(char, i64); 3] = [('m', 1), ('h', 60), ('d', 24 * 60)];

#[derive(Args)]
pub(crate) struct Objective {
    /// Name or id
    instance: String,
    /// How old: 30m, 6h, 1d
    #[arg(value_name = "AGE", value_parser = minutes)]
    age: Option<i64>,
    /// Days that the backups made for it stay; the newest that can be restored stays anyway [default: 7]
    #[arg(long, value_name = "DAYS", requires = "age")]
    keep_days: Option<i64>,
    /// No objective any more
    #[arg(long, conflicts_with = "age")]
    none: bool,
}

fn minutes(text: &str) -> Result<i64, String> {
    let unit = text
        .chars()
        .last()
        .and_then(|last| MINUTES.iter().find(|(unit, _)| *unit == last));
    let number = unit.and_then(|(unit, minutes)| {
        let number: i64 = text.strip_suffix(*unit)?.parse().ok()?;
        number.checked_mul(*minutes).filter(|minutes| *minutes > 0)
    });
    number.ok_or_else(|| "a number of minutes, hours or days is wanted: 30m, 6h, 1d".to_owned())
}

/// Runs the verb.
///
/// # Errors
/// The service does not answer, or what it refused and why.
pub(crate) fn run(global: &Global, verb: &Objective) -> anyhow::Result<()> {
    let target = Target::find(global, &verb.instance)?;
    if verb.age.is_some() || verb.none {
        let wish = json!({"objective_minutes": verb.age, "keep_days": verb.keep_days});
        target.ours("PUT", "/rpo", Some(&wish))?;
    }
    let shown = target.call("GET", "", "", None)?;
    match &shown["ext"]["rpo"] {
        found if found.is_object() => print_one(global, found),
        _ => print_one(global, &json!({"objective_minutes": null, "is_met": null})),
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_age_is_a_number_and_a_unit() {
        assert_eq!(minutes("30m"), Ok(30));
        assert_eq!(minutes("6h"), Ok(360));
        assert_eq!(minutes("2d"), Ok(2880));
        for wrong in ["", "6", "h", "-1h", "0m", "6 h", "1.5h", "9223372036854775807d"] {
            assert!(minutes(wrong).is_err(), "{wrong}");
        }
    }
}
