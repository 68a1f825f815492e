//! Reads and validates Redis RDB bytes.
