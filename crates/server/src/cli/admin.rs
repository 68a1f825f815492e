//! Verbs on the data directory: whoever may read its keys is the administrator.

use anyhow::Context;
use clap::Subcommand;
use serde_json::json;

use super::{Global, Output, keys};
use crate::app::App;
use crate::audit::{self, Act};
use crate::backup::quota_record as quotas;
use crate::config::Config;
use crate::identity::record::{self, DOMAIN, Project};
use crate::ids::{InstanceId, Moment};
use crate::instance::record::{self as instances, Instance};
use crate::serve;

/// Verbs on projects.
#[derive(Subcommand)]
pub(crate) enum ProjectVerb {
    /// Make a project with an archive key of its own
    #[command(
        after_help = "Example:\n  cachekeep project create team2\n  cachekeep key create --project team2"
    )]
    Create {
        /// Its name, unique
        name: String,
    },
    /// List all projects
    #[command(after_help = "Example:\n  cachekeep project list -o json")]
    List,
    /// Revoke every user, token and access key of a project, at once; its instances and records stay
    #[command(after_help = "Example:\n  cachekeep project revoke team2")]
    Revoke {
        /// Name or id of the project
        project: String,
    },
    /// Give a project a new archive key: backups from now on are closed with it, those that exist stay open with theirs
    #[command(
        after_help = "Print the keys again afterwards: a copy from before does not open what is made from now on.\n\n\
        Example:\n  cachekeep project rotate-key team2\n  (umask 077; cachekeep project key team2 > key)"
    )]
    RotateKey {
        /// Name or id of the project
        project: String,
    },
    /// Seal a project's archive keys to a recipient of your own too, now and after each change of the key: objects in the
    /// project's store that `age -d -i YOUR-KEY` opens
    #[command(
        after_help = "Your key is made with `age-keygen` and never comes here; keep it elsewhere than the store.\n\n\
        Examples:\n  cachekeep project escrow local --recipient age1ql3z7hjy54pw3hyww5ayyfg7zqgvc7w3j2elw8zmrj2kg5sfn9aqmcac8p\n  \
        cachekeep project escrow local --remove"
    )]
    Escrow(keys::Escrow),
    /// Destroy every private key of a project: no backup of it can be read ever again, wherever a copy lies
    #[command(
        after_help = "Says what would be lost, and does nothing, until it is confirmed with the project's name. Its instances \
        must be deleted before. Its credentials are revoked, its records stay, its objects are removed from the stores. What \
        somebody has printed or taken from escrow is out of reach.\n\nExample:\n  \
        cachekeep project shred team2\n  cachekeep project shred team2 --lose-all-backups-of team2"
    )]
    Shred(keys::Shred),
    /// Say what the archives of a project take, and give it a limit: what would need more is not begun, or not gone on with
    #[command(
        after_help = "A backup reserves what it is expected to take when it is accepted, and more before it stores more; what it did not need \
        it gives back at its end. A copy counts as another backup. What is stored already stays, also where it is more than the limit. \
        Kept generations lie in memory and do not count.\n\n\
        Examples:\n  cachekeep project quota team2 --bytes 50000000000\n  cachekeep project quota team2\n  \
        cachekeep project quota team2 --unlimited"
    )]
    Quota {
        /// Name or id of the project
        project: String,
        /// The limit
        #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(..=i64::MAX as u64))]
        bytes: Option<u64>,
        /// No limit
        #[arg(long, conflicts_with = "bytes")]
        unlimited: bool,
    },
    /// Print the age identities that open every backup of a project, the present one first: with them age and zstd read
    /// the backups without cachekeep
    #[command(
        visible_alias = "export-key",
        after_help = "Keep it apart from the store: whoever has it reads every backup of the project, and without it \
        (and without keys/master.key) nobody does.\n\n\
        Example:\n  (umask 077; cachekeep project key local > key)\n  age -d -i key SEGMENT | zstd -d > part.rdb"
    )]
    Key {
        /// Name or id of the project
        project: String,
    },
}

