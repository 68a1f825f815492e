//! AK/SK signatures: what real clients send is accepted, everything that differs by a byte is not.

use serde_json::json;

use crate::http::{Answer, Request};
use crate::service::{Credential, Service};
use crate::signer::{date, sha256_hex};

/// A listing as the Python SDK signs it: all that it sends, the host with its port included.
fn python_style(service: &Service, target: &str) -> Request {
    let request = Request::new("GET", target)
        .with("Host", service.address())
        .with("Content-Type", "application/json")
        .with("User-Agent", "huaweicloud-usdk-python/3.0")
        .with("X-Project-Id", service.admin("project_id"));
    service
        .key()
        .sign(request, &["content-type", "host", "user-agent", "x-project-id"])
}

/// A POST as golangsdk signs it: no host, a newline at the end of the body, the project added afterwards.
fn golang_style(service: &Service, target: &str) -> Request {
    let request = Request::new("POST", target)
        .with("Accept", "application/json")
        .with("Content-Type", "application/json")
        .with("User-Agent", "terraform-provider-iac golangsdk/2.0.0")
        .body("{\"remark\":\"\u{5907}\u{4efd}\",\"zip\":1}\n".as_bytes());
    service
        .key()
        .sign(request, &["accept", "content-type", "user-agent"])
        .with("X-Project-Id", service.admin("project_id"))
        .with("X-Domain-Id", "any")
}

#[test]
fn the_ways_in_which_the_python_sdk_and_golangsdk_sign_are_accepted() {
    let service = Service::start();
    let mut connection = service.connect();
    let project = service.admin("project_id");
    for query in [
        "",
        "?limit=10&offset=0",
        "?offset=0&limit=10",
        "?name=a%20b%2Bc%E5%A4%87&limit",
        "?name=a+b",
        "?a=%2f&&b",
    ] {
        let target = format!("/v2/{project}/instances{query}");
        connection.send(&python_style(&service, &target)).expect(200);
    }
    let unknown = format!("/v2/{project}/instances/f4823e9e-fe9b-4ffd-be79-4e5d6de272bb/backups");
    connection
        .send(&golang_style(&service, &unknown))
        .refused("404 DCS.3022");
    let slash = format!("/v2/{project}/instances/");
    connection
        .send(&python_style(&service, &slash))
        .refused("404 DCS.4001");
    // A hash in a header is as good as the one that the service computes, where it is the same.
    let request = Request::new("GET", &format!("/v2/{project}/instances"))
        .with("X-Sdk-Content-Sha256", &sha256_hex(b""));
    connection
        .send(&service.key().sign(request, &["x-sdk-content-sha256"]))
        .expect(200);
    // The signature decides where there is a token beside it.
    let request =
        python_style(&service, &format!("/v2/{project}/instances")).with("X-Auth-Token", "nonsense");
    connection.send(&request).expect(200);
}

/// A changed path may be no API at all; then the answer to a stranger says just that.
fn is_refused(answer: &Answer) -> bool {
    matches!(
        answer.verdict().as_str(),
        "401 APIGW.0301" | "404 APIGW.0101" | "401 401" | "404 404"
    )
}

/// Every text that differs from this one in one byte, by two replacements each. A slash in the place of an escape's
/// digit would be no request at all, and an escape with the digit in the other case is the same request.
fn variants(text: &str) -> Vec<String> {
    let mut all = Vec::new();
    for at in 0..text.len() {
        let old = text.as_bytes()[at];
        for new in [
            old ^ 1,
            if old.is_ascii_lowercase() {
                old.to_ascii_uppercase()
            } else {
                b'z'
            },
        ] {
            let legal = new.is_ascii_alphanumeric() || b"-_.~;=,/:&".contains(&new);
            if legal && new != old {
                let mut changed = text.as_bytes().to_vec();
                changed[at] = new;
                all.push(String::from_utf8(changed).unwrap());
            }
        }
    }
    all
}

#[test]
fn every_changed_byte_of_a_signed_request_is_refused() {
    let service = Service::start();
    let mut connection = service.connect();
    let project = service.admin("project_id").to_owned();
    let target = format!("/v2/{project}/instances?limit=10&offset=0&name=alpha");
    let good = python_style(&service, &target);
    connection.send(&good).expect(200);
    let mut tried = 0;
    let mut check = |request: &Request, what: &str| {
        let answer = connection.send(request);
        assert!(
            is_refused(&answer),
            "{what}: {} {}",
            answer.verdict(),
            answer.text()
        );
        tried += 1;
    };
    for method in ["POST", "PUT", "DELETE", "GEt", "get", "GETX"] {
        check(
            &Request {
                method: method.to_owned(),
                ..good.clone()
            },
            method,
        );
    }
    // A target that does not begin with a slash is no HTTP.
    for target in variants(&good.target[1..]) {
        let target = format!("/{target}");
        check(
            &Request {
                target: target.clone(),
                ..good.clone()
            },
            &target,
        );
    }
    for target in [
        format!("{target}&"),
        format!("{target}&x"),
        target.replace("limit=10&", ""),
    ] {
        // An empty pair more or less is the same request to every client's signer.
        if !target.ends_with('&') {
            check(
                &Request {
                    target: target.clone(),
                    ..good.clone()
                },
                &target,
            );
        }
    }
    for (at, (name, value)) in good.headers.iter().enumerate() {
        for changed in variants(value) {
            let mut request = good.clone();
            request.headers[at].1 = changed.clone();
            check(&request, &format!("{name}: {changed}"));
        }
        let mut request = good.clone();
        request.headers.remove(at);
        if name == "Authorization" || name == "Host" {
            continue;
        }
        check(&request, &format!("without {name}"));
        let mut request = good.clone();
        request.headers.push((name.clone(), value.clone()));
        check(&request, &format!("{name} twice"));
    }
    let post = golang_style(&service, &format!("/v2/{project}/instances"));
    connection = service.connect();
    connection.send(&post).refused("400 DCS.4007");
    for at in 0..post.body.len() {
        let mut request = post.clone();
        request.body[at] ^= 1;
        assert_eq!(
            connection.send(&request).verdict(),
            "401 APIGW.0301",
            "byte {at} of the body"
        );
        tried += 1;
    }
    for body in [&post.body[..post.body.len() - 1], b"", b"{}"] {
        let request = post.clone().body(body);
        assert_eq!(connection.send(&request).verdict(), "401 APIGW.0301");
    }
    assert!(tried > 500, "{tried} variants");
}

