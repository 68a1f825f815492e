//! Strings of an RDB file: read whole while they are small, or passed on in pieces.

use crate::digest::{Hasher, of_bytes, of_integer, push_decimal};
use crate::elements::{Elements, Item, Items};
use crate::error::{Defect, Step, malformed};
use crate::event::{Fragment, Sink};
use crate::intset::Intset;
use crate::listpack::Listpack;
use crate::lzf;
use crate::reader::{Carry, Length, Progress, Reader, WHOLE_MAX, progress};
use crate::ziplist::Ziplist;
use crate::zipmap::Zipmap;

/// Plain bytes up to which a compressed string that is at hand is decompressed as a whole.
const DECOMPRESS_WHOLE_MAX: u64 = 256 * 1024;

/// The packed form inside a string.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Packing {
    Listpack,
    Ziplist,
    Zipmap,
}

enum Head {
    Int(i64),
    Raw(u64),
    Lzf { packed: u64, plain: u64 },
}

/// What is left of a string that is passed on in pieces.
enum Body {
    None,
    Raw { left: u64 },
    Lzf { packed: u64, plain: u64 },
}

enum Opened<'a> {
    Int(i64),
    Bytes(&'a [u8]),
    /// So many bytes at the start of the scratch buffer.
    Scratch(usize),
    /// The string's length; its bytes must be pumped.
    Long(u64),
}

/// Reads the length, or the number itself.
#[inline]
fn head(r: &mut Reader<'_>) -> Step<Head> {
    Ok(match r.length_field()? {
        Length::Plain(length) => Head::Raw(length),
        Length::Encoded(0) => Head::Int(i64::from(i8::from_le_bytes(r.array()?))),
        Length::Encoded(1) => Head::Int(i64::from(i16::from_le_bytes(r.array()?))),
        Length::Encoded(2) => Head::Int(i64::from(i32::from_le_bytes(r.array()?))),
        Length::Encoded(3) => Head::Lzf {
            packed: r.length()?,
            plain: r.length()?,
        },
        Length::Encoded(_) => return Err(malformed("string of an unknown encoding").into()),
    })
}

struct Strings {
    scratch: Vec<u8>,
    window: lzf::Window,
    body: Body,
}

