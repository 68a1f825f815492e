//! What a load needs of a catalogue: many projects with credentials, and their records, written straight into it; and what is left
//! of a load in it, read by SQL of our own.

use std::fmt::Write as _;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use serde_json::{Value, json};

use crate::Stop;
use crate::postgres::Postgres;
use crate::scratch::Scratch;

/// The node that the seeded instances belong to: it is not there and not lost, so nobody starts engines for them, or says that they
/// are gone.
const ELSEWHERE: &str = "eeeeeeeeeeeeeeee";
/// When the first record of each list was made, in Unix seconds; the others follow every ten minutes.
const FIRST_SECOND: u64 = 1_750_000_000;

/// A catalogue that can be reached beside its service.
pub enum Base<'b> {
    /// In this file.
    File(PathBuf),
    /// In that schema.
    Postgres(&'b Postgres, String),
}

impl Base<'_> {
    /// Runs statements and returns what they print: a line a row, columns separated by `|`.
    ///
    /// # Errors
    /// What the database says.
    pub fn sql(&self, text: &str) -> Result<String, Stop> {
        match self {
            Self::Postgres(server, schema) => server.script(&format!("SET search_path = {schema};\n{text}")),
            Self::File(path) => {
                let mut sqlite = Command::new("sqlite3")
                    .args(["-bail", "-cmd", ".timeout 20000"])
                    .arg(path)
                    .stdin(Stdio::piped())
                    .stdout(Stdio::piped())
                    .stderr(Stdio::piped())
                    .spawn()?;
                let input = sqlite.stdin.take();
                if let Some(mut input) = input {
                    input.write_all(text.as_bytes())?;
                }
                let output = sqlite.wait_with_output()?;
                if !output.status.success() {
                    let errors = String::from_utf8_lossy(&output.stderr);
                    return Err(Stop::new(format!("sqlite3: {errors}")));
                }
                Ok(String::from_utf8_lossy(&output.stdout).trim_end().to_owned())
            }
        }
    }

    fn blob(&self, hex: &str) -> String {
        match self {
            Self::File(_) => format!("x'{hex}'"),
            Self::Postgres(..) => format!("'\\x{hex}'::bytea"),
        }
    }

    /// The id of a record: see [`id`].
    fn id(&self, tenant: &str, number: &str, kind: u8) -> String {
        let scrambled = format!("(({tenant} * 65536 + {number}) * {SCRAMBLE} % 4294967296)");
        let digits = match self {
            Self::File(_) => format!("printf('%08x', {scrambled})"),
            Self::Postgres(..) => format!("lpad(to_hex({scrambled}), 8, '0')"),
        };
        format!("({digits} || '-0000-4000-8000-{kind:012x}')")
    }
}

/// Odd, so that no two numbers become one, and what comes of them is in no order: as ids are.
const SCRAMBLE: u64 = 2_654_435_761;

/// The id of the record of that number; kind 1 is a backup, 2 a restore, 3 (number 0) the instance, 4 its generation.
pub fn id(tenant: usize, number: u32, kind: u8) -> String {
    let scrambled = (tenant as u64 * 65536 + u64::from(number)).wrapping_mul(SCRAMBLE) % (1 << 32);
    format!("{scrambled:08x}-0000-4000-8000-{kind:012x}")
}

/// A project with its credentials and an instance.
#[derive(Debug, Clone)]
pub struct Tenant {
    /// Its id.
    pub project: String,
    /// A token of it.
    pub token: String,
    /// An access key of it.
    pub ak: String,
    /// The secret half.
    pub sk: String,
    /// An instance that can be backed up.
    pub idle: Option<String>,
}

/// Makes so many projects with access keys. `run` runs a verb of the command line and returns its JSON.
///
/// # Errors
/// Those of `run`.
pub fn make_tenants(count: usize, run: impl Fn(&[&str]) -> Result<Value, Stop>) -> Result<Vec<Tenant>, Stop> {
    let text = |value: &Value| {
        let text = value.as_str().map(str::to_owned);
        text.ok_or_else(|| Stop::new("a verb did not print what it made"))
    };
    (0..count)
        .map(|number| {
            let name = format!("tenant-{number}");
            let made = run(&["project", "create", &name])?;
            let key = run(&["key", "create", "--project", &name])?;
            Ok(Tenant {
                project: text(&made["project_id"])?,
                token: format!("token-of-tenant-{number}-{}", std::process::id()),
                ak: text(&key["ak"])?,
                sk: text(&key["sk"])?,
                idle: None,
            })
        })
        .collect()
}