/// Verbs on users.
#[derive(Subcommand)]
pub(crate) enum UserVerb {
    /// Make a user of a project; its random password is printed once
    #[command(after_help = "Example:\n  cachekeep user create --project local --name ci")]
    Create {
        /// Name or id of the project
        #[arg(long)]
        project: String,
        /// The user's name, unique
        #[arg(long)]
        name: String,
    },
    /// List all users
    #[command(after_help = "Example:\n  cachekeep user list")]
    List,
    /// Revoke a user and all its tokens, at once
    #[command(after_help = "Example:\n  cachekeep user revoke ci")]
    Revoke {
        /// The user's name
        name: String,
    },
}

/// Verbs on access keys.
#[derive(Subcommand)]
pub(crate) enum KeyVerb {
    /// Make an access key of a project; its secret half is printed once
    #[command(after_help = "Examples:\n  cachekeep key create --project local\n  \
        (umask 077; cachekeep key create --project team2 -o json > team2.json)\n  \
        cachekeep --credentials team2.json instance list")]
    Create {
        /// Name or id of the project
        #[arg(long)]
        project: String,
    },
    /// List all access keys
    #[command(after_help = "Example:\n  cachekeep key list")]
    List,
    /// Revoke an access key, at once
    #[command(after_help = "Example:\n  cachekeep key revoke QTWAOYTTINDUT2QVKYUC")]
    Revoke {
        /// The key's id (AK)
        ak: String,
    },
}

/// Opens the data directory as its administrator.
///
/// # Errors
/// It is none.
pub(super) fn open(global: &Global) -> anyhow::Result<App> {
    let config = administer(global)?;
    anyhow::ensure!(
        config.has_catalog(),
        "{} is no data directory of cachekeep: name it with --data-dir, or run `cachekeep serve` once",
        config.data_dir.display()
    );
    audit::act(Act {
        at: Moment::now(),
        project: None,
        who: format!("operator with user id {}", rustix::process::getuid().as_raw()),
        what: verb_of(std::env::args().skip(1)),
        subject: String::new(),
    });
    serve::open(config)
}

/// Noun and verb of a command line: nothing of its options, which may hold secrets.
fn verb_of(words: impl Iterator<Item = String>) -> String {
    let nouns = [
        "project", "user", "key", "storage", "catalog", "backup", "hook", "import", "node",
    ];
    let mut words = words.skip_while(|word| !nouns.contains(&word.as_str()));
    let noun = words.next().unwrap_or_default();
    let verb = words
        .next()
        .filter(|word| word.bytes().all(|byte| byte.is_ascii_lowercase()));
    match verb {
        Some(verb) if noun != "import" => format!("{noun} {verb}"),
        _ => noun,
    }
}

/// Settings of verbs that work on the data directory: they start no engine and listen nowhere.
///
/// # Errors
/// The file that says where the catalogue is cannot be read.
pub(super) fn administer(global: &Global) -> anyhow::Result<Config> {
    let data_dir = global.data_dir();
    Ok(Config {
        database: crate::config::known_database(&data_dir)?,
        data_dir,
        listen: "127.0.0.1:0".parse()?,
        metrics_listen: None,
        tls: None,
        region: String::new(),
        engine_bind: "127.0.0.1".parse()?,
        engine_ports: 1..=1,
        engines: Vec::new(),
        run_as: None,
        undo_keep_seconds: 0,
        store_patience: engine::Patience::JOB.total,
        import_allowed: Vec::new(),
        attach_allowed: Vec::new(),
        node_name: None,
        keys_dir: None,
        roles: crate::config::Roles::ALL,
        jobs_at_once: 0,
        jobs_per_project: None,
        lease: crate::limits::LEASE,
        drain: std::time::Duration::ZERO,
        strict_dcs: false,
    })
}

/// The project of that name or id.
///
/// # Errors
/// There is none.
pub(super) fn find_project(app: &App, name: &str) -> anyhow::Result<Project> {
    let all = app.catalog.read(record::projects)?;
    let found = all
        .into_iter()
        .find(|project| project.name == name || project.id.as_str() == name);
    found.ok_or_else(|| anyhow::anyhow!("there is no project {name}: `cachekeep project list` shows all"))
}

