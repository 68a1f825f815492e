//! How many bytes of stores a project may take, takes and has reserved, and the SQL of it (ADR 85).
//!
//! Nothing is counted up or down: what is taken is what the records say. An archive that is kept counts with all that was put for
//! it, its index and manifest too, and once more where it has a copy; one that is being made counts with what is reserved for it. So a record that ends, whatever way, gives
//! back what it does not keep, in the transaction in which it ends. Kept generations lie in memory and do not count; nor do the
//! objects of an attempt that failed, which are swept.

use std::fmt;

use super::record::Backup;
use crate::catalog::{Error, Tx};
use crate::ids::{BackupId, InstanceId, ProjectId};

/// What a record reserves at least: an archive of nothing has a manifest all the same.
const RESERVED_BYTES_MIN: u64 = 64 * 1024;
/// What is written into a store of what an instance's data takes in memory, in percent, where no backup of it says better.
const STORED_PERCENT: u64 = 60;

/// Where a project stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Standing {
    /// What it may take; `None`: there is no limit.
    pub limit: Option<u64>,
    /// What its archives and their copies take.
    pub used: u64,
    /// What is reserved for those that are being made.
    pub reserved: u64,
}

/// Why there is no room for so much more. `Display` says what to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Exceeded {
    /// See [`Standing::used`].
    pub used: u64,
    /// See [`Standing::reserved`].
    pub reserved: u64,
    /// What was asked for.
    pub asked: u64,
    /// See [`Standing::limit`].
    pub limit: u64,
}

impl fmt::Display for Exceeded {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            used,
            reserved,
            asked,
            limit,
        } = self;
        write!(
            f,
            "the project's quota of {limit} bytes has no room for {asked} more: {used} are used and {reserved} reserved by what is being \
             made; delete backups, or have the operator raise it (cachekeep project quota)"
        )
    }
}

impl Standing {
    /// Whether there is room for so much more.
    ///
    /// # Errors
    /// There is none.
    pub fn room_for(self, asked: u64) -> Result<(), Exceeded> {
        let Self {
            limit: Some(limit),
            used,
            reserved,
        } = self
        else {
            return Ok(());
        };
        match used.saturating_add(reserved).saturating_add(asked) <= limit {
            true => Ok(()),
            false => Err(Exceeded {
                used,
                reserved,
                asked,
                limit,
            }),
        }
    }
}

/// Where the project stands.
///
/// # Errors
/// The catalogue failed.
pub fn standing(tx: &Tx<'_>, project: &ProjectId) -> Result<Standing, Error> {
    let limit = tx.one(
        "SELECT quota_bytes FROM project WHERE id = ?1",
        (project,),
        |row| row.get(0),
    )?;
    let sums = tx.one(
        "SELECT CAST(coalesce(sum(CASE WHEN status <> 'succeeded' THEN 0 WHEN copy_at_ms IS NULL THEN stored ELSE 2 * stored END), 0) \
         AS BIGINT), CAST(coalesce(sum(CASE WHEN status <> 'succeeded' THEN reserved_bytes \
         WHEN copy_prefix IS NOT NULL AND copy_at_ms IS NULL THEN stored ELSE 0 END), 0) AS BIGINT) \
         FROM (SELECT status, reserved_bytes, copy_at_ms, copy_prefix, \
         CASE WHEN reserved_bytes > 0 THEN reserved_bytes ELSE size_bytes END AS stored \
         FROM backup WHERE status IN ('waiting', 'running', 'succeeded') AND generation_id IS NULL AND project_id = ?1) AS counted",
        (project,),
        |row| Ok((row.get(0)?, row.get(1)?)),
    )?;
    let (used, reserved) = sums.unwrap_or_default();
    Ok(Standing {
        limit: limit.flatten(),
        used,
        reserved,
    })
}

/// Whether the project has room for so much more. Costs a look-up where it has no limit.
///
/// # Errors
/// The outer one: the catalogue failed. The inner one: there is none.
pub fn check(tx: &Tx<'_>, project: &ProjectId, asked: u64) -> Result<Result<(), Exceeded>, Error> {
    let limit: Option<Option<u64>> = tx.one(
        "SELECT quota_bytes FROM project WHERE id = ?1",
        (project,),
        |row| row.get(0),
    )?;
    match limit.flatten() {
        None => Ok(Ok(())),
        Some(_) => Ok(standing(tx, project)?.room_for(asked)),
    }
}

