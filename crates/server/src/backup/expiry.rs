//! Retention: takes away backups whose time has come.
//!
//! The record says first that it has expired, and nothing can be restored from it any more; then the files go. What a crash
//! leaves of them is swept, as after every deletion.

use super::command::remove_local_copy;
use super::record::{self, Backup};
use super::run_record as runs;
use crate::app::App;
use crate::audit::{self, Act};
use crate::catalog::{self, Tx};
use crate::ids::{InstanceId, Moment};
use crate::instance::record as instances;
use crate::schedule::keep::Verdict;
use crate::{metrics, schedule};

/// Takes away everything whose time has come by `now`. What is wrong with one instance keeps nothing of others.
///
/// # Errors
/// The catalogue failed.
pub fn take_expired(app: &App, now: Moment) -> Result<(), catalog::Error> {
    for id in app.catalog.read(|tx| runs::with_something_due(tx, now))? {
        match take_expired_of(app, &id, now) {
            Ok(()) => {}
            Err(error @ catalog::Error::Away(_)) => return Err(error),
            Err(error) => {
                tracing::error!(instance.id = %id, error = engine::chain(&error), "no backup of this instance expires");
            }
        }
    }
    Ok(())
}

fn take_expired_of(app: &App, id: &InstanceId, now: Moment) -> Result<(), catalog::Error> {
    let goes = |tx: &Tx<'_>| {
        let Some(instance) = instances::load(tx, id)? else {
            return Ok(Vec::new());
        };
        let judged = schedule::command::judged(tx, &instance, now)?.into_iter();
        let goes = judged.filter_map(|(archived, verdict)| match verdict {
            Verdict::Goes(why) => Some((archived.id, why)),
            Verdict::Stays(_) => None,
        });
        Ok::<_, catalog::Error>(goes.collect())
    };
    if app.catalog.read(goes)?.is_empty() {
        return Ok(());
    }
    // Judged again, of what is so when it is written.
    let act = Act {
        at: now,
        project: None,
        who: "scheduler".to_owned(),
        what: "ExpireBackups".to_owned(),
        subject: format!("instance_id={id}"),
    };
    let take = |tx: &Tx<'_>| {
        let mut expired = Vec::new();
        for (backup, why) in goes(tx)? {
            if runs::expire(tx, &backup, &why, now)? {
                expired.extend(record::load(tx, &backup)?);
            }
        }
        Ok::<_, catalog::Error>(expired)
    };
    let expired = audit::acting(act, || app.catalog.write(take))?;
    for backup in expired {
        tracing::info!(backup.id = %backup.id, instance.id = %backup.instance_id, why = backup.failure, "a backup has expired");
        app.counters.add(metrics::EXPIRED, &[]);
        remove(app, &backup);
    }
    Ok(())
}

/// Removes the files that lie in the local folder; those of remote stores are the sweeper's.
fn remove(app: &App, backup: &Backup) {
    let removed = engine::failpoint::hit("backup_expiry.after_commit").and_then(|()| {
        match (&backup.prefix, &backup.storage_id) {
            (Some(prefix), None) if !backup.is_elsewhere(&app.host) => {
                engine::archive::delete(&app.vault.store, prefix)
            }
            _ => Ok(()),
        }
    });
    if let Err(error) = removed {
        tracing::warn!(backup.id = %backup.id, error = engine::chain(&error), "files of an expired backup do not go; they are swept later");
    }
    remove_local_copy(app, backup);
    app.board.tidy();
}

#[cfg(test)]
mod tests {
    use std::collections::{BTreeMap, BTreeSet};
    use std::path::Path;

    use xtask::fill::Random;
    use xtask::scratch::Scratch;

    use super::*;
    use crate::app::testing;
    use crate::backup::command;
    use crate::backup::record::{FailureCode, Format, Kind};
    use crate::ids::{BackupId, ProjectId, RestoreId, ScheduleId};
    use crate::jobs::{JobKind, queue};
    use crate::storage::sweep;

