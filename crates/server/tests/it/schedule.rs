//! Backups by a policy: made at their hour, kept for their days, and told where they were not made. The service's clocks are
//! set by a file, so that days pass in seconds; all else is real.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use serde_json::{Value, json};
use xtask::scratch::Scratch;

use crate::service::{Caller, Service, wait};
use crate::shared::times;

const HOUR: i64 = 3_600_000;
const DAY: i64 = 24 * HOUR;

/// What the service takes for the clocks of its machine.
pub struct Clock {
    _folder: Scratch,
    file: PathBuf,
    wall_ms: i64,
    passed_ms: i64,
    /// How much of the first is not true.
    set_ms: i64,
}

impl Clock {
    /// It is this moment now.
    pub fn at(moment: &str) -> Self {
        let folder = Scratch::new("clock").unwrap();
        let wanted: jiff::Timestamp = moment.parse().unwrap();
        let clock = Self {
            file: folder.path().join("clock"),
            _folder: folder,
            wall_ms: wanted.as_millisecond() - jiff::Timestamp::now().as_millisecond(),
            passed_ms: 0,
            set_ms: 0,
        };
        clock.write();
        clock
    }

    pub fn variable(&self) -> (&str, &str) {
        ("CACHEKEEP_CLOCK_FILE", self.file.to_str().unwrap())
    }

    fn write(&self) {
        let part = self.file.with_extension("part");
        std::fs::write(&part, format!("{} {}", self.wall_ms, self.passed_ms)).unwrap();
        std::fs::rename(&part, &self.file).unwrap();
    }

    /// So much time passes.
    pub fn pass(&mut self, ms: i64) {
        self.wall_ms += ms;
        self.passed_ms += ms;
        self.write();
    }

    /// Time passes until this moment.
    pub fn pass_to(&mut self, moment: &str) {
        let wanted: jiff::Timestamp = moment.parse().unwrap();
        let now = jiff::Timestamp::now().as_millisecond() + self.wall_ms;
        self.pass(wanted.as_millisecond() - now);
    }

    /// Somebody sets the wall clock.
    fn set(&mut self, ms: i64) {
        self.wall_ms += ms;
        self.set_ms += ms;
        self.write();
    }

    /// What time it is in truth, whatever the wall clock says.
    fn true_ms(&self) -> i64 {
        jiff::Timestamp::now().as_millisecond() + self.wall_ms - self.set_ms
    }
}

/// Every day at this hour.
pub fn daily(begin: &str, save_days: i64) -> Value {
    json!({"instance_backup_policy": {"backup_type": "auto", "save_days": save_days, "periodical_backup_plan": {
        "period_type": "weekly", "backup_at": [1, 2, 3, 4, 5, 6, 7], "begin_at": begin}}})
}

#[track_caller]
pub fn set_policy(caller: &Caller, instance: &str, policy: &Value) {
    caller
        .v2("PUT", &format!("/instances/{instance}"), Some(policy))
        .expect(204);
}

/// All backup records of an instance, oldest first.
pub fn records(service: &Service, instance: &str) -> Vec<Value> {
    let path = format!("/instances/{instance}/backups?limit=1000");
    let mut rows = service.logged_in().get(&path).expect(200).json()["backup_record_response"]
        .as_array()
        .unwrap()
        .clone();
    rows.reverse();
    rows
}

/// Waits for as many records that have ended.
#[track_caller]
pub fn wait_records(service: &Service, instance: &str, count: usize) -> Vec<Value> {
    wait("records of backups", || {
        let rows = records(service, instance);
        assert!(rows.len() <= count, "{count} wanted: {rows:#?}");
        let ended = |row: &Value| row["status"] != "waiting" && row["status"] != "backuping";
        (rows.len() == count && rows.iter().all(ended)).then_some(rows)
    })
}

