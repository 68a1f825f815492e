//! The members of a list, set, hash or sorted set, gathered into a count and a digest.

use crate::digest::{canonical_integer, mix, of_bytes, of_integer, push_decimal};
use crate::error::{ErrorKind, malformed};
use crate::fingerprint::Fingerprints;

/// One string inside a value.
#[derive(Clone, Copy)]
pub(crate) enum Item<'a> {
    /// Its bytes.
    Bytes(&'a [u8]),
    /// The number whose decimal form it is.
    Int(i64),
    /// The hash of a string that was too long to be kept.
    Hashed(u128),
}

impl Item<'_> {
    #[inline]
    pub(crate) fn hash(&self) -> u128 {
        match *self {
            Self::Bytes(bytes) => of_bytes(bytes),
            Self::Int(value) => of_integer(value),
            Self::Hashed(hash) => hash,
        }
    }
}

/// Takes the strings of a packed value in order.
pub(crate) trait Items {
    /// Called once per packed value, before its items, with the number of items it announces.
    fn expect(&mut self, count: u64);
    fn item(&mut self, item: Item<'_>) -> Result<(), ErrorKind>;
}

#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub(crate) enum Shape {
    #[default]
    List,
    Set,
    Hash,
    ZSet,
}

/// Longest member for which the order among equal scores is checked.
const ORDER_MEMBER_MAX: usize = 512;

#[derive(Default)]
pub(crate) struct Elements {
    shape: Shape,
    /// Whether the encoding keeps members in score order.
    ordered: bool,
    /// A field waits for its value, or a member for its score.
    open: bool,
    first: u128,
    digest: u128,
    count: u64,
    count_before_node: u64,
    seen: Fingerprints,
    score: Option<f64>,
    member: Vec<u8>,
    member_known: bool,
    member_before: Vec<u8>,
    member_before_known: bool,
}

impl Elements {
    pub(crate) fn begin(&mut self, shape: Shape, ordered: bool) {
        self.shape = shape;
        self.ordered = ordered;
        self.open = false;
        self.digest = 0;
        self.count = 0;
        self.count_before_node = 0;
        self.score = None;
    }

    /// Makes room to find duplicates among `count` members.
    pub(crate) fn expect_members(&mut self, count: u64) {
        if self.shape != Shape::List {
            self.seen.begin(count);
        }
    }

    pub(crate) fn count(&self) -> u64 {
        self.count
    }

    /// Whether a field waits for its value, or a member for its score.
    #[inline]
    pub(crate) fn is_open(&self) -> bool {
        self.open
    }

    /// Refuses a node of a list that added nothing to it.
    pub(crate) fn end_node(&mut self) -> Result<(), ErrorKind> {
        if self.count == self.count_before_node {
            return Err(malformed("empty list node"));
        }
        self.count_before_node = self.count;
        Ok(())
    }

    /// Takes a member that cannot be a duplicate.
    #[inline]
    pub(crate) fn distinct(&mut self, value: i64) {
        self.digest = self.digest.wrapping_add(of_integer(value));
        self.count += 1;
    }

    fn unique(&mut self, hash: u128) -> Result<(), ErrorKind> {
        if self.seen.insert(hash) {
            return Ok(());
        }
        let what = match self.shape {
            Shape::Hash => "hash field",
            Shape::ZSet => "sorted set member",
            _ => "set member",
        };
        Err(ErrorKind::Duplicate { what })
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

    /// Takes the score of the member before.
    pub(crate) fn score(&mut self, score: f64) -> Result<(), ErrorKind> {
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
        let bits = if score == 0.0 { 0 } else { score.to_bits() };
        self.digest = self.digest.wrapping_add(mix(self.first, u128::from(bits)));
        self.count += 1;
        self.open = false;
        Ok(())
    }

    /// Checks that the value is whole, and returns its digest.
    pub(crate) fn end(&self) -> Result<u128, ErrorKind> {
        if self.open {
            return Err(malformed("odd number of items in a value of pairs"));
        }
        if self.count == 0 {
            return Err(malformed("empty value"));
        }
        Ok(mix(self.digest, u128::from(self.count)))
    }
}

/// The number a score text stands for.
pub(crate) fn score_of_text(text: &[u8]) -> Result<f64, ErrorKind> {
    std::str::from_utf8(text)
        .ok()
        .and_then(|text| text.parse().ok())
        .ok_or_else(|| malformed("score text is not a number"))
}

impl Items for Elements {
    fn expect(&mut self, count: u64) {
        self.expect_members(match self.shape {
            Shape::Hash | Shape::ZSet => count.div_ceil(2),
            _ => count,
        });
    }

    #[inline]
    fn item(&mut self, item: Item<'_>) -> Result<(), ErrorKind> {
        if self.shape == Shape::ZSet && self.open {
            return self.score(match item {
                Item::Int(value) => value as f64,
                Item::Bytes(text) => match canonical_integer(text) {
                    Some(value) => value as f64,
                    None => score_of_text(text)?,
                },
                Item::Hashed(_) => return Err(malformed("score text is too long")),
            });
        }
        let hash = item.hash();
        match self.shape {
            Shape::List => {
                self.digest = mix(self.digest, hash);
                self.count += 1;
            }
            Shape::Set => {
                self.unique(hash)?;
                self.digest = self.digest.wrapping_add(hash);
                self.count += 1;
            }
            Shape::Hash if self.open => {
                self.digest = self.digest.wrapping_add(mix(self.first, hash));
                self.count += 1;
                self.open = false;
            }
            Shape::Hash | Shape::ZSet => {
                self.unique(hash)?;
                self.first = hash;
                self.open = true;
                if self.ordered {
                    self.keep_member(item);
                }
            }
        }
        Ok(())
    }
}
