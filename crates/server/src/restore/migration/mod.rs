//! Import tasks: DCS's way to bring a backup into another instance (`CreateMigrationTask`, `backupfile_import`). They are merges by the
//! job of a restore ([`super::job`]), with records of their own: the list of restores holds restores alone (ADR 64).

pub mod command;
pub mod record;
