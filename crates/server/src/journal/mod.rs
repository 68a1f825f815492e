//! The journal: a mirror of the catalogue's rows in each project's store, from which a lost catalogue is made anew.
//!
//! ```text
//! journal/<project>/key-<16 hex>.json     the project's age identity, sealed by the master key
//! journal/<project>/<12 digits>.json      an entry: rows as they were, in zstd in age, signed
//! escrow/<project>/<16 hex>-<16 hex>.age  the age identity, sealed to the operator's own recipient where there is one
//! ```
//!
//! Triggers note every change of a row in the outbox, in the change's own transaction; [`mirror`] writes what is noted
//! there into the store and then takes the notes away. So the mirror may lag, and never lies: an entry holds rows that
//! the catalogue held. A later entry's row takes the place of an earlier one's. Each entry names the one before it, so
//! that one which is lost is missed.
//!
//! Not mirrored: users, tokens, access keys, jobs, and how far something is that has not ended. [`copies`] of the whole
//! catalogue, which lag by a day, have those too.

pub mod copies;
pub mod entry;
pub mod escrow;
pub mod guard;
pub mod mirror;
pub mod rebuild;
pub mod record;
