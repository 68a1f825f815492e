//! Compares single keys: value by `DUMP`, expiry by `PEXPIRETIME`; before redis 7.0 by `PTTL` between two looks at the
//! engine's clock.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use crate::control::Control;
use crate::error::{Error, Kind};
use crate::node::{Node, Reply};
use crate::process::is_before_7;
use crate::sideload::Sampled;

use super::mismatch;

/// Requests that are under way at once: bounds what the engine must hold ready for us.
const BATCH_KEYS: usize = 256;
const BATCH_BYTES: u64 = 1024 * 1024;
/// Piece of a dump that is looked at in one go.
const PIECE_BYTES: usize = 256 * 1024;
/// Characters of a key's name in a message.
const KEY_PREFIX_CHARS: usize = 24;

#[derive(Debug, Default)]
pub(super) struct Compared {
    pub(super) compared: u64,
    pub(super) expired: u64,
}

/// The keys must be sorted by db.
///
/// # Errors
/// As [`super::verify`].
pub(super) fn sample(node: &mut Node, keys: &[Sampled], control: &Control) -> Result<Compared, Error> {
    let mut done = Compared::default();
    let mut piece = vec![0; PIECE_BYTES];
    let fields = node.info("server")?;
    let field = |name: &str| fields.iter().find(|(field, _)| field == name);
    let family = match field("server_name") {
        Some((_, name)) if name == "valkey" => rdb::Family::Valkey,
        _ => rdb::Family::Redis,
    };
    let knows_times = !field("redis_version").is_some_and(|(_, version)| is_before_7(version));
    let mut selected = None;
    let mut rest = keys;
    while let Some(first) = rest.first() {
        control.check("verify")?;
        if selected != Some(first.db) {
            node.run(&["SELECT", &first.db.to_string()])?;
            selected = Some(first.db);
        }
        let (batch, later) = rest.split_at(batch_len(rest));
        rest = later;
        for key in batch {
            node.send(&[b"DUMP", &key.key])?;
            match knows_times {
                true => node.send(&[b"PEXPIRETIME", &key.key])?,
                false => {
                    node.send(&[b"TIME"])?;
                    node.send(&[b"PTTL", &key.key])?;
                    node.send(&[b"TIME"])?;
                }
            }
        }
        for key in batch {
            let is_there = compare_value(node, key, family, &mut piece)?;
            let expire_at = match knows_times {
                true => node.reply()?,
                false => expiry_by_clock(node, key)?,
            };
            let is_expired = compare_expiry(key, is_there, &expire_at)?;
            done.compared += u64::from(is_there);
            done.expired += u64::from(is_expired && !is_there);
        }
    }
    Ok(done)
}

/// What `PEXPIRETIME` would say, from the answers to `TIME`, `PTTL` and `TIME`: the backup's time where it lies between the
/// earliest and the latest that the key can have, else the earliest.
fn expiry_by_clock(node: &mut Node, key: &Sampled) -> Result<Reply, Error> {
    let before = node.reply()?;
    let left = node.reply()?;
    let after = node.reply()?;
    let (Some(before), Some(after)) = (clock_ms(&before), clock_ms(&after)) else {
        let context = format!("TIME of {}: {before:?}, {after:?}", name(key));
        return Err(Error::new(Kind::Protocol, "verify", context));
    };
    Ok(match left {
        Reply::Int(left) if left >= 0 => {
            let (earliest, latest) = (before + left, after + left);
            let is_between = |at: &i64| (earliest..=latest).contains(at);
            Reply::Int(key.expire_at_ms.filter(is_between).unwrap_or(earliest))
        }
        other => other,
    })
}

/// The clock that an engine answers to `TIME`: seconds and microseconds.
fn clock_ms(reply: &Reply) -> Option<i64> {
    let Reply::Array(words) = reply else { return None };
    let mut numbers = words.iter().map(|word| word.text()?.parse::<i64>().ok());
    Some(numbers.next()?? * 1000 + numbers.next()?? / 1000)
}