    const HOUR: i64 = 3_600_000;
    /// What the schedule keeps of its backups that are not damaged.
    const LAST: usize = 3;
    /// Of an archive, in the order in which they are stored.
    const OBJECTS: [&str; 3] = ["shard-0/seg-000000", "details.age", "manifest.json"];

    #[derive(Debug, Clone, Copy, PartialEq, Eq)]
    enum State {
        /// An attempt is at work, or has died and another one will be: its claim says who may write.
        AtWork,
        Kept,
        /// It has failed or expired.
        Over,
        Deleted,
    }

    /// A backup as it has to be.
    #[derive(Debug)]
    struct Made {
        id: BackupId,
        state: State,
        /// Somebody or a schedule asked for it.
        counts: bool,
        is_scheduled: bool,
        expires: Option<Moment>,
        is_held: bool,
        is_in_use: bool,
        is_damaged: bool,
        is_proven: bool,
        /// What the names of each attempt's objects begin with.
        attempts: Vec<String>,
        /// What was ever stored.
        stored: Vec<String>,
    }

    impl Made {
        fn can_be_restored(&self) -> bool {
            self.state == State::Kept && self.counts && !self.is_damaged
        }

        /// The objects that must be there.
        fn needed(&self) -> impl Iterator<Item = &String> {
            let last = self.attempts.last();
            self.stored.iter().filter(move |name| match self.state {
                State::AtWork => true,
                State::Kept => last.is_some_and(|prefix| name.starts_with(&format!("{prefix}/"))),
                State::Over | State::Deleted => false,
            })
        }
    }

    /// A service, and what has to be so in it.
    struct Model {
        app: App,
        _folder: Scratch,
        project: ProjectId,
        instance: InstanceId,
        /// Where backups are restored into.
        target: InstanceId,
        schedule: ScheduleId,
        random: Random,
        now: Moment,
        /// Oldest first.
        all: Vec<Made>,
        restores: i64,
        expired: usize,
        swept: usize,
    }

    impl Model {
        fn new(seed: u64) -> Self {
            let folder = Scratch::new("retention").unwrap();
            let model = Self {
                app: testing::app(&folder.path().join("data")),
                _folder: folder,
                project: ProjectId::random(),
                instance: InstanceId::random(),
                target: InstanceId::random(),
                schedule: ScheduleId::random(),
                random: Random::new(seed, 0),
                now: Moment(1_800_000_000_000),
                all: Vec::new(),
                restores: 0,
                expired: 0,
                swept: 0,
            };
            let nothing: &[u8] = &[];
            let add = |tx: &Tx<'_>| {
                tx.execute(
                    "INSERT INTO project (id, name, recipient, identity_sealed, created_at_ms) VALUES (?1, ?1, 'r', ?2, 0)",
                    (&model.project, nothing),
                )?;
                for instance in [&model.instance, &model.target] {
                    tx.execute(
                        "INSERT INTO instance (id, project_id, name, status, engine_version, capacity_mb, spec_code, bind, port, \
                         persistence, admin_password_sealed, attributes, created_at_ms, updated_at_ms) \
                         VALUES (?1, ?2, ?1, 'running', '7.0', 128, 's', 'b', 1, 'none', ?3, '{}', 0, 0)",
                        (instance, &model.project, nothing),
                    )?;
                }
                tx.execute(
                    "INSERT INTO schedule (id, project_id, instance_id, name, task, cron, zone, window_ms, keeps, created_at_ms) \
                     VALUES (?1, ?2, ?3, 'nightly', 'backup', '0 2 * * *', 'Etc/UTC', 3600000, ?4, 0)",
                    (
                        &model.schedule,
                        &model.project,
                        &model.instance,
                        format!("{{\"last\":{LAST}}}"),
                    ),
                )
            };
            model.app.catalog.write(add).unwrap();
            model
        }

        fn roll(&mut self, sides: usize) -> usize {
            let rolled = self.random.below(u64::try_from(sides).unwrap());
            usize::try_from(rolled).unwrap()
        }

