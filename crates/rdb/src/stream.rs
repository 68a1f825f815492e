//! Streams: listpacks of entries, then counters, then consumer groups with their pending entries.
//!
//! A listpack starts with its count of live and of deleted entries and the field names of its first entry;
//! entries with the same names leave them out. Entry ids are differences from the id the listpack is filed
//! under.

use crate::digest::mix;
use crate::elements::{Item, Items};
use crate::error::{ErrorKind, Step, malformed};
use crate::event::{self, Event, Sink, pieces, send, send_item};
use crate::fingerprint::{Fingerprints, MEMBERS_REMEMBERED_MAX};
use crate::reader::Reader;
use crate::source::{Packing, Source};

/// An entry id: milliseconds and sequence number.
type Id = (u64, u64);

const FLAG_DELETED: i64 = 1;
const FLAG_SAME_FIELDS: i64 = 2;
/// Entries read by a group that lost count of them.
const ENTRIES_READ_UNKNOWN: u64 = u64::MAX;
/// Bytes of the field names at the head of a listpack that are kept for a sink that wants values. Engines
/// start another listpack after 4 KiB.
const FIELD_NAMES_BYTES_MAX: usize = 4 * 1024 * 1024;

fn of_id(id: Id) -> u128 {
    mix(0x1d, u128::from(id.0) << 64 | u128::from(id.1))
}

#[derive(Clone, Copy, Default, PartialEq)]
enum Part {
    #[default]
    Live,
    Deleted,
    FieldCount,
    FirstField,
    FirstEnd,
    Flags,
    Millis,
    Sequence,
    EntryFieldCount,
    Field,
    Value,
    EntrySize,
}

/// The entries, over all listpacks.
#[derive(Default)]
struct Entries {
    part: Part,
    /// The id the listpack is filed under.
    base: Id,
    live: u64,
    deleted: u64,
    records: u64,
    first_count: u64,
    first_fields: u128,
    /// Fields or values still to come.
    left: u64,
    flags: i64,
    id: Id,
    field_count: u64,
    fields: u128,
    values: u128,
    /// The last live entry.
    before: Option<Id>,
    first_live: Option<Id>,
    length: u64,
    digest: u128,
    names: FieldNames,
    /// The name that belongs to the value at hand has been sent.
    name_sent: bool,
}

/// The field names at the head of a listpack, one after the other.
#[derive(Default)]
struct FieldNames {
    bytes: Vec<u8>,
    ends: Vec<usize>,
    too_long: bool,
}

impl FieldNames {
    fn clear(&mut self) {
        self.bytes.clear();
        self.ends.clear();
        self.too_long = false;
    }

    fn push(&mut self, bytes: &[u8]) {
        if self.bytes.len() + bytes.len() + 8 * self.ends.len() > FIELD_NAMES_BYTES_MAX {
            self.too_long = true;
        } else {
            self.bytes.extend_from_slice(bytes);
        }
    }

    fn get(&self, index: usize) -> &[u8] {
        let start = index
            .checked_sub(1)
            .and_then(|before| self.ends.get(before))
            .copied()
            .unwrap_or(0);
        let end = self.ends.get(index).copied().unwrap_or(start);
        &self.bytes[start..end]
    }
}

fn count(value: i64) -> Result<u64, ErrorKind> {
    u64::try_from(value).map_err(|_| malformed("negative count in a stream"))
}

fn number(item: Item<'_>) -> Result<i64, ErrorKind> {
    match item {
        Item::Int(value) => Ok(value),
        _ => Err(malformed("text in place of a number in a stream")),
    }
}

impl Entries {
    fn begin_listpack(&mut self, base: Id) {
        self.base = base;
        self.part = Part::Live;
        self.records = 0;
    }

    fn end_listpack(&self) -> Result<(), ErrorKind> {
        if self.part != Part::Flags {
            return Err(malformed("stream listpack ends inside an entry"));
        }
        if self.live > 0 || self.deleted > 0 {
            return Err(malformed("stream listpack has fewer entries than it counts"));
        }
        if self.records == 0 {
            return Err(malformed("stream listpack without entries"));
        }
        Ok(())
    }

    fn is_live(&self) -> bool {
        self.flags & FLAG_DELETED == 0
    }

    fn has_names_of_first(&self) -> bool {
        self.flags & FLAG_SAME_FIELDS != 0
    }

