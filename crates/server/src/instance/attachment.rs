//! Attached instances: servers that somebody else runs. What is kept of one is how it is reached and what was found there; it has
//! no generation, no process and no directory, and nothing of it is changed but settings for the time of a capture, which are
//! written down before ([`Attachment::settings`]).

pub mod command;
pub mod servers;

use engine::discover::{Form, Found, HostPort};
use engine::process::{Brand, Persistence};
use engine::psync::Setting;
use serde::{Deserialize, Serialize};

use super::layout::{Layout, Mode};
use super::record::persistence_from_word;
use crate::catalog::Error;
use crate::ids::InstanceId;

/// How servers are reached: JSON of the column, without what is secret.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Reach {
    /// Nodes or Sentinels of it; one that answers is enough.
    pub seeds: Vec<HostPort>,
    /// ACL user; `None`: the default one.
    pub user: Option<String>,
    /// Whether nodes want a password.
    pub has_password: bool,
    /// `None`: without TLS.
    pub tls: Option<Trust>,
    /// ACL user of the Sentinels.
    pub sentinel_user: Option<String>,
    /// What Sentinels call the primary, where they watch several.
    pub primary_name: Option<String>,
    /// What nodes call themselves or each other, and where that is reached from here.
    pub moved: Vec<(HostPort, HostPort)>,
}

/// How nodes are known to be the right ones.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Trust {
    /// Certificates that theirs must be signed by, PEM.
    pub ca: String,
    /// Our own certificate chain, PEM.
    pub certificate: Option<String>,
    /// The name that all their certificates are of, where that is not each one's host.
    pub server_name: Option<String>,
}

/// What is secret of a [`Reach`]: sealed as one JSON text.
#[derive(Clone, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Secrets {
    /// Of the nodes' user.
    pub password: Option<String>,
    /// Of the Sentinels' user.
    pub sentinel_password: Option<String>,
    /// Of our own certificate, PEM.
    pub private_key: Option<String>,
}

impl std::fmt::Debug for Secrets {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("***")
    }
}

/// What an attached instance has that a managed one has not.
#[derive(Debug, Clone)]
pub struct Attachment {
    /// How its servers are reached.
    pub reach: Reach,
    /// What was found there last.
    pub found: Found,
    /// [`Secrets`], sealed for [`sealed_for`]; empty once it is detached.
    pub sealed: Vec<u8>,
    /// Settings of its servers that a capture has changed or was about to: to be put back.
    pub settings: Vec<Setting>,
}

/// The place that the secrets of an instance are sealed for.
pub fn sealed_for(instance: &InstanceId) -> String {
    format!("instance.attachment:{instance}")
}

/// The JSON of the column.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Column {
    reach: Reach,
    found: Found,
}

/// What the column holds.
pub fn to_json(reach: &Reach, found: &Found) -> String {
    serde_json::json!({"reach": reach, "found": found}).to_string()
}

/// Reads [`to_json`].
///
/// # Errors
/// The column holds something else.
pub fn from_json(text: &str) -> Result<(Reach, Found), Error> {
    let unreadable = |error| Error::Unreadable(format!("this is no attachment: {error}"));
    let column: Column = serde_json::from_str(text).map_err(unreadable)?;
    Ok((column.reach, column.found))
}

/// Of how many nodes that is.
pub fn layout(found: &Found) -> Layout {
    let replicas = found.shards.iter().map(|shard| shard.replicas.len()).max();
    let replicas = u16::try_from(replicas.unwrap_or(0)).unwrap_or(u16::MAX);
    let mode = match (found.form, replicas) {
        (Form::Cluster, _) => Mode::Cluster,
        (Form::Whole, 0) => Mode::Single,
        (Form::Whole, _) => Mode::Ha,
    };
    Layout {
        mode,
        shards: u16::try_from(found.shards.len()).unwrap_or(u16::MAX),
        replicas,
    }
}

/// The size that is shown for it, in MiB: its limit, where it has none what its data takes.
pub fn capacity_mb(found: &Found) -> i64 {
    let bytes = match found.limit_bytes {
        0 => found.used_bytes,
        limit => limit,
    };
    i64::try_from(bytes >> 20).unwrap_or(i64::MAX).max(1)
}

/// What survives a crash of it, as far as it tells.
pub fn persistence(found: &Found) -> Persistence {
    let word = found.persistence.as_deref();
    word.and_then(persistence_from_word).unwrap_or(Persistence::None)
}

/// Whose engine it is.
pub fn brand(found: &Found) -> Brand {
    Brand::from_word(&found.family).unwrap_or(Brand::Redis)
}

/// Where clients come in: the first primary.
pub fn entry(found: &Found) -> HostPort {
    match found.shards.first() {
        Some(shard) => shard.primary.clone(),
        None => HostPort::new("", 0),
    }
}