/// Gives each of them its token and an instance that belongs to a node which is elsewhere.
///
/// # Errors
/// The catalogue refuses it.
pub fn seed_tenants(base: &Base<'_>, tenants: &[Tenant]) -> Result<(), Stop> {
    let mut script = format!(
        "BEGIN;
         INSERT INTO host (id, name, roles, engines, bind, first_port, last_port, free_memory_bytes, place, started_at_ms, \
         seen_at_ms, lost_after_ms) VALUES ('{ELSEWHERE}', 'elsewhere', 'worker', '[[\"redis\", \"7.0.15\"]]', '127.0.0.1', 1, 2, \
         1, 'elsewhere', 1, 1, 9000000000000);\n"
    );
    for (number, (tenant, hash)) in tenants.iter().zip(digests(tenants)?).enumerate() {
        let (project, account) = (&tenant.project, format!("{number:032x}"));
        let (instance, generation) = (id(number, 0, 3), id(number, 0, 4));
        let port = 10_000 + number;
        let _a_string_takes_all = write!(
            script,
            "INSERT INTO account (id, project_id, name, password_hash, created_at_ms) \
             VALUES ('{account}', '{project}', 'user-{number}', '-', 1);
             INSERT INTO token (hash, account_id, project_id, issued_at_ms, expires_at_ms) \
             VALUES ({}, '{account}', '{project}', 1, 9000000000000);
             INSERT INTO instance (id, project_id, name, description, status, host_id, engine_version, capacity_mb, spec_code, bind, \
             port, persistence, admin_password_sealed, attributes, created_at_ms, updated_at_ms) \
             VALUES ('{instance}', '{project}', 'history-{number}', '', 'running', '{ELSEWHERE}', '7.0.15', 128, \
             'redis.single.xu1.tiny.128', '127.0.0.1', {port}, 'none', {}, '{{}}', {FIRST_SECOND}000, {FIRST_SECOND}000);
             INSERT INTO generation (id, instance_id, nodes, state, created_at_ms) \
             VALUES ('{generation}', '{instance}', '[{{\"id\":\"{generation}\",\"shard\":0,\"port\":{port},\"bus_port\":null}}]', \
             'serving', {FIRST_SECOND}000);\n",
            base.blob(&hash),
            base.blob("00"),
        );
    }
    // As if all had been mirrored before: only what the load changes is to be.
    script.push_str(
        "INSERT INTO journal (project_id, recipient, begun, written) SELECT id, recipient, 1, 1 FROM project \
         WHERE id NOT IN (SELECT project_id FROM journal);
         DELETE FROM outbox WHERE subject IN ('project', 'instance', 'generation');\nCOMMIT;\n",
    );
    base.sql(&script).map(drop)
}

/// SHA-256 of each token, hex.
fn digests(tenants: &[Tenant]) -> Result<Vec<String>, Stop> {
    let folder = Scratch::new("tokens")?;
    let mut program = Command::new("sha256sum");
    for (number, tenant) in tenants.iter().enumerate() {
        let path = folder.path().join(number.to_string());
        std::fs::write(&path, &tenant.token).map_err(|e| Stop::file("write", &path, &e))?;
        program.arg(path);
    }
    let output = program.output()?;
    let text = String::from_utf8_lossy(&output.stdout);
    let digests: Vec<String> = text
        .lines()
        .filter_map(|line| line.split(' ').next())
        .map(str::to_owned)
        .collect();
    match digests.len() == tenants.len() {
        true => Ok(digests),
        false => Err(Stop::new("sha256sum printed no digest for each file")),
    }
}

