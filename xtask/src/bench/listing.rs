//! The list of restore records: does a page of a million cost more than a page of a hundred, and what does all that
//! stands before it (authentication, project, paging) cost beside a route that only answers bytes?

use std::fmt::Write as _;
use std::io::{BufRead as _, BufReader, Write as _};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use super::Scale;
use super::client::{Client, Instance};
use super::report::{Row, Section};
use crate::Stop;
use crate::scratch::Scratch;
use crate::service::{Scheme, Service};
use crate::setup::service_program;

/// Records of the short list.
const FEW: u64 = 100;

/// Rows of the pages compared.
const PAGE: u64 = 100;

/// Connections of the load.
const CONNECTIONS: &str = "64";

/// The first record's time, Unix seconds; each record is one second later.
const FIRST_SECOND: u64 = 1_750_000_000;

/// Measures the list.
pub fn measure(scale: &Scale) -> Result<Section, Stop> {
    println!("list of {} restore records", scale.records);
    let mut service = Service::start(Scheme::Http, &[])?;
    let (many, few) = {
        let mut client = Client::login(&service)?;
        (
            client.create_instance("many-records", 1)?,
            client.create_instance("few-records", 1)?,
        )
    };
    service.end()?;
    insert_records(
        &service.data_folder().join("catalog.sqlite"),
        &[(&many, scale.records), (&few, FEW)],
    )?;
    service.run()?;
    let mut client = Client::login(&service)?;
    check(&mut client, &many, scale.records)?;
    check(&mut client, &few, FEW)?;
    let mut rows = compare_pages(scale, &mut client, &many, &few)?;
    rows.extend(compare_credentials(scale, &service, &mut client, &many)?);
    rows.extend(compare_load(scale, &service, &client, &many)?);
    Ok(Section {
        title: "The list of restore records",
        how: format!(
            "One instance with {} records, one with {FEW}; token authentication, no cache of answers, records or \
             tokens: each request reads them from SQLite. Pages of {PAGE} records, {} requests in turn on one kept connection per time. Load: wrk with one thread and \
             {CONNECTIONS} connections on a page of 10 records; the bare route answers the same bytes.",
            scale.records, scale.requests
        ),
        rows,
    })
}

/// The rows go straight into the catalogue while nobody uses it.
fn insert_records(catalog: &Path, lists: &[(&Instance, u64)]) -> Result<(), Stop> {
    let mut script = String::from("BEGIN;\n");
    for (instance, count) in lists {
        let _a_string_takes_all = write!(
            script,
            "WITH RECURSIVE number(n) AS (VALUES(1) UNION ALL SELECT n + 1 FROM number WHERE n < {count})
             INSERT INTO restore (instance_id, ordinal, id, project_id, name, backup_id, backup_name, backup_remark, \
                 remark, status, progress_bp, source_instance_id, source_instance_name, method, verify, target_state, \
                 phase, bytes_done, bytes_total, keys_applied, keys_compared, unavailable_us, created_at_ms, \
                 clock_at_ms, started_at_ms, finished_at_ms, updated_at_ms)
             SELECT instance.id, n, {RANDOM_UUID}, instance.project_id, 'restore_20260101000000', {RANDOM_UUID}, \
                 'backup_20260101000000', 'nightly', 'asked for by ticket ' || n, 'succeeded', 10000, instance.id, \
                 instance.name, 'side_load', 'sample', 'replaced', 'done', 637000000, 637000000, 2530000, 10000, 1200, \
                 ({FIRST_SECOND} + n) * 1000, ({FIRST_SECOND} + n) * 1000, ({FIRST_SECOND} + n) * 1000, \
                 ({FIRST_SECOND} + n) * 1000 + 700, ({FIRST_SECOND} + n) * 1000 + 700
             FROM number, instance WHERE instance.id = '{}';
             UPDATE instance SET restore_ordinal = {count}, restore_created_at_ms = ({FIRST_SECOND} + {count}) * 1000 \
                 WHERE id = '{}';\n",
            instance.id, instance.id
        );
    }
    // Mirroring them would be measured with the list.
    script.push_str("DELETE FROM outbox WHERE subject = 'restore';\nCOMMIT;\n");
    let mut sqlite = Command::new("sqlite3")
        .arg("-bail")
        .arg(catalog)
        .stdin(Stdio::piped())
        .spawn()?;
    if let Some(input) = sqlite.stdin.as_mut() {
        input.write_all(script.as_bytes())?;
    }
    let status = sqlite.wait()?;
    if status.success() {
        Ok(())
    } else {
        Err(Stop::new(format!("sqlite3 failed: {status}")))
    }
}

