//! The wire form of backup and restore records, in both versions.

use std::collections::BTreeMap;

use serde_json::{Value, json};

use crate::service::{Caller, Service, wait};

/// The documented fields of a restore record and whether each may be null.
const RESTORE_FIELDS: [(&str, bool); 11] = [
    ("restore_id", false),
    ("restore_name", false),
    ("backup_id", false),
    ("backup_name", false),
    ("backup_remark", true),
    ("restore_remark", true),
    ("status", false),
    ("progress", false),
    ("created_at", false),
    ("updated_at", false),
    ("error_code", true),
];

/// The documented fields of a backup record; `size` is the only number.
const BACKUP_FIELDS: [(&str, bool); 15] = [
    ("backup_id", false),
    ("backup_name", false),
    ("instance_id", false),
    ("backup_type", false),
    ("backup_format", false),
    ("status", false),
    ("progress", false),
    ("size", false),
    ("period", true),
    ("remark", true),
    ("created_at", false),
    ("execution_at", true),
    ("updated_at", false),
    ("error_code", true),
    ("is_support_restore", false),
];

/// Checks names, types and forms; `further` are names allowed beside the documented ones.
#[track_caller]
fn check_record(record: &Value, fields: &[(&str, bool)], further: &[&str]) {
    let given: BTreeMap<&String, &Value> = record.as_object().unwrap().iter().collect();
    for (name, nullable) in fields {
        let value = &record[name];
        assert!(
            given.contains_key(&(*name).to_owned()),
            "{name} is missing in {record}"
        );
        if value.is_null() {
            assert!(nullable, "{name} is null in {record}");
        } else if *name == "size" {
            assert!(value.is_u64(), "{name} is no number in {record}");
        } else {
            assert!(value.is_string(), "{name} is no text in {record}");
        }
    }
    for name in given.keys() {
        let known = fields.iter().any(|(field, _)| field == name) || further.contains(&name.as_str());
        assert!(known, "{name} does not belong into {record}");
    }
    for (name, _) in fields.iter().filter(|(name, _)| name.ends_with("_at")) {
        if let Some(text) = record[name].as_str() {
            let form: String = text
                .chars()
                .map(|c| if c.is_ascii_digit() { '9' } else { c })
                .collect();
            assert_eq!(form, "9999-99-99T99:99:99.999Z", "{name}");
        }
    }
    let progress = record["progress"].as_str().unwrap();
    let (whole, hundredths) = progress.split_once('.').unwrap();
    assert!(
        whole.parse::<u8>().unwrap() <= 100 && hundredths.len() == 2,
        "{progress}"
    );
}

fn rows(answer: &Value, list: &str) -> Vec<Value> {
    answer[list].as_array().unwrap().clone()
}

fn lists(caller: &Caller, instance: &str, what: &str) -> (Value, Value) {
    let path = format!("/instances/{instance}/{what}");
    let v2 = caller.v2("GET", &path, None).expect(200).json();
    (v2, caller.v1("GET", &path, None).expect(200).json())
}

#[test]
fn lists_without_records_are_200_with_an_empty_array_and_zero() {
    let service = Service::start();
    let caller = service.caller();
    let instance = caller.make_instance("empty");
    for (what, key) in [
        ("backups", "backup_record_response"),
        ("restores", "restore_record_response"),
    ] {
        let (v2, v1) = lists(&caller, &instance, what);
        assert_eq!(v2, json!({key: [], "total_num": 0}));
        assert_eq!(v1, v2);
    }
}

