//! What keeps an engine from loading a file as it is: what its version of `rdbLoadRio` and `rdbLoadObject` (src/rdb.c) refuses,
//! and what is known to end it.

use std::collections::BTreeMap;

use crate::event::KeySummary;
use crate::opcode::{Family, VALKEY_VERSION};
use crate::report::Report;
use crate::writer::{TARGETS, Target};

/// The last version of the magic `REDIS` that Valkey reads; those behind it are of Redis alone.
const VERSION_SHARED: u32 = 11;
/// Engines before the first that writes how many keys a slot has: to them it is an unknown type.
const WITHOUT_SLOT_INFO: [&str; 6] = [
    "redis-5.0",
    "redis-6.0",
    "redis-6.2",
    "redis-7.0",
    "redis-7.2",
    "valkey-7.2",
];
/// Engines that refuse a stream whose stored length is not that of its entries, which older ones miscounted.
const COUNTS_STREAMS: [&str; 1] = ["valkey-9.1"];

/// How many keys have each type code, which tells their encoding.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct TypeCodes(BTreeMap<u8, u64>);

impl TypeCodes {
    /// Counts a key.
    pub fn add(&mut self, key: &KeySummary<'_>) {
        *self.0.entry(key.type_code).or_default() += 1;
    }

    /// Adds what was counted of other keys.
    pub fn absorb(&mut self, other: &Self) {
        for (code, keys) in &other.0 {
            *self.0.entry(*code).or_default() += keys;
        }
    }
}

/// Why the engine of a name in [`TARGETS`] loads no file of this family and version, whatever is in it; `None` where it may, and
/// for another name.
pub fn obstacle_of_version(engine: &str, family: Family, version: u32) -> Option<String> {
    let target = Target::by_name(engine)?;
    let magic = family.magic();
    let last = match (family, target.family()) {
        (Family::Redis, Family::Valkey) => VERSION_SHARED,
        (Family::Redis, Family::Redis) => target.version(),
        (Family::Valkey, Family::Valkey) => VALKEY_VERSION,
        (Family::Valkey, Family::Redis) => {
            return Some(format!("files with the magic {magic} are of another family"));
        }
    };
    let since = TARGETS
        .iter()
        .find(|(_, of, reads)| *of == family && *reads >= version);
    let since = since.map_or_else(String::new, |(name, ..)| format!("; {name} does"));
    (version > last).then(|| format!("it reads {magic} files up to version {last}, this is {version}{since}"))
}

/// Why the engine of a name in [`TARGETS`] does not load a file as it is, one clause each; none where it does. `None` for
/// another name.
///
/// An engine is taken as it is delivered: outside of a cluster, without modules, and with the check of the version on.
pub fn obstacles(engine: &str, report: &Report, codes: &TypeCodes) -> Option<Vec<String>> {
    let target = Target::by_name(engine)?;
    let mut found = Vec::new();
    found.extend(obstacle_of_version(engine, report.family, report.rdb_version));
    for (code, keys) in &codes.0 {
        if !target.reads(report.family, *code) {
            found.push(format!(
                "{keys} keys are of the type code {code}, which it does not know"
            ));
        }
    }
    if !report.functions.is_empty() && !target.has_functions() {
        found.push("it knows no functions".to_owned());
    }
    for module in &report.modules {
        found.push(format!("the module type {} needs its module", module.name));
    }
    if report.slot_infos > 0 && WITHOUT_SLOT_INFO.contains(&engine) {
        found.push("it does not know what is said of slots".to_owned());
    }
    if !report.slot_imports.is_empty() {
        found.push("slots were on the move when it was written".to_owned());
    }
    if let Some(keys) = report.excessive_hint {
        found.push(format!(
            "a database is announced with {keys} keys, for which it may not get memory"
        ));
    }
    let miscounted = |what: &str| what == crate::stream::MISCOUNTED;
    if COUNTS_STREAMS.contains(&engine) && report.warnings.iter().any(|warning| miscounted(warning.what)) {
        found.push("a stream's length is not that of its entries".to_owned());
    }
    Some(found)
}
