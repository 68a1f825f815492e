//! Restores. The story of one, in order:
//!
//! 1. `api/restores.rs` `create` decodes the call.
//! 2. `restore/command.rs` `check` refuses, or `submit` writes record and job in one transaction.
//! 3. `jobs/worker.rs` claims the job and runs it.
//! 4. `restore/job.rs` `run`: validate and place beside, load, verify, switch, settle.
//! 5. `engine` does the work: `sideload`, `process`, `verify`, `switch`.
//! 6. `restore/record.rs` holds the states and moves them by compare-and-set.
//! 7. `api/restores.rs` `list` turns records into DCS words.
//!
//! Until the switch nothing touches the serving generation. The switch is preceded by a written intent
//! (`target_state = switching`): a crash after it is finished forward, a crash before it begins anew.

pub mod account;
pub mod command;
pub mod given_up;
pub mod job;
pub mod migration;
pub mod options;
pub mod plan;
pub mod progress_record;
pub mod record;
pub mod replay_record;
pub mod told_record;
