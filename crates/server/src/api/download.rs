//! Download links: plain GETs that carry their own proof and expiry, and the stream behind them.

use std::ops::Range;
use std::sync::Arc;

use axum::body::{Body, Bytes};
use axum::http::{HeaderValue, Response, StatusCode, header};
use engine::store::Patience;
use tokio::sync::{OwnedSemaphorePermit, mpsc};

use super::error::ApiError;
use super::request::Request;
use super::routes::Reply;
use crate::app::App;
use crate::backup::place;
use crate::backup::record::{self as backups, Backup, Format};
use crate::ids::{BackupId, InstanceId, Moment, ProjectId};
use crate::instance::{Instance, record as instances};

/// Chunks that may wait for a slow client: 256 KiB each at most, so 2 MiB.
const CHUNKS_WAITING: usize = 8;
const CHUNK_BYTES: usize = 256 * 1024;
/// What the links' proof is derived for.
const PURPOSE: &str = "download";

/// `redis_<ip>_<port>_<slots>_<yyyyMMddHHmmss>.rdb`; several ranges of slots are joined by `+`.
fn file_name(instance: &Instance, backup: &Backup, port: u16, slots: &[(u16, u16)]) -> String {
    let ranges: Vec<String> = slots
        .iter()
        .map(|(first, last)| format!("{first}-{last}"))
        .collect();
    let (bind, slots, at) = (&instance.bind, ranges.join("+"), backup.created_at.compact());
    format!(
        "redis_{}_{port}_{slots}_{at}.{}",
        bind.replace(':', "-"),
        backup.format.word()
    )
}

/// One of a backup's files.
pub struct BackupFile {
    /// Its name.
    pub name: String,
    /// Where it lies in the archive's bytes; `None`: it is all of them.
    range: Option<Range<u64>>,
}

/// A backup's files: one, or one for each shard of a cluster.
///
/// # Errors
/// As [`open`].
pub fn files(app: &App, instance: &Instance, backup: &Backup) -> Result<Vec<BackupFile>, engine::Error> {
    if instance.layout.mode.is_whole() {
        let name = file_name(instance, backup, instance.port, &[(0, 16383)]);
        return Ok(vec![BackupFile { name, range: None }]);
    }
    let archive = open(app, backup)?;
    let shards = archive.manifest().shards.iter();
    Ok(shards
        .map(|shard| BackupFile {
            name: file_name(instance, backup, shard.port, &shard.slots),
            range: Some(shard.range()),
        })
        .collect())
}

/// The archive of a backup that has one.
///
/// # Errors
/// [`engine::Kind::NotFound`] where it has none; as [`engine::archive::Archive::open`].
fn open(app: &App, backup: &Backup) -> Result<engine::archive::Archive, engine::Error> {
    place::open(app, backup, Some(Patience::SHORT), &engine::store::always)
}

/// The link to a backup's file, good until `until`.
pub fn link(request: &Request, instance: &Instance, backup: &Backup, file: &str, until: Moment) -> String {
    let path = format!(
        "/download/{}/{}/{}/{file}",
        instance.project_id, instance.id, backup.id
    );
    signed(request, &path, until)
}

/// The link to this path of ours, good for anybody until `until`.
pub(super) fn signed(request: &Request, path: &str, until: Moment) -> String {
    let expires = until.0 / 1000;
    let proof = request
        .app
        .vault
        .master
        .mac(PURPOSE, &format!("{path}\n{expires}"));
    format!("{}{path}?Expires={expires}&Signature={proof}", request.base())
}

