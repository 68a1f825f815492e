//! What a key holds: every type and encoding of redis 7.0, the small and the big form of each.
//!
//! The limits that decide the form are the engine's defaults: 128 entries and 64 bytes for hashes and sorted sets,
//! 512 integers for sets, 8 KiB for a node of a list, 100 entries or 4 KiB for a node of a stream.

use std::io;

use super::{Command, Options, Profile, Random};

type Sink<'a> = dyn FnMut(&Command) -> io::Result<()> + 'a;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Integer,
    ShortText,
    Json,
    Prose,
    Noise,
    LongProse,
    LongNoise,
    Bitmap,
    SparseCounter,
    DenseCounter,
    SmallHash,
    WideHash,
    BigHash,
    SmallList,
    LongList,
    HeavyList,
    IntegerSet,
    TextSet,
    BigIntegerSet,
    BigSet,
    SmallSorted,
    WideSorted,
    BigSorted,
    SmallStream,
    GroupStream,
    EmptiedStream,
    BigStream,
}

/// How many of 1,000 keys are of the kind.
const COMMON: [(Kind, u64); 15] = [
    (Kind::Integer, 120),
    (Kind::ShortText, 160),
    (Kind::Json, 160),
    (Kind::Prose, 40),
    (Kind::Noise, 60),
    (Kind::Bitmap, 5),
    (Kind::SparseCounter, 10),
    (Kind::SmallHash, 170),
    (Kind::WideHash, 5),
    (Kind::SmallList, 70),
    (Kind::IntegerSet, 55),
    (Kind::TextSet, 40),
    (Kind::SmallSorted, 85),
    (Kind::SmallStream, 15),
    (Kind::GroupStream, 5),
];

/// Every 400th key is one of these in turn.
const RARE: [Kind; 12] = [
    Kind::LongProse,
    Kind::LongNoise,
    Kind::DenseCounter,
    Kind::BigHash,
    Kind::LongList,
    Kind::HeavyList,
    Kind::BigIntegerSet,
    Kind::BigSet,
    Kind::WideSorted,
    Kind::BigSorted,
    Kind::EmptiedStream,
    Kind::BigStream,
];
const RARE_EVERY: u64 = 400;

/// Makes the commands of one item after the other.
pub(super) struct Generator {
    seed: u64,
    profile: Profile,
    ttl_per_mille: u64,
    near_ttl_ms: Option<u64>,
    now_ms: u64,
    has_idle_consumers: bool,
    command: Command,
    key: Vec<u8>,
}

impl Generator {
    pub(super) fn new(options: &Options) -> Self {
        Self {
            seed: options.seed,
            profile: options.profile,
            ttl_per_mille: (options.ttl_share.clamp(0.0, 1.0) * 1000.0).round() as u64,
            near_ttl_ms: options.near_ttl.map(|near| near.as_millis() as u64),
            now_ms: options.now_ms,
            has_idle_consumers: options.idle_consumers,
            command: Command::default(),
            key: Vec::new(),
        }
    }

    /// Hands over the commands that make key number `index`; every item is exactly one key.
    pub(super) fn item(&mut self, index: u64, sink: &mut Sink) -> io::Result<()> {
        let mut random = Random::new(self.seed, index);
        let kind = match self.profile {
            Profile::Mixed => mixed_kind(index, &mut random),
            Profile::Tiny => Kind::ShortText,
            Profile::Blobs if index.is_multiple_of(2) => Kind::LongProse,
            Profile::Blobs => Kind::LongNoise,
        };
        name_key(kind, index, &mut random, &mut self.key);
        match (self.profile, kind) {
            (Profile::Blobs, Kind::LongProse) => self.string(sink, |bytes| random.prose(16 * 1024, bytes))?,
            (Profile::Blobs, _) => self.string(sink, |bytes| random.noise(16 * 1024, bytes))?,
            _ => self.value(kind, &mut random, sink)?,
        }
        if random.chance(self.ttl_per_mille) {
            let after_ms = self.time_to_live_ms(&mut random);
            sink(
                self.command
                    .begin("PEXPIREAT", &self.key)
                    .show(self.now_ms + after_ms),
            )?;
        }
        Ok(())
    }

    fn time_to_live_ms(&self, random: &mut Random) -> u64 {
        const HOUR_MS: u64 = 3_600_000;
        match self.near_ttl_ms {
            Some(near_ms) if random.chance(100) => random.between(near_ms, near_ms * 10),
            // From a day, so that none goes while a long test runs, to two days, to a month, to ten years.
            _ => {
                let longest = [48, 720, 87_600][random.below(3) as usize];
                random.between(24 * HOUR_MS, longest * HOUR_MS)
            }
        }
    }

