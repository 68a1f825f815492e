//! The wire form of backup and restore records, in both versions.

use std::collections::BTreeMap;

use serde_json::{Value, json};

use crate::service::{Caller, Service};

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
        assert_eq!(
            caller.get(&path).json()["total_num"],
            0,
            "a refused call leaves no record"
        );
    }
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
