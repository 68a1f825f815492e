//! Tokens and projects in Keystone's shapes.

use serde_json::{Value, json};

use crate::http::{Answer, Request};
use crate::service::{Credential, Service};

/// Asks for a token; `scope` may be null for none.
fn ask(service: &Service, user: Value, scope: &Value) -> Answer {
    let mut body = json!({"auth": {"identity": {"methods": ["password"], "password": {"user": user}}}});
    if !scope.is_null() {
        body["auth"]["scope"] = scope.clone();
    }
    service
        .connect()
        .send(&Request::json("POST", "/v3/auth/tokens", &body))
}

fn admin(service: &Service) -> Value {
    json!({"name": service.admin("user"), "password": service.admin("password"),
           "domain": {"name": service.admin("domain")}})
}

#[track_caller]
fn token_of(answer: &Answer) -> String {
    assert_eq!(answer.status, 201, "{}", answer.text());
    answer.header("x-subject-token").unwrap().to_owned()
}

#[test]
fn a_password_gives_a_scoped_token_whose_catalogue_leads_back_here() {
    let service = Service::start();
    let (project, region) = (service.admin("project_id"), service.admin("region"));
    let domain = service.admin("domain");
    let scopes = [
        json!({"project": {"name": region}}),
        json!({"project": {"id": project}}),
        json!({"project": {"name": region, "domain": {"name": domain}}}),
        Value::Null,
    ];
    let mut user_id = String::new();
    for scope in &scopes {
        let answer = ask(&service, admin(&service), scope);
        let caller = service.caller_with(project, Credential::Token(token_of(&answer)));
        caller.get("/instances").expect(200);
        caller.v1("GET", "/instances", None).expect(200);
        let token = &answer.json()["token"];
        assert_eq!(
            (&token["methods"], &token["project"]["id"]),
            (&json!(["password"]), &json!(project))
        );
        assert_eq!(
            (&token["project"]["name"], &token["user"]["domain"]["name"]),
            (&json!(region), &json!(domain))
        );
        assert_eq!(token["roles"][0]["name"], "te_admin");
        let dcs = &token["catalog"][0];
        assert_eq!(
            (&dcs["type"], &dcs["endpoints"][0]["region"]),
            (&json!("dcs"), &json!(region))
        );
        let url = format!("{}/v1.0/{project}", service.admin("endpoint"));
        assert_eq!(dcs["endpoints"][0]["url"], json!(url));
        assert_eq!(token["catalog"][1]["type"], "identity");
        for name in ["issued_at", "expires_at"] {
            let text = token[name].as_str().unwrap();
            assert!(text.len() == 27 && text.ends_with('Z'), "{name}: {text}");
        }
        user_id = token["user"]["id"].as_str().unwrap().to_owned();
    }
    let by_id = json!({"id": user_id, "password": service.admin("password")});
    token_of(&ask(&service, by_id, &scopes[0]));
}

#[test]
fn wrong_names_passwords_and_scopes_are_one_and_the_same_401() {
    let service = Service::start();
    let other = service.second_project("elsewhere");
    let good = admin(&service);
    let with = |name: &str, value: &str| {
        let mut user = good.clone();
        user[name] = json!(value);
        user
    };
    let mut bodies = Vec::new();
    for (user, scope) in [
        (with("password", "wrong"), Value::Null),
        (with("name", "nobody"), Value::Null),
        (
            json!({"name": service.admin("user"), "password": service.admin("password"), "domain": {"name": "other"}}),
            Value::Null,
        ),
        (
            json!({"id": "00000000000000000000000000000000", "password": "x"}),
            Value::Null,
        ),
        (json!({"password": "x"}), Value::Null),
        (good.clone(), json!({"project": {"name": "elsewhere"}})),
        (good.clone(), json!({"project": {"name": "nowhere"}})),
        (good.clone(), json!({"project": {"id": other.project}})),
        (
            good.clone(),
            json!({"project": {"id": "00000000000000000000000000000000"}}),
        ),
        (
            good.clone(),
            json!({"project": {"name": service.admin("region"), "domain": {"name": "other"}}}),
        ),
    ] {
        let answer = ask(&service, user, &scope).refused("401 401");
        assert_eq!(answer.json()["error"]["title"], "Unauthorized");
        bodies.push(answer.body);
    }
    bodies.dedup();
    assert_eq!(bodies.len(), 1, "no answer says what was wrong");
    for body in [
        "",
        "{",
        "[]",
        "{}",
        r#"{"auth":{}}"#,
        r#"{"auth":{"identity":{"methods":[]}}}"#,
        r#"{"auth":{"identity":{"methods":["totp"]}}}"#,
    ] {
        let request = Request::new("POST", "/v3/auth/tokens").body(body.as_bytes());
        service.connect().send(&request).refused("400 400");
    }
}

#[test]
fn a_domain_token_is_good_for_no_dcs_call_but_for_a_project_token() {
    let service = Service::start();
    let project = service.admin("project_id");
    let domain = json!({"domain": {"name": service.admin("domain")}});
    let answer = ask(&service, admin(&service), &domain);
    let token = token_of(&answer);
    assert!(answer.json()["token"].get("project").is_none());
    let caller = service.caller_with(project, Credential::Token(token.clone()));
    caller.get("/instances").refused("401 DCS.1004");
    caller.v1("GET", "/instances", None).refused("401 111401004");
    let body = json!({"auth": {"identity": {"methods": ["token"], "token": {"id": token}},
                               "scope": {"project": {"id": project}}}});
    let scoped = service
        .connect()
        .send(&Request::json("POST", "/v3/auth/tokens", &body));
    service
        .caller_with(project, Credential::Token(token_of(&scoped)))
        .get("/instances")
        .expect(200);
}

