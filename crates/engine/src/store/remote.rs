//! Objects behind S3 or OBS, through opendal. Blocking outside; one small tokio runtime of its own inside.
//!
//! Memory: a put sends the caller's buffer without a copy; a get appends to the caller's buffer what the connection
//! delivers, 16 to 400 KiB at a time.

use std::future::Future;
use std::ops::Range;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{RecvTimeoutError, sync_channel};
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures::TryStreamExt;
use md5::Digest as _;
use opendal::{ErrorKind, HttpTransporter, OperationContext, Operator};
use opendal_http_transport_reqwest::ReqwestTransport;
use tokio::runtime::Runtime;

use super::{Patience, Wanted};
use crate::error::{Error, Kind};
use crate::keys::to_hex;
use crate::node::Secret;

/// How long a wait lasts before the caller is asked whether it still wants the answer.
const ASK_EVERY: Duration = Duration::from_millis(100);
/// Idle connections kept: one for each thread that a backup or a restore has talking.
const IDLE_CONNECTIONS: usize = 4;
/// Stores close idle connections after 20 s or more; a connection that is closed while it is taken up costs a try.
const IDLE_TIME: Duration = Duration::from_secs(15);
/// Names that are held at once, an answer of the store, however many objects there are.
const LISTED_AT_ONCE: usize = 1_000;
/// Characters of a store's answer that a message repeats.
const ANSWER_CHARS_MAX: usize = 400;
const NO_BUCKET: &str = "there is no such bucket: make it, or correct the storage";
/// How long a buffer that was sent is waited for before it is given up to the connection that still holds it.
const RECLAIM_TIME: Duration = Duration::from_millis(50);

static FAILED_CALLS: AtomicU64 = AtomicU64::new(0);

/// Calls of this process to remote stores that failed after all their tries. That an object is not there is an answer.
pub fn failed_calls() -> u64 {
    FAILED_CALLS.load(Ordering::Relaxed)
}

/// The protocol of a remote store.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RemoteKind {
    /// Amazon S3 and what speaks like it.
    S3,
    /// Huawei OBS, by its own signatures.
    Obs,
}

impl RemoteKind {
    /// Its word.
    pub fn word(self) -> &'static str {
        match self {
            RemoteKind::S3 => "s3",
            RemoteKind::Obs => "obs",
        }
    }

    /// Reads the word.
    pub fn from_word(word: &str) -> Option<Self> {
        [RemoteKind::S3, RemoteKind::Obs]
            .into_iter()
            .find(|kind| kind.word() == word)
    }
}

/// Where a remote store is and how it is entered.
#[derive(Debug, Clone)]
pub struct RemoteSpec {
    /// Its protocol.
    pub kind: RemoteKind,
    /// `https://host` or `http://host:port`, without the bucket.
    pub endpoint: String,
    /// The bucket, which must exist.
    pub bucket: String,
    /// Put before every object name; may be empty.
    pub prefix: String,
    /// Region that requests are signed for; S3 only.
    pub region: String,
    /// Public half of the credentials.
    pub access_key: Secret,
    /// Secret half.
    pub secret_key: Secret,
}

/// See the module.
#[derive(Debug)]
pub(super) struct Remote {
    operator: Operator,
    /// For messages: `s3 bucket b at http://host`.
    place: String,
    /// Never to be seen in a message.
    secrets: [Secret; 2],
    /// Learnt: its ETags are not the MD5 of the bytes.
    has_foreign_etags: AtomicBool,
    /// Taken on drop.
    runtime: Option<Runtime>,
}

