//! Pages, windows and their refusals. The records are written into the catalogue so that their times are known.

use serde_json::{Value, json};

use crate::http::Answer;
use crate::service::{Caller, Service};

/// 2020-01-01T00:00:00Z
const START_MS: i64 = 1_577_836_800_000;

/// An instance with so many backups and as many restores, a minute apart, the oldest at `START_MS`.
fn seeded(service: &Service, caller: &Caller, count: i64) -> String {
    let instance = caller.make_instance("pages");
    let project = &caller.project;
    service.sql(&format!(
        "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < {count})
         INSERT INTO restore (instance_id, ordinal, id, project_id, name, backup_id, backup_name, status, source_instance_id,
            source_instance_name, method, verify, target_state, created_at_ms, clock_at_ms, finished_at_ms, updated_at_ms)
         SELECT '{instance}', i, printf('00000000-0000-4000-8000-%012d', i), '{project}', 'restore_' || i,
            'f4823e9e-fe9b-4ffd-be79-4e5d6de272bb', 'gone', 'succeeded', '{instance}', 'pages', 'side_load', 'sample',
            'replaced', {START_MS} + (i - 1) * 60000 + i % 1000, 0, 1, 1 FROM n;
         WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < {count})
         INSERT INTO backup (instance_id, ordinal, id, project_id, name, kind, format, status, error_code, created_at_ms, updated_at_ms)
         SELECT '{instance}', i, printf('00000000-0000-4000-8000-%012d', i), '{project}', 'backup_' || i, 'manual', 'rdb',
            'failed', '1', {START_MS} + (i - 1) * 60000 + i % 1000, 1 FROM n;
         UPDATE instance SET restore_ordinal = {count}, restore_created_at_ms = {START_MS} + {count} * 60000 WHERE id = '{instance}';"
    ));
    instance
}

/// The numbers of the seeded records of a page, and the total.
#[track_caller]
fn numbers(answer: Answer) -> (Vec<u64>, u64) {
    let page = answer.expect(200).json();
    let rows = page["restore_record_response"]
        .as_array()
        .or(page["backup_record_response"].as_array());
    let number = |row: &Value| {
        let id = row["restore_id"].as_str().or(row["backup_id"].as_str()).unwrap();
        id[24..].parse().unwrap()
    };
    (
        rows.unwrap().iter().map(number).collect(),
        page["total_num"].as_u64().unwrap(),
    )
}

fn down(from: u64, to: u64) -> Vec<u64> {
    (to..=from).rev().collect()
}

#[test]
fn pages_cut_exactly_and_the_total_does_not_depend_on_them() {
    let service = Service::start();
    let caller = service.caller();
    let instance = seeded(&service, &caller, 1005);
    for what in ["restores", "backups"] {
        let v2 =
            |query: &str| numbers(caller.v2("GET", &format!("/instances/{instance}/{what}{query}"), None));
        let v1 =
            |query: &str| numbers(caller.v1("GET", &format!("/instances/{instance}/{what}{query}"), None));
        assert_eq!(v2(""), (down(1005, 996), 1005), "newest first, ten by default");
        assert_eq!(v1(""), (down(1005, 996), 1005));
        assert_eq!(v2("?limit=1000"), (down(1005, 6), 1005));
        assert_eq!(v2("?limit=1000&offset=1000"), (down(5, 1), 1005));
        assert_eq!(
            v2("?limit=3&offset=3"),
            (down(1002, 1000), 1005),
            "offset 3 starts at the fourth"
        );
        assert_eq!(
            v1("?limit=3&start=4"),
            (down(1002, 1000), 1005),
            "start is offset + 1"
        );
        assert_eq!(v1("?limit=3&start=1"), (down(1005, 1003), 1005));
        assert_eq!(v2("?offset=1005"), (vec![], 1005));
        assert_eq!(v2("?offset=9223372036854775807"), (vec![], 1005));
        assert_eq!(v1("?start=1006&limit=1000"), (vec![], 1005));
        assert_eq!(v2("?limit=1&offset=1004"), (vec![1], 1005));
        assert_eq!(
            v2("?limit=1&offset=2&start=1"),
            (vec![1003], 1005),
            "on v2 offset wins"
        );
        assert_eq!(
            v1("?limit=1&offset=2&start=1"),
            (vec![1005], 1005),
            "on v1.0 start wins"
        );
        assert_eq!(v2("?limit=1&start=2"), (vec![1004], 1005));
        assert_eq!(v1("?limit=1&offset=1"), (vec![1004], 1005));
        assert_eq!(
            v2("?limit=1&limit=2"),
            (vec![1005, 1004], 1005),
            "the last of two wins"
        );
        assert_eq!(
            v2("?limit=&offset=&begin_time=&end_time="),
            (down(1005, 996), 1005),
            "empty is absent"
        );
    }
    // As Terraform pages: on by what came, until the total is reached.
    let (mut seen, mut total) = (Vec::new(), u64::MAX);
    while (seen.len() as u64) < total {
        let query = format!("/instances/{instance}/backups?limit=100&offset={}", seen.len());
        let (page, whole) = numbers(caller.get(&query));
        assert!(!page.is_empty());
        seen.extend(page);
        total = whole;
    }
    assert_eq!(seen, down(1005, 1));
}

