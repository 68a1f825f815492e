//! Job rows: insert with the record, claim, settle. At most one unsettled job per instance, by a unique index.
//!
//! A claim holds for as long as it is renewed: `lease_until_ms`, by the database's clock. When that has passed, another host may
//! claim the job, with a higher fence. Whoever held it has stopped by then ([`Claim::lease`]); if he has not, because he was
//! stopped himself, his fence is in all that he writes.

use std::sync::Arc;
use std::time::Duration;

use engine::{Lease, defect};

use crate::catalog::{Error, FromSql, Tx, Value};
use crate::ids::{HostId, InstanceId, JobId, Moment};

/// What a job does. The words are those of the table's CHECK.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum JobKind {
    /// Make an instance's first generation.
    Create,
    /// Remove an instance with its processes and directories.
    Delete,
    /// Stop and start the engine.
    Restart,
    /// Remove all keys.
    Flush,
    /// Give the engine the instance's new password.
    Password,
    /// Give the engines the instance's new limit of memory.
    Resize,
    /// Capture and store.
    Backup,
    /// Load beside and switch, switch back, or apply key by key.
    Restore,
    /// Apply key by key what an import task names.
    Migration,
}

impl JobKind {
    /// The word in the table.
    pub fn word(self) -> &'static str {
        match self {
            JobKind::Create => "create",
            JobKind::Delete => "delete",
            JobKind::Restart => "restart",
            JobKind::Flush => "flush",
            JobKind::Password => "password",
            JobKind::Resize => "resize",
            JobKind::Backup => "backup",
            JobKind::Restore => "restore",
            JobKind::Migration => "migration",
        }
    }

    fn from_word(word: &str) -> Option<Self> {
        [
            JobKind::Create,
            JobKind::Delete,
            JobKind::Restart,
            JobKind::Flush,
            JobKind::Password,
            JobKind::Resize,
            JobKind::Backup,
            JobKind::Restore,
            JobKind::Migration,
        ]
        .into_iter()
        .find(|kind| kind.word() == word)
    }
}

impl FromSql for JobKind {
    fn from_sql(value: Value<'_>) -> Option<Self> {
        Self::from_word(value.text()?)
    }
}

/// The right to run a job. Its fence is part of every write of the job and of the names of stored objects.
#[derive(Debug, Clone)]
pub struct Claim {
    /// The job.
    pub job_id: JobId,
    /// Its instance.
    pub instance_id: InstanceId,
    /// What it does.
    pub kind: JobKind,
    /// The backup's, restore's or resize's id, of a resize to other nodes; of a restart or flush the process that it acts on, once it is about to.
    pub subject_id: Option<String>,
    /// Grows by one with each claim; 1 at the first.
    pub fence: i64,
    /// When it was accepted, by the database's clock.
    pub created_at: Moment,
    /// Ends before another host may claim the job, unless the claim is renewed.
    pub lease: Arc<Lease>,
}

/// Adds a job in the caller's transaction, with the record it belongs to.
///
/// # Errors
/// `Constraint` where the instance has an unsettled job: the caller has looked before and refuses with its kind.
pub fn insert(
    tx: &Tx<'_>,
    instance: &InstanceId,
    kind: JobKind,
    subject: Option<&str>,
) -> Result<JobId, Error> {
    let id = JobId::random();
    tx.execute(
        "INSERT INTO job (id, instance_id, host_id, kind, subject_id, state, created_at_ms) \
         SELECT ?1, instance.id, instance.host_id, ?3, ?4, 'waiting', ?5 FROM instance WHERE instance.id = ?2",
        (&id, instance, kind.word(), subject, tx.clock()?),
    )?;
    Ok(id)
}

/// The kind and subject of the job that has the instance now.
///
/// # Errors
/// The catalogue failed.
pub fn active(tx: &Tx<'_>, instance: &InstanceId) -> Result<Option<(JobKind, Option<String>)>, Error> {
    tx.one(ACTIVE, (instance,), |row| Ok((row.get(0)?, row.get(1)?)))
}

