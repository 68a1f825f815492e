//! Libraries of functions in servers of somebody else's: what cannot be put back is told, and the keys are put back all the same.

use serde_json::{Value, json};
use xtask::foreign::{Access, Deployment, Form, Node};
use xtask::resp::Target;

use crate::attach::{LOOPBACK, attach_open, start};
use crate::attach_matrix::fill;
use crate::service::{Caller, Service};

fn load(node: &Node, name: &str) {
    let code =
        format!("#!lua name={name}\nredis.register_function('of_{name}', function() return '{name}' end)");
    node.ask(&["FUNCTION", "LOAD", "REPLACE", &code]).unwrap();
}

fn libraries(foreign: &Deployment) -> Vec<Vec<String>> {
    let of = |node: &&Node| xtask::fill::function_code(&Target::local(node.port, None)).unwrap();
    foreign.primaries().unwrap().iter().map(of).collect()
}

/// Restores with functions, and takes it back; the record of the undo.
fn restored_and_undone(caller: &Caller, id: &str, backup: &str, before_undo: impl FnOnce()) -> Value {
    let path = format!("/instances/{id}/restores");
    let wish = json!({"backup_id": backup, "replay": {"functions": true}});
    let started = caller.ck("POST", &path, Some(&wish)).expect(200).json();
    let restore = started["restore_id"].as_str().unwrap();
    let ended = caller.wait_end(id, "restores", restore);
    assert_eq!(ended["status"], "succeed", "{ended}");
    before_undo();
    let path = format!("{path}/{restore}/undo");
    let undo = caller.ck("POST", &path, None).expect(200).json();
    let undo = undo["restore_id"].as_str().unwrap();
    let ended = caller.wait_end(id, "restores", undo);
    assert_eq!(ended["status"], "succeed", "the keys are put back: {ended}");
    let path = format!("/instances/{id}/restores/{undo}");
    caller.ck("GET", &path, None).expect(200).json()
}

#[test]
fn where_libraries_cannot_be_put_back_an_undo_puts_back_the_keys_and_says_why() {
    let service = Service::start_with(&LOOPBACK, &[]);
    let caller = service.caller();

    let foreign = start(Form::Single, Access::Open, &[]);
    let node = &foreign.nodes[0];
    let id = attach_open(&caller, "single", &[node.port]);
    load(node, "new");
    let backup = caller.make_backup(&id, "with a library");
    node.ask(&["FUNCTION", "FLUSH"]).unwrap();
    fill(&foreign, 1);
    let digest = foreign.digest().unwrap();
    let record = restored_and_undone(&caller, &id, &backup, || {
        node.ask(&["ACL", "SETUSER", "default", "-function|restore"])
            .unwrap();
    });
    let left = record["ext"]["first"]["functions_left"].as_str().unwrap();
    assert!(left.starts_with("NOPERM"), "{record}");
    assert_eq!(foreign.digest().unwrap(), digest);
    assert_eq!(libraries(&foreign)[0].len(), 1, "as the restore left them");

    // The primaries of a cluster may have different ones, of which none is given to another.
    let foreign = start(Form::Cluster, Access::Open, &[]);
    let primaries = foreign.primaries().unwrap();
    let id = attach_open(&caller, "cluster", &[primaries[0].port]);
    let backup = caller.make_backup(&id, "of nothing");
    for (node, name) in primaries.iter().zip(["one", "two", "three"]) {
        load(node, name);
    }
    fill(&foreign, 2);
    let (digest, before) = (foreign.digest().unwrap(), libraries(&foreign));
    let record = restored_and_undone(&caller, &id, &backup, || ());
    let left = record["ext"]["first"]["functions_left"].as_str().unwrap();
    assert!(left.contains("different"), "{record}");
    assert_eq!((foreign.digest().unwrap(), libraries(&foreign)), (digest, before));

    // Where they have the same ones, in whatever order, those are put back.
    for node in foreign.primaries().unwrap() {
        node.ask(&["FUNCTION", "FLUSH"]).unwrap();
        for name in ["one", "two", "three"] {
            load(node, name);
        }
    }
    let before = libraries(&foreign);
    let record = restored_and_undone(&caller, &id, &backup, || {
        for node in foreign.primaries().unwrap() {
            node.ask(&["FUNCTION", "DELETE", "two"]).unwrap();
        }
    });
    assert_eq!(record["ext"]["first"]["functions_left"], Value::Null, "{record}");
    assert_eq!(libraries(&foreign), before);
}

#[test]
fn nobody_can_ask_for_a_server_without_its_libraries() {
    let service = Service::start_with(&LOOPBACK, &[]);
    let caller = service.caller();
    let foreign = start(Form::Single, Access::Open, &[]);
    let id = attach_open(&caller, "single", &[foreign.nodes[0].port]);
    let backup = caller.make_backup(&id, "of nothing");
    let wish = json!({"backup_id": backup, "replay": {"functions_exact": true}});
    let path = format!("/instances/{id}/restores");
    caller.ck("POST", &path, Some(&wish)).expect(400);
}