const RANDOM_UUID: &str = "lower(hex(randomblob(4)) || '-' || hex(randomblob(2)) || '-4' || \
     substr(hex(randomblob(2)), 2) || '-8' || substr(hex(randomblob(2)), 2) || '-' || hex(randomblob(6)))";

/// A figure for a wrong answer would be worth nothing.
fn check(client: &mut Client, instance: &Instance, count: u64) -> Result<(), Stop> {
    let page = client.ask("GET", &page_path(client, instance, count - 10, 10, ""), None)?;
    let records = page["restore_record_response"].as_array().map_or(0, Vec::len);
    if page["total_num"].as_u64() == Some(count) && records == 10 {
        return Ok(());
    }
    Err(Stop::new(format!(
        "the last page of {count} records is wrong: {page}"
    )))
}

fn page_path(client: &Client, instance: &Instance, offset: u64, limit: u64, window: &str) -> String {
    client.path(&format!(
        "/instances/{}/restores?limit={limit}&offset={offset}{window}",
        instance.id
    ))
}

/// A window from the record to the record, both included.
fn window(first: u64, last: u64) -> Result<String, Stop> {
    Ok(format!(
        "&begin_time={}&end_time={}",
        stamp(FIRST_SECOND + first)?,
        stamp(FIRST_SECOND + last)?
    ))
}

fn stamp(second: u64) -> Result<String, Stop> {
    let output = Command::new("date")
        .args(["-u", "-d", &format!("@{second}"), "+%Y%m%d%H%M%S"])
        .output()?;
    Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned())
}

fn compare_pages(
    scale: &Scale,
    client: &mut Client,
    many: &Instance,
    few: &Instance,
) -> Result<Vec<Row>, Stop> {
    let count = scale.records;
    let first = page_path(client, many, 0, PAGE, "");
    let last = page_path(client, many, count - PAGE, PAGE, "");
    let short = page_path(client, few, 0, PAGE, "");
    let half = window(count / 4 + 1, count / 4 * 3)?;
    let window_first = page_path(client, many, 0, PAGE, &half);
    let window_last = page_path(client, many, count / 2 - PAGE, PAGE, &half);
    let window_short = page_path(client, few, 0, PAGE, &window(1, FEW)?);
    let mut compare = |what: &str, peer: &str, ours: &str, predicted: &'static str| {
        let mut pairs = Vec::new();
        for round in 0..scale.pairs {
            let (mut times, order) = ([Duration::ZERO; 2], if round % 2 == 0 { [0, 1] } else { [1, 0] });
            for which in order {
                times[which] = time_requests(client, [peer, ours][which], scale.requests)?;
            }
            pairs.push((times[0], times[1]));
        }
        Ok::<Row, Stop>(Row::of_pairs(what, &pairs, "<= 1.5x", predicted).shown())
    };
    Ok(vec![
        compare(
            "first page beside the page of the short list",
            &short,
            &first,
            "1.0x",
        )?,
        compare("last page beside the first", &first, &last, "1.05x")?,
        compare(
            "last page beside the page of the short list",
            &short,
            &last,
            "1.05x",
        )?,
        compare(
            "window of half the records, first page, beside the short list's window",
            &window_short,
            &window_first,
            "1.1x",
        )?,
        compare(
            "window, last page, beside its first",
            &window_first,
            &window_last,
            "1.05x",
        )?,
        compare(
            "window, last page, beside the short list's window",
            &window_short,
            &window_last,
            "1.1x",
        )?,
    ])
}

