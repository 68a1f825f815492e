//! The API from outside: each test starts the built service and talks to it as clients do.

#![allow(missing_docs, clippy::unwrap_used)]

mod busy;
mod cli;
mod downloads;
mod errors;
mod http;
mod identity;
mod isolation;
mod openapi;
mod paging;
mod polling;
mod records;
mod service;
mod signatures;
mod signer;
mod storage;
mod tidy;