#[test]
fn a_date_fifteen_minutes_off_is_refused_and_one_within_is_not() {
    let service = Service::start();
    let mut connection = service.connect();
    let request = Request::new("GET", &format!("/v2/{}/instances", service.admin("project_id")));
    let mut send = |date: &str| connection.send(&service.key().sign_at(request.clone(), &[], date));
    for within in [0, -14 * 60 - 50, 14 * 60 + 59] {
        send(&date(within)).expect(200);
    }
    for beyond in [-15 * 60 - 2, 15 * 60 + 10, -86_400, 86_400 * 365] {
        let answer = send(&date(beyond)).refused("401 APIGW.0301");
        assert!(answer.text().contains("expired"), "{}", answer.text());
    }
    for malformed in [
        "",
        "20260101",
        "20261301T000000Z",
        "20260101T000000",
        "2026-01-01T00:00:00Z",
        "20260101T0000000Z",
    ] {
        send(malformed).refused("401 APIGW.0301");
    }
}

#[test]
fn unsigned_payloads_dates_and_other_algorithms_are_refused() {
    let service = Service::start();
    let mut connection = service.connect();
    let key = service.key();
    let target = format!("/v2/{}/instances", service.admin("project_id"));
    let request = Request::new("POST", &target)
        .with("X-Sdk-Content-Sha256", "UNSIGNED-PAYLOAD")
        .body(b"{}");
    let unsigned = key.sign_payload(
        request.clone(),
        &["x-sdk-content-sha256"],
        &date(0),
        "UNSIGNED-PAYLOAD",
    );
    connection.send(&unsigned).refused("401 APIGW.0301");
    let elsewhere = sha256_hex(b"other");
    let request = Request::new("POST", &target)
        .with("X-Sdk-Content-Sha256", &elsewhere)
        .body(b"{}");
    let signed = key.sign_payload(request, &["x-sdk-content-sha256"], &date(0), &elsewhere);
    connection.send(&signed).refused("401 APIGW.0301");
    let good = key.sign(Request::new("GET", &target), &[]);
    let value = good.header("authorization").unwrap().to_owned();
    let mut swapped = |value: &str| {
        let mut request = good.clone();
        request.headers.last_mut().unwrap().1 = value.to_owned();
        connection.send(&request).refused("401 APIGW.0301");
    };
    swapped(&value.replace("SDK-HMAC-SHA256", "SDK-HMAC-SM3"));
    swapped(&value.replace("SDK-HMAC-SHA256", "V11-HMAC-SHA256"));
    swapped(&value.replace("x-sdk-date", ""));
    swapped(&value.replace("x-sdk-date", "host"));
    swapped(&value.replace("x-sdk-date", "x-sdk-date;x-not-there"));
    swapped(&value.replace("Access=", "Access=x"));
    swapped(&value[..value.len() - 1]);
    swapped(&format!("{value}0"));
    swapped(&value.replace("Signature=", "Signature=, Signature="));
    swapped("Basic YWRtaW46YWRtaW4=");
    swapped("");
    connection.send(&good).expect(200);
}

#[test]
fn a_key_acts_on_its_own_project_only_and_not_once_it_is_revoked() {
    let service = Service::start();
    let other = service.second_project("elsewhere");
    let mut connection = service.connect();
    let (own, key) = (service.admin("project_id"), service.key());
    for foreign in [other.project.as_str(), "00000000000000000000000000000000"] {
        let request = Request::new("GET", &format!("/v2/{foreign}/instances"));
        connection.send(&key.sign(request, &[])).refused("401 DCS.1004");
        let request = Request::new("GET", &format!("/v1.0/{foreign}/instances"));
        connection.send(&key.sign(request, &[])).refused("401 111401004");
        let request = Request::new("GET", &format!("/v2/{own}/instances")).with("X-Project-Id", foreign);
        connection
            .send(&key.sign(request.clone(), &["x-project-id"]))
            .refused("401 DCS.1004");
        connection.send(&key.sign(request, &[])).refused("401 DCS.1004");
    }
    let caller = service.caller_with(&other.project, Credential::Key(other.key.clone()));
    caller.get("/instances").expect(200);
    service.run_json(&["key", "revoke", &other.key.ak]);
    caller.get("/instances").refused("401 APIGW.0301");
    caller
        .v2("POST", "/instances", Some(&json!({})))
        .refused("401 APIGW.0301");
    let keys = service.run_json(&["key", "list"]);
    let listed = keys
        .as_array()
        .unwrap()
        .iter()
        .find(|row| row["ak"] == json!(other.key.ak))
        .unwrap();
    assert!(listed["revoked_at"].is_string(), "{keys}");
}
