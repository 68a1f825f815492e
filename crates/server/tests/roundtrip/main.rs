//! The product test: what is backed up comes back exactly, and what it replaced comes back too.
//!
//! Everything goes through the program that is shipped: `cachekeep serve` in a folder of its own, and the verbs of
//! the command line. The judge is never our own code but redis itself: the engine's `DEBUG DIGEST`, its answers
//! about what that digest leaves out ([`portrait`]), `redis-check-rdb`, and a plain redis-server beside.
//!
//! | Variable | Effect |
//! |---|---|
//! | `CACHEKEEP_TEST_LONG=1` | 100 seeds instead of 8 |
//! | `CACHEKEEP_TEST_SEED=N` | of the seeds, this one only; a failure names it |

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod expiry;
mod portrait;
mod seeds;
mod service;
mod shapes;
