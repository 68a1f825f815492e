//! The members of a list, set, hash or sorted set, gathered into a count and a digest.

use crate::digest::{canonical_integer, mix, of_bytes, of_integer, push_decimal};
use crate::distinct::SharedSpill;
use crate::error::{Defect, malformed};
use crate::event::{Event, Fragment, Part, Sink, send, send_item};
use crate::fingerprint::Fingerprints;

/// One string inside a value.
#[derive(Clone, Copy)]
pub(crate) enum Item<'a> {
    /// Its bytes.
    Bytes(&'a [u8]),
    /// The number whose decimal form it is.
    Int(i64),
    /// The high and low half of the hash of a string that was too long to be kept. Halves, since a whole would make items of
    /// another alignment, whose copies are dear.
    Hashed([u64; 2]),
}

impl Item<'_> {
    pub(crate) fn hashed(hash: u128) -> Self {
        Self::Hashed([(hash >> 64) as u64, hash as u64])
    }

    #[inline]
    pub(crate) fn hash(&self) -> u128 {
        match *self {
            Self::Bytes(bytes) => of_bytes(bytes),
            Self::Int(value) => of_integer(value),
            Self::Hashed([high, low]) => u128::from(high) << 64 | u128::from(low),
        }
    }
}

/// Takes the strings of a packed value in order.
pub(crate) trait Items {
    /// Called once per packed value, before its items, with the number of items it announces.
    fn expect(&mut self, count: u64);
    fn item(&mut self, item: Item<'_>) -> Result<(), Defect>;
    /// The length, or a piece, of a string that then comes as [`Item::Hashed`].
    fn piece(&mut self, fragment: Fragment<'_>);
}

#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub(crate) enum Shape {
    #[default]
    List,
    Set,
    Hash,
    /// A hash each of whose fields is followed by its expiry.
    ExpiringHash,
    ZSet,
}

/// What comes next.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
enum Next {
    /// An item, member or field.
    #[default]
    First,
    /// The value of a field, or the score of a member.
    Second,
    /// The expiry of a field.
    Expiry,
}

/// Longest member for which the order among equal scores is checked.
const ORDER_MEMBER_MAX: usize = 512;
/// The greatest expiry of a field that Redis can hold: two below 2^48.
pub(crate) const FIELD_EXPIRY_MAX: u64 = (1 << 48) - 2;

#[derive(Default)]
pub(crate) struct Elements {
    shape: Shape,
    /// Whether the encoding keeps members in score order.
    ordered: bool,
    next: Next,
    first: u128,
    /// Of a field, with its value.
    pair: u128,
    digest: u128,
    count: u64,
    expiring: u64,
    /// The expiry of the next field, where it comes before it.
    expiry: Option<i64>,
    /// The expiry of the field before; zero is none.
    expiry_before: Option<i64>,
    count_before_node: u64,
    seen: Fingerprints,
    score: Option<f64>,
    member: Vec<u8>,
    member_known: bool,
    member_before: Vec<u8>,
    member_before_known: bool,
}

impl Elements {
    #[inline]
    pub(crate) fn begin(&mut self, shape: Shape, ordered: bool) {
        self.shape = shape;
        self.ordered = ordered;
        self.next = Next::First;
        self.digest = 0;
        self.count = 0;
        self.expiring = 0;
        self.expiry = None;
        self.expiry_before = None;
        self.count_before_node = 0;
        self.score = None;
    }

    /// Where members that memory does not hold are kept.
    pub(crate) fn keep_members_in(&mut self, spill: SharedSpill) {
        self.seen.keep_in(spill);
    }

    /// Whether every member of each value so far was compared with every other of it.
    pub(crate) fn is_exact(&self) -> bool {
        self.seen.is_exact()
    }

    /// Makes room to find duplicates among `count` members.
    #[inline]
    pub(crate) fn expect_members(&mut self, count: u64) {
        if self.shape != Shape::List {
            self.seen.begin(count);
        }
    }

    #[inline]
    pub(crate) fn count(&self) -> u64 {
        self.count
    }

    /// Fields with an expiry.
    #[inline]
    pub(crate) fn expiring(&self) -> u64 {
        self.expiring
    }

    /// Whether a field waits for its value or expiry, or a member for its score.
    #[inline]
    pub(crate) fn is_open(&self) -> bool {
        self.next != Next::First
    }

    /// Whether a field waits for its expiry.
    #[inline]
    pub(crate) fn is_expiry_next(&self) -> bool {
        self.next == Next::Expiry
    }

