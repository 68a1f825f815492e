//! A folder that is gone when its value is.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};

use crate::Stop;

/// Removed with all its contents on drop.
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
        if let Err(error) = std::fs::remove_dir_all(&self.path) {
            eprintln!("left behind: {} ({error})", self.path.display());
        }
    }
}
