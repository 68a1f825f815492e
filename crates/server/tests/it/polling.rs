//! What Terraform's provider waits for, at every step that it can look.

use serde_json::{Value, json};

use crate::service::{Caller, Service, wait};

/// The record of this id from the list, as the provider finds it.
#[track_caller]
fn listed(caller: &Caller, instance: &str, what: &str, key: &str, id: &str) -> Value {
    let page = caller
        .get(&format!("/instances/{instance}/{what}?limit=1000&offset=0"))
        .expect(200)
        .json();
    let rows = page[format!("{key}_record_response")].as_array().unwrap();
    let found = rows.iter().find(|row| row[format!("{key}_id")] == json!(id));
    found
        .unwrap_or_else(|| panic!("{id} is not listed: {page}"))
        .clone()
}

#[test]
fn a_record_is_there_before_the_200_and_moves_forward_only() {
    let service = Service::start();
    let caller = service.caller();
    let instance = caller.make_instance("polled");
    let mut engine = caller.engine(&instance);
    for number in 0..20_000 {
        engine.send(&["SET", &format!("key:{number}"), "value"]).unwrap();
    }
    engine.settle().unwrap();
    let follow = |what: &str, key: &str, id: &str, working: &str| {
        let mut states: Vec<String> = Vec::new();
        let mut progress = 0.0;
        wait("the end of a record", || {
            // The record first, then the instance: a record that has ended promises that the instance serves.
            let record = listed(&caller, &instance, what, key, id);
            let shown = caller.get(&format!("/instances/{instance}")).expect(200).json();
            let status = record["status"].as_str().unwrap();
            assert!(["waiting", working, "succeed"].contains(&status), "{record}");
            if states.last().map(String::as_str) != Some(status) {
                assert!(
                    !states.iter().any(|seen| seen == status),
                    "{status} again after {states:?}"
                );
                states.push(status.to_owned());
            }
            let now: f64 = record["progress"].as_str().unwrap().parse().unwrap();
            assert!(now >= progress, "from {progress} back to {now}");
            progress = now;
            assert!(
                ["RUNNING", "RESTORING"].contains(&shown["status"].as_str().unwrap()),
                "{shown}"
            );
            if status == "succeed" {
                assert_eq!(shown["status"], "RUNNING", "RUNNING no later than succeed");
                assert_eq!(now, 100.0);
            }
            (status == "succeed").then_some(())
        });
    };
    let mut previous = String::new();
    for round in 0..10 {
        let backup = caller.start_backup(&instance, "");
        follow("backups", "backup", &backup, "backuping");
        caller.wait_idle(&instance);
        let restore = caller.start_restore(&instance, &backup, "");
        let first = listed(&caller, &instance, "restores", "restore", &restore);
        assert_ne!(first["status"], "failed", "round {round}");
        follow("restores", "restore", &restore, "restoring");
        // The provider issues its next call at once.
        let again = caller.v2(
            "PUT",
            &format!("/instances/{instance}"),
            Some(&json!({"name": "polled"})),
        );
        assert_eq!(again.verdict(), "204 ", "round {round}: {}", again.text());
        caller
            .v2("DELETE", &format!("/instances/{instance}/backups/{backup}"), None)
            .expect(204);
        let page = caller
            .get(&format!("/instances/{instance}/backups?limit=1000"))
            .json();
        assert!(!page.to_string().contains(&backup), "deleted is absent");
        previous = restore;
    }
    let kept = listed(&caller, &instance, "restores", "restore", &previous);
    assert_eq!(kept["status"], "succeed");
}