#[test]
fn window_bounds_are_inclusive_whole_seconds_under_every_spelling() {
    let service = Service::start();
    let caller = service.caller();
    // Record i is created at START + (i - 1) minutes + i milliseconds.
    let instance = seeded(&service, &caller, 10);
    for what in ["restores", "backups"] {
        let list = |version: &str, query: &str| {
            let path = format!("/instances/{instance}/{what}?limit=1000&{query}");
            numbers(match version {
                "v2" => caller.v2("GET", &path, None),
                _ => caller.v1("GET", &path, None),
            })
        };
        for version in ["v2", "v1.0"] {
            for (begin, end) in [
                ("begin_time", "end_time"),
                ("beginTime", "endTime"),
                ("begin_Time", "end_Time"),
                ("BEGINTIME", "ENDTIME"),
                ("begin%5Ftime", "end%54ime"),
            ] {
                let window = |from: &str, to: &str| list(version, &format!("{begin}={from}&{end}={to}"));
                assert_eq!(
                    window("20200101000200", "20200101000400"),
                    (down(5, 3), 3),
                    "{version} {begin}"
                );
                assert_eq!(window("20200101000200", "20200101000200"), (vec![3], 1));
                assert_eq!(window("20200101000201", "20200101000359"), (vec![4], 1));
                assert_eq!(window("20200101000201", "20200101000259"), (vec![], 0));
                assert_eq!(list(version, &format!("{begin}=20200101000900")), (vec![10], 1));
                assert_eq!(list(version, &format!("{end}=20200101000100")), (vec![2, 1], 2));
                assert_eq!(window("19700101000000", "99991231235959"), (down(10, 1), 10));
            }
            assert_eq!(list(version, "end_time=20191231235959"), (vec![], 0));
            assert_eq!(list(version, "begin_time=20210101000000"), (vec![], 0));
        }
        let paged = format!("/instances/{instance}/{what}?end_time=20200101000400&limit=2&offset=1");
        assert_eq!(
            numbers(caller.get(&paged)),
            (vec![4, 3], 5),
            "the total is that of the window"
        );
    }
}

