//! Instances that are given another size, from outside.

use serde_json::{Value, json};

use crate::cluster::{Client, ask, ports, says};
use crate::service::{Caller, Service};

fn limit(port: u16) -> u64 {
    let told = says(port, &["INFO", "memory"]);
    let found = told.lines().find_map(|line| line.strip_prefix("maxmemory:"));
    found.unwrap().trim().parse().unwrap()
}

fn resize(caller: &Caller, instance: &str, wish: &Value) -> crate::http::Answer {
    caller.v2("POST", &format!("/instances/{instance}/resize"), Some(wish))
}

#[test]
fn another_size_is_every_engines_limit_at_once_and_stays_after_a_restart_and_a_restore() {
    let service = Service::start();
    let caller = service.caller();
    let single = caller.make_instance("single");
    let backup = caller.make_backup(&single, "before");
    let port = ports(&caller.wait_idle(&single))[0];
    let mut open = caller.engine(&single);
    assert_eq!(limit(port), 128 << 20);
    resize(
        &caller,
        &single,
        &json!({"spec_code": "redis.single.xu1.tiny.512", "new_capacity": 0.5}),
    )
    .expect(204);
    let shown = caller.wait_idle(&single);
    assert_eq!(
        (
            &shown["spec_code"],
            &shown["max_memory"],
            &shown["capacity_minor"]
        ),
        (&json!("redis.single.xu1.tiny.512"), &json!(512), &json!(".5"))
    );
    assert_eq!(limit(port), 512 << 20);
    // Nobody was cut off.
    open.ask(&["PING"]).unwrap();
    caller.make_restore(&single, &backup, "after");
    assert_eq!(limit(port), 512 << 20);
    // v1.0 names the size alone.
    let path = format!("/instances/{single}/extend");
    caller
        .v1("POST", &path, Some(&json!({"new_capacity": 1})))
        .expect(204);
    caller.wait_idle(&single);
    let restart = json!({"instances": [single], "action": "restart"});
    caller.v2("PUT", "/instances/status", Some(&restart)).expect(200);
    caller.wait_idle(&single);
    assert_eq!(limit(port), 1 << 30);

    let cluster = ask(&caller, "cluster", "redis.cluster.xu1.large.r1.4", &json!({}));
    let all = ports(&caller.wait_idle(&cluster));
    service.run_json(&["instance", "resize", "cluster", "--capacity", "8"]);
    for port in &all {
        assert_eq!(limit(*port), (8 << 30) / 3);
    }
    Client::new(&all).fill(10);
}

#[test]
fn a_size_that_the_instance_cannot_have_is_refused_and_changes_nothing() {
    let service = Service::start();
    let caller = service.caller();
    let single = caller.make_instance("single");
    let port = ports(&caller.wait_idle(&single))[0];
    for (wish, code) in [
        (json!({}), "DCS.4063"),
        (json!({"new_capacity": 3}), "DCS.4012"),
        (json!({"new_capacity": "NaN"}), "DCS.4012"),
        (json!({"spec_code": "none"}), "DCS.4009"),
        (
            json!({"spec_code": "redis.single.xu1.tiny.256", "new_capacity": 1}),
            "DCS.4012",
        ),
        (json!({"spec_code": "redis.ha.xu1.tiny.r2.256"}), "DCS.4026"),
        (json!({"spec_code": "redis.cluster.xu1.large.r1.4"}), "DCS.4026"),
    ] {
        let answer = resize(&caller, &single, &wish);
        assert_eq!(
            answer.verdict(),
            format!("400 {code}"),
            "{wish}: {}",
            answer.text()
        );
    }
    resize(
        &caller,
        &single,
        &json!({"spec_code": "redis.single.xu1.tiny.512"}),
    )
    .expect(204);
    caller.wait_idle(&single);
    caller
        .engine(&single)
        .ask(&["DEBUG", "POPULATE", "300", "key", "1000000"])
        .unwrap();
    crate::service::wait("the service has seen the data", || {
        let shown = caller.get(&format!("/instances/{single}")).json();
        (shown["used_memory"].as_i64().unwrap() > 256).then_some(())
    });
    resize(
        &caller,
        &single,
        &json!({"spec_code": "redis.single.xu1.tiny.256"}),
    )
    .refused("400 DCS.4036");
    assert_eq!(limit(port), 512 << 20);
}