/// The instance of that name or id, of any project; a deleted one by its id.
///
/// # Errors
/// There is none, or several.
pub(super) fn find_instance(app: &App, named: &str) -> anyhow::Result<Instance> {
    if let Some(id) = InstanceId::parse(named) {
        let found = app.catalog.read(|tx| instances::load(tx, &id))?;
        return found.with_context(|| format!("there is no instance {named}"));
    }
    let mut found = app.catalog.read(instances::all_living)?;
    found.retain(|instance| instance.name == named);
    anyhow::ensure!(
        found.len() < 2,
        "several instances are named {named}: use the id, `cachekeep instance list` shows it"
    );
    found
        .pop()
        .with_context(|| format!("there is no instance {named}: `cachekeep instance list` shows all"))
}

/// Prints rows for people or programs.
pub(super) fn print(global: &Global, columns: &[&str], rows: &[serde_json::Value]) {
    super::target::print_rows(global, columns, rows, &json!(rows));
}

/// Prints one thing for people or programs.
pub(super) fn print_one(global: &Global, value: &serde_json::Value) {
    match global.output {
        Output::Json => println!("{value:#}"),
        Output::Table => {
            for (name, value) in value.as_object().into_iter().flatten() {
                println!(
                    "{name}: {}",
                    value.as_str().map_or_else(|| value.to_string(), str::to_owned)
                );
            }
        }
    }
}

/// `cachekeep project ...`
///
/// # Errors
/// No data directory, name taken.
pub(crate) fn project(global: &Global, verb: &ProjectVerb) -> anyhow::Result<()> {
    let app = open(global)?;
    match verb {
        ProjectVerb::Create { name } => {
            let made = serve::make_project(&app, name)?;
            print_one(
                global,
                &json!({"project_id": made.id.as_str(), "project": made.name, "domain": DOMAIN}),
            );
        }
        ProjectVerb::List => {
            let rows: Vec<_> = app
                .catalog
                .read(record::projects)?
                .iter()
                .map(|p| {
                    json!({"project_id": p.id.as_str(), "project": p.name, "created_at": p.created_at.iso(),
                           "key": keys::whereabouts(p), "escrow": p.escrow})
                })
                .collect();
            print(global, &["project_id", "project", "created_at", "key"], &rows);
        }
        ProjectVerb::Revoke { project } => {
            let project = find_project(&app, project)?;
            let revoked = app
                .catalog
                .write(|tx| record::revoke_project(tx, &project.id, Moment::now()))?;
            print_one(
                global,
                &json!({"project": project.name, "revoked_credentials": revoked}),
            );
        }
        ProjectVerb::RotateKey { project } => {
            let project = find_project(&app, project)?;
            anyhow::ensure!(
                project.shredded_at.is_none(),
                "the keys of {} were destroyed, and it gets no new ones: make another project",
                project.name
            );
            let recipient = serve::rotate_key(&app, &project.id, Moment::now())?;
            print_one(
                global,
                &json!({"project": project.name, "project_id": project.id.as_str(), "recipient": recipient.to_string()}),
            );
            if !global.quiet {
                eprintln!(
                    "cachekeep: print the keys again and keep them elsewhere: cachekeep project key {}",
                    project.name
                );
            }
        }
        ProjectVerb::Key { project } => {
            let project = find_project(&app, project)?;
            print_identity(global, &app, &project)?;
            app.catalog.write(|tx| record::note_printed(tx, &project.id))?;
        }
        ProjectVerb::Quota {
            project,
            bytes,
            unlimited,
        } => {
            let project = find_project(&app, project)?;
            if bytes.is_some() || *unlimited {
                app.catalog
                    .write(|tx| quotas::set_limit(tx, &project.id, *bytes))?;
            }
            let standing = app.catalog.read(|tx| quotas::standing(tx, &project.id))?;
            let taken = standing.used.saturating_add(standing.reserved);
            print_one(
                global,
                &json!({"project": project.name, "project_id": project.id.as_str(), "limit_bytes": standing.limit,
                        "used_bytes": standing.used, "reserved_bytes": standing.reserved,
                        "free_bytes": standing.limit.map(|limit| limit.saturating_sub(taken))}),
            );
        }
        ProjectVerb::Escrow(verb) => keys::escrow(global, &app, verb)?,
        ProjectVerb::Shred(verb) => keys::shred(global, &app, verb)?,
    }
    Ok(())
}