#[test]
fn every_record_has_all_documented_fields_and_no_more_beside_ext() {
    let service = Service::start();
    let caller = service.caller();
    let instance = caller.make_instance("whole");
    caller.engine(&instance).ask(&["SET", "key", "value"]).unwrap();
    let backup = caller.make_backup(&instance, "doctest");
    let plain = caller.v2(
        "POST",
        &format!("/instances/{instance}/restores"),
        Some(&json!({"backup_id": backup})),
    );
    let first = plain.expect(200).json()["restore_id"]
        .as_str()
        .unwrap()
        .to_owned();
    caller.wait_end(&instance, "restores", &first);
    let second = caller.make_restore(&instance, &backup, "with a remark");

    let (v2, v1) = lists(&caller, &instance, "restores");
    assert_eq!((&v2["total_num"], &v1["total_num"]), (&json!(2), &json!(2)));
    let (v2, v1) = (
        rows(&v2, "restore_record_response"),
        rows(&v1, "restore_record_response"),
    );
    let ids: Vec<&Value> = v2.iter().map(|record| &record["restore_id"]).collect();
    assert_eq!(ids, [&json!(second), &json!(first)], "newest first");
    for record in &v2 {
        check_record(record, &RESTORE_FIELDS, &["ext"]);
        assert_eq!(
            (&record["status"], &record["progress"]),
            (&json!("succeed"), &json!("100.00"))
        );
        assert_eq!(
            (&record["backup_id"], &record["backup_remark"]),
            (&json!(backup), &json!("doctest"))
        );
        assert!(record["restore_name"].as_str().unwrap().starts_with("restore_20"));
        assert_eq!(record["error_code"], Value::Null);
        assert!(record["created_at"].as_str() <= record["updated_at"].as_str());
    }
    assert_eq!(v2[0]["restore_remark"], "with a remark");
    assert_eq!(v2[1]["restore_remark"], Value::Null);
    for (record, same) in v1.iter().zip(&v2) {
        check_record(
            record,
            &RESTORE_FIELDS,
            &["ext", "sourceInstanceId", "sourceInstanceName"],
        );
        assert_eq!(
            (&record["sourceInstanceId"], &record["sourceInstanceName"]),
            (&json!(instance), &json!("whole"))
        );
        assert_eq!(record["restore_id"], same["restore_id"]);
    }

    let (v2, v1) = lists(&caller, &instance, "backups");
    let (v2, v1) = (
        rows(&v2, "backup_record_response"),
        rows(&v1, "backup_record_response"),
    );
    for record in &v2 {
        check_record(record, &BACKUP_FIELDS, &["ext"]);
    }
    let mine = |records: &[Value]| {
        records
            .iter()
            .find(|row| row["backup_id"] == json!(backup))
            .unwrap()
            .clone()
    };
    let record = mine(&v2);
    assert_eq!(record["backup_type"], "manual");
    assert_eq!(record["backup_format"], "rdb");
    assert_eq!(record["is_support_restore"], "TRUE");
    assert_eq!(record["period"], Value::Null);
    assert_eq!(record["instance_id"], json!(instance));
    assert!(record["size"].as_u64().unwrap() > 0);
    assert!(record["backup_name"].as_str().unwrap().starts_with("backup_20"));
    let record = mine(&v1);
    check_record(&record, &BACKUP_FIELDS, &["ext"]);
    assert_eq!(record["backup_format"], "RDB");
}

/// The only record of a list, in both versions, with all its fields, once it has this status.
fn seen_as(caller: &Caller, instance: &str, what: &str, status: &str) -> Value {
    let (key, fields) = match what {
        "backups" => ("backup_record_response", &BACKUP_FIELDS[..]),
        _ => ("restore_record_response", &RESTORE_FIELDS[..]),
    };
    wait(&format!("{what} that are {status}"), || {
        let (v2, v1) = lists(caller, instance, what);
        let (v2, v1) = (rows(&v2, key)[0].clone(), rows(&v1, key)[0].clone());
        if v2["status"] != status || v1["status"] != status {
            return None;
        }
        check_record(&v2, fields, &["ext"]);
        let further = ["ext", "sourceInstanceId", "sourceInstanceName"];
        check_record(&v1, fields, &further[..if what == "backups" { 1 } else { 3 }]);
        Some(v2)
    })
}

