//! Verbs on object stores; they work on the data directory, as those on projects do.

use std::path::PathBuf;

use clap::{Args, Subcommand, ValueEnum};
use engine::Secret;
use engine::store::{Check, Patience, RemoteKind, RemoteSpec, Store};
use serde_json::{Value, json};

use super::Global;
use super::admin::{find_project, open, print, print_one};
use super::place::{check_endpoint, secret_key};
use crate::app::App;
use crate::backup::place_record as places;
use crate::identity::record as identity;
use crate::ids::{Moment, StorageId};
use crate::secrets;
use crate::storage::record::{self, Storage};
use crate::storage::{self, LOCAL, sweep};

/// Verbs on object stores.
#[derive(Subcommand)]
pub(crate) enum StorageVerb {
    /// Add an S3 or OBS bucket as a place for backups; tried out first
    #[command(after_help = "Examples:\n  \
        cachekeep storage add offsite --kind s3 --endpoint https://s3.eu-central-1.amazonaws.com \\\n    \
            --region eu-central-1 --bucket my-backups --access-key AKIA... --secret-key-file secret.txt\n  \
        CACHEKEEP_STORAGE_SECRET_KEY=... cachekeep storage add minio --kind s3 \\\n    \
            --endpoint http://127.0.0.1:9000 --bucket my-backups --access-key minio\n  \
        cachekeep storage add obs --kind obs --endpoint https://obs.cn-north-4.myhuaweicloud.com \\\n    \
            --bucket my-backups --access-key ... --secret-key-file secret.txt\n\n\
        Then: cachekeep storage default offsite")]
    Add(Add),
    /// List all stores, and whose backups go where
    #[command(after_help = "Example:\n  cachekeep storage list")]
    List,
    /// Write, read back, look at, list and delete a small object, and say what does not work
    #[command(after_help = "Example:\n  cachekeep storage probe offsite")]
    Probe {
        /// The store's name
        name: String,
    },
    /// Say which objects of backups that nobody needs any more lie in the stores: the service removes them by itself
    #[command(
        after_help = "They are of attempts that failed, and of backups that were deleted or have expired, known by the places that \
        the catalogue has noted; what it does not know is not touched. Which backups are to expire says `cachekeep retention plan`.\n\n\
        Example:\n  cachekeep storage sweep --dry-run"
    )]
    Sweep {
        /// Say it, and remove nothing: that is the running service's
        #[arg(long, required = true)]
        dry_run: bool,
    },
    /// Choose where new backups go; backups that exist stay where they are
    #[command(after_help = "Examples:\n  \
        cachekeep storage default offsite                   for every project without a choice of its own\n  \
        cachekeep storage default offsite --project team2   for one project\n  \
        cachekeep storage default local                     back to the folder in the data directory")]
    Default {
        /// The store's name, or `local`
        name: String,
        /// Only for this project (name or id)
        #[arg(long)]
        project: Option<String>,
    },
}

#[derive(Clone, Copy, ValueEnum)]
enum Protocol {
    S3,
    Obs,
}

#[derive(Args)]
pub(crate) struct Add {
    /// Its name, unique
    name: String,
    /// The protocol: s3 for Amazon S3 and everything that speaks like it
    #[arg(long, value_enum)]
    kind: Protocol,
    /// https://HOST[:PORT], without the bucket
    #[arg(long, value_name = "URL")]
    endpoint: String,
    /// The bucket, which must exist
    #[arg(long)]
    bucket: String,
    /// Put before the name of every object
    #[arg(long, default_value = "")]
    prefix: String,
    /// The region that requests are signed for
    #[arg(long, default_value = "us-east-1")]
    region: String,
    /// The access key (AK)
    #[arg(long, env = "CACHEKEEP_STORAGE_ACCESS_KEY", hide_env_values = true)]
    access_key: String,
    /// File with the secret half (SK); without it CACHEKEEP_STORAGE_SECRET_KEY is read
    #[arg(long, value_name = "FILE")]
    secret_key_file: Option<PathBuf>,
    /// Only this project (name or id) may use it
    #[arg(long)]
    project: Option<String>,
    /// Allow plain http beyond this machine: backups are encrypted anyway, but anyone on the way can see and break
    /// what is sent
    #[arg(long)]
    insecure: bool,
    /// Add it though it does not work now
    #[arg(long)]
    no_probe: bool,
}