impl Drop for Remote {
    fn drop(&mut self) {
        // The plain drop of a runtime waits for its threads, and panics in the threads of another runtime.
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

/// How one call ended after its tries.
struct Failed {
    error: opendal::Error,
    tries: u32,
    after: Duration,
}

impl Remote {
    pub(super) fn open(spec: &RemoteSpec, patience: &Patience) -> Result<Self, Error> {
        let place = format!("{} bucket {} at {}", spec.kind.word(), spec.bucket, spec.endpoint);
        let unusable = |advice: &str| Error::new(Kind::Store, "open store", format!("{place}: {advice}"));
        check(spec).map_err(unusable)?;
        // Process-wide, and ours is the only provider of the tree: whoever was first installed the same.
        let _installed_already = rustls::crypto::ring::default_provider().install_default();
        let client = reqwest::Client::builder()
            .connect_timeout(patience.connect)
            .read_timeout(patience.silence)
            .pool_idle_timeout(IDLE_TIME)
            .pool_max_idle_per_host(IDLE_CONNECTIONS)
            // A store that answers with a redirect has the wrong endpoint or region: to follow it would send what
            // is signed for one host to another.
            .redirect(reqwest::redirect::Policy::none())
            .no_proxy()
            .build()
            .map_err(|e| unusable("the HTTP client cannot be made").because(e))?;
        let operator = match spec.kind {
            RemoteKind::S3 => Operator::new(
                opendal::services::S3::default()
                    .endpoint(&spec.endpoint)
                    .bucket(&spec.bucket)
                    .root(&format!("/{}", spec.prefix))
                    .region(&spec.region)
                    .access_key_id(spec.access_key.expose())
                    .secret_access_key(spec.secret_key.expose())
                    // Content-MD5: the oldest checksum of S3, so the one that most stores verify. A transfer that
                    // was damaged on its way there is refused by the store.
                    .checksum_algorithm("md5")
                    .disable_config_load()
                    .disable_ec2_metadata(),
            ),
            RemoteKind::Obs => Operator::new(
                opendal::services::Obs::default()
                    .endpoint(&spec.endpoint)
                    .bucket(&spec.bucket)
                    .root(&format!("/{}", spec.prefix))
                    .access_key_id(spec.access_key.expose())
                    .secret_access_key(spec.secret_key.expose()),
            ),
        };
        let operator = operator
            .map_err(|e| {
                unusable("endpoint, bucket or region is wrong").because(Answer(e.message().to_owned()))
            })?
            .with_context(
                OperationContext::new()
                    .with_http_transport(HttpTransporter::new(ReqwestTransport::new(client))),
            );
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .thread_name("store")
            .enable_all()
            .build()
            .map_err(|e| Error::io(Kind::Io, "open store", "start its thread", e))?;
        Ok(Self {
            operator,
            place,
            secrets: [spec.access_key.clone(), spec.secret_key.clone()],
            has_foreign_etags: AtomicBool::new(false),
            runtime: Some(runtime),
        })
    }

    /// See [`super::Store::put_buffer`].
    ///
    /// A try that failed may have succeeded: the answer may be what was lost. So before the bytes are sent again,
    /// and before they are given up, the store is asked whether it has them, and believed only where it shows them:
    /// the length alone would be the word of a server that has just failed.
    ///
    /// A try that succeeded may have stored bytes that were damaged on their way. Most stores verify Content-MD5,
    /// some ignore it; nearly all answer with the MD5 of what they have as ETag. Where that is another, the store
    /// must show the bytes; where it then has them after all, its ETags are something else (encryption by its own
    /// keys does that), and it is not asked again.
    pub(super) fn put(
        &self,
        name: &str,
        bytes: Vec<u8>,
        patience: &Patience,
        wanted: Wanted<'_>,
    ) -> Result<Vec<u8>, Error> {
        let bytes = Bytes::from(bytes);
        let md5 = to_hex(&md5::Md5::digest(&bytes));
        let since = Instant::now();
        let mut tries = 0;
        loop {
            tries += 1;
            let (operator, path, body) = (self.operator.clone(), name.to_owned(), bytes.clone());
            let sent = self.attempt(patience.attempt, wanted, "put object", async move {
                let stored = operator.write(&path, body).await?;
                Ok(stored
                    .etag()
                    .map(|etag| etag.trim_matches('"').to_ascii_lowercase()))
            })?;
            let error = match sent {
                Ok(etag) if etag.as_ref().is_none_or(|etag| *etag == md5) => return Ok(reclaim(bytes)),
                Ok(_) if self.has_foreign_etags.load(Ordering::Relaxed) => return Ok(reclaim(bytes)),
                Ok(_) if self.holds(name, &bytes, patience, wanted)? => {
                    self.has_foreign_etags.store(true, Ordering::Relaxed);
                    return Ok(reclaim(bytes));
                }
                Ok(_) => opendal::Error::new(
                    ErrorKind::Unexpected,
                    "the store has other bytes than it was sent",
                ),
                Err(error) => error,
            };
            let is_final = is_final(error.kind());
            if !is_final && self.holds(name, &bytes, patience, wanted)? {
                return Ok(reclaim(bytes));
            }
            let failed = Failed {
                error,
                tries,
                after: since.elapsed(),
            };
            if is_final || !self.may_try_again(&failed, patience, wanted)? {
                return Err(self.failure("put object", name, &failed));
            }
        }
    }

    /// Whether the store shows exactly these bytes under the name; one try, and a failure means no.
    fn holds(
        &self,
        name: &str,
        bytes: &Bytes,
        patience: &Patience,
        wanted: Wanted<'_>,
    ) -> Result<bool, Error> {
        let (operator, path, bytes) = (self.operator.clone(), name.to_owned(), bytes.clone());
        let shown = self.attempt(patience.attempt, wanted, "put object", async move {
            if operator.stat(&path).await?.content_length() != bytes.len() as u64 {
                return Ok(false);
            }
            let mut stream = operator.reader(&path).await?.into_stream(..).await?;
            let mut at = 0;
            while let Some(pieces) = stream.try_next().await? {
                for piece in pieces {
                    let end = at + piece.len();
                    if bytes.get(at..end) != Some(&piece[..]) {
                        return Ok(false);
                    }
                    at = end;
                }
            }
            Ok(at == bytes.len())
        })?;
        Ok(shown.unwrap_or(false))
    }

    /// See [`super::Store::get_into`].
    pub(super) fn get_into(
        &self,
        name: &str,
        bytes_max: u64,
        into: &mut Vec<u8>,
        patience: &Patience,
        wanted: Wanted<'_>,
    ) -> Result<(), Error> {
        let mut buffer = std::mem::take(into);
        let is_whole = self.tried("get object", name, patience, wanted, || {
            let (operator, path, mut bytes) = (
                self.operator.clone(),
                name.to_owned(),
                std::mem::take(&mut buffer),
            );
            bytes.clear();
            // Growing by doubling would take up to twice the size of a segment, for each of them.
            bytes.reserve_exact(usize::try_from(bytes_max).unwrap_or_default());
            async move {
                let mut stream = operator.reader(&path).await?.into_stream(..).await?;
                while let Some(pieces) = stream.try_next().await? {
                    if (bytes.len() + pieces.len()) as u64 > bytes_max {
                        return Ok(None);
                    }
                    for piece in pieces {
                        bytes.extend_from_slice(&piece);
                    }
                }
                Ok(Some(bytes))
            }
        })?;
        match is_whole {
            Some(bytes) => {
                *into = bytes;
                Ok(())
            }
            None => Err(Error::new(
                Kind::Tampered,
                "get object",
                format!("{name} is larger than {bytes_max} bytes"),
            )),
        }
    }

    /// The bytes of a piece of an object.
    pub(super) fn get_range(
        &self,
        name: &str,
        range: Range<u64>,
        patience: &Patience,
        wanted: Wanted<'_>,
    ) -> Result<Vec<u8>, Error> {
        self.tried("get object", name, patience, wanted, || {
            let (operator, path, range) = (self.operator.clone(), name.to_owned(), range.clone());
            async move { Ok(operator.read_with(&path).range(range).await?.to_vec()) }
        })
    }

    /// See [`super::Store::size`].
    pub(super) fn size(&self, name: &str, patience: &Patience, wanted: Wanted<'_>) -> Result<u64, Error> {
        self.tried("look at object", name, patience, wanted, || {
            let (operator, path) = (self.operator.clone(), name.to_owned());
            async move { Ok(operator.stat(&path).await?.content_length()) }
        })
    }

    /// See [`super::Store::delete`].
    pub(super) fn delete(&self, name: &str, patience: &Patience, wanted: Wanted<'_>) -> Result<(), Error> {
        self.tried("delete object", name, patience, wanted, || {
            let (operator, path) = (self.operator.clone(), name.to_owned());
            async move { operator.delete(&path).await }
        })
    }

    /// See [`super::Store::list_each`]; from behind a name on, where the store can do that.
    pub(super) fn list_each(
        &self,
        prefix: &str,
        behind: Option<&str>,
        patience: &Patience,
        wanted: Wanted<'_>,
        each: &mut dyn FnMut(&str) -> Result<(), Error>,
    ) -> Result<(), Error> {
        let below = if prefix.is_empty() {
            String::new()
        } else {
            format!("{prefix}/")
        };
        // Where it cannot be told where to go on, a listing that broke begins anew.
        let can_go_on = self.operator.info().capability().list_with_start_after;
        let mut lister = None;
        let mut newest = behind.map(str::to_owned);
        let mut since = Instant::now();
        let mut tries = 0;
        loop {
            tries += 1;
            let (operator, below) = (self.operator.clone(), below.clone());
            let (held, after) = (lister.take(), newest.clone().filter(|_| can_go_on));
            let listed = self.attempt(patience.attempt, wanted, "list objects", async move {
                let mut lister = match (held, after) {
                    (Some(held), _) => held,
                    (None, None) => operator.lister_with(&below).recursive(true).await?,
                    (None, Some(after)) => {
                        let begun = operator.lister_with(&below).recursive(true).start_after(&after);
                        begun.await?
                    }
                };
                let mut names: Vec<String> = Vec::new();
                while names.len() < LISTED_AT_ONCE {
                    match lister.try_next().await? {
                        None => return Ok((names, None)),
                        Some(entry) if entry.metadata().is_file() => names.push(entry.path().to_owned()),
                        Some(_folder) => {}
                    }
                }
                Ok((names, Some(lister)))
            })?;
            let error = match listed {
                Err(error) => error,
                Ok((names, more)) => {
                    for name in names.iter().filter(|name| super::check_name(name).is_ok()) {
                        each(name)?;
                    }
                    if more.is_none() {
                        return Ok(());
                    }
                    lister = more;
                    newest = names.into_iter().max().max(newest);
                    if can_go_on {
                        tries = 0;
                        since = Instant::now();
                    }
                    continue;
                }
            };
            let failed = Failed {
                error,
                tries,
                after: since.elapsed(),
            };
            if is_final(failed.error.kind()) || !self.may_try_again(&failed, patience, wanted)? {
                return Err(self.failure("list objects", prefix, &failed));
            }
        }
    }

    /// Tries until it works, the answer is final or the patience is over.
    fn tried<T, F>(
        &self,
        operation: &'static str,
        name: &str,
        patience: &Patience,
        wanted: Wanted<'_>,
        mut make: impl FnMut() -> F,
    ) -> Result<T, Error>
    where
        T: Send + 'static,
        F: Future<Output = opendal::Result<T>> + Send + 'static,
    {
        let since = Instant::now();
        let mut tries = 0;
        loop {
            tries += 1;
            let error = match self.attempt(patience.attempt, wanted, operation, make())? {
                Ok(value) => return Ok(value),
                Err(error) => error,
            };
            let failed = Failed {
                error,
                tries,
                after: since.elapsed(),
            };
            if is_final(failed.error.kind()) || !self.may_try_again(&failed, patience, wanted)? {
                return Err(self.failure(operation, name, &failed));
            }
        }
    }

    /// One try, on the runtime, while this thread asks whether it is still wanted.
    fn attempt<T: Send + 'static>(
        &self,
        limit: Duration,
        wanted: Wanted<'_>,
        operation: &'static str,
        work: impl Future<Output = opendal::Result<T>> + Send + 'static,
    ) -> Result<opendal::Result<T>, Error> {
        let Some(runtime) = &self.runtime else {
            return Err(Error::new(Kind::Store, operation, "the store is being closed"));
        };
        let (send, receive) = sync_channel(1);
        let task = runtime.spawn(async move {
            let done = tokio::time::timeout(limit, work)
                .await
                .unwrap_or_else(|_elapsed| {
                    let text = format!("no end after {} s", limit.as_secs_f32());
                    Err(opendal::Error::new(ErrorKind::Unexpected, text))
                });
            // Nobody receives it where the caller has gone.
            let _gone = send.send(done);
        });
        loop {
            match receive.recv_timeout(ASK_EVERY) {
                Ok(done) => return Ok(done),
                Err(RecvTimeoutError::Timeout) => {
                    if let Err(e) = wanted() {
                        task.abort();
                        return Err(e);
                    }
                }
                Err(RecvTimeoutError::Disconnected) => {
                    return Err(Error::new(
                        Kind::Store,
                        operation,
                        format!("{}: the client of the store panicked", self.place),
                    ));
                }
            }
        }
    }

    /// Pauses before the next try; `false` where the patience is over.
    fn may_try_again(&self, failed: &Failed, patience: &Patience, wanted: Wanted<'_>) -> Result<bool, Error> {
        let pause = patience.pause_after(failed.tries);
        if failed.tries >= patience.tries || failed.after + pause >= patience.total {
            return Ok(false);
        }
        tracing::debug!(
            store = self.place,
            tries = failed.tries,
            error = self.answer(&failed.error).0,
            "trying again"
        );
        let until = Instant::now() + pause;
        loop {
            wanted()?;
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Ok(true);
            }
            std::thread::sleep(left.min(ASK_EVERY));
        }
    }

