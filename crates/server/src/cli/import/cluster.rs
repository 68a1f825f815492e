//! A set of files of one cluster: that together they hold every slot once is proven before anything is stored.

use std::path::{Path, PathBuf};

use anyhow::Context;
use engine::cluster;

use crate::cli::inspect::validator;
use crate::cli::source::{Ended, Source};

/// Slots of a cluster.
const SLOTS: usize = 16 * 1024;
/// Most ranges of slots of one file: what resharding leaves is far below, keys thrown together at random are above.
const RANGES_MAX: usize = 1024;

/// One file of the set, and what it is of the cluster.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Part {
    pub(super) path: PathBuf,
    /// Its slots, each range with both ends.
    pub(super) slots: Vec<(u16, u16)>,
    /// Client port of the node, where the cluster's own list tells it; else the number of the file.
    pub(super) port: u16,
}

/// The slots in which a file has keys.
struct Held {
    slots: Vec<bool>,
    keys: u64,
    wrong: Option<String>,
}

impl rdb::Sink for Held {
    fn key(&mut self, key: &rdb::KeySummary<'_>) {
        if key.db != 0 {
            let what = "it has keys in another database than 0, which no cluster has";
            self.wrong.get_or_insert_with(|| what.to_owned());
        }
        if key.key_bytes > key.key.len() as u64 {
            let what = "it has a key above 1 MiB, whose slot is not known";
            self.wrong.get_or_insert_with(|| what.to_owned());
        }
        self.keys += 1;
        if let Some(slot) = self.slots.get_mut(usize::from(rdb::slot_of(key.key))) {
            *slot = true;
        }
    }
}

/// Validates every file and says which slots are its own, in the order of the slots.
///
/// `nodes` is the cluster's own list, as `CLUSTER NODES` prints it or a node's nodes.conf has it: with it each file must be that
/// of one shard, each shard must have a file, and the shards must have every slot. Without it every slot must have a key in
/// some file, or `accept_empty` says that a slot without keys is an empty one and no missing file's. `shards` is how many the
/// instance has: where the files can be its shards they are cut as these, so that it can be restored from them.
///
/// # Errors
/// A file that is not valid, a slot that is in two files, in none, or in the wrong one.
pub(super) fn assign(
    files: &[PathBuf],
    nodes: Option<&Path>,
    accept_empty: bool,
    shards: u16,
) -> anyhow::Result<Vec<Part>> {
    let held: Vec<Held> = files.iter().map(|path| survey(path)).collect::<Result<_, _>>()?;
    let slots: Vec<&[bool]> = held.iter().map(|held| &held.slots[..]).collect();
    match nodes {
        Some(nodes) => {
            let text =
                std::fs::read_to_string(nodes).with_context(|| format!("cannot read {}", nodes.display()))?;
            by_nodes(files, &slots, &text)
        }
        None => by_keys(files, &slots, accept_empty, shards),
    }
}

fn survey(path: &Path) -> anyhow::Result<Held> {
    let mut held = Held {
        slots: vec![false; SLOTS],
        keys: 0,
        wrong: None,
    };
    let file = std::fs::File::open(path).with_context(|| format!("cannot open {}", path.display()))?;
    let mut validator = validator();
    let read = Source::File(file).read(0, |piece| validator.feed(piece, &mut held));
    let invalid = |error: rdb::Error| anyhow::anyhow!("{} is not valid: {error}", path.display());
    match read {
        Ok(()) => validator.finish().map_err(invalid)?,
        Err(Ended::Taker(error)) => return Err(invalid(error)),
        Err(Ended::Source(error)) => anyhow::bail!("cannot read {}: {error}", path.display()),
    };
    match held.wrong {
        Some(what) => anyhow::bail!("{}: {what}", path.display()),
        None => Ok(held),
    }
}

/// Which file has each slot; none has it twice.
fn owners(files: &[PathBuf], held: &[&[bool]]) -> anyhow::Result<Vec<Option<usize>>> {
    let mut owners = vec![None; SLOTS];
    for (file, slots) in held.iter().enumerate() {
        for (slot, _) in slots.iter().enumerate().filter(|(_, is_held)| **is_held) {
            if let Some(other) = owners[slot].replace(file) {
                let other: usize = other;
                anyhow::bail!(
                    "{} and {} both have keys of slot {slot}: they are of one shard, or the slot moved between their times",
                    files[other].display(),
                    files[file].display()
                );
            }
        }
    }
    Ok(owners)
}

