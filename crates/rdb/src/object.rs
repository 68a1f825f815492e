//! A value of any type, read from its first byte after the key to its last.

use crate::digest::mix;
use crate::distinct::{SharedSpill, Spill};
use crate::elements::{Elements, Item, Shape, Told, score_of_text};
use crate::error::{Defect, Step, malformed};
use crate::event::{Part, Sink, pieces, send_item};
use crate::module::Module;
use crate::opcode::{Family, FieldExpiry, Layout, Type, layout};
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
    /// The least expiry of a hash, and then its count or its packed fields.
    Least,
    /// The packed fields.
    AfterLeast,
    /// What comes next of a field: its expiry, itself, its value or its expiry.
    Expiring {
        left: u64,
        place: FieldExpiry,
    },
    /// A field whose expiry has been read.
    ExpiringField {
        left: u64,
        place: FieldExpiry,
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
    module: Module,
    /// The least expiry of the fields of a hash, in Unix milliseconds.
    least: u64,
    /// The value that has ended last. Returned by value it would be copied through memory for every key.
    value: Value,
}

/// What a value turned out to be.
#[derive(Clone, Copy)]
pub(crate) struct Value {
    pub(crate) kind: Type,
    pub(crate) elements: u64,
    /// Fields with an expiry.
    pub(crate) expiring: u64,
    pub(crate) digest: u128,
    /// The id of the module of a module's value.
    pub(crate) module: Option<u64>,
    /// What is odd about a value that engines accept.
    pub(crate) oddity: Option<&'static str>,
}