/// `[status, error code, when it was due, number of the try]` of each.
fn told(rows: &[Value]) -> Vec<Value> {
    rows.iter()
        .map(|row| {
            let run = &row["ext"]["run"];
            json!([row["status"], row["error_code"], run["due_at"], run["try_number"]])
        })
        .collect()
}

fn folder(service: &Service, caller: &Caller, instance: &str, backup: &Value) -> PathBuf {
    let store = service.data().join("store").join(&caller.project).join(instance);
    store.join(backup["backup_id"].as_str().unwrap())
}

pub fn has_files(folder: &Path) -> bool {
    let mut waiting = vec![folder.to_owned()];
    while let Some(next) = waiting.pop() {
        for entry in std::fs::read_dir(next).into_iter().flatten() {
            let path = entry.unwrap().path();
            match path.is_dir() {
                true => waiting.push(path),
                false => return true,
            }
        }
    }
    false
}

#[test]
fn a_policy_makes_its_backups_and_takes_them_away_after_their_days() {
    let mut clock = Clock::at("2027-03-01T01:58:00Z");
    let service = Service::start_with(&[], &[clock.variable()]);
    let caller = service.logged_in();
    let instance = caller.make_instance("by-policy");
    caller.engine(&instance).ask(&["SET", "key", "first"]).unwrap();
    set_policy(&caller, &instance, &daily("10:00-11:00", 2));
    // Of the zone that a policy names.
    let mut zoned = daily("10:00-11:00", 2);
    zoned["instance_backup_policy"]["periodical_backup_plan"]["timezone_offset"] = json!("+0800");
    set_policy(&caller, &instance, &zoned);
    clock.pass_to("2027-03-01T02:00:10Z");
    let first = wait_records(&service, &instance, 1).remove(0);
    assert_eq!(
        told(std::slice::from_ref(&first)),
        [json!(["succeed", null, "2027-03-01T02:00:00.000Z", 1])],
        "{first}"
    );
    assert_eq!(
        (&first["backup_type"], &first["period"], &first["backup_format"]),
        (&json!("auto"), &json!("10:00-11:00"), &json!("rdb"))
    );
    let created: jiff::Timestamp = first["created_at"].as_str().unwrap().parse().unwrap();
    let expires: jiff::Timestamp = first["ext"]["expires_at"].as_str().unwrap().parse().unwrap();
    assert_eq!(expires.as_millisecond() - created.as_millisecond(), 2 * DAY);
    let caller = service.logged_in();
    assert!(has_files(&folder(&service, &caller, &instance, &first)));
    caller.make_restore(&instance, first["backup_id"].as_str().unwrap(), "used once");
    assert_eq!(
        caller.engine(&instance).ask(&["GET", "key"]).unwrap(),
        xtask::resp::Reply::Bytes(b"first".to_vec())
    );

    // The generation that the restore replaced is a record too, and is gone after a day.
    clock.pass_to("2027-03-02T02:00:10Z");
    wait_records(&service, &instance, 3);
    clock.pass_to("2027-03-03T02:00:30Z");
    let rows = wait("the end of the first", || {
        let rows = wait_records(&service, &instance, 4);
        (rows[0]["status"] == "expired").then_some(rows)
    });
    assert_eq!(rows[0]["is_support_restore"], "FALSE");
    let caller = service.logged_in();
    wait("the end of its files", || {
        (!has_files(&folder(&service, &caller, &instance, &rows[0]))).then_some(())
    });
    assert!(has_files(&folder(&service, &caller, &instance, &rows[2])));
    let restores = caller
        .get(&format!("/instances/{instance}/restores"))
        .expect(200)
        .json();
    assert_eq!(restores["total_num"], 1, "records of restores stay");
    caller
        .v2(
            "POST",
            &format!("/instances/{instance}/restores"),
            Some(&json!({"backup_id": rows[0]["backup_id"]})),
        )
        .refused("400 DCS.4087");

    // No more are made; the last one is kept however old it gets.
    set_policy(
        &caller,
        &instance,
        &json!({"instance_backup_policy": {"backup_type": "manual"}}),
    );
    clock.pass(40 * DAY);
    let rows = wait("the end of all but one", || {
        let rows = wait_records(&service, &instance, 4);
        (rows[2]["status"] == "expired").then_some(rows)
    });
    assert_eq!(rows[3]["status"], "succeed");
    std::thread::sleep(std::time::Duration::from_secs(6));
    let rows = records(&service, &instance);
    assert_eq!(
        (&rows[3]["status"], &rows[3]["is_support_restore"]),
        (&json!("succeed"), &json!("TRUE"))
    );
    assert!(has_files(&folder(
        &service,
        &service.logged_in(),
        &instance,
        &rows[3]
    )));
}

