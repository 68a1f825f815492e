//! What is counted key by key, in bounded memory: sizes, prefixes, the biggest keys.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashMap};

use serde_json::{Value, json};

/// Big keys that are named.
const BIGGEST_KEYS: usize = 20;
/// Prefixes that are counted apart; keys of later ones count as `(other)`.
pub(in crate::cli) const PREFIXES_MAX: usize = 4096;
/// Prefixes that are shown, the largest first.
const PREFIXES_SHOWN: usize = 20;
/// Bytes of a prefix: what is longer is no prefix that people chose.
const PREFIX_BYTES_MAX: usize = 64;
/// Bytes of a key's name that are shown.
const NAME_BYTES_MAX: usize = 256;
/// Upper ends of the size classes in bytes; the last class has none.
const SIZE_ENDS: [u64; 7] = [64, 256, 1024, 8 * 1024, 64 * 1024, 1024 * 1024, 16 * 1024 * 1024];
const SIZE_NAMES: [&str; 8] = [
    "up to 64 B",
    "256 B",
    "1 KiB",
    "8 KiB",
    "64 KiB",
    "1 MiB",
    "16 MiB",
    "above",
];
/// Names of the classes of [`rdb::Ttl::buckets`].
pub(super) const TTL_NAMES: [&str; 6] = [
    "expired",
    "below 1 hour",
    "below 1 day",
    "below 7 days",
    "below 30 days",
    "above",
];

#[derive(Default, Clone, Copy)]
struct Sums {
    keys: u64,
    elements: u64,
    bytes: u64,
}

impl Sums {
    fn add(&mut self, key: &rdb::KeySummary<'_>) {
        self.keys += 1;
        self.elements = self.elements.saturating_add(key.elements);
        self.bytes += key.bytes;
    }
}

/// Ordered by size, and then the earlier in the file before the later: so it is no matter who counts which key.
#[derive(PartialEq, Eq, PartialOrd, Ord)]
struct Big {
    bytes: u64,
    offset: Reverse<u64>,
    db: u32,
    name: Vec<u8>,
    kind: rdb::Type,
    elements: u64,
    expire_at_ms: Option<i64>,
}

#[derive(Default)]
pub(super) struct Survey {
    pub(super) keys: u64,
    pub(super) expires: u64,
    pub(super) expiring_fields: u64,
    pub(super) type_codes: rdb::TypeCodes,
    prefixes: HashMap<Vec<u8>, Sums>,
    other: Sums,
    sizes: [u64; SIZE_NAMES.len()],
    biggest: BinaryHeap<Reverse<Big>>,
}

/// What stands before the first colon, with it; nothing for a key without one.
pub(in crate::cli) fn prefix(key: &[u8]) -> &[u8] {
    let head = &key[..key.len().min(PREFIX_BYTES_MAX)];
    match head.iter().position(|byte| *byte == b':') {
        Some(at) => &head[..=at],
        None => b"",
    }
}

impl rdb::Sink for Survey {
    fn key(&mut self, key: &rdb::KeySummary<'_>) {
        self.keys += 1;
        self.expires += u64::from(key.expire_at_ms.is_some());
        self.expiring_fields += key.expiring_elements;
        self.type_codes.add(key);
        let class = SIZE_ENDS.iter().take_while(|end| key.bytes > **end).count();
        self.sizes[class] += 1;
        let prefix = prefix(key.key);
        let has_room = self.prefixes.len() < PREFIXES_MAX;
        match self.prefixes.get_mut(prefix) {
            Some(sums) => sums.add(key),
            None if has_room => self.prefixes.entry(prefix.to_vec()).or_default().add(key),
            None => self.other.add(key),
        }
        let is_big = self.biggest.len() < BIGGEST_KEYS
            || self
                .biggest
                .peek()
                .is_some_and(|Reverse(least)| key.bytes > least.bytes);
        if is_big {
            self.biggest.push(Reverse(Big {
                bytes: key.bytes,
                offset: Reverse(key.offset),
                db: key.db,
                name: key.key[..key.key.len().min(NAME_BYTES_MAX)].to_vec(),
                kind: key.kind,
                elements: key.elements,
                expire_at_ms: key.expire_at_ms,
            }));
            if self.biggest.len() > BIGGEST_KEYS {
                self.biggest.pop();
            }
        }
    }
}