    /// What the next string is.
    #[inline]
    pub(crate) fn part(&self) -> Part {
        match (self.shape, self.next) {
            (Shape::List, _) => Part::Item,
            (Shape::Hash | Shape::ExpiringHash, Next::First) => Part::Field,
            (Shape::Hash | Shape::ExpiringHash, _) => Part::Value,
            (Shape::Set | Shape::ZSet, _) => Part::Member,
        }
    }

    /// Refuses a node of a list that added nothing to it.
    #[inline]
    pub(crate) fn end_node(&mut self) -> Result<(), Defect> {
        if self.count == self.count_before_node {
            return Err(malformed("empty list node"));
        }
        self.count_before_node = self.count;
        Ok(())
    }

    /// Takes a member that cannot be a duplicate.
    #[inline]
    pub(crate) fn distinct<S: Sink>(&mut self, value: i64, sink: &mut S) {
        send_item(sink, Part::Member, Item::Int(value));
        self.digest = self.digest.wrapping_add(of_integer(value));
        self.count += 1;
    }

    #[inline]
    fn unique(&mut self, hash: u128) -> Result<(), Defect> {
        if self.seen.insert(hash) {
            return Ok(());
        }
        Err(self.duplicate())
    }

    #[cold]
    fn duplicate(&mut self) -> Defect {
        let what = match self.shape {
            Shape::Hash | Shape::ExpiringHash => "hash field",
            Shape::ZSet => "sorted set member",
            _ => "set member",
        };
        self.seen.defect(what)
    }

    fn keep_member(&mut self, item: Item<'_>) {
        std::mem::swap(&mut self.member, &mut self.member_before);
        self.member_before_known = self.member_known;
        self.member.clear();
        self.member_known = true;
        match item {
            Item::Bytes(bytes) if bytes.len() <= ORDER_MEMBER_MAX => self.member.extend_from_slice(bytes),
            Item::Int(value) => push_decimal(&mut self.member, value),
            _ => self.member_known = false,
        }
    }

    /// Takes the next string.
    #[inline]
    pub(crate) fn item<S: Sink>(&mut self, item: Item<'_>, sink: &mut S) -> Result<(), Defect> {
        match (self.shape, self.next) {
            (Shape::Hash, Next::First) => {
                send_item(sink, Part::Field, item);
                self.first = item.hash();
                self.next = Next::Second;
                self.unique(self.first)
            }
            (Shape::Hash, _) => {
                send_item(sink, Part::Value, item);
                let pair = mix(self.first, item.hash());
                match self.expiry {
                    None => {
                        self.digest = self.digest.wrapping_add(pair);
                        self.count += 1;
                        self.next = Next::First;
                    }
                    expiry => {
                        self.pair = pair;
                        self.expiry = None;
                        self.end_field(expiry, sink);
                    }
                }
                Ok(())
            }
            (Shape::List, _) => {
                send_item(sink, Part::Item, item);
                self.digest = mix(self.digest, item.hash());
                self.count += 1;
                Ok(())
            }
            (Shape::Set, _) => {
                send_item(sink, Part::Member, item);
                let hash = item.hash();
                self.digest = self.digest.wrapping_add(hash);
                self.count += 1;
                self.unique(hash)
            }
            (Shape::ZSet, Next::First) => {
                send_item(sink, Part::Member, item);
                self.first = item.hash();
                self.next = Next::Second;
                if self.ordered {
                    self.keep_member(item);
                }
                self.unique(self.first)
            }
            (Shape::ZSet, _) => self.score(packed_score(item)?, sink),
            (Shape::ExpiringHash, Next::First) => {
                send_item(sink, Part::Field, item);
                self.first = item.hash();
                self.next = Next::Second;
                self.unique(self.first)
            }
            (Shape::ExpiringHash, Next::Second) => {
                send_item(sink, Part::Value, item);
                self.pair = mix(self.first, item.hash());
                self.next = Next::Expiry;
                Ok(())
            }
            (Shape::ExpiringHash, Next::Expiry) => self.packed_expiry(item, sink),
        }
    }

    /// Takes a field with its value and expiry into the digest. Without an expiry it counts like a field of a
    /// hash that knows none.
    fn end_field<S: Sink>(&mut self, expiry: Option<i64>, sink: &mut S) {
        let mut field = self.pair;
        if let Some(at_ms) = expiry {
            send(sink, Event::FieldExpiry(at_ms));
            field = mix(field, u128::from(at_ms.cast_unsigned()));
            self.expiring += 1;
        }
        self.digest = self.digest.wrapping_add(field);
        self.count += 1;
        self.next = Next::First;
    }

