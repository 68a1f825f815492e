//! Restores that are watched: a stream of events from outside.

use serde_json::{Value, json};

use crate::cluster::{Client, ask, ports};
use crate::http::Request;
use crate::service::{Caller, Service};

const CLUSTER: &str = "redis.cluster.xu1.large.r1.4";

/// Every event until the stream ends: its name and what it tells.
fn watch(caller: &Caller, instance: &str, restore: &str) -> Vec<(String, Value)> {
    let path = format!(
        "/ck/v1/{}/instances/{instance}/restores/{restore}/events",
        caller.project
    );
    let answer = caller.send(Request::new("GET", &path)).expect(200);
    let text = answer.text();
    let events = text.split("\n\n").filter(|event| !event.is_empty());
    events
        .map(|event| {
            let (name, data) = event.split_once('\n').unwrap();
            let data = data.strip_prefix("data: ").unwrap();
            (
                name.strip_prefix("event: ").unwrap().to_owned(),
                serde_json::from_str(data).unwrap(),
            )
        })
        .collect()
}

#[test]
fn a_watched_restore_tells_at_least_each_second_how_far_it_is_and_how_it_ended() {
    let held_up = [("CACHEKEEP_FAILPOINT", "restore.shard_verified:stall")];
    let service = Service::start_with(&[], &held_up);
    let caller = service.caller();
    let instance = ask(&caller, "watched", CLUSTER, &json!({}));
    let shown = caller.wait_idle(&instance);
    Client::new(&ports(&shown)).fill(300);
    let backup = caller.make_backup(&instance, "watched");
    // It stalls for five seconds when the first shard is verified.
    let restore = caller.start_restore(&instance, &backup, "watched");
    let events = watch(&caller, &instance, &restore);
    let (last, before) = events.split_last().unwrap();
    assert_eq!(last.0, "end");
    assert_eq!(
        (&last.1["status"], &last.1["target_state"], &last.1["progress"]),
        (&json!("succeed"), &json!("replaced"), &json!(10000))
    );
    assert!(before.iter().all(|(name, _)| name == "progress"));
    // Two shards load at once, and told are those before the first that is still at it: none where the second was faster.
    let held_up = before.iter().filter(|(_, told)| {
        told["phase"] == "loading" && told["shards"].as_array().is_none_or(|shards| shards.len() < 2)
    });
    assert!(held_up.count() >= 5, "{before:#?}");
    let shards = last.1["shards"].as_array().unwrap();
    let keys: u64 = shards.iter().map(|shard| shard["keys"].as_u64().unwrap()).sum();
    assert_eq!((shards.len(), keys), (3, 300));
    let progress: Vec<i64> = events
        .iter()
        .map(|(_, told)| told["progress"].as_i64().unwrap())
        .collect();
    assert!(progress.is_sorted(), "{progress:?}");
    // One that has ended is told at once.
    assert_eq!(watch(&caller, &instance, &restore).len(), 1);
}
