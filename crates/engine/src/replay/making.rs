//! What a key takes: one command with its value as a payload, or the commands that make it.

use std::borrow::Cow;
use std::io;

use rdb::{AofWriter, Copied, Header, KeySummary, Loss, PayloadWriter, Taker, Type};

use super::feeder::{Feeder, Link, PAYLOAD_BYTES_MAX, Pass, Verdict};
use super::input::Valid;
use super::lane::{APPLY, Judgement, Verb, WRITE, judge, wait_for_replica};
use super::words::{Counter, Gathered, Options, push_command, push_options, push_restore};
use super::{Conflict, Expiry, Form};
use crate::error::{Error, Kind};
use crate::failpoint;
use crate::node::{Node, Reply};
use crate::selection::Candidate;

/// Bytes of a large value that are sent before its answers are taken.
const LARGE_BYTES: usize = 256 * 1024;

/// The target breaks the connection at a longer word, so it would be sent again for ever.
const WORD_TOO_LONG: &str = "a value above the target's proto-max-bulk-len";
/// Type codes of hashes whose fields may expire by themselves.
const FIELD_EXPIRY_CODES: std::ops::RangeInclusive<u8> = 22..=25;
const FIELDS_KEEP: &str = "fields that expire by themselves do so when they would have in the source";

/// The file whose entries come.
pub(super) struct Feed<'x, 'f, 's, 'a> {
    pub(super) feeder: &'x mut Feeder<'f, 's, 'a>,
    pub(super) valid: &'x Valid,
}

