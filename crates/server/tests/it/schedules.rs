//! Schedules of our own: made, due, deleted; what they keep; drills; holds. Days pass as in `schedule.rs`.

use serde_json::{Value, json};

use crate::schedule::{Clock, has_files, records, wait_records};
use crate::service::{Caller, Service, wait};

#[track_caller]
fn make(caller: &Caller, instance: &str, wish: &Value) -> String {
    let path = format!("/instances/{instance}/schedules");
    let made = caller.ck("POST", &path, Some(wish)).expect(200).json();
    made["schedule_id"].as_str().unwrap().to_owned()
}

/// `[status, why it expired or failed]` of each run, oldest first.
fn outcome(rows: &[Value]) -> Vec<(String, String)> {
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    rows.iter()
        .map(|row| (text(&row["status"]), text(&row["ext"]["failure"])))
        .collect()
}

#[test]
fn a_schedule_makes_backups_in_its_zone_and_keeps_what_its_rules_want() {
    // 03:59 in Berlin, the day before its clocks are put forward.
    let mut clock = Clock::at("2027-03-27T00:59:00Z");
    let service = Service::start_with(&[], &[clock.variable()]);
    let instance = service.logged_in().make_instance("by-schedule");
    let id = make(
        &service.logged_in(),
        &instance,
        &json!({"name": "nightly", "cron": "30 2 * * *", "zone": "Europe/Berlin",
        "keep": {"last": 2, "weekly": 2}}),
    );
    // In the night of the 28th there is no half past two.
    for (count, due) in [
        "2027-03-27T01:30",
        "2027-03-28T01:30",
        "2027-03-29T00:30",
        "2027-03-30T00:30",
        "2027-03-31T00:30",
    ]
    .iter()
    .enumerate()
    {
        clock.pass_to(&format!("{due}:05Z"));
        let rows = wait_records(&service, &instance, count + 1);
        let run = &rows[count]["ext"]["run"];
        assert_eq!(
            (&run["due_at"], &run["schedule_id"]),
            (&json!(format!("{due}:00.000Z")), &json!(id))
        );
        assert!(rows[count]["ext"]["expires_at"].is_null());
    }
    // The 27th and 28th are of one week, the others of the next: the last two stay, and of each week the newest one.
    let caller = service.logged_in();
    let wanted = ["expired", "succeed", "expired", "succeed", "succeed"];
    let rows = wait("what the rules do not want to go", || {
        let rows = records(&service, &instance);
        rows.iter()
            .zip(wanted)
            .all(|(row, wanted)| row["status"] == wanted)
            .then_some(rows)
    });
    assert_eq!(outcome(&rows)[0].1, "no rule of the schedule nightly wants it");
    let plan = caller
        .ck("GET", &format!("/instances/{instance}/retention"), None)
        .expect(200)
        .json();
    let whys: Vec<&str> = plan["backups"]
        .as_array()
        .unwrap()
        .iter()
        .map(|row| row["why"].as_str().unwrap())
        .collect();
    assert_eq!(
        whys,
        [
            "it is the newest that can be restored",
            "of the last 2",
            "weekly: 2027-W12"
        ]
    );
    for row in &rows {
        let folder = service.data().join("store").join(&caller.project).join(&instance);
        let folder = folder.join(row["backup_id"].as_str().unwrap());
        wait("the files of what stays, and no other", || {
            (has_files(&folder) == (row["status"] == "succeed")).then_some(())
        });
    }

    // Held, a backup stays against rules and people.
    let held = rows[1]["backup_id"].as_str().unwrap();
    let hold = format!("/instances/{instance}/backups/{held}/hold");
    caller
        .ck("PUT", &hold, Some(&json!({"reason": "case 1234"})))
        .expect(200);
    caller
        .v2("DELETE", &format!("/instances/{instance}/backups/{held}"), None)
        .refused("400 DCS.4063");
    caller
        .ck("PUT", &hold, Some(&json!({"reason": " "})))
        .refused("400 DCS.4063");
    clock.pass_to("2027-04-30T02:00:00Z");
    let late = wait("the runs of a month later", || {
        let rows = records(&service, &instance);
        (rows.last().unwrap()["status"] == "succeed" && rows.len() > 6).then_some(rows)
    });
    // Of the runs that were due meanwhile the newest seven are told, the last of them made.
    assert_eq!(
        late.iter().filter(|row| row["status"] == "failed").count(),
        6,
        "{late:#?}"
    );
    wait("the end of what was kept as one of two", || {
        (records(&service, &instance)[3]["status"] == "expired").then_some(())
    });
    assert_eq!(records(&service, &instance)[1]["status"], "succeed");
    let caller = service.logged_in();
    caller.ck("DELETE", &hold, None).expect(200);
    wait("the end of what is released", || {
        (records(&service, &instance)[1]["status"] == "expired").then_some(())
    });

    // Deleted it makes no more, and takes away no more.
    caller
        .ck("DELETE", &format!("/instances/{instance}/schedules/{id}"), None)
        .expect(200);
    caller
        .ck("DELETE", &format!("/instances/{instance}/schedules/{id}"), None)
        .refused("404 DCS.4001");
    let before = records(&service, &instance);
    clock.pass_to("2027-06-01T00:00:00Z");
    std::thread::sleep(std::time::Duration::from_secs(6));
    assert_eq!(records(&service, &instance), before);
}