/// See [`Tx::soon`].
///
/// # Errors
/// None in truth.
pub fn active_soon(tx: &Tx<'_>, instance: &InstanceId) -> Result<(), Error> {
    tx.soon(ACTIVE, (instance,))
}

const ACTIVE: &str = "SELECT kind, subject_id FROM job WHERE instance_id = ?1 AND state <> 'done'";

/// The jobs of a host's instances that have not ended: instance, kind and subject.
///
/// # Errors
/// The catalogue failed.
pub fn unsettled_of(tx: &Tx<'_>, host: &HostId) -> Result<Vec<(InstanceId, JobKind, Option<String>)>, Error> {
    tx.all(
        "SELECT instance_id, kind, subject_id FROM job WHERE state <> 'done' AND host_id = ?1 ORDER BY created_at_ms, id",
        (host,),
        |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?)),
    )
}

/// How many jobs may run.
#[derive(Debug, Clone, Copy)]
pub struct Places {
    /// Scheduled backups of one host.
    pub scheduled: i64,
    /// Jobs of one project, on all hosts.
    pub project: i64,
    /// Whether hosts that have not been seen for long are lost: those of a file never are.
    pub may_lose_hosts: bool,
}

/// Jobs that [`claimable`] looks at: those whose instance somebody is at are passed over, and there are not so many of these.
const CLAIMABLE_MAX: i64 = 256;

/// The jobs that `host` may claim, with their instances. First those that were begun before: their instances may be in the middle of
/// something. Then those of projects of which the fewest run, and of these the oldest: a project with a thousand jobs waiting keeps
/// another one's from the next free place only. At most one an instance; none that waits while as many run as may ([`Places`]), but for
/// those that were begun before. Jobs of hosts that are lost take no place from their project. One of `host`'s own too whose lease has
/// ended: of a claim whose commit was in doubt nobody knows. What is at work here is known by its gate. Those of instances whose host was
/// forgotten are everybody's: all that is left to be done to them is to delete them.
///
/// # Errors
/// The catalogue failed.
pub fn claimable(tx: &Tx<'_>, host: &HostId, places: Places) -> Result<Vec<(JobId, InstanceId)>, Error> {
    let now = tx.clock()?;
    // `state <> 'done'` is what the index is of: without it every job that ever ran is read.
    tx.all(
        "WITH active AS (SELECT job.id, job.instance_id, job.host_id, job.state, job.owner, job.fence, job.lease_until_ms, \
         job.created_at_ms, instance.project_id, CASE WHEN backup.kind = 'auto' THEN 1 ELSE 0 END AS is_scheduled \
         FROM job JOIN instance ON instance.id = job.instance_id \
         LEFT JOIN backup ON job.kind = 'backup' AND backup.id = job.subject_id WHERE job.state <> 'done'), \
         busy AS (SELECT project_id, count(*) AS jobs FROM active WHERE state = 'running' AND NOT EXISTS \
         (SELECT 1 FROM host WHERE host.id = active.owner AND host.lost_after_ms < ?6) GROUP BY project_id), \
         ours AS (SELECT count(*) AS scheduled FROM active WHERE state = 'running' AND owner = ?1 AND is_scheduled = 1) \
         SELECT active.id, active.instance_id FROM active CROSS JOIN ours LEFT JOIN busy ON busy.project_id = active.project_id \
         WHERE ((active.state = 'running' AND active.lease_until_ms < ?2) OR (active.state = 'waiting' AND (active.fence > 0 OR \
         (coalesce(busy.jobs, 0) < ?3 AND (active.is_scheduled = 0 OR ours.scheduled < ?4))))) \
         AND (active.host_id IS NULL OR active.host_id = ?1 OR NOT EXISTS (SELECT 1 FROM host WHERE host.id = active.host_id)) \
         ORDER BY CASE WHEN active.fence > 0 THEN 0 ELSE 1 END, coalesce(busy.jobs, 0), active.created_at_ms, active.id LIMIT ?5",
        (
            host,
            now,
            places.project,
            places.scheduled,
            CLAIMABLE_MAX,
            places.lost_before(now),
        ),
        |row| Ok((row.get(0)?, row.get(1)?)),
    )
}

