//! The command line: `serve`, verbs on the data directory, verbs that call the API, and `inspect` for files.

mod admin;
mod after_failover;
mod alone;
mod attach;
mod audit;
mod catalog;
mod catalog_copies;
mod client;
mod closed_pipe;
mod copy;
mod diff;
mod export;
mod hook;
mod import;
mod inspect;
mod keys;
mod migrate;
mod nodes;
mod objective;
mod place;
mod remote;
mod replay;
mod restores;
mod schedule;
mod selectors;
mod source;
mod storage;
mod target;
mod verify;
mod watch;

use std::io::IsTerminal;
use std::net::{IpAddr, SocketAddr, ToSocketAddrs};
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, Parser, Subcommand, ValueEnum};

use crate::config::{self, Config, Roles};
use crate::egress::{Allowed, Network};
use crate::limits;

/// Runs Redis instances, backs them up, restores them, and keeps a truthful record of every restore.
#[derive(Parser)]
#[command(
    version,
    after_help = "Start here:\n  \
        cachekeep serve                                   run the service\n  \
        cachekeep instance create --name cache1 --capacity 1\n  \
        cachekeep backup create cache1 --wait\n  \
        cachekeep restore create cache1 --backup latest --wait\n  \
        cachekeep restore list cache1\n\n\
        The verbs find a service that runs on this machine through <data-dir>/admin.json."
)]
#[command(next_line_help = false)]
struct Cli {
    #[command(flatten)]
    global: Global,
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Args, Clone)]
#[command(next_help_heading = "Global options")]
pub(crate) struct Global {
    /// Where the service keeps everything, and where verbs find its admin.json
    #[arg(long, global = true, env = "CACHEKEEP_DATA_DIR", value_name = "DIR")]
    data_dir: Option<PathBuf>,
    /// table for people, json for programs
    #[arg(short, long, global = true, value_enum, default_value_t = Output::Table)]
    output: Output,
    /// Say nothing but the result
    #[arg(short, long, global = true)]
    quiet: bool,
    /// Act with this access key: JSON with ak, sk and project_id, as `key create -o json` prints it [default: admin.json]
    #[arg(long, global = true, env = "CACHEKEEP_CREDENTIALS", value_name = "FILE")]
    credentials: Option<PathBuf>,
}

