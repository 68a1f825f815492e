//! The power goes at the moment of an answer: what was answered is on the disk.
//!
//! A kill leaves what the kernel holds, so it shows nothing of a sync that was forgotten. Here the service's data lies on file
//! systems in files of their own, one for the catalogue and one for the store, which the kernel writes to their files only
//! when somebody syncs. A copy of those files is what a disk would hold had the power gone then. The copies are mounted, and
//! read by the checker.

use std::path::{Path, PathBuf};
use std::process::Command;

use xtask::scratch::Scratch;

use crate::catalogue::{Catalogue, Database};
use crate::checker;
use crate::faults::not_shown;
use crate::world::{World, signal, text};

const ROUNDS: usize = 3;
const NAME: &str = "power::what_was_answered_is_on_the_disk_when_the_power_goes";
/// Tells a test that was started once more that its mounts are its own.
const INSIDE: &str = "CACHEKEEP_TEST_POWER";

fn done(program: &str, words: &[&str]) -> Result<(), String> {
    let output = Command::new(program).args(words).output();
    let output = output.map_err(|e| format!("{program}: {e}"))?;
    match output.status.success() {
        true => Ok(()),
        false => Err(format!(
            "{program} {words:?}: {}",
            String::from_utf8_lossy(&output.stderr)
        )),
    }
}

/// A file system in a file.
struct Disk {
    image: PathBuf,
    at: PathBuf,
}

impl Disk {
    /// Makes one of 256 MB and mounts it; nothing is written to the file by the clock.
    fn make(image: &Path, at: &Path) -> Result<Self, String> {
        let file = std::fs::File::create(image).map_err(|e| e.to_string())?;
        file.set_len(256 << 20).map_err(|e| e.to_string())?;
        let name = image.to_str().unwrap();
        // Tables that are made later would be written at moments that nobody chooses.
        let whole = "lazy_itable_init=0,lazy_journal_init=0";
        done("mkfs.ext4", &["-q", "-F", "-E", whole, name])?;
        let disk = Self::mount(image, at)?;
        // It would be taken for something of the service's.
        std::fs::remove_dir(at.join("lost+found")).map_err(|e| e.to_string())?;
        Ok(disk)
    }

    fn mount(image: &Path, at: &Path) -> Result<Self, String> {
        std::fs::create_dir_all(at).map_err(|e| e.to_string())?;
        let (image_name, at_name) = (image.to_str().unwrap(), at.to_str().unwrap());
        done("mount", &["-o", "loop,commit=600", image_name, at_name])?;
        Ok(Self {
            image: image.to_owned(),
            at: at.to_owned(),
        })
    }

    /// What the disk holds now, mounted elsewhere.
    fn after_a_cut(&self, image: &Path, at: &Path) -> Self {
        done(
            "cp",
            &[
                "--sparse=always",
                self.image.to_str().unwrap(),
                image.to_str().unwrap(),
            ],
        )
        .unwrap();
        Self::mount(image, at).unwrap()
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        let at = self.at.to_str().unwrap();
        if let Err(why) = done("umount", &[at]).or_else(|_busy| done("umount", &["-l", at])) {
            eprintln!("{why}");
        }
    }
}

/// Both disks as they are when the service stands still.
fn cut(world: &World, disks: &[&Disk; 2], folder: &Path) -> [Disk; 2] {
    signal(world.pid(), "STOP");
    let after = ["catalogue", "store"].map(|name| {
        let disk = disks[usize::from(name == "store")];
        disk.after_a_cut(
            &folder.join(format!("{name}-after.img")),
            &folder.join(format!("{name}-after")),
        )
    });
    signal(world.pid(), "CONT");
    after
}

#[test]
fn what_was_answered_is_on_the_disk_when_the_power_goes() {
    if std::env::var_os(INSIDE).is_none() {
        if !xtask::setup::is_root() {
            not_shown("a power cut", "mounting a file system in a file needs root");
            return;
        }
        // Mounts of a namespace go with its last process, however that ends.
        let status = Command::new("unshare")
            .args(["--mount", "--propagation", "private"])
            .arg(std::env::current_exe().unwrap())
            .args(["--exact", "--nocapture", NAME])
            .env(INSIDE, "1")
            .status()
            .unwrap();
        assert!(status.success(), "{status}");
        return;
    }
    let scratch = Scratch::new("power").unwrap();
    use std::os::unix::fs::PermissionsExt;
    std::fs::set_permissions(scratch.path(), std::fs::Permissions::from_mode(0o711)).unwrap();
    let folder = scratch.path().to_owned();
    let disks = Disk::make(&folder.join("catalogue.img"), &folder.join("catalogue")).and_then(|first| {
        let data = first.at.join("data");
        let second = Disk::make(&folder.join("store.img"), &data.join("store"))?;
        Ok((first, second, data))
    });
    let (first, second, data) = match disks {
        Ok(disks) => disks,
        Err(why) => {
            not_shown(
                "a power cut",
                &format!("no file system in a file can be mounted: {why}"),
            );
            return;
        }
    };
    let both = [&first, &second];
    let own = Scratch::new("crash").unwrap();
    let mut world = World::start_on_sqlite(own, data);
    world.create("one", "redis.single.xu1.tiny.128", "none");
    world.fill("one", 31, 3000);
    for round in 0..ROUNDS {
        world.change("one");
        let (status, answer) = world.ask_for_backup("one").unwrap();
        assert!(status < 300, "{answer}");
        let backup = text(&answer, "backup_id").unwrap();
        let after = cut(&world, &both, &folder);
        let held = Catalogue::of(&Database::Sqlite(after[0].at.join("data/catalog.sqlite")));
        let known = held.backups().iter().any(|row| row.id == backup);
        assert!(known, "round {round}: an accepted backup is lost");
        drop((held, after));

        world.wait_idle();
        assert_eq!(Catalogue::open(&world).backup(&backup).status, "succeeded");
        let after = cut(&world, &both, &folder);
        let held = Catalogue::of(&Database::Sqlite(after[0].at.join("data/catalog.sqlite")));
        assert_eq!(held.backup(&backup).status, "succeeded", "round {round}");
        checker::check_archives(&after[1].at, &held, &format!("round {round}, after the cut"));
        drop((held, after));
    }
    println!("{} power cuts: nothing that was answered is lost", 2 * ROUNDS);
    drop(world);
    // The store is mounted inside the other.
    drop(second);
    drop(first);
}
