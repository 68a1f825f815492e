//! A value of any type, read from its first byte after the key to its last.

use crate::digest::mix;
use crate::elements::{Elements, Item, Items, Shape, score_of_text};
use crate::error::{ErrorKind, Step, malformed};
use crate::opcode::{Layout, Type, layout};
use crate::reader::Reader;
use crate::source::{Packing, Source};
use crate::stream::Stream;

/// The form of a list node that is one plain string.
const NODE_PLAIN: u64 = 1;
/// The form of a list node that packs its items.
const NODE_PACKED: u64 = 2;

#[derive(Clone, Copy, PartialEq)]
enum Phase {
    /// The value has not begun: for some layouts, its count comes first.
    Begin,
    Strings {
        left: u64,
    },
    Scores {
        left: u64,
        texts: bool,
    },
    /// A member has been read, its score comes next.
    Score {
        left: u64,
        texts: bool,
    },
    Nodes {
        left: u64,
        packing: Packing,
    },
    NodeForm {
        left: u64,
    },
    PlainNode {
        left: u64,
    },
    PackedNode {
        left: u64,
    },
}

/// A value that is being read.
pub(crate) struct Object {
    kind: Type,
    layout: Layout,
    phase: Phase,
    elements: Elements,
    stream: Stream,
}

/// What a value turned out to be.
#[derive(Clone, Copy)]
pub(crate) struct Value {
    pub(crate) kind: Type,
    pub(crate) elements: u64,
    pub(crate) digest: u128,
    /// What is odd about a value that engines accept.
    pub(crate) oddity: Option<&'static str>,
}

/// Keeps equal contents of different types apart.
fn tag(kind: Type, digest: u128) -> u128 {
    mix(kind as u128 + 1, digest)
}

impl Object {
    pub(crate) fn new() -> Self {
        Self {
            kind: Type::String,
            layout: Layout::Text,
            phase: Phase::Begin,
            elements: Elements::default(),
            stream: Stream::default(),
        }
    }

    /// Starts a value of the given type code.
    #[inline]
    pub(crate) fn begin(&mut self, code: u8) -> Result<(), ErrorKind> {
        (self.kind, self.layout) = layout(code)?;
        self.phase = Phase::Begin;
        Ok(())
    }

    /// Reads on, to the end of the value.
    #[inline]
    pub(crate) fn run(&mut self, r: &mut Reader<'_>, source: &mut Source) -> Step<Value> {
        if self.layout == Layout::Text {
            let digest = tag(Type::String, source.item(r)?.hash());
            return Ok(Value {
                kind: Type::String,
                elements: 1,
                digest,
                oddity: None,
            });
        }
        self.run_elements(r, source)
    }

    fn run_elements(&mut self, r: &mut Reader<'_>, source: &mut Source) -> Step<Value> {
        if self.phase == Phase::Begin {
            self.start(r)?;
        }
        match self.layout {
            Layout::Packed(_, packing) => source.packed(r, packing, &mut self.elements)?,
            Layout::Intset => source.intset(r, &mut self.elements)?,
            Layout::Stream(_) => {
                self.stream.run(r, source)?;
                let digest = tag(self.kind, self.stream.digest());
                return Ok(Value {
                    kind: self.kind,
                    elements: self.stream.live_entries(),
                    digest,
                    oddity: self.stream.oddity(),
                });
            }
            _ => self.counted(r, source)?,
        }
        let digest = tag(self.kind, self.elements.end()?);
        Ok(Value {
            kind: self.kind,
            elements: self.elements.count(),
            digest,
            oddity: None,
        })
    }