#[test]
fn a_token_made_from_a_token_does_not_live_longer_than_that() {
    let service = Service::start();
    let first = ask(&service, admin(&service), &Value::Null);
    let token = token_of(&first);
    // The first one has an hour left.
    service.sql("UPDATE token SET expires_at_ms = CAST(strftime('%s', 'now') AS INTEGER) * 1000 + 3600000");
    let body = json!({"auth": {"identity": {"methods": ["token"], "token": {"id": token}}}});
    let again = service
        .connect()
        .send(&Request::json("POST", "/v3/auth/tokens", &body))
        .expect(201);
    let expires = again.json()["token"]["expires_at"].as_str().unwrap().to_owned();
    let expires: jiff::Timestamp = expires.parse().unwrap();
    let left = expires.duration_since(jiff::Timestamp::now());
    assert!(
        left <= jiff::SignedDuration::from_mins(60),
        "{left} left: a leaked token would live for ever"
    );
}

#[test]
fn unknown_expired_and_revoked_tokens_are_401() {
    let service = Service::start();
    let other = service.second_project("elsewhere");
    let user = json!({"name": other.user, "password": other.password});
    let token = token_of(&ask(&service, user.clone(), &Value::Null));
    let caller = service.caller_with(&other.project, Credential::Token(token.clone()));
    caller.get("/instances").expect(200);
    service
        .caller_with(service.admin("project_id"), Credential::Token(token))
        .get("/instances")
        .refused("401 DCS.1004");
    service.sql("UPDATE token SET expires_at_ms = CAST(strftime('%s', 'now') AS INTEGER) * 1000 - 1000");
    caller.get("/instances").refused("401 APIGW.0301");
    let fresh = token_of(&ask(&service, user.clone(), &Value::Null));
    let caller = service.caller_with(&other.project, Credential::Token(fresh.clone()));
    caller.get("/instances").expect(200);
    service.run_json(&["user", "revoke", &other.user]);
    caller.get("/instances").refused("401 APIGW.0301");
    ask(&service, user, &Value::Null).refused("401 401");
    let body = json!({"auth": {"identity": {"methods": ["token"], "token": {"id": fresh}}}});
    service
        .connect()
        .send(&Request::json("POST", "/v3/auth/tokens", &body))
        .refused("401 401");
    for token in ["", "x", &"0".repeat(64), &"0".repeat(5000)] {
        let caller = service.caller_with(&other.project, Credential::Token(token.to_owned()));
        caller.get("/instances").refused("401 APIGW.0301");
    }
}

#[test]
fn discovery_needs_no_credential_and_projects_are_found_by_name_with_one() {
    let service = Service::start();
    let nobody = service.caller_with("", Credential::Nothing);
    let get = |path: &str| nobody.send(Request::new("GET", path)).expect(200).json();
    let ids: Vec<Value> = get("/")["versions"]
        .as_array()
        .unwrap()
        .iter()
        .map(|row| row["id"].clone())
        .collect();
    assert_eq!(ids, ["v1.0", "v2"]);
    for (path, id, status) in [
        ("/v2", "v2", "CURRENT"),
        ("/v2/", "v2", "CURRENT"),
        ("/v1.0", "v1.0", "DEPRECATED"),
        ("/v1.0/", "v1.0", "DEPRECATED"),
    ] {
        let version = &get(path)["version"];
        assert_eq!((&version["id"], &version["status"]), (&json!(id), &json!(status)));
        assert_eq!(version["links"][0]["rel"], "self");
        let href = format!("{}/{id}/", service.admin("endpoint"));
        assert_eq!(version["links"][0]["href"], json!(href));
    }
    assert_eq!(get("/v3")["version"]["id"], "v3.14");
    assert_eq!(get("/healthz")["status"], "ok");
    assert_eq!(get("/readyz"), json!({"catalog": true, "store": true}));
    let caller = service.caller();
    service.second_project("elsewhere");
    for path in ["/v3/projects", "/v3/auth/projects"] {
        let all = caller.send(Request::new("GET", path)).expect(200).json();
        assert_eq!(all["projects"].as_array().unwrap().len(), 1);
        let named = caller.send(Request::new(
            "GET",
            &format!("{path}?name={}", service.admin("region")),
        ));
        assert_eq!(
            named.expect(200).json()["projects"][0]["id"],
            json!(service.admin("project_id"))
        );
        let foreign = caller
            .send(Request::new("GET", &format!("{path}?name=elsewhere")))
            .expect(200);
        assert_eq!(foreign.json()["projects"], json!([]));
        let answer = nobody.send(Request::new("GET", path)).refused("401 401");
        let error = &answer.json()["error"];
        assert_eq!(error["title"], "Unauthorized", "in Keystone's shape: {error}");
        assert!(error["message"].is_string());
        nobody.send(Request::new("PUT", path)).refused("401 401");
        caller.send(Request::new("PUT", path)).refused("405 405");
    }
}
