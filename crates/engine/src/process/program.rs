//! The programs that engines are started from: where they are, whose they are, which version.

use std::fmt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use crate::error::{Error, Kind};

/// Names of server programs, the one that is taken first where both are there.
const NAMES: [&str; 2] = ["redis-server", "valkey-server"];

/// Whose an engine is. Each counts its versions by itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Brand {
    /// Redis.
    Redis,
    /// Valkey.
    Valkey,
}

impl Brand {
    /// `redis` or `valkey`.
    pub fn word(self) -> &'static str {
        match self {
            Brand::Redis => "redis",
            Brand::Valkey => "valkey",
        }
    }

    /// Reads [`Brand::word`], in whatever case.
    pub fn from_word(word: &str) -> Option<Self> {
        [Brand::Redis, Brand::Valkey]
            .into_iter()
            .find(|brand| brand.word().eq_ignore_ascii_case(word))
    }
}

/// A server program that was asked what it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Program {
    /// Its file.
    pub binary: PathBuf,
    /// Whose it is.
    pub brand: Brand,
    /// `7.0.15`
    pub version: String,
}

impl fmt::Display for Program {
    /// `redis 7.0.15`
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.brand.word(), self.version)
    }
}

impl Program {
    /// Asks the program what it is: `<binary> --version`.
    ///
    /// # Errors
    /// [`Kind::EngineStart`] where it does not run or says something else.
    pub fn ask(binary: &Path) -> Result<Self, Error> {
        let failed = |what: &str| {
            Error::new(
                Kind::EngineStart,
                "read engine version",
                format!("{}: {what}", binary.display()),
            )
        };
        let output = Command::new(binary)
            .arg("--version")
            .stdin(Stdio::null())
            .env_clear()
            .output()
            .map_err(|e| failed("does not run").because(e))?;
        let text = String::from_utf8_lossy(&output.stdout);
        let (brand, version) = read(&text).ok_or_else(|| failed("says no version of an engine"))?;
        Ok(Self {
            binary: binary.to_owned(),
            brand,
            version,
        })
    }
}

impl Program {
    /// See [`has_fixed_port`].
    pub fn has_fixed_port(&self) -> bool {
        has_fixed_port(&self.version)
    }

    /// See [`is_before_7`].
    pub fn is_before_7(&self) -> bool {
        is_before_7(&self.version)
    }
}

/// Whether an engine of this version listens for as long as it lives where it was started to: Redis before 6.2.1, every
/// Valkey is newer. Source: redis 6.2.1 release notes, `port` and `bind` in redis `src/config.c`.
pub fn has_fixed_port(version: &str) -> bool {
    is_before(version, MOVING_SINCE)
}

/// Whether it is Redis before 7.0: one append-only file, no functions, no port of its own for a cluster's bus, rules for parts of
/// commands that only allow, and none of the settings that say which commands are enabled. Source: redis 7.0 release notes.
pub fn is_before_7(version: &str) -> bool {
    is_before(version, (7, 0, 0))
}

/// Whether the version is a lower one. What is no number is a higher one; a number that is left out is 0.
pub(crate) fn is_before(version: &str, other: (u32, u32, u32)) -> bool {
    let mut numbers = version.split('.').map(|number| number.parse().ok());
    let patch = |number: Option<Option<u32>>| number.map_or(Some(0), |number| number);
    match (
        numbers.next().flatten(),
        numbers.next().flatten(),
        patch(numbers.next()),
    ) {
        (Some(major), Some(minor), Some(patch)) => (major, minor, patch) < other,
        _ => false,
    }
}

/// Reads `Redis server v=7.0.15 sha=...`.
fn read(told: &str) -> Option<(Brand, String)> {
    let mut words = told.split_whitespace();
    let brand = Brand::from_word(words.next()?)?;
    let version = words.find_map(|word| word.strip_prefix("v="))?;
    Some((brand, version.to_owned()))
}

/// The first version of Redis whose port and addresses can be changed while it runs.
const MOVING_SINCE: (u32, u32, u32) = (6, 2, 1);
/// The oldest version that can be run: those before have no ACL.
const VERSION_MIN: (u32, u32, u32) = (6, 0, 0);

/// The program, unless it is too old.
fn managed(binary: &Path) -> Result<Program, Error> {
    let program = Program::ask(binary)?;
    if is_before(&program.version, VERSION_MIN) {
        let (major, minor, _) = VERSION_MIN;
        let context = format!(
            "{} is {program}: engines from {major}.{minor} on can be run here; files of older ones can be imported",
            binary.display()
        );
        return Err(Error::new(Kind::EngineStart, "find engines", context));
    }
    Ok(program)
}