impl Feed<'_, '_, '_, '_> {
    /// Counts a key that is not taken; else says as what it is.
    fn decide<'k>(
        &mut self,
        key: &Candidate<'k>,
        key_bytes: u64,
    ) -> Option<(u32, Cow<'k, [u8]>, Option<i64>)> {
        let feeder = &mut *self.feeder;
        let own = match feeder.judge(self.valid, key, key_bytes) {
            Verdict::Taken {
                db,
                name,
                expire_at_ms,
            } => return Some((db, name, expire_at_ms)),
            Verdict::Skipped => (&mut feeder.own.skipped, ""),
            Verdict::Expired => (&mut feeder.own.expired, ""),
            Verdict::Conflicting => (&mut feeder.own.conflicting, ""),
            Verdict::Failed(reason) => (&mut feeder.own.failed, reason),
        };
        own.0.add(key.db, key.key, own.1);
        None
    }

    /// Counts a key as failed for which the target would have to take a longer word than it does.
    fn is_too_long(&mut self, key: &Candidate<'_>, word_bytes: u64) -> bool {
        let is_too_long = word_bytes > self.feeder.shared.target.bulk_bytes_max;
        if is_too_long {
            self.feeder.own.failed.add(key.db, key.key, WORD_TOO_LONG);
        }
        is_too_long
    }

    /// Judges only: a key that could be applied is asked for, or counted.
    fn ask(
        &mut self,
        key: &Candidate<'_>,
        db: u32,
        name: &[u8],
        bytes: u64,
        asks: bool,
    ) -> Result<(), Error> {
        let feeder = &mut *self.feeder;
        if asks {
            return feeder.append(Verb::Exists, db, name, bytes, |out| {
                push_command(out, &[b"EXISTS", name]);
                1
            });
        }
        feeder.own.applied.add(key.db, key.key, "");
        feeder.own.applied_bytes += bytes;
        Ok(())
    }

    fn copied(&mut self, entry: &Copied<'_>) -> Result<(), Error> {
        let key = Candidate {
            db: entry.db,
            key: entry.key,
            kind: entry.kind,
            expire_at_ms: entry.expire_at_ms,
            bytes: Some(entry.bytes),
        };
        if let Some((db, name, expire_at_ms)) = self.decide(&key, entry.key.len() as u64) {
            // The type code before the value, the footer behind it.
            let payload_bytes = 1 + entry.value.len() as u64 + rdb::FOOTER_BYTES as u64;
            if self.is_too_long(&key, payload_bytes) {
                return self.feeder.advance(entry.db, entry.offset, entry.bytes);
            }
            let has_expiring_fields =
                entry.kind == Type::Hash && FIELD_EXPIRY_CODES.contains(&entry.type_code);
            self.count_losses(&key, &[], has_expiring_fields);
            match (self.feeder.pass, self.feeder.shared.target.form) {
                (Pass::Judge { asks }, _) => self.ask(&key, db, &name, entry.bytes, asks)?,
                (Pass::Remove, _) | (Pass::Apply, None) => {}
                (Pass::Apply, Some(target)) => {
                    let options = Options {
                        replaces: self.feeder.shared.plan.conflict == Conflict::Replace,
                        header: Header {
                            type_code: entry.type_code,
                            idle_seconds: entry.idle_seconds,
                            frequency: entry.frequency,
                        },
                    };
                    self.feeder.append(Verb::Apply, db, &name, entry.bytes, |out| {
                        push_restore(out, &name, expire_at_ms, payload_bytes, &options);
                        let from = out.len();
                        out.push(entry.type_code);
                        out.extend_from_slice(entry.value);
                        rdb::push_footer(out, from, target);
                        push_options(out, &options);
                        1
                    })?;
                }
            }
        }
        self.feeder.advance(entry.db, entry.offset, entry.bytes)
    }

    fn read(&mut self, key: &KeySummary<'_>) -> Result<(), Error> {
        let candidate = Candidate {
            db: key.db,
            key: key.key,
            kind: key.kind,
            expire_at_ms: key.expire_at_ms,
            bytes: Some(key.bytes),
        };
        if let Some((db, name, expire_at_ms)) = self.decide(&candidate, key.key_bytes) {
            // In the target's terms.
            let key_there = KeySummary {
                db,
                expire_at_ms,
                ..*key
            };
            let payloads = match self.feeder.shared.plan.form {
                Form::Payloads => self.feeder.shared.target.form,
                Form::Commands => None,
            };
            let is_small = key.bytes <= PAYLOAD_BYTES_MAX as u64;
            let has_no_commands = matches!(key.kind, Type::Stream | Type::Module);
            match payloads {
                Some(target) if is_small => self.small_payload(&candidate, &key_there, &name, target)?,
                Some(target) if has_no_commands => {
                    self.large_payload(&candidate, &key_there, &name, target)?
                }
                _ if is_small => self.small_commands(&candidate, &key_there, &name)?,
                _ => self.large_commands(&candidate, &key_there, &name)?,
            }
        }
        self.feeder.advance(key.db, key.offset, key.bytes)
    }

    /// Counts what is lost of a key: all of it, or something. Whether the rest is to be applied.
    fn count_losses(
        &mut self,
        key: &Candidate<'_>,
        losses: &[(bool, &'static str)],
        has_expiring_fields: bool,
    ) -> bool {
        let keeps = has_expiring_fields && self.feeder.shared.plan.shape.expiry != Expiry::Absolute;
        let own = &mut self.feeder.own;
        if let Some((_, reason)) = losses.iter().find(|(is_left_out, _)| *is_left_out) {
            own.failed.add(key.db, key.key, reason);
            return false;
        }
        // Expiries of fields lie in the value, which is sent as it stands.
        let first = losses.first().map(|(_, reason)| *reason);
        if let Some(reason) = first.or(keeps.then_some(FIELDS_KEEP)) {
            own.reduced.add(key.db, key.key, reason);
        }
        true
    }

    /// A value whose encoding the target does not read, in one that it reads.
    fn small_payload(
        &mut self,
        candidate: &Candidate<'_>,
        key: &KeySummary<'_>,
        name: &[u8],
        target: rdb::Target,
    ) -> Result<(), Error> {
        let (mut payload, mut losses) = (Vec::new(), Vec::new());
        let lost = |loss: Loss<'_>| losses.push((loss.is_left_out, loss.reason));
        let header = PayloadWriter::new(self.valid.report.family, target, reader(self.valid))
            .and_then(|mut writer| writer.payload(key, &mut payload, lost))
            .map_err(cannot_make)?;
        if self.is_too_long(candidate, payload.len() as u64) {
            return Ok(());
        }
        if !self.count_losses(candidate, &losses, key.expiring_elements > 0) {
            return Ok(());
        }
        if let Pass::Judge { asks } = self.feeder.pass {
            return self.ask(candidate, key.db, name, key.bytes, asks);
        }
        let options = Options {
            replaces: self.feeder.shared.plan.conflict == Conflict::Replace,
            header: header.unwrap_or_default(),
        };
        self.feeder.append(Verb::Apply, key.db, name, key.bytes, |out| {
            push_restore(out, name, key.expire_at_ms, payload.len() as u64, &options);
            out.extend_from_slice(&payload);
            push_options(out, &options);
            1
        })
    }

    /// The commands that make a value under another name.
    fn commands_of<W: io::Write>(
        &mut self,
        candidate: &Candidate<'_>,
        key: &KeySummary<'_>,
        unfinished: &[u8],
        out: W,
    ) -> Result<Option<W>, Error> {
        let target = self
            .feeder
            .shared
            .target
            .form
            .or(rdb::Target::by_name("redis-5.0"));
        let Some(target) = target else {
            return Ok(None);
        };
        let mut losses = Vec::new();
        let key = KeySummary {
            key: unfinished,
            key_bytes: unfinished.len() as u64,
            ..*key
        };
        let mut writer = AofWriter::in_db(self.valid.report.family, target, key.db, reader(self.valid), out);
        writer
            .key(&key, |loss| losses.push((loss.is_left_out, loss.reason)))
            .map_err(cannot_make)?;
        let out = writer.finish().map_err(cannot_make)?;
        let is_left = self.count_losses(candidate, &losses, key.expiring_elements > 0);
        Ok(is_left.then_some(out))
    }

    fn renames(&self) -> &'static [u8] {
        match self.feeder.shared.plan.conflict {
            Conflict::Replace => b"RENAME",
            Conflict::Skip | Conflict::Fail => b"RENAMENX",
        }
    }

    /// A value by commands that are sent with others.
    fn small_commands(
        &mut self,
        candidate: &Candidate<'_>,
        key: &KeySummary<'_>,
        name: &[u8],
    ) -> Result<(), Error> {
        // A transaction leaves nothing behind.
        let unfinished = self.feeder.unfinished(name, "small").into_bytes();
        let Some(made) = self.commands_of(candidate, key, &unfinished, Gathered::default())? else {
            return Ok(());
        };
        if self.is_too_long(candidate, made.counter.longest) {
            return Ok(());
        }
        if let Pass::Judge { asks } = self.feeder.pass {
            return self.ask(candidate, key.db, name, key.bytes, asks);
        }
        let renames = self.renames();
        self.feeder.append(Verb::Apply, key.db, name, key.bytes, |out| {
            // Whoever reads the bytes again finds the key in the first of them. One transaction: if a step is refused
            // for want of memory nothing is renamed.
            push_command(out, &[b"EXISTS", name]);
            push_command(out, &[b"MULTI"]);
            push_command(out, &[b"DEL", &unfinished]);
            out.extend_from_slice(&made.bytes);
            push_command(out, &[renames, &unfinished, name]);
            push_command(out, &[b"DEL", &unfinished]);
            push_command(out, &[b"EXEC"]);
            // A value has at most as many commands as bytes.
            6 + made.counter.commands as u32
        })
    }

    /// A large value by commands, step by step.
    fn large_commands(
        &mut self,
        candidate: &Candidate<'_>,
        key: &KeySummary<'_>,
        name: &[u8],
    ) -> Result<(), Error> {
        if key.kind == Type::String && key.bytes > self.feeder.shared.target.bulk_bytes_max {
            let reason = "a string above the target's proto-max-bulk-len";
            self.feeder.own.failed.add(candidate.db, candidate.key, reason);
            return Ok(());
        }
        let unfinished_name = self.feeder.unfinished(name, "large");
        let unfinished = unfinished_name.as_bytes();
        if let Pass::Judge { asks } = self.feeder.pass {
            let can_be = self
                .commands_of(candidate, key, unfinished, io::sink())?
                .is_some();
            return match can_be {
                true => self.ask(candidate, key.db, name, key.bytes, asks),
                false => Ok(()),
            };
        }
        let Some((node, mut link)) = self.take_link(candidate, name, key.db)? else {
            return Ok(());
        };
        self.feeder.begin_value(key.db, &unfinished_name)?;
        let mut steps = Steps::new(&mut link.0);
        steps.command(&[b"DEL", unfinished]).map_err(|e| steps.error(e))?;
        let made = self.commands_of(candidate, key, unfinished, &mut steps);
        match made {
            Ok(Some(_)) => {}
            Ok(None) => {
                let (_, is_tidy) = steps.finish(&[b"EXISTS", unfinished], &[b"DEL", unfinished])?;
                if is_tidy {
                    self.feeder.end_value();
                }
                self.feeder.links.insert(node, link);
                return Ok(());
            }
            Err(error) => return Err(steps.failure.take().unwrap_or(error)),
        }
        failpoint::hit("replay.half_made")?;
        let (answer, is_tidy) = steps.finish(&[self.renames(), unfinished, name], &[b"DEL", unfinished])?;
        if is_tidy {
            self.feeder.end_value();
        }
        self.confirm(node, &mut link.0)?;
        self.count_large(candidate, key, &answer)?;
        self.feeder.links.insert(node, link);
        Ok(())
    }

    /// A large value as one payload, in pieces: no commands make all of it.
    fn large_payload(
        &mut self,
        candidate: &Candidate<'_>,
        key: &KeySummary<'_>,
        name: &[u8],
        target: rdb::Target,
    ) -> Result<(), Error> {
        let mut reader = reader(self.valid);
        let (header, value) = rdb::entry_header(&mut reader, key.offset, key.bytes).map_err(cannot_make)?;
        let value_bytes = key.offset + key.bytes - value;
        let payload_bytes = 1 + value_bytes + rdb::FOOTER_BYTES as u64;
        let reason = if !target.reads(self.valid.report.family, header.type_code) {
            Some("a value above 4 MiB in an encoding that the target does not read")
        } else if payload_bytes > self.feeder.shared.target.bulk_bytes_max {
            Some("a value above the target's proto-max-bulk-len that no commands make")
        } else {
            None
        };
        if let Some(reason) = reason {
            self.feeder.own.failed.add(candidate.db, candidate.key, reason);
            return Ok(());
        }
        if let Pass::Judge { asks } = self.feeder.pass {
            return self.ask(candidate, key.db, name, key.bytes, asks);
        }
        let replaces = self.feeder.shared.plan.conflict == Conflict::Replace;
        let options = Options { replaces, header };
        let Some((node, mut link)) = self.take_link(candidate, name, key.db)? else {
            return Ok(());
        };
        let mut out = Vec::with_capacity(LARGE_BYTES + 1024);
        push_restore(&mut out, name, key.expire_at_ms, payload_bytes, &options);
        let mut footer = rdb::Footer::new(target);
        let mut piece = vec![header.type_code];
        let (mut at, end) = (value, key.offset + key.bytes);
        loop {
            footer.update(&piece);
            out.extend_from_slice(&piece);
            link.0.send_raw(&out)?;
            out.clear();
            self.feeder.shared.control.check(APPLY)?;
            if at == end {
                break;
            }
            piece.resize((end - at).min(LARGE_BYTES as u64) as usize, 0);
            reader(at, &mut piece).map_err(cannot_make)?;
            at += piece.len() as u64;
        }
        out.extend_from_slice(&footer.finish());
        push_options(&mut out, &options);
        link.0.send_raw(&out)?;
        let answer = link.0.reply()?;
        self.confirm(node, &mut link.0)?;
        self.count_large(candidate, key, &answer)?;
        self.feeder.links.insert(node, link);
        Ok(())
    }

    /// This thread's connection to the node of a key, in the database of it, to be given back after a whole exchange only. `None`:
    /// there is no such database, and the key has failed.
    fn take_link(
        &mut self,
        candidate: &Candidate<'_>,
        name: &[u8],
        db: u32,
    ) -> Result<Option<(usize, Link)>, Error> {
        let feeder = &mut *self.feeder;
        feeder.write_ahead()?;
        let node = match feeder.shared.target.is_cluster {
            true => feeder.nodes.owner(rdb::slot_of(name)),
            false => 0,
        };
        let (link, at) = feeder.link(node)?;
        if *at != db {
            if let Reply::Error(text) = link.ask(&[b"SELECT", db.to_string().as_bytes()])? {
                if let Judgement::OfAll(kind) = judge(&text) {
                    return Err(Error::new(kind, WRITE, text));
                }
                feeder.own.failed.add(candidate.db, candidate.key, &text);
                return Ok(None);
            }
            *at = db;
        }
        Ok(feeder.links.remove(&node).map(|link| (node, link)))
    }

    /// Waits for a replica, where the node has one: what was sent on this connection is behind none of the others' waiting.
    fn confirm(&self, node: usize, link: &mut Node) -> Result<(), Error> {
        let feeder = &*self.feeder;
        if feeder.nodes.primaries[node].has_replicas {
            wait_for_replica(link, feeder.shared)?;
        }
        Ok(())
    }

    fn count_large(
        &mut self,
        candidate: &Candidate<'_>,
        key: &KeySummary<'_>,
        answer: &Reply,
    ) -> Result<(), Error> {
        let feeder = &mut *self.feeder;
        let is_busy = match answer {
            Reply::Error(text) => text.starts_with("BUSYKEY"),
            other => *other == Reply::Int(0),
        };
        let is_in_doubt = feeder.position.key < feeder.shared.in_doubt_below;
        let can_expire = key.expire_at_ms.is_some() || key.expiring_elements > 0;
        match answer {
            _ if is_busy && !is_in_doubt => {
                feeder.own.conflicting.add(candidate.db, candidate.key, "");
                if feeder.shared.plan.conflict == Conflict::Fail {
                    let what =
                        "a key appeared in the target after it was looked for, and conflicts are to fail";
                    return Err(Error::new(Kind::Refused, APPLY, what));
                }
            }
            // It has expired since it was decided about.
            Reply::Error(text) if can_expire && text.starts_with("ERR no such key") => {
                feeder.own.expired.add(candidate.db, candidate.key, "");
            }
            Reply::Error(text) if !is_busy => match judge(text) {
                Judgement::OfAll(kind) => return Err(Error::new(kind, WRITE, text.clone())),
                Judgement::OfTheKey => feeder.own.failed.add(candidate.db, candidate.key, text),
            },
            _ => {
                feeder.own.applied.add(candidate.db, candidate.key, "");
                feeder.own.applied_bytes += key.bytes;
            }
        }
        Ok(())
    }

    fn attempt(&mut self, act: impl FnOnce(&mut Self) -> Result<(), Error>) {
        if self.feeder.failure.is_none() && !self.feeder.shared.is_stopped() {
            self.feeder.failure = act(self).err();
        }
    }
}

