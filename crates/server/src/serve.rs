//! Puts the service together and runs it until it is told to stop.

use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI64, Ordering};
use std::time::Duration;

use anyhow::Context;
use tokio::net::TcpListener;

use crate::api::{metrics, router};
use crate::app::{App, Vault};
use crate::catalog::Catalog;
use crate::config::Config;
use crate::identity::record::{self, AccessKey, Account, DOMAIN, Project};
use crate::ids::{Moment, ProjectId, UserId};
use crate::jobs::aside::Aside;
use crate::jobs::worker::{self, Board};
use crate::metrics::Counters;
use crate::secrets::{self, MasterKey};
use crate::{accept, audit, backup, hook, hosts, journal, limits, reconcile, schedule, storage};

/// Opens everything below the data directory. Used by `serve` and by the administrator's commands.
///
/// # Errors
/// What cannot be made, read or opened, and what to do about it.
pub fn open(config: Config) -> anyhow::Result<App> {
    let catalog = config.catalog_file();
    let begin = match &config.database {
        _ if config.has_catalog() => Begin::Known,
        Some(url) if Catalog::is_made(url).context("cannot open the catalogue in PostgreSQL")? => Begin::Join,
        _ => Begin::New,
    };
    open_with(config, &catalog, begin)
}

/// What may be made where it is missing. Whatever was there before is lost otherwise, and something empty in its place would
/// make orphans of all engines.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Begin {
    /// Everything: the data directory is new.
    New,
    /// Nothing.
    Known,
    /// Nothing: the data directory is new, and its catalogue is one that others have.
    Join,
    /// The catalogue, from its mirror.
    Rebuild,
}

/// As [`open`], with this file as catalogue where that is a file.
///
/// # Errors
/// As [`open`].
pub fn open_with(mut config: Config, catalog: &Path, begin: Begin) -> anyhow::Result<App> {
    std::fs::create_dir_all(&config.data_dir).with_context(|| {
        format!(
            "cannot make {}: choose another --data-dir",
            config.data_dir.display()
        )
    })?;
    // By the name that the kernel shows for it: processes are known by their working directories.
    config.data_dir = config.data_dir.canonicalize()?;
    let data_dir = &config.data_dir;
    let own_keys = data_dir.join("keys");
    match &config.keys_dir {
        // So that the operator's verbs find them too.
        Some(keys) if !own_keys.exists() => {
            let keys = keys.canonicalize().with_context(|| {
                format!("cannot read {}: name another folder with --keys", keys.display())
            })?;
            std::os::unix::fs::symlink(keys, &own_keys)?;
        }
        None if !own_keys.is_symlink() => make_restricted(&own_keys)?,
        _ => {}
    }
    for directory in [data_dir.clone(), config.spool_dir(), config.store_dir()] {
        make_restricted(&directory)?;
    }
    std::fs::create_dir_all(config.instances_dir())?;
    // Keys are made before the catalogue: where that exists and they do not, somebody has lost them.
    let keys = config.keys_dir();
    if begin == Begin::Join {
        check_keys_are_there(&keys)?;
    }
    let (master, signer) = load_keys(&keys, begin == Begin::New)?;
    let store = engine::store::Store::open(config.store_dir())?;
    let catalog = match &config.database {
        Some(url) => connect(&config, url, begin)?,
        None => {
            make_private(catalog)?;
            opened(&config, Catalog::open(catalog))
                .with_context(|| format!("cannot open the catalogue {}", catalog.display()))?
        }
    };
    let catalog = match begin {
        Begin::Rebuild => catalog.patient(),
        Begin::New | Begin::Known | Begin::Join => catalog,
    };
    let catalog = catalog.telling(audit::tell);
    check_master_key(&catalog, &master)?;
    check_signing_key(&catalog, &signer)?;
    let host = hosts::identify(&catalog, &config)?;
    Ok(App {
        config,
        host,
        duty: hosts::Duty::default(),
        catalog,
        vault: Vault {
            master,
            signer,
            store,
            remotes: storage::Remotes::default(),
        },
        board: Board::new(),
        aside: Aside::default(),
        counters: Counters::default(),
        copied_at_ms: AtomicI64::new(0),
        listens_on: std::sync::OnceLock::new(),
    })
}