impl Survey {
    /// Adds what was counted of other keys. `false`: there are more prefixes than are counted apart, and which ones are is not
    /// what it would be if one had counted all keys.
    pub(super) fn absorb(&mut self, other: Self) -> bool {
        self.keys += other.keys;
        self.expires += other.expires;
        self.expiring_fields += other.expiring_fields;
        self.type_codes.absorb(&other.type_codes);
        for (sum, keys) in self.sizes.iter_mut().zip(other.sizes) {
            *sum += keys;
        }
        for (prefix, more) in other.prefixes {
            let sums = self.prefixes.entry(prefix).or_default();
            sums.keys += more.keys;
            sums.elements = sums.elements.saturating_add(more.elements);
            sums.bytes += more.bytes;
        }
        self.biggest.extend(other.biggest);
        while self.biggest.len() > BIGGEST_KEYS {
            self.biggest.pop();
        }
        self.prefixes.len() <= PREFIXES_MAX && self.other.keys + other.other.keys == 0
    }

    /// The prefixes with the most bytes.
    pub(super) fn prefixes(&self) -> Value {
        let mut prefixes: Vec<(&[u8], Sums)> = self
            .prefixes
            .iter()
            .map(|(prefix, sums)| (&prefix[..], *sums))
            .collect();
        prefixes.sort_by_key(|(prefix, sums)| (Reverse(sums.bytes), *prefix));
        let mut other = self.other;
        for (_, sums) in prefixes.iter().skip(PREFIXES_SHOWN) {
            other.keys += sums.keys;
            other.elements = other.elements.saturating_add(sums.elements);
            other.bytes += sums.bytes;
        }
        let mut rows: Vec<Value> = prefixes
            .iter()
            .take(PREFIXES_SHOWN)
            .map(|(prefix, sums)| row(&shown(prefix), *sums))
            .collect();
        if other.keys > 0 {
            rows.push(row("(other)", other));
        }
        Value::Array(rows)
    }

    /// Keys by the bytes of their entry.
    pub(super) fn sizes(&self) -> Value {
        let classes = SIZE_NAMES
            .iter()
            .zip(self.sizes)
            .map(|(name, keys)| json!({"size": name, "keys": keys}));
        Value::Array(classes.collect())
    }

    /// The biggest keys, the biggest first.
    pub(super) fn biggest(self) -> Value {
        let keys = self.biggest.into_sorted_vec();
        let keys = keys.into_iter().map(|Reverse(key)| {
            json!({"db": key.db, "key": shown(&key.name), "type": key.kind.name(), "elements": key.elements,
                   "bytes": key.bytes, "pexpiretime": key.expire_at_ms})
        });
        Value::Array(keys.collect())
    }
}

fn row(prefix: &str, sums: Sums) -> Value {
    json!({"prefix": prefix, "keys": sums.keys, "elements": sums.elements, "bytes": sums.bytes})
}

/// A name as text that a terminal takes no orders from.
pub(in crate::cli) fn shown(bytes: &[u8]) -> String {
    let text = String::from_utf8_lossy(bytes);
    text.chars()
        .flat_map(|letter| {
            let plain = (!letter.is_control()).then_some(letter);
            let escaped = letter.is_control().then(|| letter.escape_default());
            plain.into_iter().chain(escaped.into_iter().flatten())
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn prefixes_reach_to_the_first_colon_and_names_give_no_orders() {
        assert_eq!(prefix(b"user:1:name"), b"user:");
        assert_eq!(prefix(b"plain"), b"");
        assert_eq!(prefix(&[&[b'x'; 100][..], b":"].concat()), b"");
        assert_eq!(shown(b"a\x1b[2Jb\n\xff"), "a\\u{1b}[2Jb\\n\u{fffd}");
    }
}