/// Has a record that has not ended reserve so much in place of what it had. Transactions that write come one after the other, so
/// two cannot take the same bytes. Refused it stays as it was.
///
/// # Errors
/// As [`check`].
pub fn reserve(
    tx: &Tx<'_>,
    project: &ProjectId,
    backup: &BackupId,
    bytes: u64,
) -> Result<Result<(), Exceeded>, Error> {
    const OF_RECORD: &str =
        "SELECT reserved_bytes FROM backup WHERE id = ?1 AND status IN ('waiting', 'running')";
    let before: u64 = tx.one(OF_RECORD, (backup,), |row| row.get(0))?.unwrap_or(0);
    if bytes > before
        && let Err(exceeded) = check(tx, project, bytes - before)?
    {
        return Ok(Err(exceeded));
    }
    tx.execute(
        "UPDATE backup SET reserved_bytes = ?2 WHERE id = ?1 AND status IN ('waiting', 'running')",
        (backup, bytes),
    )?;
    Ok(Ok(()))
}

/// What the next backup of an instance may take in a store: as the newest one, by what the data took in memory then and takes now
/// (0: not known), and a tenth more.
///
/// # Errors
/// The catalogue failed.
pub fn estimate(tx: &Tx<'_>, instance: &InstanceId, used_memory: u64) -> Result<u64, Error> {
    let newest: Option<(u64, u64)> = tx.one(
        "SELECT CASE WHEN reserved_bytes > 0 THEN reserved_bytes ELSE size_bytes END, used_memory_bytes \
         FROM backup WHERE instance_id = ?1 AND status = 'succeeded' \
         AND kind IN ('manual', 'auto', 'safety') ORDER BY ordinal DESC LIMIT 1",
        (instance,),
        |row| Ok((row.get(0)?, row.get(1)?)),
    )?;
    let stored = match newest {
        Some((size, then)) if then > 0 && used_memory > 0 => {
            let scaled = u128::from(size) * u128::from(used_memory) / u128::from(then);
            u64::try_from(scaled).unwrap_or(u64::MAX)
        }
        Some((size, _)) => size,
        None => used_memory / 100 * STORED_PERCENT,
    };
    Ok(for_file(stored))
}

/// What is reserved for a file of so many bytes (0: not known).
pub fn for_file(bytes: u64) -> u64 {
    (bytes.saturating_add(bytes / 10)).max(RESERVED_BYTES_MIN)
}

/// What a backup's archive takes in a store.
pub fn stored_bytes(backup: &Backup) -> u64 {
    match backup.reserved_bytes {
        0 => u64::try_from(backup.size_bytes).unwrap_or(0),
        put => put,
    }
}

/// Gives a project a limit, or takes it away. What is stored stays, also where it is more.
///
/// # Errors
/// The catalogue failed.
pub fn set_limit(tx: &Tx<'_>, project: &ProjectId, bytes: Option<u64>) -> Result<(), Error> {
    tx.execute(
        "UPDATE project SET quota_bytes = ?2 WHERE id = ?1",
        (project, bytes),
    )?;
    Ok(())
}

/// Projects that have a limit, and where they stand.
///
/// # Errors
/// The catalogue failed.
pub fn limited(tx: &Tx<'_>) -> Result<Vec<(ProjectId, Standing)>, Error> {
    let projects: Vec<ProjectId> = tx.all(
        "SELECT id FROM project WHERE quota_bytes IS NOT NULL ORDER BY id",
        (),
        |row| row.get(0),
    )?;
    projects
        .into_iter()
        .map(|project| standing(tx, &project).map(|standing| (project, standing)))
        .collect()
}

#[cfg(test)]
mod tests {
    use std::sync::Barrier;

    use super::*;
    use crate::backup::record::{self, FailureCode, Format, Kind};
    use crate::catalog::Catalog;
    use crate::ids::Moment;

    fn with_instance(catalog: &Catalog) -> (ProjectId, InstanceId) {
        let (project, instance) = (ProjectId::random(), InstanceId::random());
        let nothing: &[u8] = &[];
        catalog
            .write(|tx| {
                tx.execute(
                    "INSERT INTO project (id, name, recipient, identity_sealed, created_at_ms) VALUES (?1, ?1, 'r', ?2, 0)",
                    (&project, nothing),
                )?;
                tx.execute(
                    "INSERT INTO instance (id, project_id, name, status, engine_version, capacity_mb, spec_code, bind, port, \
                     persistence, admin_password_sealed, attributes, created_at_ms, updated_at_ms) \
                     VALUES (?1, ?3, 'n', 'running', '7.0', 128, 's', 'b', 1, 'none', ?2, '{}', 0, 0)",
                    (&instance, nothing, &project),
                )
            })
            .unwrap();
        (project, instance)
    }

