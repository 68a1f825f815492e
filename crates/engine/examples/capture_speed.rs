//! Measures one backup of a running engine: `capture_speed SOCKET|HOST:PORT DIRECTORY [--keep-settings]`.
//!
//! Prints time, rate, CPU seconds of this process and the growth of its memory; then the same for reading the
//! archive back. The directory receives a store that is removed again.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use engine::{
    Address, Archive, BackupPlan, Control, Endpoint, Error, Identity, Labels, SigningKey, Store, Tuning,
    backup,
};

fn main() -> Result<(), Error> {
    let mut arguments = std::env::args().skip(1);
    let (Some(source), Some(directory)) = (arguments.next(), arguments.next()) else {
        eprintln!("usage: capture_speed SOCKET|HOST:PORT DIRECTORY [--keep-settings]");
        std::process::exit(2);
    };
    let tuning = match arguments.next().as_deref() {
        Some("--keep-settings") => Tuning::None,
        _ => Tuning::Config,
    };
    let address = match source.rsplit_once(':').map(|(host, port)| (host, port.parse())) {
        Some((host, Ok(port))) => Address::Tcp(host.to_owned(), port),
        _ => Address::Unix(PathBuf::from(source)),
    };
    let identity = Identity::generate();
    let signer = SigningKey::generate()?;
    let store = Store::open(PathBuf::from(&directory).join("store"))?;
    let plan = BackupPlan {
        forked: None,
        source: Endpoint {
            address,
            user: None,
            password: None,
            tls: None,
            timeout: Duration::from_secs(5),
        },
        tuning,
        prefix: "measured".to_owned(),
        labels: Labels {
            project: "p".to_owned(),
            instance: "i".to_owned(),
            backup: "b".to_owned(),
            attempt: 1,
            created_at_ms: 0,
        },
        recipient: identity.recipient(),
        spool_dir: PathBuf::from(&directory).join("spool"),
        spool_limit_bytes: 4 << 30,
        snapshot_bytes_max: 0,
        idle_timeout: Duration::from_secs(30),
        expected_bytes: 0,
    };
    let control = Control::new(None);

    let before = Usage::now();
    let report = backup::run(&plan, &store, &signer, &control)?;
    before.report("backup", report.plain_bytes);
    println!(
        "  {} keys, {} segments, {} plain, {} stored",
        report.keys, report.segments, report.plain_bytes, report.stored_bytes
    );

    let before = Usage::now();
    let archive = Archive::open(
        &store,
        &plan.prefix,
        &[signer.verifying_key()],
        Some(&report.manifest_blake3),
    )?;
    let mut bytes = 0;
    archive.read(&identity, &control, 2, |piece| {
        bytes += piece.len() as u64;
        Ok(())
    })?;
    before.report("read back", bytes);
    engine::archive::delete(&store, &plan.prefix)
}

struct Usage {
    at: Instant,
    cpu_seconds: f64,
    peak_kib: u64,
}

impl Usage {
    fn now() -> Self {
        let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
        let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
        let stat = std::fs::read_to_string("/proc/self/stat").unwrap_or_default();
        // utime and stime, in hundredths of a second on Linux, are fields 14 and 15.
        let ticks: f64 = stat
            .split_whitespace()
            .skip(13)
            .take(2)
            .filter_map(|field| field.parse::<f64>().ok())
            .sum();
        Self {
            at: Instant::now(),
            cpu_seconds: ticks / 100.0,
            peak_kib: peak
                .and_then(|text| text.trim().trim_end_matches(" kB").parse().ok())
                .unwrap_or(0),
        }
    }

    #[allow(clippy::cast_precision_loss)]
    fn report(&self, what: &str, bytes: u64) {
        let now = Self::now();
        let seconds = (now.at - self.at).as_secs_f64();
        println!(
            "{what}: {seconds:.3} s, {:.0} MB/s, {:.2} CPU s, peak memory + {:.1} MiB",
            bytes as f64 / 1e6 / seconds,
            now.cpu_seconds - self.cpu_seconds,
            (now.peak_kib.saturating_sub(self.peak_kib)) as f64 / 1024.0
        );
    }
}
