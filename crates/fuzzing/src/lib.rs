//! What the fuzzers feed with bytes: every place at which bytes of strangers are read.
//!
//! A target is a function that takes any bytes, and panics where a promise is broken: not only that nothing panics by
//! itself, but that whole and in pieces read alike, that a second implementation agrees, that what is accepted can be
//! written and read again. `cargo xtask fuzz` runs them under libFuzzer; the tests of this crate run them over their
//! seeds, over mutations of those, and over every input that once broke one (`fuzz/crashes`).

mod engine_side;
pub mod mutation;
mod rdb_side;
mod request;

use std::path::{Path, PathBuf};

/// Longest input of a target, in bytes: a pair of sockets takes so much without a reader.
pub const INPUT_BYTES_MAX: usize = 64 * 1024;

/// One place to feed.
pub struct Target {
    /// As `cargo xtask fuzz` knows it.
    pub name: &'static str,
    /// What it reads.
    pub about: &'static str,
    /// Reads the input, and panics where a promise is broken.
    pub run: fn(&[u8]),
    /// Inputs to start from.
    pub seeds: fn() -> Vec<Vec<u8>>,
}

/// All targets.
pub const TARGETS: [Target; 11] = [
    Target {
        name: "rdb",
        about: "an RDB file, whole and in pieces",
        run: rdb_side::file,
        seeds: rdb_side::file_seeds,
    },
    Target {
        name: "threads",
        about: "an RDB file read by two threads, beside one",
        run: rdb_side::threads,
        seeds: rdb_side::threads_seeds,
    },
    Target {
        name: "listpack",
        about: "a listpack as list, hash, set or sorted set",
        run: rdb_side::listpack,
        seeds: rdb_side::listpack_seeds,
    },
    Target {
        name: "ziplist",
        about: "a ziplist or zipmap as list, hash or sorted set",
        run: rdb_side::ziplist,
        seeds: rdb_side::ziplist_seeds,
    },
    Target {
        name: "lzf",
        about: "a compressed string, beside a second decoder",
        run: rdb_side::lzf,
        seeds: rdb_side::lzf_seeds,
    },
    Target {
        name: "stream",
        about: "a stream of each layout",
        run: rdb_side::stream,
        seeds: rdb_side::stream_seeds,
    },
    Target {
        name: "dump",
        about: "a payload of DUMP",
        run: rdb_side::dump,
        seeds: rdb_side::dump_seeds,
    },
    Target {
        name: "replies",
        about: "replies of an engine, and the snapshot it sends a replica",
        run: engine_side::replies,
        seeds: engine_side::replies_seeds,
    },
    Target {
        name: "manifest",
        about: "the manifest of an archive",
        run: engine_side::manifest,
        seeds: engine_side::manifest_seeds,
    },
    Target {
        name: "segment",
        about: "a segment of an archive",
        run: engine_side::segment,
        seeds: engine_side::segment_seeds,
    },
    Target {
        name: "signature",
        about: "the signature of a request, beside a second decoder",
        run: request::signature,
        seeds: request::signature_seeds,
    },
];

/// The target of that name.
pub fn target(name: &str) -> Option<&'static Target> {
    TARGETS.iter().find(|target| target.name == name)
}

fn repository() -> PathBuf {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    here.ancestors().nth(2).unwrap_or(here).to_owned()
}

/// Where the inputs lie that once broke a target.
pub fn crashes(target: &Target) -> PathBuf {
    repository().join("fuzz/crashes").join(target.name)
}

/// The files that real engines wrote, with which the validator is tested.
fn fixtures() -> Vec<Vec<u8>> {
    let folder = repository().join("crates/rdb/tests/fixtures");
    let mut paths: Vec<PathBuf> = std::fs::read_dir(folder)
        .into_iter()
        .flatten()
        .flatten()
        .map(|entry| entry.path())
        .filter(|path| path.extension().is_some_and(|ending| ending == "rdb"))
        .collect();
    paths.sort();
    paths.iter().flat_map(std::fs::read).collect()
}
