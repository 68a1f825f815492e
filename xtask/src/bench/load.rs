//! The API under an open load: 2,000 requests in a second over 500 connections, with a million backups and a million restores
//! in the catalogue, by the generator of `crates/load` on the same machine; and under far more than it can do.

use std::path::Path;
use std::process::Command;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use serde_json::Value;

use super::Scale;
use super::client::{Client, address};
use super::generator::{check_whole, count, generate, health, latency, ms};
use super::report::{Row, Section};
use super::seconds::Seconds;
use crate::Stop;
use crate::load::{
    Base, Tenant, Wanted, cpu_seconds, lost, make_tenants, plan, resident_mb, seed_records, seed_tenants,
};
use crate::postgres::Postgres;
use crate::resp::Connection;
use crate::service::{Scheme, Service, processes_in};
use crate::setup::{cargo, run_visibly, service_program};

/// Engines of the bench's own, below the ports that systems give out.
const PORTS: [&str; 2] = ["--engine-ports", "30000-30299"];
/// Records of each list of each tenant in the short catalogue.
const FEW: u32 = 10;
/// Requests due in a second where latencies are compared: few, so that none waits for another.
const COMPARED_RATE: f64 = 200.0;

/// How much of it.
#[derive(Debug, Clone, Copy)]
pub struct Amount {
    tenants: usize,
    /// Records of each list of each tenant.
    records: u32,
    idle: usize,
    rate: f64,
    connections: usize,
    seconds: f64,
    compared_seconds: f64,
    pairs: usize,
    overload_connections: usize,
    overload_slow: usize,
    overload_seconds: f64,
}

/// What issue 6 asks for.
pub const FULL: Amount = Amount {
    tenants: 1000,
    records: 1000,
    idle: 100,
    rate: 2000.0,
    connections: 500,
    seconds: 600.0,
    compared_seconds: 10.0,
    pairs: 3,
    overload_connections: 4000,
    overload_slow: 1000,
    overload_seconds: 20.0,
};

/// Shows that it works.
pub const QUICK: Amount = Amount {
    tenants: 20,
    records: 100,
    idle: 5,
    rate: 500.0,
    connections: 50,
    seconds: 5.0,
    compared_seconds: 2.0,
    pairs: 1,
    overload_connections: 1000,
    overload_slow: 200,
    overload_seconds: 5.0,
};

/// What was expected, before the first run.
struct Predicted {
    reads: &'static str,
    writes: &'static str,
    service: &'static str,
    growth: &'static str,
    memory: &'static str,
}

/// Measures either database, or the one that is named by `CACHEKEEP_BENCH_CATALOG`.
pub fn measure(scale: &Scale) -> Result<Vec<Section>, Stop> {
    run_visibly(cargo().args(["build", "--release", "--package", "load"]))?;
    let only = std::env::var("CACHEKEEP_BENCH_CATALOG").unwrap_or_default();
    let mut amount = scale.crowd;
    if let Ok(seconds) = std::env::var("CACHEKEEP_BENCH_SECONDS") {
        let refused = || Stop::new("CACHEKEEP_BENCH_SECONDS is no number");
        amount.seconds = seconds.parse().map_err(|_| refused())?;
    }
    // All that takes long and measures nothing comes first.
    let sqlite = match only.as_str() {
        "postgres" => None,
        _ => Some(prepare_sqlite(&amount)?),
    };
    let postgres = match only.as_str() {
        "sqlite" => None,
        _ => Some(prepare_postgres(&amount)?),
    };
    wait_for_quiet();
    let mut sections = Vec::new();
    if let Some(prepared) = sqlite {
        sections.push(of_sqlite(&amount, prepared)?);
    }
    if let Some(prepared) = postgres {
        sections.push(of_postgres(&amount, prepared)?);
    }
    Ok(sections)
}

