//! Servers of somebody else's of which a provider hides a command, or whose user may not use it: what that keeps from being done is
//! told when they are attached, and refused before anything is written.

use serde_json::{Value, json};
use xtask::foreign::{Access, Form, PASSWORD, USER};

use crate::attach::{LOOPBACK, address, attach, attach_open, make_user, start};
use crate::attach_restore::{ask, ended, fill};
use crate::service::{Caller, Service};

/// A restore that fails with this reason, and has written nothing.
#[track_caller]
fn expect_untouched(caller: &Caller, instance: &str, wish: &Value, why: &str) {
    let record = ended(caller, instance, &ask(caller, instance, wish));
    assert_eq!(
        (&record["status"], &record["ext"]["target_state"]),
        (&json!("failed"), &json!("untouched")),
        "{record}"
    );
    assert!(record.to_string().contains(why), "{why}: {record}");
}

fn plan(caller: &Caller, instance: &str, wish: &Value) -> Value {
    let path = format!("/instances/{instance}/restores/plan");
    caller.ck("POST", &path, Some(wish)).expect(200).json()
}

#[test]
fn where_a_provider_hides_restore_nothing_is_written_and_commands_do_without_it() {
    let foreign = start(Form::Single, Access::Open, &[("rename-command", "RESTORE \"\"")]);
    let node = &foreign.nodes[0];
    fill(&foreign, 1, 200);
    let first = foreign.digest().unwrap();
    let service = Service::start_with(&LOOPBACK, &[]);
    let caller = service.caller();
    let wish = json!({"name": "provider", "addresses": [address(node.port)], "dry_run": true});
    let notes = attach(&caller, &wish)["notes"].to_string();
    assert!(
        notes.contains("RESTORE is renamed or taken away: nothing can be restored into it but by commands"),
        "{notes}"
    );
    let id = attach_open(&caller, "provider", &[node.port]);
    let backup = caller.make_backup(&id, "the first data");
    node.ask(&["FLUSHALL"]).unwrap();
    fill(&foreign, 2, 100);
    let second = foreign.digest().unwrap();

    let wish = json!({"backup_id": backup});
    let why = "RESTORE is renamed or taken away; --commands (replay.commands)";
    let gaps = plan(&caller, &id, &wish)["gaps"].to_string();
    assert!(gaps.contains(why), "{gaps}");
    expect_untouched(&caller, &id, &wish, why);
    assert_eq!(foreign.digest().unwrap(), second);

    let wish = json!({"backup_id": backup, "replay": {"commands": true}});
    assert_eq!(plan(&caller, &id, &wish)["gaps"], json!([]));
    let record = ended(&caller, &id, &ask(&caller, &id, &wish));
    assert_eq!(record["status"], "succeed", "{record}");
    assert_eq!(foreign.digest().unwrap(), first);
}

#[test]
fn what_the_user_may_not_do_is_named_before_anything_is_written_or_with_the_first_key() {
    let foreign = start(Form::Single, Access::User, &[]);
    let node = &foreign.nodes[0];
    fill(&foreign, 1, 200);
    let first = foreign.digest().unwrap();
    let service = Service::start_with(&LOOPBACK, &[]);
    let caller = service.caller();
    make_user(&service, &foreign);
    let user = |rules: &[&str]| {
        node.ask(&[&["ACL", "SETUSER", USER][..], rules].concat())
            .unwrap();
    };
    let attached = |is_dry: bool| {
        let wish = json!({"name": "as-user", "addresses": [address(node.port)], "user": USER, "password": PASSWORD,
                          "dry_run": is_dry});
        attach(&caller, &wish)
    };
    let id = attached(false)["instance_id"].as_str().unwrap().to_owned();
    let backup = caller.make_backup(&id, "the first data");
    node.ask(&["FLUSHALL"]).unwrap();
    fill(&foreign, 2, 100);
    let second = foreign.digest().unwrap();
    let wish = json!({"backup_id": backup});

    for (rule, why, note) in [
        (
            "restore",
            "the user may not RESTORE (+restore)",
            "nothing can be restored into it but by commands",
        ),
        (
            "select",
            "the user may not SELECT (+select)",
            "nothing can be restored into other databases than 0",
        ),
        (
            "scan",
            "the user may not SCAN (+scan)",
            "no restore can remove other keys",
        ),
        (
            "unlink",
            "the user may not UNLINK (+unlink)",
            "no restore but one by commands can remove other keys",
        ),
    ] {
        user(&[&format!("-{rule}")]);
        let notes = attached(true)["notes"].to_string();
        assert!(notes.contains(&format!("{why}: {note}")), "{rule}: {notes}");
        expect_untouched(&caller, &id, &wish, why);
        assert_eq!(foreign.digest().unwrap(), second, "{rule}");
        user(&[&format!("+{rule}")]);
    }

    // An engine before 7.0 does not say so before.
    user(&["-restore", "-acl|dryrun"]);
    expect_untouched(&caller, &id, &wish, "NOPERM");
    assert_eq!(foreign.digest().unwrap(), second);

    user(&["+restore", "+acl|dryrun"]);
    let record = ended(&caller, &id, &ask(&caller, &id, &wish));
    assert_eq!(record["status"], "succeed", "{record}");
    assert_eq!(foreign.digest().unwrap(), first);
}

#[test]
fn a_user_who_is_found_not_to_have_psync_is_backed_up_key_by_key_or_told_what_it_needs() {
    let foreign = start(Form::Single, Access::User, &[]);
    let node = &foreign.nodes[0];
    node.ask(&["SET", "key", "value"]).unwrap();
    let service = Service::start_with(&LOOPBACK, &[]);
    let caller = service.caller();
    make_user(&service, &foreign);
    let user = |rules: &[&str]| {
        node.ask(&[&["ACL", "SETUSER", USER][..], rules].concat())
            .unwrap();
    };
    // As an engine before 7.0, which does not say before what a user may do.
    user(&["-psync", "-acl|dryrun", "+dump", "+pttl", "+time"]);
    let wish =
        json!({"name": "as-user", "addresses": [address(node.port)], "user": USER, "password": PASSWORD});
    let id = attach(&caller, &wish)["instance_id"].as_str().unwrap().to_owned();
    let backup = caller.start_backup(&id, "key by key");
    let record = caller.wait_end(&id, "backups", &backup);
    assert_eq!(record["status"], "succeed", "{record}");
    assert_eq!(
        (&record["ext"]["keys"], &record["ext"]["point_in_time"]),
        (&json!(1), &json!(false)),
        "{record}"
    );

    user(&["-dump"]);
    let backup = caller.start_backup(&id, "nothing can be had");
    let record = caller.wait_end(&id, "backups", &backup);
    assert_eq!(record["status"], "failed", "{record}");
    let why = record["ext"]["failure"].as_str().unwrap();
    assert!(why.contains("the user needs +psync and +replconf"), "{why}");
}