/// Says what to run where the catalogue is to be migrated first: that is done when somebody wants it, for there is no way back
/// but that to a copy.
fn opened(config: &Config, catalog: Result<Catalog, crate::catalog::Error>) -> anyhow::Result<Catalog> {
    catalog.map_err(|error| match error {
        crate::catalog::Error::Old(_) => {
            let place = match &config.database {
                // Else it is the one that the data directory knows.
                Some(_) if !config.has_catalog() => {
                    " --catalog URL` with the same URL, or on another node `cachekeep migrate".to_owned()
                }
                _ => format!(" --data-dir {}", config.data_dir.display()),
            };
            anyhow::anyhow!(
                "{error}: run `cachekeep migrate{place}` first (with --dry-run it says what it would do)"
            )
        }
        other => other.into(),
    })
}

/// The catalogue in PostgreSQL. Where it is, is noted for the administrator's commands once it is known to be this data
/// directory's.
fn connect(config: &Config, url: &str, begin: Begin) -> anyhow::Result<Catalog> {
    anyhow::ensure!(
        !config.catalog_file().exists(),
        "{} has its catalogue in a file, {}: leave --catalog out, or choose an empty --data-dir",
        config.data_dir.display(),
        config.catalog_file().display()
    );
    let connected = Catalog::connect(url, matches!(begin, Begin::New | Begin::Rebuild));
    let catalog = opened(config, connected).context("cannot open the catalogue in PostgreSQL")?;
    let noted = crate::config::known_database(&config.data_dir)?;
    if noted.as_deref() != Some(url) {
        let file = config.database_file();
        if noted.is_some() {
            std::fs::remove_file(&file)?;
        }
        secrets::write_private(&file, url.as_bytes())?;
    }
    Ok(catalog)
}

/// A node's keys are those of the others, so none are made for it.
fn check_keys_are_there(keys: &Path) -> anyhow::Result<()> {
    let has_master = std::env::var_os("CACHEKEEP_MASTER_KEY").is_some() || keys.join("master.key").exists();
    anyhow::ensure!(
        has_master && keys.join("signing.key").exists(),
        "the catalogue is one that other nodes have, and this one has not got their keys: copy master.key and signing.key from the \
         keys folder of one of them to {}, or name a folder that has them with --keys",
        keys.display()
    );
    Ok(())
}

fn make_restricted(directory: &Path) -> anyhow::Result<()> {
    std::fs::create_dir_all(directory)
        .with_context(|| format!("cannot make {}: choose another --data-dir", directory.display()))?;
    Ok(restrict(directory)?)
}

fn restrict(directory: &Path) -> std::io::Result<()> {
    use std::os::unix::fs::PermissionsExt;
    std::fs::set_permissions(directory, std::fs::Permissions::from_mode(0o711))?;
    if directory.ends_with("keys") || directory.ends_with("store") || directory.ends_with("spool") {
        std::fs::set_permissions(directory, std::fs::Permissions::from_mode(0o700))?;
    }
    Ok(())
}

/// Makes the catalogue's file with mode 0600 before the database sees it: the database gives the files that it keeps
/// beside it (`-wal`, `-shm`) the mode of the file itself. Those of an earlier version are mended.
fn make_private(catalog: &Path) -> std::io::Result<()> {
    use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
    std::fs::OpenOptions::new()
        .create(true)
        .truncate(false)
        .write(true)
        .mode(0o600)
        .open(catalog)?;
    for ending in ["", "-wal", "-shm"] {
        let mut file = catalog.as_os_str().to_owned();
        file.push(ending);
        match std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o600)) {
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => {}
            done => done?,
        }
    }
    Ok(())
}

