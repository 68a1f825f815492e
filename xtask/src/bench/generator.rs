//! The generator of `crates/load` as a process, and its report read.

use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::process::{Command, Stdio};
use std::time::Duration;

use serde_json::Value;

use crate::Stop;
use crate::load::{Tenant, Wanted, plan};
use crate::scratch::Scratch;
use crate::setup::service_program;

/// Runs the generator. While it runs `look` is called ten times a second.
///
/// # Errors
/// It ended early.
pub fn generate(
    wanted: &Wanted<'_>,
    tenants: &[Tenant],
    records: u32,
    mut look: impl FnMut(),
) -> Result<Value, Stop> {
    let folder = Scratch::new("load")?;
    let (plan_file, report_file) = (folder.path().join("plan"), folder.path().join("report"));
    std::fs::write(&plan_file, plan(wanted, tenants, records).to_string())
        .map_err(|e| Stop::file("write", &plan_file, &e))?;
    let output = std::fs::File::create(&report_file).map_err(|e| Stop::file("make", &report_file, &e))?;
    let mut generator = Command::new(service_program().with_file_name("load"))
        .arg(&plan_file)
        .stdin(Stdio::null())
        .stdout(output)
        .spawn()?;
    let status = loop {
        if let Some(status) = generator.try_wait()? {
            break status;
        }
        look();
        std::thread::sleep(Duration::from_millis(100));
    };
    if !status.success() {
        return Err(Stop::new(format!("the generator ended with {status}")));
    }
    let text = std::fs::read(&report_file).map_err(|e| Stop::file("read", &report_file, &e))?;
    serde_json::from_slice(&text).map_err(|e| Stop::new(format!("the generator's report: {e}")))
}

/// A quantile of the latencies of this kind, in microseconds.
pub fn latency(report: &Value, of: &str, quantile: &str) -> f64 {
    let latencies = report["latencies"].as_array();
    let found = latencies
        .into_iter()
        .flatten()
        .find(|latency| latency["of"] == of);
    found.map_or(f64::NAN, |latency| latency[quantile].as_f64().unwrap_or(f64::NAN))
}

/// Answers with such a status.
pub fn count(report: &Value, statuses: std::ops::Range<u16>) -> u64 {
    let all = report["statuses"].as_object();
    let counts = all.into_iter().flatten().filter_map(|(status, count)| {
        let status: u16 = status.parse().ok()?;
        statuses.contains(&status).then(|| count.as_u64().unwrap_or(0))
    });
    counts.sum()
}

/// For people.
pub fn ms(microseconds: f64) -> String {
    format!("{:.1} ms", microseconds / 1000.0)
}

/// A figure of a run in which something was refused would be of another run.
///
/// # Errors
/// Something was.
pub fn check_whole(report: &Value, what: &str) -> Result<(), Stop> {
    let (due, good) = (report["due"].as_u64(), count(report, 200..300));
    if due == Some(good) {
        return Ok(());
    }
    Err(Stop::new(format!(
        "{what}: of {due:?} requests {good} succeeded: {}, {} connections broke",
        report["statuses"], report["broken"]
    )))
}

/// Whether the service says that it is well, on a connection of its own.
///
/// # Errors
/// Nobody answers.
pub fn health(address: &str) -> std::io::Result<bool> {
    let mut stream = TcpStream::connect(address)?;
    stream.set_read_timeout(Some(Duration::from_secs(20)))?;
    stream.write_all(
        format!("GET /healthz HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n").as_bytes(),
    )?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    Ok(answer.starts_with("HTTP/1.1 200"))
}
