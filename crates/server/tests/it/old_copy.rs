//! A catalogue that was put back from an old copy meets the newer store.

use std::path::Path;

use xtask::service::processes_in;

use crate::rebuild::mirrored;
use crate::service::Service;

const PARTS: [&str; 3] = ["catalog.sqlite", "catalog.sqlite-wal", "catalog.sqlite-shm"];

fn copy(from: &Path, to: &Path) {
    for part in PARTS {
        let _old = std::fs::remove_file(to.join(part));
        if from.join(part).exists() {
            std::fs::copy(from.join(part), to.join(part)).unwrap();
        }
    }
}

fn said(output: &std::process::Output) -> String {
    assert!(!output.status.success());
    String::from_utf8_lossy(&output.stderr).into_owned()
}

#[test]
fn a_catalogue_that_is_older_than_its_mirror_is_refused_and_harms_nothing_before_somebody_says_so() {
    if std::env::var("CACHEKEEP_TEST_CATALOG").is_ok() {
        // The copies here are of files.
        return;
    }
    let mut service = Service::start();
    let caller = service.caller();
    caller.make_instance("older");
    mirrored(&service);
    service.kill();
    let (data, old) = (service.data(), service.data().join("old"));
    std::fs::create_dir(&old).unwrap();
    copy(&data, &old);
    service.start_again();
    let caller = service.caller();
    let newer = caller.make_instance("newer");
    let backup = caller.make_backup(&newer, "");
    mirrored(&service);
    service.kill();
    let engines = processes_in(&data);
    let new = data.join("new");
    std::fs::create_dir(&new).unwrap();
    copy(&data, &new);

    copy(&old, &data);
    let refused = said(&service.run(&["serve", "--listen", "127.0.0.1:0"]));
    assert!(
        refused.contains("older than its mirror in the store local"),
        "{refused}"
    );
    assert!(refused.contains("catalog rebuild --from-store"), "{refused}");
    assert_eq!(processes_in(&data), engines);
    let unsaid = said(&service.run(&["catalog", "keep-older"]));
    assert!(unsaid.contains("say --yes if that is meant"), "{unsaid}");

    // The newest one is taken.
    copy(&new, &data);
    service.start_again();
    assert_eq!(
        service
            .caller()
            .get(&format!("/instances/{newer}"))
            .expect(200)
            .json()["status"],
        "RUNNING"
    );
    service.kill();

    // One that is made anew from the store knows everything.
    for part in PARTS {
        let _absent = std::fs::remove_file(data.join(part));
    }
    service.run_json(&["catalog", "rebuild", "--from-store", "local"]);
    service.start_again();
    let listed = service
        .caller()
        .get(&format!("/instances/{newer}/backups"))
        .expect(200)
        .json();
    assert_eq!(listed["backup_record_response"][0]["backup_id"], backup);
    service.kill();

    // Who says so goes on with the old one, and its mirror behind the newer one.
    copy(&old, &data);
    let kept = service.run_json(&["catalog", "keep-older", "--yes"]);
    assert_eq!(kept.as_array().unwrap().len(), 1, "{kept}");
    service.start_again();
    service.caller().get(&format!("/instances/{newer}")).expect(404);
    service.caller().make_instance("after");
    assert!(mirrored(&service) > kept[0]["newest_entry"].as_u64().unwrap());
    service.kill();
    service.start_again();
    // What it does not know may be newer than it is: a list of the store is no reason to delete.
    let project = service.data().join("store").join(service.admin("project_id"));
    let archive = project.join(&newer).join(&backup);
    assert!(archive.join("1/manifest.json").exists(), "{}", archive.display());
}