    fn failure(&self, operation: &'static str, name: &str, failed: &Failed) -> Error {
        let answer = self.answer(&failed.error);
        let is_put = operation == "put object";
        let no_bucket = answer.0.contains("NoSuchBucket");
        let no_room = [
            "QuotaExceeded",
            "StorageFull",
            "InsufficientStorage",
            "NotEnoughSpace",
        ]
        .iter()
        .any(|word| answer.0.contains(word));
        let (kind, advice) = match failed.error.kind() {
            ErrorKind::PermissionDenied => (
                Kind::StoreAccess,
                "it refuses us: check the credentials, their rights on the bucket, and this machine's clock",
            ),
            ErrorKind::NotFound if is_put || no_bucket => (
                Kind::Store,
                "there is no such bucket: make it, or correct the storage",
            ),
            ErrorKind::NotFound => (Kind::NotFound, "it is not there"),
            _ if no_bucket => (Kind::Store, NO_BUCKET),
            ErrorKind::ConfigInvalid | ErrorKind::Unsupported => {
                (Kind::Store, "the storage is described wrongly")
            }
            _ if no_room => (Kind::StoreFull, "the store has no room"),
            _ => (Kind::Store, "the store fails or cannot be reached"),
        };
        if kind != Kind::NotFound {
            FAILED_CALLS.fetch_add(1, Ordering::Relaxed);
        }
        let tries = match failed.tries {
            1 => "once".to_owned(),
            tries => format!("{tries} times in {:.1} s", failed.after.as_secs_f32()),
        };
        let context = format!("{name} in {}: {advice} (tried {tries})", self.place);
        Error::new(kind, operation, context).because(answer)
    }