impl Global {
    fn data_dir(&self) -> PathBuf {
        self.data_dir.clone().unwrap_or_else(config::default_data_dir)
    }
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Output {
    Table,
    Json,
}

#[derive(Subcommand)]
enum Verb {
    /// Run the service: API, jobs and managed engines
    Serve(Serve),
    /// Make, list, revoke projects (works on the data directory, no service needed)
    #[command(subcommand)]
    Project(admin::ProjectVerb),
    /// Make, list, revoke users with passwords (works on the data directory)
    #[command(subcommand)]
    User(admin::UserVerb),
    /// Make, list, revoke access keys (works on the data directory)
    #[command(subcommand)]
    Key(admin::KeyVerb),
    /// Add, list, probe object stores and choose where backups go (works on the data directory)
    #[command(subcommand)]
    Storage(storage::StorageVerb),
    /// Say how far the catalogue's mirror is; make a lost catalogue anew from a store
    #[command(subcommand)]
    Catalog(catalog::CatalogVerb),
    /// Bring the catalogue of an older version of this program to the present one
    Migrate(migrate::Migrate),
    /// List the nodes that share a catalogue; give one up that is gone
    #[command(subcommand)]
    Node(nodes::NodeVerb),
    /// Create, attach, list, show, restart, flush, delete instances
    #[command(subcommand)]
    Instance(remote::InstanceVerb),
    /// Create, list, show, delete, download backups; or back up a server without a service
    Backup(BackupNoun),
    /// Take an RDB file of another server as a backup of an instance (works on the data directory)
    Import(import::Import),
    /// Restore, list the records of restores, undo; or restore into a directory without a service
    Restore(Box<RestoreNoun>),
    /// Have instances backed up and backups proven by the clock
    #[command(subcommand)]
    Schedule(schedule::ScheduleVerb),
    /// Say who changed what, and prove that nothing of that was changed (works on the data directory)
    #[command(subcommand)]
    Audit(audit::AuditVerb),
    /// Have a URL or a program told how backups, restores and drills end (works on the data directory)
    #[command(subcommand)]
    Hook(hook::HookVerb),
    /// Say which backups would go by the rules, and why
    #[command(subcommand)]
    Retention(schedule::RetentionVerb),
    /// Validate an RDB file or a backup to its last byte and say what is in it
    Inspect(inspect::Inspect),
    /// Write the content of an RDB file or a backup as JSON
    Export(export::Export),
    /// Show one key of an RDB file or a backup
    Get(export::Get),
    /// Say which keys two files, backups or living servers do not have in common
    Diff(diff::Diff),
    /// Give the clients' address to a replica that a Sentinel has promoted: Sentinels run this
    #[command(hide = true)]
    AfterFailover(after_failover::AfterFailover),
    /// Answer every request with the same bytes: the bare route that benchmarks compare with
    #[command(hide = true)]
    BenchEcho(BenchEcho),
}

/// With a verb: backups of the service's instances. Without one, with --from and --to: a backup of any server, without a
/// service
#[derive(Args)]
#[command(
    subcommand_negates_reqs = true,
    after_help = "Without a service, `cachekeep backup --from ... --to ...` captures the server as a replica would, validates the \
    snapshot to its last byte, and stores it compressed, encrypted and signed. The keys are files: --identity, made where it \
    is missing, opens the backup; beside it lies the key that signs.\n\n\
    Examples:\n  \
    cachekeep backup create cache1 --wait\n  \
    cachekeep backup --from redis://10.0.0.5:6379 --to /srv/backups --identity ~/redis.key\n  \
    cachekeep backup --from rediss://ops@db.example.com --ca ca.pem --recipient age1... --to s3://my-backups/redis \\\n    \
        --endpoint https://s3.eu-central-1.amazonaws.com --region eu-central-1 --access-key AKIA... --secret-key-file secret.txt"
)]
struct BackupNoun {
    #[command(subcommand)]
    verb: Option<remote::BackupVerb>,
    #[command(flatten)]
    alone: alone::BackupAlone,
}

/// With a verb: restores of the service's instances. Without one, with --from and --to: a backup becomes a directory on
/// which a redis-server starts, or is applied to a server or cluster that runs, without a service
#[derive(Args)]
#[command(
    subcommand_negates_reqs = true,
    after_help = "Without a service, `cachekeep restore --from ... --to ...` checks signature and digests, validates the RDB to its \
    last byte, and only then makes the directory whole. A backup of the service is opened the same way, by its folder in \
    the store, the identity that `cachekeep project key` prints, and <data-dir>/keys/signing.key.\n\n\
    To a server, --to redis://..., what is applied may also be an RDB file or the id of a backup. All of it is validated before \
    the first byte is sent. Each key is written in one step, so that readers of the target see the old or the new value and \
    never a part; keys of the backup appear one after the other, and other keys stay, with --mode replace until all are there. \
    Of any node of a cluster the others are found, and slots that move and nodes that fail are followed. Every key is counted.\n\n\
    Exit status: 0 done, 1 not done, and what the target holds is told, 2 usage, 3 done but for the keys that are told.\n\n\
    Examples:\n  \
    cachekeep restore create cache1 --backup latest --wait\n  \
    cachekeep restore --from dump.rdb --to redis://10.0.0.5:6379 --dry-run --on-conflict skip\n  \
    cachekeep restore --from /srv/backups/20260102030405-1a2b3c4d --to redis://10.0.0.5:7000 --identity ~/redis.key \\\n    \
        --match 'user:*' --rewrite user:=restored: --max-latency-ms 5 --journal restore.journal\n  \
    cachekeep restore --from /srv/backups/20260102030405-1a2b3c4d --to /srv/redis --identity ~/redis.key\n  \
    redis-server --dir /srv/redis"
)]
struct RestoreNoun {
    #[command(subcommand)]
    verb: Option<restores::RestoreVerb>,
    #[command(flatten)]
    alone: alone::RestoreAlone,
}

