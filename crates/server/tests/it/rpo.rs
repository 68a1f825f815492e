//! Objectives: how old the newest backup of an instance may become. Days pass as in `schedule.rs`.

use serde_json::{Value, json};

use crate::schedule::{Clock, records, wait_records};
use crate::service::{Caller, Service, wait};

const MINUTE: i64 = 60_000;
const HOUR: i64 = 60 * MINUTE;

fn set(caller: &Caller, instance: &str, minutes: Value) {
    let wish = json!({"objective_minutes": minutes});
    caller
        .ck("PUT", &format!("/instances/{instance}/rpo"), Some(&wish))
        .expect(200);
}

fn shown(caller: &Caller, instance: &str) -> Value {
    let path = format!("/instances/{instance}");
    caller.get(&path).expect(200).json()["ext"]["rpo"].clone()
}

fn moment(value: &Value) -> i64 {
    let text = value.as_str().unwrap_or_else(|| panic!("{value} is no moment"));
    text.parse::<jiff::Timestamp>().unwrap().as_millisecond()
}

#[test]
fn a_backup_is_made_whenever_the_newest_one_would_become_too_old_and_only_then() {
    let mut clock = Clock::at("2027-06-01T00:00:00Z");
    let mut service = Service::start_with(&[], &[clock.variable()]);
    let caller = service.logged_in();
    let (instance, other) = (
        caller.make_instance("six-hours"),
        caller.make_instance("a-marker"),
    );
    for wrong in [
        json!({}),
        json!({"objective_minutes": 0}),
        json!({"objective_minutes": 360, "keep_days": 0}),
    ] {
        caller
            .ck("PUT", &format!("/instances/{instance}/rpo"), Some(&wrong))
            .refused("400 DCS.4063");
    }
    assert_eq!(shown(&caller, &instance), Value::Null);
    set(&caller, &instance, json!(360));
    let first = &wait_records(&service, &instance, 1)[0];
    assert_eq!(first["status"], "succeed", "{first}");
    assert_eq!(first["ext"]["run"]["schedule_id"], format!("rpo-{instance}"));
    let told = shown(&caller, &instance);
    assert_eq!(
        (&told["objective_minutes"], &told["keep_days"]),
        (&json!(360), &json!(7)),
        "{told}"
    );
    assert_eq!(told["is_met"], true, "{told}");
    let lasts = moment(&first["ext"]["expires_at"]) - moment(&told["newest_backup_at"]);
    assert!((lasts - 7 * 24 * HOUR).abs() < MINUTE, "{lasts}");
    // A tenth of it at least before it is missed, and a fifth at most: the backup takes no time.
    let next = moment(&told["next_at"]) - moment(&told["newest_backup_at"]);
    assert!((288 * MINUTE..=324 * MINUTE).contains(&next), "{next}");

    // A backup of somebody puts the next one off: when its time has come nothing happens.
    clock.pass(3 * HOUR);
    caller.make_backup(&instance, "by hand");
    let by_hand = shown(&caller, &instance);
    assert!(moment(&by_hand["next_at"]) >= moment(&told["next_at"]) + 3 * HOUR - MINUTE);
    clock.pass(3 * HOUR);
    // Whoever looks at the other one has looked at this one.
    set(&caller, &other, json!(360));
    wait_records(&service, &other, 1);
    assert_eq!(records(&service, &instance).len(), 2);
    clock.pass(3 * HOUR);
    let rows = wait_records(&service, &instance, 3);
    assert_eq!(rows[2]["status"], "succeed", "{rows:?}");
    assert_eq!(shown(&caller, &instance)["is_met"], true);

    // Three days away: one backup makes up for it, and what was missed is not told as runs.
    service.kill();
    clock.pass(72 * HOUR);
    let variables = [clock.variable()];
    service.start_again_in(&variables);
    let rows = wait_records(&service, &instance, 4);
    assert_eq!(rows[3]["status"], "succeed", "{rows:?}");
    wait_records(&service, &other, 2);

    // Without room for it: a failed record, and others ever more seldom.
    let caller = service.logged_in();
    set(&caller, &other, Value::Null);
    service.run_json(&["project", "quota", &caller.project, "--bytes", "1"]);
    clock.pass(7 * HOUR);
    for (count, pause) in [(5, 5), (6, 10), (7, 20)] {
        let rows = wait_records(&service, &instance, count);
        let last = rows.last().unwrap();
        assert_eq!(
            (&last["status"], &last["error_code"]),
            (&json!("failed"), &json!("dcs.08.0005"))
        );
        assert_eq!(last["ext"]["run"]["try_number"], count - 4, "{last}");
        assert_eq!(shown(&caller, &instance)["is_met"], false);
        clock.pass(pause * MINUTE + 1000);
    }
    service.run_json(&["project", "quota", &caller.project, "--unlimited"]);
    clock.pass(HOUR);
    let rows = wait("a backup that has room", || {
        let rows = records(&service, &instance);
        (rows.last().unwrap()["status"] == "succeed").then_some(rows)
    });
    assert!(rows.len() <= 9, "{rows:?}");
    assert_eq!(records(&service, &other).len(), 2);
}

#[test]
fn the_command_line_and_the_metrics_tell_an_objective() {
    let service = Service::start_with(&["--metrics-listen", "127.0.0.1:0"], &[]);
    let caller = service.caller();
    let instance = caller.make_instance("told");
    let none = service.run_json(&["instance", "rpo", "told"]);
    assert_eq!(none["objective_minutes"], Value::Null);
    service.run_json(&["instance", "rpo", "told", "6h", "--keep-days", "3"]);
    let found = wait("a backup for the objective", || {
        let found = service.run_json(&["instance", "rpo", "told"]);
        (found["is_met"] == true).then_some(found)
    });
    assert_eq!(
        (&found["objective_minutes"], &found["keep_days"]),
        (&json!(360), &json!(3))
    );
    let page = crate::metrics::page(&service);
    let of = format!(
        "{{project_id=\"{}\",instance_id=\"{instance}\",name=\"told\"}}",
        caller.project
    );
    assert!(
        page.contains(&format!("cachekeep_instance_rpo_seconds{of} 21600\n")),
        "{page}"
    );
    let age = page
        .lines()
        .find_map(|line| line.strip_prefix(&format!("cachekeep_instance_rpo_age_seconds{of} ")))
        .unwrap_or_else(|| panic!("{page}"));
    assert!((0.0..600.0).contains(&age.parse::<f64>().unwrap()), "{age}");
    let gone = service.run_json(&["instance", "rpo", "told", "--none"]);
    assert_eq!(gone["objective_minutes"], Value::Null);
    assert!(!crate::metrics::page(&service).contains("cachekeep_instance_rpo_age_seconds{"));
}
