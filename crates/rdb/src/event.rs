//! The content of values, told to a [`Sink`] that wants it, in the order of the file and in bounded pieces.
//!
//! A value is [`Sink::begin`], its events, and [`Sink::key`]. Per type, in order:
//!
//! | type | events |
//! |---|---|
//! | string | one [`Part::Text`] |
//! | list | a [`Part::Item`] per item |
//! | set | a [`Part::Member`] per member |
//! | sorted set | a [`Part::Member`] and its [`Event::Score`], per member |
//! | hash | a [`Part::Field`], its [`Part::Value`] and, where the field expires, [`Event::FieldExpiry`], per field |
//! | stream | [`Event::Entry`] with [`Part::Field`] and [`Part::Value`] in turn, per live entry; [`Event::Stream`]; per group its name as [`Part::Group`], [`Event::Group`], [`Event::Pending`] per pending entry, and per consumer its name as [`Part::Consumer`], [`Event::Consumer`] and [`Event::Owned`] per entry it owns; at last, of some, [`Event::Idempotence`] and per producer its id as [`Part::Producer`] and [`Part::MessageId`] with [`Event::Message`] per message |
//! | module | none |
//!
//! Events are sent as the bytes are read: a value can still turn out to be wrong after some of them. Sets,
//! hashes and sorted sets come in the order of the file, which for most encodings means nothing.

use crate::elements::Item;
use crate::error::Defect;
use crate::opcode::Type;

/// A key whose value follows.
#[derive(Debug, Clone, Copy)]
pub struct KeyStart<'a> {
    /// The database.
    pub db: u32,
    /// The key, or its first [`KEY_BYTES_MAX`](crate::KEY_BYTES_MAX) bytes.
    pub key: &'a [u8],
    /// The type of the value.
    pub kind: Type,
    /// The RDB type code, which tells the encoding.
    pub type_code: u8,
    /// Expiry, in Unix milliseconds; may be past.
    pub expire_at_ms: Option<i64>,
}

/// What a string of a value is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Part {
    /// The whole value: a string.
    Text,
    /// An item of a list.
    Item,
    /// A member of a set or a sorted set.
    Member,
    /// A field of a hash or of a stream entry.
    Field,
    /// The value of the field before.
    Value,
    /// The name of a consumer group.
    Group,
    /// The name of a consumer.
    Consumer,
    /// The id of a producer of idempotent messages.
    Producer,
    /// The id a producer gave to a message.
    MessageId,
}

/// An id of a stream entry.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct StreamId {
    /// Milliseconds.
    pub ms: u64,
    /// Number within the millisecond.
    pub sequence: u64,
}

impl std::fmt::Display for StreamId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}-{}", self.ms, self.sequence)
    }
}

impl From<(u64, u64)> for StreamId {
    fn from((ms, sequence): (u64, u64)) -> Self {
        Self { ms, sequence }
    }
}

