//! The entries of a stream, over all its listpacks.
//!
//! A listpack starts with its count of live and of deleted entries and the field names of its first entry;
//! entries with the same names leave them out. Entry ids are differences from the id the listpack is filed
//! under.

use crate::digest::mix;
use crate::elements::{Item, Items};
use crate::error::{Defect, ErrorKind, malformed};
use crate::event::{self, Event, Fragment, Sink, send, send_item};

/// An entry id: milliseconds and sequence number.
pub(super) type Id = (u64, u64);

const FLAG_DELETED: i64 = 1;
const FLAG_SAME_FIELDS: i64 = 2;
/// Bytes of the field names at the head of a listpack that are kept for a sink that wants values. Engines
/// start another listpack after 4 KiB.
const FIELD_NAMES_BYTES_MAX: usize = 4 * 1024 * 1024;

pub(super) fn of_id(id: Id) -> u128 {
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
pub(super) struct Entries {
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
    pub(super) before: Option<Id>,
    pub(super) first_live: Option<Id>,
    pub(super) length: u64,
    pub(super) digest: u128,
    pub(super) names: FieldNames,
    /// The name that belongs to the value at hand has been sent.
    name_sent: bool,
}

/// The field names at the head of a listpack, one after the other.
#[derive(Default)]
pub(super) struct FieldNames {
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

fn count(value: i64) -> Result<u64, Defect> {
    u64::try_from(value).map_err(|_| malformed("negative count in a stream"))
}

fn number(item: Item<'_>) -> Result<i64, Defect> {
    match item {
        Item::Int(value) => Ok(value),
        _ => Err(malformed("text in place of a number in a stream")),
    }
}

impl Entries {
    pub(super) fn begin_listpack(&mut self, base: Id) {
        self.base = base;
        self.part = Part::Live;
        self.records = 0;
    }

    pub(super) fn end_listpack(&self) -> Result<(), Defect> {
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
    fn keep_name<S: Sink>(&mut self, bytes: &[u8]) -> Result<(), Defect> {
        if !S::VALUES {
            return Ok(());
        }
        self.names.push(bytes);
        if self.names.too_long {
            return Err(Box::new(ErrorKind::LimitExceeded {
                what: "bytes of field names of a stream listpack",
                limit: FIELD_NAMES_BYTES_MAX as u64,
            }));
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

    fn start_entry<S: Sink>(&mut self, sink: &mut S) -> Result<(), Defect> {
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

    fn end_entry(&mut self, size: i64) -> Result<(), Defect> {
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
    fn item<S: Sink>(&mut self, item: Item<'_>, sink: &mut S) -> Result<(), Defect> {
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
pub(super) struct Told<'a, S> {
    pub(super) entries: &'a mut Entries,
    pub(super) sink: &'a mut S,
}

impl<S: Sink> Items for Told<'_, S> {
    fn expect(&mut self, _count: u64) {}

    #[inline]
    fn item(&mut self, item: Item<'_>) -> Result<(), Defect> {
        self.entries.item(item, self.sink)
    }

    fn piece(&mut self, fragment: Fragment<'_>) {
        match (self.entries.part, fragment) {
            // Too many of them are noticed at the end of the name.
            (Part::FirstField, Fragment::Bytes(bytes)) if S::VALUES => self.entries.names.push(bytes),
            (Part::Field, _) if self.entries.is_live() => {
                send(self.sink, fragment.event(event::Part::Field));
            }
            (Part::Value, _) if self.entries.is_live() => {
                self.entries.send_name(self.sink);
                send(self.sink, fragment.event(event::Part::Value));
            }
            _ => {}
        }
    }
}
