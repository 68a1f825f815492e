//! Verbs on hooks; they work on the data directory, as those on stores do.

use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use base64::Engine as _;
use clap::{Args, Subcommand};
use serde_json::{Value, json};

use super::Global;
use super::admin::{find_project, open, print, print_one};
use crate::app::App;
use crate::hook::record::{self, Delivery, Hook, Kind};
use crate::hook::{EVENTS, Message, secret_place, send};
use crate::ids::Moment;
use crate::secrets;

/// Bytes of a secret: those of the digest that it keys.
const SECRET_BYTES: usize = 32;

/// Verbs on hooks.
#[derive(Subcommand)]
pub(crate) enum HookVerb {
    /// Add a URL or a program that is told from now on; tried out first
    #[command(
        after_help = "A URL gets a POST as the Standard Webhooks specification has it: JSON with id, type, timestamp and data, signed in \
        the header webhook-signature with the secret that is printed here once. It is to answer 2xx within 15 seconds.\n\
        A program is run as the user of the service, with the same JSON on its standard input, CACHEKEEP_EVENT and CACHEKEEP_EVENT_ID; it \
        is to exit with 0 within 15 seconds.\n\
        What is not taken is tried again for three days, with the same id: who counts events counts ids.\n\n\
        Events: backup.succeeded, backup.failed, restore.succeeded, restore.failed, verification.holds, verification.damaged, \
        verification.failed, drill.overdue (four hours after it was due; once), instance.error, instance.running (after an error)\n\n\
        Examples:\n  \
        cachekeep hook add oncall --url https://alerts.example.com/cachekeep --event backup.failed --event restore.failed\n  \
        cachekeep hook add mail --exec /usr/local/bin/mail-it --project team2"
    )]
    Add(Add),
    /// List all hooks, and how many events each was told, waits for, and missed
    #[command(after_help = "Example:\n  cachekeep hook list")]
    List,
    /// Show what a hook was told, newest first, and what was wrong where it was not
    #[command(after_help = "Example:\n  cachekeep hook show oncall")]
    Show {
        /// The hook's name
        name: String,
        /// At most so many
        #[arg(long, default_value_t = 20)]
        limit: u32,
    },
    /// Send an event of type `test` now, and say whether it was taken
    #[command(after_help = "Example:\n  cachekeep hook test oncall")]
    Test {
        /// The hook's name
        name: String,
    },
    /// Try again now whatever a hook was not told, also what was given up
    #[command(after_help = "Example:\n  cachekeep hook resend oncall")]
    Resend {
        /// The hook's name
        name: String,
    },
    /// Remove a hook, and whatever it was not told yet
    #[command(after_help = "Example:\n  cachekeep hook remove oncall")]
    Remove {
        /// The hook's name
        name: String,
    },
}

#[derive(Args)]
pub(crate) struct Add {
    /// Its name, unique
    name: String,
    /// The URL: https, or http
    #[arg(
        long,
        value_name = "URL",
        conflicts_with = "exec",
        required_unless_present = "exec"
    )]
    url: Option<String>,
    /// The program, by its whole path
    #[arg(long, value_name = "PROGRAM")]
    exec: Option<PathBuf>,
    /// Only what happens in this project (name or id)
    #[arg(long)]
    project: Option<String>,
    /// Only this event; may be given again [default: all]
    #[arg(long = "event", value_name = "EVENT", value_parser = clap::builder::PossibleValuesParser::new(EVENTS), hide_possible_values = true)]
    events: Vec<String>,
    /// Add it though it does not answer now
    #[arg(long)]
    no_test: bool,
}

/// `cachekeep hook ...`
///
/// # Errors
/// No data directory, name taken, unknown hook or project, a hook that does not answer.
pub(crate) fn hook(global: &Global, verb: &HookVerb) -> anyhow::Result<ExitCode> {
    let app = open(global)?;
    match verb {
        HookVerb::Add(add) => add_hook(global, &app, add)?,
        HookVerb::List => list(global, &app)?,
        HookVerb::Show { name, limit } => {
            let hook = find(&app, name)?;
            let newest = app.catalog.read(|tx| record::newest(tx, &hook.name, *limit))?;
            let rows: Vec<Value> = newest.iter().map(told).collect();
            let columns = [
                "at",
                "event",
                "instance_name",
                "subject_id",
                "tries",
                "state",
                "answer",
            ];
            print(global, &columns, &rows);
        }
        HookVerb::Test { name } => {
            let hook = find(&app, name)?;
            let secret = app.vault.master.open(&secret_place(name), &hook.secret_sealed)?;
            test(hook.kind, &hook.target, &secret)?;
            print_one(global, &json!({"hook": name, "taken": true}));
        }
        HookVerb::Resend { name } => {
            let hook = find(&app, name)?;
            let count = app
                .catalog
                .write(|tx| record::again(tx, &hook.name, Moment::now()))?;
            print_one(global, &json!({"hook": name, "tried_again": count}));
        }
        HookVerb::Remove { name } => {
            let hook = find(&app, name)?;
            app.catalog.write(|tx| record::remove(tx, &hook.name))?;
            print_one(global, &json!({"hook": name, "removed": true}));
        }
    }
    Ok(ExitCode::SUCCESS)
}

fn find(app: &App, name: &str) -> anyhow::Result<Hook> {
    let mut all = app.catalog.read(record::all)?.into_iter();
    all.find(|hook| hook.name == name)
        .ok_or_else(|| anyhow::anyhow!("there is no hook {name}: `cachekeep hook list` shows all"))
}

