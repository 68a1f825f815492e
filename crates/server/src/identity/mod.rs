//! Who may do what: projects, accounts with passwords, access keys, tokens.

pub mod record;