    fn value(&mut self, kind: Kind, random: &mut Random, sink: &mut Sink) -> io::Result<()> {
        match kind {
            Kind::Integer => {
                let bits = random.below(64);
                let number = (random.bits() >> bits) as i64;
                sink(self.command.begin("SET", &self.key).show(number))
            }
            Kind::ShortText => {
                let length = random.between(1, 20) as usize;
                self.string(sink, |bytes| random.prose(length, bytes))
            }
            Kind::Json => self.string(sink, |bytes| write_json(random, bytes)),
            Kind::Prose => {
                let length = random.between(100, 1500) as usize;
                self.string(sink, |bytes| random.prose(length, bytes))
            }
            Kind::Noise => {
                let length = random.between(21, 400) as usize;
                self.string(sink, |bytes| random.noise(length, bytes))
            }
            Kind::LongProse => {
                let length = random.between(20_000, 400_000) as usize;
                self.string(sink, |bytes| random.prose(length, bytes))
            }
            Kind::LongNoise => {
                let length = random.between(16_000, 100_000) as usize;
                self.string(sink, |bytes| random.noise(length, bytes))
            }
            Kind::Bitmap => {
                for _ in 0..random.between(1, 8) {
                    let bit = random.below(20_000);
                    sink(self.command.begin("SETBIT", &self.key).show(bit).word("1"))?;
                }
                Ok(())
            }
            Kind::SparseCounter => self.add_many("PFADD", 1, random.between(1, 60), random, sink),
            Kind::DenseCounter => self.add_many("PFADD", 1, 6_000, random, sink),
            Kind::SmallHash => self.hash(random.between(1, 16), 20, random, sink),
            Kind::WideHash => self.hash(random.between(1, 10), 300, random, sink),
            Kind::BigHash => self.hash(random.between(150, 1500), 40, random, sink),
            Kind::SmallList => self.list(random.between(1, 20), 30, random, sink),
            Kind::LongList => self.list(random.between(600, 3000), 40, random, sink),
            Kind::HeavyList => self.list(random.between(3, 10), 30_000, random, sink),
            Kind::IntegerSet => self.integer_set(random.between(1, 40), random, sink),
            Kind::BigIntegerSet => self.integer_set(random.between(600, 1500), random, sink),
            Kind::TextSet => self.add_many("SADD", 1, random.between(1, 20), random, sink),
            Kind::BigSet => self.add_many("SADD", 1, random.between(200, 2000), random, sink),
            Kind::SmallSorted => self.sorted(random.between(1, 20), 12, random, sink),
            Kind::WideSorted => self.sorted(random.between(1, 20), 200, random, sink),
            Kind::BigSorted => self.sorted(random.between(150, 1500), 20, random, sink),
            Kind::SmallStream => self.stream(random.between(1, 10), random, sink),
            Kind::GroupStream => {
                let entries = random.between(3, 12);
                self.stream(entries, random, sink)?;
                self.groups(entries, random, sink)
            }
            Kind::EmptiedStream => {
                self.stream(2, random, sink)?;
                sink(self.command.begin("XTRIM", &self.key).word("MAXLEN").word("0"))
            }
            Kind::BigStream => {
                let entries = random.between(300, 800);
                self.stream(entries, random, sink)?;
                self.groups(entries, random, sink)
            }
        }
    }

    fn string(&mut self, sink: &mut Sink, write: impl FnOnce(&mut Vec<u8>)) -> io::Result<()> {
        sink(self.command.begin("SET", &self.key).with(write))
    }

    /// Adds random members; the count is an upper bound because some may be equal.
    fn add_many(
        &mut self,
        name: &str,
        shortest: u64,
        count: u64,
        random: &mut Random,
        sink: &mut Sink,
    ) -> io::Result<()> {
        self.in_pieces(name, count, sink, |command, _| {
            let length = random.between(shortest, 24) as usize;
            command.with(|bytes| {
                bytes.extend_from_slice(random.word().as_bytes());
                random.noise(length, bytes);
            });
        })
    }

    fn hash(&mut self, fields: u64, longest: u64, random: &mut Random, sink: &mut Sink) -> io::Result<()> {
        self.in_pieces("HSET", fields, sink, |command, field| {
            command.show(format_args!("{}:{field}", random.word()));
            if longest <= 64 && random.chance(300) {
                command.show(random.bits() as i64 >> random.below(63));
            } else {
                let length = random.between(longest / 3, longest) as usize;
                command.with(|bytes| random.prose(length, bytes));
            }
        })
    }