    /// What the store or the connection said, without what opendal adds (headers, addresses) and without anything
    /// of ours that is secret.
    fn answer(&self, error: &opendal::Error) -> Answer {
        let mut text = error.message().to_owned();
        let mut next = std::error::Error::source(error);
        while let Some(cause) = next {
            text.push_str(": ");
            text.push_str(&cause.to_string());
            next = cause.source();
        }
        for secret in &self.secrets {
            text = text.replace(secret.expose(), "***");
        }
        if text.is_empty() {
            text = format!("no text ({})", error.kind());
        }
        let is_plain = |c: char| !c.is_control();
        Answer(
            text.chars()
                .filter(|c| is_plain(*c))
                .take(ANSWER_CHARS_MAX)
                .collect(),
        )
    }
}

/// The words of a store, as the cause of an error.
#[derive(Debug)]
struct Answer(String);

impl std::fmt::Display for Answer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Answer {}

/// What another try would not change. Everything else may be a fault of the moment: a request that was damaged on
/// its way is answered with a plain 400.
fn is_final(kind: ErrorKind) -> bool {
    matches!(
        kind,
        ErrorKind::NotFound | ErrorKind::PermissionDenied | ErrorKind::ConfigInvalid | ErrorKind::Unsupported
    )
}

/// The buffer that was sent, emptied. The connection lets go of it a moment after the answer; where it does not, the
/// caller gets a new one and this one goes when it is let go.
fn reclaim(mut bytes: Bytes) -> Vec<u8> {
    let until = Instant::now() + RECLAIM_TIME;
    let length = bytes.len();
    loop {
        match bytes.try_into_mut() {
            Ok(unique) => {
                let mut buffer = Vec::from(unique);
                buffer.clear();
                return buffer;
            }
            Err(_shared) if Instant::now() >= until => return Vec::with_capacity(length),
            Err(shared) => bytes = shared,
        }
        std::thread::sleep(Duration::from_millis(1));
    }
}