impl Places {
    /// Hosts that were to be seen before that moment are lost.
    fn lost_before(self, now: Moment) -> Moment {
        match self.may_lose_hosts {
            true => now,
            false => Moment(i64::MIN),
        }
    }
}

/// Takes a job for so long, if it is not renewed. `None`: another one has it by now, or as many of its project run as may. `lease` is
/// what its holder goes by; it is made before the transaction begins, for what that takes counts.
///
/// # Errors
/// The catalogue failed.
pub fn claim(
    tx: &Tx<'_>,
    job: &JobId,
    host: &HostId,
    length: Duration,
    places: Places,
    lease: &Arc<Lease>,
) -> Result<Option<Claim>, Error> {
    let now = tx.clock()?;
    let over_before = match defect::is_planted("claim-unguarded") {
        true => Moment(i64::MAX),
        false => now,
    };
    tx.one(
        "UPDATE job SET state = 'running', owner = ?2, fence = fence + 1, lease_until_ms = ?3 \
         WHERE id = ?1 AND ((state = 'running' AND lease_until_ms < ?4) OR (state = 'waiting' AND (fence > 0 OR ?5 > \
         (SELECT count(*) FROM job AS other JOIN instance ON instance.id = other.instance_id WHERE other.state <> 'done' \
         AND other.state = 'running' AND instance.project_id = \
         (SELECT mine.project_id FROM instance AS mine WHERE mine.id = job.instance_id) AND NOT EXISTS \
         (SELECT 1 FROM host WHERE host.id = other.owner AND host.lost_after_ms < ?6))))) \
         RETURNING id, instance_id, kind, subject_id, fence, created_at_ms",
        (
            job,
            host,
            now.after(length),
            over_before,
            places.project,
            places.lost_before(now),
        ),
        |row| {
            Ok(Claim {
                job_id: row.get(0)?,
                instance_id: row.get(1)?,
                kind: row.get(2)?,
                subject_id: row.get(3)?,
                fence: row.get(4)?,
                created_at: row.get(5)?,
                lease: lease.clone(),
            })
        },
    )
}

/// Takes a claim for so long from now on. `false`: another one has the job, or it was ended from outside.
///
/// # Errors
/// The catalogue failed.
pub fn renew(tx: &Tx<'_>, claim: &Claim, length: Duration) -> Result<bool, Error> {
    let changed = tx.execute(
        "UPDATE job SET lease_until_ms = ?3 WHERE id = ?1 AND fence = ?2 AND state = 'running'",
        (&claim.job_id, claim.fence, tx.clock()?.after(length)),
    )?;
    Ok(changed == 1)
}

/// Writes on which process a restart or flush is about to act: whoever takes the job up again knows by that how far it
/// came.
///
/// # Errors
/// The catalogue failed.
pub fn intend(tx: &Tx<'_>, claim: &Claim, process: &str) -> Result<(), Error> {
    tx.execute(
        "UPDATE job SET subject_id = ?2 WHERE id = ?1",
        (&claim.job_id, process),
    )?;
    Ok(())
}

/// From now on no other host can run the job, until [`let_go`].
///
/// # Errors
/// The catalogue failed.
pub fn pin(tx: &Tx<'_>, claim: &Claim, host: &HostId) -> Result<(), Error> {
    tx.execute(
        "UPDATE job SET host_id = ?3 WHERE id = ?1 AND fence = ?2",
        (&claim.job_id, claim.fence, host),
    )?;
    Ok(())
}

/// Lets any host run what [`pin`] has kept for one that is gone: it has not said anything since `seen`. Jobs of instances whose engines
/// are that host's processes stay its own.
///
/// # Errors
/// The catalogue failed.
pub fn let_go(tx: &Tx<'_>, host: &HostId, seen: Moment) -> Result<usize, Error> {
    tx.execute(
        "UPDATE job SET host_id = NULL WHERE state <> 'done' AND host_id = ?1 \
         AND EXISTS (SELECT 1 FROM instance WHERE instance.id = job.instance_id AND instance.host_id IS NULL) \
         AND NOT EXISTS (SELECT 1 FROM host WHERE host.id = ?1 AND host.seen_at_ms <> ?2)",
        (host, seen),
    )
}

