//! Developer commands: set up a machine, load an engine with data, test, measure.
//!
//! `cargo xtask help` lists them. [`fill`] and [`resp`] are also used by the tests of the other crates. Hardly
//! anything but the standard library is used: `cargo xtask` must be there after a few seconds on a fresh machine.

pub mod args;
pub mod before;
pub mod bench;
pub mod cut_link;
pub mod fault_proxy;
pub mod faulty_link;
pub mod fill;
pub mod foreign;
pub mod fuzz;
pub mod load;
pub mod object_server;
pub mod plain_cluster;
pub mod plain_engine;
pub mod postgres;
pub mod resp;
pub mod scratch;
pub mod service;
pub mod setup;
pub mod small_disk;
pub mod stop;
pub mod testing;
pub mod throttle;
pub mod torture;

pub use stop::Stop;
