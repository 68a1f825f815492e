//! The catalogue is lost, and a part of its mirror too: what is left comes back, and what does not fit is told.

use std::path::{Path, PathBuf};

use serde_json::json;

use crate::rebuild::{entries, lists, lose_machine, mirrored, without_generations};
use crate::service::Service;

const REBUILD: [&str; 4] = ["catalog", "rebuild", "--from-store", "local"];

/// Removes the entries with a number in between.
fn lose_entries(service: &Service, after: u64, until: u64) {
    for (number, path) in entries(service) {
        if number > after && number <= until {
            std::fs::remove_file(path).unwrap();
        }
    }
}

#[test]
fn a_lost_entry_costs_what_it_held_and_no_other_row() {
    let mut service = Service::start();
    let caller = service.caller();
    let set = |instance: &String| caller.engine(instance).ask(&["SET", "key", "value"]).unwrap();
    let first = caller.make_instance("first");
    set(&first);
    let kept = caller.make_backup(&first, "kept");
    let before = mirrored(&service);
    // Lost: the deletion of the first, and the row of the second.
    caller
        .v2("DELETE", &format!("/instances/{first}"), None)
        .expect(204);
    let second = caller.make_instance("second");
    set(&second);
    let lost = mirrored(&service);
    let found = caller.make_backup(&second, "of an instance without a row");
    let third = caller.make_instance("third");
    mirrored(&service);
    let before_loss = lists(&service.caller(), &[&first, &second]);
    lose_machine(&mut service);
    lose_entries(&service, before, lost);
    let report = service.run_json(&REBUILD);
    let told = report["rows_not_fitting"].as_array().unwrap();
    let told_of = |id: &str, what: &str| {
        told.iter().any(|line| {
            let line = line.as_str().unwrap();
            line.contains(id) && line.contains(what)
        })
    };
    assert!(told_of(&second, "under a made-up name"), "{report}");
    assert_eq!(report["rows_not_fitting_count"], told.len());
    let empty = report["instances_empty"].as_array().unwrap();
    assert!(empty.contains(&json!("third")), "{report}");
    service.start_again();
    let caller = service.caller();
    caller.wait_idle(&third);
    assert_eq!(
        without_generations(lists(&caller, &[&first, &second])),
        without_generations(before_loss)
    );
    for backup in [&kept, &found] {
        let shown = service.run(&["get", backup, "key"]);
        assert!(String::from_utf8_lossy(&shown.stdout).contains("\"value\":\"value\""));
    }
}

#[test]
fn of_two_instances_with_one_port_the_older_counts_as_deleted() {
    let mut service = Service::start();
    let caller = service.caller();
    let older = caller.make_instance("older");
    let before = mirrored(&service);
    caller
        .v2("DELETE", &format!("/instances/{older}"), None)
        .expect(204);
    let lost = mirrored(&service);
    let newer = caller.make_instance("newer");
    service.sql(&format!(
        "UPDATE instance SET port = (SELECT port FROM instance WHERE id = '{older}') WHERE id = '{newer}'"
    ));
    mirrored(&service);
    lose_machine(&mut service);
    lose_entries(&service, before, lost);
    let report = service.run_json(&REBUILD);
    assert_eq!(report["instances_empty"], json!(["newer"]), "{report}");
    let told = report["rows_not_fitting"][0].as_str().unwrap();
    assert!(
        told.contains("is the port of another instance too") && told.contains(&older),
        "{told}"
    );
    service.start_again();
    service.caller().wait_idle(&newer);
}

#[test]
fn what_was_rebuilt_with_a_gap_is_rebuilt_again_record_for_record() {
    let mut service = Service::start();
    let caller = service.caller();
    let instance = caller.make_instance("twice");
    let backup = caller.make_backup(&instance, "");
    caller.make_restore(&instance, &backup, "one");
    let before = mirrored(&service);
    caller.make_restore(&instance, &backup, "lost");
    let lost = mirrored(&service);
    for remark in ["three", "four"] {
        caller.make_restore(&instance, &backup, remark);
        mirrored(&service);
    }
    lose_machine(&mut service);
    lose_entries(&service, before, lost);
    let report = service.run_json(&REBUILD);
    assert_eq!(report["restores_missing"], 1, "{report}");
    service.start_again();
    let caller = service.caller();
    caller.wait_idle(&instance);
    caller.make_restore(&instance, &backup, "five");
    mirrored(&service);
    let once = lists(&caller, &[&instance]);
    assert_eq!(once[0]["restores"][0]["total_num"], 4);
    lose_machine(&mut service);
    let report = service.run_json(&REBUILD);
    assert_eq!(
        (&report["restores_missing"], &report["rows_not_fitting"]),
        (&json!(0), &json!([])),
        "{report}"
    );
    service.start_again();
    assert_eq!(
        without_generations(lists(&service.caller(), &[&instance])),
        without_generations(once)
    );
}

fn copy(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap() {
        let path = entry.unwrap().path();
        let beside = to.join(path.file_name().unwrap());
        match path.is_dir() {
            true => copy(&path, &beside),
            false => drop(std::fs::copy(&path, &beside).unwrap()),
        }
    }
}

#[test]
fn an_archive_that_a_rebuild_could_not_prove_is_kept_until_its_record_is_deleted() {
    let mut service = Service::start();
    let caller = service.caller();
    let instance = caller.make_instance("unended");
    let whole = caller.make_backup(&instance, "whole");
    let unended = "11111111-2222-4333-8444-666666666666";
    service.sql(&format!(
        "INSERT INTO backup (id, instance_id, project_id, ordinal, name, kind, format, status, created_at_ms, updated_at_ms) \
         SELECT '{unended}', instance_id, project_id, ordinal + 1, 'backup_unended', 'auto', format, 'waiting', created_at_ms, \
         updated_at_ms FROM backup WHERE id = '{whole}'"
    ));
    let told = mirrored(&service);
    lose_machine(&mut service);
    lose_entries(&service, told, u64::MAX);
    let folder = service.data().join("store").join(&caller.project).join(&instance);
    copy(&folder.join(&whole), &folder.join(unended));
    let report = service.run_json(&REBUILD);
    let not_taken = &report["backups_not_taken"][0];
    assert_eq!(not_taken["backup_id"], unended, "{report}");
    assert!(
        not_taken["why"]
            .as_str()
            .unwrap()
            .contains("manifest is that of another backup")
    );
    service.start_again();
    let caller = service.caller();
    caller.wait_idle(&instance);
    let attempts = || -> Vec<PathBuf> {
        let found = std::fs::read_dir(folder.join(unended));
        found
            .into_iter()
            .flatten()
            .map(|entry| entry.unwrap().path())
            .collect()
    };
    let [attempt] = &attempts()[..] else {
        panic!("it is swept: {:?}", attempts());
    };
    assert!(attempt.join("manifest.json").exists());
    caller
        .v2(
            "DELETE",
            &format!("/instances/{instance}/backups/{unended}"),
            None,
        )
        .expect(204);
    assert!(attempts().is_empty(), "{:?}", attempts());
}
