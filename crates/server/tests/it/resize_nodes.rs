//! Instances that are given other nodes, from outside: what clients that write all the while see of it, what is left afterwards,
//! and what is refused.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use xtask::resp::{Connection, Reply, Target};
use xtask::service::processes_in;

use crate::cluster::{Client, ask, nodes, ports, says};
use crate::cluster_restore::restore;
use crate::ha::{self, make};
use crate::layouts::digest;
use crate::service::{Caller, Service, wait};

/// Three primaries.
const WITHOUT: &str = "redis.cluster.xu1.large.r1.4";
/// With a replica each.
const WITH_ONE: &str = "redis.cluster.xu1.large.r2.4";
/// With two.
const WITH_TWO: &str = "redis.cluster.xu1.large.r3.4";

/// Asks for a change, waits for its end, and checks that the record says so.
#[track_caller]
fn resize(caller: &Caller, instance: &str, wish: &Value) -> Value {
    let path = format!("/instances/{instance}/resize");
    caller.v2("POST", &path, Some(wish)).expect(204);
    caller.wait_idle(instance);
    let shown = ha::shown(caller, instance);
    assert_eq!(shown["ext"]["resize"]["status"], "succeeded", "{shown}");
    println!(
        "{}: writes waited for {} us",
        shown["ext"]["resize"]["layout"], shown["ext"]["resize"]["halted_us"]
    );
    shown
}

/// What a client that writes saw: how many of its writes were acknowledged, and its longest time without one.
struct Wrote {
    acknowledged: usize,
    longest: Duration,
}

/// Writes keys of its own and counts, through `call`, while something is done; `call` answers `None` where nobody is there.
fn writing<T>(
    name: &str,
    mut call: impl FnMut(&[&str]) -> Option<Reply> + Send,
    act: impl FnOnce() -> T,
) -> (T, Wrote) {
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let writer = scope.spawn(|| {
            let mut wrote = Wrote {
                acknowledged: 0,
                longest: Duration::ZERO,
            };
            let mut last = Instant::now();
            while !stop.load(Ordering::Relaxed) {
                let number = wrote.acknowledged;
                let counter = format!("counter:{}", number % 100);
                let done = call(&["SET", &format!("{name}:{number}"), "v"])
                    .filter(|reply| *reply == Reply::Status("OK".to_owned()))
                    .and_then(|_| call(&["INCR", &counter]))
                    .filter(|reply| matches!(reply, Reply::Number(_)))
                    .and_then(|_| call(&["RPUSH", &format!("list:{counter}"), &number.to_string()]))
                    .filter(|reply| matches!(reply, Reply::Number(_)));
                if done.is_some() {
                    wrote.acknowledged += 1;
                    wrote.longest = wrote.longest.max(last.elapsed());
                    last = Instant::now();
                }
                std::thread::sleep(Duration::from_micros(500));
            }
            wrote
        });
        let done = act();
        std::thread::sleep(Duration::from_millis(100));
        stop.store(true, Ordering::Relaxed);
        (done, writer.join().unwrap())
    })
}

/// Every acknowledged write is there. One whose answer got lost may be there twice.
#[track_caller]
fn check_written(name: &str, wrote: &Wrote, mut call: impl FnMut(&[&str]) -> Option<Reply>) {
    println!(
        "{name}: {} writes acknowledged, longest time without one {:?}",
        3 * wrote.acknowledged,
        wrote.longest
    );
    let mut counted = 0;
    for number in 0..wrote.acknowledged {
        let there = call(&["EXISTS", &format!("{name}:{number}")]);
        assert_eq!(there, Some(Reply::Number(1)), "{name}:{number} is lost");
    }
    for counter in 0..100 {
        let text = call(&["GET", &format!("counter:{counter}")]);
        let count: usize = text
            .as_ref()
            .and_then(Reply::text)
            .map_or(0, |text| text.parse().unwrap());
        let Some(Reply::Number(length)) = call(&["LLEN", &format!("list:counter:{counter}")]) else {
            panic!("no list");
        };
        assert!(count.abs_diff(usize::try_from(length).unwrap()) <= 1);
        counted += count;
    }
    assert!(
        (wrote.acknowledged..=wrote.acknowledged + 3).contains(&counted),
        "{counted} are counted"
    );
    assert!(wrote.longest < Duration::from_millis(50), "{:?}", wrote.longest);
}

fn spec(shards: usize) -> Value {
    json!({"spec_code": WITHOUT, "spec_param": {"sharding_count": shards}})
}