/// The files as the shards of an instance that has so many, where each shard's keys are all in one file, and the other way round.
fn as_shards(files: &[PathBuf], owners: &[Option<usize>], shards: u16) -> Option<Vec<Part>> {
    let mut left: Vec<usize> = (0..files.len()).rev().collect();
    let mut of_shard = Vec::new();
    for shard in 0..shards {
        let (first, last) = cluster::slots_of(shard, shards);
        let mut here = owners[usize::from(first)..=usize::from(last)].iter().flatten();
        let file = here.next().copied();
        if here.any(|other| Some(*other) != file) {
            return None;
        }
        if let Some(file) = file {
            let at = left.iter().position(|other| *other == file)?;
            left.remove(at);
        }
        of_shard.push((file, (first, last)));
    }
    let mut parts = Vec::new();
    for (file, slots) in of_shard {
        // A shard without keys has a file that holds none.
        let file = file.or_else(|| left.pop())?;
        parts.push(Part {
            path: files[file].clone(),
            slots: vec![slots],
            port: u16::try_from(file + 1).ok()?,
        });
    }
    left.is_empty().then_some(parts)
}

fn by_keys(
    files: &[PathBuf],
    held: &[&[bool]],
    accept_empty: bool,
    shards: u16,
) -> anyhow::Result<Vec<Part>> {
    let mut owners = owners(files, held)?;
    let empty = owners.iter().filter(|owner| owner.is_none()).count();
    anyhow::ensure!(
        empty == 0 || accept_empty,
        "{empty} of {SLOTS} slots have no key in any file, so a file that is missing would not be noticed: give the cluster's own \
         list with --nodes (redis-cli CLUSTER NODES > nodes.txt), or say --accept-empty-slots"
    );
    if let Some(parts) = as_shards(files, &owners, shards) {
        return Ok(parts);
    }
    // A slot without keys goes with the one before it, so that a shard's slots stay together.
    let mut owner = owners.iter().flatten().next().copied().unwrap_or(0);
    for slot in &mut owners {
        owner = slot.unwrap_or(owner);
        *slot = Some(owner);
    }
    let mut ranges: Vec<Vec<(u16, u16)>> = vec![Vec::new(); files.len()];
    for (slot, owner) in (0_u16..).zip(owners.into_iter().flatten()) {
        match ranges[owner].last_mut() {
            Some((_, last)) if *last + 1 == slot => *last = slot,
            _ => ranges[owner].push((slot, slot)),
        }
    }
    let mut parts = Vec::new();
    for (number, (path, slots)) in (1..).zip(files.iter().zip(ranges)) {
        anyhow::ensure!(!slots.is_empty(), "{} holds no key: leave it out", path.display());
        anyhow::ensure!(
            slots.len() <= RANGES_MAX,
            "the slots of {} are in {} pieces: this is no shard of a cluster",
            path.display(),
            slots.len()
        );
        parts.push(Part {
            path: path.clone(),
            slots,
            port: number,
        });
    }
    parts.sort_by_key(|part| part.slots.first().copied());
    Ok(parts)
}