/// What the sweeper would remove now, and what lies there; of a store that does not answer that it does not.
fn tell_useless(global: &Global, app: &App) -> anyhow::Result<()> {
    let (places, stores) = app
        .catalog
        .read(|tx| Ok::<_, crate::catalog::Error>((places::useless(tx, &app.host)?, record::all(tx)?)))?;
    let mut rows = Vec::new();
    let mut tell = |storage: &str, prefix: &str, store: Result<Store, engine::Error>| {
        let found = store.and_then(|store| {
            let names = store.list(prefix)?;
            let sizes: Vec<u64> = names
                .iter()
                .map(|name| store.size(name))
                .collect::<Result<_, _>>()?;
            Ok((sizes.len(), sizes.iter().sum::<u64>()))
        });
        rows.push(match found {
            Ok((objects, bytes)) => {
                json!({"storage": storage, "prefix": prefix, "objects": objects, "bytes": bytes, "error": null})
            }
            Err(error) => {
                json!({"storage": storage, "prefix": prefix, "objects": null, "bytes": null, "error": engine::chain(&error)})
            }
        });
    };
    for prefix in sweep::useless(app)? {
        tell(LOCAL, &prefix, Ok(app.vault.store.clone()));
    }
    for place in places {
        let name = stores.iter().find(|row| row.id == place.storage_id);
        let store = storage::open(app, Some(&place.storage_id));
        tell(
            name.map_or("", |row| &row.name),
            &place.prefix,
            store.map(|store| store.with_patience(Patience::SHORT)),
        );
    }
    print(global, &["storage", "prefix", "objects", "bytes", "error"], &rows);
    Ok(())
}

/// `cachekeep storage ...`
///
/// # Errors
/// No data directory, name taken, unknown store or project, a store that does not work.
pub(crate) fn storage(global: &Global, verb: &StorageVerb) -> anyhow::Result<()> {
    let app = open(global)?;
    match verb {
        StorageVerb::Add(add) => add_storage(global, &app, add),
        StorageVerb::List => list(global, &app),
        StorageVerb::Probe { name } => {
            let row = find(&app, name)?;
            let store = storage::open(&app, Some(&row.id))?;
            let capabilities = probe(&store, &row.name)?;
            app.catalog
                .write(|tx| record::set_capabilities(tx, &row.id, &capabilities.to_string()))?;
            print_one(
                global,
                &json!({"storage": row.name, "capabilities": capabilities}),
            );
            Ok(())
        }
        StorageVerb::Sweep { .. } => tell_useless(global, &app),
        StorageVerb::Default { name, project } => choose(global, &app, name, project.as_deref()),
    }
}

/// The storage of that name.
///
/// # Errors
/// There is none.
pub(super) fn find(app: &App, name: &str) -> anyhow::Result<Storage> {
    let found = app
        .catalog
        .read(record::all)?
        .into_iter()
        .find(|row| row.name == name);
    found.ok_or_else(|| anyhow::anyhow!("there is no storage {name}: `cachekeep storage list` shows all"))
}

fn add_storage(global: &Global, app: &App, add: &Add) -> anyhow::Result<()> {
    let is_name = |text: &str| {
        (1..=64).contains(&text.len())
            && text
                .bytes()
                .all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'_' | b'-'))
    };
    anyhow::ensure!(
        is_name(&add.name) && add.name != LOCAL,
        "a storage's name has 1 to 64 letters, digits, dots, hyphens and underscores, and is not `{LOCAL}`"
    );
    check_endpoint(&add.endpoint, add.insecure)?;
    let secret = secret_key(add.secret_key_file.as_ref())?;
    let project = match &add.project {
        Some(name) => Some(find_project(app, name)?.id),
        None => None,
    };
    let kind = match add.kind {
        Protocol::S3 => RemoteKind::S3,
        Protocol::Obs => RemoteKind::Obs,
    };
    let spec = RemoteSpec {
        kind,
        endpoint: add.endpoint.trim_end_matches('/').to_owned(),
        bucket: add.bucket.clone(),
        prefix: add.prefix.trim_matches('/').to_owned(),
        region: add.region.clone(),
        access_key: Secret::new(add.access_key.trim()),
        secret_key: Secret::new(secret.trim()),
    };
    let store =
        Store::open_remote(&spec, Patience::SHORT).map_err(|error| anyhow::anyhow!(engine::chain(&error)))?;
    let capabilities = match add.no_probe {
        true => None,
        false => Some(probe(&store, &add.name)?.to_string()),
    };
    let id = StorageId::random();
    let master = &app.vault.master;
    let row = Storage {
        access_key_sealed: master.seal(
            &storage::access_key_place(&id),
            spec.access_key.expose().as_bytes(),
        ),
        secret_key_sealed: master.seal(
            &storage::secret_key_place(&id),
            spec.secret_key.expose().as_bytes(),
        ),
        id,
        name: add.name.clone(),
        project_id: project,
        kind: kind.word().to_owned(),
        endpoint: spec.endpoint,
        bucket: spec.bucket,
        prefix: spec.prefix,
        region: spec.region,
        capabilities,
        created_at: Moment::now(),
    };
    app.catalog
        .write(|tx| record::insert(tx, &row))
        .map_err(|error| match error {
            crate::catalog::Error::Constraint(_) => {
                anyhow::anyhow!("there is a storage {} already: choose another name", row.name)
            }
            other => other.into(),
        })?;
    print_one(global, &shown(&row, &Value::Null, &[]));
    Ok(())
}