impl Taker for Feed<'_, '_, '_, '_> {
    fn copied(&mut self, entry: &Copied<'_>) {
        self.attempt(|feed| feed.copied(entry));
    }

    fn read(&mut self, key: &KeySummary<'_>) {
        self.attempt(|feed| feed.read(key));
    }

    fn function(&mut self, code: &[u8]) {
        self.attempt(|feed| feed.feeder.function(code));
    }
}

/// The bytes of the file, at any place.
fn reader(valid: &Valid) -> impl FnMut(u64, &mut [u8]) -> io::Result<()> {
    |offset, buffer: &mut [u8]| {
        valid
            .read_at(offset, buffer)
            .map_err(|error| io::Error::other(crate::chain(&error)))
    }
}

fn cannot_make(error: io::Error) -> Error {
    Error::new(Kind::Io, APPLY, "make a command").because(error)
}

/// Sends commands a few at a time, and takes their answers.
struct Steps<'n> {
    node: &'n mut Node,
    out: Vec<u8>,
    counter: Counter,
    answered: u64,
    refusal: Option<Reply>,
    failure: Option<Error>,
}

impl<'n> Steps<'n> {
    fn new(node: &'n mut Node) -> Self {
        Self {
            node,
            out: Vec::new(),
            counter: Counter::default(),
            answered: 0,
            refusal: None,
            failure: None,
        }
    }

