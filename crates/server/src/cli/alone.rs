//! Backup and restore without a service: one server into a store, and from there into a folder on which a stock
//! redis-server starts. The same capture, the same archive, the same validation.
//!
//! The keys are files: an age identity, made where it is missing, and beside it the key that signs. Whoever only makes
//! backups needs no more than the public half of the first.

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Context;
use clap::Args;
use engine::archive::Archive;
use engine::backup::{BackupPlan, Labels};
use engine::keys::{Identity, Recipient, SigningKey, VerifyingKey};
use engine::node::{Address, Endpoint, Tls};
use engine::sideload::Form;
use engine::store::Store;
use engine::{Control, Secret, Tuning};
use indicatif::{HumanBytes, HumanCount};
use serde_json::json;

use super::Global;
use super::admin::print_one;
use super::place::{Place, Reach};
use super::replay::{self, ReplayOptions};
use crate::ids::Moment;
use crate::jobs::worker::with_progress;
use crate::{limits, secrets};

/// Threads that decode segments while nothing else works.
const WORKERS: usize = 2;
/// Added to an identity's file name for the key that signs.
const SIGNING_ENDING: &str = ".signing";

/// A backup without a service.
#[derive(Args)]
#[command(next_help_heading = "Without a service")]
pub(crate) struct BackupAlone {
    /// The server: redis://[USER[:PASSWORD]@]HOST[:PORT], rediss:// for TLS, or unix:PATH; a password is better given in
    /// CACHEKEEP_SOURCE_PASSWORD
    #[arg(long, required = true, requires = "to", value_name = "URL")]
    from: Option<String>,
    /// Where to: a folder, s3://BUCKET/PREFIX or obs://BUCKET/PREFIX
    #[arg(long, requires = "from", value_name = "PLACE")]
    to: Option<String>,
    /// Certificates that a rediss:// server's one must be signed by, PEM
    #[arg(long, value_name = "FILE", requires = "from")]
    ca: Option<PathBuf>,
    /// Encrypt to this age recipient (age1...) instead: the backup cannot be read here then
    #[arg(long, value_name = "RECIPIENT", requires = "from")]
    recipient: Option<String>,
    /// Set the server's repl-diskless-sync-delay to 0 and rdbcompression to no until the snapshot has begun: saves five
    /// seconds. A kill in that moment leaves them so
    #[arg(long, requires = "from")]
    tune: bool,
    #[command(flatten)]
    keys: KeyFiles,
    #[command(flatten)]
    reach: Reach,
}

/// A restore without a service.
#[derive(Args)]
#[command(next_help_heading = "Without a service")]
pub(crate) struct RestoreAlone {
    /// The backup, as `cachekeep backup --from` printed it: FOLDER/NAME, s3://BUCKET/PREFIX/NAME or obs://BUCKET/PREFIX/NAME;
    /// to a server also an RDB file, or the id of a backup of the service
    #[arg(long, required = true, requires = "to", value_name = "BACKUP")]
    from: Option<String>,
    /// A directory that is not there yet: a redis-server starts on it. Or a server, or any node of a cluster:
    /// redis://[USER[:PASSWORD]@]HOST[:PORT], rediss:// for TLS, or unix:PATH; a password is better given in
    /// CACHEKEEP_TARGET_PASSWORD
    #[arg(long, requires = "from", value_name = "PLACE")]
    to: Option<String>,
    /// What the server will keep: rdb gives a dump.rdb, aof an appendonlydir (needed for `appendonly yes`)
    #[arg(long, value_parser = ["rdb", "aof"], default_value = "rdb", requires = "from")]
    persistence: String,
    /// Trust manifests that are signed by this key (64 hex digits, as a backup printed it) instead
    #[arg(long, value_name = "HEX", requires = "from")]
    signed_by: Option<String>,
    #[command(flatten)]
    keys: KeyFiles,
    #[command(flatten)]
    reach: Reach,
    #[command(flatten)]
    replay: ReplayOptions,
}

/// Where the keys lie.
#[derive(Args)]
pub(crate) struct KeyFiles {
    /// age identity that opens the backup; a backup makes it where it is missing [default: <data-dir>/alone.key]
    #[arg(long, value_name = "FILE", requires = "from")]
    identity: Option<PathBuf>,
    /// Key that signs manifests; a backup makes it where it is missing [default: the identity's name and `.signing`]
    #[arg(long, value_name = "FILE", requires = "from")]
    signing_key: Option<PathBuf>,
}

impl KeyFiles {
    fn identity_file(&self, global: &Global) -> PathBuf {
        self.identity
            .clone()
            .unwrap_or_else(|| global.data_dir().join("alone.key"))
    }