/// On a machine that others use, whoever starts the run makes the file that `CACHEKEEP_BENCH_GO` names once it is quiet.
fn wait_for_quiet() {
    let Some(file) = std::env::var_os("CACHEKEEP_BENCH_GO") else {
        return;
    };
    println!("seeded; waits for {}", Path::new(&file).display());
    while !Path::new(&file).exists() {
        std::thread::sleep(Duration::from_secs(1));
    }
}

/// With `CACHEKEEP_BENCH_HOLD` naming a file: the generator's plan is put there, for whoever wants to run it in his own way and look at
/// the service meanwhile, and nothing is measured before the file is removed.
fn hold(wanted: &Wanted<'_>, tenants: &[Tenant], records: u32, process: u32) -> Result<(), Stop> {
    let Some(file) = std::env::var_os("CACHEKEEP_BENCH_HOLD") else {
        return Ok(());
    };
    let file = Path::new(&file);
    std::fs::write(file, plan(wanted, tenants, records).to_string())
        .map_err(|e| Stop::file("write", file, &e))?;
    println!(
        "process {process} serves {}; `load {}` puts it under load; waits until that file is gone",
        wanted.address,
        file.display()
    );
    while file.exists() {
        std::thread::sleep(Duration::from_millis(200));
    }
    Ok(())
}

/// Services that do not run, with their catalogues.
struct Prepared {
    service: Service,
    /// With few records.
    small: Service,
    tenants: Vec<Tenant>,
    database: Option<(Postgres, String)>,
}

fn prepare_sqlite(amount: &Amount) -> Result<Prepared, Stop> {
    println!("prepares the catalogue in SQLite");
    let mut service = Service::start(Scheme::Http, &PORTS)?;
    let base = Base::File(service.data_folder().join("catalog.sqlite"));
    let tenants = tenants_of(&service, amount)?;
    service.end()?;
    seed_few(&base, &tenants, amount)?;
    let small = Service::beside(&service, &PORTS)?;
    seed_many(&base, amount)?;
    Ok(Prepared {
        service,
        small,
        tenants,
        database: None,
    })
}

fn prepare_postgres(amount: &Amount) -> Result<Prepared, Stop> {
    println!("prepares the catalogue in PostgreSQL");
    let server = Postgres::start_with("-c fsync=on -c shared_buffers=4GB")?;
    let url = server.make_schema("load")?;
    let words = |url: &str| {
        let words = [PORTS[0], PORTS[1], "--catalog", url, "--node-name", "worker"];
        words.map(str::to_owned)
    };
    let all = words(&url);
    let mut service = Service::start(Scheme::Http, &all.each_ref().map(String::as_str))?;
    let tenants = tenants_of(&service, amount)?;
    service.end()?;
    let base = Base::Postgres(&server, "load".to_owned());
    seed_few(&base, &tenants, amount)?;
    server.sql("CREATE DATABASE small TEMPLATE postgres")?;
    let small_words = words(&url.replace("/postgres?", "/small?"));
    let small = Service::beside(&service, &small_words.each_ref().map(String::as_str))?;
    seed_many(&base, amount)?;
    Ok(Prepared {
        service,
        small,
        tenants,
        database: Some((server, url)),
    })
}

fn seed_few(base: &Base<'_>, tenants: &[Tenant], amount: &Amount) -> Result<(), Stop> {
    timed("few records", || {
        seed_tenants(base, tenants)?;
        seed_records(base, amount.tenants, 1, FEW)
    })
}

fn seed_many(base: &Base<'_>, amount: &Amount) -> Result<(), Stop> {
    timed("many records", || {
        seed_records(base, amount.tenants, FEW + 1, amount.records)
    })
}