        /// One in this state.
        fn one(&mut self, state: State) -> Option<usize> {
            let those = |(at, made): (usize, &Made)| (made.state == state).then_some(at);
            let found: Vec<usize> = self.all.iter().enumerate().filter_map(those).collect();
            match found.len() {
                0 => None,
                count => Some(found[self.roll(count)]),
            }
        }

        fn begin(&mut self) {
            let kind = [Kind::Manual, Kind::Auto, Kind::Auto, Kind::Safety][self.roll(4)];
            let is_scheduled = kind == Kind::Auto && self.random.chance(700);
            let hours = self.roll(72);
            let expires = self
                .random
                .chance(700)
                .then(|| Moment(self.now.0 + i64::try_from(hours).unwrap() * HOUR));
            let number = i64::try_from(self.all.len()).unwrap();
            let add = |tx: &Tx<'_>| {
                let (project, instance) = (&self.project, &self.instance);
                let id = record::insert_waiting(tx, project, instance, kind, Format::Rdb, None, self.now)?;
                if is_scheduled {
                    tx.execute(
                        "UPDATE backup SET schedule_id = ?2, due_at_ms = ?3, try_number = 1 WHERE id = ?1",
                        (&id, &self.schedule, number),
                    )?;
                }
                if let Some(at) = expires {
                    runs::keep_until(tx, &id, at)?;
                }
                Ok::<_, catalog::Error>(id)
            };
            let id = self.app.catalog.write(add).unwrap();
            self.all.push(Made {
                id,
                state: State::AtWork,
                counts: kind != Kind::Safety,
                is_scheduled,
                expires,
                is_held: false,
                is_in_use: false,
                is_damaged: false,
                is_proven: false,
                attempts: Vec::new(),
                stored: Vec::new(),
            });
            self.attempt(self.all.len() - 1);
        }

        /// Begins an attempt, which may die after any of its objects.
        fn attempt(&mut self, at: usize) {
            let objects = self.roll(OBJECTS.len() + 1);
            let made = &mut self.all[at];
            let fence = made.attempts.len() + 1;
            let prefix = format!("{}/{}/{}/{fence}", self.project, self.instance, made.id);
            let (id, app, now) = (&made.id, &self.app, self.now);
            let is_begun = app
                .catalog
                .write(|tx| record::begin(tx, id, &prefix, (None, &app.host), now));
            assert!(is_begun.unwrap());
            made.attempts.push(prefix);
            self.put(at, 0, objects);
        }

        /// Stores these objects of the newest attempt.
        fn put(&mut self, at: usize, from: usize, to: usize) {
            let made = &mut self.all[at];
            for object in &OBJECTS[from..to] {
                let name = format!("{}/{object}", made.attempts.last().unwrap());
                self.app.vault.store.put(&name, name.as_bytes()).unwrap();
                made.stored.push(name);
            }
        }

        fn end(&mut self, at: usize) {
            let is_well = self.random.chance(750);
            let stored = self.all[at]
                .needed()
                .filter(|name| name.starts_with(&format!("{}/", self.all[at].attempts.last().unwrap())))
                .count();
            if is_well {
                self.put(at, stored, OBJECTS.len());
            }
            let (id, now) = (&self.all[at].id, self.now);
            let ended = self.app.catalog.write(|tx| match is_well {
                true => tx.execute(
                    "UPDATE backup SET status = 'succeeded', phase = NULL, manifest_blake3 = 'm', size_bytes = 1 \
                     WHERE id = ?1 AND status = 'running'",
                    (id,),
                ),
                false => record::fail(tx, id, FailureCode::TimedOut, "it has died", now).map(usize::from),
            });
            assert_eq!(ended.unwrap(), 1);
            self.all[at].state = match is_well {
                true => State::Kept,
                false => State::Over,
            };
        }

        fn hold_or_release(&mut self, at: usize) {
            let made = &mut self.all[at];
            let (app, project, instance) = (&self.app, &self.project, &self.instance);
            let done = match made.is_held {
                true => schedule::command::release(app, project, instance, &made.id),
                false => schedule::command::hold(app, project, instance, &made.id, "an audit"),
            };
            done.unwrap();
            made.is_held = !made.is_held;
        }

        fn verify(&mut self, at: usize) {
            let is_damaged = self.random.chance(500);
            let made = &mut self.all[at];
            let (level, failure) = match is_damaged {
                true => ("stored", Some("an object is gone")),
                false => ("proven", None),
            };
            let told = self.app.catalog.write(|tx| {
                tx.execute(
                    "UPDATE backup SET proof_level = ?2, proof_failure = ?3 WHERE id = ?1",
                    (&made.id, level, failure),
                )
            });
            assert_eq!(told.unwrap(), 1);
            (made.is_damaged, made.is_proven) = (is_damaged, !is_damaged);
        }

        /// Begins to restore one, or ends the restore that is at work.
        fn use_or_leave(&mut self) {
            let target = self.target.clone();
            if let Some(made) = self.all.iter_mut().find(|made| made.is_in_use) {
                let ended = self.app.catalog.write(|tx| {
                    tx.execute(
                        "UPDATE job SET state = 'done', settled_at_ms = 1 WHERE instance_id = ?1 AND state <> 'done'",
                        (&target,),
                    )
                });
                assert_eq!(ended.unwrap(), 1);
                made.is_in_use = false;
                return;
            }
            let Some(at) = self.one(State::Kept) else {
                return;
            };
            self.restores += 1;
            let (restore, ordinal, now) = (RestoreId::random(), self.restores, self.now);
            let backup = &self.all[at].id;
            let add = |tx: &Tx<'_>| {
                tx.execute(
                    "INSERT INTO restore (instance_id, ordinal, id, project_id, name, backup_id, backup_name, status, \
                     source_instance_id, source_instance_name, method, verify, target_state, created_at_ms, clock_at_ms, updated_at_ms) \
                     VALUES (?1, ?2, ?3, ?4, 'r', ?5, 'b', 'running', ?6, 'i', 'side_load', 'none', 'untouched', ?7, ?7, ?7)",
                    (
                        &target,
                        ordinal,
                        &restore,
                        &self.project,
                        backup,
                        &self.instance,
                        now,
                    ),
                )?;
                queue::insert(tx, &target, JobKind::Restore, Some(restore.as_str()))
            };
            let _its_id = self.app.catalog.write(add).unwrap();
            self.all[at].is_in_use = true;
        }

        fn delete(&mut self, at: usize) {
            let made = &mut self.all[at];
            let is_over = matches!(made.state, State::Kept | State::Over);
            let may_go = is_over && !made.is_held && !made.is_in_use;
            let done = command::delete(&self.app, &self.project, &self.instance, &made.id, self.now);
            assert_eq!(done.is_ok(), may_go, "{made:?}: {done:?}");
            if may_go {
                made.state = State::Deleted;
            }
        }

        fn step(&mut self) {
            let hours = self.roll(6);
            self.now.0 += i64::try_from(hours).unwrap() * HOUR;
            let (at_work, kept) = (self.one(State::AtWork), self.one(State::Kept));
            match (self.roll(14), at_work, kept) {
                (0, Some(at), _) => self.attempt(at),
                (1..=4, Some(at), _) => self.end(at),
                (5, _, Some(at)) => self.hold_or_release(at),
                (6 | 7, _, Some(at)) => self.verify(at),
                (8, _, Some(_)) => self.use_or_leave(),
                (9, ..) if !self.all.is_empty() => {
                    let at = self.roll(self.all.len());
                    self.delete(at);
                }
                _ => self.begin(),
            }
        }

        /// Those that retention has to take now, by a judgement of its own.
        fn that_expire(&self) -> Vec<usize> {
            let newest_first = || self.all.iter().enumerate().rev();
            let restorable = || newest_first().filter(|(_, made)| made.can_be_restored());
            let Some((newest, _)) = restorable().next() else {
                // The last line of defence: nothing would be left that can be restored.
                return Vec::new();
            };
            let proven = restorable().find(|(_, made)| made.is_proven);
            let of_schedule = newest_first()
                .filter(|(_, made)| made.state == State::Kept && made.is_scheduled && !made.is_damaged);
            let last: BTreeSet<usize> = of_schedule.take(LAST).map(|(at, _)| at).collect();
            let goes = |(at, made): (usize, &Made)| {
                let is_safe = made.is_held
                    || made.is_in_use
                    || at == newest
                    || proven.is_some_and(|(proven, _)| at == proven)
                    || last.contains(&at);
                let is_due = made.is_scheduled || made.expires.is_some_and(|at| at <= self.now);
                made.state == State::Kept && !is_safe && is_due
            };
            let going = self
                .all
                .iter()
                .enumerate()
                .filter(|(at, made)| goes((*at, *made)));
            going.map(|(at, _)| at).collect()
        }

        fn expire(&mut self) {
            let going = self.that_expire();
            take_expired(&self.app, self.now).unwrap();
            self.expired += going.len();
            for at in going {
                self.all[at].state = State::Over;
            }
        }

        /// Records are as they have to be, and no object is gone that somebody needs.
        fn check(&self, label: &str) -> BTreeSet<String> {
            let statuses = self.app.catalog.read(|tx| {
                tx.all("SELECT id, status FROM backup", (), |row| {
                    Ok((row.get::<BackupId>(0)?, row.get::<String>(1)?))
                })
            });
            let statuses: BTreeMap<BackupId, String> = statuses.unwrap().into_iter().collect();
            assert_eq!(statuses.len(), self.all.len(), "{label}");
            for made in &self.all {
                let wanted: &[&str] = match made.state {
                    State::AtWork => &["running"],
                    State::Kept => &["succeeded"],
                    State::Over => &["failed", "expired"],
                    State::Deleted => &["deleted"],
                };
                let status = statuses[&made.id].as_str();
                assert!(wanted.contains(&status), "{label}: {status}: {made:?}");
            }
            let mut there = BTreeSet::new();
            let root = self.app.config.store_dir();
            collect(&root, &root, &mut there);
            for made in &self.all {
                for name in made.needed() {
                    assert!(there.remove(name), "{label}: {name} is gone: {made:?}");
                }
            }
            // What is left is of nobody.
            there
        }

        fn sweep(&mut self, label: &str) {
            let before = self.check(label);
            sweep::local(&self.app).unwrap();
            let after = self.check(label);
            assert!(after.is_empty(), "{label}: one sweep has left {after:?}");
            self.swept += before.len();
        }
    }

    /// The names of all objects, each of which holds its own name.
    fn collect(root: &Path, folder: &Path, into: &mut BTreeSet<String>) {
        for entry in std::fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                collect(root, &path, into);
                continue;
            }
            let name = path.strip_prefix(root).unwrap().to_str().unwrap().to_owned();
            assert_eq!(std::fs::read_to_string(&path).unwrap(), name);
            into.insert(name);
        }
    }

    #[test]
    fn of_real_objects_none_goes_that_a_backup_needs_and_none_stays_that_nobody_does() {
        let is_long = std::env::var("CACHEKEEP_TEST_LONG").is_ok_and(|long| long == "1");
        let (seeds, steps) = if is_long { (10, 1000) } else { (2, 200) };
        let (mut expired, mut swept) = (0, 0);
        for seed in 0..seeds {
            let mut model = Model::new(seed);
            for step in 0..steps {
                let label = format!("seed {seed}, step {step}");
                model.step();
                model.check(&label);
                model.expire();
                model.check(&format!("{label}, retention"));
                if model.random.chance(400) {
                    model.sweep(&format!("{label}, sweep"));
                }
            }
            model.sweep(&format!("seed {seed}, at the end"));
            expired += model.expired;
            swept += model.swept;
        }
        println!(
            "{seeds} seeds of {steps} steps on a real catalogue and a real folder: {expired} backups expired, {swept} objects of dead \
             attempts swept, 0 gone that somebody needed, 0 left of nobody after a sweep"
        );
        assert!(expired > 10 && swept > 10, "{expired} expired, {swept} swept");
    }
}