/// Tries the store out and returns what it can do. Everything is told on standard error as it is found.
///
/// # Errors
/// Something that backups and restores need does not work.
fn probe(store: &Store, name: &str) -> anyhow::Result<Value> {
    let object = format!("probe/{}", secrets::random_hex(16));
    let findings = store.with_patience(Patience::SHORT).probe(&object);
    let mut capabilities = serde_json::Map::new();
    let mut broken = Vec::new();
    for check in Check::ALL {
        let found = findings.iter().find(|finding| finding.check == check);
        let works = matches!(found, Some(finding) if finding.outcome.is_ok());
        capabilities.insert(check.word().to_owned(), json!(works));
        if let Some(Err(error)) = found.map(|finding| &finding.outcome) {
            let why = engine::chain(error);
            if check.is_needed() {
                broken.push(format!("{}: {why}", check.word()));
            } else {
                eprintln!(
                    "cachekeep: {name} cannot {}, which is not needed: {why}",
                    check.word()
                );
            }
        }
    }
    anyhow::ensure!(
        broken.is_empty(),
        "{name} does not do what backups need:\n  {}",
        broken.join("\n  ")
    );
    capabilities.insert("probed_at".to_owned(), json!(Moment::now().iso()));
    Ok(Value::Object(capabilities))
}

fn choose(global: &Global, app: &App, name: &str, project: Option<&str>) -> anyhow::Result<()> {
    let chosen = match name {
        LOCAL => None,
        name => Some(find(app, name)?),
    };
    let project = match project {
        Some(name) => Some(find_project(app, name)?),
        None => None,
    };
    if let Some(owner) = chosen.as_ref().and_then(|row| row.project_id.as_ref()) {
        anyhow::ensure!(
            project.as_ref().is_some_and(|project| project.id == *owner),
            "only project {owner} may use storage {name}: say --project {owner}"
        );
    }
    let (of, to) = (
        project.as_ref().map(|p| &p.id),
        chosen.as_ref().map(|row| &row.id),
    );
    app.catalog.write(|tx| record::set_default(tx, of, to))?;
    let whose = project.map_or_else(
        || "every project without a choice of its own".to_owned(),
        |p| p.name,
    );
    print_one(global, &json!({"storage": name, "default_for": whose}));
    Ok(())
}

fn list(global: &Global, app: &App) -> anyhow::Result<()> {
    let (rows, defaults, projects) = app.catalog.read(|tx| {
        Ok::<_, crate::catalog::Error>((record::all(tx)?, record::defaults(tx)?, identity::projects(tx)?))
    })?;
    let name_of = |id: &crate::ids::ProjectId| {
        let found = projects.iter().find(|project| project.id == *id);
        found.map_or_else(|| id.to_string(), |project| project.name.clone())
    };
    let is_default_for = |storage: Option<&StorageId>| -> Vec<String> {
        let mut names: Vec<String> = defaults
            .iter()
            .filter(|choice| choice.storage_id.as_ref() == storage)
            .map(|choice| {
                choice
                    .project_id
                    .as_ref()
                    .map_or_else(|| "*".to_owned(), &name_of)
            })
            .collect();
        if storage.is_none() && !defaults.iter().any(|choice| choice.project_id.is_none()) {
            names.push("*".to_owned());
        }
        names
    };
    let mut shown_rows = vec![json!({
        "name": LOCAL, "kind": "folder", "endpoint": app.config.store_dir().display().to_string(), "bucket": null,
        "prefix": null, "region": null, "project": null, "default_for": is_default_for(None).join(" "),
        "capabilities": null, "created_at": null,
    })];
    for row in &rows {
        let project = row
            .project_id
            .as_ref()
            .map_or(Value::Null, |id| json!(name_of(id)));
        shown_rows.push(shown(row, &project, &is_default_for(Some(&row.id))));
    }
    let columns = [
        "name",
        "kind",
        "endpoint",
        "bucket",
        "prefix",
        "project",
        "default_for",
    ];
    print(global, &columns, &shown_rows);
    Ok(())
}

fn shown(row: &Storage, project: &Value, default_for: &[String]) -> Value {
    let capabilities = row.capabilities.as_deref().map(serde_json::from_str::<Value>);
    let capabilities = capabilities.and_then(Result::ok).unwrap_or(Value::Null);
    json!({
        "name": row.name, "kind": row.kind, "endpoint": row.endpoint, "bucket": row.bucket, "prefix": row.prefix,
        "region": row.region, "project": project, "default_for": default_for.join(" "),
        "capabilities": capabilities, "created_at": row.created_at.iso(),
    })
}