    /// Keeps a field name of the head, or a piece of one.
    fn keep_name<S: Sink>(&mut self, bytes: &[u8]) -> Result<(), ErrorKind> {
        if !S::VALUES {
            return Ok(());
        }
        self.names.push(bytes);
        if self.names.too_long {
            return Err(ErrorKind::LimitExceeded {
                what: "bytes of field names of a stream listpack",
                limit: FIELD_NAMES_BYTES_MAX as u64,
            });
        }
        Ok(())
    }

    /// Sends the name of the value at hand where the entry leaves it out.
    fn send_name<S: Sink>(&mut self, sink: &mut S) {
        if S::VALUES && self.has_names_of_first() && !self.name_sent {
            let index = usize::try_from(self.field_count - self.left).unwrap_or(usize::MAX);
            sink.event(Event::Whole(event::Part::Field, self.names.get(index)));
            self.name_sent = true;
        }
    }

    fn start_entry<S: Sink>(&mut self, sink: &mut S) -> Result<(), ErrorKind> {
        let counter = if self.flags & FLAG_DELETED != 0 {
            &mut self.deleted
        } else {
            &mut self.live
        };
        *counter = counter
            .checked_sub(1)
            .ok_or_else(|| malformed("stream listpack has more entries than it counts"))?;
        self.records += 1;
        // A deleted entry may lie above the last id after XSETID, and then above later entries too.
        if self.flags & FLAG_DELETED == 0 {
            if self.before.is_some_and(|before| before >= self.id) {
                return Err(malformed("stream entries out of order"));
            }
            self.before = Some(self.id);
            send(sink, Event::Entry(self.id.into()));
        }
        self.values = 0;
        if self.flags & FLAG_SAME_FIELDS != 0 {
            self.field_count = self.first_count;
            self.fields = self.first_fields;
            self.left = self.field_count;
            self.part = if self.left > 0 {
                Part::Value
            } else {
                Part::EntrySize
            };
        } else {
            self.fields = 0;
            self.part = Part::EntryFieldCount;
        }
        Ok(())
    }

    fn end_entry(&mut self, size: i64) -> Result<(), ErrorKind> {
        let expected = if self.flags & FLAG_SAME_FIELDS != 0 {
            self.field_count.checked_add(3)
        } else {
            self.field_count
                .checked_mul(2)
                .and_then(|items| items.checked_add(4))
        };
        if u64::try_from(size).ok() != expected {
            return Err(malformed("stream entry differs from the size kept behind it"));
        }
        if self.flags & FLAG_DELETED == 0 {
            self.length += 1;
            self.first_live.get_or_insert(self.id);
            let content = mix(mix(self.fields, self.values), u128::from(self.field_count));
            self.digest = mix(self.digest, mix(of_id(self.id), content));
        }
        self.part = Part::Flags;
        Ok(())
    }
}

impl Entries {
    fn item<S: Sink>(&mut self, item: Item<'_>, sink: &mut S) -> Result<(), ErrorKind> {
        match self.part {
            Part::Live => {
                self.live = count(number(item)?)?;
                self.part = Part::Deleted;
            }
            Part::Deleted => {
                self.deleted = count(number(item)?)?;
                self.part = Part::FieldCount;
            }
            Part::FieldCount => {
                self.first_count = count(number(item)?)?;
                self.first_fields = 0;
                self.names.clear();
                self.left = self.first_count;
                self.part = if self.left > 0 {
                    Part::FirstField
                } else {
                    Part::FirstEnd
                };
            }
            Part::FirstField => {
                self.first_fields = mix(self.first_fields, item.hash());
                match item {
                    Item::Bytes(bytes) => self.keep_name::<S>(bytes)?,
                    Item::Int(value) if S::VALUES => self.keep_name::<S>(value.to_string().as_bytes())?,
                    // The pieces of a long one have been kept, or were too many.
                    _ => self.keep_name::<S>(b"")?,
                }
                if S::VALUES {
                    self.names.ends.push(self.names.bytes.len());
                }
                self.left -= 1;
                if self.left == 0 {
                    self.part = Part::FirstEnd;
                }
            }
            Part::FirstEnd => {
                if number(item)? != 0 {
                    return Err(malformed("stream listpack without the end of its field names"));
                }
                self.part = Part::Flags;
            }
            Part::Flags => {
                self.flags = number(item)?;
                if self.flags & !(FLAG_DELETED | FLAG_SAME_FIELDS) != 0 {
                    return Err(malformed("unknown flags of a stream entry"));
                }
                self.part = Part::Millis;
            }
            Part::Millis => {
                self.id.0 = self.base.0.wrapping_add(number(item)?.cast_unsigned());
                self.part = Part::Sequence;
            }
            Part::Sequence => {
                self.id.1 = self.base.1.wrapping_add(number(item)?.cast_unsigned());
                self.start_entry(sink)?;
            }
            Part::EntryFieldCount => {
                self.field_count = count(number(item)?)?;
                self.left = self.field_count;
                self.part = if self.left > 0 {
                    Part::Field
                } else {
                    Part::EntrySize
                };
            }
            Part::Field => {
                if self.is_live() {
                    send_item(sink, event::Part::Field, item);
                }
                self.fields = mix(self.fields, item.hash());
                self.part = Part::Value;
            }
            Part::Value => {
                if self.is_live() {
                    self.send_name(sink);
                    send_item(sink, event::Part::Value, item);
                }
                self.name_sent = false;
                self.values = mix(self.values, item.hash());
                self.left -= 1;
                self.part = match self.left {
                    0 => Part::EntrySize,
                    _ if self.flags & FLAG_SAME_FIELDS != 0 => Part::Value,
                    _ => Part::Field,
                };
            }
            Part::EntrySize => self.end_entry(number(item)?)?,
        }
        Ok(())
    }
}

