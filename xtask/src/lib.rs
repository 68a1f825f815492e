//! Developer commands: set up a machine, load an engine with data, test, measure.
//!
//! `cargo xtask help` lists them. [`fill`] and [`resp`] are also used by the tests of the other crates. Only the
//! standard library is used, so that `cargo xtask` is there after a few seconds on a fresh machine.

pub mod args;
pub mod fill;
pub mod plain_engine;
pub mod resp;
pub mod scratch;
pub mod setup;
pub mod stop;

pub use stop::Stop;
