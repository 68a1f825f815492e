//! Verbs on the data directory: whoever may read its keys is the administrator.

use clap::Subcommand;
use serde_json::json;

use super::{Global, Output};
use crate::app::App;
use crate::config::Config;
use crate::identity::record::{self, DOMAIN, Project};
use crate::ids::Moment;
use crate::serve;

/// Verbs on projects.
#[derive(Subcommand)]
pub(crate) enum ProjectVerb {
    /// Make a project with an archive key of its own
    Create {
        /// Its name, unique
        name: String,
    },
    /// List all projects
    List,
    /// Revoke every user, token and access key of a project, at once; its instances and records stay
    Revoke {
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
    List,
    /// Revoke a user and all its tokens, at once
    Revoke {
        /// The user's name
        name: String,
    },
}

/// Verbs on access keys.
#[derive(Subcommand)]
pub(crate) enum KeyVerb {
    /// Make an access key of a project; its secret half is printed once
    #[command(after_help = "Example:\n  cachekeep key create --project local")]
    Create {
        /// Name or id of the project
        #[arg(long)]
        project: String,
    },
    /// List all access keys
    List,
    /// Revoke an access key, at once
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
    let data_dir = global.data_dir();
    anyhow::ensure!(
        data_dir.join("catalog.sqlite").exists(),
        "{} is no data directory of cachekeep: name it with --data-dir, or run `cachekeep serve` once",
        data_dir.display()
    );
    serve::open(Config {
        data_dir,
        listen: "127.0.0.1:0".parse()?,
        tls: None,
        region: String::new(),
        engine_bind: "127.0.0.1".parse()?,
        engine_ports: 1..=1,
        engine_binary: std::path::PathBuf::new(),
        engine_version: String::new(),
        run_as: None,
        undo_keep_seconds: 0,
        store_patience: engine::Patience::JOB.total,
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

/// Prints rows for people or programs.
pub(super) fn print(global: &Global, columns: &[&str], rows: &[serde_json::Value]) {
    super::remote::print_rows(global, columns, rows, &json!(rows));
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
                .map(|p| json!({"project_id": p.id.as_str(), "project": p.name, "created_at": p.created_at.iso()}))
                .collect();
            print(global, &["project_id", "project", "created_at"], &rows);
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