/// Entries that tell a sink what they take.
struct Told<'a, S> {
    entries: &'a mut Entries,
    sink: &'a mut S,
}

impl<S: Sink> Items for Told<'_, S> {
    fn expect(&mut self, _count: u64) {}

    #[inline]
    fn item(&mut self, item: Item<'_>) -> Result<(), ErrorKind> {
        self.entries.item(item, self.sink)
    }

    fn piece(&mut self, bytes: &[u8]) {
        match self.entries.part {
            // Too many of them are noticed at the end of the name.
            Part::FirstField if S::VALUES => self.entries.names.push(bytes),
            Part::Field if self.entries.is_live() => {
                send(self.sink, Event::Piece(event::Part::Field, bytes));
            }
            Part::Value if self.entries.is_live() => {
                self.entries.send_name(self.sink);
                send(self.sink, Event::Piece(event::Part::Value, bytes));
            }
            _ => {}
        }
    }
}

#[derive(Clone, Copy, Default, PartialEq)]
enum Phase {
    #[default]
    Begin,
    NodeId,
    Node,
    Counters,
    GroupName,
    GroupCounters,
    GroupPending,
    Consumers,
    ConsumerName,
    ConsumerCounters,
    ConsumerPending,
    Idempotence,
    Producer,
    ProducerMessages,
    MessageId,
    Message,
    MessageCounters,
    Done,
}

#[derive(Default)]
struct Group {
    name: u128,
    meta: u128,
    pending_left: u64,
    pending: u64,
    /// Sum of the hashes of pending ids, and of what is known of each delivery.
    pending_ids: u128,
    deliveries: u128,
    before: Option<Id>,
    consumers_left: u64,
    owned: u64,
    owned_ids: u128,
    consumers: u128,
}

#[derive(Default)]
struct Consumer {
    name: u128,
    left: u64,
    ids: u128,
    before: Option<Id>,
}

/// What a stream remembers of the messages of its producers.
#[derive(Default)]
struct Idempotence {
    duration_s: u64,
    ids_max: u64,
    producers: u64,
    producers_left: u64,
    producer: u128,
    messages_left: u64,
    message: u128,
    digest: u128,
    added: u64,
    duplicates: u64,
}

impl Idempotence {
    /// Nothing where no producer ever sent an id: so that a stream does not change by moving to a layout that
    /// stores these settings.
    fn digest(&self) -> Option<u128> {
        let is_used = self.producers > 0 || self.added > 0 || self.duplicates > 0;
        is_used.then(|| {
            let settings = mix(u128::from(self.duration_s), u128::from(self.ids_max));
            let counters = u128::from(self.added) << 64 | u128::from(self.duplicates);
            mix(mix(self.digest, settings), counters)
        })
    }
}

/// A stream that is being read.
#[derive(Default)]
pub(crate) struct Stream {
    generation: u8,
    phase: Phase,
    nodes_left: u64,
    entries: Entries,
    /// The length as stored.
    length: u64,
    last_id: Id,
    max_deleted: Id,
    added: u64,
    groups_left: u64,
    groups: u128,
    group_index: u64,
    group: Group,
    consumer: Consumer,
    idempotence: Idempotence,
    /// Names of groups, and of consumers within their group.
    names: Fingerprints,
}