#[test]
fn records_that_wait_run_or_failed_have_all_documented_fields_too() {
    // Each place holds its job for five seconds, once.
    let places = "backup.claimed:stall,backup.begun:stall,restore.claimed:stall,restore.begun:stall";
    let service = Service::start_with(&[], &[("CACHEKEEP_FAILPOINT", places)]);
    let caller = service.caller();
    let instance = caller.make_instance("unfinished");
    caller.engine(&instance).ask(&["SET", "key", "value"]).unwrap();
    caller.start_backup(&instance, "stopped");
    let record = seen_as(&caller, &instance, "backups", "waiting");
    assert_eq!(
        (&record["progress"], &record["size"], &record["execution_at"]),
        (&json!("0.00"), &json!(0), &Value::Null)
    );
    assert_eq!(
        (&record["error_code"], &record["is_support_restore"]),
        (&Value::Null, &json!("FALSE"))
    );
    let record = seen_as(&caller, &instance, "backups", "backuping");
    assert!(record["execution_at"].is_string() && record["error_code"].is_null());
    assert_eq!(record["is_support_restore"], "FALSE");
    let restart = json!({"instances": [instance], "action": "restart"});
    caller.v2("PUT", "/instances/status", Some(&restart)).expect(200);
    let record = seen_as(&caller, &instance, "backups", "failed");
    assert_eq!(
        (
            &record["error_code"],
            &record["size"],
            &record["is_support_restore"]
        ),
        (&json!("dcs.08.0001"), &json!(0), &json!("FALSE"))
    );
    caller.wait_idle(&instance);

    let backup = caller.make_backup(&instance, "");
    caller.start_restore(&instance, &backup, "");
    let record = seen_as(&caller, &instance, "restores", "waiting");
    assert_eq!(
        (&record["progress"], &record["error_code"]),
        (&json!("0.00"), &Value::Null)
    );
    let record = seen_as(&caller, &instance, "restores", "restoring");
    assert_eq!(
        (&record["backup_id"], &record["error_code"]),
        (&json!(backup), &Value::Null)
    );
    seen_as(&caller, &instance, "restores", "succeed");
    caller.wait_idle(&instance);
    // Truncated where it lies.
    let mut segments = Vec::new();
    files_below(&service.data().join("store"), &mut segments);
    segments.retain(|path| path.to_string_lossy().contains("seg-"));
    assert_eq!(segments.len(), 1);
    std::fs::write(&segments[0], b"age-encryption.org/v1\n").unwrap();
    caller.start_restore(&instance, &backup, "spoilt");
    let record = seen_as(&caller, &instance, "restores", "failed");
    let code = record["error_code"].as_str().unwrap();
    assert!(["dcs.08.0006", "dcs.08.0007"].contains(&code), "{record}");
    let ext = &record["ext"];
    assert!(
        ["untouched", "rolled_back"].contains(&ext["target_state"].as_str().unwrap()),
        "{ext}"
    );
    let told = ext["failure"].as_str().unwrap();
    assert!(!told.is_empty());
    let place = service.data().to_str().unwrap().to_owned();
    assert!(
        !told.contains(&place) && !told.contains("/instances/"),
        "a tenant is told {told}"
    );
    assert_eq!(
        caller.engine(&instance).ask(&["GET", "key"]).unwrap().text(),
        Some("value"),
        "the old data serves"
    );
}

fn files_below(folder: &std::path::Path, found: &mut Vec<std::path::PathBuf>) {
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            files_below(&path, found);
        } else {
            found.push(path);
        }
    }
}

#[test]
fn a_restores_record_says_until_when_it_can_be_undone() {
    let service = Service::start_with(&["--undo-keep", "3600"], &[]);
    let caller = service.caller();
    let instance = caller.make_instance("undoable");
    let backup = caller.make_backup(&instance, "");
    let until = |restore: &str| {
        let path = format!("/instances/{instance}/restores");
        let one = || {
            let shown = caller.ck("GET", &format!("{path}/{restore}"), None).expect(200);
            shown.json()["ext"]["undo_until"].clone()
        };
        let before = one();
        let list = caller.get(&path).expect(200).json();
        let listed = rows(&list, "restore_record_response")
            .into_iter()
            .find(|row| row["restore_id"] == json!(restore))
            .unwrap();
        let one = one();
        // It may end between two calls.
        if before == one {
            assert_eq!(one, listed["ext"]["undo_until"]);
        }
        one.as_str().map(|text| text.parse::<jiff::Timestamp>().unwrap())
    };
    let first = caller.make_restore(&instance, &backup, "");
    let left = until(&first).expect("a moment") - jiff::Timestamp::now();
    let left = left.as_secs_f64();
    assert!((3500.0..=3600.0).contains(&left), "{left}");
    let second = caller.make_restore(&instance, &backup, "");
    assert!(until(&second).is_some());
    wait("the end of what the first replaced: only one is kept", || {
        until(&first).is_none().then_some(())
    });
    let undo = format!("/instances/{instance}/restores/{second}/undo");
    let undone = caller.ck("POST", &undo, None).expect(200).json();
    let undone = undone["restore_id"].as_str().unwrap();
    caller.wait_end(&instance, "restores", undone);
    assert_eq!(until(&second), None, "it is undone");
    assert!(until(undone).is_some(), "an undo can be undone");
}