/// Ends the job, in the transaction that ends its record. `false`: another claim has it, and the caller must roll
/// back and stop.
///
/// # Errors
/// The catalogue failed.
pub fn settle(tx: &Tx<'_>, claim: &Claim, now: Moment) -> Result<bool, Error> {
    if defect::is_planted("fence-unchecked") {
        let sql = "UPDATE job SET state = 'done', settled_at_ms = ?2, lease_until_ms = 0 WHERE id = ?1";
        return Ok(tx.execute(sql, (&claim.job_id, now))? == 1);
    }
    let changed = tx.execute(
        "UPDATE job SET state = 'done', settled_at_ms = ?3, lease_until_ms = 0 WHERE id = ?1 AND fence = ?2 AND state = 'running'",
        (&claim.job_id, claim.fence, now),
    )?;
    Ok(changed == 1)
}

/// Whether the claim still holds: checked inside every transaction of a running job.
///
/// # Errors
/// The catalogue failed.
pub fn holds(tx: &Tx<'_>, claim: &Claim) -> Result<bool, Error> {
    if defect::is_planted("fence-unchecked") {
        return Ok(true);
    }
    let found = tx.one(
        "SELECT 1 FROM job WHERE id = ?1 AND fence = ?2 AND state = 'running'",
        (&claim.job_id, claim.fence),
        |_| Ok(()),
    )?;
    Ok(found.is_some())
}

/// Ends the instance's unsettled job from outside: the documented restart during a backup.
///
/// # Errors
/// The catalogue failed.
pub fn revoke_active(tx: &Tx<'_>, instance: &InstanceId, now: Moment) -> Result<(), Error> {
    tx.execute(
        "UPDATE job SET state = 'done', settled_at_ms = ?2, fence = fence + 1 WHERE instance_id = ?1 AND state <> 'done'",
        (instance, now),
    )?;
    Ok(())
}

/// Ends the job of a record that nobody has begun yet, in the transaction that ends the record. `false`: there is none, or somebody
/// has begun it.
///
/// # Errors
/// The catalogue failed.
pub fn end_unbegun(tx: &Tx<'_>, instance: &InstanceId, subject: &str, now: Moment) -> Result<bool, Error> {
    let changed = tx.execute(
        "UPDATE job SET state = 'done', settled_at_ms = ?3 WHERE instance_id = ?1 AND subject_id = ?2 \
         AND state <> 'done' AND state = 'waiting' AND fence = 0",
        (instance, subject, now),
    )?;
    Ok(changed == 1)
}

/// Gives back every job of an earlier process of the host: only one process runs on a data directory, so at its start every
/// running job of the host is such a one.
///
/// # Errors
/// The catalogue failed.
pub fn release_all(tx: &Tx<'_>, host: &HostId) -> Result<usize, Error> {
    tx.execute(
        "UPDATE job SET state = 'waiting', owner = NULL, lease_until_ms = 0 \
         WHERE state <> 'done' AND state = 'running' AND owner = ?1",
        (host,),
    )
}