    fn list(&mut self, elements: u64, longest: u64, random: &mut Random, sink: &mut Sink) -> io::Result<()> {
        self.in_pieces("RPUSH", elements, sink, |command, _| {
            if longest < 100 && random.chance(300) {
                command.show(random.bits() as i64 >> random.below(63));
            } else {
                let length = random.between(longest / 3, longest) as usize;
                command.with(|bytes| random.prose(length, bytes));
            }
        })
    }

    fn integer_set(&mut self, members: u64, random: &mut Random, sink: &mut Sink) -> io::Result<()> {
        // Integer sets store all members 16, 32 or 64 bits wide.
        let bits = [50, 34, 1][random.below(3) as usize];
        self.in_pieces("SADD", members, sink, |command, _| {
            command.show(random.bits() as i64 >> bits);
        })
    }

    fn sorted(&mut self, members: u64, longest: u64, random: &mut Random, sink: &mut Sink) -> io::Result<()> {
        self.in_pieces("ZADD", members, sink, |command, member| {
            write_score(random, command);
            let length = random.between(longest / 3, longest) as usize;
            command.with(|bytes| {
                random.prose(length, bytes);
                bytes.extend_from_slice(&member.to_string().into_bytes());
            });
        })
    }

    fn stream(&mut self, entries: u64, random: &mut Random, sink: &mut Sink) -> io::Result<()> {
        let same_fields = random.chance(700);
        for entry in 1..=entries {
            self.command.begin("XADD", &self.key).show(stream_id(entry));
            for field in 0..random.between(1, if same_fields { 1 } else { 4 }) {
                let length = random.between(1, 60) as usize;
                self.command
                    .word(["temperature", "pressure", "who", "note"][field as usize]);
                self.command.with(|bytes| random.prose(length, bytes));
            }
            sink(&self.command)?;
        }
        if entries > 2 {
            let deleted = random.between(1, entries - 1);
            sink(self.command.begin("XDEL", &self.key).show(stream_id(deleted)))?;
        }
        Ok(())
    }

    /// Two consumer groups with pending, acknowledged and deleted-but-pending entries, and an idle consumer.
    fn groups(&mut self, entries: u64, random: &mut Random, sink: &mut Sink) -> io::Result<()> {
        for group in ["billing", "audit"] {
            sink(
                self.command
                    .begin("XGROUP", b"CREATE")
                    .word(&self.key)
                    .word(group)
                    .show(stream_id(entries / 2)),
            )?;
            if self.has_idle_consumers {
                sink(
                    self.command
                        .begin("XGROUP", b"CREATECONSUMER")
                        .word(&self.key)
                        .word(group)
                        .word("idle"),
                )?;
            }
            for entry in 1..=entries.min(40) {
                let consumer = ["left", "right"][random.below(2) as usize];
                let seen_ms = self.now_ms - random.below(1_000_000);
                self.command
                    .begin("XCLAIM", &self.key)
                    .word(group)
                    .word(consumer)
                    .word("0")
                    .show(stream_id(entry));
                self.command
                    .word("TIME")
                    .show(seen_ms)
                    .word("RETRYCOUNT")
                    .show(random.below(5));
                sink(self.command.word("FORCE").word("JUSTID"))?;
            }
            sink(
                self.command
                    .begin("XACK", &self.key)
                    .word(group)
                    .show(stream_id(random.between(1, entries))),
            )?;
        }
        sink(self.command.begin("XDEL", &self.key).show(stream_id(entries)))
    }

    /// Adds elements a hundred at a time: a command with thousands of words would hold up the engine.
    fn in_pieces(
        &mut self,
        name: &str,
        count: u64,
        sink: &mut Sink,
        mut element: impl FnMut(&mut Command, u64),
    ) -> io::Result<()> {
        let mut next = 0;
        while next < count {
            let end = count.min(next + 100);
            self.command.begin(name, &self.key);
            for number in next..end {
                element(&mut self.command, number);
            }
            sink(&self.command)?;
            next = end;
        }
        Ok(())
    }
}

/// The first items are one of each kind, so that the smallest data set has them all.
fn mixed_kind(index: u64, random: &mut Random) -> Kind {
    let mut first = COMMON.iter().map(|(kind, _)| *kind).chain(RARE);
    if let Some(kind) = first.nth(index as usize) {
        return kind;
    }
    if index.is_multiple_of(RARE_EVERY) {
        return RARE[(index / RARE_EVERY % RARE.len() as u64) as usize];
    }
    let mut drawn = random.below(1000);
    for (kind, share) in COMMON {
        if drawn < share {
            return kind;
        }
        drawn -= share;
    }
    Kind::ShortText
}