#[test]
fn strict_mode_answers_with_the_documented_fields_only_and_refuses_single_nodes() {
    let service = Service::start_with(&["--strict-dcs"], &[]);
    let caller = service.caller();
    let instance = caller.make_instance("strict");
    let shown = caller.get(&format!("/instances/{instance}")).expect(200).json();
    assert_eq!(shown.get("ext"), None);
    for what in ["backups", "restores"] {
        let path = format!("/instances/{instance}/{what}");
        let wish = json!({"backup_id": "f4823e9e-fe9b-4ffd-be79-4e5d6de272bb"});
        caller.v2("POST", &path, Some(&wish)).refused("400 DCS.4086");
        caller.v1("POST", &path, Some(&wish)).refused("400 111400086");
        if what == "restores" {
            caller.ck("POST", &path, Some(&wish)).refused("400 DCS.4086");
        }
        assert_eq!(
            caller.get(&path).json()["total_num"],
            0,
            "a refused call leaves no record"
        );
    }
    let plan = json!({"period_type": "weekly", "backup_at": [1], "begin_at": "00:00-01:00"});
    let policy = |days: u64| json!({"instance_backup_policy": {"backup_type": "auto", "save_days": days, "periodical_backup_plan": plan}});
    let one = format!("/instances/{instance}");
    caller.v2("PUT", &one, Some(&policy(8))).refused("400 DCS.4072");
    caller.v2("PUT", &one, Some(&policy(7))).expect(204);
    caller.v2("DELETE", &one, None).expect(204);
    for what in ["backups", "restores"] {
        caller
            .get(&format!("{one}/{what}?include_deleted=true"))
            .refused("404 DCS.3022");
    }
    let all = caller.get("/instances?include_delete=true").expect(200).json();
    assert_eq!(all["instance_num"], 0);
}

#[test]
fn remarks_of_128_characters_come_back_unchanged_and_one_more_is_refused() {
    let service = Service::start();
    let caller = service.caller();
    let instance = caller.make_instance("remarks");
    let path = format!("/instances/{instance}/backups");
    let emoji = "\u{1f4be}".repeat(128);
    let odd = "quotes \" ' \\ / < > & \u{7} \u{5907}\u{4efd} \u{e9}\u{301} \r\n\t null NaN";
    for remark in ["", "x".repeat(128).as_str(), &emoji, odd, "  blanks kept  "] {
        let id = caller.make_backup(&instance, remark);
        let restore = caller.make_restore(&instance, &id, remark);
        let record = caller.ck("GET", &format!("{path}/{id}"), None).json();
        assert_eq!(record["remark"].as_str().unwrap_or_default(), remark);
        let record = caller
            .ck("GET", &format!("/instances/{instance}/restores/{restore}"), None)
            .json();
        assert_eq!(record["restore_remark"].as_str().unwrap_or_default(), remark);
        assert_eq!(record["backup_remark"].as_str().unwrap_or_default(), remark);
    }
    let before = caller.get(&path).json()["total_num"].clone();
    for remark in ["x".repeat(129), "\u{1f4be}".repeat(129)] {
        let wish = json!({"remark": remark});
        caller.v2("POST", &path, Some(&wish)).refused("400 DCS.4098");
        caller.v1("POST", &path, Some(&wish)).refused("400 111400098");
        let wish = json!({"remark": remark, "backup_id": "f4823e9e-fe9b-4ffd-be79-4e5d6de272bb"});
        caller
            .v2("POST", &format!("/instances/{instance}/restores"), Some(&wish))
            .refused("400 DCS.4098");
    }
    assert_eq!(caller.get(&path).json()["total_num"], before);
}