    fn command(&mut self, words: &[&[u8]]) -> io::Result<()> {
        let mut bytes = Vec::new();
        push_command(&mut bytes, words);
        io::Write::write_all(self, &bytes)
    }

    fn error(&mut self, error: io::Error) -> Error {
        self.failure.take().unwrap_or_else(|| cannot_make(error))
    }

    fn exchange(&mut self) -> Result<(), Error> {
        self.node.send_raw(&self.out)?;
        self.out.clear();
        while self.answered < self.counter.commands {
            let reply = self.node.reply()?;
            self.answered += 1;
            if matches!(reply, Reply::Error(_)) {
                self.refusal.get_or_insert(reply);
            }
        }
        Ok(())
    }

    /// Sends what makes the key out of what was sent before, unless some of that was refused, and what tidies up. Returns the
    /// first refusal, or what the first of the two answers, and whether the second was done.
    fn finish(&mut self, decides: &[&[u8]], tidies: &[&[u8]]) -> Result<(Reply, bool), Error> {
        self.exchange()?;
        let answer = match self.refusal.take() {
            Some(refusal) => refusal,
            None => self.node.ask(decides)?,
        };
        let is_tidy = !matches!(self.node.ask(tidies)?, Reply::Error(_));
        Ok((answer, is_tidy))
    }
}

impl io::Write for Steps<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.counter.count(bytes)?;
        self.out.extend_from_slice(bytes);
        if self.out.len() >= LARGE_BYTES
            && let Err(error) = self.exchange()
        {
            self.failure = Some(error);
            return Err(io::Error::other("the connection broke"));
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
