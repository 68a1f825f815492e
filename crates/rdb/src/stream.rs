//! Streams: listpacks of entries, then counters, then consumer groups with their pending entries.
//!
//! A listpack starts with its count of live and of deleted entries and the field names of its first entry;
//! entries with the same names leave them out. Entry ids are differences from the id the listpack is filed
//! under.

use crate::digest::mix;
use crate::elements::{Item, Items};
use crate::error::{ErrorKind, Step, malformed};
use crate::fingerprint::{Fingerprints, MEMBERS_REMEMBERED_MAX};
use crate::reader::Reader;
use crate::source::{Packing, Source};

/// An entry id: milliseconds and sequence number.
type Id = (u64, u64);

const FLAG_DELETED: i64 = 1;
const FLAG_SAME_FIELDS: i64 = 2;
/// Entries read by a group that lost count of them.
const ENTRIES_READ_UNKNOWN: u64 = u64::MAX;

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

    fn start_entry(&mut self) -> Result<(), ErrorKind> {
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

impl Items for Entries {
    fn expect(&mut self, _count: u64) {}

    fn item(&mut self, item: Item<'_>) -> Result<(), ErrorKind> {
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
                self.left = self.first_count;
                self.part = if self.left > 0 {
                    Part::FirstField
                } else {
                    Part::FirstEnd
                };
            }
            Part::FirstField => {
                self.first_fields = mix(self.first_fields, item.hash());
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
                self.start_entry()?;
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
                self.fields = mix(self.fields, item.hash());
                self.part = Part::Value;
            }
            Part::Value => {
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
    /// Names of groups, and of consumers within their group.
    names: Fingerprints,
}

impl Stream {
    /// Starts a stream of the first, second or third layout.
    pub(crate) fn begin(&mut self, generation: u8) {
        let names = std::mem::take(&mut self.names);
        *self = Self {
            generation,
            names,
            ..Self::default()
        };
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
        mix(digest, self.groups)
    }

    pub(crate) fn run(&mut self, r: &mut Reader<'_>, source: &mut Source) -> Step<()> {
        loop {
            match self.phase {
                Phase::Begin => {
                    self.nodes_left = r.length()?;
                    self.next_node();
                }
                Phase::NodeId => match source.item(r)? {
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
                    source.packed(r, Packing::Listpack, &mut self.entries)?;
                    self.entries.end_listpack()?;
                    self.nodes_left -= 1;
                    self.next_node();
                }
                Phase::Counters => self.counters(r)?,
                Phase::GroupName => {
                    let name = source.item(r)?.hash();
                    self.group_index += 1;
                    self.unique(name, 0, "consumer group")?;
                    self.group = Group {
                        name,
                        ..Group::default()
                    };
                    self.phase = Phase::GroupCounters;
                }
                Phase::GroupCounters => self.group_counters(r)?,
                Phase::GroupPending => self.group_pending(r)?,
                Phase::Consumers => {
                    self.group.consumers_left = r.length()?;
                    self.next_consumer()?;
                }
                Phase::ConsumerName => {
                    let name = source.item(r)?.hash();
                    self.unique(name, self.group_index, "consumer")?;
                    self.consumer = Consumer {
                        name,
                        ..Consumer::default()
                    };
                    self.phase = Phase::ConsumerCounters;
                }
                Phase::ConsumerCounters => {
                    // Seen-time and active-time say when a client last called, not what the stream holds.
                    let _: [u8; 8] = r.array()?;
                    if self.generation >= 3 {
                        let _: [u8; 8] = r.array()?;
                    }
                    self.consumer.left = r.length()?;
                    self.phase = Phase::ConsumerPending;
                }
                Phase::ConsumerPending => self.consumer_pending(r)?,
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

    fn counters(&mut self, r: &mut Reader<'_>) -> Step<()> {
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
        if groups > 0 {
            self.names.begin(MEMBERS_REMEMBERED_MAX as u64 / 64);
        }
        self.next_group();
        Ok(())
    }

    fn next_group(&mut self) {
        self.phase = if self.groups_left > 0 {
            Phase::GroupName
        } else {
            Phase::Done
        };
    }

    fn group_counters(&mut self, r: &mut Reader<'_>) -> Step<()> {
        let last_id = (r.length()?, r.length()?);
        let read = if self.generation >= 2 {
            r.length()?
        } else {
            self.entries_read_by(last_id)
        };
        self.group.pending_left = r.length()?;
        self.group.pending = self.group.pending_left;
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

    fn group_pending(&mut self, r: &mut Reader<'_>) -> Step<()> {
        while self.group.pending_left > 0 {
            let id = read_id(r)?;
            let time: [u8; 8] = r.array()?;
            let deliveries = r.length()?;
            in_order(&mut self.group.before, id)?;
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

    fn consumer_pending(&mut self, r: &mut Reader<'_>) -> Step<()> {
        while self.consumer.left > 0 {
            let id = read_id(r)?;
            in_order(&mut self.consumer.before, id)?;
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
