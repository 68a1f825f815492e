//! `Idempotency-Key`: a call is done once, and its answer is given again.

use std::sync::Barrier;

use serde_json::{Value, json};

use crate::http::{Answer, Request};
use crate::service::{Caller, Credential, Service};

/// A POST with a key.
fn post(caller: &Caller, target: &str, key: &str, body: &Value) -> Answer {
    let request = Request::json("POST", target, body).with("Idempotency-Key", key);
    caller.send(request)
}

fn total(caller: &Caller, path: &str) -> u64 {
    caller.get(path).expect(200).json()["total_num"].as_u64().unwrap()
}

#[test]
fn the_same_call_again_gets_the_same_answer_and_does_nothing() {
    let service = Service::start();
    let caller = service.caller();
    let instances = format!("/v2/{}/instances", caller.project);
    let wish = json!({"name": "only-one", "engine": "Redis", "capacity": 0.125,
                      "spec_code": "redis.single.xu1.tiny.128", "no_password_access": true});
    let made = post(&caller, &instances, "create-1", &wish).expect(200);
    let again = post(&caller, &instances, "create-1", &wish).expect(200);
    assert_eq!(made.body, again.body);
    assert_eq!(caller.get("/instances").json()["instance_num"], 1);
    let instance = made.json()["instances"][0]["instance_id"]
        .as_str()
        .unwrap()
        .to_owned();
    caller.wait_idle(&instance);

    let one = format!("{instances}/{instance}");
    let (backups, wish) = (format!("{one}/backups"), json!({"remark": "once"}));
    let first = post(&caller, &backups, "backup-1", &wish).expect(200);
    // While it runs an equal call without the key is refused, and with it answered.
    let again = post(&caller, &backups, "backup-1", &wish).expect(200);
    assert_eq!(first.body, again.body);
    let backup = first.json()["backup_id"].as_str().unwrap().to_owned();
    caller.wait_end(&instance, "backups", &backup);
    assert_eq!(
        post(&caller, &backups, "backup-1", &wish).expect(200).body,
        first.body
    );
    assert_eq!(total(&caller, &format!("/instances/{instance}/backups")), 1);

    let (restores, wish) = (format!("{one}/restores"), json!({"backup_id": backup}));
    let first = post(&caller, &restores, "restore-1", &wish).expect(200);
    let restore = first.json()["restore_id"].as_str().unwrap().to_owned();
    caller.wait_end(&instance, "restores", &restore);
    assert_eq!(
        post(&caller, &restores, "restore-1", &wish).expect(200).body,
        first.body
    );
    let ours = restores.replace("/v2/", "/ck/v1/");
    let undo = format!("{ours}/{restore}/undo");
    let first = post(&caller, &undo, "undo-1", &json!({})).expect(200);
    let undone = first.json()["restore_id"].as_str().unwrap().to_owned();
    caller.wait_end(&instance, "restores", &undone);
    // Undone already: without the key there is nothing to undo, with it there is the answer.
    assert_eq!(
        post(&caller, &undo, "undo-1", &json!({})).expect(200).body,
        first.body
    );
    post(&caller, &undo, "undo-2", &json!({})).refused("400 DCS.4087");
    assert_eq!(total(&caller, &format!("/instances/{instance}/restores")), 2);
}

#[test]
fn a_key_given_with_another_request_is_refused_and_counts_a_day_in_its_own_project() {
    let service = Service::start();
    let caller = service.caller();
    let instance = caller.make_instance("keyed");
    let path = format!("/instances/{instance}/backups");
    let backups = format!("/v2/{}{path}", caller.project);
    let wish = json!({"remark": "first"});
    let first = post(&caller, &backups, "key", &wish).expect(200).json();
    caller.wait_end(&instance, "backups", first["backup_id"].as_str().unwrap());
    post(&caller, &backups, "key", &json!({"remark": "other"})).refused("400 DCS.4063");
    let other = caller.make_instance("other");
    let elsewhere = backups.replace(&instance, &other);
    post(&caller, &elsewhere, "key", &wish).refused("400 DCS.4063");
    let restores = backups.replace("/backups", "/restores");
    post(&caller, &restores, "key", &wish).refused("400 DCS.4063");
    for malformed in ["", "a b", "k\u{e9}y", &"k".repeat(256)] {
        post(&caller, &backups, malformed, &wish).refused("400 DCS.4063");
    }
    let twice = Request::json("POST", &backups, &wish)
        .with("Idempotency-Key", "one")
        .with("Idempotency-Key", "two");
    caller.send(twice).refused("400 DCS.4063");
    assert_eq!(total(&caller, &path), 1);

    // Another project has keys of its own.
    let second = service.second_project("second");
    let stranger = service.caller_with(&second.project, Credential::Key(second.key.clone()));
    let theirs = stranger.make_instance("theirs");
    let target = format!("/v2/{}/instances/{theirs}/backups", second.project);
    let answer = post(&stranger, &target, "key", &wish).expect(200).json();
    assert_ne!(answer["backup_id"], first["backup_id"]);

    // v1.0 does not know the header.
    let v1 = backups.replace("/v2/", "/v1.0/");
    let one = post(&caller, &v1, "key", &wish).expect(200).json();
    caller.wait_end(&instance, "backups", one["backup_id"].as_str().unwrap());
    assert_ne!(one["backup_id"], first["backup_id"]);

    let almost = "UPDATE idempotency SET created_at_ms = created_at_ms - 86390000";
    service.sql(almost);
    assert_eq!(post(&caller, &backups, "key", &wish).expect(200).json(), first);
    service.sql("UPDATE idempotency SET created_at_ms = created_at_ms - 10001");
    let later = post(&caller, &backups, "key", &wish).expect(200).json();
    assert_ne!(later, first, "after a day it is another call");
    caller.wait_end(&instance, "backups", later["backup_id"].as_str().unwrap());
}

#[test]
fn a_refused_call_leaves_its_key_free() {
    let service = Service::start();
    let caller = service.caller();
    let instance = caller.make_instance("refused");
    let backups = format!("/v2/{}/instances/{instance}/backups", caller.project);
    service.sql(&format!(
        "INSERT INTO job (id, instance_id, kind, state, owner, lease_until_ms, created_at_ms) VALUES ('held', '{instance}', 'flush', 'running', 'a test', 9000000000000000, 1)"
    ));
    post(&caller, &backups, "key", &json!({})).refused("400 DCS.4026");
    service.sql("DELETE FROM job WHERE id = 'held'");
    post(&caller, &backups, "key", &json!({})).expect(200);
}

#[test]
fn of_equal_calls_at_the_same_moment_all_get_the_one_answer() {
    let service = Service::start();
    let callers: Vec<Caller> = (0..8).map(|_| service.caller()).collect();
    let instance = callers[0].make_instance("at-once");
    let backups = format!("/v2/{}/instances/{instance}/backups", callers[0].project);
    let barrier = Barrier::new(callers.len());
    let answers: Vec<Answer> = std::thread::scope(|scope| {
        let threads: Vec<_> = callers
            .iter()
            .map(|caller| {
                let (barrier, backups) = (&barrier, &backups);
                scope.spawn(move || {
                    barrier.wait();
                    post(caller, backups, "key", &json!({"remark": "same"}))
                })
            })
            .collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    });
    let first = answers[0].clone().expect(200);
    for answer in answers {
        assert_eq!(answer.expect(200).body, first.body);
    }
    let id = first.json()["backup_id"].as_str().unwrap().to_owned();
    callers[0].wait_end(&instance, "backups", &id);
    assert_eq!(total(&callers[0], &format!("/instances/{instance}/backups")), 1);
}