/// Adds backups and restores number `first` to `last` to each tenant's instance.
///
/// # Errors
/// The catalogue refuses them.
pub fn seed_records(base: &Base<'_>, tenants: usize, first: u32, last: u32) -> Result<(), Stop> {
    let (instance, backup, restore) = (base.id("t", "0", 3), base.id("t", "n", 1), base.id("t", "n", 2));
    let series = format!(
        "WITH RECURSIVE tenant(t) AS (SELECT CAST(0 AS BIGINT) UNION ALL SELECT t + 1 FROM tenant WHERE t < {tenants} - 1), \
         number(n) AS (SELECT CAST({first} AS BIGINT) UNION ALL SELECT n + 1 FROM number WHERE n < {last})"
    );
    let at = format!("({FIRST_SECOND} + n * 600) * 1000");
    // A row that is changed a thousand times in one transaction is looked for among a thousand of it.
    let (without_triggers, with_triggers) = match base {
        Base::File(_) => ("", ""),
        Base::Postgres(..) => (
            "SET LOCAL session_replication_role = replica;",
            "INSERT INTO backup_count (instance_id, listed) SELECT instance_id, count(*) FROM backup GROUP BY instance_id \
             ON CONFLICT (instance_id) DO UPDATE SET listed = excluded.listed; SET LOCAL session_replication_role = DEFAULT;",
        ),
    };
    let script = format!(
        "BEGIN;
         {without_triggers} {series} INSERT INTO backup (id, instance_id, project_id, ordinal, name, kind, format, status, progress_bp, size_bytes, \
             plain_bytes, keys, used_memory_bytes, remark, prefix, host_id, manifest_blake3, created_at_ms, execution_at_ms, \
             updated_at_ms)
         SELECT {backup}, instance.id, instance.project_id, n, 'backup_20260101000000_' || n, 'manual', 'rdb', 'succeeded', 10000, \
             210000000, 637000000, 2530000, 900000000, 'nightly ' || n, 'seeded/' || {backup}, '{ELSEWHERE}', \
             '{digest}', {at}, {at} + 5, {at} + 3600
         FROM tenant CROSS JOIN number JOIN instance ON instance.id = {instance};
         {with_triggers} {series} INSERT INTO restore (instance_id, ordinal, id, project_id, name, backup_id, backup_name, backup_remark, \
             remark, status, progress_bp, source_instance_id, source_instance_name, method, verify, target_state, \
             phase, bytes_done, bytes_total, keys_applied, keys_compared, unavailable_us, created_at_ms, \
             clock_at_ms, started_at_ms, finished_at_ms, updated_at_ms)
         SELECT instance.id, n, {restore}, instance.project_id, 'restore_20260101000000', {backup}, \
             'backup_20260101000000_' || n, 'nightly ' || n, 'asked for by ticket ' || n, 'succeeded', 10000, instance.id, \
             instance.name, 'side_load', 'sample', 'replaced', 'done', 637000000, 637000000, 2530000, 10000, 1200, \
             {at}, {at}, {at}, {at} + 700, {at} + 700
         FROM tenant CROSS JOIN number JOIN instance ON instance.id = {instance};
         UPDATE instance SET restore_ordinal = {last}, restore_created_at_ms = {newest} \
             WHERE host_id = '{ELSEWHERE}';
         DELETE FROM outbox WHERE subject IN ('instance', 'backup', 'restore');
         COMMIT;\n",
        digest = "0".repeat(64),
        newest = (FIRST_SECOND + u64::from(last) * 600) * 1000,
    );
    match base {
        Base::File(_) => base.sql(&script)?,
        // As the service has it: without it the trigger's plan is made anew for each row.
        Base::Postgres(..) => base.sql(&format!("SET plan_cache_mode = force_generic_plan;\n{script}"))?,
    };
    match base {
        Base::File(_) => Ok(()),
        // As it does by itself some minutes later.
        Base::Postgres(..) => base.sql("VACUUM ANALYZE;").map(drop),
    }
}

/// What the generator is told: see `crates/load`.
#[derive(Debug, Clone)]
pub struct Wanted<'w> {
    /// Host and port of the service.
    pub address: &'w str,
    /// Requests due in a second.
    pub rate: f64,
    /// Connections that they share.
    pub connections: usize,
    /// How long requests are due.
    pub seconds: f64,
    /// Whether some change something.
    pub writes: bool,
    /// Latencies are counted from when requests were sent: see `crates/load`.
    pub from_sent: bool,
    /// Connections that never end a head.
    pub slow: usize,
    /// How long after the last request answers are waited for.
    pub patience_seconds: f64,
}

/// The generator's plan.
pub fn plan(wanted: &Wanted<'_>, tenants: &[Tenant], records: u32) -> Value {
    let tenants: Vec<Value> = tenants
        .iter()
        .enumerate()
        .map(|(number, tenant)| {
            json!({"project": tenant.project, "token": tenant.token, "ak": tenant.ak, "sk": tenant.sk,
                   "instance": id(number, 0, 3), "records": records, "idle": tenant.idle})
        })
        .collect();
    json!({"address": wanted.address, "rate": wanted.rate, "connections": wanted.connections, "seconds": wanted.seconds,
           "seed": 1, "writes": wanted.writes, "from_sent": wanted.from_sent, "slow": wanted.slow, "patience_seconds": wanted.patience_seconds,
           "tenants": tenants})
}

/// One write as the generator reports it.
struct Written<'r> {
    kind: &'r str,
    tenant: usize,
    value: &'r str,
    sent: u64,
    done: u64,
    is_accepted: bool,
    /// No answer came, so both may be true.
    is_unknown: bool,
    id: Option<&'r str>,
}