impl Strings {
    /// Starts the next string: whole if it is small or uncompressed and at hand.
    #[inline]
    fn open<'b>(&mut self, r: &mut Reader<'b>) -> Step<Opened<'b>> {
        match head(r)? {
            Head::Int(value) => {
                r.commit();
                Ok(Opened::Int(value))
            }
            Head::Raw(length) => {
                let at_hand = usize::try_from(length)
                    .ok()
                    .and_then(|length| r.rest().get(..length));
                if let Some(bytes) = at_hand {
                    r.advance(bytes.len());
                    r.commit();
                    return Ok(Opened::Bytes(bytes));
                }
                if length <= WHOLE_MAX {
                    return Err(r.need(length as usize));
                }
                r.commit();
                self.body = Body::Raw { left: length };
                Ok(Opened::Long(length))
            }
            Head::Lzf { packed, plain } => self.open_compressed(r, packed, plain),
        }
    }

    fn open_compressed<'b>(&mut self, r: &mut Reader<'b>, packed: u64, plain: u64) -> Step<Opened<'b>> {
        if packed == 0 || plain == 0 {
            return Err(malformed("empty compressed string").into());
        }
        if plain > lzf::yield_max(packed) {
            return Err(malformed("compressed string claims more than its bytes can yield").into());
        }
        let at_hand = usize::try_from(packed)
            .ok()
            .and_then(|packed| r.rest().get(..packed));
        match at_hand {
            Some(bytes) if plain <= DECOMPRESS_WHOLE_MAX => {
                let plain = plain as usize;
                if self.scratch.len() < plain + lzf::SLACK {
                    self.scratch.resize(plain + lzf::SLACK, 0);
                }
                lzf::decompress(r.rest(), bytes.len(), &mut self.scratch, plain)?;
                r.advance(bytes.len());
                r.commit();
                Ok(Opened::Scratch(plain))
            }
            None if packed <= WHOLE_MAX && plain <= DECOMPRESS_WHOLE_MAX => Err(r.need(packed as usize)),
            _ => {
                r.commit();
                self.window.begin();
                self.body = Body::Lzf { packed, plain };
                Ok(Opened::Long(plain))
            }
        }
    }

    /// Passes on what is at hand of a long string; done when it returns without a stop.
    fn pump(&mut self, r: &mut Reader<'_>, mut pass: impl FnMut(&[u8]) -> Result<(), Defect>) -> Step<()> {
        let rest = r.rest();
        let at_hand = |left: u64| &rest[..rest.len().min(usize::try_from(left).unwrap_or(usize::MAX))];
        match &mut self.body {
            Body::None => return Ok(()),
            Body::Raw { left } => {
                let piece = at_hand(*left);
                if !piece.is_empty() {
                    pass(piece)?;
                }
                *left -= piece.len() as u64;
                r.advance(piece.len());
                r.commit();
                if *left > 0 {
                    return Err(r.need(1));
                }
            }
            Body::Lzf { packed, plain } => {
                let piece = at_hand(*packed);
                let used = self.window.feed(piece, |bytes| {
                    *plain = plain
                        .checked_sub(bytes.len() as u64)
                        .ok_or_else(|| malformed("compressed string does not yield its length"))?;
                    pass(bytes)
                })?;
                let whole_input = piece.len() as u64 == *packed;
                *packed -= used as u64;
                r.advance(used);
                r.commit();
                if whole_input {
                    if *packed > 0 || *plain > 0 {
                        return Err(malformed("compressed string does not yield its length").into());
                    }
                } else {
                    return Err(r.need(piece.len() - used + 1));
                }
            }
        }
        self.body = Body::None;
        Ok(())
    }
}

/// The parser of the packed value at hand, and what it has not finished.
#[derive(Default)]
struct Packed {
    listpack: Listpack,
    ziplist: Ziplist,
    zipmap: Zipmap,
    intset: Intset,
    carry: Carry,
    /// Bytes read of the piece that was read last.
    reached: usize,
}

impl Packed {
    fn begin(&mut self, packing: Packing, size: u64) {
        match packing {
            Packing::Listpack => self.listpack.begin(size),
            Packing::Ziplist => self.ziplist.begin(size),
            Packing::Zipmap => self.zipmap.begin(size),
        }
    }

    fn end(&mut self, packing: Packing) -> Result<(), Defect> {
        self.carry.clear();
        let (done, what) = match packing {
            Packing::Listpack => (self.listpack.is_done(), "listpack reaches beyond its string"),
            Packing::Ziplist => (self.ziplist.is_done(), "ziplist reaches beyond its string"),
            Packing::Zipmap => (self.zipmap.is_done(), "zipmap reaches beyond its string"),
        };
        if done { Ok(()) } else { Err(malformed(what)) }
    }

    #[inline]
    fn run<A: Items>(
        &mut self,
        packing: Packing,
        bytes: &[u8],
        hasher: &mut Hasher,
        items: &mut A,
    ) -> Result<Progress, Defect> {
        let mut r = Reader::new(bytes);
        let step = match packing {
            Packing::Listpack => self.listpack.run(&mut r, hasher, items),
            Packing::Ziplist => self.ziplist.run(&mut r, hasher, items),
            Packing::Zipmap => self.zipmap.run(&mut r, hasher, items),
        };
        self.reached = r.pos();
        settle(&r, step)
    }

    fn whole<A: Items>(
        &mut self,
        packing: Packing,
        bytes: &[u8],
        hasher: &mut Hasher,
        items: &mut A,
    ) -> Result<(), Defect> {
        self.begin(packing, bytes.len() as u64);
        self.run(packing, bytes, hasher, items)?;
        self.end(packing)
    }

