//! Tests of the crate through its public interface: hand-built bytes, damaged bytes, very long values, and
//! dumps of a real engine.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod build;
mod corpus;
mod coverage;

mod damage;
mod duplicates;
mod encodings;
mod engine;
mod entries;
mod fixtures;
mod matrix;

mod memory;
mod obstacles;
mod parallel;
mod refusals;

mod values;
mod versions;
mod writer;
