//! An open load on either database: everything is answered, nothing that was accepted is lost, every backup is made. How fast
//! that goes is measured by `cargo xtask bench load`.

use load::{Plan, Report};
use serde_json::{Value, json};
use xtask::load::{Base, Tenant, Wanted, lost, make_tenants, plan, seed_records, seed_tenants};
use xtask::postgres::Postgres;

use crate::service::{Caller, Credential, Service, wait};

const TENANTS: usize = 8;
const RECORDS: u32 = 20;
const IDLE: usize = 2;
const SECONDS: f64 = 4.0;
/// A small part of what a busy machine can do.
const RATE: f64 = 100.0;
const CONNECTIONS: usize = 20;

fn caller(service: &Service, tenant: &Tenant) -> Caller {
    service.caller_with(&tenant.project, Credential::Token(tenant.token.clone()))
}

fn tenants(service: &Service, base: &Base<'_>) -> Vec<Tenant> {
    let mut tenants = make_tenants(TENANTS, |words| Ok(service.run_json(words))).unwrap();
    seed_tenants(base, &tenants).unwrap();
    seed_records(base, TENANTS, 1, RECORDS).unwrap();
    for tenant in &mut tenants[..IDLE] {
        let caller = caller(service, tenant);
        let instance = caller.make_instance("idle");
        caller.engine(&instance).ask(&["SET", "k", "v"]).unwrap();
        tenant.idle = Some(instance);
    }
    tenants
}

/// Runs the generator, and checks that every request was answered as it should be.
fn run(service: &Service, tenants: &[Tenant]) -> Value {
    let wanted = Wanted {
        address: service.address(),
        rate: RATE,
        connections: CONNECTIONS,
        seconds: SECONDS,
        writes: true,
        from_sent: false,
        slow: 0,
        patience_seconds: 60.0,
    };
    let plan: Plan = serde_json::from_value(plan(&wanted, tenants, RECORDS)).unwrap();
    let report: Report = load::run::run(&plan).unwrap();
    assert_eq!(report.due, (RATE * SECONDS) as u64);
    let all_good =
        report.answered == report.due && report.broken == 0 && report.count(200, 300) == report.due;
    assert!(
        all_good,
        "of {} due: {:?}, {} broken",
        report.due, report.statuses, report.broken
    );
    // The mix is drawn; what it consists of is checked here by what was answered.
    for kind in [
        "reads",
        "writes",
        "backup asked for",
        "change of a schedule",
        "one restore",
    ] {
        assert!(
            report.latency(kind).is_some_and(|latency| latency.count > 0),
            "no {kind}"
        );
    }
    serde_json::to_value(&report).unwrap()
}

/// Every accepted backup succeeds, and there is no other.
fn check_backups(service: &Service, tenants: &[Tenant]) {
    for tenant in tenants {
        let Some(idle) = &tenant.idle else { continue };
        let caller = caller(service, tenant);
        let page = wait("the end of a backup", || {
            let page = caller
                .get(&format!("/instances/{idle}/backups"))
                .expect(200)
                .json();
            let status = page["backup_record_response"][0]["status"].clone();
            assert_ne!(status, "failed", "{page}");
            (status == "succeed").then_some(page)
        });
        assert_eq!(page["total_num"], json!(1));
    }
}

#[test]
fn under_load_on_sqlite_every_request_succeeds_and_every_accepted_write_is_there_afterwards() {
    // One process has a catalogue in a file, whatever the other tests' catalogues are in.
    if std::env::var("CACHEKEEP_TEST_CATALOG").is_ok() {
        return;
    }
    let service = Service::start();
    let base = Base::File(service.data().join("catalog.sqlite"));
    let tenants = tenants(&service, &base);
    let report = run(&service, &tenants);
    check_backups(&service, &tenants);
    assert_eq!(lost(&base, &report).unwrap(), [""; 0]);
    // What finds losses finds one.
    service.sql("UPDATE instance SET description = 'another' WHERE name = 'history-3'");
    assert_eq!(lost(&base, &report).unwrap().len(), 1);
}

#[test]
fn under_load_on_postgresql_every_request_succeeds_and_a_worker_that_comes_later_makes_every_backup() {
    let server = Postgres::start().unwrap();
    let url = server.make_schema("load").unwrap();
    let catalog = [("CACHEKEEP_CATALOG", url.as_str())];
    let mut worker = Service::start_with(&["--node-name", "worker"], &catalog);
    let base = Base::Postgres(&server, "load".to_owned());
    let tenants = tenants(&worker, &base);
    worker.kill();
    let keys = worker.data().join("keys");
    let words = [
        "--keys",
        keys.to_str().unwrap(),
        "--node-name",
        "front",
        "--role",
        "api",
    ];
    let front = Service::start_with(&words, &catalog);
    let report = run(&front, &tenants);
    let waiting = base
        .sql("SELECT count(*) FROM job WHERE state = 'waiting';")
        .unwrap();
    assert_eq!(waiting, IDLE.to_string());
    worker.start_again_in(&catalog);
    check_backups(&front, &tenants);
    assert_eq!(lost(&base, &report).unwrap(), [""; 0]);
}