fn of_sqlite(amount: &Amount, prepared: Prepared) -> Result<Section, Stop> {
    println!("load, the catalogue in SQLite");
    let Prepared {
        mut service,
        mut small,
        mut tenants,
        ..
    } = prepared;
    let base = Base::File(service.data_folder().join("catalog.sqlite"));
    service.run()?;
    small.run()?;
    let predicted = Predicted {
        reads: "5 ms",
        writes: "30 ms",
        service: "40 %",
        growth: "1.3x",
        memory: "150 MiB",
    };
    let mut rows = compare(amount, &small, &service, &tenants, &predicted)?;
    small.end()?;
    service.end()?;
    make_idle(&mut service, &mut tenants, amount)?;
    service.run()?;
    let (report, main) = under_load(amount, &service, &tenants, None, &predicted)?;
    rows.extend(main);
    rows.extend(drain(&base, &service, &tenants, &report, "while the load ran")?);
    rows.extend(overload(amount, &mut service, &tenants, &predicted)?);
    Ok(Section {
        title: "Load, the catalogue in SQLite",
        how: how(
            amount,
            "One process does everything, so backups are made while the load runs.",
        ),
        rows,
    })
}

fn of_postgres(amount: &Amount, prepared: Prepared) -> Result<Section, Stop> {
    println!("load, the catalogue in PostgreSQL");
    let Prepared {
        mut service,
        mut small,
        mut tenants,
        database,
    } = prepared;
    let (server, url) = database.ok_or_else(|| Stop::new("no PostgreSQL was prepared"))?;
    let base = Base::Postgres(&server, "load".to_owned());
    service.run()?;
    small.run()?;
    let predicted = Predicted {
        reads: "60 ms",
        writes: "80 ms",
        service: "60 %",
        growth: "1.3x",
        memory: "200 MiB",
    };
    let mut rows = compare(amount, &small, &service, &tenants, &predicted)?;
    small.end()?;
    service.end()?;
    make_idle(&mut service, &mut tenants, amount)?;
    let keys = service.data_folder().join("keys").display().to_string();
    let words = [
        "--catalog",
        &url,
        "--keys",
        &keys,
        "--node-name",
        "front",
        "--role",
        "api",
    ];
    let mut front = Service::start(Scheme::Http, &words)?;
    let (report, main) = under_load(amount, &front, &tenants, Some(&server.data_folder()), &predicted)?;
    rows.extend(main);
    service.run()?;
    let made = "after it, by a worker that came then";
    rows.extend(drain(&base, &front, &tenants, &report, made)?);
    service.end()?;
    rows.extend(overload(amount, &mut front, &tenants, &predicted)?);
    Ok(Section {
        title: "Load, the catalogue in PostgreSQL",
        how: how(
            amount,
            "PostgreSQL is on the same machine, with fsync, synchronous_commit and shared_buffers of 4 GB; the short catalogue is another database of it. A node with the role api answers; a worker made the idle instances \
             before, is away during the load, and makes their backups afterwards.",
        ),
        rows,
    })
}

fn how(amount: &Amount, more: &str) -> String {
    format!(
        "{} projects, each with an instance that has {} backups and as many restores; {} further instances that run. {:.0} requests due \
         in a second over {} connections for {:.0} s, however long answers take; latencies are counted from when a request was due. 80 % are \
         lists (restores, backups, instances), 15 % look at one of these, 5 % change a description, a backup policy, or ask for a backup of an \
         idle instance, once each; 80 % show a token, 20 % are signed. The generator is on the same processors. {more}",
        amount.tenants, amount.records, amount.idle, amount.rate, amount.connections, amount.seconds
    )
}

fn timed<T>(what: &str, run: impl FnOnce() -> Result<T, Stop>) -> Result<T, Stop> {
    let started = Instant::now();
    let done = run()?;
    println!("  {what} in {:.0} s", started.elapsed().as_secs_f64());
    Ok(done)
}

