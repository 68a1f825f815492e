//! What is refused before any operation looks at it: paths, methods, bodies, identifiers.

use serde_json::{Value, json};

use crate::http::{Answer, Request};
use crate::service::{Credential, Service};

const UNKNOWN: &str = "f4823e9e-fe9b-4ffd-be79-4e5d6de272bb";

/// The flat body that a 400 must have: a provider that finds none panics.
#[track_caller]
fn check_flat(answer: &Answer) {
    let body = answer.json();
    assert!(
        body["error_code"].is_string() && body["error_msg"].is_string(),
        "{body}"
    );
    assert_eq!(answer.header("content-type"), Some("application/json"));
    assert_eq!(answer.header("x-request-id").map(str::len), Some(32));
}

#[test]
fn unknown_paths_and_methods_answer_by_who_asks() {
    let service = Service::start();
    let caller = service.caller();
    let nobody = service.caller_with(&caller.project, Credential::Nothing);
    let project = &caller.project;
    for path in ["/v2/x/y", "/nothing", "/v2/available-zones/", "//", "/ck/v1"] {
        caller.send(Request::new("GET", path)).refused("404 DCS.4001");
        let answer = nobody.send(Request::new("GET", path)).refused("404 APIGW.0101");
        assert_eq!(
            answer.json()["request_id"].as_str(),
            answer.header("x-request-id")
        );
    }
    caller
        .send(Request::new("GET", "/v1.0/x/y"))
        .refused("404 111404001");
    nobody
        .send(Request::new("GET", "/v1.0/x/y"))
        .refused("404 APIGW.0101");
    for (method, path) in [
        ("PATCH", ""),
        ("POST", ""),
        ("TRACE", "/backups"),
        ("PUT", "/restores"),
        ("DELETE", "/restores"),
        ("get", "/restores"),
    ] {
        let path = format!("/instances/{UNKNOWN}{path}");
        let known = caller.v2(method, &path, None).refused("405 DCS.5001");
        check_flat(&known);
        caller.v1(method, &path, None).refused("405 111405001");
        nobody.v2(method, &path, None).refused("401 APIGW.0301");
    }
    nobody
        .send(Request::new("POST", "/healthz"))
        .refused("405 DCS.5001");
    nobody
        .send(Request::new("GET", "/v3/auth/tokens"))
        .refused("405 405");
    nobody.send(Request::new("GET", "/v3/nothing")).refused("404 404");
    caller.send(Request::new("GET", "/v3/nothing")).refused("404 404");
    caller
        .send(Request::new("GET", "/v2/%7Bproject_id%7D/instances"))
        .refused("400 DCS.4002");
    caller
        .send(Request::new("GET", "/v1.0/%7Bproject_id%7D/instances"))
        .refused("400 111400002");
    caller
        .send(Request::new("GET", "/v2/%FF/instances"))
        .refused("400 DCS.4002");
    let upper = format!("/v2/{}/instances", project.to_uppercase());
    caller.send(Request::new("GET", &upper)).expect(200);
}

#[test]
fn malformed_ids_are_400_and_unknown_ones_404_before_anything_else() {
    let service = Service::start();
    let caller = service.caller();
    let calls = [
        ("GET", "", None),
        ("GET", "/backups", None),
        ("GET", "/restores", None),
        ("POST", "/backups", None),
        ("POST", "/restores", Some(json!({"backup_id": UNKNOWN}))),
        ("DELETE", "", None),
        ("PUT", "", Some(json!({"name": "other"}))),
        (
            "POST",
            "/password/reset",
            Some(json!({"new_password": "Abcdefg1"})),
        ),
        ("DELETE", &format!("/backups/{UNKNOWN}"), None),
        (
            "POST",
            &format!("/backups/{UNKNOWN}/links"),
            Some(json!({"expiration": 300})),
        ),
    ];
    for (method, path, body) in calls {
        for malformed in [
            "x",
            "a6155972800c4170a4793231e907d2f6",
            &format!("{UNKNOWN}0"),
            "%00",
            "%2e%2e",
            "a%2fb",
        ] {
            let path = format!("/instances/{malformed}{path}");
            check_flat(&caller.v2(method, &path, body.as_ref()).refused("400 DCS.4061"));
            caller.v1(method, &path, body.as_ref()).refused("400 111400061");
        }
        let path = format!("/instances/{UNKNOWN}{path}");
        caller.v2(method, &path, body.as_ref()).refused("404 DCS.3022");
        caller.v1(method, &path, body.as_ref()).refused("404 111404022");
    }
    let instance = caller.make_instance("known");
    for malformed in ["x", UNKNOWN] {
        let path = format!("/instances/{instance}/backups/{malformed}");
        caller.v2("DELETE", &path, None).refused("400 DCS.4031");
        caller.v1("DELETE", &path, None).refused("404 111404001");
        let wish = json!({"expiration": 300});
        caller
            .v2("POST", &format!("{path}/links"), Some(&wish))
            .refused("400 DCS.4031");
        caller
            .v1("POST", &format!("{path}/links"), Some(&wish))
            .refused("404 111404001");
        let (path, wish) = (
            format!("/instances/{instance}/restores"),
            json!({"backup_id": malformed}),
        );
        caller.v2("POST", &path, Some(&wish)).refused("400 DCS.4031");
        caller.v1("POST", &path, Some(&wish)).refused("400 111400063");
        assert_eq!(caller.get(&path).json()["total_num"], 0);
    }
    let upper = caller
        .get(&format!("/instances/{}", instance.to_uppercase()))
        .expect(200);
    assert_eq!(upper.json()["instance_id"], json!(instance));
}