    fn whole_intset<S: Sink>(
        &mut self,
        bytes: &[u8],
        set: &mut Elements,
        sink: &mut S,
    ) -> Result<(), Defect> {
        self.intset.begin(bytes.len() as u64);
        self.run_intset(bytes, set, sink)?;
        self.end_intset()
    }

    fn end_intset(&mut self) -> Result<(), Defect> {
        self.carry.clear();
        if self.intset.is_done() {
            Ok(())
        } else {
            Err(malformed("intset reaches beyond its string"))
        }
    }

    fn run_intset<S: Sink>(
        &mut self,
        bytes: &[u8],
        set: &mut Elements,
        sink: &mut S,
    ) -> Result<Progress, Defect> {
        let mut r = Reader::new(bytes);
        let step = self.intset.run(&mut r, set, sink);
        self.reached = r.pos();
        settle(&r, step)
    }
}

/// Copies up to `limit` bytes; returns the length. The hash is taken of the original: the copy, just written, would be read in
/// pieces of other sizes, which has to wait.
#[inline]
fn keep(bytes: &[u8], out: &mut Vec<u8>, limit: usize, hash: &mut u128) -> u64 {
    *hash = of_bytes(bytes);
    out.clear();
    out.extend_from_slice(&bytes[..bytes.len().min(limit)]);
    bytes.len() as u64
}

fn settle(r: &Reader<'_>, step: Step<()>) -> Result<Progress, Defect> {
    match step {
        Ok(()) => Ok(Progress {
            consumed: r.committed(),
            need: 1,
        }),
        Err(stop) => progress(r, stop),
    }
}

/// Reads strings for whoever wants their hash, their bytes or their packed items.
///
/// A call that is stopped for want of bytes is repeated as it was; the place inside a long string is kept
/// here.
pub(crate) struct Source {
    strings: Strings,
    hasher: Hasher,
    packed: Packed,
    long: bool,
    long_bytes: u64,
    /// The hash of the string that [`bytes`](Self::bytes) read last, the whole of it.
    hash: u128,
}

impl Source {
    pub(crate) fn new() -> Self {
        Self {
            strings: Strings {
                scratch: Vec::new(),
                window: lzf::Window::default(),
                body: Body::None,
            },
            hasher: Hasher::default(),
            packed: Packed::default(),
            long: false,
            long_bytes: 0,
            hash: 0,
        }
    }

    pub(crate) fn buffered_bytes(&self) -> usize {
        self.packed.carry.len() + self.strings.scratch.len()
    }