fn tenants_of(service: &Service, amount: &Amount) -> Result<Vec<Tenant>, Stop> {
    let data = service.data_folder();
    timed("projects with keys", || {
        make_tenants(amount.tenants, |words| {
            let output = Command::new(service_program())
                .args(words)
                .args(["-o", "json", "--data-dir"])
                .arg(&data)
                .output()?;
            if !output.status.success() {
                return Err(Stop::new(String::from_utf8_lossy(&output.stderr).into_owned()));
            }
            serde_json::from_slice(&output.stdout).map_err(|e| Stop::new(format!("{words:?}: {e}")))
        })
    })
}

/// Makes an instance for each of the first tenants, with a few keys; then asks for all sorts of things, so that a catalogue that cannot
/// serve is seen before ten minutes are measured. Not before few records are compared with many: their engines want to be looked after.
fn make_idle(service: &mut Service, tenants: &mut [Tenant], amount: &Amount) -> Result<(), Stop> {
    service.run()?;
    timed("idle instances", || {
        let address = address(service)?;
        for tenant in &mut tenants[..amount.idle] {
            let mut client = Client::connect(&address, &tenant.project)?
                .with_headers(&format!("X-Auth-Token: {}\r\n", tenant.token))?;
            let instance = client.create_instance("idle", 1)?;
            let mut engine = Connection::open(&instance.target())?;
            for key in 0..100 {
                engine.ask(&["SET", &format!("key:{key}"), "value"])?;
            }
            tenant.idle = Some(instance.id);
        }
        Ok(())
    })?;
    let wanted = Wanted {
        address: &address(service)?,
        rate: amount.rate,
        connections: amount.connections,
        seconds: amount.compared_seconds,
        writes: false,
        from_sent: false,
        slow: 0,
        patience_seconds: 60.0,
    };
    let tried = generate(&wanted, tenants, amount.records, || ())?;
    println!(
        "  tried with {:.0}/s: {:.0}/s, p99 {}",
        amount.rate,
        tried["achieved_rate"].as_f64().unwrap_or(f64::NAN),
        ms(latency(&tried, "reads", "p99_us"))
    );
    check_whole(&tried, "the trial")?;
    service.end()
}

/// Few records beside many, in turn, with both services there.
fn compare(
    amount: &Amount,
    small: &Service,
    large: &Service,
    tenants: &[Tenant],
    predicted: &Predicted,
) -> Result<Vec<Row>, Stop> {
    let mut measured: Vec<(Value, Value)> = Vec::new();
    for round in 0..amount.pairs {
        let one = |service: &Service, records| {
            let wanted = Wanted {
                address: &address(service)?,
                rate: COMPARED_RATE,
                connections: 20,
                seconds: amount.compared_seconds,
                writes: false,
                from_sent: true,
                slow: 0,
                patience_seconds: 30.0,
            };
            generate(&wanted, tenants, records, || ())
        };
        let pair = match round % 2 {
            0 => {
                let few = one(small, FEW)?;
                (few, one(large, amount.records)?)
            }
            _ => {
                let many = one(large, amount.records)?;
                (one(small, FEW)?, many)
            }
        };
        measured.push(pair);
    }
    for report in measured.iter().flat_map(|(few, many)| [few, many]) {
        check_whole(report, "beside few records")?;
    }
    let row = |of: &str, quantile: &str, shown: &str, wanted| {
        let pairs: Vec<(Duration, Duration)> = measured
            .iter()
            .map(|(few, many)| {
                let time = |report| Duration::from_secs_f64(latency(report, of, quantile) / 1e6);
                (time(few), time(many))
            })
            .collect();
        let what = format!(
            "{of}, {shown}, with {} records of each kind beside {}, {COMPARED_RATE:.0}/s",
            amount.tenants * amount.records as usize,
            amount.tenants * FEW as usize
        );
        Row::of_pairs(what, &pairs, wanted, predicted.growth).shown()
    };
    Ok(vec![
        row("reads", "p50_us", "median", "<= 1.5x"),
        row("reads", "p99_us", "p99", "<= 1.5x"),
        row("list of restores", "p50_us", "median", "<= 1.5x"),
        row("list of backups", "p50_us", "median", "<= 1.5x"),
        row("list of instances", "p50_us", "median", "<= 1.5x"),
    ])
}