    fn signing_file(&self, global: &Global) -> PathBuf {
        self.signing_key.clone().unwrap_or_else(|| {
            let mut name = self.identity_file(global).into_os_string();
            name.push(SIGNING_ENDING);
            PathBuf::from(name)
        })
    }
}

/// `cachekeep backup --from ... --to ...`
///
/// # Errors
/// The server, the keys or the store, and why. Nothing is left in the store then.
pub(crate) fn backup(global: &Global, verb: &BackupAlone) -> anyhow::Result<()> {
    let (Some(from), Some(to)) = (&verb.from, &verb.to) else {
        anyhow::bail!("say --from and --to, or one of the verbs that `cachekeep backup --help` lists");
    };
    let source = endpoint(from, verb.ca.as_deref())?;
    let store = Place::read(to, &verb.reach)?.open()?;
    // Before keys are made that nobody needs where there is no source.
    engine::Node::connect(&source).map_err(told)?;
    let recipient = match &verb.recipient {
        Some(text) => Recipient::parse(text).map_err(told)?,
        None => identity_to_use(&verb.keys.identity_file(global))?.recipient(),
    };
    let signer = signer_to_use(&verb.keys.signing_file(global))?;
    let now = Moment::now();
    let name = format!("{}-{}", now.compact(), secrets::random_hex(4));
    let spool = std::env::temp_dir();
    let plan = BackupPlan {
        forked: None,
        tuning: match verb.tune {
            true => Tuning::Config,
            false => Tuning::None,
        },
        prefix: name.clone(),
        labels: Labels {
            project: "alone".to_owned(),
            instance: source.address.to_string(),
            backup: name.clone(),
            attempt: 1,
            created_at_ms: now.0,
        },
        source,
        recipient,
        spool_dir: spool,
        spool_limit_bytes: limits::SPOOL_BYTES_MAX,
        snapshot_bytes_max: 0,
        idle_timeout: limits::ENGINE_IDLE,
        expected_bytes: 0,
    };
    let control = Control::new(None);
    let made = with_progress(
        &control,
        |seen| tell(global, seen),
        || engine::backup::run(&plan, &store, &signer, &control),
    )
    .map_err(told)?;
    let place = format!("{}/{name}", to.trim_end_matches('/'));
    print_one(
        global,
        &json!({"backup": place, "keys": made.keys, "plain_bytes": made.plain_bytes, "stored_bytes": made.stored_bytes,
                "engine_version": made.engine_version, "rdb_version": made.rdb_version,
                "recipient": plan.recipient.to_string(), "signed_by": signer.verifying_key().to_string(),
                "manifest_blake3": made.manifest_blake3}),
    );
    Ok(())
}

/// `cachekeep restore --from ... --to ...`
///
/// # Errors
/// The keys, the store or the archive, and why. The directory is not there then.
pub(crate) fn restore(global: &Global, verb: &RestoreAlone) -> anyhow::Result<ExitCode> {
    let (Some(from), Some(to)) = (&verb.from, &verb.to) else {
        anyhow::bail!("say --from and --to, or one of the verbs that `cachekeep restore --help` lists");
    };
    match replay::is_server(to) {
        true => replay::run(global, &verb.replay, from, to, || {
            open_archive(global, verb, from)
        }),
        false => restore_into(global, verb, from, Path::new(to)).map(|()| ExitCode::SUCCESS),
    }
}

/// The archive at its place, and what opens it.
fn open_archive(global: &Global, verb: &RestoreAlone, from: &str) -> anyhow::Result<(Archive, Identity)> {
    let (root, name) = from
        .trim_end_matches('/')
        .rsplit_once('/')
        .map(|(root, name)| (if root.is_empty() { "/" } else { root }, name))
        .unwrap_or((".", from));
    let store = open_existing(root, &verb.reach)?;
    let file = verb.keys.identity_file(global);
    let identity = read_identity(&file)?
        .with_context(|| format!("{} is missing: name the identity with --identity", file.display()))?;
    let key = match &verb.signed_by {
        Some(text) => VerifyingKey::parse(text).map_err(told)?,
        None => {
            let file = verb.keys.signing_file(global);
            read_signer(&file)?
                .with_context(|| format!("{} is missing: say --signing-key or --signed-by", file.display()))?
                .verifying_key()
        }
    };
    let archive = Archive::open(&store, name, &[key], None).map_err(told)?;
    Ok((archive, identity))
}