#[test]
fn a_cluster_grows_and_shrinks_under_a_client_that_loses_no_write_and_sees_no_gap() {
    let service = Service::start();
    let caller = service.caller();
    let instance = ask(&caller, "sharded", WITHOUT, &json!({}));
    let first = ports(&caller.wait_idle(&instance));
    Client::new(&first).fill(3000);
    let mut reader = Client::new(&first);
    for (name, shards) in [("grown", 5), ("shrunk", 3)] {
        let mut client = Client::new(&first);
        let (shown, wrote) = writing(
            name,
            |words| client.try_call(words),
            || resize(&caller, &instance, &spec(shards)),
        );
        assert_eq!(
            (&shown["sharding_count"], &shown["port"]),
            (&json!(shards), &json!(first[0]))
        );
        let now = ports(&shown);
        assert_eq!(now.len(), shards);
        assert_eq!(nodes(&caller, &instance).len(), shards);
        wait("the end of the old nodes", || {
            (processes_in(&service.data()).len() == shards).then_some(())
        });
        for port in &now {
            let info = says(*port, &["CLUSTER", "INFO"]);
            assert!(info.contains("cluster_state:ok"), "{info}");
            assert!(
                info.contains(&format!("cluster_known_nodes:{shards}\r")),
                "{info}"
            );
        }
        check_written(name, &wrote, |words| reader.try_call(words));
        reader.check(3000);
        for counter in 0..100 {
            reader.call(&["DEL", &format!("counter:{counter}")]);
            reader.call(&["DEL", &format!("list:counter:{counter}")]);
        }
    }
}

#[test]
fn whatever_its_nodes_are_the_data_is_equal_by_the_engines_own_digests_and_it_is_backed_up_and_restored() {
    let mut service = Service::start();
    let caller = service.caller();
    let instance = ask(&caller, "sharded", WITHOUT, &json!({}));
    let mut now = ports(&caller.wait_idle(&instance));
    let mut client = Client::new(&now);
    client.fill(500);
    for words in [
        "SET due v PX 86400000",
        "RPUSH list a b c",
        "HSET hash a 1 b 2",
        "ZADD zset 1 a",
        "XADD stream * a b",
        "PFADD hll a b",
    ] {
        client.call(&words.split(' ').collect::<Vec<_>>());
    }
    let code = "#!lua name=lib\nredis.register_function('f', function() return 7 end)";
    for port in &now {
        says(*port, &["FUNCTION", "LOAD", code]);
    }
    let held = digest(&now);
    let earlier = caller.make_backup(&instance, "earlier");
    let replaced = restore(&caller, &instance, &json!({"backup_id": earlier}));
    assert_eq!(replaced["status"], "succeed", "{replaced}");
    for (wish, nodes) in [
        (
            json!({"spec_code": WITH_ONE, "change_type": "createReplication", "available_zones": ["local"]}),
            6,
        ),
        (json!({"spec_code": WITH_TWO}), 9),
        (
            json!({"spec_code": WITH_ONE, "spec_param": {"sharding_count": 5}, "new_capacity": 4}),
            10,
        ),
        (
            json!({"spec_code": WITHOUT, "change_type": "deleteReplication", "execute_immediately": true}),
            5,
        ),
        (
            json!({"spec_code": "redis.cluster.xu1.large.r1.8", "spec_param": {"sharding_count": 7}, "change_type": "addSharding"}),
            7,
        ),
        (
            json!({"spec_code": WITHOUT, "spec_param": {"sharding_count": 3}, "reserved_ip": ["127.0.0.1"]}),
            3,
        ),
    ] {
        now = ports(&resize(&caller, &instance, &wish));
        assert_eq!(now.len(), nodes, "{wish}");
        assert_eq!(digest(&now), held, "{wish}");
        assert_eq!(
            Connection::open(&Target::local(now[0], None))
                .unwrap()
                .ask(&["FCALL", "f", "0"])
                .unwrap(),
            Reply::Number(7)
        );
    }
    // What was replaced before is of other nodes, and gone.
    let undo = format!(
        "/instances/{instance}/restores/{}/undo",
        replaced["restore_id"].as_str().unwrap()
    );
    caller.ck("POST", &undo, Some(&json!({}))).expect(400);
    now = ports(&resize(
        &caller,
        &instance,
        &json!({"spec_code": WITH_ONE, "spec_param": {"sharding_count": 5}}),
    ));
    let backup = caller.make_backup(&instance, "of five");
    Client::new(&now).call(&["SET", "key:1", "changed"]);
    assert_ne!(digest(&now), held);
    for backup in [&backup, &earlier] {
        let done = restore(&caller, &instance, &json!({"backup_id": backup}));
        assert_eq!(done["status"], "succeed", "{done}");
        assert_eq!(digest(&now), held);
    }
    // All of it is there again after every process was killed.
    service.kill();
    service.kill_engines();
    service.start_again();
    let caller = service.caller();
    wait("all keys", || {
        let mut client = Client::new(&now);
        (client.try_call(&["GET", "key:1"])?.text()? == "value 1").then_some(())
    });
    assert_eq!(caller.wait_idle(&instance)["sharding_count"], json!(5));
    wait("the cluster", || (digest(&now) == held).then_some(()));
}

