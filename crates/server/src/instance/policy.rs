//! The DCS backup policy: checked, kept as given, and what is due by it; contract §8.1 and §8.2.

use serde_json::{Map, Value, json};

use crate::ids::{Moment, ProjectId};
use crate::refusal::Refusal;
use crate::schedule::Plan;
use crate::schedule::cron::Cron;
use crate::schedule::record::Task;

/// Days that an automatic backup may be kept; DCS itself allows 7.
const SAVE_DAYS_MAX: i64 = 3650;
const SAVE_DAYS_MAX_STRICT: i64 = 7;
const DAY_MS: i64 = 24 * 3_600_000;

/// Checks a policy of a request and returns it in the form that is stored and shown.
///
/// # Errors
/// The refusal of the first field that breaks its rule.
pub fn accept(
    given: &Value,
    old: Option<&str>,
    project: &ProjectId,
    strict: bool,
    now: Moment,
) -> Result<String, Refusal> {
    let given = given
        .as_object()
        .ok_or(Refusal::Parameter("instance_backup_policy"))?;
    let kind = match given.get("backup_type") {
        None | Some(Value::Null) => "manual",
        Some(value) => match value.as_str() {
            Some(kind @ ("auto" | "manual")) => kind,
            _ => return Err(Refusal::PolicyType),
        },
    };
    let old: Option<Value> = old.and_then(|text| serde_json::from_str(text).ok());
    let mut policy = match (kind, &old) {
        // Switching to manual keeps the plan and goes on showing it.
        ("manual", Some(old)) => old["policy"].as_object().cloned().unwrap_or_default(),
        _ => Map::new(),
    };
    policy.insert("backup_type".to_owned(), json!(kind));
    if kind == "auto" || given.contains_key("save_days") {
        let most = if strict {
            SAVE_DAYS_MAX_STRICT
        } else {
            SAVE_DAYS_MAX
        };
        let days = given
            .get("save_days")
            .and_then(digits)
            .filter(|days| (1..=most).contains(days));
        policy.insert(
            "save_days".to_owned(),
            json!(days.ok_or(Refusal::PolicySaveDays)?),
        );
    }
    match given.get("periodical_backup_plan") {
        Some(Value::Object(plan)) => {
            policy.insert("periodical_backup_plan".to_owned(), plan_of(plan)?);
        }
        None | Some(Value::Null) if kind == "manual" => {}
        _ => return Err(Refusal::Parameter("periodical_backup_plan")),
    }
    let id = match &old {
        Some(old) => old["backup_policy_id"].clone(),
        None => json!(uuid::Uuid::new_v4().to_string()),
    };
    let created_at = match &old {
        Some(old) => old["created_at"].clone(),
        None => json!(now.iso()),
    };
    let shown = json!({
        "backup_policy_id": id,
        "created_at": created_at,
        "updated_at": now.iso(),
        "tenant_id": project.as_str(),
        "policy": policy,
    });
    Ok(shown.to_string())
}

/// When backups are due by a policy in its stored form; `None` where none ever is.
pub fn plan(stored: &str) -> Option<Plan> {
    let stored: Value = serde_json::from_str(stored).ok()?;
    let policy = &stored["policy"];
    if policy["backup_type"] != "auto" {
        return None;
    }
    let weekly = &policy["periodical_backup_plan"];
    let days: Vec<u8> = weekly["backup_at"]
        .as_array()?
        .iter()
        .filter_map(|day| u8::try_from(day.as_u64()?).ok())
        .collect();
    let period = weekly["begin_at"].as_str()?;
    let (from, to) = period.split_once('-')?;
    let (from, to) = (hour(from)?, hour(to)?);
    // From one day into the next, or a whole day.
    let hours = if to > from { to - from } else { to + 24 - from };
    let updated_at: jiff::Timestamp = stored["updated_at"].as_str()?.parse().ok()?;
    Some(Plan {
        schedule: stored["backup_policy_id"].as_str()?.to_owned(),
        task: Task::Backup,
        cron: Cron::weekly(
            &days,
            from,
            weekly["timezone_offset"].as_str().map_or(0, offset_seconds),
        )
        .ok()?,
        window_ms: i64::from(hours) * 3_600_000,
        since: Moment(updated_at.as_millisecond()),
        keep_ms: policy["save_days"].as_i64().map(|days| days * DAY_MS),
        period: Some(period.to_owned()),
    })
}

/// Of `+0530`.
fn offset_seconds(zone: &str) -> i32 {
    let part = |from: usize| zone.get(from..from + 2).and_then(|text| text.parse::<i32>().ok());
    let seconds = part(1).unwrap_or(0) * 3600 + part(3).unwrap_or(0) * 60;
    if zone.starts_with('-') { -seconds } else { seconds }
}