/// The master key and the signing key of a folder; they are made where they are missing and `may_make` says so.
///
/// # Errors
/// One is missing, cannot be read, or is none.
pub fn load_keys(keys: &Path, may_make: bool) -> anyhow::Result<(MasterKey, engine::keys::SigningKey)> {
    let master = MasterKey::load(&keys.join("master.key"), may_make).context("cannot load the master key")?;
    let signer = load_signer(&keys.join("signing.key"), may_make).context("cannot load the signing key")?;
    Ok((master, signer))
}

fn load_signer(path: &Path, may_make: bool) -> anyhow::Result<engine::keys::SigningKey> {
    if !path.exists() {
        anyhow::ensure!(
            may_make,
            "{} is missing, and without it no backup can be verified: put it back from your copy",
            path.display()
        );
        let key = engine::keys::SigningKey::generate()?;
        secrets::write_private(path, key.to_secret().expose().as_bytes())?;
    }
    let text = std::fs::read_to_string(path)?;
    Ok(engine::keys::SigningKey::parse(text.trim())?)
}

/// Opens one sealed value: with a wrong key everything would seem to work until the first restore. One that opens is
/// enough: a single one that does not was tampered with, and fails where it is used.
fn check_master_key(catalog: &Catalog, master: &MasterKey) -> anyhow::Result<()> {
    let projects = catalog.read(record::projects)?;
    let mut refused = None;
    for project in projects.iter().filter(|project| project.shredded_at.is_none()) {
        let sealed = catalog.read(|tx| record::project_identity(tx, &project.id))?;
        let opened = master.open(&identity_place(&project.id), &sealed.unwrap_or_default());
        match opened {
            Ok(_) => return Ok(()),
            Err(error) => refused = Some(error),
        }
    }
    match refused {
        None => Ok(()),
        Some(error) => Err(error).context(
            "the master key is not the one of this catalogue: put the right one back from your copy",
        ),
    }
}

/// What one node signs the others have to believe, so all sign with the same key.
fn check_signing_key(catalog: &Catalog, signer: &engine::keys::SigningKey) -> anyhow::Result<()> {
    let ours = signer.verifying_key().to_string();
    let known = match catalog.read(hosts::record::signer)? {
        Some(known) => known,
        None => catalog.write(|tx| match hosts::record::signer(tx)? {
            Some(known) => Ok(known),
            None => hosts::record::set_signer(tx, &ours).map(|()| ours.clone()),
        })?,
    };
    anyhow::ensure!(
        known == ours,
        "the signing key is not the one of this catalogue, so backups that others made would count as forged: put the right \
         signing.key back from your copy, or from another node"
    );
    Ok(())
}

fn identity_place(project: &ProjectId) -> String {
    format!("project.identity:{project}")
}

/// Makes a project with its archive key.
///
/// # Errors
/// The name is taken, or the catalogue failed.
pub fn make_project(app: &App, name: &str) -> anyhow::Result<Project> {
    anyhow::ensure!(
        (1..=64).contains(&name.len()) && name.bytes().all(|byte| byte.is_ascii_graphic()),
        "a project's name has 1 to 64 printable characters without blanks"
    );
    let identity = engine::keys::Identity::generate();
    let project = Project {
        id: ProjectId::random(),
        name: name.to_owned(),
        created_at: Moment::now(),
        escrow: None,
        is_key_printed: false,
        shredded_at: None,
    };
    let sealed = app.vault.master.seal(
        &identity_place(&project.id),
        identity.to_secret().expose().as_bytes(),
    );
    app.catalog
        .write(|tx| record::insert_project(tx, &project, &identity.recipient().to_string(), &sealed))
        .map_err(|error| taken(error, "project", name))?;
    Ok(project)
}