#[test]
fn an_instance_is_created_shown_updated_and_gone_after_its_deletion() {
    let service = Service::start();
    let caller = service.caller();
    let wish = json!({
        "name": "terraform", "engine": "Redis", "engine_version": 7.0, "capacity": 0.125,
        "spec_code": "redis.single.xu1.tiny.128", "az_codes": ["local"], "vpc_id": "a-vpc", "subnet_id": "a-subnet",
        "security_group_id": "a-group", "password": "Abcdefg1", "no_password_access": "false", "description": "d",
        "maintain_begin": "22:00:00", "maintain_end": "02:00:00", "tags": [{"key": "k", "value": "v"}],
        "instance_backup_policy": {"backup_type": "auto", "save_days": 3, "periodical_backup_plan":
            {"period_type": "weekly", "backup_at": [1, 3], "begin_at": "02:00-04:00"}},
        "bss_param": {"charging_mode": 0}, "unknown": null,
    });
    let made = caller.v2("POST", "/instances", Some(&wish)).expect(200).json();
    assert_eq!(
        made.get("order_id"),
        None,
        "or the provider asks the billing service"
    );
    let id = made["instances"][0]["instance_id"].as_str().unwrap().to_owned();
    let path = format!("/instances/{id}");
    let first = caller.get(&path).expect(200).json();
    assert!(["CREATING", "RUNNING"].contains(&first["status"].as_str().unwrap()));
    let shown = caller.wait_idle(&id);
    for name in [
        "name",
        "description",
        "vpc_id",
        "subnet_id",
        "security_group_id",
        "az_codes",
        "tags",
        "maintain_begin",
        "maintain_end",
    ] {
        assert_eq!(shown[name], wish[name], "{name}");
    }
    assert_eq!(
        (
            &shown["no_password_access"],
            &shown["capacity_minor"],
            &shown["capacity"]
        ),
        (&json!("false"), &json!(".125"), &json!(0))
    );
    assert_eq!(
        (&shown["engine"], &shown["charging_mode"]),
        (&json!("Redis"), &json!(0))
    );
    let policy = &shown["instance_backup_policy"];
    assert_eq!(
        (&policy["policy"]["backup_type"], &policy["policy"]["save_days"]),
        (&json!("auto"), &json!(3)),
        "{policy}"
    );
    assert_eq!(
        policy["policy"]["periodical_backup_plan"]["backup_at"],
        json!([1, 3])
    );
    assert!(policy["backup_policy_id"].is_string() && policy["tenant_id"] == json!(caller.project));
    assert!(
        shown["transparent_client_ip_enable"].is_boolean(),
        "the provider panics on anything else"
    );

    caller
        .v2(
            "PUT",
            &path,
            Some(&json!({"name": "renamed", "description": "", "instance_id": id})),
        )
        .expect(204);
    let shown = caller.get(&path).json();
    assert_eq!(
        (&shown["name"], &shown["vpc_id"]),
        (&json!("renamed"), &json!("a-vpc"))
    );
    assert_eq!(shown["description"].as_str().unwrap_or_default(), "");
    caller
        .v2(
            "PUT",
            &format!("/instance/{id}"),
            Some(&json!({"name": "by-the-sample"})),
        )
        .expect(204);
    caller
        .v1(
            "PUT",
            &path,
            Some(&json!({"maintain_begin": "22", "maintain_end": "02"})),
        )
        .expect(204);
    for (change, code) in [
        (json!({"name": "1st"}), "400 DCS.4010"),
        (json!({"description": "d".repeat(1025)}), "400 DCS.4011"),
        (json!({"maintain_begin": "22:00:00"}), "400 DCS.4106"),
        (json!({"port": 1}), "400 DCS.4063"),
        (
            json!({"instance_backup_policy": {"backup_type": "auto", "save_days": 0}}),
            "400 DCS.4072",
        ),
        (
            json!({"instance_backup_policy": {"backup_type": "sometimes"}}),
            "400 DCS.4073",
        ),
    ] {
        caller.v2("PUT", &path, Some(&change)).refused(code);
    }
    assert_eq!(caller.get(&path).json()["name"], "by-the-sample");

    caller.v2("DELETE", &path, None).expect(204);
    caller.get(&path).refused("404 DCS.3022");
    caller.v2("DELETE", &path, None).refused("404 DCS.3022");
    assert_eq!(
        caller.get("/instances").json(),
        json!({"instance_num": 0, "instances": []})
    );
}