impl Value {
    /// Whether there is more to say than for most.
    #[inline]
    pub(crate) fn is_special(&self) -> bool {
        self.oddity.is_some() || self.module.is_some()
    }
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
            module: Module::default(),
            least: 0,
            value: Value {
                kind: Type::String,
                elements: 0,
                expiring: 0,
                digest: 0,
                module: None,
                oddity: None,
            },
        }
    }

    /// What the value that was read last turned out to be.
    #[inline]
    pub(crate) fn value(&self) -> &Value {
        &self.value
    }

    /// Starts a value of the given type code.
    #[inline]
    pub(crate) fn begin(&mut self, family: Family, code: u8) -> Result<(), Defect> {
        (self.kind, self.layout) = layout(family, code)?;
        self.phase = Phase::Begin;
        Ok(())
    }

    /// Where members that memory does not hold are kept.
    pub(crate) fn keep_members_in(&mut self, spill: Box<dyn Spill + Send>) {
        let spill = SharedSpill::new(spill);
        self.elements.keep_members_in(spill.clone());
        self.stream.keep_names_in(spill);
    }

    /// Whether every member of each value so far was compared with every other of it.
    pub(crate) fn is_exact(&self) -> bool {
        self.elements.is_exact() && self.stream.is_exact()
    }

    /// The type of the value that has begun.
    pub(crate) fn kind(&self) -> Type {
        self.kind
    }

    /// Reads on, to the end of the value.
    #[inline]
    pub(crate) fn run<S: Sink>(&mut self, r: &mut Reader<'_>, source: &mut Source, sink: &mut S) -> Step<()> {
        if self.layout == Layout::Text {
            let item = source.item(r, pieces(sink, Part::Text))?;
            send_item(sink, Part::Text, item);
            self.value = Value {
                kind: Type::String,
                elements: 1,
                expiring: 0,
                digest: tag(Type::String, item.hash()),
                module: None,
                oddity: None,
            };
            return Ok(());
        }
        self.run_elements(r, source, sink)
    }

    fn run_elements<S: Sink>(&mut self, r: &mut Reader<'_>, source: &mut Source, sink: &mut S) -> Step<()> {
        if self.phase == Phase::Begin {
            self.start(r)?;
        }
        match self.layout {
            Layout::Packed(_, packing) => self.packed(r, source, packing, sink)?,
            Layout::LeastThenPacked => {
                if self.phase == Phase::Least {
                    self.read_least(r)?;
                    r.commit();
                    self.phase = Phase::AfterLeast;
                }
                self.packed(r, source, Packing::Listpack, sink)?;
            }
            Layout::Intset => source.intset(r, &mut self.elements, sink)?,
            Layout::Stream(_) => {
                self.stream.run(r, source, sink)?;
                self.stream.end()?;
                self.value = Value {
                    kind: self.kind,
                    elements: self.stream.live_entries(),
                    expiring: 0,
                    digest: tag(self.kind, self.stream.digest()),
                    module: None,
                    oddity: self.stream.oddity(),
                };
                return Ok(());
            }
            Layout::Module => {
                self.module.run(r, source)?;
                self.value = Value {
                    kind: self.kind,
                    elements: 1,
                    expiring: 0,
                    digest: tag(self.kind, self.module.digest()),
                    module: Some(self.module.id()),
                    oddity: None,
                };
                return Ok(());
            }
            _ => self.counted(r, source, sink)?,
        }
        let digest = tag(self.kind, self.elements.end()?);
        self.value = Value {
            kind: self.kind,
            elements: self.elements.count(),
            expiring: self.elements.expiring(),
            digest,
            module: None,
            oddity: None,
        };
        Ok(())
    }

    #[inline]
    fn packed<S: Sink>(
        &mut self,
        r: &mut Reader<'_>,
        source: &mut Source,
        packing: Packing,
        sink: &mut S,
    ) -> Step<()> {
        let elements = &mut self.elements;
        source.packed(r, packing, &mut Told { elements, sink })
    }

    /// Reads the least expiry of the fields of a hash. Without any, engines store a number that is none.
    fn read_least(&mut self, r: &mut Reader<'_>) -> Step<()> {
        self.least = u64::from_le_bytes(r.array()?);
        Ok(())
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
            Layout::Expiring(FieldExpiry::FromLeast) => (Shape::Hash, false, Phase::Least, 0),
            Layout::Expiring(place) => {
                let left = r.length()?;
                let shape = match place {
                    FieldExpiry::After => Shape::ExpiringHash,
                    _ => Shape::Hash,
                };
                (shape, false, Phase::Expiring { left, place }, left)
            }
            Layout::LeastThenPacked => (Shape::ExpiringHash, false, Phase::Least, 0),
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
            Layout::Module => {
                self.module.begin();
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
    fn counted<S: Sink>(&mut self, r: &mut Reader<'_>, source: &mut Source, sink: &mut S) -> Step<()> {
        loop {
            match self.phase {
                Phase::Strings { left: 0 }
                | Phase::Expiring { left: 0, .. }
                | Phase::Scores { left: 0, .. }
                | Phase::Nodes { left: 0, .. }
                | Phase::NodeForm { left: 0 } => return Ok(()),
                Phase::Begin | Phase::AfterLeast => return Ok(()),
                Phase::Strings { mut left } => {
                    let pairs = self.layout == Layout::Strings(Shape::Hash);
                    while left > 0 {
                        let step = source.item(r, pieces(sink, self.elements.part()));
                        let item = match step {
                            Ok(item) => item,
                            Err(stop) => {
                                self.phase = Phase::Strings { left };
                                return Err(stop);
                            }
                        };
                        self.elements.item(item, sink)?;
                        if !pairs || !self.elements.is_open() {
                            left -= 1;
                        }
                    }
                    self.phase = Phase::Strings { left };
                }
                Phase::Least => {
                    self.read_least(r)?;
                    let left = r.length()?;
                    self.elements.expect_members(left);
                    self.phase = Phase::Expiring {
                        left,
                        place: FieldExpiry::FromLeast,
                    };
                    r.commit();
                }
                Phase::Expiring { left, place } => self.expiring(r, source, sink, left, place)?,
                Phase::ExpiringField { left, place } => {
                    self.string(r, source, sink)?;
                    if !self.elements.is_open() {
                        self.phase = Phase::Expiring {
                            left: left - 1,
                            place,
                        };
                    }
                }
                Phase::Scores { left, texts } => {
                    self.string(r, source, sink)?;
                    self.phase = Phase::Score { left, texts };
                }
                Phase::Score { left, texts } => {
                    let score = if texts {
                        score_text(r)?
                    } else {
                        f64::from_le_bytes(r.array()?)
                    };
                    self.elements.score(score, sink)?;
                    self.phase = Phase::Scores {
                        left: left - 1,
                        texts,
                    };
                    r.commit();
                }
                Phase::Nodes { left, packing } => {
                    self.node(r, source, packing, sink)?;
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
                    let item = source.item(r, pieces(sink, Part::Item))?;
                    if matches!(item, Item::Bytes([])) {
                        return Err(malformed("empty plain list node").into());
                    }
                    self.elements.item(item, sink)?;
                    self.phase = Phase::NodeForm { left: left - 1 };
                }
                Phase::PackedNode { left } => {
                    self.node(r, source, Packing::Listpack, sink)?;
                    self.phase = Phase::NodeForm { left: left - 1 };
                }
            }
        }
    }

    #[inline]
    fn string<S: Sink>(&mut self, r: &mut Reader<'_>, source: &mut Source, sink: &mut S) -> Step<()> {
        let item = source.item(r, pieces(sink, self.elements.part()))?;
        Ok(self.elements.item(item, sink)?)
    }

    /// Reads on in a field that has an expiry before or behind it.
    fn expiring<S: Sink>(
        &mut self,
        r: &mut Reader<'_>,
        source: &mut Source,
        sink: &mut S,
        left: u64,
        place: FieldExpiry,
    ) -> Step<()> {
        if place != FieldExpiry::After {
            let stored = r.length()?;
            let at_ms = match (stored, place) {
                (0, _) => None,
                // Counted from one, so that zero is free to mean none.
                (_, FieldExpiry::FromLeast) => Some(self.least.saturating_add(stored - 1)),
                _ => Some(stored),
            };
            self.elements.expiry_ahead(at_ms)?;
            self.phase = Phase::ExpiringField { left, place };
            r.commit();
            return Ok(());
        }
        if !self.elements.is_expiry_next() {
            return self.string(r, source, sink);
        }
        let at_ms = match i64::from_le_bytes(r.array()?) {
            -1 => None,
            at_ms @ 0.. => Some(at_ms),
            _ => return Err(malformed("field expiry is not a time").into()),
        };
        self.elements.expiry_behind(at_ms, sink);
        self.phase = Phase::Expiring {
            left: left - 1,
            place,
        };
        r.commit();
        Ok(())
    }

    /// Reads one packed node of a list.
    fn node<S: Sink>(
        &mut self,
        r: &mut Reader<'_>,
        source: &mut Source,
        packing: Packing,
        sink: &mut S,
    ) -> Step<()> {
        self.packed(r, source, packing, sink)?;
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
