//! A writer whose every change has a number, and whose log is a formula instead of a file.
//!
//! Change `n` follows from the [`Log`] and from `n` alone, and goes to the engine in one transaction together with
//! `n` itself under [`LAST_KEY`] in database 0. So a snapshot says which change was the last one in it, and
//! [`replay`] brings any engine that had the same start to exactly that state.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use super::{Command, Random};
use crate::resp::{Connection, Reply, Target};

/// Holds the number of the last change, in database 0.
pub const LAST_KEY: &str = "writer:last";

/// The formula of all changes.
#[derive(Debug, Clone)]
pub struct Log {
    /// Decides everything but times.
    pub seed: u64,
    /// Databases that are written.
    pub dbs: u64,
    /// Keys per type that the writer changes; small numbers give many changes to the same key.
    pub key_space: u64,
    /// Expiry times are days after this (Unix milliseconds): they are never reached.
    pub now_ms: u64,
}

/// One change: commands that belong together.
pub struct Op {
    /// Where they run.
    pub database: u64,
    /// In this order.
    pub commands: Vec<Command>,
}

impl Log {
    /// The change with this number. Never refused by an engine that only this writer and [`super::fill`] have
    /// written to, and free of everything that the engine itself would choose (times, random members).
    pub fn op(&self, number: u64) -> Op {
        let mut random = Random::new(self.seed ^ 0x7772_6974, number);
        let database = if random.chance(800) {
            0
        } else {
            random.below(self.dbs.max(1))
        };
        let mut commands = Vec::with_capacity(4);
        let mut change = Change {
            log: self,
            random,
            number,
            commands: &mut commands,
        };
        match change.random.below(100) {
            0..=24 => change.string(),
            25..=44 => change.hash(),
            45..=56 => change.list(),
            57..=66 => change.set(),
            67..=80 => change.sorted(),
            81..=90 => change.stream(),
            _ => change.any_type(),
        }
        Op { database, commands }
    }
}

struct Change<'a> {
    log: &'a Log,
    random: Random,
    number: u64,
    commands: &'a mut Vec<Command>,
}

