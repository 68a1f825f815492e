//! Deletion of backups, links to their files, and the files behind them.

use serde_json::{Value, json};

use crate::http::{Answer, Request};
use crate::service::{Caller, Service};

fn link_of(caller: &Caller, instance: &str, backup: &str, wish: &Value) -> Answer {
    caller.v2(
        "POST",
        &format!("/instances/{instance}/backups/{backup}/links"),
        Some(wish),
    )
}

/// Path and query of a fresh link.
#[track_caller]
fn target(service: &Service, caller: &Caller, instance: &str, backup: &str) -> String {
    let links = link_of(caller, instance, backup, &json!({"expiration": 300}))
        .expect(200)
        .json();
    let link = links["links"][0]["link"].as_str().unwrap();
    link.strip_prefix(service.admin("endpoint"))
        .expect("a link to this service")
        .to_owned()
}

#[test]
fn links_live_five_minutes_to_a_day_and_name_one_file() {
    let service = Service::start();
    let caller = service.caller();
    let instance = caller.make_instance("links");
    let backup = caller.make_backup(&instance, "");
    for expiration in [
        json!(299),
        json!(86_401),
        json!(-300),
        json!("x"),
        json!("299"),
        json!(""),
        json!(300.5),
        json!(true),
        json!([300]),
        Value::Null,
    ] {
        let wish = json!({"expiration": expiration});
        link_of(&caller, &instance, &backup, &wish).refused("400 DCS.4063");
    }
    link_of(&caller, &instance, &backup, &json!({})).refused("400 DCS.4063");
    let path = format!("/instances/{instance}/backups/{backup}/links");
    caller.v2("POST", &path, None).refused("400 DCS.4004");
    caller.v1("POST", &path, None).refused("400 111400004");
    for expiration in [json!(300), json!(86_400), json!("300"), json!("86400")] {
        let asked = jiff::Timestamp::now().as_second();
        let links = link_of(&caller, &instance, &backup, &json!({"expiration": expiration}))
            .expect(200)
            .json();
        assert!(links["bucket_name"].is_string());
        assert!(links["file_path"].as_str().unwrap().ends_with('/'), "{links}");
        let rows = links["links"].as_array().unwrap();
        assert_eq!(rows.len(), 1);
        let (name, link) = (
            rows[0]["file_name"].as_str().unwrap(),
            rows[0]["link"].as_str().unwrap(),
        );
        assert!(
            name.starts_with("redis_127.0.0.1_") && name.ends_with(".rdb"),
            "{name}"
        );
        assert!(link.contains(&format!("/{name}?Expires=")), "{link}");
        let until: i64 = link
            .split("Expires=")
            .nth(1)
            .unwrap()
            .split('&')
            .next()
            .unwrap()
            .parse()
            .unwrap();
        let seconds: i64 = expiration
            .as_str()
            .map_or_else(|| expiration.as_i64().unwrap(), |text| text.parse().unwrap());
        assert!(
            (asked + seconds - 1..=asked + seconds + 10).contains(&until),
            "{until} for {seconds} from {asked}"
        );
    }
    let links = caller
        .v1("POST", &path, Some(&json!({"expiration": "300"})))
        .expect(200)
        .json();
    let (file, name) = (
        links["file_path"].as_str().unwrap(),
        links["links"][0]["file_name"].as_str().unwrap(),
    );
    assert!(
        file.ends_with(name),
        "on v1.0 the path is that of the file: {links}"
    );
}

