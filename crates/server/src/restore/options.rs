//! What becomes of a backup's keys where it is applied key by key: the field `replay` of a restore, the column of its record, and
//! what the command line is told, as one thing.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};
use std::time::Duration;

use engine::Selection;
use engine::replay::{Conflict, Expiry, Form, Functions, Naming, Others, Plan, Shape};
use serde::{Deserialize, Serialize};

use crate::ids::Moment;

/// How long it is tried to go on after a connection broke or a node failed, unless somebody says it; and at most.
const PATIENCE_SECONDS: u64 = 60;
const PATIENCE_SECONDS_MAX: u64 = 3600;
/// The longest pattern of keys.
const GLOB_BYTES_MAX: usize = 1024;

/// What becomes of the target's other keys.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "snake_case")]
pub enum Mode {
    /// They are removed, after all of the backup is there.
    #[default]
    Replace,
    /// They stay.
    Merge,
}

/// What becomes of a key that the target has already.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "snake_case")]
pub enum OnConflict {
    /// Nothing is written if there is any.
    Fail,
    /// It stays as it is.
    Skip,
    /// It is overwritten.
    #[default]
    Replace,
}

/// When keys expire.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "snake_case")]
pub enum OnExpiry {
    /// When they would have.
    #[default]
    Absolute,
    /// As long from now as they would have when the backup was made.
    Shift,
    /// Never.
    Strip,
}

/// How a backup is applied key by key.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Options {
    /// What becomes of the target's other keys: of those with a name and in a database that could have been selected.
    pub mode: Mode,
    /// What becomes of a key that the target has already.
    pub on_conflict: OnConflict,
    /// When keys expire.
    pub expiry: OnExpiry,
    /// Pairs of databases: keys of the first go to the second.
    pub map_db: Vec<[u32; 2]>,
    /// Each key gets this before its name.
    pub into_prefix: Option<String>,
    /// A pair: names that begin with the first begin with the second instead.
    pub rewrite: Option<[String; 2]>,
    /// Whether libraries of functions are loaded. They are code.
    pub functions: bool,
    /// Whether the target has the libraries of the backup and no others: what takes back a restore that has loaded some. No caller
    /// can ask for it.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub functions_exact: bool,
    /// Whether values are sent as the commands that make them.
    pub commands: bool,
    /// At most so many keys in a second.
    pub max_ops: Option<u64>,
    /// It is written more slowly while the target takes longer than this to answer a PING.
    pub max_latency_ms: Option<u64>,
    /// Seconds for which it is tried to go on after a connection broke or a node failed.
    pub patience: u64,
    /// Whether the target is backed up first, so that it can be put back.
    pub safety_point: bool,
    /// Which keys.
    pub select: Select,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            mode: Mode::default(),
            on_conflict: OnConflict::default(),
            expiry: OnExpiry::default(),
            map_db: Vec::new(),
            into_prefix: None,
            rewrite: None,
            functions: false,
            functions_exact: false,
            commands: false,
            max_ops: None,
            max_latency_ms: None,
            patience: PATIENCE_SECONDS,
            safety_point: true,
            select: Select::default(),
        }
    }
}

/// Which keys are meant: those that everything which is said holds for.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Select {
    /// Of any of these databases; none: of every one.
    pub db: BTreeSet<u32>,
    /// Any of these; none: every key.
    pub key: Vec<String>,
    /// As KEYS matches.
    #[serde(rename = "match")]
    pub glob: Option<String>,
    /// A regular expression that is found in the key.
    pub regex: Option<String>,
    /// With what the key begins.
    pub prefix: Option<String>,
    /// Of any of these types.
    #[serde(rename = "type")]
    pub kinds: Vec<String>,
    /// `0-8191`
    pub slots: Option<String>,
    /// So many serialised bytes: `1000..`, `..1000`, `10..1000`.
    pub size: Option<String>,
    /// `none`, `any`, or so many seconds after the backup was made: `3600..`, `..3600`.
    pub ttl: Option<String>,
}

impl Select {
    /// What the engine is told. The error is the name of the field that cannot be read.
    ///
    /// # Errors
    /// One cannot be read.
    pub fn selection(&self) -> Result<Selection, &'static str> {
        fn read<T: std::str::FromStr>(
            text: Option<&String>,
            name: &'static str,
        ) -> Result<Option<T>, &'static str> {
            text.map(|text| text.parse().map_err(|_| name)).transpose()
        }
        let bytes = |text: &Option<String>| text.clone().map(String::into_bytes);
        let kinds = self.kinds.iter().map(|name| type_by_name(name));
        let size = self.size.as_deref().map(sizes).transpose();
        // What a pattern costs grows with its length times that of each key.
        if self.glob.as_ref().is_some_and(|glob| glob.len() > GLOB_BYTES_MAX) {
            return Err("replay.select.match");
        }
        Ok(Selection {
            dbs: self.db.clone(),
            keys: self
                .key
                .iter()
                .cloned()
                .map(String::into_bytes)
                .collect::<HashSet<_>>(),
            glob: bytes(&self.glob),
            pattern: read(self.regex.as_ref(), "replay.select.regex")?,
            prefix: bytes(&self.prefix),
            kinds: kinds
                .collect::<Result<_, _>>()
                .map_err(|_| "replay.select.type")?,
            slots: read(self.slots.as_ref(), "replay.select.slots")?,
            bytes: size.map_err(|_| "replay.select.size")?,
            ttl: read(self.ttl.as_ref(), "replay.select.ttl")?,
            // What the files say.
            written_ms: 0,
        })
    }
}