#[test]
fn a_busy_instance_is_tried_three_times_a_day_and_each_miss_is_told() {
    let mut clock = Clock::at("2027-03-01T01:58:00Z");
    let service = Service::start_with(&[], &[clock.variable()]);
    let caller = service.logged_in();
    let instance = caller.make_instance("busy-at-two");
    set_policy(&caller, &instance, &daily("02:00-03:00", 1));
    // An operation that takes three hours.
    service.sql(&format!(
        "INSERT INTO job (id, instance_id, kind, state, lease_until_ms, created_at_ms) VALUES ('long', '{instance}', 'flush', 'running', 9000000000000000, 0)"
    ));
    let due = "2027-03-01T02:00:00.000Z";
    for (number, moment) in ["02:00:05", "03:00:05", "04:00:05"].iter().enumerate() {
        clock.pass_to(&format!("2027-03-01T{moment}Z"));
        wait("a record", || {
            (records(&service, &instance).len() == 1 + number).then_some(())
        });
    }
    let rows = records(&service, &instance);
    let missed = |number: i64| json!(["failed", "dcs.08.0008", due, number]);
    assert_eq!(told(&rows), [missed(1), missed(2), missed(3)]);
    assert_eq!(rows[0]["ext"]["failure"], "the instance was busy: flush");
    clock.pass_to("2027-03-01T05:00:05Z");
    std::thread::sleep(std::time::Duration::from_secs(6));
    assert_eq!(records(&service, &instance).len(), 3, "three tries a day");
    service.sql("UPDATE job SET state = 'done' WHERE id = 'long'");
    clock.pass_to("2027-03-02T02:00:05Z");
    let rows = wait_records(&service, &instance, 4);
    assert_eq!(
        told(&rows)[3],
        json!(["succeed", null, "2027-03-02T02:00:00.000Z", 1])
    );
}

#[test]
fn what_was_due_while_the_service_was_away_is_made_in_its_window_and_told_after_it() {
    let mut clock = Clock::at("2027-03-01T01:58:00Z");
    let mut service = Service::start_with(&[], &[clock.variable()]);
    let caller = service.logged_in();
    let (long, short) = (
        caller.make_instance("long-window"),
        caller.make_instance("short-window"),
    );
    set_policy(&caller, &long, &daily("02:00-05:00", 7));
    set_policy(&caller, &short, &daily("02:00-03:00", 7));
    service.kill();
    clock.pass_to("2027-03-03T04:30:00Z");
    service.start_again_with(&[], &[clock.variable()]);
    let missed = |day: u32| {
        json!([
            "failed",
            "dcs.08.0001",
            format!("2027-03-0{day}T02:00:00.000Z"),
            3
        ])
    };
    let rows = wait_records(&service, &long, 3);
    assert_eq!(
        told(&rows),
        [
            missed(1),
            missed(2),
            json!(["succeed", null, "2027-03-03T02:00:00.000Z", 1])
        ]
    );
    let rows = wait_records(&service, &short, 3);
    assert_eq!(told(&rows), [missed(1), missed(2), missed(3)]);

    // A crash between the record and its job's end changes nothing of that; nor does one between expiry and files.
    service.kill();
    clock.pass_to("2027-03-04T02:30:00Z");
    service.start_to_its_end("schedule.accepted", &[clock.variable()]);
    service.start_again_with(&[], &[clock.variable()]);
    let due = json!(["succeed", null, "2027-03-04T02:00:00.000Z", 1]);
    assert_eq!(told(&wait_records(&service, &long, 4))[3], due);
    assert_eq!(told(&wait_records(&service, &short, 4))[3], due);
    let caller = service.logged_in();
    for instance in [&long, &short] {
        set_policy(
            &caller,
            instance,
            &json!({"instance_backup_policy": {"backup_type": "manual"}}),
        );
    }
    service.kill();
    clock.pass_to("2027-03-11T03:00:00Z");
    service.start_to_its_end("backup_expiry.after_commit", &[clock.variable()]);
    service.start_again_with(&[], &[clock.variable()]);
    let rows = records(&service, &long);
    assert_eq!(
        (&rows[2]["status"], &rows[3]["status"]),
        (&json!("expired"), &json!("succeed"))
    );
    let caller = service.logged_in();
    wait("the end of its files", || {
        (!has_files(&folder(&service, &caller, &long, &rows[2]))).then_some(())
    });
    assert!(has_files(&folder(&service, &caller, &long, &rows[3])));
}

