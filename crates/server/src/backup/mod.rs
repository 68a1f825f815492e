//! Backups: the command that accepts one, the record that tells the truth about it, the job that makes it.

pub mod cancel_record;
pub mod command;
pub mod copy_record;
pub mod expiry;
pub mod import;
pub mod job;
pub mod page_record;
pub mod place;
pub mod place_record;
pub mod proof;
pub mod proof_record;
pub mod quota;
pub mod quota_record;
pub mod record;
pub mod run_record;
pub mod verification_record;