/// Mean time of one request.
fn time_requests(client: &mut Client, path: &str, requests: u32) -> Result<Duration, Stop> {
    for _ in 0..3 {
        client.ask("GET", path, None)?;
    }
    let started = Instant::now();
    for _ in 0..requests {
        let answer = client.send("GET", path, None)?;
        if answer.status != 200 {
            return Err(Stop::new(format!("GET {path}: {}", answer.status)));
        }
    }
    Ok(started.elapsed() / requests)
}

/// A signature against a token, on the same page.
fn compare_credentials(
    scale: &Scale,
    service: &Service,
    client: &mut Client,
    instance: &Instance,
) -> Result<Vec<Row>, Stop> {
    let path = page_path(client, instance, 0, 10, "");
    let mut signed = client.with_headers(&signature(service, client.host(), &path)?)?;
    let mut pairs = Vec::new();
    for round in 0..scale.pairs {
        let (mut token, mut key) = (Duration::ZERO, Duration::ZERO);
        for turn in 0..2 {
            if (round + turn) % 2 == 0 {
                token = time_requests(client, &path, scale.requests)?;
            } else {
                key = time_requests(&mut signed, &path, scale.requests)?;
            }
        }
        pairs.push((token, key));
    }
    Ok(vec![
        Row::of_pairs(
            "AK/SK signature beside a token, page of 10",
            &pairs,
            "shown",
            "1.2x",
        )
        .shown(),
    ])
}

/// The headers of a signed GET; good for a quarter of an hour. The hashes come from openssl.
fn signature(service: &Service, host: &str, target: &str) -> Result<String, Stop> {
    let output = Command::new("date").args(["-u", "+%Y%m%dT%H%M%SZ"]).output()?;
    let date = String::from_utf8_lossy(&output.stdout).trim().to_owned();
    let (path, query) = target.split_once('?').unwrap_or((target, ""));
    // Names and values here need no encoding, and limit stands before offset.
    let of_nothing = digest(&[], b"")?;
    let request =
        format!("GET\n{path}/\n{query}\nhost:{host}\nx-sdk-date:{date}\n\nhost;x-sdk-date\n{of_nothing}");
    let text = format!("SDK-HMAC-SHA256\n{date}\n{}", digest(&[], request.as_bytes())?);
    let signature = digest(&["-hmac", &service.admin("sk")?], text.as_bytes())?;
    Ok(format!(
        "X-Sdk-Date: {date}\r\nAuthorization: SDK-HMAC-SHA256 Access={}, SignedHeaders=host;x-sdk-date, \
         Signature={signature}\r\n",
        service.admin("ak")?
    ))
}

fn digest(options: &[&str], bytes: &[u8]) -> Result<String, Stop> {
    let mut openssl = Command::new("openssl")
        .args(["dgst", "-sha256", "-hex"])
        .args(options)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()?;
    if let Some(mut input) = openssl.stdin.take() {
        input.write_all(bytes)?;
    }
    let output = openssl.wait_with_output()?;
    let text = String::from_utf8_lossy(&output.stdout);
    text.split_whitespace()
        .last()
        .map(str::to_owned)
        .ok_or_else(|| Stop::new("openssl printed no digest"))
}

