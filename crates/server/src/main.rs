//! cachekeep: a self-hosted Distributed Cache Service. Read ARCHITECTURE.md first.

mod accept;
mod api;
mod app;
mod audit;
mod backup;
mod catalog;
mod cli;
mod clock;
mod config;
mod connections;
mod egress;
mod hook;
mod hosts;
mod idempotency;
mod identity;
mod ids;
mod instance;
mod jobs;
mod journal;
mod limits;
mod memory;
mod metrics;
mod rate;
mod reconcile;
mod refusal;
mod resize;
mod restore;
mod schedule;
mod secrets;
mod serve;
mod stall;
mod storage;
mod tls;

fn main() -> std::process::ExitCode {
    memory::give_large_buffers_back();
    cli::main()
}