/// Prints the project's age identities as the file that `age -i` takes; the warning goes beside it, not into it.
fn print_identity(global: &Global, app: &App, project: &Project) -> anyhow::Result<()> {
    anyhow::ensure!(
        project.shredded_at.is_none(),
        "the keys of {} were destroyed: nothing opens its backups",
        project.name
    );
    let place = format!("project.identity:{}", project.id);
    let mut identities = Vec::new();
    for (_, sealed) in app.catalog.read(|tx| record::archive_keys(tx, &project.id))? {
        let text = app
            .vault
            .master
            .open(&place, &sealed)
            .context("the project's key does not open: is this the master key that sealed it?")?;
        identities.push(engine::keys::Identity::parse(&text)?);
    }
    let (present, before) = identities
        .split_first()
        .context("the project has no archive key")?;
    if !global.quiet {
        eprintln!(
            "cachekeep: whoever has this key reads every backup of the project {}: keep it secret, and elsewhere than the store",
            project.name
        );
    }
    match global.output {
        Output::Json => {
            let old: Vec<_> = before
                .iter()
                .map(|identity| {
                    json!({"recipient": identity.recipient().to_string(), "identity": identity.to_secret().expose()})
                })
                .collect();
            println!(
                "{:#}",
                json!({"project": project.name, "project_id": project.id.as_str(),
                       "recipient": present.recipient().to_string(), "identity": present.to_secret().expose(),
                       "before": old})
            );
        }
        Output::Table => {
            println!(
                "# created: {}\n# project: {} ({})",
                project.created_at.iso(),
                project.name,
                project.id
            );
            for identity in &identities {
                println!(
                    "# public key: {}\n{}",
                    identity.recipient(),
                    identity.to_secret().expose()
                );
            }
        }
    }
    Ok(())
}

/// `cachekeep user ...`
///
/// # Errors
/// No data directory, unknown project, name taken.
pub(crate) fn user(global: &Global, verb: &UserVerb) -> anyhow::Result<()> {
    let app = open(global)?;
    match verb {
        UserVerb::Create { project, name } => {
            let project = find_project(&app, project)?;
            let password = serve::make_account(&app, &project.id, name)?;
            print_one(
                global,
                &json!({"user": name, "password": password, "project": project.name,
                        "project_id": project.id.as_str(), "domain": DOMAIN}),
            );
        }
        UserVerb::List => {
            let rows: Vec<_> = app
                .catalog
                .read(record::accounts)?
                .iter()
                .map(|u| {
                    json!({"user": u.name, "project_id": u.project_id.as_str(), "created_at": u.created_at.iso(),
                           "revoked_at": u.revoked_at.map(Moment::iso)})
                })
                .collect();
            print(global, &["user", "project_id", "created_at", "revoked_at"], &rows);
        }
        UserVerb::Revoke { name } => {
            let revoked = app
                .catalog
                .write(|tx| record::revoke_account(tx, name, Moment::now()))?;
            anyhow::ensure!(
                revoked,
                "there is no user {name} that could be revoked: `cachekeep user list` shows all"
            );
            print_one(global, &json!({"user": name, "revoked": true}));
        }
    }
    Ok(())
}

/// `cachekeep key ...`
///
/// # Errors
/// No data directory, unknown project or key.
pub(crate) fn key(global: &Global, verb: &KeyVerb) -> anyhow::Result<()> {
    let app = open(global)?;
    match verb {
        KeyVerb::Create { project } => {
            let project = find_project(&app, project)?;
            let (ak, sk) = serve::make_access_key(&app, &project.id)?;
            print_one(
                global,
                &json!({"ak": ak, "sk": sk, "project": project.name, "project_id": project.id.as_str()}),
            );
        }
        KeyVerb::List => {
            let rows: Vec<_> = app
                .catalog
                .read(record::access_keys)?
                .iter()
                .map(|k| {
                    json!({"ak": k.ak, "project_id": k.project_id.as_str(), "created_at": k.created_at.iso(),
                           "revoked_at": k.revoked_at.map(Moment::iso)})
                })
                .collect();
            print(global, &["ak", "project_id", "created_at", "revoked_at"], &rows);
        }
        KeyVerb::Revoke { ak } => {
            let revoked = app
                .catalog
                .write(|tx| record::revoke_access_key(tx, ak, Moment::now()))?;
            anyhow::ensure!(
                revoked,
                "there is no key {ak} that could be revoked: `cachekeep key list` shows all"
            );
            print_one(global, &json!({"ak": ak, "revoked": true}));
        }
    }
    Ok(())
}