/// What the catalogue does not hold of what the report says was accepted, a line each.
///
/// Of several changes of one instance the last accepted one must have stayed, or one that was under way together with it. Each accepted
/// backup must have its record, and no record may be of one that was not.
///
/// # Errors
/// The catalogue cannot be read, or the report is none.
pub fn lost(base: &Base<'_>, report: &Value) -> Result<Vec<String>, Stop> {
    let written = report["written"].as_array();
    let written = written.ok_or_else(|| Stop::new("the generator reported no writes"))?;
    let written: Vec<Written<'_>> = written
        .iter()
        .map(|row| Written {
            kind: row["kind"].as_str().unwrap_or_default(),
            tenant: usize::try_from(row["tenant"].as_u64().unwrap_or_default()).unwrap_or_default(),
            value: row["value"].as_str().unwrap_or_default(),
            sent: row["sent_us"].as_u64().unwrap_or_default(),
            done: row["done_us"].as_u64().unwrap_or_default(),
            is_accepted: (200..300).contains(&row["status"].as_u64().unwrap_or_default()),
            is_unknown: row["status"] == 0,
            id: row["id"].as_str(),
        })
        .collect();
    let mut lost = Vec::new();
    let rows = base.sql(&format!(
        "SELECT id, description, coalesce(backup_policy, '') FROM instance WHERE host_id = '{ELSEWHERE}';"
    ))?;
    let mut now = std::collections::HashMap::new();
    for row in rows.lines() {
        let mut columns = row.splitn(3, '|');
        let mut next = || columns.next().unwrap_or_default().to_owned();
        now.insert(next(), (next(), next()));
    }
    for kind in ["UpdateInstance", "UpdateSchedule"] {
        let mut of_tenant: std::collections::BTreeMap<usize, Vec<&Written<'_>>> = Default::default();
        for one in written.iter().filter(|one| one.kind == kind) {
            of_tenant.entry(one.tenant).or_default().push(one);
        }
        for (tenant, changes) in of_tenant {
            let (description, policy) = now.get(&id(tenant, 0, 3)).cloned().unwrap_or_default();
            let held = match kind {
                "UpdateInstance" => description,
                _ => schedule(&policy),
            };
            let newest_begin = changes
                .iter()
                .filter(|change| change.is_accepted)
                .map(|change| change.sent)
                .max();
            let may_be = changes.iter().any(|change| {
                change.value == held
                    && (change.is_unknown
                        || change.is_accepted && newest_begin.is_none_or(|begin| change.done >= begin))
            });
            if newest_begin.is_some() && !may_be {
                lost.push(format!("{kind} of tenant {tenant}: the catalogue holds {held:?}"));
            }
        }
    }
    let rows = base.sql("SELECT id, remark FROM backup WHERE remark LIKE 'written-%';")?;
    let submitted = || written.iter().filter(|one| one.kind == "SubmitBackup");
    for one in submitted().filter(|one| one.is_accepted) {
        let row = format!("{}|{}", one.id.unwrap_or_default(), one.value);
        if !rows.lines().any(|line| line == row) {
            lost.push(format!("an accepted backup has no record: {row}"));
        }
    }
    for row in rows.lines() {
        let may_be = |one: &Written<'_>| {
            row == format!("{}|{}", one.id.unwrap_or_default(), one.value)
                || one.is_unknown && row.ends_with(&format!("|{}", one.value))
        };
        if !submitted().any(may_be) {
            lost.push(format!("a record is of no accepted backup: {row}"));
        }
    }
    Ok(lost)
}

/// Days and hour of a policy, as the generator names them.
fn schedule(policy: &str) -> String {
    let policy: Value = serde_json::from_str(policy).unwrap_or_default();
    let days = policy["policy"]["save_days"].to_string();
    let begin = policy["policy"]["periodical_backup_plan"]["begin_at"].as_str();
    let hour = begin.and_then(|begin| begin.get(..2)).unwrap_or_default();
    format!("{} {hour}", days.trim_matches('"'))
}

/// Processor time of a process so far, user and system, in seconds; 0 where it is gone.
pub fn cpu_seconds(process: u32) -> f64 {
    let stat = std::fs::read_to_string(format!("/proc/{process}/stat")).unwrap_or_default();
    // The name in brackets may hold anything.
    let fields = stat.rsplit(')').next().unwrap_or_default().split_whitespace();
    let ticks: f64 = fields
        .skip(11)
        .take(2)
        .filter_map(|text| text.parse::<f64>().ok())
        .sum();
    ticks / 100.0
}

/// Memory of a process, in MiB.
pub fn resident_mb(process: u32) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{process}/status")).unwrap_or_default();
    let line = status.lines().find(|line| line.starts_with("VmRSS:"));
    let kilobytes = line.and_then(|line| line.split_whitespace().nth(1)?.parse::<u64>().ok());
    kilobytes.unwrap_or_default() / 1024
}

/// Copies a whole folder.
///
/// # Errors
/// `cp` says why.
pub fn copy(from: &Path, to: &Path) -> Result<(), Stop> {
    let done = Command::new("cp").arg("-a").arg(from).arg(to).output()?;
    match done.status.success() {
        true => Ok(()),
        false => Err(Stop::new(String::from_utf8_lossy(&done.stderr).into_owned())),
    }
}