impl Change<'_> {
    fn key(&mut self, kind: &str) -> Vec<u8> {
        format!("writer:{kind}:{}", self.random.below(self.log.key_space.max(1))).into_bytes()
    }

    fn push(&mut self, name: &str, key: &[u8], add: impl FnOnce(&mut Command, &mut Random)) {
        let mut command = Command::default();
        command.begin(name, key);
        add(&mut command, &mut self.random);
        self.commands.push(command);
    }

    fn string(&mut self) {
        let number = self.number;
        match self.random.below(7) {
            0 | 1 => {
                let key = self.key("string");
                let length = self.random.between(0, 300) as usize;
                self.push("SET", &key, |command, random| {
                    command.with(|bytes| random.prose(length, bytes));
                });
            }
            2 => {
                let key = self.key("string");
                self.push("APPEND", &key, |command, _| {
                    command.show(number);
                });
            }
            3 => {
                let key = self.key("count");
                self.push("INCRBY", &key, |command, random| {
                    command.show(random.below(1000) as i64 - 500);
                });
            }
            4 => {
                let key = self.key("string");
                self.push("SETRANGE", &key, |command, random| {
                    command.show(random.below(2000)).show(number);
                });
            }
            5 => {
                let key = self.key("bits");
                self.push("SETBIT", &key, |command, random| {
                    command.show(random.below(10_000)).show(random.below(2));
                });
            }
            _ => {
                let key = self.key("seen");
                self.push("PFADD", &key, |command, _| {
                    command.show(number);
                });
            }
        }
    }

    fn hash(&mut self) {
        let key = self.key("hash");
        let number = self.number;
        match self.random.below(10) {
            0..=5 => self.push("HSET", &key, |command, random| {
                for _ in 0..random.between(1, 5) {
                    command.show(format_args!("field{}", random.below(200)));
                    let length = random.between(0, 90) as usize;
                    command.with(|bytes| random.prose(length, bytes));
                }
            }),
            6 | 7 => self.push("HINCRBY", &key, |command, _| {
                command.word("total").show(number % 100);
            }),
            8 => self.push("HDEL", &key, |command, random| {
                command.show(format_args!("field{}", random.below(200)));
            }),
            _ => self.push("HSET", &key, |command, random| {
                for field in 0..150 {
                    command.show(format_args!("wide{field}")).word(random.word());
                }
            }),
        }
    }

    fn list(&mut self) {
        let key = self.key("list");
        let number = self.number;
        match self.random.below(8) {
            0..=2 => self.push("RPUSH", &key, |command, random| {
                for _ in 0..random.between(1, 8) {
                    command.show(format_args!("{number}:{}", random.word()));
                }
            }),
            3 => self.push("LPUSH", &key, |command, random| {
                let length = random.between(1, 9000) as usize;
                command.with(|bytes| random.noise(length, bytes));
            }),
            4 => self.push("LPOP", &key, |_, _| ()),
            5 => self.push("RPOP", &key, |command, _| {
                command.word("3");
            }),
            6 => self.push("LTRIM", &key, |command, random| {
                command.word("0").show(random.between(5, 300));
            }),
            _ => {
                let to = self.key("list");
                self.push("LMOVE", &key, |command, _| {
                    command.word(&to).word("LEFT").word("RIGHT");
                });
            }
        }
    }

    fn set(&mut self) {
        let number = self.number;
        match self.random.below(6) {
            0 | 1 => {
                let key = self.key("set");
                self.push("SADD", &key, |command, random| {
                    for _ in 0..random.between(1, 5) {
                        command.show(format_args!("{}{}", random.word(), random.below(300)));
                    }
                });
            }
            2 => {
                let key = self.key("set");
                self.push("SREM", &key, |command, random| {
                    command.show(format_args!("{}{}", random.word(), random.below(300)));
                });
            }
            3 | 4 => {
                let key = self.key("integers");
                self.push("SADD", &key, |command, random| {
                    command.show(number).show(random.below(100_000) as i64 - 50_000);
                });
            }
            _ => {
                let key = self.key("integers");
                self.push("SREM", &key, |command, random| {
                    command.show(random.below(number + 1));
                });
            }
        }
    }

    fn sorted(&mut self) {
        let key = self.key("sorted");
        match self.random.below(8) {
            0..=3 => self.push("ZADD", &key, |command, random| {
                for _ in 0..random.between(1, 4) {
                    let score = random.bits() as i64 as f64 / 1e9;
                    command
                        .show(score)
                        .show(format_args!("{}{}", random.word(), random.below(200)));
                }
            }),
            4 => self.push("ZADD", &key, |command, random| {
                command
                    .word(["inf", "-inf", "0", "-7"][random.below(4) as usize])
                    .word("edge");
            }),
            5 => self.push("ZINCRBY", &key, |command, random| {
                // Never a member with an infinite score: the sum might be no number, and that is refused.
                command.show(random.below(1000) as i64 - 500).word(random.word());
            }),
            6 => self.push("ZREM", &key, |command, random| {
                command.show(format_args!("{}{}", random.word(), random.below(200)));
            }),
            _ => self.push("ZREMRANGEBYRANK", &key, |command, random| {
                let from = random.below(20);
                command.show(from).show(from + random.below(3));
            }),
        }
    }

    /// Entry ids are the change's number, so they always grow.
    fn stream(&mut self) {
        let key = self.key("stream");
        let number = self.number;
        self.push("XADD", &key, |command, random| {
            command
                .show(format_args!("{number}-0"))
                .word("what")
                .word(random.word());
            if random.chance(300) {
                command.word("more").word(random.word());
            }
        });
        match self.random.below(10) {
            0 | 1 => self.push("XDEL", &key, |command, random| {
                command.show(format_args!("{}-0", number - random.below(number.min(500))));
            }),
            2 => self.push("XTRIM", &key, |command, random| {
                command.word("MAXLEN").show(random.between(0, 200));
            }),
            3 | 4 => self.group(&key),
            _ => (),
        }
    }

    fn group(&mut self, key: &[u8]) {
        let number = self.number;
        self.push("XGROUP", b"DESTROY", |command, _| {
            command.word(key).word("group");
        });
        self.push("XGROUP", b"CREATE", |command, random| {
            command
                .word(key)
                .word("group")
                .show(format_args!("{}-0", random.below(number)));
        });
        let seen_ms = self.log.now_ms;
        self.push("XCLAIM", key, |command, random| {
            command
                .word("group")
                .word("consumer")
                .word("0")
                .show(format_args!("{number}-0"));
            command
                .word("TIME")
                .show(seen_ms)
                .word("RETRYCOUNT")
                .show(random.below(9))
                .word("FORCE");
        });
    }

    fn any_type(&mut self) {
        const KINDS: [&str; 9] = [
            "string", "count", "bits", "hash", "list", "set", "integers", "sorted", "stream",
        ];
        let kind = KINDS[self.random.below(KINDS.len() as u64) as usize];
        let key = self.key(kind);
        let number = self.number;
        let day_ms = 86_400_000;
        match self.random.below(12) {
            0 => self.push("DEL", &key, |_, _| ()),
            1 => self.push("UNLINK", &key, |_, _| ()),
            2 | 3 => {
                let at_ms = self.log.now_ms + day_ms * self.random.between(1, 3000);
                self.push("PEXPIREAT", &key, |command, _| {
                    command.show(at_ms);
                });
            }
            4 => self.push("PERSIST", &key, |_, _| ()),
            5 if kind != "stream" => {
                // A name of its own: a key cannot be copied onto itself.
                let to = format!("writer:{kind}:copy");
                self.push("COPY", &key, |command, _| {
                    command.word(to).word("REPLACE");
                });
            }
            6 => {
                // A key of the data that was there before.
                let name = format!("name:{}", self.random.below(self.log.key_space * 50)).into_bytes();
                self.push("DEL", &name, |_, _| ());
            }
            7 => {
                let library = format!("writer{}", self.random.below(3));
                let code = format!(
                    "#!lua name={library}\nredis.register_function('{library}', function() return {number} end)"
                );
                self.push("FUNCTION", b"LOAD", |command, _| {
                    command.word("REPLACE").word(code);
                });
            }
            _ => {
                let key = self.key("string");
                self.push("SET", &key, |command, random| {
                    let length = random.between(1000, 30_000) as usize;
                    command.with(|bytes| random.prose(length, bytes));
                });
            }
        }
    }
}