/// A moment of a record.
fn moment(value: &Value) -> i64 {
    let text = value.as_str().unwrap_or_else(|| panic!("no moment: {value}"));
    text.parse::<jiff::Timestamp>().unwrap().as_millisecond()
}

/// Nothing has expired that had time left, and the list is in the order in which its records were made.
fn check_order_and_expiry(rows: &[Value], now_ms: i64) {
    let times: Vec<i64> = rows.iter().map(|row| moment(&row["created_at"])).collect();
    assert!(times.is_sorted(), "{times:?}");
    let ids: BTreeSet<&str> = rows
        .iter()
        .map(|row| row["backup_id"].as_str().unwrap())
        .collect();
    assert_eq!(ids.len(), rows.len());
    for row in rows {
        match row["status"].as_str().unwrap() {
            "succeed" | "waiting" | "backuping" => {}
            "expired" => assert!(
                moment(&row["ext"]["run"]["due_at"]) + DAY <= now_ms,
                "early: {row}"
            ),
            _ => panic!("{row}"),
        }
    }
}

#[test]
fn a_clock_that_is_set_and_set_back_runs_nothing_twice_and_expires_nothing_early() {
    let leaps = usize::try_from(times(2, 100)).unwrap();
    let mut clock = Clock::at("2027-03-01T01:58:00Z");
    let service = Service::start_with(&[], &[clock.variable()]);
    let caller = service.logged_in();
    let daily_one = caller.make_instance("daily");
    let often = caller.make_instance("half-hourly");
    let restored = caller.make_instance("restored");
    let backup = caller.make_backup(&restored, "restored in each leap");
    set_policy(&caller, &daily_one, &daily("02:00-03:00", 1));
    clock.pass_to("2027-03-01T02:00:05Z");
    wait_records(&service, &daily_one, 1);
    service
        .logged_in()
        .make_backup(&daily_one, "a newer one, so that the first may expire");
    let wish = json!({"name": "often", "cron": "15,45 * * * *", "zone": "Etc/UTC", "keep": {"last": 60}});
    service
        .logged_in()
        .ck("POST", &format!("/instances/{often}/schedules"), Some(&wish))
        .expect(200);
    let heard = |count: usize| {
        wait("a word about the leap", || {
            (service.log().matches("the clock was set").count() >= count).then_some(())
        })
    };
    // Everything that has its time looks at it.
    let looked_at = || std::thread::sleep(std::time::Duration::from_secs(6));
    let (mut restores, begun) = (0, clock.true_ms());
    for leap in 0..leaps {
        let by = [25, -25, 49, -1][leap % 4] * HOUR;
        clock.set(by);
        heard(leap + 1);
        // A run is due meanwhile, and made once. Counted from the first one: each leap takes some seconds by itself.
        let now = begun + HOUR / 2 * i64::try_from(leap + 1).unwrap();
        clock.pass(now - clock.true_ms());
        let rows = wait_records(&service, &often, leap + 1);
        check_order_and_expiry(&rows, clock.true_ms());
        // A record that is made meanwhile keeps the order of the list.
        if leap % 2 == 1 {
            service
                .logged_in()
                .make_restore(&restored, &backup, "in the leap");
            restores += 1;
        } else {
            looked_at();
        }
        check_order_and_expiry(&records(&service, &daily_one), clock.true_ms());
        clock.set(-by);
        if leap % 4 == 3 {
            looked_at();
        }
    }
    let first = moment(&json!("2027-03-01T02:15:00Z"));
    let rows = wait_records(&service, &often, leaps);
    check_order_and_expiry(&rows, clock.true_ms());
    for (number, row) in (0..).zip(&rows) {
        let run = &row["ext"]["run"];
        assert_eq!(
            (moment(&run["due_at"]), &run["try_number"]),
            (first + number * HOUR / 2, &json!(1)),
            "{row}"
        );
    }
    // Of those that are made each day as many as days have begun in truth, and the one by hand.
    let made = 2 + usize::try_from((clock.true_ms() - begun) / DAY).unwrap();
    let rows = wait_records(&service, &daily_one, made);
    check_order_and_expiry(&rows, clock.true_ms());
    let listed = service
        .logged_in()
        .get(&format!("/instances/{restored}/restores?limit=1000"))
        .expect(200)
        .json();
    let mut times: Vec<i64> = listed["restore_record_response"]
        .as_array()
        .unwrap()
        .iter()
        .map(|row| moment(&row["created_at"]))
        .collect();
    times.reverse();
    assert!(times.is_sorted() && listed["total_num"] == restores, "{listed}");
    // What is due in truth is made, once, and what has expired in truth goes.
    clock.pass(DAY);
    let rows = wait_records(&service, &daily_one, made + 1);
    let last = rows.last().unwrap();
    assert_eq!(
        (&last["status"], &last["ext"]["run"]["try_number"]),
        (&json!("succeed"), &json!(1))
    );
    wait("the end of those before", || {
        let rows = records(&service, &daily_one);
        let is_over = |row: &Value| row["status"] == "expired" || row["ext"]["run"].is_null();
        rows[..made].iter().all(is_over).then_some(())
    });
    println!(
        "{leaps} leaps of the clock and back, half an hour of each: {leaps} half-hourly runs made once, {} daily ones, {restores} \
         restores in order, 0 expired early",
        made - 1
    );
}

#[test]
fn instances_that_are_due_at_once_are_backed_up_a_few_at_a_time() {
    let mut clock = Clock::at("2027-03-01T01:58:00Z");
    let service = Service::start_with(&[], &[clock.variable()]);
    let caller = service.logged_in();
    let instances: Vec<String> = (0..8)
        .map(|number| caller.make_instance(&format!("due-{number}")))
        .collect();
    for instance in &instances {
        set_policy(&caller, instance, &daily("02:00-03:00", 1));
    }
    clock.pass_to("2027-03-01T02:00:05Z");
    let mut most = 0;
    wait("the backups of all", || {
        let caller = service.logged_in();
        // One list is one look: asked of one after the other, one that ended meanwhile would count beside its successor.
        let listed = caller.get("/instances?limit=100").expect(200).json();
        let rows = listed["instances"].as_array().unwrap();
        most = most.max(rows.iter().filter(|row| !row["task"].is_null()).count());
        let done = |instance: &String| {
            records(&service, instance)
                .first()
                .is_some_and(|row| row["status"] == "succeed")
        };
        instances.iter().all(done).then_some(())
    });
    assert!(most <= 3, "{most} at once");
}
