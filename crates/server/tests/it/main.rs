//! The API from outside: each test starts the built service and talks to it as clients do.

#![allow(missing_docs, clippy::unwrap_used)]

mod alone;
mod busy;
mod by_hand;
mod cli;
mod cli_help;
mod cluster;
mod cluster_restore;
mod corpus;
mod downloads;
mod errors;
mod export;
mod http;
mod idempotency;
mod identity;
mod import;
mod inside;
mod instances;
mod isolation;
mod openapi;
mod paging;
mod polling;
mod pressure;
mod readme;
mod rebuild;
mod rebuild_losses;
mod records;
mod rotation;
mod service;
mod signatures;
mod signer;
mod storage;
mod tidy;
mod verify;
