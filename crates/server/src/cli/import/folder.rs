//! The files of a server's folder, or of an append-only file: which of them hold its data.

use std::io::Read;
use std::path::{Path, PathBuf};

use anyhow::Context;
use engine::aof::load::Files;

/// What is to be read.
pub(super) enum Kept {
    /// One RDB file, which holds everything.
    Snapshot(PathBuf),
    /// Commands, which an engine must replay.
    Commands(Files),
}

/// What a path names: a file, or a server's folder.
///
/// # Errors
/// Nothing that could be read is there, or what the folder's manifest names is not.
pub(super) fn kept_in(path: &Path) -> anyhow::Result<Kept> {
    if path.is_dir() {
        return in_folder(path);
    }
    let is_aof = path.extension().is_some_and(|ending| ending == "aof");
    let mut first = [0];
    let begun = std::fs::File::open(path)
        .and_then(|mut file| file.read(&mut first))
        .with_context(|| format!("cannot open {}", path.display()))?;
    match is_aof || begun == 1 && matches!(first[0], b'*' | b'#') {
        true => Ok(Kept::Commands(Files {
            base: Some(path.to_owned()),
            increments: Vec::new(),
        })),
        false => Ok(Kept::Snapshot(path.to_owned())),
    }
}

fn in_folder(folder: &Path) -> anyhow::Result<Kept> {
    let parts = match folder.join("appendonlydir") {
        below if below.is_dir() => below,
        _ => folder.to_owned(),
    };
    let mut manifests = Vec::new();
    for entry in std::fs::read_dir(&parts)? {
        let path = entry?.path();
        // An engine that died while it wrote one left that as temp-.
        let is_whole = !path
            .file_name()
            .is_some_and(|name| name.to_string_lossy().starts_with("temp-"));
        if is_whole && path.extension().is_some_and(|ending| ending == "manifest") {
            manifests.push(path);
        }
    }
    anyhow::ensure!(
        manifests.len() <= 1,
        "{} holds several manifests of append-only files: which one counts is not known",
        parts.display()
    );
    if let Some(manifest) = manifests.pop() {
        return by_manifest(&parts, &manifest);
    }
    // Up to version 6 an engine with `appendonly yes` loads this one and leaves the other alone.
    let single = folder.join("appendonly.aof");
    let dump = folder.join("dump.rdb");
    match (single.is_file(), dump.is_file()) {
        (true, false) => kept_in(&single),
        (false, true) => Ok(Kept::Snapshot(dump)),
        (true, true) => anyhow::bail!(
            "{} holds both an appendonly.aof and a dump.rdb: name the one that counts",
            folder.display()
        ),
        (false, false) => anyhow::bail!(
            "{} holds neither a dump.rdb nor an appendonlydir",
            folder.display()
        ),
    }
}

/// Source: redis src/aof.c, aofLoadManifestFromFile.
fn by_manifest(parts: &Path, manifest: &Path) -> anyhow::Result<Kept> {
    let text = std::fs::read_to_string(manifest)?;
    let mut base = None;
    let mut increments = Vec::new();
    for line in text.lines() {
        let words: Vec<&str> = line.split_whitespace().collect();
        let of = |name: &str| {
            let at = words.iter().position(|word| *word == name)?;
            words.get(at + 1).copied()
        };
        let (Some(file), Some(kind)) = (of("file"), of("type")) else {
            continue;
        };
        // A name with a path would lead out of the folder.
        let path = parts.join(Path::new(file).file_name().unwrap_or_default());
        let about =
            || std::fs::metadata(&path).with_context(|| format!("the manifest names {}", path.display()));
        match kind {
            "b" => {
                about()?;
                base = Some(path);
            }
            "i" if about()?.len() > 0 => increments.push(path),
            _ => {}
        }
    }
    match base {
        Some(base) if increments.is_empty() && base.extension().is_some_and(|ending| ending == "rdb") => {
            Ok(Kept::Snapshot(base))
        }
        base => {
            anyhow::ensure!(
                base.is_some() || !increments.is_empty(),
                "{} names no file with data",
                manifest.display()
            );
            Ok(Kept::Commands(Files { base, increments }))
        }
    }
}
