//! A folder that is gone when its value is.

use std::cell::RefCell;
use std::path::{Path, PathBuf};
use std::sync::Once;
use std::sync::atomic::{AtomicU32, Ordering};

use crate::Stop;

/// What engines and Sentinels of tests call their logs.
const LOGS: [&str; 2] = ["log", "redis.log"];
/// Of each log, where the test that made the folder fails.
const LAST_LINES: usize = 12;
/// Folders within folders in which logs are looked for: an instance's node is four below the test's.
const DEPTH: usize = 6;

thread_local! {
    /// What this thread panicked with.
    static FAILURE: RefCell<String> = const { RefCell::new(String::new()) };
}

/// Removed with all its contents on drop. Where that is because its test fails, what its logs end with is shown first, and then
/// once more what failed: who reads of a failure from afar may be shown the end of the output alone.
#[derive(Debug)]
pub struct Scratch {
    path: PathBuf,
}

impl Scratch {
    /// Makes an empty folder under the system's temporary folder, readable by its owner alone.
    ///
    /// # Errors
    /// The folder cannot be made.
    pub fn new(purpose: &str) -> Result<Self, Stop> {
        Self::below(&std::env::temp_dir(), purpose)
    }

    /// As [`Scratch::new`], in another folder.
    ///
    /// # Errors
    /// The folder cannot be made.
    pub fn below(folder: &Path, purpose: &str) -> Result<Self, Stop> {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        remember_failures();
        use std::os::unix::fs::DirBuilderExt as _;
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let name = format!("cachekeep-{purpose}-{}-{number}", std::process::id());
        let path = folder.join(name);
        std::fs::DirBuilder::new()
            .mode(0o700)
            .create(&path)
            .map_err(|e| Stop::file("make the folder", &path, &e))?;
        Ok(Self { path })
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        if std::thread::panicking() {
            show_logs(&self.path, DEPTH);
            eprintln!("--- what failed ---\n{}", FAILURE.with_borrow(String::clone));
        }
        if let Err(error) = std::fs::remove_dir_all(&self.path) {
            eprintln!("left behind: {} ({error})", self.path.display());
        }
    }
}

fn remember_failures() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let report = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |panic| {
            FAILURE.set(panic.to_string());
            report(panic);
        }));
    });
}

fn show_logs(folder: &Path, depth: usize) {
    let Ok(entries) = std::fs::read_dir(folder) else {
        return;
    };
    for entry in entries.flatten() {
        let path = entry.path();
        let is_log = LOGS.iter().any(|name| entry.file_name() == *name);
        match entry.file_type() {
            Ok(kind) if kind.is_dir() && depth > 0 => show_logs(&path, depth - 1),
            Ok(kind) if kind.is_file() && is_log => show_end(&path),
            _ => {}
        }
    }
}

fn show_end(log: &Path) {
    let text = std::fs::read(log).unwrap_or_default();
    let text = String::from_utf8_lossy(&text);
    let lines: Vec<&str> = text.lines().collect();
    let last = lines.len().saturating_sub(LAST_LINES);
    eprintln!("--- {} ---\n{}", log.display(), lines[last..].join("\n"));
}
