//! Backup policies over HTTP: every field that breaks its rule has its own code, at creation and at a change, and what
//! is refused changes nothing.

use serde_json::{Value, json};

use crate::service::{Caller, Service};

fn policy(period: Value, days: Value, begin: Value) -> Value {
    json!({"backup_type": "auto", "save_days": 1, "periodical_backup_plan": {
        "period_type": period, "backup_at": days, "begin_at": begin}})
}

/// Policies that break a rule, and the digits of the code for it.
fn broken() -> Vec<(Value, u32)> {
    let weekly = || json!("weekly");
    let (days, begin) = (|| json!([1, 7]), || json!("00:00-01:00"));
    let mut all = vec![
        (json!({"backup_type": "auto", "save_days": 0}), 4072),
        (json!({"backup_type": "auto", "save_days": "1,"}), 4072),
        (json!({"backup_type": "auto"}), 4072),
        (json!({"backup_type": "daily"}), 4073),
        (json!({"backup_type": 1}), 4073),
        (json!({"backup_type": "auto", "save_days": 1}), 4063),
        (json!("auto"), 4063),
    ];
    for period in [json!("daily"), json!("Weekly"), json!(""), json!(7), Value::Null] {
        all.push((policy(period, days(), begin()), 4074));
    }
    for at in [
        json!([]),
        json!([0]),
        json!([8]),
        json!([1, 1]),
        json!(["monday"]),
        json!([1.5]),
        json!("1"),
        Value::Null,
    ] {
        all.push((policy(weekly(), at, begin()), 4075));
    }
    for at in [
        json!("00:30-01:00"),
        json!("0:00-1:00"),
        json!("00:00"),
        json!("24:00-01:00"),
        json!("00:00-25:00"),
        json!("midnight"),
        json!(""),
        json!(0),
        Value::Null,
    ] {
        all.push((policy(weekly(), days(), at), 4076));
    }
    all
}

/// Both versions refuse the call with the code, each in its form.
#[track_caller]
fn check_refused(caller: &Caller, method: &str, path: &str, body: &Value, code: u32) {
    let flat = caller
        .v2(method, path, Some(body))
        .refused(&format!("400 DCS.{code}"))
        .json();
    assert!(flat["error_msg"].is_string(), "{flat}");
    caller
        .v1(method, path, Some(body))
        .refused(&format!("400 111400{:03}", code % 1000));
}

#[test]
fn every_field_of_a_policy_that_breaks_its_rule_has_its_own_code_and_changes_nothing() {
    let service = Service::start();
    let caller = service.caller();
    let instance = caller.make_instance("with-policy");
    let path = format!("/instances/{instance}");
    let good = policy(json!("weekly"), json!(["1", 7]), json!("22:00-24:00"));
    caller
        .v2("PUT", &path, Some(&json!({"instance_backup_policy": good})))
        .expect(204);
    let kept = caller.get(&path).json()["instance_backup_policy"].clone();
    assert_eq!(
        kept["policy"]["periodical_backup_plan"],
        json!({"period_type": "weekly", "backup_at": [1, 7], "begin_at": "22:00-24:00"}),
        "{kept}"
    );
    for (policy, code) in broken() {
        let change = json!({"instance_backup_policy": policy});
        check_refused(&caller, "PUT", &path, &change, code);
        let wish = json!({"name": "another", "engine": "Redis", "capacity": 0.125, "no_password_access": true,
                          "spec_code": "redis.single.xu1.tiny.128", "instance_backup_policy": policy});
        check_refused(&caller, "POST", "/instances", &wish, code);
    }
    assert_eq!(caller.get(&path).json()["instance_backup_policy"], kept);
    assert_eq!(caller.get("/instances").json()["instance_num"], 1);
}
