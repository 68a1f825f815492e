//! A file system of a few megabytes, for tests of full disks.
//!
//! Mounting needs root. Where we are not, a user namespace of our own has one: [`SmallDisk::mount`] starts the calling
//! test once more in there, behind the mount and as the user that it was, and [`Mounted::Elsewhere`] tells the caller that
//! this has passed.

use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::scratch::Scratch;

/// Tells a test that was started once more where its disk is.
const PLACE: &str = "CACHEKEEP_TEST_SMALL_DISK";

/// A small file system, gone on drop.
#[derive(Debug)]
pub struct SmallDisk {
    at: PathBuf,
    /// Outlives the mount; the namespace takes it along where there is one.
    folder: Option<Scratch>,
}

/// What came of [`SmallDisk::mount`].
#[derive(Debug)]
pub enum Mounted {
    /// The test can go on.
    Here(SmallDisk),
    /// The test was run where there is such a disk, and passed: there is nothing left to do.
    Elsewhere,
    /// Why there can be none.
    Nowhere(String),
}

impl SmallDisk {
    /// Mounts one of so many megabytes; `test` is the caller's full name, as the test program lists it.
    ///
    /// # Panics
    /// Where the test failed in the other place; it has said there why.
    #[must_use]
    #[track_caller]
    pub fn mount(megabytes: u32, test: &str) -> Mounted {
        if let Some(at) = std::env::var_os(PLACE) {
            return Mounted::Here(Self {
                at: at.into(),
                folder: None,
            });
        }
        let folder = match Scratch::new("disk") {
            Ok(folder) => folder,
            Err(stop) => return Mounted::Nowhere(stop.to_string()),
        };
        let at = folder.path().join("disk");
        // Engines of another user live below it.
        use std::os::unix::fs::PermissionsExt as _;
        let open = std::fs::Permissions::from_mode(0o755);
        let made = std::fs::create_dir(&at).and_then(|()| std::fs::set_permissions(folder.path(), open));
        let owner = made.and_then(|()| std::fs::metadata(&at));
        let (uid, gid) = match owner {
            Ok(owner) => (owner.uid(), owner.gid()),
            Err(error) => return Mounted::Nowhere(error.to_string()),
        };
        let options = format!("size={megabytes}m,mode=755,uid={uid},gid={gid}");
        let mounted = as_root(uid, "mount")
            .args(["-t", "tmpfs", "-o", &options, "tmpfs"])
            .arg(&at)
            .output();
        if mounted.is_ok_and(|output| output.status.success()) {
            return Mounted::Here(Self {
                at,
                folder: Some(folder),
            });
        }
        in_a_namespace(megabytes, &at, (uid, gid), test)
    }

    /// Where it is.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.at
    }
}

/// Starts the test once more: in a user namespace whose root mounts the disk, and inside that in one where it is the user
/// that it is here, since it behaves in another way as root.
fn in_a_namespace(megabytes: u32, at: &Path, (uid, gid): (u32, u32), test: &str) -> Mounted {
    let root = ["--user", "--map-root-user", "--mount"];
    let possible = Command::new("unshare").args(root).arg("true").output();
    match possible {
        Ok(output) if output.status.success() => {}
        Ok(output) => return Mounted::Nowhere(String::from_utf8_lossy(&output.stderr).trim().to_owned()),
        Err(error) => return Mounted::Nowhere(format!("unshare: {error}")),
    }
    let program = match std::env::current_exe() {
        Ok(program) => program,
        Err(error) => return Mounted::Nowhere(error.to_string()),
    };
    let script = format!(
        "mount -t tmpfs -o size={megabytes}m,mode=755 tmpfs \"$1\" && \
         exec unshare --user --map-user={uid} --map-group={gid} \"$2\" --exact \"$3\" --nocapture"
    );
    let run = Command::new("unshare")
        .args(root)
        .args(["sh", "-c", &script, "sh"])
        .arg(at)
        .arg(program)
        .arg(test)
        .env(PLACE, at)
        .output();
    let output = match run {
        Ok(output) => output,
        Err(error) => return Mounted::Nowhere(error.to_string()),
    };
    let told = String::from_utf8_lossy(&output.stdout).into_owned();
    print!("{told}{}", String::from_utf8_lossy(&output.stderr));
    // A name that no test has would run none and succeed.
    let passed = output.status.success() && told.contains("1 passed");
    assert!(passed, "{test} failed behind a mount of its own");
    Mounted::Elsewhere
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        if let Some(folder) = &self.folder {
            let owner = std::fs::metadata(folder.path()).map_or(0, |owner| owner.uid());
            let _reported_by_the_folder = as_root(owner, "umount").arg("-l").arg(&self.at).status();
        }
    }
}

/// The program, by sudo where this user is not root; without a password, since nobody is there to type one.
fn as_root(uid: u32, program: &str) -> Command {
    if uid == 0 {
        return Command::new(program);
    }
    let mut command = Command::new("sudo");
    command.args(["-n", program]);
    command
}