/// Makes a directory of a backup on which a server starts.
fn restore_into(global: &Global, verb: &RestoreAlone, from: &str, to: &Path) -> anyhow::Result<()> {
    anyhow::ensure!(
        !Path::new(from).is_file(),
        "{from} is a file, and a backup is a folder: on a plain RDB an engine starts without us, from an empty directory that holds it as \
         dump.rdb; `cachekeep import` makes a backup of it, and --to redis://HOST applies it to a server that runs"
    );
    let (archive, identity) = open_archive(global, verb, from)?;
    anyhow::ensure!(
        archive.manifest().shards.is_empty(),
        "{from} is of a cluster and has a file for each shard, which no single directory can be made of: --to redis://HOST applies it \
         to a server or cluster that runs"
    );
    let form = match verb.persistence.as_str() {
        "aof" => Form::AppendOnlyFolder,
        _ => Form::Snapshot,
    };
    let to = std::path::absolute(to)?;
    let control = Control::new(None);
    let expected = with_progress(
        &control,
        |seen| tell(global, seen),
        || {
            control.enter("validating", archive.manifest().plain_bytes);
            engine::sideload::place(&to, form, None, &control, |push| {
                archive.read(&identity, &control, WORKERS, push)
            })
        },
    )
    .map_err(told)?;
    engine::sideload::sync(&to).map_err(told)?;
    let manifest = archive.manifest();
    print_one(
        global,
        &json!({"directory": to, "keys": expected.keys(), "plain_bytes": manifest.plain_bytes,
                "engine_version": manifest.engine_version, "rdb_version": manifest.rdb_version,
                "backup_of": manifest.instance, "created_at": Moment(manifest.created_at_ms).iso()}),
    );
    if !global.quiet {
        let appends = if form == Form::AppendOnlyFolder {
            " --appendonly yes"
        } else {
            ""
        };
        eprintln!(
            "cachekeep: start it with: redis-server --dir {}{appends}",
            to.display()
        );
    }
    Ok(())
}

/// A store that is read: a folder is not made by looking into it.
fn open_existing(root: &str, reach: &Reach) -> anyhow::Result<Store> {
    let place = Place::read(root, reach)?;
    if let Place::Folder(folder) = &place {
        anyhow::ensure!(folder.is_dir(), "there is no folder {}", folder.display());
    }
    place.open()
}

/// Reads `redis://`, `rediss://` and `unix:`.
///
/// # Errors
/// It is none of these, or `ca` is missing or holds no certificate.
pub(super) fn endpoint(url: &str, ca: Option<&Path>) -> anyhow::Result<Endpoint> {
    endpoint_with(url, ca, "CACHEKEEP_SOURCE_PASSWORD")
}

/// As [`endpoint`], with another name for the variable that may hold its password.
///
/// # Errors
/// As [`endpoint`].
pub(super) fn endpoint_with(url: &str, ca: Option<&Path>, password: &str) -> anyhow::Result<Endpoint> {
    let wrong = || anyhow::anyhow!("a server is redis://HOST[:PORT], rediss://HOST[:PORT] or unix:PATH");
    let given = std::env::var(password).ok();
    let mut endpoint = Endpoint {
        address: Address::Unix(PathBuf::new()),
        user: None,
        password: given.map(Secret::new),
        tls: None,
        timeout: Duration::from_secs(10),
    };
    if let Some(path) = url.strip_prefix("unix:") {
        endpoint.address = Address::Unix(PathBuf::from(path));
        return Ok(endpoint);
    }
    let (scheme, rest) = url.split_once("://").ok_or_else(wrong)?;
    let rest = rest.trim_end_matches('/');
    let (credential, place) = match rest.rsplit_once('@') {
        Some((credential, place)) => (Some(credential), place),
        None => (None, rest),
    };
    if let Some(credential) = credential {
        let (user, password) = credential.split_once(':').unwrap_or((credential, ""));
        let plain = |text: &str| {
            let bytes = signature::decode(text, false);
            String::from_utf8_lossy(&bytes).into_owned()
        };
        endpoint.user = (!user.is_empty()).then(|| plain(user));
        if !password.is_empty() {
            endpoint.password = Some(Secret::new(plain(password)));
        }
    }
    let (host, port) = match place.rsplit_once(':') {
        Some((host, port)) if !place.ends_with(']') => (host, port.parse().map_err(|_| wrong())?),
        _ => (place, 6379),
    };
    let host = host.trim_start_matches('[').trim_end_matches(']');
    anyhow::ensure!(!host.is_empty(), wrong());
    endpoint.address = Address::Tcp(host.to_owned(), port);
    endpoint.tls = match scheme {
        "redis" => None,
        "rediss" => {
            let file =
                ca.context("rediss:// needs --ca FILE: the certificates that the server's one is signed by")?;
            Some(trusting(file)?)
        }
        _ => return Err(wrong()),
    };
    Ok(endpoint)
}

