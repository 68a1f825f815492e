//! cachekeep.
fn main() {}