#[test]
fn a_drill_proves_the_newest_backup_by_the_clock_and_tells_of_one_that_is_damaged() {
    let mut clock = Clock::at("2027-03-01T01:58:00Z");
    let service = Service::start_with(&[], &[clock.variable()]);
    let caller = service.logged_in();
    let instance = caller.make_instance("drilled");
    caller
        .engine(&instance)
        .ask(&["DEBUG", "POPULATE", "1000", "key", "100"])
        .unwrap();
    make(
        &caller,
        &instance,
        &json!({"name": "drill", "cron": "0 2 * * *", "task": "drill"}),
    );
    let backup = caller.make_backup(&instance, "");
    let drills = |count: usize| {
        wait("drills", || {
            let answer = service
                .logged_in()
                .ck("GET", &format!("/instances/{instance}/drills"), None)
                .expect(200)
                .json();
            let rows = answer["verifications"].as_array().unwrap().clone();
            (rows.len() == count && rows.iter().all(|row| !row["finished_at"].is_null())).then_some(rows)
        })
    };
    clock.pass_to("2027-03-01T02:00:05Z");
    let first = drills(1).remove(0);
    assert_eq!(
        (&first["status"], &first["level"], &first["backup_id"]),
        (&json!("holds"), &json!("proven"), &json!(backup))
    );
    assert_eq!(records(&service, &instance)[0]["ext"]["proof"]["level"], "proven");
    // A byte of it turns.
    let folder = service
        .data()
        .join("store")
        .join(&caller.project)
        .join(&instance)
        .join(&backup)
        .join("1/shard-0");
    let segment = folder.join("seg-000000.rdb.zst.age");
    let mut bytes = std::fs::read(&segment).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    std::fs::write(&segment, bytes).unwrap();
    clock.pass_to("2027-03-02T02:00:05Z");
    let second = drills(2).remove(0);
    assert_eq!(second["status"], "damaged", "{second}");
    let row = records(&service, &instance).remove(0);
    assert_eq!(
        (&row["is_support_restore"], &row["ext"]["proof"]["holds"]),
        (&json!("FALSE"), &json!(false))
    );
}

#[test]
fn the_command_line_makes_shows_runs_and_deletes_schedules_and_says_what_is_wrong_with_one() {
    let service = Service::start();
    let caller = service.caller();
    let instance = caller.make_instance("by-hand-scheduled");
    let name = "by-hand-scheduled";
    let made = service.run_json(&[
        "schedule",
        "create",
        name,
        "--name",
        "nightly",
        "--cron",
        "0 2 * * *",
        "--zone",
        "Asia/Shanghai",
        "--keep-last",
        "1",
    ]);
    assert_eq!(
        (&made["cron"], &made["keep"]["last"], &made["task"]),
        (&json!("0 2 * * *"), &json!(1), &json!("backup"))
    );
    assert!(
        made["next_at"].as_str().unwrap().ends_with("T18:00:00.000Z"),
        "{made}"
    );
    for (words, what) in [
        (
            ["--name", "nightly", "--cron", "0 3 * * *"],
            "has a schedule of that name",
        ),
        (
            ["--name", "another", "--cron", "0 25 * * *"],
            "hour: \"25\" is no number from 0 to 23",
        ),
        (
            ["--name", "another", "--cron", "0 3 * *"],
            "4 fields where five are wanted",
        ),
        (["--name", "x", "--cron", "0 3 * * *"], "Invalid name"),
    ] {
        let output = service.run(&[&["schedule", "create", name], &words[..]].concat());
        let told = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(!output.status.success() && told.contains(what), "{told}");
    }
    let zone = service.run(&[
        "schedule",
        "create",
        name,
        "--name",
        "elsewhere",
        "--cron",
        "0 3 * * *",
        "--zone",
        "Mars/Olympus",
    ]);
    assert!(String::from_utf8_lossy(&zone.stderr).contains("IANA"));
    for _run in 0..2 {
        let begun = service.run_json(&["schedule", "run", name, "nightly"]);
        let row = caller.wait_end(&instance, "backups", begun["id"].as_str().unwrap());
        assert_eq!(
            (&row["status"], &row["backup_type"]),
            (&json!("succeed"), &json!("auto"))
        );
    }
    let plan = service.run_json(&["retention", "plan", name]);
    let verdicts: Vec<&Value> = plan["backups"]
        .as_array()
        .unwrap()
        .iter()
        .map(|row| &row["verdict"])
        .collect();
    assert!(verdicts == ["stays", "goes"] || verdicts == ["stays"], "{plan}");
    let shown = service.run_json(&["schedule", "show", name, "nightly"]);
    assert_eq!(shown["schedule_id"], made["schedule_id"]);
    service.run_json(&["schedule", "delete", name, "nightly"]);
    assert_eq!(
        service.run_json(&["schedule", "list", name])["schedules"],
        json!([])
    );
    let held = service.run_json(&["backup", "hold", name, "latest", "--reason", "case 1"]);
    assert_eq!(held["held"], "case 1");
    let refused = service.run(&["backup", "delete", name, held["backup_id"].as_str().unwrap()]);
    assert!(String::from_utf8_lossy(&refused.stderr).contains("cachekeep backup release"));
    service.run_json(&["backup", "release", name, "latest"]);
    service.run_json(&["backup", "delete", name, held["backup_id"].as_str().unwrap()]);
}
