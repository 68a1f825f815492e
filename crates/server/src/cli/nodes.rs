//! Verbs on the nodes that share a catalogue.

use clap::Subcommand;
use serde_json::json;

use super::Global;
use super::admin::{open, print, print_one};
use crate::hosts::{command, record};
use crate::ids::Moment;

/// Verbs on nodes.
#[derive(Subcommand)]
pub(crate) enum NodeVerb {
    /// List the nodes that share the catalogue, and whether they are there
    #[command(after_help = "Example:\n  cachekeep node list")]
    List,
    /// Give a node up that is gone for good: what it had begun has failed, and its instances can be deleted
    #[command(
        after_help = "Its instances are shown as ERROR; backups of them in a remote store are restored into new ones: cachekeep restore \
        create INSTANCE --backup latest --new NAME. A node that was forgotten and comes back takes up what was not deleted.\n\n\
        Example:\n  cachekeep node forget node3"
    )]
    Forget {
        /// Its name or id
        name: String,
    },
}

/// `cachekeep node ...`
///
/// # Errors
/// No data directory; no such node, or it is there.
pub(crate) fn node(global: &Global, verb: &NodeVerb) -> anyhow::Result<()> {
    let app = open(global)?;
    match verb {
        NodeVerb::List => {
            let (all, now) = app
                .catalog
                .read(|tx| Ok::<_, crate::catalog::Error>((record::all(tx)?, tx.clock()?)))?;
            let rows: Vec<_> = all
                .iter()
                .map(|host| {
                    // A catalogue in a file has one node, which says that it is there when it starts.
                    let is_lost = app.catalog.is_shared() && host.lost_at < now;
                    let engines = host.engines.iter();
                    let engines: Vec<String> = engines
                        .map(|(brand, version)| format!("{} {version}", brand.word()))
                        .collect();
                    json!({"name": host.name, "id": host.id.as_str(), "roles": host.roles,
                           "status": if is_lost { "lost" } else { "there" }, "engines": engines.join(", "),
                           "free_memory_mb": host.free_memory_bytes >> 20, "started_at": host.started_at.iso(),
                           "seen_at": host.seen_at.iso()})
                })
                .collect();
            let columns = [
                "name",
                "id",
                "roles",
                "status",
                "engines",
                "free_memory_mb",
                "seen_at",
            ];
            print(global, &columns, &rows);
        }
        NodeVerb::Forget { name } => {
            let gone = command::forget(&app, name, Moment::now())?;
            print_one(
                global,
                &json!({"name": gone.host.name, "id": gone.host.id.as_str(), "instances": gone.instances, "jobs": gone.jobs}),
            );
        }
    }
    Ok(())
}