#[test]
fn paging_values_out_of_range_and_times_that_do_not_exist_are_refused_in_both_shapes() {
    let service = Service::start();
    let caller = service.caller();
    let instance = caller.make_instance("refused");
    let cases = [
        ("limit=0", "DCS.4800", "111400800"),
        ("limit=1001", "DCS.4800", "111400800"),
        ("limit=-1", "DCS.4800", "111400800"),
        ("limit=x", "DCS.4800", "111400800"),
        ("limit=1.5", "DCS.4800", "111400800"),
        ("limit=18446744073709551616", "DCS.4800", "111400800"),
        ("offset=-1", "DCS.4800", "111400800"),
        ("offset=18446744073709551615", "DCS.4800", "111400800"),
        ("start=0", "DCS.4800", "111400800"),
        ("start=-1", "DCS.4800", "111400800"),
        ("begin_time=2017", "DCS.4062", "111400062"),
        ("begin_time=20170230000000", "DCS.4062", "111400062"),
        ("beginTime=20170101240000", "DCS.4062", "111400062"),
        ("end_time=20170101000060", "DCS.4062", "111400062"),
        ("endTime=201701010000000", "DCS.4062", "111400062"),
        ("end_time=2017010100000a", "DCS.4062", "111400062"),
        ("end_time=%EF%BC%92017010100000", "DCS.4062", "111400062"),
        (
            "begin_time=20200101000001&end_time=20200101000000",
            "DCS.4025",
            "111400025",
        ),
    ];
    for what in ["restores", "backups"] {
        for (query, v2, v1) in cases {
            let path = format!("/instances/{instance}/{what}?{query}");
            let answer = caller.get(&path).refused(&format!("400 {v2}"));
            let body = answer.json();
            assert!(
                body["error_msg"].is_string() && body["error_ext_msg"].is_null(),
                "{body}"
            );
            let answer = caller.v1("GET", &path, None).refused(&format!("400 {v1}"));
            let body = answer.json();
            assert!(
                body["error"]["message"].is_string() && body.get("error_code").is_none(),
                "{body}"
            );
        }
    }
    for (query, v2) in [
        ("limit=0", "400 DCS.4800"),
        ("offset=-1", "400 DCS.4800"),
        ("limit=1001", "400 DCS.4800"),
    ] {
        caller.get(&format!("/instances?{query}")).refused(v2);
    }
}

#[test]
fn instance_lists_filter_page_and_follow_the_marker() {
    let service = Service::start();
    let caller = service.caller();
    let ids: Vec<String> = ["first", "second", "third-first"]
        .map(|name| caller.ask_for_instance(name))
        .into();
    for id in &ids {
        caller.wait_idle(id);
    }
    let found = |answer: Answer| {
        let page = answer.expect(200).json();
        let names = page["instances"]
            .as_array()
            .unwrap()
            .iter()
            .map(|row| row["name"].as_str().unwrap().to_owned());
        (names.collect::<Vec<_>>(), page["instance_num"].as_u64().unwrap())
    };
    let (all, total) = found(caller.get("/instances"));
    assert_eq!((all.len(), total), (3, 3));
    assert_eq!(
        found(caller.get("/instances?name=first")).1,
        2,
        "a part of the name is enough"
    );
    assert_eq!(
        found(caller.get("/instances?name=first&name_equal=true")).0,
        ["first"]
    );
    assert_eq!(
        found(caller.v1("GET", "/instances?name=first&isExactMatchName=true", None)).0,
        ["first"]
    );
    assert_eq!(
        found(caller.v1("GET", "/instances?name=first&exactMatchName=true", None)).0,
        ["first"]
    );
    assert_eq!(
        found(caller.get(&format!("/instances?instance_id={}", ids[1]))).0,
        ["second"]
    );
    assert_eq!(
        found(caller.v1("GET", &format!("/instances?id={}", ids[1]), None)).0,
        ["second"]
    );
    assert_eq!(found(caller.get("/instances?status=RUNNING")).1, 3);
    assert_eq!(found(caller.get("/instances?status=ERROR")), (vec![], 0));
    assert_eq!(
        found(caller.get("/instances?limit=2&offset=1")),
        (all[1..].to_vec(), 3)
    );
    assert_eq!(
        found(caller.v1("GET", "/instances?limit=2&start=2", None)),
        (all[1..].to_vec(), 3)
    );
    // openstacksdk pages with the last id that it has seen.
    let mut seen: Vec<String> = Vec::new();
    let mut marker = String::new();
    loop {
        let page = caller
            .v1("GET", &format!("/instances?limit=1{marker}"), None)
            .expect(200)
            .json();
        let Some(row) = page["instances"].get(0) else {
            break;
        };
        seen.push(row["name"].as_str().unwrap().to_owned());
        marker = format!("&marker={}", row["instance_id"].as_str().unwrap());
    }
    assert_eq!(seen, all);
    caller.get("/instances/first").refused("400 DCS.4061");
    let wish = json!({"instances": ids});
    let results = caller.v2("DELETE", "/instances", Some(&wish)).expect(200).json();
    for id in &ids {
        assert!(
            results["results"]
                .as_array()
                .unwrap()
                .contains(&json!({"instance": id, "result": "success"}))
        );
        caller.get(&format!("/instances/{id}")).refused("404 DCS.3022");
    }
}