    /// Takes the expiry of the field that comes next, in Unix milliseconds.
    pub(crate) fn expiry_ahead(&mut self, at_ms: Option<u64>) -> Result<(), Defect> {
        self.expiry = at_ms.map(field_expiry).transpose()?;
        Ok(())
    }

    /// Takes the expiry of the field and value before, in Unix milliseconds.
    pub(crate) fn expiry_behind<S: Sink>(&mut self, at_ms: Option<i64>, sink: &mut S) {
        self.end_field(at_ms, sink);
    }

    /// The expiry in a packed hash: zero for none. Such fields follow those that expire, which ascend.
    fn packed_expiry<S: Sink>(&mut self, item: Item<'_>, sink: &mut S) -> Result<(), Defect> {
        let value = match item {
            Item::Int(value) => Some(value),
            Item::Bytes(text) => canonical_integer(text),
            Item::Hashed(_) => None,
        };
        let at_ms = value
            .and_then(|value| u64::try_from(value).ok())
            .ok_or_else(|| malformed("field expiry is not a time"))?;
        let at_ms = field_expiry(at_ms)?;
        let is_ordered = match self.expiry_before {
            Some(before) => at_ms == 0 || (before != 0 && before <= at_ms),
            None => true,
        };
        if !is_ordered {
            return Err(malformed("hash fields out of the order of their expiry"));
        }
        self.expiry_before = Some(at_ms);
        self.end_field((at_ms != 0).then_some(at_ms), sink);
        Ok(())
    }

    /// Takes the score of the member before.
    pub(crate) fn score<S: Sink>(&mut self, score: f64, sink: &mut S) -> Result<(), Defect> {
        if score.is_nan() {
            return Err(malformed("score is not a number"));
        }
        if self.ordered {
            let in_order = match self.score {
                Some(before) if before == score => {
                    !(self.member_known && self.member_before_known) || self.member_before < self.member
                }
                Some(before) => before < score,
                None => true,
            };
            if !in_order {
                return Err(malformed("sorted set members out of order"));
            }
            self.score = Some(score);
        }
        send(sink, Event::Score(score));
        let bits = if score == 0.0 { 0 } else { score.to_bits() };
        self.digest = self.digest.wrapping_add(mix(self.first, u128::from(bits)));
        self.count += 1;
        self.next = Next::First;
        Ok(())
    }

    /// Checks that the value is whole, and returns its digest.
    #[inline]
    pub(crate) fn end(&mut self) -> Result<u128, Defect> {
        if self.is_open() {
            return Err(match self.shape {
                Shape::ExpiringHash => malformed("items of a hash are not field, value and expiry in turn"),
                _ => malformed("odd number of items in a value of pairs"),
            });
        }
        if self.count == 0 {
            return Err(malformed("empty value"));
        }
        if !self.seen.finish() {
            return Err(self.duplicate());
        }
        Ok(mix(self.digest, u128::from(self.count)))
    }
}

fn field_expiry(at_ms: u64) -> Result<i64, Defect> {
    match i64::try_from(at_ms) {
        Ok(at_ms) if at_ms.cast_unsigned() <= FIELD_EXPIRY_MAX => Ok(at_ms),
        _ => Err(malformed("field expiry is beyond what an engine can hold")),
    }
}

/// The score in a packed sorted set.
#[inline]
fn packed_score(item: Item<'_>) -> Result<f64, Defect> {
    match item {
        Item::Int(value) => Ok(value as f64),
        Item::Bytes(text) => match canonical_integer(text) {
            Some(value) => Ok(value as f64),
            None => score_of_text(text),
        },
        Item::Hashed(_) => Err(malformed("score text is too long")),
    }
}

/// The number a score text stands for.
pub(crate) fn score_of_text(text: &[u8]) -> Result<f64, Defect> {
    std::str::from_utf8(text)
        .ok()
        .and_then(|text| text.parse().ok())
        .ok_or_else(|| malformed("score text is not a number"))
}

/// Elements that tell a sink what they take.
pub(crate) struct Told<'a, S> {
    pub(crate) elements: &'a mut Elements,
    pub(crate) sink: &'a mut S,
}

impl<S: Sink> Items for Told<'_, S> {
    fn expect(&mut self, count: u64) {
        let elements = &mut *self.elements;
        elements.expect_members(match elements.shape {
            Shape::Hash | Shape::ZSet => count.div_ceil(2),
            Shape::ExpiringHash => count.div_ceil(3),
            _ => count,
        });
    }

    #[inline]
    fn item(&mut self, item: Item<'_>) -> Result<(), Defect> {
        self.elements.item(item, self.sink)
    }

    fn piece(&mut self, fragment: Fragment<'_>) {
        send(self.sink, fragment.event(self.elements.part()));
    }
}