#[test]
fn creations_that_break_a_rule_are_refused_with_its_code() {
    let service = Service::start();
    let caller = service.caller();
    let good = json!({"name": "rules", "engine": "Redis", "spec_code": "redis.single.xu1.tiny.128",
                      "capacity": 0.125, "password": "Abcdefg1"});
    for (name, value, code) in [
        ("name", json!("abc"), "DCS.4010"),
        ("name", json!("1abc"), "DCS.4010"),
        ("name", json!("n".repeat(65)), "DCS.4010"),
        ("name", Value::Null, "DCS.4010"),
        ("engine", json!("Memcached"), "DCS.4007"),
        ("engine", Value::Null, "DCS.4007"),
        ("engine_version", json!("3.0"), "DCS.4008"),
        ("spec_code", json!("redis.proxy.xu1.large.4"), "DCS.4009"),
        ("spec_code", Value::Null, "DCS.4009"),
        ("capacity", json!(1), "DCS.4012"),
        ("capacity", json!("NaN"), "DCS.4012"),
        ("capacity", json!("much"), "DCS.4063"),
        ("password", json!("short"), "DCS.4019"),
        ("password", json!("alllowercase"), "DCS.4019"),
        ("password", Value::Null, "DCS.4019"),
        ("description", json!("d".repeat(1025)), "DCS.4011"),
        ("port", json!(0), "DCS.4063"),
        ("port", json!(65536), "DCS.4063"),
        ("port", json!("x"), "DCS.4063"),
        ("instance_num", json!(0), "DCS.4063"),
        ("instance_num", json!(101), "DCS.4063"),
        ("maintain_begin", json!("22:00:00"), "DCS.4106"),
        ("access_user", json!("cachekeep"), "DCS.4063"),
        ("rename_commands", json!({"FLUSHALL": ""}), "DCS.4063"),
        ("enable_ssl", json!("perhaps"), "DCS.4063"),
    ] {
        let mut wish = good.clone();
        wish[name] = value.clone();
        let answer = caller.v2("POST", "/instances", Some(&wish));
        assert_eq!(
            answer.verdict(),
            format!("400 {code}"),
            "{name} {value}: {}",
            answer.text()
        );
    }
    assert_eq!(
        caller.get("/instances?include_failure=true").json()["instance_num"],
        0
    );
    let mut several = good.clone();
    several["instance_num"] = json!(2);
    several["name"] = json!("pair");
    let made = caller.v1("POST", "/instances", Some(&several)).expect(200).json();
    let names: Vec<&Value> = made["instances"]
        .as_array()
        .unwrap()
        .iter()
        .map(|row| &row["instance_name"])
        .collect();
    assert_eq!(names, [&json!("pair-000"), &json!("pair-001")]);
    assert_eq!(
        made["instance_id"].as_str().unwrap().split(',').count(),
        2,
        "{made}"
    );
    for row in made["instances"].as_array().unwrap() {
        let shown = caller.wait_idle(row["instance_id"].as_str().unwrap());
        let mut taken = good.clone();
        taken["port"] = shown["port"].clone();
        caller
            .v2("POST", "/instances", Some(&taken))
            .refused("400 DCS.4063");
    }
}

#[test]
fn what_is_under_way_shows_how_far_it_is_in_bytes_and_keys() {
    // Each place holds its job for five seconds, half-way.
    let places = "backup.mid_capture:stall,sideload.after_place:stall";
    let service = Service::start_with(&[], &[("CACHEKEEP_FAILPOINT", places)]);
    let caller = service.caller();
    let instance = caller.make_instance("followed");
    let mut engine = caller.engine(&instance);
    let value = "v".repeat(10_000);
    for number in 0..2000 {
        engine.send(&["SET", &format!("key:{number}"), &value]).unwrap();
    }
    engine.settle().unwrap();
    let number = |ext: &Value, name: &str| ext[name].as_i64().unwrap_or_else(|| panic!("{name}: {ext}"));
    let under_way = |what: &str, id: &str, phase: &str| {
        wait("a phase that gets on", || {
            let path = format!("/instances/{instance}/{what}/{id}");
            let record = caller.ck("GET", &path, None).expect(200).json();
            assert_ne!(record["status"], "succeed", "seen too late: {record}");
            let ext = record["ext"].clone();
            (ext["phase"] == phase && number(&ext, "keys_done") > 0).then_some(ext)
        })
    };
    let backup = caller.start_backup(&instance, "");
    let ext = under_way("backups", &backup, "capturing");
    assert!(
        number(&ext, "bytes_done") > 0 && number(&ext, "bytes_total") > 0,
        "{ext}"
    );
    let ext = caller.wait_end(&instance, "backups", &backup)["ext"].clone();
    assert_eq!(number(&ext, "bytes_done"), number(&ext, "bytes_total"));
    assert_eq!(number(&ext, "keys_done"), 2000);
    let restore = caller.start_restore(&instance, &backup, "");
    let ext = under_way("restores", &restore, "loading");
    assert_eq!(number(&ext, "keys_done"), 2000, "{ext}");
    assert_eq!(number(&ext, "keys_applied"), 0, "nothing is compared yet: {ext}");
    assert!(number(&ext, "bytes_total") > 0);
    let whole = number(&ext, "bytes_total");
    let ext = caller.wait_end(&instance, "restores", &restore)["ext"].clone();
    assert_eq!(number(&ext, "bytes_done"), number(&ext, "bytes_total"), "{ext}");
    assert!(number(&ext, "bytes_total") >= whole, "{ext}");
    assert_eq!(number(&ext, "keys_done"), 2000, "{ext}");
}