/// `GET /download/{project}/{instance}/{backup}/{file}`: the plain file, decoded on the fly; one byte range.
///
/// # Errors
/// 403 for a wrong or expired proof, 404 once the backup is gone.
pub fn serve(request: &Request) -> Result<Reply, ApiError> {
    let path = format!(
        "/download/{}/{}/{}/{}",
        request.param("project"),
        request.param("instance"),
        request.param("backup"),
        request.param("file")
    );
    check_proof(request, &path)?;
    let app = &request.app;
    let id = BackupId::parse(request.param("backup")).ok_or_else(gone)?;
    let instance = InstanceId::parse(request.param("instance")).ok_or_else(gone)?;
    let project = ProjectId::parse(request.param("project")).ok_or_else(gone)?;
    let found = app.catalog.read(|tx| {
        let Some(instance) = instances::find_with_deleted(tx, &project, &instance)? else {
            return Ok::<_, crate::catalog::Error>(None);
        };
        let backup = backups::find(tx, &instance, &id)?.filter(Backup::is_kept);
        Ok(backup.map(|backup| (instance, backup)))
    });
    let (instance, backup) = found?.ok_or_else(gone)?;
    if backup.prefix.is_none() || backup.manifest_blake3.is_none() {
        return Err(gone());
    }
    let broken = |error: &engine::Error| {
        tracing::error!(backup.id = %id, error = engine::chain(error), "a backup cannot be opened for download");
        ApiError::Service {
            status: 500,
            code: 5078,
            message: "The backup's files cannot be read.".to_owned(),
        }
    };
    let archive = open(app, &backup).map_err(|error| broken(&error))?;
    let identity = crate::restore::job::archive_identity(app, &archive).map_err(|error| broken(&error))?;
    let mut file = 0..archive.manifest().plain_bytes;
    if !archive.manifest().shards.is_empty() {
        let named = files(app, &instance, &backup).map_err(|error| broken(&error))?;
        let wanted = named
            .into_iter()
            .find(|named| named.name == request.param("file"));
        file = wanted.and_then(|named| named.range).ok_or_else(gone)?;
    }
    let total = file.end - file.start;
    let (status, range) = match wanted_range(request, total) {
        Ok(None) => (StatusCode::OK, 0..total),
        Ok(Some(range)) => (StatusCode::PARTIAL_CONTENT, range),
        Err(()) => {
            let mut response = Response::new(Body::empty());
            *response.status_mut() = StatusCode::RANGE_NOT_SATISFIABLE;
            set(&mut response, header::CONTENT_RANGE, &format!("bytes */{total}"));
            return Ok(response);
        }
    };
    let in_archive = file.start + range.start..file.start + range.end;
    let mut response = Response::new(stream(archive, identity, in_archive, request.slot.clone()));
    *response.status_mut() = status;
    if status == StatusCode::PARTIAL_CONTENT {
        let last = range.end.saturating_sub(1);
        set(
            &mut response,
            header::CONTENT_RANGE,
            &format!("bytes {}-{last}/{total}", range.start),
        );
    }
    let kind = if backup.format == Format::Aof {
        "aof"
    } else {
        "rdb"
    };
    tracing::info!(backup.id = %id, kind, "download begins");
    set(
        &mut response,
        header::CONTENT_LENGTH,
        &(range.end - range.start).to_string(),
    );
    set(&mut response, header::CONTENT_TYPE, "application/octet-stream");
    set(&mut response, header::ACCEPT_RANGES, "bytes");
    set(&mut response, header::CACHE_CONTROL, "no-store");
    set(&mut response, header::REFERRER_POLICY, "no-referrer");
    set(
        &mut response,
        header::CONTENT_DISPOSITION,
        &format!("attachment; filename=\"{}\"", request.param("file")),
    );
    Ok(response)
}

/// The answer where what a link leads to is not there any more.
pub(super) fn gone() -> ApiError {
    ApiError::Gateway {
        status: 404,
        code: "APIGW.0101",
        message: "The file is gone.".to_owned(),
    }
}

