//! The files of a cluster's shards become one backup where they hold every slot once.

use std::path::PathBuf;
use std::process::Output;

use serde_json::json;
use xtask::resp::Reply;
use xtask::scratch::Scratch;

use crate::cluster::{Client, ask, ports, says};
use crate::import_url::FileServer;
use crate::service::Service;

fn told(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

#[test]
fn one_file_of_each_shard_is_taken_where_they_hold_every_slot_once() {
    let service = Service::start();
    let caller = service.caller();
    let instance = ask(&caller, "sharded", "redis.cluster.xu1.large.r1.4", &json!({}));
    let all = ports(&caller.wait_idle(&instance));
    Client::new(&all).fill(1000);
    let backup = caller.make_backup(&instance, "");
    let outside = Scratch::new("shards").unwrap();
    let to = outside.path().join("files");
    let got = service.run_json(&[
        "backup",
        "download",
        "sharded",
        &backup,
        "--to",
        to.to_str().unwrap(),
    ]);
    let files: Vec<PathBuf> = serde_json::from_value(got["files"].clone()).unwrap();
    let [one, two, three] = &files[..] else {
        panic!("{files:?}")
    };
    let [one, two, three] = [one, two, three].map(|path| path.to_str().unwrap());
    let nodes = outside.path().join("nodes.txt");
    std::fs::write(&nodes, says(all[0], &["CLUSTER", "NODES"])).unwrap();
    let nodes = nodes.to_str().unwrap();

    // 1000 keys leave most slots empty: without the list a missing file would not be noticed.
    for (words, why) in [
        (&[one, two, three][..], "slots have no key in any file"),
        (&[one, two, "--nodes", nodes], "3 shards with slots, and 2 files"),
        (&[one, two, two, "--nodes", nodes], "both have keys of slot"),
        (&[one, one, "--accept-empty-slots"], "both have keys of slot"),
    ] {
        let refused = service.run(&[&["import", "sharded"], words].concat());
        assert!(
            refused.status.code() == Some(1) && told(&refused).contains(why),
            "{}",
            told(&refused)
        );
    }
    let server = FileServer::start(&to);
    let url = |path: &str| {
        let name = path.rsplit('/').next().unwrap();
        format!("http://127.0.0.1:{}/{name}", server.port)
    };
    let urls = [one, two, three].map(url);
    for words in [
        &[three, one, two, "--nodes", nodes][..],
        &[two, one, three, "--accept-empty-slots"],
        &[
            &urls[1],
            &urls[0],
            &urls[2],
            "--nodes",
            nodes,
            "--allow",
            "127.0.0.1",
        ],
    ] {
        let made = service.run_json(&[&["import", "sharded"], words].concat());
        let id = made["backup_id"].as_str().unwrap();
        assert_eq!(made["keys"], 1000);
        let verified = service.run_json(&["backup", "verify", "sharded", id]);
        assert_eq!(
            (&verified["holds"], &verified["shards"]),
            (&json!(true), &json!(3))
        );
        let same = service.run(&["diff", &backup, id]);
        assert_eq!(
            same.status.code(),
            Some(0),
            "{}",
            String::from_utf8_lossy(&same.stdout)
        );
        let record = caller
            .ck("GET", &format!("/instances/{instance}/backups/{id}"), None)
            .expect(200)
            .json();
        assert_eq!(record["status"], "succeed");
        // What was imported comes back, to its own shards, and what has happened since is gone.
        let mut client = Client::new(&all);
        assert_eq!(client.call(&["DEL", "key:7"]), Reply::Number(1));
        client.call(&["SET", "written since", "x"]);
        caller.make_restore(&instance, id, "");
        let all = ports(&caller.wait_idle(&instance));
        let mut client = Client::new(&all);
        client.check(1000);
        assert_eq!(client.call(&["GET", "written since"]), Reply::Nil);
    }
}
