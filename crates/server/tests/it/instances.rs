//! Lists of instances by what they are, and changes of them.

use serde_json::{Value, json};

use crate::service::{Caller, Service};

fn make(caller: &Caller, name: &str, capacity: f64, spec: &str, tags: &Value) -> String {
    let wish = json!({"name": name, "engine": "Redis", "capacity": capacity, "spec_code": spec,
                      "no_password_access": true, "tags": tags});
    let made = caller.v2("POST", "/instances", Some(&wish)).expect(200).json();
    made["instances"][0]["instance_id"].as_str().unwrap().to_owned()
}

/// Names of the instances that the query finds.
#[track_caller]
fn found(caller: &Caller, query: &str) -> Vec<String> {
    let list = caller
        .get(&format!("/instances?limit=100&{query}"))
        .expect(200)
        .json();
    let rows = list["instances"].as_array().unwrap();
    assert_eq!(list["instance_num"], json!(rows.len()));
    rows.iter()
        .map(|row| row["name"].as_str().unwrap().to_owned())
        .collect()
}

#[test]
fn tags_capacity_and_deletion_choose_what_is_listed() {
    let service = Service::start();
    let caller = service.caller();
    let tag = |key: &str, value: &str| json!({"key": key, "value": value});
    let (tiny, small) = ("redis.single.xu1.tiny.128", "redis.single.xu1.tiny.256");
    let one = make(
        &caller,
        "tagged-1",
        0.125,
        tiny,
        &json!([tag("env", "prod"), tag("team", "a")]),
    );
    let two = make(
        &caller,
        "tagged-2",
        0.25,
        small,
        &json!([tag("env", "prod"), tag("team", "b")]),
    );
    let three = make(&caller, "untagged", 0.125, tiny, &Value::Null);
    for id in [&one, &two, &three] {
        caller.wait_idle(id);
    }
    assert_eq!(found(&caller, "tags=env=prod"), ["tagged-1", "tagged-2"]);
    assert_eq!(found(&caller, "tags=env%3Dprod%2Cteam%3Db"), ["tagged-2"]);
    assert_eq!(found(&caller, "tags=team=a,team=b"), [""; 0], "all must match");
    assert_eq!(found(&caller, "tags=prod=env"), [""; 0]);
    assert_eq!(found(&caller, "tags="), ["tagged-1", "tagged-2", "untagged"]);
    assert_eq!(found(&caller, "capacity=0.125"), ["tagged-1", "untagged"]);
    assert_eq!(found(&caller, "capacity=0.25&tags=team=b"), ["tagged-2"]);
    assert_eq!(found(&caller, "capacity=1"), [""; 0]);
    for wrong in ["capacity=big", "capacity=NaN", "tags=env"] {
        caller.get(&format!("/instances?{wrong}")).refused("400 DCS.4063");
    }
    caller
        .v2("DELETE", &format!("/instances/{three}"), None)
        .expect(204);
    assert_eq!(found(&caller, ""), ["tagged-1", "tagged-2"]);
    let all = caller.get("/instances?include_delete=true").expect(200).json();
    assert_eq!(all["instance_num"], 3);
    let gone = &all["instances"][2];
    assert!(
        ["DELETING", "DELETED"].contains(&gone["status"].as_str().unwrap()),
        "{gone}"
    );
    assert_eq!(gone["instance_id"], json!(three));
}

#[test]
fn a_change_names_something_and_takes_nothing_back() {
    let service = Service::start();
    let caller = service.caller();
    let instance = caller.make_instance("changed");
    let path = format!("/instances/{instance}");
    for nothing in [
        json!({}),
        json!({"nam": "misspelt"}),
        json!({"instance_id": instance}),
    ] {
        caller.v2("PUT", &path, Some(&nothing)).refused("400 DCS.4063");
        caller.v1("PUT", &path, Some(&nothing)).refused("400 111400063");
    }
    let port = caller.wait_idle(&instance)["port"].clone();
    caller.v2("PUT", &path, Some(&json!({"port": port}))).expect(204);
    caller
        .v2("PUT", &path, Some(&json!({"port": 1})))
        .refused("400 DCS.4063");
    // Of two at the same moment none takes back what the other changed.
    let other = service.caller();
    for round in 0..20 {
        let (group, tag) = (format!("group-{round}"), format!("tag-{round}"));
        std::thread::scope(|scope| {
            let (path, group, tag) = (&path, &group, &tag);
            let (caller, other) = (&caller, &other);
            scope.spawn(move || {
                let wish = json!({"security_group_id": group});
                caller.v2("PUT", path, Some(&wish)).expect(204);
            });
            scope.spawn(move || {
                let wish = json!({"tags": [{"key": "k", "value": tag}]});
                other.v2("PUT", path, Some(&wish)).expect(204);
            });
        });
        let shown = caller.get(&path).expect(200).json();
        assert_eq!(
            (&shown["security_group_id"], &shown["tags"][0]["value"]),
            (&json!(group), &json!(tag))
        );
    }
}

#[test]
fn clearing_what_could_not_be_created_is_204_on_v1_and_a_list_on_v2() {
    let service = Service::start();
    let caller = service.caller();
    for version in ["/v1.0", "/v2"] {
        let (kept, failed) = (
            caller.make_instance("kept-one"),
            caller.make_instance("failed-one"),
        );
        service.sql(&format!(
            "UPDATE instance SET status = 'create_failed', failure = 'a test' WHERE id = '{failed}'"
        ));
        assert_eq!(found(&caller, "include_failure=true").len(), 2);
        if version == "/v1.0" {
            let answer = caller
                .v1("DELETE", "/instances?allFailure=true", None)
                .expect(204);
            assert!(answer.body.is_empty());
        } else {
            let answer = caller
                .v2("DELETE", "/instances?all_failure=true", None)
                .expect(200);
            let results = json!([{"instance": failed, "result": "success"}]);
            assert_eq!(answer.json(), json!({"results": results}));
        }
        assert_eq!(found(&caller, "include_failure=true"), ["kept-one"]);
        caller
            .v2("DELETE", &format!("/instances/{kept}"), None)
            .expect(204);
    }
}