/// Gives a project a new archive key, which is returned; backups that exist keep theirs.
///
/// # Errors
/// The catalogue failed.
pub fn rotate_key(app: &App, project: &ProjectId, now: Moment) -> anyhow::Result<engine::keys::Recipient> {
    let identity = engine::keys::Identity::generate();
    let recipient = identity.recipient();
    let sealed = app
        .vault
        .master
        .seal(&identity_place(project), identity.to_secret().expose().as_bytes());
    app.catalog
        .write(|tx| record::rotate_key(tx, project, &recipient.to_string(), &sealed, now))?;
    Ok(recipient)
}

/// Says which projects lose their backups with this data directory, until their keys are kept elsewhere.
fn remind_of_keys(app: &App) -> anyhow::Result<()> {
    for project in app.catalog.read(record::projects)? {
        if project.is_key_only_here() {
            tracing::warn!(
                project = project.name,
                "the key of this project's backups is nowhere but in this data directory: with it all backups are lost. Print it \
                 (cachekeep project key) or seal it to a key of your own (cachekeep project escrow), and keep it elsewhere"
            );
        }
    }
    Ok(())
}

fn taken(error: crate::catalog::Error, what: &str, name: &str) -> anyhow::Error {
    match error {
        crate::catalog::Error::Constraint(_) => {
            anyhow::anyhow!("there is a {what} {name} already: choose another name")
        }
        other => other.into(),
    }
}

/// Makes a user with a random password, which is returned.
///
/// # Errors
/// The name is taken, or the catalogue failed.
pub fn make_account(app: &App, project: &ProjectId, name: &str) -> anyhow::Result<String> {
    let password = secrets::random_password();
    let account = Account {
        id: UserId::random(),
        project_id: project.clone(),
        name: name.to_owned(),
        password_hash: secrets::hash_password(&password),
        created_at: Moment::now(),
        revoked_at: None,
    };
    app.catalog
        .write(|tx| record::insert_account(tx, &account))
        .map_err(|error| taken(error, "user", name))?;
    Ok(password)
}

/// Makes an access key and returns both halves.
///
/// # Errors
/// The catalogue failed.
pub fn make_access_key(app: &App, project: &ProjectId) -> anyhow::Result<(String, String)> {
    let (ak, sk) = (secrets::random_access_key(), secrets::random_hex(20));
    let key = AccessKey {
        sk_sealed: app
            .vault
            .master
            .seal(&format!("access_key.sk:{ak}"), sk.as_bytes()),
        ak: ak.clone(),
        project_id: project.clone(),
        created_at: Moment::now(),
        revoked_at: None,
    };
    app.catalog.write(|tx| record::insert_access_key(tx, &key))?;
    Ok((ak, sk))
}

/// Makes the user and the access key of admin.json anew in a catalogue that knows its project and not them. `false`:
/// there is no such file, or it is of another project.
///
/// # Errors
/// The catalogue failed.
pub fn take_up_admin(app: &App, now: Moment) -> anyhow::Result<bool> {
    let Ok(bytes) = std::fs::read(app.config.admin_file()) else {
        return Ok(false);
    };
    let admin: serde_json::Value = serde_json::from_slice(&bytes)
        .with_context(|| format!("{} is not whole", app.config.admin_file().display()))?;
    let field = |name: &str| admin[name].as_str().unwrap_or_default();
    let Some(project_id) = ProjectId::parse(field("project_id")) else {
        return Ok(false);
    };
    // An operator may have taken a secret out of it: an empty one must not become valid.
    if ["user", "password", "ak", "sk"]
        .iter()
        .any(|name| field(name).is_empty())
    {
        return Ok(false);
    }
    let account = Account {
        id: UserId::random(),
        project_id: project_id.clone(),
        name: field("user").to_owned(),
        password_hash: secrets::hash_password(field("password")),
        created_at: now,
        revoked_at: None,
    };
    let ak = field("ak").to_owned();
    let key = AccessKey {
        sk_sealed: app
            .vault
            .master
            .seal(&format!("access_key.sk:{ak}"), field("sk").as_bytes()),
        ak,
        project_id: project_id.clone(),
        created_at: now,
        revoked_at: None,
    };
    app.catalog.write(|tx| {
        if record::project(tx, &project_id)?.is_none() {
            return Ok(false);
        }
        record::insert_account(tx, &account)?;
        record::insert_access_key(tx, &key)?;
        Ok(true)
    })
}

