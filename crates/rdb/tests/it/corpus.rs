//! A public corpus of RDB files and payloads, where `CACHEKEEP_CORPUS` names its folder: each file is accepted
//! with its keys or refused, as the corpus's own INDEX.md says.

use std::path::PathBuf;

use crate::build::read_dump;
use rdb::{Error, Validator};

fn folder() -> Option<PathBuf> {
    let folder = std::env::var_os("CACHEKEEP_CORPUS").map(PathBuf::from);
    if folder.is_none() {
        eprintln!("skipped: CACHEKEEP_CORPUS does not name the folder of a corpus");
    }
    folder
}

fn keys(bytes: &[u8]) -> Result<u64, Error> {
    let mut validator = Validator::new().accept_trailing_bytes();
    for piece in bytes.chunks(1000) {
        validator.feed(piece, &mut ())?;
    }
    validator.finish().map(|report| report.census.totals().keys)
}

#[test]
fn files_of_a_public_corpus_are_accepted_and_refused_as_its_index_says() {
    let Some(folder) = folder() else { return };
    let index = std::fs::read_to_string(folder.join("INDEX.md")).unwrap();
    let (mut files, mut section, mut wrong) = (0, String::new(), Vec::new());
    for line in index.lines() {
        if let Some(title) = line.strip_prefix("## ") {
            title
                .split(' ')
                .next()
                .unwrap_or_default()
                .clone_into(&mut section);
        }
        let cells: Vec<&str> = line
            .split(" | ")
            .map(|cell| cell.trim_matches(['|', ' ']))
            .collect();
        let (Some(name), Some(verdict)) = (cells.first(), cells.last()) else {
            continue;
        };
        if !name.ends_with(".rdb") || cells.len() < 6 {
            continue;
        }
        let bytes = std::fs::read(folder.join(&section).join(name)).unwrap();
        let found = keys(&bytes);
        let counted: Option<u64> = cells.get(4).and_then(|count| count.parse().ok());
        let is_right = match &found {
            _ if verdict.contains("or reject") || verdict.starts_with("reject or") => true,
            Ok(found) => !verdict.starts_with("reject") && Some(*found) == counted,
            Err(_) => verdict.starts_with("reject"),
        };
        if !is_right {
            wrong.push(format!("{section}/{name}: {found:?}, the index says {verdict:?}"));
        }
        files += 1;
    }
    eprintln!("{files} files");
    assert!(wrong.is_empty() && files > 0, "{wrong:#?}");
}

#[test]
fn payloads_of_a_public_corpus_are_refused() {
    let Some(folder) = folder() else { return };
    let mut payloads = 0;
    for file in std::fs::read_dir(folder.join("valkey-restore-payloads")).unwrap() {
        let path = file.unwrap().path();
        let bytes = std::fs::read(&path).unwrap();
        for chunk in [1, bytes.len()] {
            assert!(read_dump(&bytes, chunk).is_err(), "{}", path.display());
        }
        payloads += 1;
    }
    eprintln!("{payloads} payloads");
    assert!(payloads > 0);
}