#[test]
fn a_watched_primary_is_given_another_number_of_replicas_under_a_client_that_loses_no_write_and_sees_no_gap()
{
    let service = Service::start();
    let caller = service.caller();
    let (instance, port) = make(&caller, "watched", "redis.ha.xu1.tiny.r2.128", &json!({}));
    let mut filling = ha::open("127.0.0.1", port).unwrap();
    for number in 0..500 {
        filling.ask(&["SELECT", &(number % 3).to_string()]).unwrap();
        filling.ask(&["SET", &format!("key:{number}"), "v"]).unwrap();
    }
    let mut client: Option<Connection> = None;
    let mut call = |words: &[&str]| {
        client = client.take().or_else(|| ha::open("127.0.0.1", port));
        let answer = client.as_mut()?.call(words);
        if answer.is_err() {
            client = None;
        }
        answer.ok()
    };
    for (name, copies, more) in [
        ("grown", 3, json!({"change_type": "createReplication"})),
        ("shrunk", 2, json!({})),
    ] {
        let mut wish = json!({"spec_code": format!("redis.ha.xu1.tiny.r{copies}.128")});
        for (field, value) in more.as_object().unwrap() {
            wish[field] = value.clone();
        }
        let (shown, wrote) = writing(name, &mut call, || resize(&caller, &instance, &wish));
        assert_eq!(
            (&shown["replica_count"], &shown["port"]),
            (&json!(copies), &json!(port))
        );
        ha::wait_in_sync(&caller, &instance, port, copies - 1);
        wait("the end of the old nodes", || {
            (processes_in(&service.data()).len() == copies + 3).then_some(())
        });
        check_written(name, &wrote, &mut call);
        let mut deleting = ha::open("127.0.0.1", port).unwrap();
        for counter in 0..100 {
            for key in [format!("counter:{counter}"), format!("list:counter:{counter}")] {
                deleting.ask(&["DEL", &key]).unwrap();
            }
        }
    }
    let keyspace = says(port, &["INFO", "keyspace"]);
    for line in ["db1:keys=167", "db2:keys=166"] {
        assert!(keyspace.contains(line), "{keyspace}");
    }
    // Sentinels promote one of the new ones.
    let before = ha::primary(&ha::nodes(&caller, &instance)).clone();
    ha::kill(&ha::home_of(&service, &instance, &before.id));
    wait("a successor at the clients' address", || {
        let mut client = ha::open("127.0.0.1", port)?;
        client.call(&["SELECT", "1"]).ok()?;
        (client.call(&["GET", "key:1"]).ok()?.text()? == "v").then_some(())
    });
}

#[test]
fn a_change_that_cannot_be_is_refused_or_given_up_and_the_old_nodes_serve_on() {
    let service = Service::start_with(&[], &[("CACHEKEEP_FAILPOINT", "resize.joined:stall")]);
    let caller = service.caller();
    let instance = ask(&caller, "sharded", WITHOUT, &json!({}));
    let now = ports(&caller.wait_idle(&instance));
    Client::new(&now).fill(100);
    let held = digest(&now);
    let path = format!("/instances/{instance}/resize");
    for (wish, code) in [
        (json!({"spec_code": "redis.single.xu1.large.4"}), "DCS.4026"),
        (
            json!({"spec_code": "redis.ha.xu1.large.r2.4", "change_type": "instanceType"}),
            "DCS.4026",
        ),
        (
            json!({"spec_code": WITHOUT, "spec_param": {"sharding_count": 2}}),
            "DCS.4063",
        ),
        (
            json!({"spec_code": WITHOUT, "spec_param": {"sharding_count": 129}}),
            "DCS.4063",
        ),
        (
            json!({"spec_code": WITH_ONE, "change_type": "deleteReplication"}),
            "DCS.4063",
        ),
        (
            json!({"spec_code": WITHOUT, "change_type": "addSharding"}),
            "DCS.4063",
        ),
        (
            json!({"spec_code": WITH_ONE, "node_list": ["nobody"]}),
            "DCS.4063",
        ),
        (
            json!({"spec_code": WITH_ONE, "reserved_ip": "127.0.0.1"}),
            "DCS.4063",
        ),
        (
            json!({"spec_code": WITH_ONE, "execute_immediately": false}),
            "DCS.4063",
        ),
    ] {
        let answer = caller.v2("POST", &path, Some(&wish));
        assert_eq!(
            answer.verdict(),
            format!("400 {code}"),
            "{wish}: {}",
            answer.text()
        );
    }
    let cancel = format!("{path}/cancel");
    caller.ck("POST", &cancel, None).expect(400);
    caller.v2("POST", &path, Some(&spec(5))).expect(204);
    assert_eq!(
        caller.get(&format!("/instances/{instance}")).json()["status"],
        "EXTENDING"
    );
    let shown = wait("the new nodes", || {
        let shown = ha::shown(&caller, &instance);
        (shown["ext"]["resize"]["phase"] == "joining").then_some(shown)
    });
    assert_eq!(shown["ext"]["resize"]["layout"], "5 shards");
    caller.ck("POST", &cancel, None).expect(204);
    let shown = caller.wait_idle(&instance);
    assert_eq!(
        (shown["sharding_count"].clone(), ports(&shown)),
        (json!(3), now.clone())
    );
    let failure = ha::shown(&caller, &instance)["ext"]["resize"]["failure"].to_string();
    assert!(failure.contains("it was cancelled"), "{failure}");
    assert_eq!(digest(&now), held);
    wait("the end of the new nodes", || {
        (processes_in(&service.data()).len() == 3).then_some(())
    });
}