/// Every engine that is there, the one that is meant where nobody says first: [`find_binary`], then those that are
/// `named`, each a program or a directory with programs, then what else the usual directories have. Of several of the
/// same brand and version the first.
///
/// # Errors
/// As [`find_binary`]; [`Kind::EngineStart`] for a name that is no engine or one that is too old, or a directory without any.
pub fn programs(named: &[PathBuf]) -> Result<Vec<Program>, Error> {
    let mut found = vec![managed(&find_binary()?)?];
    for place in named {
        if !place.is_dir() {
            found.push(managed(place)?);
            continue;
        }
        let of_place = in_directory(place);
        if of_place.is_empty() {
            let context = format!("{} has no server program in it", place.display());
            return Err(Error::new(Kind::EngineStart, "find engines", context));
        }
        found.extend(of_place);
    }
    // What nobody named may be broken without harm.
    let usual = NAMES.iter().filter_map(|name| on_path(name));
    found.extend(usual.filter_map(|binary| managed(&binary).ok()));
    let mut all: Vec<Program> = Vec::new();
    for program in found {
        let is_same = |known: &Program| (known.brand, &known.version) == (program.brand, &program.version);
        if !all.iter().any(is_same) {
            all.push(program);
        }
    }
    Ok(all)
}

/// The engines that can be run among the files of a directory, in the order of their names. Nothing else in it is run.
fn in_directory(place: &Path) -> Vec<Program> {
    let mut files: Vec<PathBuf> = std::fs::read_dir(place)
        .into_iter()
        .flatten()
        .flatten()
        .filter(|entry| entry.file_name().to_str().is_some_and(may_be_server))
        .map(|entry| entry.path())
        .collect();
    files.sort();
    files.iter().filter_map(|file| managed(file).ok()).collect()
}

/// `redis-server`, `valkey-server-8`, `redis-7.2`, `valkey8`.
fn may_be_server(name: &str) -> bool {
    let rest = [Brand::Redis, Brand::Valkey]
        .into_iter()
        .find_map(|brand| name.strip_prefix(brand.word()));
    rest.map(|rest| rest.trim_start_matches('-')).is_some_and(|rest| {
        rest.starts_with("server") || rest.starts_with(|first: char| first.is_ascii_digit())
    })
}

fn on_path(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let usual = ["/usr/bin", "/usr/local/bin", "/usr/sbin", "/usr/local/sbin"].map(PathBuf::from);
    std::env::split_paths(&path)
        .chain(usual)
        .map(|place| place.join(name))
        .find(|candidate| candidate.is_file())
}

/// The server program: `$CACHEKEEP_REDIS_SERVER`, else the first `redis-server` or `valkey-server` of `$PATH` and
/// the usual directories.
///
/// # Errors
/// [`Kind::EngineStart`] where there is none.
pub fn find_binary() -> Result<PathBuf, Error> {
    let absent = |context: String| Error::new(Kind::EngineStart, "find redis-server", context);
    if let Some(named) = std::env::var_os("CACHEKEEP_REDIS_SERVER") {
        let named = PathBuf::from(named);
        return if named.is_file() {
            Ok(named)
        } else {
            Err(absent(format!(
                "CACHEKEEP_REDIS_SERVER names {}, which is no file",
                named.display()
            )))
        };
    }
    NAMES.iter().find_map(|name| on_path(name)).ok_or_else(|| {
        absent(
            "not on this machine: install redis-server 7.0 or later (apt install redis-server), or name the program \
             in CACHEKEEP_REDIS_SERVER"
                .to_owned(),
        )
    })
}

/// What `<binary> --version` says after `v=`: `7.0.15`.
///
/// # Errors
/// As [`Program::ask`].
pub fn version(binary: &Path) -> Result<String, Error> {
    Program::ask(binary).map(|program| program.version)
}

#[cfg(test)]
mod tests {
    use super::{Brand, may_be_server, read};

    #[test]
    fn both_brands_say_what_they_are_and_others_are_none() {
        let redis = "Redis server v=7.0.15 sha=00000000:0 malloc=jemalloc-5.3.0 bits=64 build=1";
        let valkey = "Valkey server v=8.1.1 sha=00000000:0 malloc=jemalloc-5.3.0 bits=64 build=1";
        assert_eq!(read(redis), Some((Brand::Redis, "7.0.15".to_owned())));
        assert_eq!(read(valkey), Some((Brand::Valkey, "8.1.1".to_owned())));
        for other in ["", "redis-cli 7.0.15", "Redis server", "OpenSSL v=3"] {
            assert_eq!(read(other), None, "{other}");
        }
        for (version, is_too_old, has_fixed_port, is_before_7) in [
            ("5.0.14", true, true, true),
            ("6.0.16", false, true, true),
            ("6.2.0", false, true, true),
            ("6.2", false, true, true),
            ("6.2.1", false, false, true),
            ("6.2.14", false, false, true),
            ("7.0.15", false, false, false),
            ("10.1.0", false, false, false),
            ("255.255.255", false, false, false),
            ("unstable", false, false, false),
        ] {
            assert_eq!(
                super::is_before(version, super::VERSION_MIN),
                is_too_old,
                "{version}"
            );
            assert_eq!(super::has_fixed_port(version), has_fixed_port, "{version}");
            assert_eq!(super::is_before_7(version), is_before_7, "{version}");
        }
        for name in ["redis-server", "valkey-server-8", "redis-7.2", "valkey8"] {
            assert!(may_be_server(name), "{name}");
        }
        for name in [
            "redis-cli",
            "redis-sentinel",
            "valkey-check-rdb",
            "redis",
            "server",
        ] {
            assert!(!may_be_server(name), "{name}");
        }
    }
}