/// Refuses unless the query is that of a link to this path which has not expired.
pub(super) fn check_proof(request: &Request, path: &str) -> Result<(), ApiError> {
    let denied = || ApiError::Gateway {
        status: 403,
        code: "APIGW.0302",
        message: "The link is wrong or has expired.".to_owned(),
    };
    let query = |name: &str| {
        request
            .query
            .split('&')
            .find_map(|pair| pair.strip_prefix(name)?.strip_prefix('='))
            .unwrap_or_default()
    };
    let expires: i64 = query("Expires").parse().map_err(|_| denied())?;
    let master = &request.app.vault.master;
    let proven = master.mac_holds(PURPOSE, &format!("{path}\n{expires}"), query("Signature"));
    match proven && expires.saturating_mul(1000) > request.now.0 {
        true => Ok(()),
        false => Err(denied()),
    }
}

/// A small file to be saved under this name.
pub(super) fn small_file(name: &str, bytes: Vec<u8>) -> Reply {
    let mut response = Response::new(Body::from(bytes));
    set(&mut response, header::CONTENT_TYPE, "application/octet-stream");
    set(&mut response, header::CACHE_CONTROL, "no-store");
    set(
        &mut response,
        header::CONTENT_DISPOSITION,
        &format!("attachment; filename=\"{name}\""),
    );
    response
}

fn set(response: &mut Reply, name: header::HeaderName, value: &str) {
    if let Ok(value) = HeaderValue::from_str(value) {
        response.headers_mut().insert(name, value);
    }
}

/// `bytes=a-b`, `bytes=a-`, `bytes=-n`; several ranges or another unit mean the whole file.
fn wanted_range(request: &Request, total: u64) -> Result<Option<Range<u64>>, ()> {
    let Some(text) = request
        .headers
        .get(header::RANGE)
        .and_then(|value| value.to_str().ok())
    else {
        return Ok(None);
    };
    let Some((first, last)) = text.strip_prefix("bytes=").and_then(|spec| spec.split_once('-')) else {
        return Ok(None);
    };
    let range = match (first.parse::<u64>(), last.parse::<u64>()) {
        (Ok(first), Ok(last)) => first..last.saturating_add(1).min(total),
        (Ok(first), Err(_)) if last.is_empty() => first..total,
        (Err(_), Ok(count)) if first.is_empty() => total.saturating_sub(count)..total,
        _ => return Ok(None),
    };
    if range.start < range.end {
        Ok(Some(range))
    } else {
        Err(())
    }
}

/// Decodes on a thread of its own; a client that goes away stops the thread at its next chunk, and one that stops
/// reading loses its connection: see [`crate::stall`].
fn stream(
    archive: engine::archive::Archive,
    identity: engine::keys::Identity,
    range: Range<u64>,
    slot: Option<Arc<OwnedSemaphorePermit>>,
) -> Body {
    let (send, receive) = mpsc::channel::<Result<Bytes, std::io::Error>>(CHUNKS_WAITING);
    tokio::task::spawn_blocking(move || {
        let _kept = slot;
        let pushed = archive.read_range(&identity, range, |bytes| {
            for chunk in bytes.chunks(CHUNK_BYTES) {
                send.blocking_send(Ok(Bytes::copy_from_slice(chunk)))
                    .map_err(|_| {
                        engine::Error::new(engine::Kind::Cancelled, "download", "the client went away")
                    })?;
            }
            Ok(())
        });
        if let Err(error) = pushed
            && error.kind != engine::Kind::Cancelled
        {
            tracing::error!(error = engine::chain(&error), "a download broke off");
            let _client_gone = send.blocking_send(Err(std::io::Error::other("the backup cannot be read")));
        }
    });
    Body::new(Chunks(receive))
}

/// The receiving end as an HTTP body.
pub(super) struct Chunks(pub(super) mpsc::Receiver<Result<Bytes, std::io::Error>>);

impl axum::body::HttpBody for Chunks {
    type Data = Bytes;
    type Error = std::io::Error;

    fn poll_frame(
        mut self: std::pin::Pin<&mut Self>,
        context: &mut std::task::Context<'_>,
    ) -> std::task::Poll<Option<Result<hyper::body::Frame<Bytes>, std::io::Error>>> {
        self.0
            .poll_recv(context)
            .map(|chunk| chunk.map(|chunk| chunk.map(hyper::body::Frame::data)))
    }
}