#[test]
fn a_link_gives_the_whole_valid_file_any_range_of_it_and_needs_no_credential() {
    let service = Service::start();
    let caller = service.caller();
    let instance = caller.make_instance("files");
    let mut engine = caller.engine(&instance);
    let value = "v".repeat(3000);
    for number in 0..500 {
        engine
            .send(&["SET", &format!("key:{number}"), &format!("{number}{value}")])
            .unwrap();
    }
    engine.settle().unwrap();
    let backup = caller.make_backup(&instance, "");
    let target = target(&service, &caller, &instance, &backup);
    let mut stranger = service.connect();
    let whole = stranger.send(&Request::new("GET", &target)).expect(200);
    let total = whole.body.len();
    assert_eq!(whole.header("content-length"), Some(total.to_string().as_str()));
    assert_eq!(whole.header("accept-ranges"), Some("bytes"));
    assert!(whole.header("content-disposition").unwrap().contains(".rdb\""));
    assert!(whole.body.starts_with(b"REDIS00"));
    let file = service.data().join("downloaded.rdb");
    std::fs::write(&file, &whole.body).unwrap();
    let seen = service.run_json(&["inspect", file.to_str().unwrap()]);
    assert_eq!((&seen["valid"], &seen["keys"]), (&json!(true), &json!(500)));

    let head = stranger.send(&Request::new("HEAD", &target)).expect(200);
    assert_eq!(head.header("content-length"), whole.header("content-length"));
    let last = total - 1;
    for (range, from, to) in [
        ("bytes=0-0".to_owned(), 0, 0),
        ("bytes=0-9".to_owned(), 0, 9),
        ("bytes=1000-1999".to_owned(), 1000, 1999),
        (format!("bytes={last}-"), last, last),
        ("bytes=100-".to_owned(), 100, last),
        (format!("bytes=5-{}", total + 5000), 5, last),
        ("bytes=-10".to_owned(), total - 10, last),
        (format!("bytes=-{}", total + 1), 0, last),
    ] {
        let part = stranger
            .send(&Request::new("GET", &target).with("Range", &range))
            .expect(206);
        assert_eq!(part.body, whole.body[from..=to], "{range}");
        assert_eq!(
            part.header("content-range"),
            Some(format!("bytes {from}-{to}/{total}").as_str())
        );
        assert_eq!(
            part.header("content-length"),
            Some((to - from + 1).to_string().as_str())
        );
    }
    for range in [format!("bytes={total}-"), "bytes=-0".to_owned()] {
        let none = stranger
            .send(&Request::new("GET", &target).with("Range", &range))
            .expect(416);
        assert_eq!(
            none.header("content-range"),
            Some(format!("bytes */{total}").as_str())
        );
    }
    for range in ["lines=1-2", "bytes=0-1,5-6", "bytes=a-b", "bytes=-", "bytes"] {
        let part = stranger
            .send(&Request::new("GET", &target).with("Range", range))
            .expect(200);
        assert_eq!(part.body.len(), total, "{range}");
    }
    // Who stops reading stops the service's work, not the service.
    for _ in 0..5 {
        let mut hurried = service.connect();
        drop(hurried.send(&Request::new("HEAD", &target)));
    }
    stranger.send(&Request::new("GET", &target)).expect(200);
}

/// The signature of a link, made as the service makes it: HMAC-SHA256 under a key derived for downloads.
fn proof(master: &str, text: &str) -> String {
    use ring::hmac::{HMAC_SHA256, Key, sign};
    let bytes: Vec<u8> = (0..master.len())
        .step_by(2)
        .map(|at| u8::from_str_radix(&master[at..at + 2], 16).unwrap())
        .collect();
    let derived = sign(&Key::new(HMAC_SHA256, &bytes), b"download");
    let mac = sign(&Key::new(HMAC_SHA256, derived.as_ref()), text.as_bytes());
    mac.as_ref().iter().map(|byte| format!("{byte:02x}")).collect()
}

