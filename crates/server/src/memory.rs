//! How the C library gives memory back.

use std::os::unix::process::CommandExt as _;
use std::process::Command;

/// glibc reads it once, before `main`: mallopt(3), M_MMAP_THRESHOLD.
const VARIABLE: &str = "MALLOC_MMAP_THRESHOLD_";
/// Bytes. The buffers that a backup or restore is made of, segments above all, are larger; nothing that comes and goes with
/// a request is.
const THRESHOLD: &str = "1048576";

/// Has every buffer above [`THRESHOLD`] be a mapping of its own, which the kernel has back when it is freed. Left to itself
/// glibc keeps such buffers from the second time on, in an arena for each thread: a restore whose threads come and go was
/// seen with 68 MiB instead of 33 (ADR 48). The program starts itself again, as the same process; where it cannot, all goes on
/// with more memory.
pub fn give_large_buffers_back() {
    if std::env::var_os(VARIABLE).is_some() {
        return;
    }
    let mut arguments = std::env::args_os();
    let (Some(name), Ok(program)) = (arguments.next(), std::env::current_exe()) else {
        return;
    };
    // Returns only where it failed. By the file's own name and not /proc/self/exe: that would name the process `exe`.
    let _failed = Command::new(program)
        .arg0(name)
        .args(arguments)
        .env(VARIABLE, THRESHOLD)
        .exec();
}