fn row(
    what: impl Into<String>,
    ours: String,
    spread: String,
    wanted: &'static str,
    predicted: &'static str,
) -> Row {
    Row {
        what: what.into(),
        peer: String::new(),
        result: ours.clone(),
        ours,
        spread,
        wanted,
        predicted,
    }
    .shown()
}

/// The load itself. `database`: the folder that processes of its server work in.
fn under_load(
    amount: &Amount,
    service: &Service,
    tenants: &[Tenant],
    database: Option<&Path>,
    predicted: &Predicted,
) -> Result<(Value, Vec<Row>), Stop> {
    let process = service.process_id().unwrap_or_default();
    // Connections are kept, so their servers are there at the end.
    let of_database = || -> f64 {
        let servers = database.map(processes_in).unwrap_or_default();
        servers.into_iter().map(cpu_seconds).sum()
    };
    let (before, database_before) = (cpu_seconds(process), of_database());
    let load_before = std::fs::read_to_string("/proc/loadavg").unwrap_or_default();
    let mut most = 0;
    let wanted = Wanted {
        address: &address(service)?,
        rate: amount.rate,
        connections: amount.connections,
        seconds: amount.seconds,
        writes: true,
        from_sent: false,
        slow: 0,
        patience_seconds: 60.0,
    };
    hold(&wanted, tenants, amount.records, process)?;
    let mut machine = Seconds::begin();
    let report = generate(&wanted, tenants, amount.records, || {
        most = most.max(resident_mb(process));
        machine.look();
    })?;
    machine.tell(&report);
    let seconds = report["seconds"].as_f64().unwrap_or(f64::NAN);
    let share = |cpu: f64| format!("{:.0} %", cpu / seconds * 100.0);
    println!("  load average before: {}", load_before.trim());
    println!(
        "  statuses: {}, connections broken: {} {}",
        report["statuses"], report["broken"], report["broken_by"]
    );
    let mut rows = vec![
        row(
            "requests due and answered with success, in a second",
            format!(
                "{:.0}/s of {:.0}/s",
                report["achieved_rate"].as_f64().unwrap_or(f64::NAN),
                amount.rate
            ),
            format!("{} of {}", count(&report, 200..300), report["due"]),
            "all",
            "all",
        ),
        row(
            "answers of 5xx, and connections broken",
            (count(&report, 500..600) + report["broken"].as_u64().unwrap_or(0)).to_string(),
            String::new(),
            "0",
            "0",
        ),
    ];
    let names = report["latencies"].as_array().cloned().unwrap_or_default();
    for of in names.iter().filter_map(|latency| latency["of"].as_str()) {
        let is_write = [
            "writes",
            "change of an instance",
            "change of a schedule",
            "backup asked for",
        ]
        .contains(&of);
        let (wanted, predicted) = match (of, is_write) {
            ("reads", _) => ("p99 <= 100 ms", predicted.reads),
            ("writes", _) => ("p99 <= 250 ms", predicted.writes),
            _ => ("shown", "-"),
        };
        rows.push(row(
            format!("{of}: p99 (median; p99.9; slowest)"),
            ms(latency(&report, of, "p99_us")),
            format!(
                "{}; {}; {}",
                ms(latency(&report, of, "p50_us")),
                ms(latency(&report, of, "p999_us")),
                ms(latency(&report, of, "max_us"))
            ),
            wanted,
            predicted,
        ));
    }
    rows.push(row(
        "the service's share of a processor",
        share(cpu_seconds(process) - before),
        format!("at most {most} MiB"),
        "shown",
        predicted.service,
    ));
    if database.is_some() {
        rows.push(row(
            "PostgreSQL's share of a processor",
            share(of_database() - database_before),
            String::new(),
            "shown",
            "60 %",
        ));
    }
    rows.push(row(
        "the generator's share of a processor",
        share(report["cpu_seconds"].as_f64().unwrap_or(f64::NAN)),
        format!(
            "sent late by {} (median), {} (p99)",
            ms(report["lateness_us"][0].as_f64().unwrap_or(f64::NAN)),
            ms(report["lateness_us"][1].as_f64().unwrap_or(f64::NAN))
        ),
        "shown",
        "15 %",
    ));
    Ok((report, rows))
}

