//! The README's lines as they stand there.

use std::path::Path;
use std::process::{Command, Stdio};

use crate::service::Service;

/// The text of the README's block with this mark.
pub fn block(mark: &str) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../README.md");
    let readme = std::fs::read_to_string(path).unwrap();
    let start = format!("```sh {mark}\n");
    let (_, rest) = readme
        .split_once(&start)
        .unwrap_or_else(|| panic!("README.md has no block {mark}"));
    rest.split_once("```").unwrap().0.to_owned()
}

/// Runs lines as they stand in the README, with the service's data directory and the built program at hand.
#[track_caller]
pub fn run(service: &Service, folder: &Path, lines: &str) -> String {
    let program = Path::new(env!("CARGO_BIN_EXE_cachekeep")).parent().unwrap();
    let path = format!("{}:{}", program.display(), std::env::var("PATH").unwrap());
    let output = Command::new("bash")
        .args(["-euo", "pipefail", "-c", lines])
        .current_dir(folder)
        .env("PATH", path)
        .env("CACHEKEEP_DATA_DIR", service.data())
        .stdin(Stdio::null())
        .output()
        .unwrap();
    let told = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success(), "{lines}: {told}");
    told
}

#[test]
fn the_tests_that_the_promises_name_exist() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    let text = std::fs::read_to_string(root.join("docs/promises.md")).unwrap();
    let mut named = 0;
    for words in text.split('`').skip(1).step_by(2) {
        let Some((file, name)) = words.split_once(' ') else {
            continue;
        };
        let Some((package, file)) = file.split_once(':') else {
            continue;
        };
        let folder = root.join("crates").join(package).join("tests").join(file);
        let known = std::fs::read_dir(&folder).unwrap().any(|entry| {
            let source = std::fs::read_to_string(entry.unwrap().path()).unwrap();
            source.contains(&format!("#[test]\nfn {name}"))
        });
        assert!(known, "docs/promises.md names {words}, which is no test");
        named += 1;
    }
    assert!(named > 30, "{named}");
}