/// Runs the service until SIGTERM or SIGINT.
///
/// # Errors
/// It cannot start, and what to do about it.
pub fn run(config: Config) -> anyhow::Result<()> {
    // Whatever can be refused is, before a data directory is made: what is refused leaves nothing behind. One that is in
    // use comes first all the same, for its service has the port as well. Who connects before all is ready waits.
    let tls = match &config.tls {
        Some((certificate, key)) => Some(crate::tls::acceptor(certificate, key)?),
        None => None,
    };
    check_not_lost(&config)?;
    let in_use = config.has_catalog().then(|| lock(&config.data_dir));
    let in_use = in_use.transpose()?;
    // A read of a catalogue in a file waits on its thread for a page that the system does not have in memory. All that may read at once
    // may wait so, and each processor still has a thread for whoever needs none.
    let processors = std::thread::available_parallelism().map_or(1, usize::from);
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(processors + limits::READS_AT_ONCE)
        .enable_all()
        .build()?;
    let listener = runtime
        .block_on(TcpListener::bind(config.listen))
        .with_context(|| {
            format!(
                "cannot listen on {}: choose another --listen, port 0 for any free one",
                config.listen
            )
        })?;
    let address = listener.local_addr()?;
    let metrics_listener = match config.metrics_listen {
        Some(wanted) => Some(
            runtime
                .block_on(TcpListener::bind(wanted))
                .with_context(|| format!("cannot listen on {wanted}: choose another --metrics-listen"))?,
        ),
        None => None,
    };
    let _lock = match in_use {
        Some(lock) => lock,
        None => lock(&config.data_dir)?,
    };
    let app = Arc::new(open(config)?);
    let _set_once = app.listens_on.set(address.port());
    journal::guard::at_start(&app)?;
    hosts::check_alone(&app)?;
    check_has_worker(&app)?;
    hosts::announce(&app)?;
    match app.catalog.is_shared() {
        true => warn_of_local_stores(&app)?,
        // Nobody else can.
        false => app.duty.take(Moment::now()),
    }
    if cfg!(feature = "planted-defects") {
        tracing::warn!("this build has defects planted for tests: it is not for data that somebody needs");
    }
    reconcile::at_start(&app)?;
    storage::sweep::local(&app)?;
    write_admin(&app, address)?;
    remind_of_keys(&app)?;
    let closing = Arc::new(AtomicBool::new(false));
    let roles = app.config.roles;
    let mut jobs = None;
    if roles.worker {
        jobs = Some(std::thread::Builder::new().name("jobs".to_owned()).spawn({
            let app = app.clone();
            move || worker::run(&app)
        })?);
        std::thread::Builder::new().name("verifier".to_owned()).spawn({
            let (app, closing) = (app.clone(), closing.clone());
            move || backup::proof::job::run(&app, &closing)
        })?;
    }
    let ended = Arc::new(AtomicBool::new(false));
    let presence = match app.catalog.is_shared() {
        true => Some(std::thread::Builder::new().name("presence".to_owned()).spawn({
            let (app, closing, ended) = (app.clone(), closing.clone(), ended.clone());
            move || hosts::job::run(&app, &closing, &ended)
        })?),
        false => None,
    };
    std::thread::Builder::new().name("leases".to_owned()).spawn({
        let app = app.clone();
        move || worker::keep_leases(&app)
    })?;
    std::thread::Builder::new().name("reconciler".to_owned()).spawn({
        let (app, closing) = (app.clone(), closing.clone());
        move || reconcile::run(&app, &closing)
    })?;
    std::thread::Builder::new().name("sweeper".to_owned()).spawn({
        let (app, closing) = (app.clone(), closing.clone());
        move || storage::sweep::run(&app, &closing)
    })?;
    std::thread::Builder::new().name("mirror".to_owned()).spawn({
        let (app, closing) = (app.clone(), closing.clone());
        move || journal::mirror::run(&app, &closing)
    })?;
    if !app.catalog.is_shared() {
        std::thread::Builder::new().name("copies".to_owned()).spawn({
            let (app, closing) = (app.clone(), closing.clone());
            move || journal::copies::job::run(&app, &closing)
        })?;
    }
    std::thread::Builder::new().name("scheduler".to_owned()).spawn({
        let (app, closing) = (app.clone(), closing.clone());
        move || schedule::job::run(&app, &closing)
    })?;
    std::thread::Builder::new().name("hooks".to_owned()).spawn({
        let (app, closing) = (app.clone(), closing.clone());
        move || hook::job::run(&app, &closing)
    })?;
    let scheme = if app.config.tls.is_some() { "https" } else { "http" };
    println!("cachekeep serves {scheme}://{address}");
    if let Some(listener) = &metrics_listener {
        println!("metrics: http://{}/metrics", listener.local_addr()?);
    }
    println!("credentials: {}", app.config.admin_file().display());
    let engines: Vec<String> = app.config.engines.iter().map(ToString::to_string).collect();
    tracing::info!(%address, data_dir = %app.config.data_dir.display(), engines = engines.join(", "), "serving");
    if let Some(listener) = metrics_listener {
        let page = metrics::build(app.clone());
        runtime.spawn(accept::run(page, listener, None, limits::METRICS_CONNECTIONS_MAX));
    }
    let service = router::build(app.clone(), roles.api);
    runtime.block_on(accept::run(service, listener, tls, accept::connections_max()))?;
    closing.store(true, Ordering::SeqCst);
    app.board.close();
    tracing::info!("stopping: engines stay up");
    if let Some(jobs) = jobs {
        // It may be about to begin one.
        let _panicked_and_told = jobs.join();
    }
    if !app.board.drain(app.config.drain) {
        tracing::warn!(
            jobs = app.board.running(),
            "jobs are still running: they are given back, and begin anew elsewhere or at the next start"
        );
        app.board.end_leases();
        app.board.drain(limits::STOP_TIME);
    }
    app.aside.close(Duration::from_secs(10));
    runtime.shutdown_timeout(Duration::from_secs(2));
    ended.store(true, Ordering::SeqCst);
    if let Some(presence) = presence {
        let _panicked_and_told = presence.join();
    }
    Ok(())
}

