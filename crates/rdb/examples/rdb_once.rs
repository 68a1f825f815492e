//! Reads a file once and does one thing with it: what `cargo xtask bench parse` measures from outside.
//!
//! `rdb_once validate|compare|threads|threads-compare|crc64|touch FILE`: validate with census, digest and checksum; the same with every key
//! compared with every other; both by several threads; the checksum alone; one byte of each cache line alone.

use std::hint::black_box;
use std::io::Read;

/// A spill in memory: what the search for duplicate keys costs without a disk.
struct Kept(Vec<u8>);

impl rdb::Spill for Kept {
    fn append(&mut self, bytes: &[u8]) -> std::io::Result<()> {
        self.0.extend_from_slice(bytes);
        Ok(())
    }

    fn read_at(&mut self, offset: u64, buffer: &mut [u8]) -> std::io::Result<()> {
        let start = usize::try_from(offset).map_err(std::io::Error::other)?;
        buffer.copy_from_slice(&self.0[start..start + buffer.len()]);
        Ok(())
    }

    fn clear(&mut self) -> std::io::Result<()> {
        self.0.clear();
        Ok(())
    }
}

fn each_chunk(path: &str, mut take: impl FnMut(&[u8]) -> Result<(), rdb::Error>) -> std::io::Result<()> {
    let mut file = std::fs::File::open(path)?;
    let mut buffer = vec![0; rdb::FEED_BYTES];
    loop {
        match file.read(&mut buffer)? {
            0 => return Ok(()),
            count => take(&buffer[..count]).map_err(std::io::Error::other)?,
        }
    }
}

fn validated(path: &str, mut validator: rdb::Validator) -> std::io::Result<()> {
    each_chunk(path, |bytes| validator.feed(bytes, &mut ()))?;
    let report = validator.finish().map_err(std::io::Error::other)?;
    println!("{} keys", report.census.totals().keys);
    Ok(())
}

fn kept() -> Box<dyn rdb::Spill + Send> {
    Box::new(Kept(Vec::new()))
}

/// As `validated`, by one thread that splits and one for each processor that reads.
fn by_threads(path: &str, keys: Option<Box<dyn rdb::Spill + Send>>) -> std::io::Result<()> {
    let readers = std::thread::available_parallelism()?.get();
    let mut file = std::fs::File::open(path)?;
    let spills = keys.map(|keys| rdb::parallel::Spills {
        keys,
        members: || Ok(kept()),
    });
    let seen = rdb::parallel::validate(vec![(); readers + 1], spills, |buffer| file.read(buffer))?;
    let (report, _) = seen.ok_or_else(|| std::io::Error::other("not valid"))?;
    println!("{} keys", report.census.totals().keys);
    Ok(())
}

fn main() -> std::io::Result<()> {
    let words: Vec<String> = std::env::args().skip(1).collect();
    match words.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        ["validate", path] => validated(path, rdb::Validator::new()),
        ["compare", path] => validated(
            path,
            rdb::Validator::new().with_spills(Box::new(Kept(Vec::new())), Box::new(Kept(Vec::new()))),
        ),
        ["threads", path] => by_threads(path, None),
        ["threads-compare", path] => by_threads(path, Some(kept())),
        ["crc64", path] => each_chunk(path, |bytes| {
            black_box(rdb::crc64(bytes));
            Ok(())
        }),
        ["touch", path] => each_chunk(path, |bytes| {
            black_box(bytes.iter().step_by(64).fold(0u8, |seen, byte| seen ^ byte));
            Ok(())
        }),
        _ => Err(std::io::Error::other(
            "rdb_once validate|compare|threads|threads-compare|crc64|touch FILE",
        )),
    }
}