fn trusting(ca: &Path) -> anyhow::Result<Tls> {
    let pem = std::fs::read_to_string(ca).with_context(|| format!("cannot read {}", ca.display()))?;
    let config = crate::tls::connector(&pem, None).with_context(|| format!("--ca {}", ca.display()))?;
    Ok(Tls { config, name: None })
}

/// The identity in a file of age-keygen's form; `None` where there is no such file.
fn read_identity(file: &Path) -> anyhow::Result<Option<Identity>> {
    let Some(text) = read(file)? else {
        return Ok(None);
    };
    let line = text
        .lines()
        .map(str::trim)
        .find(|line| !line.is_empty() && !line.starts_with('#'))
        .with_context(|| format!("{} holds no identity", file.display()))?;
    let identity = Identity::parse(line)
        .with_context(|| format!("{}: a line AGE-SECRET-KEY-1... is wanted", file.display()))?;
    Ok(Some(identity))
}

fn read_signer(file: &Path) -> anyhow::Result<Option<SigningKey>> {
    read(file)?
        .map(|text| {
            SigningKey::parse(text.trim()).with_context(|| format!("{} is no signing key", file.display()))
        })
        .transpose()
}

fn read(file: &Path) -> anyhow::Result<Option<String>> {
    match std::fs::read_to_string(file) {
        Ok(text) => Ok(Some(text)),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error).with_context(|| format!("cannot read {}", file.display())),
    }
}

fn identity_to_use(file: &Path) -> anyhow::Result<Identity> {
    if let Some(identity) = read_identity(file)? {
        return Ok(identity);
    }
    let identity = Identity::generate();
    let text = format!(
        "# created: {}\n# public key: {}\n{}\n",
        Moment::now().iso(),
        identity.recipient(),
        identity.to_secret().expose()
    );
    keep(
        file,
        &text,
        "opens the backups: without it nobody reads them. Copy it elsewhere",
    )?;
    Ok(identity)
}

fn signer_to_use(file: &Path) -> anyhow::Result<SigningKey> {
    if let Some(signer) = read_signer(file)? {
        return Ok(signer);
    }
    let signer = SigningKey::generate().map_err(told)?;
    keep(
        file,
        signer.to_secret().expose(),
        "signs the backups. Its public half, printed as signed_by, proves them",
    )?;
    Ok(signer)
}

/// Writes a new key for its owner alone, and says where: with --quiet too, for who does not know it loses it.
fn keep(file: &Path, text: &str, what: &str) -> anyhow::Result<()> {
    let place = std::path::absolute(file)?;
    if let Some(folder) = place.parent().filter(|folder| !folder.as_os_str().is_empty()) {
        std::fs::create_dir_all(folder).with_context(|| format!("cannot make {}", folder.display()))?;
    }
    secrets::write_private(&place, text.as_bytes())
        .with_context(|| format!("cannot write {}", file.display()))?;
    eprintln!("cachekeep: made {}, which {what}", file.display());
    Ok(())
}

pub(super) fn tell(global: &Global, seen: &engine::Progress) {
    if !global.quiet {
        let (bytes, keys) = (HumanBytes(seen.bytes_done), HumanCount(seen.keys_done));
        eprintln!("{}: {bytes}, {keys} keys", seen.phase);
    }
}

/// An error of the data plane with its causes.
pub(super) fn told(error: engine::Error) -> anyhow::Error {
    anyhow::anyhow!(engine::chain(&error))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_url_names_server_user_and_password() {
        let read = |url: &str| {
            let endpoint = endpoint(url, None).unwrap();
            let password = endpoint
                .password
                .as_ref()
                .map(|secret| secret.expose().to_owned());
            (endpoint.address.to_string(), endpoint.user, password)
        };
        let (some, none) = (|text: &str| Some(text.to_owned()), None::<String>);
        assert_eq!(
            read("redis://host"),
            ("host:6379".to_owned(), none.clone(), none.clone())
        );
        assert_eq!(
            read("redis://me:p%40ss@host:7000/"),
            ("host:7000".to_owned(), some("me"), some("p@ss"))
        );
        assert_eq!(read("redis://[::1]").0, "::1:6379");
        assert_eq!(
            read("redis://:word@[::1]:1"),
            ("::1:1".to_owned(), none.clone(), some("word"))
        );
        assert_eq!(
            read("unix:/run/redis.sock"),
            ("unix:/run/redis.sock".to_owned(), none.clone(), none)
        );
        for url in [
            "host:6379",
            "http://host",
            "redis://host:port",
            "redis://",
            "rediss://host",
        ] {
            assert!(endpoint(url, None).is_err(), "{url}");
        }
    }
}
