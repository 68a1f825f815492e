//! Streams: listpacks of entries, then counters, then consumer groups with their pending entries, then, since
//! Redis 8.6, what is remembered of the messages of producers.

mod entries;

use crate::digest::mix;
use crate::distinct::SharedSpill;
use crate::elements::Item;
use crate::error::{Defect, ErrorKind, Step, malformed};
use crate::event::{self, Event, Sink, pieces, send, send_item};
use crate::fingerprint::Fingerprints;
use crate::reader::Reader;
use crate::source::{Packing, Source};

/// The oddity of a stream of a few old engines.
pub(crate) const MISCOUNTED: &str = "stream length differs from its entries";

use entries::{Entries, Id, Told, of_id};

/// Entries read by a group that lost count of them.
const ENTRIES_READ_UNKNOWN: u64 = u64::MAX;
/// Names of groups, consumers and producers that most streams stay below.
const NAMES_EXPECTED: u64 = 2048;

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
        (self.length != self.entries.length).then_some(MISCOUNTED)
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

    pub(crate) fn run<S: Sink>(&mut self, r: &mut Reader<'_>, source: &mut Source, sink: &mut S) -> Step<()> {
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

    fn unique(&mut self, name: u128, scope: u64, what: &'static str) -> Result<(), Defect> {
        if self.names.insert(mix(name, u128::from(scope))) {
            Ok(())
        } else {
            Err(self.names.defect(what))
        }
    }

    /// Compares names with each other that memory did not hold; to be called once, when the stream has been read.
    pub(crate) fn end(&mut self) -> Result<(), Defect> {
        match self.names.finish() {
            true => Ok(()),
            false => Err(self.names.defect("name in a stream")),
        }
    }

    /// Where names that memory does not hold are kept.
    pub(crate) fn keep_names_in(&mut self, spill: SharedSpill) {
        self.names.keep_in(spill);
    }

    /// Whether every name in each stream so far was compared with every other of it.
    pub(crate) fn is_exact(&self) -> bool {
        self.names.is_exact()
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
            self.names.begin(NAMES_EXPECTED);
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

    fn next_consumer(&mut self) -> Result<(), Defect> {
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

fn in_order(before: &mut Option<Id>, id: Id) -> Result<(), Defect> {
    match *before {
        Some(before) if before == id => Err(Box::new(ErrorKind::Duplicate {
            what: "pending entry",
        })),
        Some(before) if before > id => Err(malformed("pending entries out of order")),
        _ => {
            *before = Some(id);
            Ok(())
        }
    }
}