#[test]
fn a_backup_of_another_instance_is_unknown() {
    let service = Service::start();
    let caller = service.caller();
    let (one, other) = (
        caller.ask_for_instance("one-of-two"),
        caller.ask_for_instance("two-of-two"),
    );
    caller.wait_idle(&one);
    caller.wait_idle(&other);
    let backup = caller.make_backup(&one, "of one");
    let (path, wish) = (
        format!("/instances/{other}/restores"),
        json!({"backup_id": backup}),
    );
    caller.v2("POST", &path, Some(&wish)).refused("400 DCS.4031");
    caller.v1("POST", &path, Some(&wish)).refused("400 111400063");
    caller
        .v2("DELETE", &format!("/instances/{other}/backups/{backup}"), None)
        .refused("400 DCS.4031");
    let links = format!("/instances/{other}/backups/{backup}/links");
    caller
        .v2("POST", &links, Some(&json!({"expiration": 300})))
        .refused("400 DCS.4031");
    caller
        .ck("GET", &format!("/instances/{other}/backups/{backup}"), None)
        .refused("400 DCS.4031");
    assert_eq!(caller.get(&path).json()["total_num"], 0);
}

#[test]
fn bodies_of_every_wrong_kind_are_refused_with_their_code_in_the_flat_shape() {
    let service = Service::start();
    let caller = service.caller();
    let instance = caller.make_instance("bodies");
    let at = |path: &str| format!("/v2/{}/instances/{instance}{path}", caller.project);
    let deep = "[".repeat(100_000);
    let needs_body = [
        "/restores",
        &format!("/backups/{UNKNOWN}/links"),
        "/password/reset",
    ];
    for path in needs_body {
        for (body, verdict) in [
            ("", "400 DCS.4004"),
            (" \r\n", "400 DCS.4004"),
            ("{", "400 DCS.4005"),
            ("[]", "400 DCS.4005"),
            ("null", "400 DCS.4005"),
            ("1", "400 DCS.4005"),
            ("{\"a\":1}x", "400 DCS.4005"),
            ("\u{feff}{}", "400 DCS.4005"),
            (&deep, "400 DCS.4005"),
            ("{}", "400 DCS.4063"),
        ] {
            check_flat(
                &caller
                    .send(Request::new("POST", &at(path)).body(body.as_bytes()))
                    .refused(verdict),
            );
        }
        caller
            .send(Request::new("POST", &at(path)).body(b"{\"a\":\"\xff\"}"))
            .refused("400 DCS.4005");
        let v1 = at(path).replace("/v2/", "/v1.0/");
        caller.send(Request::new("POST", &v1)).refused("400 111400004");
        caller
            .send(Request::new("POST", &v1).body(b"{"))
            .refused("400 111400005");
    }
    for backup_id in [
        json!(5),
        json!(true),
        json!([]),
        json!({}),
        json!(""),
        Value::Null,
    ] {
        let wish = json!({"backup_id": backup_id});
        check_flat(
            &caller
                .v2("POST", &format!("/instances/{instance}/restores"), Some(&wish))
                .refused("400 DCS.4063"),
        );
    }
    let backups = format!("/instances/{instance}/backups");
    for (wish, verdict) in [
        (json!({"backup_format": "zip"}), "400 DCS.4063"),
        (json!({"backup_format": true}), "400 DCS.4063"),
        (json!({"remark": {}}), "400 DCS.4063"),
        (json!({"remark": [1]}), "400 DCS.4063"),
    ] {
        check_flat(&caller.v2("POST", &backups, Some(&wish)).refused(verdict));
    }
    caller
        .send(Request::new("POST", &at("/backups")).body(b"remark=1"))
        .refused("400 DCS.4005");
    assert_eq!(
        caller.get(&backups).json()["total_num"],
        0,
        "a refused call leaves no record"
    );
}

