//! Verbs on the audit log: they read the data directory.

use std::process::ExitCode;

use clap::Subcommand;
use serde_json::{Value, json};

use super::Global;
use super::admin::open;
use super::target::{print_one, print_rows};
use crate::audit::record::{self, Entry};

/// Verbs on the audit log.
#[derive(Subcommand)]
pub(crate) enum AuditVerb {
    /// List who changed what, newest first
    #[command(after_help = "Example:\n  cachekeep audit list --limit 100")]
    List {
        /// At most so many
        #[arg(long, default_value_t = 50)]
        limit: u32,
    },
    /// Prove that no row was changed, taken out or put in between. Keep the printed digest elsewhere: it holds all rows before it, and
    /// with it the loss of the newest ones is seen too
    #[command(after_help = "Exit status 1 where the chain is broken.\n\nExample:\n  cachekeep audit verify")]
    Verify,
}

const COLUMNS: [&str; 6] = ["number", "at", "who", "what", "subject", "project_id"];

/// `cachekeep audit ...`
///
/// # Errors
/// No data directory.
pub(crate) fn audit(global: &Global, verb: &AuditVerb) -> anyhow::Result<ExitCode> {
    let app = open(global)?;
    match verb {
        AuditVerb::List { limit } => {
            let found = app.catalog.read(|tx| record::newest(tx, *limit))?;
            let rows: Vec<Value> = found.iter().map(shown).collect();
            print_rows(global, &COLUMNS, &rows, &json!({ "entries": rows }));
        }
        AuditVerb::Verify => match app.catalog.read(record::verify)? {
            Ok((count, digest)) => print_one(
                global,
                &json!({"holds": true, "entries": count, "digest": digest}),
            ),
            Err(broken) => {
                print_one(global, &json!({"holds": false, "broken_at": broken.number}));
                eprintln!(
                    "cachekeep: the audit log is broken at entry {}: it was changed, or one before it was taken out. Compare with a copy",
                    broken.number
                );
                return Ok(ExitCode::FAILURE);
            }
        },
    }
    Ok(ExitCode::SUCCESS)
}

fn shown(entry: &Entry) -> Value {
    json!({"number": entry.number, "at": entry.at.iso(), "who": entry.who, "what": entry.what, "subject": entry.subject,
           "project_id": entry.project, "digest": entry.digest})
}