impl Options {
    /// What the engine is told; a journal and a folder for what memory does not hold are its caller's. The error is the name of the
    /// field that cannot be.
    ///
    /// # Errors
    /// One cannot be read, or two do not go together.
    pub fn plan(&self, journal: Option<PathBuf>, spill: &Path, now: Moment) -> Result<Plan, &'static str> {
        let mut dbs = BTreeMap::new();
        for [from, to] in &self.map_db {
            if dbs.insert(*from, *to).is_some_and(|earlier| earlier != *to) {
                return Err("replay.map_db");
            }
        }
        let naming = match (&self.into_prefix, &self.rewrite) {
            (Some(_), Some(_)) => return Err("replay.rewrite"),
            (_, Some([old, new])) if old == new => return Err("replay.rewrite"),
            (Some(prefix), None) => Naming::Into(prefix.clone().into_bytes()),
            (None, Some([old, new])) => Naming::Rewritten(old.clone().into_bytes(), new.clone().into_bytes()),
            (None, None) => Naming::Kept,
        };
        let selection = self.select.selection()?;
        if self.mode == Mode::Replace && selection.judges_values() {
            // Of a key that is not in the backup it cannot be said whether it would be selected.
            return Err("replay.mode");
        }
        if self.max_ops == Some(0) {
            return Err("replay.max_ops");
        }
        if self.max_latency_ms == Some(0) {
            return Err("replay.max_latency_ms");
        }
        if self.patience > PATIENCE_SECONDS_MAX {
            return Err("replay.patience");
        }
        Ok(Plan {
            selection,
            shape: Shape {
                dbs,
                naming,
                expiry: match self.expiry {
                    OnExpiry::Absolute => Expiry::Absolute,
                    OnExpiry::Shift => Expiry::Shift,
                    OnExpiry::Strip => Expiry::Strip,
                },
            },
            conflict: match self.on_conflict {
                OnConflict::Fail => Conflict::Fail,
                OnConflict::Skip => Conflict::Skip,
                OnConflict::Replace => Conflict::Replace,
            },
            others: match self.mode {
                Mode::Merge => Others::Stay,
                Mode::Replace => Others::All,
            },
            form: match self.commands {
                true => Form::Commands,
                false => Form::Payloads,
            },
            functions: match (self.functions, self.functions_exact) {
                (_, true) => Functions::Exact,
                (true, false) => Functions::Load,
                (false, false) => Functions::Stay,
            },
            is_whole: false,
            removes_first: false,
            needs_room: true,
            needs_commands: true,
            connections: 1,
            ops_max: self.max_ops,
            latency_max: self.max_latency_ms.map(Duration::from_millis),
            patience: Duration::from_secs(self.patience),
            journal,
            label: String::new(),
            spill: spill.to_owned(),
            now_ms: now.0,
        })
    }

    /// What puts a target back to what a backup of it says that was made before these were applied there, of these databases of
    /// the target (none: of all): at least all that may have been changed, and no more than names can tell. `has_functions`: whether
    /// the libraries of functions are in that backup.
    pub fn back(&self, dbs: BTreeSet<u32>, has_functions: bool) -> Self {
        let named = match (&self.into_prefix, &self.rewrite) {
            (Some(prefix), _) => Select {
                prefix: Some(prefix.clone()),
                ..Select::default()
            },
            // Names of two kinds, which no selector tells from all others.
            (None, Some(_)) => Select::default(),
            (None, None) => Select {
                kinds: Vec::new(),
                size: None,
                ttl: None,
                ..self.select.clone()
            },
        };
        Self {
            select: Select { db: dbs, ..named },
            functions_exact: self.changes_functions() && has_functions,
            commands: self.commands,
            max_ops: self.max_ops,
            max_latency_ms: self.max_latency_ms,
            patience: self.patience,
            ..Self::default()
        }
    }

    /// Whether libraries of functions are others afterwards.
    pub fn changes_functions(&self) -> bool {
        self.functions || self.functions_exact
    }

    /// Seconds that so many keys need at least for the pace they are held to.
    pub fn seconds_at_pace(&self, keys: i64) -> u64 {
        // A target that answers late brings it down to so many.
        let slowest = self.max_latency_ms.map(|_| engine::replay::SLOWEST_PACE);
        let pace = self.max_ops.into_iter().chain(slowest).min();
        pace.map_or(0, |pace| u64::try_from(keys).unwrap_or(0) / pace.max(1))
    }

    /// Whether some databases are left out or go elsewhere.
    pub fn chooses_dbs(&self) -> bool {
        !self.map_db.is_empty() || !self.select.db.is_empty()
    }
}