/// A whole hour: `00:00` to `24:00`.
fn hour(text: &str) -> Option<u8> {
    let (hour, minute) = text.split_once(':')?;
    let hour: u8 = (hour.len() == 2).then(|| hour.parse().ok())??;
    (hour <= 24 && minute == "00").then_some(hour)
}

fn plan_of(plan: &Map<String, Value>) -> Result<Value, Refusal> {
    if plan.get("period_type").and_then(Value::as_str) != Some("weekly") {
        return Err(Refusal::PolicyPeriod);
    }
    let days = plan
        .get("backup_at")
        .and_then(Value::as_array)
        .ok_or(Refusal::PolicyDays)?;
    let mut week = Vec::new();
    for day in days {
        let day = digits(day).filter(|day| (1..=7).contains(day) && !week.contains(day));
        week.push(day.ok_or(Refusal::PolicyDays)?);
    }
    if week.is_empty() {
        return Err(Refusal::PolicyDays);
    }
    let window = plan
        .get("begin_at")
        .and_then(Value::as_str)
        .ok_or(Refusal::PolicyBegin)?;
    let bounds = window
        .split_once('-')
        .and_then(|(from, to)| Some((hour(from)?, hour(to)?)));
    if bounds.is_none_or(|(from, _)| from > 23) {
        return Err(Refusal::PolicyBegin);
    }
    let zone = match plan.get("timezone_offset") {
        None | Some(Value::Null) => Value::Null,
        Some(Value::String(zone)) if zone_is_valid(zone) => json!(zone),
        Some(_) => return Err(Refusal::Parameter("timezone_offset")),
    };
    let mut shown = json!({ "period_type": "weekly", "backup_at": week, "begin_at": window });
    if !zone.is_null() {
        shown["timezone_offset"] = zone;
    }
    Ok(shown)
}

fn zone_is_valid(zone: &str) -> bool {
    let (sign, rest) = zone.split_at_checked(1).unwrap_or(("", ""));
    let digits = rest.len() == 4 && rest.bytes().all(|byte| byte.is_ascii_digit());
    matches!(sign, "+" | "-")
        && digits
        && rest[..2] <= *"12"
        && rest[2..] <= *"59"
        && (rest[..2] < *"12" || rest[2..] == *"00")
}

fn digits(value: &Value) -> Option<i64> {
    match value {
        Value::Number(number) => number.as_i64(),
        Value::String(text) if text.bytes().all(|byte| byte.is_ascii_digit()) => text.parse().ok(),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(given: Value) -> Result<Value, Refusal> {
        let text = accept(&given, None, &ProjectId::random(), false, Moment(0))?;
        Ok(serde_json::from_str(&text).unwrap())
    }

    #[test]
    fn a_whole_policy_is_shown_as_given_with_digits_as_numbers() {
        let shown = check(json!({"backup_type": "auto", "save_days": "7", "periodical_backup_plan": {
            "period_type": "weekly", "backup_at": ["1", 2], "begin_at": "02:00-04:00", "timezone_offset": "+0800"}}))
        .unwrap();
        assert_eq!(shown["policy"]["save_days"], 7);
        assert_eq!(
            shown["policy"]["periodical_backup_plan"]["backup_at"],
            json!([1, 2])
        );
        assert_eq!(
            shown["policy"]["periodical_backup_plan"]["begin_at"],
            "02:00-04:00"
        );
    }

    #[test]
    fn each_broken_field_has_its_own_refusal() {
        let plan =
            |at: Value, begin: &str| json!({"period_type": "weekly", "backup_at": at, "begin_at": begin});
        let with =
            |plan: Value| json!({"backup_type": "auto", "save_days": 1, "periodical_backup_plan": plan});
        assert!(matches!(
            check(json!({"backup_type": "x"})),
            Err(Refusal::PolicyType)
        ));
        assert!(matches!(
            check(json!({"backup_type": "auto", "save_days": "1,"})),
            Err(Refusal::PolicySaveDays)
        ));
        assert!(matches!(
            check(with(json!({"period_type": "daily"}))),
            Err(Refusal::PolicyPeriod)
        ));
        assert!(matches!(
            check(with(plan(json!([1, 1]), "00:00-01:00"))),
            Err(Refusal::PolicyDays)
        ));
        assert!(matches!(
            check(with(plan(json!([8]), "00:00-01:00"))),
            Err(Refusal::PolicyDays)
        ));
        assert!(matches!(
            check(with(plan(json!([1]), "00:30-01:00"))),
            Err(Refusal::PolicyBegin)
        ));
        assert!(matches!(
            check(json!({"backup_type": "auto", "save_days": 1})),
            Err(Refusal::Parameter(_))
        ));
    }
}