fn test(kind: Kind, target: &str, secret: &str) -> anyhow::Result<()> {
    let now = Moment::now();
    send(kind, target, secret, &Message::test(now), now)
        .map_err(|why| anyhow::anyhow!("{target} does not take a test: {why}"))
}

fn add_hook(global: &Global, app: &App, add: &Add) -> anyhow::Result<()> {
    let is_name = |text: &str| {
        (1..=64).contains(&text.len())
            && text
                .bytes()
                .all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'_' | b'-'))
    };
    anyhow::ensure!(
        is_name(&add.name),
        "a hook's name has 1 to 64 letters, digits, dots, hyphens and underscores"
    );
    let (kind, target) = match (&add.url, &add.exec) {
        (Some(url), _) => (Kind::Url, checked_url(url)?),
        (None, Some(program)) => (Kind::Program, checked_program(program)?),
        (None, None) => anyhow::bail!("say --url or --exec"),
    };
    let project = match &add.project {
        Some(name) => Some(find_project(app, name)?),
        None => None,
    };
    let secret: [u8; SECRET_BYTES] = secrets::random();
    let secret = format!(
        "whsec_{}",
        base64::engine::general_purpose::STANDARD.encode(secret)
    );
    if !add.no_test {
        test(kind, &target, &secret).map_err(|error| {
            anyhow::anyhow!("{error:#}. Nothing was added; --no-test adds it all the same")
        })?;
    }
    let row = Hook {
        secret_sealed: app.vault.master.seal(&secret_place(&add.name), secret.as_bytes()),
        name: add.name.clone(),
        project_id: project.as_ref().map(|project| project.id.clone()),
        kind,
        target,
        events: add.events.clone(),
        created_at: Moment::now(),
    };
    app.catalog
        .write(|tx| record::insert(tx, &row))
        .map_err(|error| match error {
            crate::catalog::Error::Constraint(_) => {
                anyhow::anyhow!("there is a hook {} already: choose another name", row.name)
            }
            other => other.into(),
        })?;
    let mut added = shown(&row, project.map(|project| project.name));
    if kind == Kind::Url {
        added["secret"] = json!(secret);
        eprintln!("cachekeep: the secret is not shown again; the receiver checks signatures with it");
    }
    print_one(global, &added);
    Ok(())
}

fn checked_url(url: &str) -> anyhow::Result<String> {
    let parsed: Result<ureq::http::Uri, _> = url.parse();
    let is_usable = parsed.is_ok_and(|parsed| {
        let has_name = parsed
            .authority()
            .is_some_and(|authority| !authority.as_str().contains('@'));
        has_name && matches!(parsed.scheme_str(), Some("http" | "https"))
    });
    anyhow::ensure!(
        is_usable,
        "{url} is no http:// or https:// URL without a name and password in it"
    );
    Ok(url.to_owned())
}

fn checked_program(program: &Path) -> anyhow::Result<String> {
    let is_program = program.is_absolute()
        && std::fs::metadata(program)
            .is_ok_and(|seen| seen.is_file() && seen.permissions().mode() & 0o111 != 0);
    let text = program.to_str().filter(|_| is_program);
    text.map(str::to_owned).ok_or_else(|| {
        anyhow::anyhow!(
            "{} is not the whole path of a program: begin with /, and chmod +x the file",
            program.display()
        )
    })
}

fn list(global: &Global, app: &App) -> anyhow::Result<()> {
    let (hooks, projects) = app.catalog.read(|tx| {
        let hooks = record::all(tx)?;
        let counts: Result<Vec<_>, _> = hooks.iter().map(|hook| record::counts(tx, &hook.name)).collect();
        let hooks: Vec<_> = hooks.into_iter().zip(counts?).collect();
        Ok::<_, crate::catalog::Error>((hooks, crate::identity::record::projects(tx)?))
    })?;
    let rows: Vec<Value> = hooks
        .iter()
        .map(|(hook, (delivered, waiting, missed))| {
            let project = projects
                .iter()
                .find(|project| Some(&project.id) == hook.project_id.as_ref());
            let mut row = shown(hook, project.map(|project| project.name.clone()));
            row["delivered"] = json!(delivered);
            row["waiting"] = json!(waiting);
            row["missed"] = json!(missed);
            row
        })
        .collect();
    let columns = [
        "name",
        "target",
        "project",
        "events",
        "delivered",
        "waiting",
        "missed",
    ];
    print(global, &columns, &rows);
    Ok(())
}

fn shown(hook: &Hook, project: Option<String>) -> Value {
    let events = match hook.events.is_empty() {
        true => "all".to_owned(),
        false => hook.events.join(" "),
    };
    json!({"name": hook.name, "kind": hook.kind.word(), "target": hook.target, "project": project, "events": events,
           "created_at": hook.created_at.iso()})
}

fn told(delivery: &Delivery) -> Value {
    let state = match (delivery.delivered_at, delivery.next_at) {
        (Some(_), _) => "delivered",
        (None, Some(_)) => "waiting",
        (None, None) => "missed",
    };
    json!({"at": delivery.at.iso(), "event": delivery.event, "instance_id": delivery.instance_id, "instance_name": delivery.instance_name,
           "project_id": delivery.project_id, "subject_id": delivery.subject_id, "error_code": delivery.error_code,
           "tries": delivery.tries, "state": state, "answer": delivery.answer,
           "delivered_at": delivery.delivered_at.map(Moment::iso), "next_at": delivery.next_at.filter(|at| at.0 > 0).map(Moment::iso)})
}