    /// Reads the count, if the layout has one, and prepares for the members.
    fn start(&mut self, r: &mut Reader<'_>) -> Step<()> {
        let (shape, ordered, phase, left) = match self.layout {
            Layout::Strings(shape) => {
                let left = r.length()?;
                (shape, false, Phase::Strings { left }, left)
            }
            Layout::ScoreTexts | Layout::Scores => {
                let left = r.length()?;
                (
                    Shape::ZSet,
                    false,
                    Phase::Scores {
                        left,
                        texts: self.layout == Layout::ScoreTexts,
                    },
                    left,
                )
            }
            Layout::Nodes(packing) => {
                let left = r.length()?;
                (Shape::List, false, Phase::Nodes { left, packing }, left)
            }
            Layout::FormedNodes => {
                let left = r.length()?;
                (Shape::List, false, Phase::NodeForm { left }, left)
            }
            Layout::Packed(shape, _) => (shape, shape == Shape::ZSet, Phase::Strings { left: 0 }, 0),
            Layout::Intset | Layout::Text => (Shape::List, false, Phase::Strings { left: 0 }, 0),
            Layout::Stream(generation) => {
                self.stream.begin(generation);
                (Shape::List, false, Phase::Strings { left: 0 }, 0)
            }
        };
        r.commit();
        self.phase = phase;
        self.elements.begin(shape, ordered);
        self.elements.expect_members(left);
        Ok(())
    }

    /// Reads values that start with the count of their parts.
    fn counted(&mut self, r: &mut Reader<'_>, source: &mut Source) -> Step<()> {
        loop {
            match self.phase {
                Phase::Strings { left: 0 }
                | Phase::Scores { left: 0, .. }
                | Phase::Nodes { left: 0, .. }
                | Phase::NodeForm { left: 0 } => return Ok(()),
                Phase::Begin => return Ok(()),
                Phase::Strings { mut left } => {
                    let pairs = self.layout == Layout::Strings(Shape::Hash);
                    while left > 0 {
                        let step = source.item(r);
                        let item = match step {
                            Ok(item) => item,
                            Err(stop) => {
                                self.phase = Phase::Strings { left };
                                return Err(stop);
                            }
                        };
                        self.elements.item(item)?;
                        if !pairs || !self.elements.is_open() {
                            left -= 1;
                        }
                    }
                    self.phase = Phase::Strings { left };
                }
                Phase::Scores { left, texts } => {
                    self.elements.item(source.item(r)?)?;
                    self.phase = Phase::Score { left, texts };
                }
                Phase::Score { left, texts } => {
                    let score = if texts {
                        score_text(r)?
                    } else {
                        f64::from_le_bytes(r.array()?)
                    };
                    self.elements.score(score)?;
                    self.phase = Phase::Scores {
                        left: left - 1,
                        texts,
                    };
                    r.commit();
                }
                Phase::Nodes { left, packing } => {
                    self.node(r, source, packing)?;
                    self.phase = Phase::Nodes {
                        left: left - 1,
                        packing,
                    };
                }
                Phase::NodeForm { left } => {
                    self.phase = match r.length()? {
                        NODE_PLAIN => Phase::PlainNode { left },
                        NODE_PACKED => Phase::PackedNode { left },
                        _ => return Err(malformed("list node of an unknown form").into()),
                    };
                    r.commit();
                }
                Phase::PlainNode { left } => {
                    let item = source.item(r)?;
                    if matches!(item, Item::Bytes([])) {
                        return Err(malformed("empty plain list node").into());
                    }
                    self.elements.item(item)?;
                    self.phase = Phase::NodeForm { left: left - 1 };
                }
                Phase::PackedNode { left } => {
                    self.node(r, source, Packing::Listpack)?;
                    self.phase = Phase::NodeForm { left: left - 1 };
                }
            }
        }
    }

    /// Reads one packed node of a list.
    fn node(&mut self, r: &mut Reader<'_>, source: &mut Source, packing: Packing) -> Step<()> {
        source.packed(r, packing, &mut self.elements)?;
        Ok(self.elements.end_node()?)
    }
}

/// Reads a score of the text form: a length byte and the text, or a byte above 252 alone.
fn score_text(r: &mut Reader<'_>) -> Step<f64> {
    Ok(match r.byte()? {
        255 => f64::NEG_INFINITY,
        254 => f64::INFINITY,
        253 => f64::NAN,
        length => score_of_text(r.take(usize::from(length))?)?,
    })
}