#[derive(Args)]
#[command(after_help = "Environment:\n  \
        CACHEKEEP_LOG           what is logged: error, warn, info (default), debug, or target=level pairs\n  \
        CACHEKEEP_MASTER_KEY    64 hex digits that replace <data-dir>/keys/master.key\n  \
        CACHEKEEP_REDIS_SERVER  the engine of instances that ask for none [default: redis-server of the PATH]\n\n\
        Examples:\n  \
        cachekeep serve\n  \
        cachekeep serve --data-dir /srv/cachekeep --listen 0.0.0.0:8635 --tls-cert cert.pem --tls-key key.pem\n  \
        CACHEKEEP_LOG=debug cachekeep serve --log json --undo-keep 3600")]
struct Serve {
    /// Address (or a name of this machine) and port of the API; port 0 takes any free one (it is written to admin.json)
    #[arg(long, env = "CACHEKEEP_LISTEN", default_value = "127.0.0.1:8635", value_name = "ADDRESS:PORT", value_parser = address)]
    listen: SocketAddr,
    /// Keep the catalogue in this PostgreSQL (13 or newer), in a database or schema of its own, instead of in a file of the
    /// data directory: postgresql://USER:PASSWORD@HOST/DATABASE?sslmode=require. Said once, it is kept in catalog.url
    #[arg(long, env = "CACHEKEEP_CATALOG", value_name = "URL", hide_env_values = true)]
    catalog: Option<String>,
    /// Address and port on which Prometheus finds /metrics, by plain http and without a credential [default: none]
    #[arg(long, env = "CACHEKEEP_METRICS_LISTEN", value_name = "ADDRESS:PORT", value_parser = address)]
    metrics_listen: Option<SocketAddr>,
    /// Certificate chain, PEM; with --tls-key the API speaks https
    #[arg(long, requires = "tls_key", value_name = "FILE")]
    tls_cert: Option<PathBuf>,
    /// Private key of the certificate, PEM
    #[arg(long, requires = "tls_cert", value_name = "FILE")]
    tls_key: Option<PathBuf>,
    /// Allow plain http beyond this machine: passwords and tokens then cross the network in clear
    #[arg(long)]
    insecure: bool,
    /// Name of the region and of the first project
    #[arg(long, env = "CACHEKEEP_REGION", default_value = "local")]
    region: String,
    /// Address that managed engines listen on
    #[arg(long, default_value = "127.0.0.1", value_name = "ADDRESS")]
    engine_bind: IpAddr,
    /// Ports for instances that ask for none: FIRST-LAST
    #[arg(long, default_value = "21000-21999", value_name = "RANGE", value_parser = port_range)]
    engine_ports: (u16, u16),
    /// Another engine that instances can be of: its server program, or a directory with several. May be given again [default:
    /// the redis-server and the valkey-server of the PATH]
    #[arg(long, value_name = "PROGRAM")]
    engine: Vec<PathBuf>,
    /// User that engines run as where the service is root [default: redis, else nobody]
    #[arg(long, value_name = "USER")]
    engine_user: Option<String>,
    /// Seconds that the data from before a restore is kept for undo (it occupies memory)
    #[arg(long, default_value_t = 24 * 3600, value_name = "SECONDS")]
    undo_keep: i64,
    /// Seconds that a job goes on trying while a remote store fails; a capture goes on into its spool meanwhile
    #[arg(long, default_value_t = 300, value_name = "SECONDS")]
    store_patience: u64,
    /// Let callers of the API import from URLs: `public` for public addresses by https on port 443, ADDRESS[/BITS][:PORT] for
    /// these by http too; never from a port of the service's own. May be given again [default: no URL]
    #[arg(long, value_name = "ADDRESS")]
    import_allow: Vec<Allowed>,
    /// Let callers of the API attach servers at ADDRESS[/BITS][:PORT], every node and Sentinel of them; never a port of the
    /// service's own. May be given again [default: no server]
    #[arg(long, value_name = "ADDRESS")]
    attach_allow: Vec<Network>,
    /// What this node does: api, worker (it runs jobs and has instances), scheduler (begins what is due, one at a time of those who
    /// may), or all. Several may be given, separated by commas. Needs --catalog, for nodes share one
    #[arg(
        long,
        value_enum,
        value_delimiter = ',',
        default_value = "all",
        value_name = "ROLE"
    )]
    role: Vec<Role>,
    /// What this node is called among those that share the catalogue [default: the machine's name]
    #[arg(long, value_name = "NAME")]
    node_name: Option<String>,
    /// Folder of master.key and signing.key, which are the same on all nodes [default: keys below the data directory]
    #[arg(long, value_name = "FOLDER")]
    keys: Option<PathBuf>,
    /// Backups, restores and other jobs that this node works on at once, 64 at most; each takes up to 64 MiB. An instance has one at a
    /// time, and the project of which the fewest run comes first; scheduled backups leave one place free
    #[arg(long, default_value_t = limits::JOBS_AT_ONCE, value_parser = jobs, value_name = "N")]
    jobs: usize,
    /// Jobs of one project that run at once on all nodes (which should be given the same) [default: as many as find a place]
    #[arg(long, value_name = "N")]
    jobs_per_project: Option<std::num::NonZeroUsize>,
    /// Seconds after which a job of a node that has died, or does not reach the catalogue, is taken up by another one. The node stops
    /// by itself after two thirds of it
    #[arg(long, default_value_t = limits::LEASE.as_secs(), value_parser = clap::value_parser!(u64).range(3..=3600), value_name = "SECONDS")]
    lease: u64,
    /// Seconds that jobs may go on when the service is told to stop; those that have not ended then are taken up by another
    /// node, or at the next start
    #[arg(long, default_value_t = 10, value_name = "SECONDS")]
    drain: u64,
    /// As DCS itself: single-node instances have no backup and restore (DCS.4086), save_days end at 7, deleted
    /// instances are not listed, answers of v2 and v1.0 have no ext
    #[arg(long)]
    strict_dcs: bool,
    /// How the log is written
    #[arg(long, value_enum, default_value_t = LogForm::Text)]
    log: LogForm,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Role {
    All,
    Api,
    Worker,
    Scheduler,
}

