//! Measures the validator on an RDB file, or on made-up data without an argument, beside the checksum alone.
//!
//! `cargo run --release -p rdb --example rdb_speed [FILE]`

use std::hint::black_box;
use std::time::{Duration, Instant};

const ROUNDS: u32 = 5;
const CHUNKS: [usize; 3] = [16 * 1024, 256 * 1024, 16 * 1024 * 1024];

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

fn best(mut run: impl FnMut()) -> Duration {
    let round = || {
        let start = Instant::now();
        run();
        start.elapsed()
    };
    std::iter::repeat_with(round)
        .take(ROUNDS as usize)
        .min()
        .unwrap_or_default()
}

fn push_length(out: &mut Vec<u8>, length: usize) {
    if length < 64 {
        out.push(length as u8);
    } else if length < 16_384 {
        out.extend([0x40 | (length >> 8) as u8, length as u8]);
    } else {
        out.push(0x80);
        out.extend((length as u32).to_be_bytes());
    }
}

fn push_string(out: &mut Vec<u8>, text: &[u8]) {
    push_length(out, text.len());
    out.extend_from_slice(text);
}

fn finish(mut out: Vec<u8>) -> Vec<u8> {
    out.push(255);
    let crc = rdb::crc64(&out);
    out.extend(crc.to_le_bytes());
    out
}

/// A million keys of 10 bytes with values of 8 bytes.
fn tiny_keys() -> Vec<u8> {
    let mut out = b"REDIS0010".to_vec();
    for i in 0..1_000_000u32 {
        out.push(0);
        push_string(&mut out, format!("key:{i:06}").as_bytes());
        push_string(&mut out, format!("value{i:06}").as_bytes());
    }
    finish(out)
}

/// Strings, hashes and sets of medium size, as applications keep them.
fn mixed() -> Vec<u8> {
    let mut out = b"REDIS0010".to_vec();
    let json = br#"{"id":123456,"name":"somebody","tags":["red","green"],"balance":12.75}"#.repeat(6);
    for i in 0..200_000u32 {
        out.push(0);
        push_string(&mut out, format!("json:{i}").as_bytes());
        push_string(&mut out, &json);
        out.push(16);
        push_string(&mut out, format!("user:{i}").as_bytes());
        push_string(&mut out, &small_hash(i));
        if i % 1000 == 0 {
            out.push(2);
            push_string(&mut out, format!("set:{i}").as_bytes());
            push_length(&mut out, 2000);
            for member in 0..2000 {
                push_string(&mut out, format!("member-{i}-{member}").as_bytes());
            }
            out.push(5);
            push_string(&mut out, format!("zset:{i}").as_bytes());
            push_length(&mut out, 1000);
            for member in 0..1000u32 {
                push_string(&mut out, format!("player-{member:012}").as_bytes());
                out.extend(f64::from(member).to_le_bytes());
            }
        }
    }
    finish(out)
}

/// A listpack of eight fields.
fn small_hash(i: u32) -> Vec<u8> {
    let mut body = Vec::new();
    for field in 0..8u32 {
        for text in [format!("field-{field}"), format!("value {field} of {i} and more")] {
            body.push(0x80 | text.len() as u8);
            body.extend_from_slice(text.as_bytes());
            body.push(text.len() as u8 + 1);
        }
    }
    let mut listpack = (body.len() as u32 + 7).to_le_bytes().to_vec();
    listpack.extend(16u16.to_le_bytes());
    listpack.extend(body);
    listpack.push(0xff);
    listpack
}

fn measure(name: &str, bytes: &[u8]) {
    let mb = bytes.len() as f64 / 1e6;
    let crc = best(|| {
        black_box(rdb::crc64(black_box(bytes)));
    });
    println!(
        "{name}: {mb:.1} MB, crc64 only {:.0} MB/s",
        mb / crc.as_secs_f64()
    );
    for (chunk, spilling) in CHUNKS
        .map(|chunk| (chunk, false))
        .into_iter()
        .chain([(CHUNKS[1], true)])
    {
        let mut keys = 0;
        let all = best(|| {
            let mut validator = rdb::Validator::new();
            if spilling {
                validator = validator.with_spills(Box::new(Kept(Vec::new())), Box::new(Kept(Vec::new())));
            }
            for piece in bytes.chunks(chunk) {
                if let Err(error) = validator.feed(piece, &mut ()) {
                    panic!("{error}");
                }
            }
            keys = validator.keys_so_far();
            if let Err(error) = validator.finish() {
                panic!("{error}");
            }
        });
        let seconds = all.as_secs_f64();
        println!(
            "  chunks of {:>5} KiB{}: {:.0} MB/s, {:.2} M keys/s",
            chunk / 1024,
            if spilling { ", every key compared" } else { "" },
            mb / seconds,
            keys as f64 / seconds / 1e6
        );
    }
    measure_values(bytes);
}

/// Takes every event and does the least with it.
#[derive(Default)]
struct Devouring(u64);

impl rdb::Sink for Devouring {
    const VALUES: bool = true;

    fn key(&mut self, _key: &rdb::KeySummary<'_>) {}

    fn event(&mut self, event: rdb::Event<'_>) {
        if let rdb::Event::Whole(_, bytes) | rdb::Event::Piece(_, bytes) = event {
            self.0 += bytes.len() as u64;
        }
    }
}

fn measure_values(bytes: &[u8]) {
    let all = best(|| {
        let (mut validator, mut sink) = (rdb::Validator::new(), Devouring::default());
        for piece in bytes.chunks(CHUNKS[1]) {
            if let Err(error) = validator.feed(piece, &mut sink) {
                panic!("{error}");
            }
        }
        black_box(sink.0);
    });
    println!(
        "  with values told: {:.0} MB/s",
        bytes.len() as f64 / 1e6 / all.as_secs_f64()
    );
}

fn main() -> std::io::Result<()> {
    match std::env::args_os().nth(1) {
        Some(path) => measure(&path.to_string_lossy(), &std::fs::read(&path)?),
        None => {
            measure("tiny keys", &tiny_keys());
            measure("mixed", &mixed());
        }
    }
    Ok(())
}