fn check(spec: &RemoteSpec) -> Result<(), &'static str> {
    let host = spec
        .endpoint
        .strip_prefix("https://")
        .or_else(|| spec.endpoint.strip_prefix("http://"))
        .ok_or("the endpoint must begin with https:// or http://")?
        .trim_end_matches('/');
    if host.is_empty() || host.contains(['@', '?', '#']) || spec.endpoint.contains(char::is_whitespace) {
        return Err("the endpoint is https://HOST[:PORT], without credentials and without a query");
    }
    if spec.kind == RemoteKind::Obs && host.contains(':') {
        // opendal leaves it out without a word.
        return Err("an endpoint of kind obs cannot have a port: use kind s3, which OBS speaks too");
    }
    let is_bucket = |text: &str| {
        (3..=63).contains(&text.len())
            && text
                .bytes()
                .all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || matches!(byte, b'-' | b'.'))
    };
    if !is_bucket(&spec.bucket) {
        return Err("a bucket's name has 3 to 63 lower-case letters, digits, dots and hyphens");
    }
    if !spec.prefix.is_empty() && super::check_name(&spec.prefix).is_err() {
        return Err("a prefix is made of A-Z a-z 0-9 . _ - between single slashes");
    }
    if spec.kind == RemoteKind::S3 && spec.region.is_empty() {
        return Err("the region is missing; where the store has none, us-east-1 will do");
    }
    if spec.access_key.expose().is_empty() || spec.secret_key.expose().is_empty() {
        return Err("the access key or its secret half is empty");
    }
    Ok(())
}
