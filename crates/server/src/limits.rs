//! Every maximum of the control plane, with its unit and its reason.

use std::time::Duration;

/// Longest remark, in characters (DCS.4098 beyond).
pub const REMARK_CHARS_MAX: usize = 128;
/// Longest description of an instance, in characters (DCS.4011 beyond).
pub const DESCRIPTION_CHARS_MAX: usize = 1024;
/// Rows of one list page: contract §4.7.
pub const PAGE_ROWS_MAX: u64 = 1000;
/// Rows of one list page where the caller names no limit.
pub const PAGE_ROWS_DEFAULT: u64 = 10;
/// Rows of a v1.0 instance list where the caller names no limit: contract §9.1.
pub const INSTANCE_ROWS_DEFAULT_V1: u64 = 1000;
/// Bytes of a request body: no call of the API needs more than a few KiB.
pub const BODY_BYTES_MAX: usize = 1024 * 1024;
/// Bytes of a request body where no credential is asked for: a log-in needs a few hundred. Times the connections that
/// is all the memory that a stranger can fill.
pub const OPEN_BODY_BYTES_MAX: usize = 16 * 1024;
/// Bytes of all bodies that are being read under a signature that is not proven before the body is there.
pub const UNPROVEN_BODIES_BYTES_MAX: usize = 64 * 1024 * 1024;
/// How long a body waits for its share of that, and how long an unwanted one is taken off the connection.
pub const BODY_WAIT_MAX: Duration = Duration::from_secs(5);
/// Bytes of a request's head with its headers: tokens and signatures have a few hundred.
pub const HEAD_BYTES_MAX: usize = 32 * 1024;
/// A peer that takes nothing of an answer for this long loses its connection.
pub const WRITE_STALL_MAX: Duration = Duration::from_secs(60);
/// Downloads at once: each holds a thread, a segment of 8 MiB as stored and as decoded, and 2 MiB for its client.
pub const DOWNLOADS_AT_ONCE: usize = 8;
/// Callers that watch a restore at once: each holds a connection and reads a row twice a second.
pub const WATCHERS_AT_ONCE: usize = 64;
/// Between two events of a restore that is watched: as often as its progress is written.
pub const EVENT_EVERY: Duration = PROGRESS_EVERY;
/// How long a download waits for its turn before it is told to come again.
pub const DOWNLOAD_WAIT_MAX: Duration = Duration::from_secs(5);
/// How long a log-in waits for its turn before it is told to come again: some hundred are before it then.
pub const LOGIN_WAIT_MAX: Duration = Duration::from_secs(2);
/// A request must be answered, its body read included, within this time.
pub const REQUEST_TIME_MAX: Duration = Duration::from_secs(30);
/// A client gets this long to send its request head: a slow one must not hold a connection.
pub const HEADER_TIME_MAX: Duration = Duration::from_secs(10);
/// Open connections at once; for one more another one makes room, if it asks for nothing. Each has some 25 KiB; with heads of
/// [`HEAD_BYTES_MAX`] they have 256 MiB together.
pub const CONNECTIONS_MAX: usize = 8192;
/// The same of those that ask for metrics.
pub const METRICS_CONNECTIONS_MAX: usize = 64;
/// Descriptors that are kept for all that is not a connection: files of jobs, engines, the catalogue.
pub const DESCRIPTORS_KEPT: u64 = 1024;
/// A connection that never had a whole request makes room after this time: the first packet of a client that wants something has its
/// head.
pub const FRESH_CONNECTION_MIN: Duration = Duration::from_millis(50);
/// One that had makes room where it has been without a request for so long: a client that goes on asking is not hit.
pub const UNUSED_CONNECTION_MIN: Duration = Duration::from_secs(1);
/// Connections that are told at once that there is no place for them: what comes beside is closed without a word.
pub const FAREWELLS_AT_ONCE: usize = 64;
/// How long such a one may take to read that.
pub const FAREWELL_TIME_MAX: Duration = Duration::from_millis(200);
/// Calls that wait for the disk, at once: each holds a thread. Writes come one after the other anyway; more of them would only take
/// threads, of which there must be some left.
pub const WAITING_CALLS_AT_ONCE: usize = 64;
/// Of these so many are one project's: its slow calls are not to keep all others waiting.
pub const WAITING_CALLS_OF_A_PROJECT: usize = 32;
/// How long a call waits for its turn before it is told to come again: some hundred writes are before it then.
pub const CALL_WAIT_MAX: Duration = Duration::from_secs(2);
/// Calls that only read the catalogue at once: fewer than this process has connections to PostgreSQL, so that jobs and the service's
/// own health find one; more than there are processors.
pub const READS_AT_ONCE: usize = 12;
/// How long a read waits for its turn before it is told to come again: health is told within a second however many wait.
pub const READ_WAIT_MAX: Duration = Duration::from_secs(1);
/// Instances named in one batch call (DCS.4100 beyond).
pub const BATCH_INSTANCES_MAX: usize = 50;
/// An Idempotency-Key counts this long: a client that still tries after a day has lost more than an answer, and the
/// table stays as small as a day's accepted calls.
pub const IDEMPOTENCY_SECONDS: i64 = 24 * 3600;
/// Longest Idempotency-Key, in characters.
pub const IDEMPOTENCY_KEY_CHARS_MAX: usize = 255;
/// Imports from URLs that callers of the API may have at work at once: each has the memory of a backup, and may take hours.
pub const IMPORTS_AT_ONCE: usize = 2;
/// Servers that are looked at at once because somebody wants them attached: each may keep a thread for all of
/// [`DISCOVERY_TIME_MAX`], and one for each of its addresses meanwhile.
pub const ATTACHMENTS_AT_ONCE: usize = 4;
/// Plans of restores key by key that count at once: each reads a whole backup, and may ask for every key of its target.
pub const PLANS_AT_ONCE: usize = 4;
/// Addresses that one attachment names: three Sentinels or the nodes of a small cluster, and some more.
pub const ATTACHED_SEEDS_MAX: usize = 16;
/// What attached servers may say that their data takes: a terabyte. What they say bounds what is read of them.
pub const ATTACHED_BYTES_MAX: u64 = 1 << 40;
/// Attached servers must have told what they are within this time: less than [`REQUEST_TIME_MAX`].
pub const DISCOVERY_TIME_MAX: Duration = Duration::from_secs(20);
/// What a capture reads must have been chosen within this time, of however many shards.
pub const ATTACHED_CHOICE_MAX: Duration = Duration::from_secs(300);
/// A server that is looked at must connect, and answer each question, within this time.
pub const ATTACHED_ANSWER: Duration = Duration::from_secs(3);
/// As [`ENGINE_IDLE`], of the connection to a server of somebody else's, before its snapshot begins.
pub const ATTACHED_SILENCE: Duration = Duration::from_secs(10);
/// Bytes of one whole reply of a server of somebody else's that is written to: a list of keys, or of its clients.
pub const ATTACHED_REPLY_BYTES_MAX: usize = 8 << 20;
/// So long what an earlier attempt had under way is waited for where its connections may not be ended: more than what a
/// connection that nobody holds any more is given by the systems at both its ends to bring over what was sent, on a network that works.
pub const ATTACHED_DRAIN: Duration = Duration::from_secs(10);
/// How long it is tried to put servers back to a safety point of so many bytes, whose keys need so many seconds for the pace they
/// are held to. A test that lets servers stay away sets
/// `CACHEKEEP_BACK_SECONDS`, which stands for all of it.
pub fn attached_back_time(bytes: u64, at_pace: u64) -> Duration {
    let told = std::env::var("CACHEKEEP_BACK_SECONDS").ok();
    match told.and_then(|text| text.parse().ok()) {
        Some(seconds) => Duration::from_secs(seconds),
        None => Duration::from_secs(10 * 60 + at_pace) + time_for(bytes),
    }
}
/// A safety point is kept for so long: seven days.
pub const SAFETY_KEPT_SECONDS: i64 = 7 * 24 * 3600;
/// Between two tries of that.
pub const ATTACHED_BACK_PAUSE: Duration = Duration::from_secs(2);
/// As [`JOB_ATTEMPTS_MAX`], of a backup that is applied to attached servers: each attempt goes on where the one before was.
pub const ATTACHED_ATTEMPTS_MAX: i64 = 1000;
/// How often the reconciler looks at attached servers.
pub const ATTACHED_LOOK_EVERY: Duration = Duration::from_secs(30);
/// A snapshot has at most twice the bytes that the data takes in memory, and this: more is no snapshot of that data.
pub const ATTACHED_SNAPSHOT_SLACK: u64 = 64 << 20;
/// A capture is given up where its source answers `PING` later than this, several times in a row.
pub const ATTACHED_LATENCY_MAX: Duration = Duration::from_secs(1);
/// A capture is given up where its buffer in the source, or those of all replicas, grow by more than this: half of what engines allow one
/// of them by default before they end it.
pub const ATTACHED_BUFFERS_MAX: u64 = 128 << 20;
/// Verifies that the service works on at once; the others wait. Each may start an engine with the memory of a whole backup.
pub const VERIFIES_AT_ONCE: usize = 1;
/// Verifies that are remembered of each backup: what the last one found is on the backup's record for ever.
pub const VERIFICATIONS_KEPT: i64 = 100;
/// Gigabytes that are taken of a URL where the operator names no limit, and at most where a caller of the API names the URL: more than most dumps have, less than most disks.
pub const IMPORT_URL_GB_DEFAULT: u64 = 64;
/// Life of a token: contract §2.1.
pub const TOKEN_SECONDS: i64 = 24 * 3600;
/// How far the date of a signed request may be off: contract §2.2.
pub const SIGNATURE_SKEW_SECONDS: i64 = 15 * 60;
/// Download links live this long: contract §4.4.
pub const LINK_SECONDS: std::ops::RangeInclusive<i64> = 300..=86_400;
/// Password hashes computed at once: each needs 19 MiB and some 20 ms of a core.
pub const PASSWORD_HASHES_AT_ONCE: usize = 2;
/// Jobs that run at once in one process where the operator names no number: each owns a handful of threads and at most 64 MiB.
pub const JOBS_AT_ONCE: usize = 4;
/// What the operator may name: with more the PostgreSQL connections of a node would be what they wait for.
pub const JOBS_AT_ONCE_MAX: usize = 64;
/// A claim that is not renewed holds this long: a job whose worker has died waits no longer than that for another one, and a
/// catalogue that is started anew in between costs no job its work.
pub const LEASE: Duration = Duration::from_secs(30);
/// How long the holder of a lease of this length goes by it: the rest is for what he has begun, and for clocks that go a little
/// differently.
pub fn lease_holds(length: Duration) -> Duration {
    length * 2 / 3
}
/// What the data of an instance takes in memory is told to other hosts where it has changed by this much.
pub const MEMORY_TOLD_BYTES: u64 = 1 << 20;
/// A job that is told to stop does so within this time, or its process ends under it.
pub const STOP_TIME: Duration = Duration::from_secs(5);
/// A job interrupted by a crash is begun anew at most this many times before it is settled as failed: a job that
/// brings the process down must not do so for ever.
pub const JOB_ATTEMPTS_MAX: i64 = 5;
/// A backup or restore must end within this time plus [`time_for`] its data, counted from when it was accepted: an
/// instance's data must not be replaced by what somebody asked for long ago.
pub const OPERATION_TIME_BASE: Duration = Duration::from_secs(30 * 60);
/// How long a job with so many bytes to move may take from when it was accepted. A test that lets one run out of time
/// sets `CACHEKEEP_OPERATION_SECONDS`, which stands for all of it; no operator needs that: it ends what would succeed.
pub fn operation_time(bytes: u64) -> Duration {
    let told = std::env::var("CACHEKEEP_OPERATION_SECONDS").ok();
    match told.and_then(|text| text.parse().ok()) {
        Some(seconds) => Duration::from_secs(seconds),
        None => OPERATION_TIME_BASE + time_for(bytes),
    }
}
/// How long moving so many bytes may take: a second for each 4 MiB, the slowest disk that is worth waiting for.
pub fn time_for(bytes: u64) -> Duration {
    Duration::from_secs(bytes / (4 * 1024 * 1024))
}
/// Silence of an engine during an operation.
pub const ENGINE_IDLE: Duration = Duration::from_secs(60);
/// A replica that has not all that its primary had is waited for so long before the primary is captured itself.
pub const CATCH_UP: Duration = Duration::from_secs(5);
/// Between two looks at whether a replica has succeeded a primary that waits for that.
pub const SUCCESSOR_POLL: Duration = Duration::from_millis(200);
/// Sentinels that promote a replica are waited for so long: more than what they take where nothing is in their way. After
/// that the primary that is gone is started as what it was.
pub const SUCCESSION: Duration = Duration::from_secs(15);
/// Replicas of an instance that comes up are waited for so long before Sentinels are told of them: copies of little data
/// take less, and of much data Sentinels learn soon after.
pub const FIRST_SYNC: Duration = Duration::from_secs(3);
/// An engine must end within this time when it is told to; where it saves first, plus [`time_for`] its data.
pub const ENGINE_STOP: Duration = Duration::from_secs(30);
/// How often a failed restore tries to let the old data serve again before it says that it could not; the
/// reconciler goes on then.
pub const ROLL_BACK_TRIES: u32 = 3;
/// Between two of these tries.
pub const ROLL_BACK_PAUSE: Duration = Duration::from_millis(500);
/// Local spool of one capture: more than this behind means that the store is too slow, and the capture is given
/// up before the source suffers.
pub const SPOOL_BYTES_MAX: u64 = 64 * 1024 * 1024 * 1024;
/// Memory that must stay free on the host beside a new generation, for page tables, buffers and ourselves.
pub const MEMORY_RESERVE_BYTES: u64 = 128 * 1024 * 1024;
/// Retired generations kept for undo, per instance: each holds its whole data in memory.
pub const RETIRED_GENERATIONS_MAX: usize = 1;
/// Instances that the reconciler mends side by side. Most take a millisecond; one that loads or hangs takes long, and
/// some of those must not keep the others waiting.
pub const MENDED_AT_ONCE: usize = 16;
/// Attached instances that are looked at side by side, beside those: strangers decide how long each takes.
pub const ATTACHED_LOOKS_AT_ONCE: usize = 16;
/// The reconciler waits so long for a place among [`ATTACHED_LOOKS_AT_ONCE`]: what is not due takes a millisecond.
pub const ATTACHED_PLACE_WAIT: Duration = Duration::from_millis(200);
/// An engine that lives and says nothing for this long is busy with something of its clients', and left alone.
pub const GLANCE: Duration = Duration::from_secs(2);
/// How often the reconciler looks at every instance.
pub const RECONCILE_EVERY: Duration = Duration::from_secs(5);
/// How often the local folder is swept for objects of no backup. Nobody waits for it: what is left there takes room
/// only.
pub const SWEEP_EVERY: Duration = Duration::from_secs(10 * 60);
/// A store that could not remove what nobody needs is asked again after this time: it may be away for long.
pub const STORE_TRIED_AGAIN_AFTER: Duration = Duration::from_secs(10);
/// Useless places that the sweeper takes up at once; the rest comes in the next round.
pub const PLACES_AT_ONCE: u64 = 1000;
/// A wall clock that is further off than this from one reading to the next was set: a time service that slews it moves it by
/// half a millisecond a second.
pub const CLOCK_LEEWAY_MS: u64 = 60_000;
/// So long schedules and retention do not follow a wall clock that was set: who sets it wrongly has a day to notice, and a
/// restart makes them follow it at once.
pub const LEAP_BELIEVED_AFTER: Duration = Duration::from_secs(24 * 3600);
/// Tries of a scheduled run: contract §8.2.
pub const TRIES_OF_A_RUN: i64 = 3;
/// Runs that were missed further back than this are not looked for.
pub const MISSED_RUNS_LOOKED_BACK_MS: i64 = 31 * 24 * 3_600_000;
/// Nor are drills that were missed further back than this, or than their window where that is longer.
pub const MISSED_DRILLS_LOOKED_BACK_MS: i64 = 24 * 3_600_000;
/// A drill is overdue once so long has passed since it was due without one that held, in milliseconds: its tries are begun within two
/// hours, and the last one needs time for its data.
pub const DRILL_GRACE_MS: i64 = 4 * 3_600_000;
/// How often it is looked for drills that have become overdue, of which hooks are told: each schedule costs a question.
pub const OVERDUE_LOOKED_FOR_EVERY_MS: u64 = 60_000;
/// Of the runs of a schedule that were missed so many get a record, the newest ones.
pub const MISSED_RUNS_TOLD: usize = 7;
/// Scheduled backups that have not ended at any time, of the instances of one host, and of attached instances: the instances of others are free
/// until their turn comes, though a thousand are due at the same hour.
pub const SCHEDULED_AT_ONCE: usize = 3;
/// Scheduled backups that a host runs at once which has so many places: people find one.
pub fn scheduled_of(jobs_at_once: usize) -> usize {
    jobs_at_once.saturating_sub(1).max(1)
}
/// Shortest time that an objective may be: one that is looked at every few seconds and has a tenth of it as lead.
pub const RPO_MS_MIN: i64 = 60_000;
/// Longest one.
pub const RPO_MS_MAX: i64 = 366 * 24 * 3_600_000;
/// How long backups for an objective stay, where nobody says it.
pub const RPO_KEEP_MS_DEFAULT: i64 = 7 * 24 * 3_600_000;
/// And at most.
pub const RPO_KEEP_MS_MAX: i64 = 3660 * 24 * 3_600_000;
/// Schedules of an instance: more are a mistake, and each is looked at every few seconds.
pub const SCHEDULES_MAX: usize = 32;
/// Longest time that a run may begin late, where the service was away.
pub const WINDOW_MS_MAX: i64 = 31 * 24 * 3_600_000;
/// The same where a schedule names none: a nightly backup is made in the morning rather than not at all.
pub const WINDOW_MS_DEFAULT: i64 = 24 * 3_600_000;
/// Most that a rule of retention may keep.
pub const KEEP_MAX: i64 = 10_000;
/// How often a running job writes its progress to the catalogue.
pub const PROGRESS_EVERY: Duration = Duration::from_millis(500);
/// Rows of one entry of the journal: a restore record has 1 KiB, and both are held in memory.
pub const JOURNAL_ROWS_MAX: u64 = 1000;
/// Bytes of rows after which an entry of the journal takes no more.
pub const JOURNAL_ENTRY_BYTES: usize = 4 * 1024 * 1024;
/// How old the newest copy of the catalogue becomes.
pub const CATALOG_COPY_EVERY: Duration = Duration::from_secs(24 * 3600);
/// How often it is looked how old that is: also how soon a copy that failed is tried again.
pub const CATALOG_COPY_LOOK_EVERY: Duration = Duration::from_secs(3600);
/// Copies of the catalogue that are kept, the newest ones: a week.
pub const CATALOG_COPIES_KEPT: usize = 7;
/// Tries of a delivery to a hook: with the pauses between them that is a little more than three days, a weekend.
pub const DELIVERY_TRIES: i64 = 80;
/// Pause after the first try that failed; each is three times the one before it.
pub const DELIVERY_PAUSE_MS: i64 = 2_000;
/// Longest pause between two tries.
pub const DELIVERY_PAUSE_MS_MAX: i64 = 3_600_000;
/// So long it is kept what hooks were told.
pub const DELIVERIES_KEPT_MS: i64 = 30 * 24 * 3_600_000;
/// A start waits so long for the stores to say whether they know more than the catalogue.
pub const GUARD_TIME_MAX: Duration = Duration::from_secs(30);
/// So long a hook is told in one go, before it is looked which others there are.
pub const HOOK_TURN: Duration = Duration::from_secs(2);
