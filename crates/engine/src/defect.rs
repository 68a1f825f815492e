//! Defects that are planted on purpose, so that it is seen which test catches them.
//!
//! `cargo xtask torture --defects` builds with the feature `planted-defects` and sets `CACHEKEEP_DEFECT=<name>` for one test at
//! a time. Without the feature no defect is compiled in, and the feature alone, as `--all-features` sets it, does not compile.

#[cfg(feature = "planted-defects")]
const _: () = assert!(
    option_env!("CACHEKEEP_PLANT_DEFECTS").is_some(),
    "planted-defects is for cargo xtask torture --defects alone"
);

/// Every defect, and what is wrong with it.
pub const DEFECTS: &[(&str, &str)] = &[
    ("catalogue-unsynced", "a commit does not sync the catalogue"),
    (
        "objects-unsynced",
        "stored objects and their names are not synced",
    ),
    (
        "acknowledged-before-commit",
        "a backup is accepted, and its commit comes with the next one",
    ),
    (
        "job-apart-from-record",
        "a backup's job is added in a transaction after its record's",
    ),
    (
        "fence-unchecked",
        "a job writes and settles whoever has claimed it meanwhile",
    ),
    ("claim-unguarded", "a job is claimed that another one has"),
    (
        "attempts-share-names",
        "the fence is not part of the names of stored objects",
    ),
    ("lease-without-end", "who holds a job goes on after its lease"),
    (
        "old-data-not-brought-back",
        "a restore that fails leaves the old engine stopped",
    ),
    (
        "not-put-back",
        "a restore into attached servers that fails says rolled back and puts nothing back",
    ),
    (
        "target-state-unwritten",
        "attached servers are written to before the record says so",
    ),
    (
        "stored-bytes-unproven",
        "stored bytes are not compared with their digests",
    ),
    (
        "manifest-unproven",
        "neither digest nor signature of a manifest is looked at",
    ),
    (
        "validation-skipped",
        "a capture goes on where the snapshot turns out to be no valid RDB",
    ),
    (
        "connected-before-validation",
        "the target is connected to before the backup is validated",
    ),
    (
        "deleted-by-list",
        "what a LIST shows and the catalogue does not know is deleted",
    ),
    ("held-expires", "retention does not look whether a backup is held"),
    ("one-fewer-kept", "a rule keeps one backup fewer than it says"),
    ("project-unfiltered", "an instance is found whosever it is"),
    (
        "token-for-any-project",
        "the project of a request is not compared with its credential's",
    ),
    (
        "foreign-told-apart",
        "a foreign instance is answered otherwise than an unknown one",
    ),
];

/// Whether `CACHEKEEP_DEFECT` names this defect.
#[cfg(feature = "planted-defects")]
#[must_use]
pub fn is_planted(name: &'static str) -> bool {
    use std::sync::OnceLock;
    static WANTED: OnceLock<Option<String>> = OnceLock::new();
    assert!(DEFECTS.iter().any(|(known, _)| *known == name), "{name}");
    let wanted = WANTED.get_or_init(|| std::env::var("CACHEKEEP_DEFECT").ok());
    wanted.as_deref() == Some(name)
}

/// Never: there are none in this build.
#[cfg(not(feature = "planted-defects"))]
#[must_use]
#[inline(always)]
pub const fn is_planted(_name: &'static str) -> bool {
    false
}