fn compare_load(
    scale: &Scale,
    service: &Service,
    client: &Client,
    instance: &Instance,
) -> Result<Vec<Row>, Stop> {
    let folder = Scratch::new("echo")?;
    let mut own = client.with_headers(client.headers())?;
    let mut rows = Vec::new();
    for (what, offset) in [("first page", 0), ("last page", scale.records - 10)] {
        let path = page_path(client, instance, offset, 10, "");
        let body = folder.path().join("body.json");
        let page = own.send("GET", &path, None)?;
        if page.status != 200 {
            return Err(Stop::new(format!("GET {path}: {}", page.status)));
        }
        println!("  {what}: {} bytes", page.body.len());
        std::fs::write(&body, page.body).map_err(|e| Stop::file("write", &body, &e))?;
        let bare = BareRoute::start(&body)?;
        let signed = signature(service, client.host(), &path)?;
        let (mut pairs, mut with_key, mut scattered) = (Vec::new(), Vec::new(), Vec::new());
        for round in 0..scale.pairs {
            let (mut peer, mut ours) = (0.0, 0.0);
            for turn in 0..2 {
                if (round + turn) % 2 == 0 {
                    peer = load(&bare.address, &path, client.headers(), scale.load, None)?;
                } else {
                    ours = load(client.host(), &path, client.headers(), scale.load, None)?;
                }
            }
            pairs.push((peer, ours));
            if offset == 0 {
                with_key.push((ours, load(client.host(), &path, &signed, scale.load, None)?));
                let (headers, all) = (client.headers(), Some(scale.records));
                scattered.push((
                    load(&bare.address, &path, headers, scale.load, all)?,
                    load(client.host(), &path, headers, scale.load, all)?,
                ));
            }
        }
        let wanted = ">= 0.5x";
        rows.push(
            Row::of_rates(
                format!("{what}, {CONNECTIONS} connections, beside a bare route"),
                &pairs,
                wanted,
                "0.6x",
            )
            .shown(),
        );
        if !with_key.is_empty() {
            rows.push(
                Row::of_rates(
                    "the same with AK/SK beside with a token",
                    &with_key,
                    "shown",
                    "0.8x",
                )
                .shown(),
            );
            rows.push(
                Row::of_rates(
                    "pages at random of all the records, beside a bare route",
                    &scattered,
                    wanted,
                    "0.5x",
                )
                .shown(),
            );
        }
    }
    Ok(rows)
}

/// Has wrk ask for another page each time.
const ANY_PAGE: &str = "request = function()
  return wrk.format('GET', (wrk.path:gsub('offset=%d+', 'offset=' .. math.random(0, RECORDS - 10))))
end
";

/// Requests per second that wrk gets through, on the page of the path or on any of `all` records.
fn load(address: &str, path: &str, headers: &str, time: Duration, all: Option<u64>) -> Result<f64, Stop> {
    let folder = Scratch::new("wrk")?;
    let mut wrk = Command::new("wrk");
    wrk.args(["-t1", "-c", CONNECTIONS, "-d", &format!("{}s", time.as_secs())]);
    for header in headers.lines() {
        wrk.args(["-H", header]);
    }
    if let Some(records) = all {
        let script = folder.path().join("any.lua");
        std::fs::write(&script, ANY_PAGE.replace("RECORDS", &records.to_string()))
            .map_err(|e| Stop::file("write", &script, &e))?;
        wrk.arg("-s").arg(script);
    }
    let output = wrk.arg(format!("http://{address}{path}")).output()?;
    let text = String::from_utf8_lossy(&output.stdout);
    if text.contains("Non-2xx") || text.contains("Socket errors") {
        return Err(Stop::new(format!("the load did not go through:\n{text}")));
    }
    let rate = text
        .lines()
        .find_map(|line| line.trim().strip_prefix("Requests/sec:")?.trim().parse().ok());
    rate.ok_or_else(|| Stop::new(format!("wrk printed no rate:\n{text}")))
}

/// The service's own program as a server of nothing but these bytes.
struct BareRoute {
    child: Child,
    address: String,
}

impl BareRoute {
    fn start(body: &Path) -> Result<Self, Stop> {
        let mut child = Command::new(service_program())
            .args(["bench-echo", "--listen", "127.0.0.1:0", "--file"])
            .arg(body)
            .stdout(Stdio::piped())
            .spawn()?;
        let mut address = String::new();
        if let Some(output) = child.stdout.take() {
            BufReader::new(output).read_line(&mut address)?;
        }
        Ok(Self {
            child,
            address: address.trim().to_owned(),
        })
    }
}

impl Drop for BareRoute {
    fn drop(&mut self) {
        let _already_gone = self.child.kill();
        let _reaped = self.child.wait();
    }
}