    /// Reads a string as an item: its bytes or number, or its hash if it is long. A long one is passed to
    /// `pieces` on the way.
    #[inline]
    pub(crate) fn item<'s, 'b: 's>(
        &'s mut self,
        r: &mut Reader<'b>,
        mut pieces: impl FnMut(Fragment<'_>) -> Result<(), Defect>,
    ) -> Step<Item<'s>> {
        if !self.long {
            match self.strings.open(r)? {
                Opened::Int(value) => return Ok(Item::Int(value)),
                Opened::Bytes(bytes) => return Ok(Item::Bytes(bytes)),
                Opened::Scratch(length) => return Ok(Item::Bytes(&self.strings.scratch[..length])),
                Opened::Long(length) => {
                    self.hasher.reset();
                    self.long = true;
                    pieces(Fragment::Length(length))?;
                }
            }
        }
        self.long_item(r, pieces)
    }

    #[cold]
    fn long_item<'a>(
        &mut self,
        r: &mut Reader<'_>,
        mut pieces: impl FnMut(Fragment<'_>) -> Result<(), Defect>,
    ) -> Step<Item<'a>> {
        let hasher = &mut self.hasher;
        self.strings.pump(r, |bytes| {
            hasher.update(bytes);
            pieces(Fragment::Bytes(bytes))
        })?;
        self.long = false;
        Ok(Item::hashed(self.hasher.finish()))
    }

    /// The hash of the string that [`bytes`](Self::bytes) read last, the whole of it.
    #[inline]
    pub(crate) fn hash(&self) -> u128 {
        self.hash
    }

    /// Reads a string into `out`, at most `limit` bytes of it, and returns its full length.
    #[inline]
    pub(crate) fn bytes(&mut self, r: &mut Reader<'_>, out: &mut Vec<u8>, limit: usize) -> Step<u64> {
        if !self.long {
            match self.strings.open(r)? {
                Opened::Int(value) => {
                    out.clear();
                    push_decimal(out, value);
                    self.hash = of_integer(value);
                    return Ok(out.len() as u64);
                }
                Opened::Bytes(bytes) => return Ok(keep(bytes, out, limit, &mut self.hash)),
                Opened::Scratch(length) => {
                    return Ok(keep(&self.strings.scratch[..length], out, limit, &mut self.hash));
                }
                Opened::Long(length) => {
                    out.clear();
                    self.hasher.reset();
                    self.long = true;
                    self.long_bytes = length;
                }
            }
        }
        let hasher = &mut self.hasher;
        self.strings.pump(r, |bytes| {
            hasher.update(bytes);
            let room = limit.saturating_sub(out.len()).min(bytes.len());
            out.extend_from_slice(&bytes[..room]);
            Ok(())
        })?;
        self.long = false;
        self.hash = self.hasher.finish();
        Ok(self.long_bytes)
    }

    /// Reads a string as a packed value and passes its items on.
    pub(crate) fn packed<A: Items>(
        &mut self,
        r: &mut Reader<'_>,
        packing: Packing,
        items: &mut A,
    ) -> Step<()> {
        if !self.long {
            match self.strings.open(r)? {
                Opened::Int(_) => return Err(malformed("number in place of a packed value").into()),
                Opened::Bytes(bytes) => {
                    let whole = self.packed.whole(packing, bytes, &mut self.hasher, items);
                    return Ok(whole.inspect_err(|_| r.point_back(bytes.len() - self.packed.reached))?);
                }
                Opened::Scratch(length) => {
                    let bytes = &self.strings.scratch[..length];
                    return Ok(self.packed.whole(packing, bytes, &mut self.hasher, items)?);
                }
                Opened::Long(length) => {
                    self.packed.begin(packing, length);
                    self.long = true;
                }
            }
        }
        let mut carry = std::mem::take(&mut self.packed.carry);
        let (packed, hasher) = (&mut self.packed, &mut self.hasher);
        let step = self.strings.pump(r, |bytes| {
            carry.feed(bytes, |bytes| packed.run(packing, bytes, hasher, items))
        });
        self.packed.carry = carry;
        step?;
        self.long = false;
        Ok(self.packed.end(packing)?)
    }

    /// Reads a string as an intset.
    pub(crate) fn intset<S: Sink>(
        &mut self,
        r: &mut Reader<'_>,
        set: &mut Elements,
        sink: &mut S,
    ) -> Step<()> {
        if !self.long {
            match self.strings.open(r)? {
                Opened::Int(_) => return Err(malformed("number in place of an intset").into()),
                Opened::Bytes(bytes) => {
                    let whole = self.packed.whole_intset(bytes, set, sink);
                    return Ok(whole.inspect_err(|_| r.point_back(bytes.len() - self.packed.reached))?);
                }
                Opened::Scratch(length) => {
                    let bytes = &self.strings.scratch[..length];
                    return Ok(self.packed.whole_intset(bytes, set, sink)?);
                }
                Opened::Long(length) => {
                    self.packed.intset.begin(length);
                    self.long = true;
                }
            }
        }
        let mut carry = std::mem::take(&mut self.packed.carry);
        let packed = &mut self.packed;
        let step = self.strings.pump(r, |bytes| {
            carry.feed(bytes, |bytes| packed.run_intset(bytes, set, sink))
        });
        self.packed.carry = carry;
        step?;
        self.long = false;
        Ok(self.packed.end_intset()?)
    }
}
