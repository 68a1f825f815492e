//! `cargo xtask fill` and `cargo xtask damage`.

use std::io::Write as _;
use std::time::Duration;

use super::damage::{damage, databases};
use super::{Options, Profile, Report, fill_with_progress};
use crate::Stop;
use crate::args::Args;
use crate::resp::{Connection, Place, Target};

/// `cargo xtask fill --help`.
pub const FILL_HELP: &str = "\
Fills an engine with data of every type, the same for the same seed.

  cargo xtask fill --port P [OPTIONS]

  --host H         default 127.0.0.1
  --port P         the engine's port
  --socket PATH    a Unix socket instead of host and port
  --user U         ACL user; default: the default user
  --password PW    default: none
  --keys N         how many keys (default 50000)
  --size-mb N      instead of --keys: until the engine's memory has grown by N MiB
  --dbs N          databases 0 to N-1, most keys in 0 (default 2)
  --seed N         default 1
  --profile P      mixed, tiny or blobs (default mixed)
  --ttl-share F    share of the keys that expire, a day from now at the earliest (default 0.2)
  --near-ttl-s N   one in ten of those expires N to 10N seconds from now
  --giant-mb N     one more key of N MiB
  --no-functions   loads no function libraries

Example: cargo xtask fill --port 7001 --password Secret-1 --keys 1000000 --dbs 4
";

/// `cargo xtask damage --help`.
pub const DAMAGE_HELP: &str = "\
Damages an engine's data: deletes a third of the keys, overwrites a tenth, adds garbage, empties one database.

  cargo xtask damage --port P [--host H] [--socket PATH] [--user U] [--password PW]
";

/// Runs `fill`.
///
/// # Errors
/// A wrong option, or the engine does not answer or refuses.
pub fn fill(mut args: Args) -> Result<(), Stop> {
    let target = target(&mut args)?;
    let defaults = Options::default();
    let profile = match args.option::<String>("--profile")?.as_deref() {
        None | Some("mixed") => Profile::Mixed,
        Some("tiny") => Profile::Tiny,
        Some("blobs") => Profile::Blobs,
        Some(other) => {
            return Err(Stop::new(format!(
                "--profile {other}: not one of mixed, tiny, blobs"
            )));
        }
    };
    let options = Options {
        seed: args.option("--seed")?.unwrap_or(defaults.seed),
        keys: args.option("--keys")?.unwrap_or(defaults.keys),
        size_mb: args.option("--size-mb")?,
        dbs: args.option("--dbs")?.unwrap_or(defaults.dbs),
        profile,
        ttl_share: args.option("--ttl-share")?.unwrap_or(defaults.ttl_share),
        near_ttl: args.option("--near-ttl-s")?.map(Duration::from_secs),
        giant_mb: args.option("--giant-mb")?.unwrap_or(0),
        functions: !args.flag("--no-functions"),
        idle_consumers: true,
        now_ms: defaults.now_ms,
    };
    args.finish()?;
    let mut shown = Duration::ZERO;
    let report = fill_with_progress(&target, &options, |so_far| {
        if so_far.elapsed >= shown + Duration::from_secs(2) {
            shown = so_far.elapsed;
            println!("  {}", line(so_far));
        }
    })
    .map_err(|e| refused(&target, &e))?;
    println!("{} (seed {})", line(&report), options.seed);
    let mut connection = Connection::open(&target)?;
    println!(
        "the engine now has {} in {} MiB of memory",
        describe(&databases(&mut connection)?),
        super::used_memory(&mut connection)? / (1024 * 1024)
    );
    Ok(())
}

/// Runs `damage`.
///
/// # Errors
/// As [`fill`].
pub fn damage_command(mut args: Args) -> Result<(), Stop> {
    let target = target(&mut args)?;
    args.finish()?;
    let mut connection = Connection::open(&target).map_err(|e| refused(&target, &e))?;
    println!("before: {}", describe(&databases(&mut connection)?));
    let done = damage(&target).map_err(|e| refused(&target, &e))?;
    println!(
        "deleted {}, overwrote {}, added {} keys",
        done.deleted, done.overwritten, done.added
    );
    if let Some((database, keys)) = done.flushed {
        println!("emptied database {database}, which had {keys} keys");
    }
    println!("after:  {}", describe(&databases(&mut connection)?));
    std::io::stdout().flush()?;
    Ok(())
}

fn target(args: &mut Args) -> Result<Target, Stop> {
    let host = args.option("--host")?.unwrap_or_else(|| "127.0.0.1".to_owned());
    let place = match (args.option::<String>("--socket")?, args.option("--port")?) {
        (Some(path), None) => Place::Unix(path.into()),
        (None, Some(port)) => Place::Tcp(host, port),
        _ => return Err(Stop::new("say which engine: --port P or --socket PATH")),
    };
    Ok(Target {
        place,
        user: args.option("--user")?,
        password: args.option("--password")?,
    })
}

fn refused(target: &Target, error: &std::io::Error) -> Stop {
    let place = match &target.place {
        Place::Tcp(host, port) => format!("{host}:{port}"),
        Place::Unix(path) => path.display().to_string(),
    };
    let stop = Stop::new(format!("engine at {place}: {error}"));
    match error.kind() {
        std::io::ErrorKind::PermissionDenied => stop.advice("is the password right? (--password, --user)"),
        std::io::ErrorKind::ConnectionRefused => stop.advice("is the port right, and the instance RUNNING?"),
        _ => stop,
    }
}

fn line(report: &Report) -> String {
    let seconds = report.elapsed.as_secs_f64().max(0.001);
    format!(
        "{} keys, {} commands in {seconds:.1} s ({:.0} keys/s)",
        report.keys,
        report.commands,
        report.keys as f64 / seconds
    )
}

fn describe(databases: &[(u64, u64)]) -> String {
    if databases.is_empty() {
        return "no keys".to_owned();
    }
    let total: u64 = databases.iter().map(|(_, keys)| keys).sum();
    let each: Vec<String> = databases
        .iter()
        .map(|(number, keys)| format!("db{number} {keys}"))
        .collect();
    format!("{total} keys ({})", each.join(", "))
}