/// Keys of one db, as many as fit a batch, at least one.
fn batch_len(keys: &[Sampled]) -> usize {
    let mut bytes = 0;
    let mut len = 0;
    for key in keys.iter().take(BATCH_KEYS) {
        bytes += key.bytes;
        if len > 0 && (key.db != keys[0].db || bytes > BATCH_BYTES) {
            break;
        }
        len += 1;
    }
    len
}

/// Reads the reply to `DUMP`; `false` where there is no such key.
fn compare_value(
    node: &mut Node,
    key: &Sampled,
    family: rdb::Family,
    piece: &mut [u8],
) -> Result<bool, Error> {
    let header = String::from_utf8_lossy(&node.line()?).into_owned();
    let len: i64 = match header.strip_prefix('$').map(str::parse) {
        Some(Ok(len)) => len,
        _ => {
            let kind = if header.starts_with('-') {
                Kind::Refused
            } else {
                Kind::Protocol
            };
            return Err(Error::new(
                kind,
                "verify",
                format!("DUMP of {}: {header}", name(key)),
            ));
        }
    };
    let Ok(len) = u64::try_from(len) else {
        return Ok(false);
    };
    let unreadable = |e: rdb::Error| mismatch(format!("{}: the engine's dump is not valid: {e}", name(key)));
    let mut validator = rdb::DumpValidator::new(len, family);
    let mut left = len;
    while left > 0 {
        let most = usize::try_from(left).unwrap_or(usize::MAX).min(piece.len());
        let count = node.read_some(&mut piece[..most])?;
        validator.feed(&piece[..count]).map_err(unreadable)?;
        left -= count as u64;
    }
    node.read_exact(&mut [0; 2])?;
    let actual = validator.finish().map_err(unreadable)?;
    if actual.kind != key.kind {
        return Err(mismatch(format!(
            "{} is a {}, in the backup a {}",
            name(key),
            actual.kind.name(),
            key.kind.name()
        )));
    }
    if actual.value_digest != key.value_digest {
        return Err(mismatch(format!(
            "{} has another value than in the backup",
            name(key)
        )));
    }
    Ok(true)
}

/// Whether the key's time was up before we asked; on a standby such a key is there but cannot be read.
fn compare_expiry(key: &Sampled, is_there: bool, reply: &Reply) -> Result<bool, Error> {
    let now_ms = now_ms();
    let is_expired = key.expire_at_ms.is_some_and(|at| at <= now_ms);
    let expected = key.expire_at_ms.unwrap_or(-1);
    match reply {
        Reply::Int(-2) if is_expired => Ok(true),
        Reply::Int(-2) => Err(mismatch(format!("{} is missing", name(key)))),
        Reply::Int(actual) if *actual == expected && is_there => Ok(false),
        Reply::Int(actual) if *actual == expected => Err(mismatch(format!("{} is missing", name(key)))),
        Reply::Int(actual) => Err(mismatch(format!(
            "{} expires at {actual}, in the backup at {expected} (ms; -1 = never)",
            name(key)
        ))),
        other => Err(Error::new(
            Kind::Refused,
            "verify",
            format!("PEXPIRETIME of {}: {other:?}", name(key)),
        )),
    }
}

fn now_ms() -> i64 {
    let since = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or(Duration::ZERO);
    i64::try_from(since.as_millis()).unwrap_or(i64::MAX)
}

/// A key for a message: enough to find it, not the whole of it.
fn name(key: &Sampled) -> String {
    let hash = blake3::hash(&key.key);
    let text = String::from_utf8_lossy(&key.key);
    let prefix: String = text.chars().take(KEY_PREFIX_CHARS).collect();
    let more = if prefix.len() < text.len() { "..." } else { "" };
    format!(
        "db {} key {:?}{more} (blake3 {})",
        key.db,
        prefix,
        &hash.to_hex()[..16]
    )
}