/// Waits until the backups that were asked for have ended, and compares what the catalogue holds with what clients were told.
fn drain(
    base: &Base<'_>,
    service: &Service,
    tenants: &[Tenant],
    report: &Value,
    when: &str,
) -> Result<Vec<Row>, Stop> {
    let started = Instant::now();
    let open =
        "SELECT count(*) FROM backup WHERE remark LIKE 'written-%' AND status IN ('waiting', 'running');";
    while base.sql(open)? != "0" {
        if started.elapsed() > Duration::from_secs(600) {
            return Err(service.told("has not made the backups in ten minutes"));
        }
        std::thread::sleep(Duration::from_millis(100));
    }
    let took = started.elapsed();
    let lost = lost(base, report)?;
    for line in &lost {
        println!("  LOST: {line}");
    }
    let accepted = report["written"].as_array().into_iter().flatten();
    let accepted = accepted
        .filter(|one| one["kind"] == "SubmitBackup" && one["status"] == 200)
        .count();
    let address = address(service)?;
    let (mut listed, mut succeeded) = (0, 0);
    for tenant in tenants {
        let Some(idle) = &tenant.idle else { continue };
        let mut client = Client::connect(&address, &tenant.project)?
            .with_headers(&format!("X-Auth-Token: {}\r\n", tenant.token))?;
        let path = client.path(&format!("/instances/{idle}/backups"));
        let page = client.ask("GET", &path, None)?;
        listed += page["total_num"].as_u64().unwrap_or(0);
        let records = page["backup_record_response"].as_array();
        succeeded += records
            .into_iter()
            .flatten()
            .filter(|record| record["status"] == "succeed")
            .count();
    }
    if !lost.is_empty() || listed != accepted as u64 || succeeded != accepted {
        return Err(Stop::new(format!(
            "{accepted} backups were accepted, {listed} are listed, {succeeded} succeeded; {} writes are lost",
            lost.len()
        )));
    }
    Ok(vec![
        row(
            format!("backups accepted, listed and succeeded; made {when}"),
            format!("{accepted}, {listed}, {succeeded}"),
            format!("the last {:.1} s after the load", took.as_secs_f64()),
            "equal",
            "equal",
        ),
        row(
            "accepted writes that the catalogue does not hold, and records of nothing that was accepted",
            lost.len().to_string(),
            String::new(),
            "0",
            "0",
        ),
    ])
}