#[test]
fn a_body_may_lack_its_media_type_or_have_any_parameter_and_a_backup_needs_none() {
    let service = Service::start();
    let caller = service.caller();
    let instance = caller.make_instance("media");
    let target = format!("/v2/{}/instances/{instance}/backups", caller.project);
    let body = br#"{"remark":"kept","instance_id":"ignored","unknown":[{}]}"#;
    for media in [
        "application/json",
        "application/json;charset=utf-8",
        "application/json;charset=utf8",
        "application/json; charset=UTF-8",
        "APPLICATION/JSON",
        "text/plain",
    ] {
        let request = Request::new("POST", &target)
            .with("Content-Type", media)
            .body(body);
        let id = caller.send(request).expect(200).json()["backup_id"]
            .as_str()
            .unwrap()
            .to_owned();
        assert_eq!(
            caller.wait_end(&instance, "backups", &id)["remark"],
            "kept",
            "{media}"
        );
    }
    let bare = [
        Request::new("POST", &target).body(body),
        Request::new("POST", &target),
        Request::new("POST", &target).with("Content-Length", "0"),
        Request::new("POST", &target)
            .with("Content-Type", "application/json")
            .body(b"{}"),
        Request::new("POST", &target).body(br#"{"remark":null,"backup_format":null}"#),
        Request::new("POST", &target).body(b"{\"backup_format\":\"AOF\"}\n"),
    ];
    for request in bare {
        let answer = caller.send(request.clone());
        assert_eq!(answer.status, 200, "{request:?}: {}", answer.text());
        let id = answer.json()["backup_id"].as_str().unwrap().to_owned();
        assert_eq!(caller.wait_end(&instance, "backups", &id)["status"], "succeed");
    }
    let chunked = format!(
        "POST {target} HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n{}\r\n2\r\n{{}}\r\n0\r\n\r\n",
        {
            let signed = service.key().sign(Request::new("POST", &target).body(b"{}"), &[]);
            let lines = signed
                .headers
                .iter()
                .map(|(name, value)| format!("{name}: {value}\r\n"));
            lines.collect::<String>()
        }
    );
    service
        .connect()
        .send_bytes(chunked.as_bytes(), false)
        .expect(200);
    // A GET with a media type and no body is what the SDK sends.
    let request = Request::new("GET", &target).with("Content-Type", "application/json");
    caller.send(request).expect(200);
}

#[test]
fn a_body_beyond_one_mebibyte_is_413_and_one_of_that_size_is_read() {
    let service = Service::start();
    let caller = service.caller();
    let target = format!("/v2/{}/instances", caller.project);
    let body = |bytes: usize| {
        let frame = r#"{"engine":"x","filler":""}"#.len();
        format!(r#"{{"engine":"x","filler":"{}"}}"#, "f".repeat(bytes - frame)).into_bytes()
    };
    caller
        .send(Request::new("POST", &target).body(&body(1 << 20)))
        .refused("400 DCS.4007");
    let answer = caller.send(Request::new("POST", &target).body(&body((1 << 20) + 1)));
    answer.refused("413 APIGW.0201");
    caller.get("/instances").expect(200);
}

#[test]
fn a_broken_catalogue_is_a_500_with_the_code_of_its_operation_and_a_line_in_the_log() {
    let mut service = Service::start();
    service.expect_trouble("the catalogue failed");
    let caller = service.caller();
    let instance = caller.make_instance("broken");
    let backup = caller.make_backup(&instance, "");
    let one = format!("/instances/{instance}");
    let (backups, restores) = (format!("{one}/backups"), format!("{one}/restores"));
    let restore = json!({"backup_id": backup});
    let another = json!({"name": "another", "engine": "Redis", "spec_code": "redis.single.xu1.tiny.128",
                         "no_password_access": true});
    let restart = json!({"instances": [instance], "action": "restart"});
    let password = json!({"new_password": "Abcdefg1"});
    for (table, method, path, body, v2, v1) in [
        ("restore", "GET", restores.as_str(), None, "DCS.5079", "111500079"),
        (
            "restore",
            "POST",
            &restores,
            Some(&restore),
            "DCS.5092",
            "111500092",
        ),
        ("backup", "GET", &backups, None, "DCS.5078", "111500078"),
        ("backup", "POST", &backups, None, "DCS.5090", "111500090"),
        ("instance", "GET", "/instances", None, "DCS.5024", "111500024"),
        ("instance", "GET", &one, None, "DCS.5024", "111500024"),
        (
            "instance",
            "POST",
            "/instances",
            Some(&another),
            "DCS.5031",
            "111500031",
        ),
        (
            "instance",
            "PUT",
            "/instances/status",
            Some(&restart),
            "DCS.5006",
            "111500006",
        ),
        (
            "instance",
            "POST",
            &format!("{one}/password/reset"),
            Some(&password),
            "DCS.5006",
            "111500006",
        ),
        ("instance", "DELETE", &one, None, "DCS.5006", "111500006"),
    ] {
        service.sql(&format!("ALTER TABLE {table} RENAME TO broken"));
        let answer = caller.v2(method, path, body);
        check_flat(&answer.clone().refused(&format!("500 {v2}")));
        let id = answer.header("x-request-id").unwrap();
        assert!(service.log().contains(id), "the log names the request");
        assert!(!answer.text().contains("broken"), "{}", answer.text());
        caller.v1(method, path, body).refused(&format!("500 {v1}"));
        service.sql(&format!("ALTER TABLE broken RENAME TO {table}"));
        caller.get(&restores).expect(200);
    }
    let listed = caller.get("/instances").expect(200).json();
    assert_eq!(
        listed["instance_num"], 1,
        "what failed is not half done: {listed}"
    );
}