/// Writes the changes of a log, in order, in a thread of its own until it is told to stop.
pub struct Writer {
    stop: Arc<AtomicBool>,
    thread: JoinHandle<Written>,
}

/// How far a [`Writer`] came.
#[derive(Debug)]
pub struct Written {
    /// The engine has confirmed all changes up to this one.
    pub acknowledged: u64,
    /// What ended the writer, if it was not [`Writer::stop`].
    pub failure: Option<io::Error>,
}

impl Writer {
    /// Starts after the change `after`, which the engine has already. With a pause each change is confirmed before
    /// the next; without one, many are on their way at a time.
    pub fn start(target: Target, log: Log, after: u64, pause: Duration) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        let thread = std::thread::spawn(move || {
            let mut acknowledged = after;
            let failure = write_until(&target, &log, pause, &stopped, &mut acknowledged).err();
            Written {
                acknowledged,
                failure,
            }
        });
        Self { stop, thread }
    }

    /// Stops after the change that is under way and says how far it came.
    pub fn stop(self) -> Written {
        self.stop.store(true, Ordering::SeqCst);
        self.thread.join().unwrap_or_else(|_| Written {
            acknowledged: 0,
            failure: Some(io::Error::other("the writer's thread panicked")),
        })
    }
}

fn write_until(
    target: &Target,
    log: &Log,
    pause: Duration,
    stop: &AtomicBool,
    acknowledged: &mut u64,
) -> io::Result<()> {
    let together = if pause.is_zero() { 50 } else { 1 };
    let mut connection = Connection::open(target)?;
    while !stop.load(Ordering::SeqCst) {
        let upto = *acknowledged + together;
        for number in *acknowledged + 1..=upto {
            send(&mut connection, log, number)?;
        }
        connection.settle()?;
        *acknowledged = upto;
        std::thread::sleep(pause);
    }
    Ok(())
}

fn send(connection: &mut Connection, log: &Log, number: u64) -> io::Result<()> {
    let op = log.op(number);
    connection.send(&["MULTI"])?;
    connection.send(&["SELECT", &op.database.to_string()])?;
    for command in &op.commands {
        connection.send(&command.words())?;
    }
    connection.send(&["SELECT", "0"])?;
    connection.send(&["SET", LAST_KEY, &number.to_string()])?;
    connection.send(&["EXEC"])
}

/// Applies the changes 1 to `upto` to an engine that has the same start as the one the log was written to.
///
/// # Errors
/// The connection broke or a change was refused.
pub fn replay(log: &Log, upto: u64, target: &Target) -> io::Result<()> {
    let mut connection = Connection::open(target)?;
    for number in 1..=upto {
        send(&mut connection, log, number)?;
    }
    connection.settle()
}

/// The number of the last change that an engine has; 0 where it has none.
///
/// # Errors
/// The connection broke, or the key holds something else.
pub fn last_number(target: &Target) -> io::Result<u64> {
    let mut connection = Connection::open(target)?;
    match connection.ask(&["GET", LAST_KEY])? {
        Reply::Nil => Ok(0),
        reply => {
            let number = reply.text().and_then(|text| text.parse().ok());
            number.ok_or_else(|| io::Error::other(format!("{LAST_KEY} holds no number")))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_change_follows_from_the_log_and_its_number() {
        let log = Log {
            seed: 3,
            dbs: 4,
            key_space: 50,
            now_ms: 1_800_000_000_000,
        };
        for number in 1..2000 {
            let (one, other) = (log.op(number), log.op(number));
            assert_eq!(one.database, other.database);
            assert!(one.commands == other.commands);
            assert!(!one.commands.is_empty());
            assert!(one.database < 4);
        }
    }
}