/// Far more than it can do, together with clients that never end their requests.
fn overload(
    amount: &Amount,
    service: &mut Service,
    tenants: &[Tenant],
    predicted: &Predicted,
) -> Result<Vec<Row>, Stop> {
    let process = service.process_id().unwrap_or_default();
    let address = address(service)?;
    let (is_over, slowest_us, asked) = (AtomicBool::new(false), AtomicU64::new(0), AtomicU64::new(0));
    let unhealthy = AtomicU64::new(0);
    let mut most = 0;
    let report = std::thread::scope(|scope| {
        scope.spawn(|| {
            while !is_over.load(Ordering::SeqCst) {
                let began = Instant::now();
                let is_healthy = health(&address).unwrap_or(false);
                let took = u64::try_from(began.elapsed().as_micros()).unwrap_or(u64::MAX);
                slowest_us.fetch_max(took, Ordering::SeqCst);
                asked.fetch_add(1, Ordering::SeqCst);
                unhealthy.fetch_add(u64::from(!is_healthy), Ordering::SeqCst);
                std::thread::sleep(Duration::from_millis(200));
            }
        });
        let wanted = Wanted {
            address: &address,
            rate: amount.rate * 20.0,
            connections: amount.overload_connections,
            seconds: amount.overload_seconds,
            writes: true,
            from_sent: false,
            slow: amount.overload_slow,
            patience_seconds: 0.0,
        };
        // Each was backed up.
        let busy: Vec<Tenant> = tenants
            .iter()
            .map(|tenant| Tenant {
                idle: None,
                ..tenant.clone()
            })
            .collect();
        let report = generate(&wanted, &busy, amount.records, || {
            most = most.max(resident_mb(process))
        });
        is_over.store(true, Ordering::SeqCst);
        report
    })?;
    service.check_alive()?;
    println!(
        "  overload: statuses: {}, connections broken: {} {}",
        report["statuses"], report["broken"], report["broken_by"]
    );
    let number = |name: &str| report[name].as_u64().unwrap_or(0);
    let asked = asked.load(Ordering::SeqCst);
    let answered = |statuses| count(&report, statuses) as f64 / amount.overload_seconds;
    let mut rows = vec![
        row(
            format!(
                "overload: {} connections of which {} never end a head, {:.0} requests due in a second: answered with success, in a second",
                amount.overload_connections + amount.overload_slow,
                amount.overload_slow,
                amount.rate * 20.0
            ),
            format!("{:.0}/s", answered(200..300)),
            format!(
                "refused with 429 or 503: {:.0}/s",
                answered(429..430) + answered(503..504)
            ),
            "shown",
            "-",
        ),
        row(
            "overload: other answers of 5xx; refusals that do not say when to come again",
            format!(
                "{}; {}",
                count(&report, 500..503) + count(&report, 504..600),
                report["without_retry_after"]
            ),
            String::new(),
            "0; 0",
            "0; 0",
        ),
        row(
            "overload: requests sent; of these on connections that broke; without an answer at the end",
            format!(
                "{}; {}; {}",
                number("sent"),
                number("broken"),
                number("sent").saturating_sub(number("answered") + number("broken"))
            ),
            format!(
                "{} more were due; {} slow connections ended; the generator's share of a processor: {:.0} %",
                number("due") - number("sent"),
                number("slow_ended"),
                report["cpu_seconds"].as_f64().unwrap_or(f64::NAN) / amount.overload_seconds * 100.0
            ),
            "shown; 0; shown",
            "-",
        ),
        row(
            "overload: the service's memory at most",
            format!("{most} MiB"),
            String::new(),
            "<= 512 MiB",
            predicted.memory,
        ),
        row(
            "overload: the slowest of the answers to `/healthz`, each on a connection of its own",
            ms(slowest_us.load(Ordering::SeqCst) as f64),
            format!("{} of {asked} asked in vain", unhealthy.load(Ordering::SeqCst)),
            "<= 1 s, none in vain",
            "300 ms",
        ),
    ];
    let ended = Instant::now();
    let wanted = Wanted {
        address: &address,
        rate: amount.rate,
        connections: amount.connections,
        seconds: amount.compared_seconds,
        writes: false,
        from_sent: false,
        slow: 0,
        patience_seconds: 60.0,
    };
    let after = generate(&wanted, tenants, amount.records, || ())?;
    check_whole(&after, "after the overload")?;
    rows.push(row(
        format!(
            "reads at {:.0}/s from {:.1} s after the overload on: p99 (median)",
            amount.rate,
            (ended.elapsed().as_secs_f64() - after["seconds"].as_f64().unwrap_or(0.0)).max(0.0)
        ),
        ms(latency(&after, "reads", "p99_us")),
        ms(latency(&after, "reads", "p50_us")),
        "p99 <= 100 ms",
        predicted.reads,
    ));
    Ok(rows)
}