#[derive(Clone, Copy, ValueEnum)]
enum LogForm {
    Text,
    Json,
}

#[derive(Args)]
struct BenchEcho {
    /// Address and port
    #[arg(long)]
    listen: SocketAddr,
    /// File whose bytes are answered
    #[arg(long)]
    file: PathBuf,
}

/// An address, or that of a name: where it has several, the one that most clients try first is not known, so IPv4 as
/// everywhere else here.
fn address(text: &str) -> Result<SocketAddr, String> {
    if let Ok(address) = text.parse() {
        return Ok(address);
    }
    let wanted = "an address and a port are wanted, like 127.0.0.1:8635, [::1]:8635 or localhost:8635";
    let is_split = text
        .rsplit_once(':')
        .is_some_and(|(host, port)| !host.is_empty() && port.parse::<u16>().is_ok());
    if !is_split {
        return Err(wanted.to_owned());
    }
    let found = text
        .to_socket_addrs()
        .map_err(|error| format!("the name is not known here ({error}); {wanted}"))?;
    let found: Vec<SocketAddr> = found.collect();
    let first = found.iter().find(|address| address.is_ipv4()).or(found.first());
    first
        .copied()
        .ok_or_else(|| format!("the name has no address; {wanted}"))
}

fn jobs(text: &str) -> Result<usize, String> {
    let number = text.parse().ok();
    let number = number.filter(|jobs| (1..=limits::JOBS_AT_ONCE_MAX).contains(jobs));
    number.ok_or_else(|| {
        format!(
            "{text}: a number from 1 to {} is wanted",
            limits::JOBS_AT_ONCE_MAX
        )
    })
}