fn by_nodes(files: &[PathBuf], held: &[&[bool]], text: &str) -> anyhow::Result<Vec<Part>> {
    let shards = cluster::view_of(text)
        .and_then(|view| cluster::shards(&view))
        .map_err(super::super::alone::told)
        .context("the list of nodes does not tell a whole cluster")?;
    anyhow::ensure!(
        shards.len() == files.len(),
        "the cluster has {} shards with slots, and {} files are given: one of each shard is wanted",
        shards.len(),
        files.len()
    );
    let owners = owners(files, held)?;
    let mut of_shard: Vec<Option<usize>> = vec![None; shards.len()];
    let of = |slot: usize| {
        let is_in = |(first, last): &(u16, u16)| (usize::from(*first)..=usize::from(*last)).contains(&slot);
        shards.iter().position(|shard| shard.slots.iter().any(is_in))
    };
    for (slot, owner) in owners.iter().enumerate() {
        let (Some(file), Some(shard)) = (owner, of(slot)) else {
            continue;
        };
        let before = *of_shard[shard].get_or_insert(*file);
        anyhow::ensure!(
            before == *file,
            "{} and {} both have keys of the shard at port {}: slot {slot} is not where the list says",
            files[before].display(),
            files[*file].display(),
            shards[shard].port
        );
    }
    for (file, path) in files.iter().enumerate() {
        let shards_of: Vec<u16> = of_shard
            .iter()
            .zip(&shards)
            .filter(|(owner, _)| **owner == Some(file))
            .map(|(_, shard)| shard.port)
            .collect();
        anyhow::ensure!(
            shards_of.len() <= 1,
            "{} has keys of several shards (ports {shards_of:?}): it is not of this cluster, or of another time",
            path.display()
        );
    }
    // A shard without keys has any file that is left, which has none either.
    let mut left = (0..files.len())
        .filter(|file| !of_shard.contains(&Some(*file)))
        .collect::<Vec<_>>();
    let parts = shards.iter().zip(&of_shard).map(|(shard, owner)| {
        let file = owner.or_else(|| left.pop()).context("a shard has no file")?;
        Ok(Part {
            path: files[file].clone(),
            slots: shard.slots.clone(),
            port: shard.port,
        })
    });
    parts.collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn slots(range: std::ops::Range<usize>) -> Vec<bool> {
        (0..SLOTS).map(|slot| range.contains(&slot)).collect()
    }

    fn names(count: usize) -> Vec<PathBuf> {
        (0..count)
            .map(|number| PathBuf::from(format!("{number}.rdb")))
            .collect()
    }

    const NODES: &str = "07c37dfeb235213a872192d90877d0cd55635b91 127.0.0.1:30004@31004 slave e7d1eecce10fd6bb5eb35b9f99a514335d9ba9ca 0 1 4 connected\n\
        67ed2db8d677e59ec4a4cefb06858cf2a1a89fa1 127.0.0.1:30002@31002 master - 0 1426238316232 2 connected 5461-10922\n\
        e7d1eecce10fd6bb5eb35b9f99a514335d9ba9ca 127.0.0.1:30001@31001 myself,master - 0 0 1 connected 0-5460 10923-16383\n\
        vars currentEpoch 6 lastVoteEpoch 0\n";

    #[test]
    fn without_a_list_every_slot_must_have_a_key_or_be_said_to_be_empty() {
        let (one, two) = (slots(0..8000), slots(8000..SLOTS));
        let parts = by_keys(&names(2), &[&two, &one], false, 3).unwrap();
        assert_eq!(parts[0].slots, [(0, 7999)]);
        assert_eq!(
            (parts[1].path.as_path(), &parts[1].slots[..]),
            (Path::new("0.rdb"), &[(8000, 16383)][..])
        );
        let gap = slots(9000..SLOTS);
        let why = by_keys(&names(2), &[&one, &gap], false, 3)
            .unwrap_err()
            .to_string();
        assert!(why.starts_with("1000 of 16384 slots"), "{why}");
        let parts = by_keys(&names(2), &[&one, &gap], true, 3).unwrap();
        assert_eq!(parts[0].slots, [(0, 8999)]);
        let twice = slots(7999..SLOTS);
        let why = by_keys(&names(2), &[&one, &twice], true, 3)
            .unwrap_err()
            .to_string();
        assert!(why.contains("both have keys of slot 7999"), "{why}");
    }

    #[test]
    fn without_a_list_files_that_can_be_the_shards_of_the_instance_are_cut_as_they_are() {
        let (one, two, three) = (slots(7..9), slots(5461..7000), slots(0..0));
        let parts = by_keys(&names(3), &[&two, &three, &one], true, 3).unwrap();
        let cut: Vec<_> = parts
            .iter()
            .map(|part| (part.path.to_str().unwrap(), &part.slots[..]))
            .collect();
        assert_eq!(
            cut,
            [
                ("2.rdb", &[cluster::slots_of(0, 3)][..]),
                ("0.rdb", &[cluster::slots_of(1, 3)]),
                ("1.rdb", &[cluster::slots_of(2, 3)])
            ]
        );
        // Keys of two shards in one file: another cut than the instance's.
        let across = slots(5400..5500);
        let parts = by_keys(
            &names(3),
            &[&across, &slots(6000..6001), &slots(9000..9001)],
            true,
            3,
        )
        .unwrap();
        assert_eq!(parts[0].slots, [(0, 5999)]);
    }

    #[test]
    fn with_a_list_each_shard_has_one_file_and_each_file_one_shard() {
        let (one, two) = (slots(20..30), slots(6000..6001));
        let parts = by_nodes(&names(2), &[&two, &one], NODES).unwrap();
        assert_eq!(
            (parts[0].port, parts[0].path.as_path()),
            (30001, Path::new("1.rdb"))
        );
        assert_eq!(parts[0].slots, [(0, 5460), (10923, 16383)]);
        assert_eq!(parts[1].slots, [(5461, 10922)]);
        let empty = slots(0..0);
        let parts = by_nodes(&names(2), &[&empty, &two], NODES).unwrap();
        assert_eq!(parts[0].path, Path::new("0.rdb"));
        for (held, why) in [
            (vec![&one[..]], "2 shards with slots, and 1 files"),
            (
                vec![&one[..], &slots(5000..6000)[..]],
                "both have keys of the shard at port 30001",
            ),
            (vec![&slots(5000..6000)[..], &empty[..]], "several shards"),
        ] {
            let error = by_nodes(&names(held.len()), &held, NODES).unwrap_err();
            assert!(format!("{error:#}").contains(why), "{error:#}");
        }
        let lost = NODES.replace("0-5460 ", "");
        assert!(by_nodes(&names(2), &[&one, &two], &lost).is_err());
    }
}