impl Stream {
    /// Starts a stream of the first to the fourth layout.
    pub(crate) fn begin(&mut self, generation: u8) {
        let names = std::mem::take(&mut self.names);
        let field_names = std::mem::take(&mut self.entries.names);
        *self = Self {
            generation,
            names,
            ..Self::default()
        };
        self.entries.names = field_names;
    }

    /// Live entries.
    pub(crate) fn live_entries(&self) -> u64 {
        self.entries.length
    }

    /// What is odd about the stream, although engines accept it. Old engines could miscount the length when
    /// they deleted entries, and every later engine carries the wrong number on.
    pub(crate) fn oddity(&self) -> Option<&'static str> {
        (self.length != self.entries.length).then_some("stream length differs from its entries")
    }

    pub(crate) fn digest(&self) -> u128 {
        let mut digest = mix(self.entries.digest, u128::from(self.length));
        digest = mix(digest, of_id(self.last_id));
        digest = mix(digest, of_id(self.max_deleted));
        digest = mix(digest, u128::from(self.added));
        digest = mix(digest, self.groups);
        match self.idempotence.digest() {
            Some(idempotence) => mix(digest, idempotence),
            None => digest,
        }
    }

    pub(crate) fn run<S: Sink>(
        &mut self,
        r: &mut Reader<'_>,
        source: &mut Source,
        sink: &mut S,
    ) -> Step<()> {
        loop {
            match self.phase {
                Phase::Begin => {
                    self.nodes_left = r.length()?;
                    self.next_node();
                }
                Phase::NodeId => match source.item(r, |_| Ok(()))? {
                    Item::Bytes(&[a, b, c, d, e, f, g, h, i, j, k, l, m, n, o, p]) => {
                        let base = (
                            u64::from_be_bytes([a, b, c, d, e, f, g, h]),
                            u64::from_be_bytes([i, j, k, l, m, n, o, p]),
                        );
                        self.entries.begin_listpack(base);
                        self.phase = Phase::Node;
                    }
                    _ => return Err(malformed("stream listpack id is not 16 bytes").into()),
                },
                Phase::Node => {
                    let entries = &mut self.entries;
                    source.packed(r, Packing::Listpack, &mut Told { entries, sink })?;
                    self.entries.end_listpack()?;
                    self.nodes_left -= 1;
                    self.next_node();
                }
                Phase::Counters => self.counters(r, sink)?,
                Phase::GroupName => {
                    let item = source.item(r, pieces(sink, event::Part::Group))?;
                    send_item(sink, event::Part::Group, item);
                    let name = item.hash();
                    self.group_index += 1;
                    self.unique(name, 0, "consumer group")?;
                    self.group = Group {
                        name,
                        ..Group::default()
                    };
                    self.phase = Phase::GroupCounters;
                }
                Phase::GroupCounters => self.group_counters(r, sink)?,
                Phase::GroupPending => self.group_pending(r, sink)?,
                Phase::Consumers => {
                    self.group.consumers_left = r.length()?;
                    self.next_consumer()?;
                }
                Phase::ConsumerName => {
                    let item = source.item(r, pieces(sink, event::Part::Consumer))?;
                    send_item(sink, event::Part::Consumer, item);
                    let name = item.hash();
                    self.unique(name, self.group_index, "consumer")?;
                    self.consumer = Consumer {
                        name,
                        ..Consumer::default()
                    };
                    self.phase = Phase::ConsumerCounters;
                }
                Phase::ConsumerCounters => {
                    // Seen-time and active-time say when a client last called, not what the stream holds.
                    let seen_ms = i64::from_le_bytes(r.array()?);
                    let active_ms = match self.generation {
                        3.. => Some(i64::from_le_bytes(r.array()?)),
                        _ => None,
                    };
                    let pending = r.length()?;
                    send(
                        sink,
                        Event::Consumer {
                            seen_ms,
                            active_ms,
                            pending,
                        },
                    );
                    self.consumer.left = pending;
                    self.phase = Phase::ConsumerPending;
                }
                Phase::ConsumerPending => self.consumer_pending(r, sink)?,
                Phase::Idempotence
                | Phase::Producer
                | Phase::ProducerMessages
                | Phase::MessageId
                | Phase::Message
                | Phase::MessageCounters => self.idempotence(r, source, sink)?,
                Phase::Done => return Ok(()),
            }
            r.commit();
        }
    }

    fn next_node(&mut self) {
        self.phase = if self.nodes_left > 0 {
            Phase::NodeId
        } else {
            Phase::Counters
        };
    }

    fn unique(&mut self, name: u128, scope: u64, what: &'static str) -> Result<(), ErrorKind> {
        if self.names.insert(mix(name, u128::from(scope))) {
            Ok(())
        } else {
            Err(ErrorKind::Duplicate { what })
        }
    }

    fn counters<S: Sink>(&mut self, r: &mut Reader<'_>, sink: &mut S) -> Step<()> {
        let length = r.length()?;
        let last_id = (r.length()?, r.length()?);
        let (max_deleted, added) = if self.generation >= 2 {
            // The first id follows from the entries; engines compute it anew.
            let _first_id: Id = (r.length()?, r.length()?);
            ((r.length()?, r.length()?), r.length()?)
        } else {
            ((0, 0), length)
        };
        let groups = r.length()?;
        if self.entries.before.is_some_and(|last| last > last_id) {
            return Err(malformed("stream entry above the last id").into());
        }
        if added < length {
            return Err(malformed("stream counts fewer entries added than present").into());
        }
        self.length = length;
        self.last_id = last_id;
        self.max_deleted = max_deleted;
        self.added = added;
        self.groups_left = groups;
        send(
            sink,
            Event::Stream {
                length,
                last: last_id.into(),
                first: self.entries.first_live.unwrap_or_default().into(),
                max_deleted: max_deleted.into(),
                added,
            },
        );
        if groups > 0 || self.generation >= 4 {
            self.names.begin(MEMBERS_REMEMBERED_MAX as u64 / 64);
        }
        self.next_group();
        Ok(())
    }

    fn next_group(&mut self) {
        self.phase = match (self.groups_left, self.generation) {
            (0, 4..) => Phase::Idempotence,
            (0, _) => Phase::Done,
            _ => Phase::GroupName,
        };
    }

    /// Reads on in what the fourth layout has behind the groups.
    fn idempotence<S: Sink>(&mut self, r: &mut Reader<'_>, source: &mut Source, sink: &mut S) -> Step<()> {
        let known = &mut self.idempotence;
        match self.phase {
            Phase::Idempotence => {
                let (duration_s, ids_max, producers) = (r.length()?, r.length()?, r.length()?);
                (known.duration_s, known.ids_max) = (duration_s, ids_max);
                (known.producers, known.producers_left) = (producers, producers);
                send(
                    sink,
                    Event::Idempotence {
                        duration_s,
                        ids_max,
                        producers,
                    },
                );
                self.next_producer();
            }
            Phase::Producer => {
                let item = source.item(r, pieces(sink, event::Part::Producer))?;
                send_item(sink, event::Part::Producer, item);
                known.producer = mix(0x1d_e3, item.hash());
                let producer = known.producer;
                self.unique(producer, 0, "producer")?;
                self.phase = Phase::ProducerMessages;
            }
            Phase::ProducerMessages => {
                known.messages_left = r.length()?;
                self.next_message();
            }
            Phase::MessageId => {
                let item = source.item(r, pieces(sink, event::Part::MessageId))?;
                send_item(sink, event::Part::MessageId, item);
                known.message = mix(known.producer, item.hash());
                self.phase = Phase::Message;
            }
            Phase::Message => {
                let id: Id = (r.length()?, r.length()?);
                send(sink, Event::Message(id.into()));
                known.digest = known.digest.wrapping_add(mix(known.message, of_id(id)));
                known.messages_left -= 1;
                self.next_message();
            }
            _ => {
                let (added, duplicates) = (r.length()?, r.length()?);
                (known.added, known.duplicates) = (added, duplicates);
                send(sink, Event::MessagesCounted { added, duplicates });
                self.phase = Phase::Done;
            }
        }
        Ok(())
    }

    fn next_message(&mut self) {
        if self.idempotence.messages_left > 0 {
            self.phase = Phase::MessageId;
        } else {
            self.idempotence.producers_left -= 1;
            self.next_producer();
        }
    }

    fn next_producer(&mut self) {
        self.phase = if self.idempotence.producers_left > 0 {
            Phase::Producer
        } else {
            Phase::MessageCounters
        };
    }

    fn group_counters<S: Sink>(&mut self, r: &mut Reader<'_>, sink: &mut S) -> Step<()> {
        let last_id = (r.length()?, r.length()?);
        let read = if self.generation >= 2 {
            r.length()?
        } else {
            self.entries_read_by(last_id)
        };
        self.group.pending_left = r.length()?;
        self.group.pending = self.group.pending_left;
        send(
            sink,
            Event::Group {
                last: last_id.into(),
                read: (read != ENTRIES_READ_UNKNOWN).then_some(read),
                pending: self.group.pending,
            },
        );
        self.group.meta = mix(of_id(last_id), u128::from(read));
        self.phase = Phase::GroupPending;
        Ok(())
    }

    /// The entries read by a group of the first layout, which did not store it: what an engine assumes on
    /// loading such a group.
    fn entries_read_by(&self, id: Id) -> u64 {
        if self.added == 0 {
            return 0;
        }
        match (id.cmp(&self.last_id), self.entries.first_live) {
            (std::cmp::Ordering::Equal, _) | (std::cmp::Ordering::Less, None) => self.added,
            (std::cmp::Ordering::Less, Some(first)) if id < first => self.added.saturating_sub(self.length),
            (std::cmp::Ordering::Less, Some(first)) if id == first => {
                self.added.saturating_sub(self.length) + 1
            }
            _ => ENTRIES_READ_UNKNOWN,
        }
    }

    fn group_pending<S: Sink>(&mut self, r: &mut Reader<'_>, sink: &mut S) -> Step<()> {
        while self.group.pending_left > 0 {
            let id = read_id(r)?;
            let time: [u8; 8] = r.array()?;
            let deliveries = r.length()?;
            in_order(&mut self.group.before, id)?;
            send(
                sink,
                Event::Pending {
                    id: id.into(),
                    at_ms: i64::from_le_bytes(time),
                    deliveries,
                },
            );
            let hash = of_id(id);
            let delivery = u128::from(u64::from_le_bytes(time)) << 64 | u128::from(deliveries);
            self.group.pending_ids = self.group.pending_ids.wrapping_add(hash);
            self.group.deliveries = self.group.deliveries.wrapping_add(mix(hash, delivery));
            self.group.pending_left -= 1;
            r.commit();
        }
        self.phase = Phase::Consumers;
        Ok(())
    }

    fn consumer_pending<S: Sink>(&mut self, r: &mut Reader<'_>, sink: &mut S) -> Step<()> {
        while self.consumer.left > 0 {
            let id = read_id(r)?;
            in_order(&mut self.consumer.before, id)?;
            send(sink, Event::Owned(id.into()));
            self.consumer.ids = self.consumer.ids.wrapping_add(of_id(id));
            self.group.owned += 1;
            if self.group.owned > self.group.pending {
                return Err(malformed("consumer owns entries that are not pending in its group").into());
            }
            self.consumer.left -= 1;
            r.commit();
        }
        self.group.owned_ids = self.group.owned_ids.wrapping_add(self.consumer.ids);
        let consumer = mix(self.consumer.name, self.consumer.ids);
        self.group.consumers = self.group.consumers.wrapping_add(consumer);
        self.group.consumers_left -= 1;
        Ok(self.next_consumer()?)
    }

    fn next_consumer(&mut self) -> Result<(), ErrorKind> {
        if self.group.consumers_left > 0 {
            self.phase = Phase::ConsumerName;
            return Ok(());
        }
        let group = &self.group;
        // Ids are distinct within the group and within each consumer: equal counts and sums mean that each
        // pending id has exactly one owner.
        if group.owned != group.pending || group.owned_ids != group.pending_ids {
            return Err(malformed(
                "pending entries of a group differ from those of its consumers",
            ));
        }
        let content = mix(mix(group.meta, group.deliveries), group.consumers);
        self.groups = self.groups.wrapping_add(mix(group.name, content));
        self.groups_left -= 1;
        self.next_group();
        Ok(())
    }
}

fn read_id(r: &mut Reader<'_>) -> Step<Id> {
    Ok((u64::from_be_bytes(r.array()?), u64::from_be_bytes(r.array()?)))
}

fn in_order(before: &mut Option<Id>, id: Id) -> Result<(), ErrorKind> {
    match *before {
        Some(before) if before == id => Err(ErrorKind::Duplicate {
            what: "pending entry",
        }),
        Some(before) if before > id => Err(malformed("pending entries out of order")),
        _ => {
            *before = Some(id);
            Ok(())
        }
    }
}