fn port_range(text: &str) -> Result<(u16, u16), String> {
    let wrong = || format!("{text}: a range like 21000-21999 is wanted");
    let (first, last) = text.split_once('-').ok_or_else(wrong)?;
    let (first, last) = (
        first.parse().map_err(|_| wrong())?,
        last.parse().map_err(|_| wrong())?,
    );
    if first == 0 || first > last {
        Err(wrong())
    } else {
        Ok((first, last))
    }
}

/// Runs one verb.
pub fn main() -> ExitCode {
    closed_pipe::ends_quietly(run)
}

fn run() -> ExitCode {
    let cli = Cli::parse();
    let global = cli.global;
    let done = match cli.verb {
        Verb::Serve(serve) => run_service(&global, serve).map(|()| ExitCode::SUCCESS),
        Verb::Project(verb) => admin::project(&global, &verb).map(|()| ExitCode::SUCCESS),
        Verb::User(verb) => admin::user(&global, &verb).map(|()| ExitCode::SUCCESS),
        Verb::Key(verb) => admin::key(&global, &verb).map(|()| ExitCode::SUCCESS),
        Verb::Storage(verb) => storage::storage(&global, &verb).map(|()| ExitCode::SUCCESS),
        Verb::Catalog(verb) => catalog::catalog(&global, &verb).map(|()| ExitCode::SUCCESS),
        Verb::Migrate(verb) => migrate::run(&global, &verb).map(|()| ExitCode::SUCCESS),
        Verb::Node(verb) => nodes::node(&global, &verb).map(|()| ExitCode::SUCCESS),
        Verb::Instance(verb) => remote::instance(&global, &verb),
        Verb::Backup(noun) => match &noun.verb {
            Some(verb) => remote::backup(&global, verb),
            None => alone::backup(&global, &noun.alone).map(|()| ExitCode::SUCCESS),
        },
        Verb::Import(verb) => import::run(&global, &verb).map(|()| ExitCode::SUCCESS),
        Verb::Restore(noun) => match &noun.verb {
            Some(verb) => restores::restore(&global, verb),
            None => alone::restore(&global, &noun.alone),
        },
        Verb::Schedule(verb) => schedule::schedule(&global, &verb),
        Verb::Audit(verb) => audit::audit(&global, &verb),
        Verb::Hook(verb) => hook::hook(&global, &verb),
        Verb::Retention(verb) => schedule::retention(&global, &verb),
        Verb::Inspect(verb) => Ok(inspect::run(&global, &verb)),
        Verb::Export(verb) => Ok(export::run(&global, &verb)),
        Verb::Get(verb) => Ok(export::get(&global, &verb)),
        Verb::Diff(verb) => Ok(diff::run(&global, &verb)),
        Verb::AfterFailover(verb) => Ok(after_failover::run(&verb)),
        Verb::BenchEcho(verb) => bench_echo(&verb).map(|()| ExitCode::SUCCESS),
    };
    match done {
        Ok(code) => code,
        Err(error) => {
            eprintln!("cachekeep: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run_service(global: &Global, serve: Serve) -> anyhow::Result<()> {
    start_log(serve.log);
    let config = configure(global, serve)?;
    crate::serve::run(config)
}

fn start_log(form: LogForm) {
    let filter = tracing_subscriber::EnvFilter::try_from_env("CACHEKEEP_LOG")
        .unwrap_or_else(|_| tracing_subscriber::EnvFilter::new("info"));
    let base = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_ansi(std::io::stderr().is_terminal())
        .with_writer(std::io::stderr);
    match form {
        LogForm::Text => base.init(),
        LogForm::Json => base.json().init(),
    }
}

fn configure(global: &Global, serve: Serve) -> anyhow::Result<Config> {
    let tls = serve.tls_cert.zip(serve.tls_key);
    if let Some(address) = serve.metrics_listen {
        anyhow::ensure!(
            address.ip().is_loopback() || serve.insecure,
            "refusing metrics beyond this machine ({address}): they name every project's instances to whoever asks; listen on \
             127.0.0.1, or say --insecure"
        );
    }
    anyhow::ensure!(
        tls.is_some() || serve.listen.ip().is_loopback() || serve.insecure,
        "refusing plain http beyond this machine ({}): give --tls-cert and --tls-key, or say --insecure",
        serve.listen
    );
    anyhow::ensure!(
        serve.undo_keep >= 0,
        "--undo-keep takes a number of seconds, 0 or more"
    );
    let has = |role| serve.role.contains(&role) || serve.role.contains(&Role::All);
    let roles = Roles {
        api: has(Role::Api),
        worker: has(Role::Worker),
        scheduler: has(Role::Scheduler),
    };
    let engines = match roles.worker {
        true => engine::process::programs(&serve.engine)?,
        false => Vec::new(),
    };
    let data_dir = global.data_dir();
    let data_dir = std::path::absolute(&data_dir).unwrap_or(data_dir);
    let database = match serve.catalog {
        Some(url) => Some(url),
        None => config::known_database(&data_dir)?,
    };
    anyhow::ensure!(
        database.is_some() || roles == Roles::ALL,
        "--role shares the work among the nodes of a catalogue, and one in a file has one node: give --catalog, or leave --role out"
    );
    Ok(Config {
        data_dir,
        database,
        listen: serve.listen,
        metrics_listen: serve.metrics_listen,
        tls,
        region: serve.region,
        engine_bind: serve.engine_bind,
        engine_ports: serve.engine_ports.0..=serve.engine_ports.1,
        engines,
        run_as: config::engine_user(serve.engine_user.as_deref())?,
        undo_keep_seconds: serve.undo_keep,
        store_patience: std::time::Duration::from_secs(serve.store_patience),
        import_allowed: serve.import_allow,
        attach_allowed: serve.attach_allow,
        node_name: serve.node_name,
        keys_dir: serve.keys,
        roles,
        jobs_at_once: serve.jobs,
        jobs_per_project: serve.jobs_per_project.map(std::num::NonZeroUsize::get),
        lease: std::time::Duration::from_secs(serve.lease),
        drain: std::time::Duration::from_secs(serve.drain),
        strict_dcs: serve.strict_dcs,
    })
}

fn bench_echo(verb: &BenchEcho) -> anyhow::Result<()> {
    let body = axum::body::Bytes::from(std::fs::read(&verb.file)?);
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    runtime.block_on(async {
        let listener = tokio::net::TcpListener::bind(verb.listen).await?;
        println!("{}", listener.local_addr()?);
        let answer = move || {
            let body = body.clone();
            async move { ([(axum::http::header::CONTENT_TYPE, "application/json")], body) }
        };
        let router = axum::Router::new().fallback(answer);
        loop {
            let (stream, _) = listener.accept().await?;
            stream.set_nodelay(true)?;
            let service = hyper_util::service::TowerToHyperService::new(router.clone());
            tokio::spawn(async move {
                let _ended = hyper::server::conn::http1::Builder::new()
                    .serve_connection(hyper_util::rt::TokioIo::new(stream), service)
                    .await;
            });
        }
    })
}