#[test]
fn a_link_with_any_change_and_one_to_a_deleted_backup_are_dead() {
    let service = Service::start();
    let caller = service.caller();
    let instance = caller.make_instance("proofs");
    let (backup, other) = (
        caller.make_backup(&instance, ""),
        caller.make_backup(&instance, ""),
    );
    let good = target(&service, &caller, &instance, &backup);
    let mut stranger = service.connect();
    let (path, query) = good.split_once('?').unwrap();
    let (expires, signature) = query.split_once('&').unwrap();
    let until: i64 = expires.strip_prefix("Expires=").unwrap().parse().unwrap();
    let changed = [
        good.replace(&backup, &other),
        good.replace(&instance, &other),
        good.replace(&caller.project, "0123456789abcdef0123456789abcdef"),
        good.replace(".rdb", ".aof"),
        format!("{path}?Expires={}&{signature}", until + 1),
        format!("{path}?Expires={}&{signature}", until + 86_400),
        format!("{path}?Expires={}&{signature}", until - 3600),
        format!("{path}?Expires=9223372036854775807&{signature}"),
        format!("{path}?Expires=&{signature}"),
        format!("{path}?{signature}"),
        format!("{path}?{expires}"),
        format!("{path}?{expires}&Signature="),
        format!("{path}?{expires}&Signature={}", "0".repeat(64)),
        path.to_owned(),
    ];
    for target in changed {
        assert_ne!(target, good);
        stranger
            .send(&Request::new("GET", &target))
            .refused("403 APIGW.0302");
    }
    // Rightly signed, by the service's own key, and over: a second ago, and an hour.
    let master = std::fs::read_to_string(service.data().join("keys/master.key")).unwrap();
    for ago in [1, 3600] {
        let expires = jiff::Timestamp::now().as_second() - ago;
        let proof = proof(master.trim(), &format!("{path}\n{expires}"));
        let over = format!("{path}?Expires={expires}&Signature={proof}");
        stranger
            .send(&Request::new("GET", &over))
            .refused("403 APIGW.0302");
        let later = expires + ago + 60;
        let proof = self::proof(master.trim(), &format!("{path}\n{later}"));
        let valid = format!("{path}?Expires={later}&Signature={proof}");
        stranger.send(&Request::new("GET", &valid)).expect(200);
    }
    let at = good.len() - 1;
    let flipped = if good.ends_with('0') { "1" } else { "0" };
    stranger
        .send(&Request::new("GET", &format!("{}{flipped}", &good[..at])))
        .refused("403 APIGW.0302");
    stranger.send(&Request::new("GET", &good)).expect(200);
    caller
        .v2("DELETE", &format!("/instances/{instance}/backups/{backup}"), None)
        .expect(204);
    stranger
        .send(&Request::new("GET", &good))
        .refused("404 APIGW.0101");
}

#[test]
fn a_deletion_is_204_on_v2_and_200_with_a_message_on_v1_and_happens_once() {
    let service = Service::start();
    let caller = service.caller();
    let instance = caller.make_instance("deletions");
    let (one, other) = (
        caller.make_backup(&instance, "one"),
        caller.make_backup(&instance, "other"),
    );
    caller.make_restore(&instance, &one, "");
    let path = |backup: &str| format!("/instances/{instance}/backups/{backup}");
    let answer = caller.v2("DELETE", &path(&one), None).expect(204);
    assert!(answer.body.is_empty() && answer.header("content-length").is_none_or(|text| text == "0"));
    caller.v2("DELETE", &path(&one), None).refused("400 DCS.4031");
    assert_eq!(
        caller.v1("DELETE", &path(&other), None).expect(200).json(),
        json!({"message": ""})
    );
    caller.v1("DELETE", &path(&other), None).refused("404 111404001");
    let list = caller.get(&format!("/instances/{instance}/backups")).json();
    let rows = list["backup_record_response"].as_array().unwrap();
    assert!(
        rows.iter()
            .all(|row| row["backup_id"] != json!(one) && row["backup_id"] != json!(other)),
        "{list}"
    );
    let restores = caller.get(&format!("/instances/{instance}/restores")).json();
    assert_eq!(
        restores["restore_record_response"][0]["backup_id"],
        json!(one),
        "the record stays: {restores}"
    );
    let wish = json!({"backup_id": one});
    caller
        .v2("POST", &format!("/instances/{instance}/restores"), Some(&wish))
        .refused("400 DCS.4031");
    link_of(&caller, &instance, &one, &json!({"expiration": 300})).refused("400 DCS.4031");
}

