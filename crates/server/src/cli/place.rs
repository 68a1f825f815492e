//! Where archives lie, as a verb is told: a folder, or a bucket with how to reach it.

use std::path::PathBuf;

use clap::Args;
use engine::Secret;
use engine::store::{Patience, RemoteKind, RemoteSpec, Store};

/// How a bucket is reached.
#[derive(Args, Clone)]
pub(crate) struct Reach {
    /// Of a bucket: https://HOST[:PORT], without the bucket
    #[arg(long, value_name = "URL")]
    endpoint: Option<String>,
    /// Of a bucket: the region that requests are signed for
    #[arg(long, default_value = "us-east-1")]
    region: String,
    /// Of a bucket: the access key (AK)
    #[arg(long, env = "CACHEKEEP_STORAGE_ACCESS_KEY", hide_env_values = true)]
    access_key: Option<String>,
    /// Of a bucket: file with the secret half (SK); without it CACHEKEEP_STORAGE_SECRET_KEY is read
    #[arg(long, value_name = "FILE")]
    secret_key_file: Option<PathBuf>,
    /// Allow plain http beyond this machine
    #[arg(long)]
    insecure: bool,
}

/// A place of archives.
pub(crate) enum Place {
    /// A local folder.
    Folder(PathBuf),
    /// A bucket.
    Bucket(RemoteSpec),
}

impl Place {
    /// Reads `s3://BUCKET/PREFIX`, `obs://BUCKET/PREFIX`, or the path of a folder.
    ///
    /// # Errors
    /// What is missing or wrong.
    pub(crate) fn read(text: &str, reach: &Reach) -> anyhow::Result<Self> {
        let (kind, rest) = match text.split_once("://") {
            Some(("s3", rest)) => (RemoteKind::S3, rest),
            Some(("obs", rest)) => (RemoteKind::Obs, rest),
            Some((other, _)) => {
                anyhow::bail!("{other}:// is no place for backups: a folder, s3:// and obs:// are")
            }
            None => return Ok(Self::Folder(PathBuf::from(text))),
        };
        let (bucket, prefix) = rest.split_once('/').unwrap_or((rest, ""));
        let needed = |what: &Option<String>, name: &str| {
            what.clone()
                .ok_or_else(|| anyhow::anyhow!("give --{name} for {text}"))
        };
        let endpoint = needed(&reach.endpoint, "endpoint")?;
        check_endpoint(&endpoint, reach.insecure)?;
        let access_key = needed(&reach.access_key, "access-key")?;
        let secret = secret_key(reach.secret_key_file.as_ref())?;
        Ok(Self::Bucket(RemoteSpec {
            kind,
            endpoint: endpoint.trim_end_matches('/').to_owned(),
            bucket: bucket.to_owned(),
            prefix: prefix.trim_matches('/').to_owned(),
            region: reach.region.clone(),
            access_key: Secret::new(access_key.trim()),
            secret_key: Secret::new(secret.trim()),
        }))
    }
}

impl Place {
    /// Opens it; nothing is sent yet.
    ///
    /// # Errors
    /// The description cannot be right, or the folder cannot be made.
    pub(crate) fn open(&self) -> anyhow::Result<Store> {
        let opened = match self {
            Self::Folder(folder) => Store::open(folder.clone()),
            Self::Bucket(spec) => Store::open_remote(spec, Patience::JOB),
        };
        opened.map_err(|error| anyhow::anyhow!(engine::chain(&error)))
    }
}

/// Refuses plain http to another machine.
///
/// # Errors
/// It is that.
pub(super) fn check_endpoint(endpoint: &str, insecure: bool) -> anyhow::Result<()> {
    let is_near = ["http://127.", "http://localhost", "http://[::1]"]
        .iter()
        .any(|near| endpoint.starts_with(near));
    anyhow::ensure!(
        !endpoint.starts_with("http://") || is_near || insecure,
        "refusing plain http beyond this machine ({endpoint}): use https, or say --insecure"
    );
    Ok(())
}

/// The secret half of a credential: from a file, else from the environment.
///
/// # Errors
/// Neither is there.
pub(super) fn secret_key(file: Option<&PathBuf>) -> anyhow::Result<String> {
    match file {
        Some(file) => std::fs::read_to_string(file)
            .map_err(|error| anyhow::anyhow!("cannot read {}: {error}", file.display())),
        None => std::env::var("CACHEKEEP_STORAGE_SECRET_KEY")
            .map_err(|_| anyhow::anyhow!("give --secret-key-file, or set CACHEKEEP_STORAGE_SECRET_KEY")),
    }
}