/// A piece of a value. Numbers that are stored as numbers come as their decimal text.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Event<'a> {
    /// A whole string.
    Whole(Part, &'a [u8]),
    /// A string too long to be held begins: of so many bytes, which follow in pieces.
    Long(Part, u64),
    /// A piece of a string too long to be held; more follow, then [`Event::End`].
    Piece(Part, &'a [u8]),
    /// The end of a string that came in pieces.
    End(Part),
    /// The score of the member before; never NaN.
    Score(f64),
    /// When the field before expires, in Unix milliseconds.
    FieldExpiry(i64),
    /// A live entry of a stream; its fields and values follow.
    Entry(StreamId),
    /// The counters of a stream, after its entries.
    Stream {
        /// The length as stored, which a few engines miscounted.
        length: u64,
        /// The id given last.
        last: StreamId,
        /// The first live entry; 0-0 without one.
        first: StreamId,
        /// The greatest id that was deleted; 0-0 where none was or the layout did not store it.
        max_deleted: StreamId,
        /// Entries ever added.
        added: u64,
    },
    /// What the group whose name came before has read.
    Group {
        /// The id delivered last.
        last: StreamId,
        /// Entries read; `None` if the group lost count.
        read: Option<u64>,
        /// Pending entries: so many [`Event::Pending`] follow.
        pending: u64,
    },
    /// An entry that was delivered and not acknowledged, in ascending order.
    Pending {
        /// The entry.
        id: StreamId,
        /// When it was delivered last, in Unix milliseconds.
        at_ms: i64,
        /// How often.
        deliveries: u64,
    },
    /// The consumer whose name came before.
    Consumer {
        /// When it last called, in Unix milliseconds.
        seen_ms: i64,
        /// When it last read or claimed an entry, in Unix milliseconds; only later layouts store it.
        active_ms: Option<i64>,
        /// Entries it owns: so many [`Event::Owned`] follow.
        pending: u64,
    },
    /// An entry that the consumer owns, in ascending order; it was among the group's pending ones.
    Owned(StreamId),
    /// How a stream tells messages apart that a producer sent twice (Redis 8.6).
    Idempotence {
        /// Seconds for which a message id is remembered.
        duration_s: u64,
        /// Message ids remembered per producer.
        ids_max: u64,
        /// Producers: so many follow.
        producers: u64,
    },
    /// The entry that the message became whose id came before.
    Message(StreamId),
    /// Messages with an id ever added, and those refused as repeated.
    MessagesCounted {
        /// Added.
        added: u64,
        /// Refused.
        duplicates: u64,
    },
}

/// A key that has been read with its whole value.
#[derive(Debug, Clone, Copy)]
pub struct KeySummary<'a> {
    /// The database.
    pub db: u32,
    /// The key, or the first [`KEY_BYTES_MAX`](crate::KEY_BYTES_MAX) bytes of a longer one.
    pub key: &'a [u8],
    /// As [`hash_of_key`](crate::hash_of_key), of the whole key.
    pub key_hash: u128,
    /// Bytes of the whole key.
    pub key_bytes: u64,
    /// The type of the value.
    pub kind: Type,
    /// The RDB type code, which tells the encoding.
    pub type_code: u8,
    /// Expiry, in Unix milliseconds; may be past.
    pub expire_at_ms: Option<i64>,
    /// Members, fields, items or live entries; 1 for a string and a module's value.
    pub elements: u64,
    /// Fields of a hash that expire by themselves.
    pub expiring_elements: u64,
    /// Serialized bytes of the entry, from its first opcode to the end of its value.
    pub bytes: u64,
    /// Digest of the logical value, whatever its encoding.
    pub value_digest: crate::Digest,
    /// Absolute offset of the first opcode of the entry (expiry, idle time and frequency belong to it).
    pub offset: u64,
}

/// Receives what a [`Validator`](crate::Validator) finds, in file order and before the file's checksum is known
/// to be right.
pub trait Sink {
    /// Whether [`begin`](Self::begin) and [`event`](Self::event) are called. A constant, so that a sink which
    /// does not want values pays nothing for them.
    const VALUES: bool = false;

    /// A key with a valid value.
    fn key(&mut self, key: &KeySummary<'_>);

    /// The code of a function library.
    fn function(&mut self, code: &[u8]) {
        let _ = code;
    }

    /// A key whose value begins.
    fn begin(&mut self, key: &KeyStart<'_>) {
        let _ = key;
    }

    /// A piece of the value that has begun.
    fn event(&mut self, event: Event<'_>) {
        let _ = event;
    }
}

impl Sink for () {
    fn key(&mut self, _key: &KeySummary<'_>) {}
}

/// Sends an event to a sink that wants values.
#[inline]
pub(crate) fn send<S: Sink>(sink: &mut S, event: Event<'_>) {
    if S::VALUES {
        sink.event(event);
    }
}

/// Sends a string to a sink that wants values; of one that came in pieces, its end.
#[inline]
pub(crate) fn send_item<S: Sink>(sink: &mut S, part: Part, item: Item<'_>) {
    if S::VALUES {
        match item {
            Item::Bytes(bytes) => sink.event(Event::Whole(part, bytes)),
            Item::Int(value) => {
                let mut text = Vec::with_capacity(20);
                crate::digest::push_decimal(&mut text, value);
                sink.event(Event::Whole(part, &text));
            }
            Item::Hashed(_) => sink.event(Event::End(part)),
        }
    }
}

/// What is known of a string that is too long to be held.
#[derive(Clone, Copy)]
pub(crate) enum Fragment<'a> {
    /// Its length, before anything else.
    Length(u64),
    /// Its next bytes.
    Bytes(&'a [u8]),
}

impl<'a> Fragment<'a> {
    /// What a sink is told of it.
    pub(crate) fn event(self, part: Part) -> Event<'a> {
        match self {
            Self::Length(length) => Event::Long(part, length),
            Self::Bytes(bytes) => Event::Piece(part, bytes),
        }
    }
}

/// Passes a long string on to a sink that wants values.
#[inline]
pub(crate) fn pieces<S: Sink>(sink: &mut S, part: Part) -> impl FnMut(Fragment<'_>) -> Result<(), Defect> {
    move |fragment| {
        send(sink, fragment.event(part));
        Ok(())
    }
}