/// Refuses a node that would leave its own instances alone: nobody else can run their jobs.
fn check_has_worker(app: &App) -> anyhow::Result<()> {
    let living = app.catalog.read(crate::instance::record::all_living)?;
    let ours = living
        .iter()
        .find(|instance| instance.host.as_ref() == Some(&app.host));
    if let Some(instance) = ours {
        anyhow::ensure!(
            app.config.roles.worker,
            "the engines of {} are this node's, and nobody else can look after them: give it the role worker too",
            instance.name
        );
    }
    Ok(())
}

/// Says where backups can be read by the node alone that made them.
fn warn_of_local_stores(app: &App) -> anyhow::Result<()> {
    let (hosts, projects) = app.catalog.read(|tx| {
        let mut local = Vec::new();
        for project in record::projects(tx)? {
            if project.shredded_at.is_none() && storage::record::default_of(tx, &project.id)?.is_none() {
                local.push(project.name);
            }
        }
        Ok::<_, crate::catalog::Error>((hosts::record::all(tx)?.len(), local))
    })?;
    if hosts > 1 && !projects.is_empty() {
        tracing::warn!(
            projects = projects.join(", "),
            "this catalogue has several nodes, and backups of these projects go to the local folder of the node that makes them, \
             where no other one can read them: add a remote store (cachekeep storage add, cachekeep storage default)"
        );
    }
    Ok(())
}