/// Four odd names first (empty, binary, long, with line ends); then names as applications choose them.
fn name_key(kind: Kind, index: u64, random: &mut Random, key: &mut Vec<u8>) {
    use std::io::Write as _;
    key.clear();
    let _a_vec_takes_all = match index {
        0 => Ok(()),
        1 => key.write_all(&[0, 255, 1, 254, b'\r', b'\n']),
        2 => {
            random.prose(5000, key);
            Ok(())
        }
        3 => key.write_all("schlüssel {im} 键\r\n\"quoted\" ".as_bytes()),
        _ => match kind {
            Kind::Integer => write!(key, "count:{}:{index}", random.word()),
            Kind::ShortText => write!(key, "name:{index}"),
            Kind::Json => write!(key, "user:{index:08}:profile"),
            Kind::Prose | Kind::Noise | Kind::LongProse | Kind::LongNoise => write!(key, "page:{index}"),
            Kind::Bitmap | Kind::SparseCounter | Kind::DenseCounter => write!(key, "seen:{index}"),
            Kind::SmallHash | Kind::WideHash | Kind::BigHash => {
                write!(key, "session:{:016x}:{index}", random.bits())
            }
            Kind::SmallList | Kind::LongList | Kind::HeavyList => {
                write!(key, "queue:{}:{index}", random.word())
            }
            Kind::IntegerSet | Kind::TextSet | Kind::BigIntegerSet | Kind::BigSet => {
                write!(key, "tags:{index}")
            }
            Kind::SmallSorted | Kind::WideSorted | Kind::BigSorted => {
                write!(key, "rank:{}:{index}", random.word())
            }
            _ => write!(key, "events:{{{}}}:{index}", random.word()),
        },
    };
}

fn write_json(random: &mut Random, out: &mut Vec<u8>) {
    use std::io::Write as _;
    let _a_vec_takes_all = write!(
        out,
        "{{\"id\":{},\"name\":\"{} {}\",\"mail\":\"{}@{}.example\",\"score\":{}.{:02},\"active\":{},\"tags\":[",
        random.below(10_000_000),
        random.word(),
        random.word(),
        random.word(),
        random.word(),
        random.below(1000),
        random.below(100),
        random.chance(500),
    );
    for tag in 0..random.between(1, 6) {
        let comma = if tag == 0 { "" } else { "," };
        let _a_vec_takes_all = write!(out, "{comma}\"{}\"", random.word());
    }
    let _a_vec_takes_all = write!(
        out,
        "],\"token\":\"{:016x}{:016x}\"}}",
        random.bits(),
        random.bits()
    );
}

/// Whole, fractional, negative, tiny, huge and infinite scores.
pub(super) fn write_score(random: &mut Random, command: &mut Command) {
    match random.below(20) {
        0 => command.word("inf"),
        1 => command.word("-inf"),
        2 => command.word("0"),
        3 => command.word("-0.5"),
        4 => command.word("1.7976931348623157e308"),
        5 => command.word("5e-324"),
        6..=9 => command.show(random.bits() as i64 >> random.below(63)),
        10..=14 => command.show(random.bits() as i64 as f64 / 1e6),
        _ => command.show(random.below(1_000_000)),
    };
}

fn stream_id(entry: u64) -> String {
    // Two entries share a millisecond, as under load.
    format!("{}-{}", 1_700_000_000_000 + entry / 2, entry % 2)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn commands(seed: u64, index: u64) -> Vec<Vec<Vec<u8>>> {
        let options = Options {
            seed,
            now_ms: 1_800_000_000_000,
            ..Options::default()
        };
        let mut all = Vec::new();
        let mut sink = |command: &Command| {
            all.push(command.words().iter().map(|word| word.to_vec()).collect());
            Ok(())
        };
        Generator::new(&options).item(index, &mut sink).unwrap();
        all
    }

    #[test]
    fn an_item_depends_on_the_seed_and_its_index_alone() {
        for index in 0..200 {
            assert_eq!(commands(5, index), commands(5, index));
        }
        assert_ne!(commands(5, 10), commands(6, 10));
    }

    #[test]
    fn shares_add_up_and_a_thousand_keys_have_every_kind() {
        assert_eq!(COMMON.iter().map(|(_, share)| share).sum::<u64>(), 1000);
        let first: Vec<Kind> = (0..27)
            .map(|index| mixed_kind(index, &mut Random::new(1, index)))
            .collect();
        for kind in COMMON.iter().map(|(kind, _)| *kind).chain(RARE) {
            assert!(first.contains(&kind), "{kind:?}");
        }
    }
}
