//! The wire: all that is DCS-shaped, and nothing else.

pub mod attachments;
pub mod auth;
pub mod backups;
pub mod certificates;
pub mod download;
pub mod error;
pub mod events;
pub mod failure;
pub mod identity;
pub mod imports;
pub mod instance_shown;
pub mod instances;
pub mod metrics;
pub mod migrations;
pub mod openapi;
pub mod page;
pub mod plans;
pub mod proofs;
pub mod request;
pub mod restores;
pub mod router;
pub mod routes;
pub mod schedules;
pub mod system;
pub mod topology;