/// Refuses an empty catalogue where there was another one: engines and directories that it does not know would be taken
/// for orphans, and removed.
fn check_not_lost(config: &Config) -> anyhow::Result<()> {
    let catalog = config.catalog_file();
    if config.has_catalog() {
        return Ok(());
    }
    let is_used = |directory: std::path::PathBuf| {
        std::fs::read_dir(directory).is_ok_and(|mut entries| entries.next().is_some())
    };
    anyhow::ensure!(
        !config.admin_file().exists() && !is_used(config.instances_dir()) && !is_used(config.store_dir()),
        "{} is missing, and {} was in use: put it back, or bring its newest copy back with `cachekeep catalog restore-copy`, or make \
         it anew with `cachekeep catalog rebuild --from-store local`; to begin with nothing, choose an empty --data-dir",
        catalog.display(),
        config.data_dir.display()
    );
    Ok(())
}

/// One process per data directory: every running job in the catalogue is then known to be nobody else's.
///
/// # Errors
/// Another process has it.
pub fn lock(data_dir: &Path) -> anyhow::Result<std::fs::File> {
    std::fs::create_dir_all(data_dir)
        .with_context(|| format!("cannot make {}: choose another --data-dir", data_dir.display()))?;
    let file = std::fs::OpenOptions::new()
        .create(true)
        .truncate(false)
        .write(true)
        .open(data_dir.join("lock"))?;
    file.try_lock().map_err(|_| {
        anyhow::anyhow!(
            "another cachekeep runs on {}: stop it, or use another --data-dir",
            data_dir.display()
        )
    })?;
    Ok(file)
}

/// Makes the first project with its credentials, once; writes where the service listens, at every start.
fn write_admin(app: &App, address: SocketAddr) -> anyhow::Result<()> {
    let path = app.config.admin_file();
    let scheme = if app.config.tls.is_some() { "https" } else { "http" };
    let reachable = if address.ip().is_unspecified() {
        SocketAddr::new(
            if address.is_ipv4() {
                "127.0.0.1".parse()?
            } else {
                "::1".parse()?
            },
            address.port(),
        )
    } else {
        address
    };
    let endpoint = format!("{scheme}://{reachable}");
    let known: Option<serde_json::Value> = std::fs::read(&path)
        .ok()
        .and_then(|bytes| serde_json::from_slice(&bytes).ok());
    let admin = match known {
        Some(mut admin) => {
            let project = admin["project_id"].as_str().and_then(ProjectId::parse);
            let is_ours = match &project {
                Some(id) => app.catalog.read(|tx| record::project(tx, id))?.is_some(),
                None => false,
            };
            anyhow::ensure!(
                is_ours,
                "{} names a project that this catalogue does not know: put the catalog.sqlite back that it belongs to, \
                 or move it away to have new credentials made",
                path.display()
            );
            admin["endpoint"] = serde_json::json!(endpoint);
            admin
        }
        None => {
            // A crash between these steps leaves a project without a file: it is found here by its name.
            let region = &app.config.region;
            let existing = app
                .catalog
                .read(record::projects)?
                .into_iter()
                .find(|project| project.name == *region);
            let project = match existing {
                Some(project) => project,
                None => make_project(app, region)?,
            };
            let user = "admin";
            let exists = app
                .catalog
                .read(|tx| record::account_by_name(tx, user))?
                .is_some();
            let user = if exists {
                format!("admin-{}", secrets::random_hex(3))
            } else {
                user.to_owned()
            };
            let password = make_account(app, &project.id, &user)?;
            let (ak, sk) = make_access_key(app, &project.id)?;
            serde_json::json!({
                "endpoint": endpoint, "region": region, "project": project.name, "project_id": project.id.as_str(),
                "ak": ak, "sk": sk, "user": user, "password": password, "domain": DOMAIN,
            })
        }
    };
    secrets::write_private(
        &path,
        format!("{}\n", serde_json::to_string_pretty(&admin)?).as_bytes(),
    )?;
    Ok(())
}
