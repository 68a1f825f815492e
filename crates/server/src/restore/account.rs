//! What became of every key, as it is told: counts, and the first of each kind by name.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use engine::replay::{Account, Named, Tally};
use serde_json::{Map, Value, json};

/// The kinds, in the order in which they are told.
pub fn kinds(account: &Account) -> [(&'static str, &Tally); 7] {
    [
        ("applied", &account.applied),
        ("skipped", &account.skipped),
        ("conflicting", &account.conflicting),
        ("expired", &account.expired),
        ("failed", &account.failed),
        ("reduced", &account.reduced),
        ("removed", &account.removed),
    ]
}

/// The first keys of each kind.
pub fn named(account: &Account) -> Value {
    let one = |named: &Named| {
        let mut value = json!({"db": named.db, "key": key_as_json(&named.key)});
        if !named.reason.is_empty() {
            value["reason"] = json!(named.reason);
        }
        value
    };
    let all = kinds(account).into_iter().map(|(name, tally)| {
        let first: Value = tally.first.iter().map(one).collect();
        (name.to_owned(), first)
    });
    let mut all: Map<_, _> = all.collect();
    if let Some(why) = &account.functions_left {
        all.insert("functions_left".to_owned(), json!(why));
    }
    Value::Object(all)
}

/// A key: as text where it is printable, else `{"b64": ...}`.
pub fn key_as_json(key: &[u8]) -> Value {
    match std::str::from_utf8(key) {
        Ok(text) if !text.chars().any(char::is_control) => json!(text),
        _ => json!({"b64": STANDARD.encode(key)}),
    }
}
