//! A project's archive key is changed: new backups are closed with the new one, old ones stay open.

use std::process::Command;

use serde_json::Value;

use crate::service::{Caller, Service, wait};

fn recipient(service: &Service, caller: &Caller, instance: &str, backup: &str) -> String {
    let folder = service
        .data()
        .join("store")
        .join(&caller.project)
        .join(instance)
        .join(backup)
        .join("1");
    let signed: Value =
        serde_json::from_slice(&std::fs::read(folder.join("manifest.json")).unwrap()).unwrap();
    let manifest: Value = serde_json::from_str(signed["manifest"].as_str().unwrap()).unwrap();
    // The printed keys open it with the stock program.
    let segment = folder.join("shard-0/seg-000000.rdb.zst.age");
    let opened = Command::new("age")
        .args(["-d", "-i"])
        .arg(service.data().join("keys.txt"))
        .arg(segment)
        .output()
        .unwrap();
    assert!(
        opened.status.success(),
        "{}",
        String::from_utf8_lossy(&opened.stderr)
    );
    manifest["recipient"].as_str().unwrap().to_owned()
}

#[test]
fn old_backups_stay_open_after_a_rotation_and_after_the_catalogue_is_lost() {
    let mut service = Service::start();
    let caller = service.caller();
    let instance = caller.make_instance("rotated");
    let mut backups = Vec::new();
    for value in ["first", "second", "third"] {
        if value != "first" {
            let rotated = service.run_json(&["project", "rotate-key", "local", "-q"]);
            assert!(rotated["recipient"].as_str().unwrap().starts_with("age1"));
        }
        caller.engine(&instance).ask(&["SET", "key", value]).unwrap();
        backups.push((caller.make_backup(&instance, value), value));
    }
    let keys = service.run(&["project", "key", "local", "-q"]).stdout;
    std::fs::write(service.data().join("keys.txt"), &keys).unwrap();
    let mut recipients: Vec<String> = backups
        .iter()
        .map(|(backup, _)| recipient(&service, &caller, &instance, backup))
        .collect();
    let shown = service.run_json(&["project", "key", "local", "-q"]);
    assert_eq!(shown["recipient"].as_str(), recipients.last().map(String::as_str));
    assert_eq!(shown["before"].as_array().unwrap().len(), 2);
    recipients.dedup();
    assert_eq!(recipients.len(), 3, "each backup has the key of its time");

    let each_opens = |service: &Service, caller: &Caller| {
        for (backup, value) in &backups {
            service.run_json(&["backup", "verify", "rotated", backup, "-q"]);
            service.run_json(&["inspect", backup]);
            caller.make_restore(&instance, backup, "");
            assert_eq!(
                caller.engine(&instance).ask(&["GET", "key"]).unwrap().text(),
                Some(*value)
            );
        }
    };
    each_opens(&service, &caller);
    wait("a mirror that is up to date", || {
        (service.run_json(&["catalog", "status"])[0]["rows_not_mirrored"] == 0).then_some(())
    });
    service.kill();
    for ending in ["", "-wal", "-shm"] {
        let _not_each_is_there = std::fs::remove_file(service.data().join(format!("catalog.sqlite{ending}")));
    }
    let report = service.run_json(&["catalog", "rebuild", "--from-store", "local", "--prove-all"]);
    assert_eq!(
        (&report["backups"], &report["journal_lost"]),
        (&3.into(), &serde_json::json!([])),
        "{report}"
    );
    service.start_again();
    let caller = service.caller();
    each_opens(&service, &caller);
}
