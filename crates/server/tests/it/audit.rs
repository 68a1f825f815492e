//! Who changed what: told in the transaction of the change, and proven not to have been changed since.

use serde_json::{Value, json};

use crate::service::Service;

fn entries(service: &Service) -> Vec<Value> {
    let mut rows = service.run_json(&["audit", "list", "--limit", "1000"])["entries"]
        .as_array()
        .unwrap()
        .clone();
    rows.reverse();
    rows
}

#[test]
fn every_change_is_told_with_who_made_it_and_nothing_that_is_refused_or_only_read() {
    let service = Service::start();
    let caller = service.caller();
    let instance = caller.make_instance("audited");
    let backup = caller.make_backup(&instance, "secret-remark");
    caller.get("/instances").expect(200);
    caller.get(&format!("/instances/{instance}/backups")).expect(200);
    caller
        .v2(
            "POST",
            &format!("/instances/{instance}/restores"),
            Some(&json!({"backup_id": instance})),
        )
        .expect(400);
    caller.make_restore(&instance, &backup, "");
    service
        .logged_in()
        .v2(
            "PUT",
            &format!("/instances/{instance}"),
            Some(&json!({"name": "renamed"})),
        )
        .expect(204);
    service.run_json(&["key", "create", "--project", "local"]);
    caller
        .v2("DELETE", &format!("/instances/{instance}/backups/{backup}"), None)
        .expect(204);

    let rows = entries(&service);
    let told: Vec<(&str, &str)> = rows
        .iter()
        .map(|row| (row["what"].as_str().unwrap(), row["subject"].as_str().unwrap()))
        .collect();
    let of_instance = format!("instance_id={instance}");
    let of_backup = format!("{of_instance} backup_id={backup}");
    assert_eq!(
        told,
        [
            ("CreateInstance", ""),
            ("CopyInstance", &of_instance),
            ("RestoreInstance", &of_instance),
            ("UpdateInstance", &of_instance),
            ("key create", ""),
            ("DeleteBackupFile", &of_backup),
        ]
    );
    let who: Vec<&str> = rows.iter().map(|row| row["who"].as_str().unwrap()).collect();
    let key = service.key().ak;
    assert_eq!(
        (who[0], who[1], who[5]),
        (key.as_str(), key.as_str(), key.as_str())
    );
    assert!(who[3].len() == 32 && who[3] != key, "a user's id: {who:?}");
    assert!(who[4].starts_with("operator"), "{who:?}");
    assert!(rows.iter().all(|row| !row.to_string().contains("secret")));
    let verified = service.run_json(&["audit", "verify"]);
    assert_eq!(
        (&verified["holds"], &verified["entries"]),
        (&json!(true), &json!(6))
    );
    assert_eq!(verified["digest"], rows[5]["digest"]);
}

#[test]
fn a_row_that_is_changed_taken_out_or_put_in_breaks_the_chain_there() {
    let service = Service::start();
    let caller = service.caller();
    let instance = caller.make_instance("tampered");
    for name in ["first", "second", "third", "fourth"] {
        let path = format!("/instances/{instance}");
        caller
            .v2("PUT", &path, Some(&json!({ "name": name })))
            .expect(204);
    }
    let file = rusqlite::Connection::open(service.data().join("catalog.sqlite")).unwrap();
    for forbidden in [
        "UPDATE audit SET who = 'nobody'",
        "DELETE FROM audit WHERE number = 2",
    ] {
        let refused = file.execute_batch(forbidden).unwrap_err().to_string();
        assert!(refused.contains("audit_is_never"), "{refused}");
    }
    drop(file);
    let whole = service.run_json(&["audit", "verify"]);
    assert_eq!(whole["entries"], 5);
    let triggers = "DROP TRIGGER audit_is_never_changed; DROP TRIGGER audit_is_never_deleted;";
    let again = "CREATE TRIGGER audit_is_never_changed BEFORE UPDATE ON audit BEGIN SELECT RAISE(ABORT, 'never'); END; \
         CREATE TRIGGER audit_is_never_deleted BEFORE DELETE ON audit BEGIN SELECT RAISE(ABORT, 'never'); END;";
    let rows = entries(&service);
    let mut back = String::from("DELETE FROM audit;");
    for row in &rows {
        let at: jiff::Timestamp = row["at"].as_str().unwrap().parse().unwrap();
        back += &format!(
            "INSERT INTO audit VALUES ({}, {}, '{}', '{}', '{}', '{}', '{}');",
            row["number"],
            at.as_millisecond(),
            row["project_id"].as_str().unwrap(),
            row["who"].as_str().unwrap(),
            row["what"].as_str().unwrap(),
            row["subject"].as_str().unwrap(),
            row["digest"].as_str().unwrap()
        );
    }
    for (change, broken_at) in [
        ("UPDATE audit SET who = 'nobody' WHERE number = 3", 3),
        ("UPDATE audit SET at_ms = at_ms + 1 WHERE number = 5", 5),
        ("DELETE FROM audit WHERE number = 2", 2),
        ("UPDATE audit SET digest = '00' WHERE number = 1", 1),
        ("UPDATE audit SET number = 6 WHERE number = 5", 5),
        (
            "INSERT INTO audit SELECT 6, at_ms, project_id, who, what, subject, digest FROM audit WHERE number = 5",
            6,
        ),
    ] {
        service.sql(&format!("{triggers} {change}; {again}"));
        let output = service.run(&["audit", "verify", "-o", "json"]);
        let told: Value = serde_json::from_slice(&output.stdout).unwrap();
        assert_eq!(
            (output.status.code(), &told["broken_at"]),
            (Some(1), &json!(broken_at)),
            "{change}"
        );
        service.sql(&format!("{triggers} {back} {again}"));
        assert_eq!(service.run_json(&["audit", "verify"]), whole);
    }
}