/// One record as the list has it.
fn listed(caller: &Caller, instance: &str, backup: &str) -> Option<Value> {
    let list = caller.get(&format!("/instances/{instance}/backups")).json();
    let rows = list["backup_record_response"].as_array().unwrap();
    rows.iter().find(|row| row["backup_id"] == json!(backup)).cloned()
}

#[test]
fn a_backup_whose_files_do_not_go_stays_listed_and_can_be_deleted_again() {
    // Before anything is gone, and after the manifest is.
    for (place, whole) in [
        ("backup_delete.after_commit", true),
        ("archive.manifest_deleted", false),
    ] {
        let mut service = Service::start_with(&[], &[("CACHEKEEP_FAILPOINT", &format!("{place}:error"))]);
        service.expect_trouble("cannot remove the files of a backup");
        service.expect_trouble("a request failed");
        let caller = service.caller();
        let instance = caller.make_instance("stubborn");
        let backup = caller.make_backup(&instance, "");
        let before = listed(&caller, &instance, &backup).unwrap();
        let path = format!("/instances/{instance}/backups/{backup}");
        caller.v2("DELETE", &path, None).refused("500 DCS.4101");
        let after = listed(&caller, &instance, &backup).expect("the record stays");
        let restore = json!({"backup_id": backup});
        let restores = format!("/instances/{instance}/restores");
        if whole {
            assert_eq!(after, before, "nothing is gone");
            caller.make_restore(&instance, &backup, "");
            caller.v1("DELETE", &path, None).expect(200);
        } else {
            assert_eq!(
                (&after["status"], &after["is_support_restore"]),
                (&json!("expired"), &json!("FALSE"))
            );
            caller
                .v2("POST", &restores, Some(&restore))
                .refused("400 DCS.4087");
            caller.v2("DELETE", &path, None).expect(204);
        }
        assert_eq!(listed(&caller, &instance, &backup), None);
        caller.v2("DELETE", &path, None).refused("400 DCS.4031");
        let mut left: Vec<_> = std::fs::read_dir(service.data().join("store")).unwrap().collect();
        left.retain(|entry| {
            let name = entry.as_ref().unwrap().file_name();
            name != "journal" && name != "catalog"
        });
        assert!(left.is_empty(), "{left:?}");
    }
}

#[test]
fn a_backup_in_the_aof_format_is_downloaded_under_that_name_and_loads() {
    let service = Service::start();
    let caller = service.caller();
    let instance = caller.make_instance("formats");
    caller.engine(&instance).ask(&["SET", "key", "value"]).unwrap();
    let wish = json!({"backup_format": "aof"});
    let started = caller
        .v2("POST", &format!("/instances/{instance}/backups"), Some(&wish))
        .expect(200)
        .json();
    let backup = started["backup_id"].as_str().unwrap();
    assert_eq!(
        caller.wait_end(&instance, "backups", backup)["backup_format"],
        "aof"
    );
    let target = target(&service, &caller, &instance, backup);
    assert!(target.contains(".aof?"), "{target}");
    let file = service.connect().send(&Request::new("GET", &target)).expect(200);
    // An append-only file may begin with a whole RDB; a stock engine must take it as one.
    let folder = xtask::scratch::Scratch::new("aof").unwrap();
    let (aof, stock) = (folder.path().join("given.aof"), folder.path().join("stock"));
    std::fs::create_dir(&stock).unwrap();
    std::fs::write(&aof, &file.body).unwrap();
    // An engine moves a file of that name into its own directory of append-only files at its first start.
    std::fs::copy(&aof, stock.join("appendonly.aof")).unwrap();
    let stock = stock.to_str().unwrap();
    let engine = xtask::plain_engine::PlainEngine::start(&[("appendonly", "yes"), ("dir", stock)]).unwrap();
    let mut engine = xtask::resp::Connection::open(&engine.target()).unwrap();
    assert_eq!(engine.ask(&["DBSIZE"]).unwrap(), xtask::resp::Reply::Number(1));
    assert_eq!(engine.ask(&["GET", "key"]).unwrap().text(), Some("value"));
}