    fn accepted(
        catalog: &Catalog,
        (project, instance): &(ProjectId, InstanceId),
        bytes: u64,
        now: Moment,
    ) -> Result<BackupId, Exceeded> {
        catalog
            .write(|tx| {
                let id = record::insert_waiting(tx, project, instance, Kind::Manual, Format::Rdb, None, now)?;
                let reserved = reserve(tx, project, &id, bytes)?;
                if reserved.is_err() {
                    record::fail(tx, &id, FailureCode::NoStore, "no room", now)?;
                }
                Ok::<_, Error>(reserved.map(|()| id))
            })
            .unwrap()
    }

    /// Each claimant with connections of its own, as processes have; of a file they share the one that writes.
    #[test]
    fn of_four_that_reserve_at_once_as_many_are_accepted_as_there_is_room_for() {
        let is_long = std::env::var("CACHEKEEP_TEST_LONG").is_ok_and(|long| long == "1");
        let races = if is_long { 1000 } else { 100 };
        let server = xtask::postgres::Postgres::start().unwrap();
        let url = server.make_schema("quotas").unwrap();
        let folder = xtask::scratch::Scratch::new("quotas").unwrap();
        let file = Catalog::open(&folder.path().join("catalog.sqlite")).unwrap();
        let shared: Vec<Catalog> = (0..4).map(|_| Catalog::connect(&url, true).unwrap()).collect();
        for catalogs in [shared.iter().collect::<Vec<_>>(), vec![&file; 4]] {
            let of = with_instance(catalogs[0]);
            catalogs[0].write(|tx| set_limit(tx, &of.0, Some(100))).unwrap();
            for race in 0..races {
                // Room for three, two or one of them.
                let bytes = [33, 50, 51][race % 3];
                // A name is looked for among those of its second, one after the other.
                let now = Moment(1000 * race as i64);
                let barrier = Barrier::new(4);
                let answers: Vec<_> = std::thread::scope(|scope| {
                    let racing: Vec<_> = catalogs
                        .iter()
                        .map(|catalog| {
                            let (barrier, of) = (&barrier, &of);
                            scope.spawn(move || {
                                barrier.wait();
                                accepted(catalog, of, bytes, now)
                            })
                        })
                        .collect();
                    racing.into_iter().map(|one| one.join().unwrap()).collect()
                });
                let won: Vec<&BackupId> = answers.iter().flatten().collect();
                assert_eq!(won.len(), 3 - race % 3, "race {race}: {answers:?}");
                let standing_now = catalogs[0].read(|tx| standing(tx, &of.0)).unwrap();
                assert_eq!(standing_now.reserved, won.len() as u64 * bytes);
                for refused in answers.iter().filter_map(|answer| answer.as_ref().err()) {
                    assert_eq!((refused.asked, refused.limit), (bytes, 100));
                }
                // More than there is room for is not reserved, and what was stays.
                let beyond = catalogs[0].write(|tx| reserve(tx, &of.0, won[0], 101)).unwrap();
                assert!(beyond.is_err());
                for id in won {
                    let ended = |tx: &Tx<'_>| record::fail(tx, id, FailureCode::TimedOut, "", Moment(0));
                    catalogs[0].write(ended).unwrap();
                }
                let standing_now = catalogs[0].read(|tx| standing(tx, &of.0)).unwrap();
                assert_eq!((standing_now.used, standing_now.reserved), (0, 0));
            }
        }
        println!("{races} races of four on each database: never more accepted than there was room for");
    }

    #[test]
    fn what_is_to_be_stored_is_judged_by_what_was() {
        let folder = xtask::scratch::Scratch::new("quotas").unwrap();
        let file = Catalog::open(&folder.path().join("catalog.sqlite")).unwrap();
        let of = with_instance(&file);
        let estimated = |memory| file.read(|tx| estimate(tx, &of.1, memory)).unwrap();
        assert_eq!(
            (estimated(0), estimated(10_000_000)),
            (RESERVED_BYTES_MIN, 6_600_000)
        );
        let id = accepted(&file, &of, 1, Moment(0)).unwrap();
        file.write(|tx| {
            tx.execute(
                "UPDATE backup SET status = 'succeeded', prefix = 'p', manifest_blake3 = 'm', size_bytes = 900000, \
                 reserved_bytes = 1000000, used_memory_bytes = 4000000 WHERE id = ?1",
                (&id,),
            )
        })
        .unwrap();
        assert_eq!(estimated(0), 1_100_000);
        assert_eq!(estimated(8_000_000), 2_200_000);
        let now = file.read(|tx| standing(tx, &of.0)).unwrap();
        assert_eq!((now.limit, now.used, now.reserved), (None, 1_000_000, 0));
    }
}