/// `1000..`, `..1000`, `10..1000`: bytes.
///
/// # Errors
/// What is wanted.
pub fn sizes(text: &str) -> Result<RangeInclusive<u64>, String> {
    let wanted = || "bytes are wanted: 1000.. or ..1000 or 10..1000".to_owned();
    let (least, most) = text.split_once("..").ok_or_else(wanted)?;
    let number = |text: &str, otherwise| match text {
        "" => Ok(otherwise),
        text => text.parse().map_err(|_| wanted()),
    };
    let (least, most) = (number(least, 0)?, number(most, u64::MAX)?);
    match least <= most && text != ".." {
        true => Ok(least..=most),
        false => Err(wanted()),
    }
}

/// A type of values, by what engines call it.
///
/// # Errors
/// What is wanted.
pub fn type_by_name(name: &str) -> Result<rdb::Type, String> {
    let known = rdb::Type::ALL.into_iter().find(|kind| kind.name() == name);
    known.ok_or_else(|| {
        format!(
            "one of {} is wanted",
            rdb::Type::ALL.map(rdb::Type::name).join(", ")
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plan(options: &Options) -> Result<Plan, &'static str> {
        options.plan(None, Path::new("/tmp"), Moment(0))
    }

    fn read(text: &str) -> Options {
        serde_json::from_str(text).unwrap()
    }

    #[test]
    fn what_is_not_said_replaces_all_and_is_kept_as_it_was_said() {
        let options = read("{}");
        assert!(options.safety_point && !options.functions && !options.chooses_dbs());
        assert_eq!(plan(&options).unwrap().others, Others::All);
        let some = read(
            r#"{"mode": "merge", "map_db": [[3, 0]], "rewrite": ["a:", "b:"], "select": {"type": ["hash"], "ttl": "..60", "match": "u*"}}"#,
        );
        assert_eq!(read(&serde_json::to_string(&some).unwrap()), some);
        let told = plan(&some).unwrap();
        assert_eq!((told.others, told.shape.dbs.get(&3)), (Others::Stay, Some(&0)));
        assert!(serde_json::from_str::<Options>(r#"{"mode": "merge", "selct": {}}"#).is_err());
    }

    #[test]
    fn what_cannot_be_is_named() {
        let long_glob = format!(r#"{{"select": {{"match": "{}"}}}}"#, "*a".repeat(513));
        for (text, field) in [
            (r#"{"map_db": [[0, 1], [0, 2]]}"#, "replay.map_db"),
            (r#"{"into_prefix": "a", "rewrite": ["a", "b"]}"#, "replay.rewrite"),
            (r#"{"rewrite": ["a", "a"]}"#, "replay.rewrite"),
            (r#"{"select": {"type": ["hash"]}}"#, "replay.mode"),
            (r#"{"select": {"regex": "("}}"#, "replay.select.regex"),
            (r#"{"max_ops": 0}"#, "replay.max_ops"),
            (&long_glob, "replay.select.match"),
        ] {
            assert_eq!(plan(&read(text)).err(), Some(field), "{text}");
        }
    }

    #[test]
    fn the_way_back_covers_what_was_written_and_names_no_more_than_it_can() {
        let dbs = BTreeSet::from([0, 2]);
        let of_hashes =
            read(r#"{"mode": "merge", "select": {"prefix": "u:", "type": ["hash"]}, "max_ops": 7}"#);
        let back = of_hashes.back(dbs.clone(), true);
        let told = plan(&back).unwrap();
        assert_eq!((told.others, told.ops_max), (Others::All, Some(7)));
        assert_eq!(told.selection.prefix.as_deref(), Some(&b"u:"[..]));
        assert!(told.selection.kinds.is_empty());
        assert_eq!(told.selection.dbs, dbs);
        let beside =
            read(r#"{"mode": "merge", "into_prefix": "x:", "select": {"prefix": "u:"}}"#).back(dbs, true);
        assert_eq!(beside.select.prefix.as_deref(), Some("x:"));
        let widened = read(r#"{"rewrite": ["a", "b"]}"#).back(BTreeSet::new(), true);
        assert_eq!(widened, Options::default());
        let of_code = read(r#"{"functions": true}"#);
        for (has_functions, told) in [(true, Functions::Exact), (false, Functions::Stay)] {
            let back = of_code.back(BTreeSet::new(), has_functions);
            assert_eq!(plan(&back).unwrap().functions, told, "{has_functions}");
        }
    }
}