/// Gives one job back to wait for its next claim.
///
/// # Errors
/// The catalogue failed.
pub fn release(tx: &Tx<'_>, claim: &Claim) -> Result<(), Error> {
    tx.execute(
        "UPDATE job SET state = 'waiting', owner = NULL, lease_until_ms = 0 WHERE id = ?1 AND fence = ?2 AND state = 'running'",
        (&claim.job_id, claim.fence),
    )?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::sync::Barrier;

    use engine::uptime;

    use super::*;
    use crate::catalog::Catalog;

    const CLAIMANTS: usize = 4;
    /// No limits.
    const ALL: Places = Places {
        scheduled: i64::MAX,
        project: i64::MAX,
        may_lose_hosts: true,
    };

    fn claimed(catalog: &Catalog, job: &JobId, host: &HostId, length: Duration) -> Option<Claim> {
        let lease = Arc::new(Lease::until(uptime() + length));
        catalog
            .write(|tx| claim(tx, job, host, length, ALL, &lease))
            .unwrap()
    }

    fn with_instance(catalog: &Catalog) -> InstanceId {
        of_project(catalog, InstanceId::random().as_str())
    }

    fn of_project(catalog: &Catalog, project: &str) -> InstanceId {
        let instance = InstanceId::random();
        catalog
            .write(|tx| {
                let nothing: &[u8] = &[];
                tx.execute(
                    "INSERT INTO project (id, name, recipient, identity_sealed, created_at_ms) VALUES (?1, ?1, 'r', ?2, 0) \
                     ON CONFLICT (id) DO NOTHING",
                    (project, nothing),
                )?;
                tx.execute(
                    "INSERT INTO instance (id, project_id, name, status, engine_version, capacity_mb, spec_code, bind, port, persistence, \
                     admin_password_sealed, attributes, created_at_ms, updated_at_ms) VALUES (?1, ?3, ?1, 'running', '7.0', 128, \
                     's', 'b', 1, 'none', ?2, '{}', 0, 0)",
                    (&instance, nothing, project),
                )?;
                Ok::<_, Error>(())
            })
            .unwrap();
        instance
    }

    /// What a free place would be given to: the next job, where there is one.
    fn next(catalog: &Catalog, host: &HostId, places: Places) -> Option<Claim> {
        let found = catalog.read(|tx| claimable(tx, host, places)).unwrap();
        let (job, _) = found.first()?;
        take(catalog, job, host, places)
    }

    fn take(catalog: &Catalog, job: &JobId, host: &HostId, places: Places) -> Option<Claim> {
        let length = Duration::from_secs(600);
        let lease = Arc::new(Lease::until(uptime() + length));
        catalog
            .write(|tx| claim(tx, job, host, length, places, &lease))
            .unwrap()
    }

    /// Both databases, for `test`.
    fn of_each(test: impl Fn(&Catalog)) {
        let server = xtask::postgres::Postgres::start().unwrap();
        let url = server.make_schema("queue").unwrap();
        test(&Catalog::connect(&url, true).unwrap());
        let folder = xtask::scratch::Scratch::new("queue").unwrap();
        test(&Catalog::open(&folder.path().join("catalog.sqlite")).unwrap());
    }

    /// A job of an instance of its own.
    fn add(catalog: &Catalog, project: &str) -> JobId {
        let instance = of_project(catalog, project);
        std::thread::sleep(Duration::from_millis(2));
        catalog
            .write(|tx| insert(tx, &instance, JobKind::Restart, None))
            .unwrap()
    }

    #[test]
    fn a_project_with_many_jobs_waits_behind_one_with_fewer_and_runs_no_more_than_it_may() {
        of_each(|catalog| {
            let host = HostId::random();
            let two = Places { project: 2, ..ALL };
            let busy: Vec<JobId> = (0..300).map(|_| add(catalog, "busy")).collect();
            let quiet = add(catalog, "quiet");
            let mut claims = Vec::new();
            for expected in [&busy[0], &quiet, &busy[1]] {
                let claim = next(catalog, &host, two).unwrap();
                assert_eq!(claim.job_id, *expected);
                claims.push(claim);
            }
            // Two of it run: nobody gets a third, whatever he has seen before.
            assert!(next(catalog, &host, two).is_none());
            assert!(take(catalog, &busy[2], &host, two).is_none());
            catalog
                .write(|tx| settle(tx, &claims[2], claims[2].created_at))
                .unwrap();
            assert_eq!(next(catalog, &host, two).unwrap().job_id, busy[2]);
            assert_eq!(next(catalog, &host, ALL).unwrap().job_id, busy[3]);
        });
    }

    #[test]
    fn a_job_that_was_begun_before_is_next_whatever_else_its_project_runs() {
        of_each(|catalog| {
            let host = HostId::random();
            let one = Places { project: 1, ..ALL };
            let (first, second) = (add(catalog, "busy"), add(catalog, "busy"));
            let died = take(catalog, &first, &host, ALL).unwrap();
            let ended = take(catalog, &second, &host, ALL).unwrap();
            let quiet = add(catalog, "quiet");
            // One of them stands there as its worker left it, the other one was given back.
            assert!(catalog.write(|tx| renew(tx, &died, Duration::ZERO)).unwrap());
            catalog.write(|tx| release(tx, &ended)).unwrap();
            std::thread::sleep(Duration::from_millis(2));
            for expected in [&first, &second, &quiet] {
                assert_eq!(next(catalog, &host, one).unwrap().job_id, *expected);
            }
        });
    }

    #[test]
    fn jobs_of_a_host_that_is_lost_take_no_place_from_their_project() {
        of_each(|catalog| {
            let (lost, host) = (HostId::random(), HostId::random());
            catalog
                .write(|tx| {
                    tx.execute(
                        "INSERT INTO host (id, name, roles, engines, bind, first_port, last_port, free_memory_bytes, place, \
                         started_at_ms, seen_at_ms, lost_after_ms) VALUES (?1, ?1, 'worker', '[]', 'b', 1, 2, 0, 'p', 0, 0, 0)",
                        (&lost,),
                    )
                })
                .unwrap();
            let held = add(catalog, "project");
            take(catalog, &held, &lost, ALL).unwrap();
            let other = add(catalog, "project");
            let one = Places { project: 1, ..ALL };
            // In a file there is nobody who could be lost, and who has not been seen may well be at work.
            let of_a_file = Places {
                may_lose_hosts: false,
                ..one
            };
            assert!(next(catalog, &host, of_a_file).is_none());
            assert!(take(catalog, &other, &host, of_a_file).is_none());
            assert_eq!(next(catalog, &host, one).unwrap().job_id, other);
        });
    }

    #[test]
    fn scheduled_backups_leave_a_place_of_each_host_free() {
        of_each(|catalog| {
            let (ours, theirs) = (HostId::random(), HostId::random());
            let scheduled = || {
                let instance = of_project(catalog, "project");
                std::thread::sleep(Duration::from_millis(2));
                catalog
                    .write(|tx| {
                        let id = instance.as_str();
                        tx.execute(
                            "INSERT INTO backup (id, project_id, instance_id, ordinal, kind, format, name, status, created_at_ms, updated_at_ms) \
                             VALUES (?1, 'project', ?1, 1, 'auto', 'rdb', 'n', 'waiting', 0, 0)",
                            (id,),
                        )?;
                        insert(tx, &instance, JobKind::Backup, Some(id))
                    })
                    .unwrap()
            };
            let one = Places { scheduled: 1, ..ALL };
            let automatic: Vec<JobId> = (0..3).map(|_| scheduled()).collect();
            let asked = add(catalog, "project");
            assert_eq!(next(catalog, &ours, one).unwrap().job_id, automatic[0]);
            assert_eq!(next(catalog, &ours, one).unwrap().job_id, asked);
            assert!(next(catalog, &ours, one).is_none());
            assert_eq!(next(catalog, &theirs, one).unwrap().job_id, automatic[1]);
        });
    }

    /// Each claimant with connections of its own, as processes have.
    #[test]
    fn of_many_that_claim_a_job_at_once_one_gets_it() {
        let is_long = std::env::var("CACHEKEEP_TEST_LONG").is_ok_and(|long| long == "1");
        let races = if is_long { 1000 } else { 200 };
        let server = xtask::postgres::Postgres::start().unwrap();
        let url = server.make_schema("races").unwrap();
        let catalogs: Vec<Catalog> = (0..CLAIMANTS)
            .map(|_| Catalog::connect(&url, true).unwrap())
            .collect();
        let hosts: Vec<HostId> = (0..CLAIMANTS).map(|_| HostId::random()).collect();
        let instance = with_instance(&catalogs[0]);
        let length = Duration::from_secs(600);
        let barrier = Barrier::new(CLAIMANTS);
        let mut wins = [0; CLAIMANTS];
        let mut taken_over = 0;
        for race in 0..races {
            let job = catalogs[0]
                .write(|tx| insert(tx, &instance, JobKind::Backup, None))
                .unwrap();
            // Every other one was left behind by a host that is gone.
            if race % 2 == 1 {
                claimed(&catalogs[0], &job, &HostId::random(), Duration::ZERO).unwrap();
                std::thread::sleep(Duration::from_millis(2));
                taken_over += 1;
            }
            let claims: Vec<Option<Claim>> = std::thread::scope(|scope| {
                let racing: Vec<_> = catalogs
                    .iter()
                    .zip(&hosts)
                    .map(|(catalog, host)| {
                        let (barrier, job) = (&barrier, &job);
                        scope.spawn(move || {
                            barrier.wait();
                            claimed(catalog, job, host, length)
                        })
                    })
                    .collect();
                racing.into_iter().map(|claim| claim.join().unwrap()).collect()
            });
            assert_eq!(claims.iter().flatten().count(), 1, "race {race}");
            for (number, claim) in claims.into_iter().enumerate() {
                if let Some(claim) = claim {
                    wins[number] += 1;
                    assert_eq!(claim.fence, 1 + race % 2, "race {race}");
                    let settled = catalogs[number].write(|tx| settle(tx, &claim, claim.created_at));
                    assert!(settled.unwrap());
                }
            }
        }
        println!(
            "{races} claim races of {CLAIMANTS}, {taken_over} of them for jobs left behind: 1 winner each, {wins:?}"
        );
    }

    #[test]
    fn a_claim_that_is_renewed_is_nobody_elses_and_one_that_is_not_gets_a_higher_fence() {
        let server = xtask::postgres::Postgres::start().unwrap();
        let url = server.make_schema("leases").unwrap();
        let postgres = Catalog::connect(&url, true).unwrap();
        let folder = xtask::scratch::Scratch::new("leases").unwrap();
        let sqlite = Catalog::open(&folder.path().join("catalog.sqlite")).unwrap();
        for catalog in [&postgres, &sqlite] {
            let (ours, theirs) = (HostId::random(), HostId::random());
            let instance = with_instance(catalog);
            let job = catalog
                .write(|tx| insert(tx, &instance, JobKind::Backup, None))
                .unwrap();
            let first = claimed(catalog, &job, &ours, Duration::ZERO).unwrap();
            let long = Duration::from_secs(600);
            assert!(catalog.write(|tx| renew(tx, &first, long)).unwrap());
            assert!(claimed(catalog, &job, &theirs, long).is_none());
            assert!(catalog.write(|tx| renew(tx, &first, Duration::ZERO)).unwrap());
            std::thread::sleep(Duration::from_millis(2));
            let found = catalog.read(|tx| claimable(tx, &theirs, ALL)).unwrap();
            assert_eq!(found, [(job.clone(), instance.clone())]);
            let second = claimed(catalog, &job, &theirs, long).unwrap();
            assert_eq!((first.fence, second.fence), (1, 2));
            // What the first one still wants to say is not heard.
            assert!(!catalog.write(|tx| renew(tx, &first, long)).unwrap());
            assert!(!catalog.read(|tx| holds(tx, &first)).unwrap());
            assert!(!catalog.write(|tx| settle(tx, &first, first.created_at)).unwrap());
            catalog.write(|tx| release(tx, &first)).unwrap();
            assert!(catalog.read(|tx| holds(tx, &second)).unwrap());
            assert_eq!(catalog.write(|tx| release_all(tx, &ours)).unwrap(), 0);
            assert_eq!(catalog.write(|tx| release_all(tx, &theirs)).unwrap(), 1);
            assert_eq!(claimed(catalog, &job, &ours, long).unwrap().fence, 3);
        }
    }
}
