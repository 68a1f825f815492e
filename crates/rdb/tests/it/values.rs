//! The events that tell values.

use crate::build::*;
use rdb::{Event, KeyStart, KeySummary, Part, Sink, Validator};

/// Events as lines; pieces of one string are joined.
#[derive(Default)]
struct Lines {
    lines: Vec<String>,
    pieces: Vec<u8>,
    announced: Option<u64>,
}

fn shown(bytes: &[u8]) -> String {
    match bytes.len() {
        0..=40 => bytes.escape_ascii().to_string(),
        len => format!("{len} bytes"),
    }
}

impl Sink for Lines {
    const VALUES: bool = true;

    fn begin(&mut self, key: &KeyStart<'_>) {
        self.lines.push(format!("{} {}", key.kind, shown(key.key)));
    }

    fn event(&mut self, event: Event<'_>) {
        let line = match event {
            Event::Piece(_, bytes) => {
                self.pieces.extend_from_slice(bytes);
                return;
            }
            Event::Long(_, length) => {
                assert_eq!(self.announced.replace(length), None);
                return;
            }
            Event::End(part) if self.announced.take() != Some(self.pieces.len() as u64) => {
                format!("{part:?} of another length than was announced")
            }
            Event::End(part) => format!("{part:?} {}", shown(&std::mem::take(&mut self.pieces))),
            Event::Whole(part, bytes) => {
                assert!(self.pieces.is_empty());
                format!("{part:?} {}", shown(bytes))
            }
            event => format!("{event:?}"),
        };
        self.lines.push(line);
    }

    fn key(&mut self, key: &KeySummary<'_>) {
        self.lines.push(format!("end of {}", key.elements));
    }
}

fn lines(bytes: &[u8], chunk: usize) -> Vec<String> {
    let (mut validator, mut lines) = (Validator::new(), Lines::default());
    for piece in bytes.chunks(chunk) {
        validator.feed(piece, &mut lines).unwrap();
    }
    validator.finish().unwrap();
    lines.lines
}

fn events(code: u8, value: &[u8]) -> Vec<String> {
    let bytes = file(13, &entry(code, b"k", value));
    let whole = lines(&bytes, bytes.len());
    assert_eq!(lines(&bytes, 1), whole, "type {code}");
    assert_eq!(lines(&bytes, 1000), whole, "type {code}");
    whole[1..whole.len() - 1].to_vec()
}

#[test]
fn values_are_told_alike_in_every_encoding() {
    use E::{I, S};
    assert_eq!(events(0, b"\x02hi"), ["Text hi"]);
    assert_eq!(events(0, &[0xc1, 0x39, 0x30]), ["Text 12345"]);
    let long = vec![b'z'; 400_000];
    assert_eq!(events(0, &string(&long)), ["Text 400000 bytes"]);
    assert_eq!(events(0, &lzf_literals(&long)), ["Text 400000 bytes"]);
    let big = vec![b'b'; 20_000];
    let list = ["Item a", "Item -5", "Item 20000 bytes"];
    let items = [S(b"a"), I(-5), S(&big)];
    assert_eq!(
        events(1, &counted(3, &[string(b"a"), vec![0xc0, 0xfb], string(&big)])),
        list
    );
    assert_eq!(events(10, &string(&ziplist(&items))), list);
    assert_eq!(events(14, &counted(1, &[string(&ziplist(&items))])), list);
    let node = [length(2), string(&listpack(&items[..2])), length(1), string(&big)];
    assert_eq!(events(18, &counted(2, &node)), list);
    let set = ["Member -9", "Member 0", "Member 70000"];
    assert_eq!(events(11, &string(&intset(4, &[-9, 0, 70_000]))), set);
    assert_eq!(events(20, &string(&listpack(&[I(-9), I(0), I(70_000)]))), set);
    let hash = ["Field f", "Value 20000 bytes", "Field g", "Value 7"];
    assert_eq!(
        events(9, &string(&zipmap(&[(b"f", &big), (b"g", b"7")], 1))),
        hash
    );
    assert_eq!(
        events(16, &string(&listpack(&[S(b"f"), S(&big), S(b"g"), I(7)]))),
        hash
    );
    assert_eq!(
        events(
            4,
            &counted(2, &[string(b"f"), string(&big), string(b"g"), vec![0xc0, 7]])
        ),
        hash
    );
    let zset = [
        "Member a",
        "Score(-inf)",
        "Member b",
        "Score(0.5)",
        "Member c",
        "Score(3.0)",
    ];
    assert_eq!(
        events(
            17,
            &string(&listpack(&[
                S(b"a"),
                S(b"-inf"),
                S(b"b"),
                S(b"0.5"),
                S(b"c"),
                I(3)
            ]))
        ),
        zset
    );
    let texts = [
        string(b"a"),
        vec![255],
        string(b"b"),
        string(b"0.5"),
        string(b"c"),
        string(b"3"),
    ];
    assert_eq!(events(3, &counted(3, &texts)), zset);
}

#[test]
fn field_expiry_is_told_behind_its_value_wherever_it_is_stored() {
    let at = FIELD_EXPIRES_AT;
    let told = [
        "Field soon".to_owned(),
        "Value 1".to_owned(),
        format!("FieldExpiry({at})"),
        "Field later".to_owned(),
        "Value text".to_owned(),
        format!("FieldExpiry({})", at + 5000),
        "Field never".to_owned(),
        "Value ".to_owned(),
        "Field 4".to_owned(),
        "Value four".to_owned(),
    ];
    for code in [22, 23, 24, 25] {
        assert_eq!(
            events(code, &expiring_hash(code, rdb::Family::Redis)),
            told,
            "type {code}"
        );
    }
    let bytes = file_of(
        rdb::Family::Valkey,
        80,
        &entry(22, b"k", &expiring_hash(22, rdb::Family::Valkey)),
    );
    assert_eq!(lines(&bytes, 3)[1..11], told);
}

#[test]
fn streams_are_told_with_the_field_names_that_entries_leave_out() {
    let told = events(26, &stream(4, 0));
    let entries = [
        "Entry(StreamId { ms: 1000, sequence: 9 })",
        "Field a",
        "Value 1a",
        "Field b",
        "Value 77",
        "Entry(StreamId { ms: 1005, sequence: 10 })",
        "Field other",
        "Value value",
        "Entry(StreamId { ms: 2000, sequence: 9 })",
        "Field c",
        "Value v",
        "Entry(StreamId { ms: 2300, sequence: 0 })",
        "Field c",
        "Value -100000",
    ];
    assert_eq!(told[..entries.len()], entries);
    let rest: Vec<&str> = told[entries.len()..]
        .iter()
        .map(|line| line.split(['(', ' ']).next().unwrap())
        .collect();
    let kinds = [
        "Stream",
        "Group",
        "Group",
        "Pending",
        "Pending",
        "Pending",
        "Consumer",
        "Consumer",
        "Owned",
        "Owned",
        "Consumer",
        "Consumer",
        "Owned",
        "Group",
        "Group",
        "Idempotence",
        "Producer",
        "MessageId",
        "Message",
        "MessagesCounted",
    ];
    assert_eq!(rest, kinds);
    let at = |i: usize| told[entries.len() + i].as_str();
    assert_eq!(at(1), "Group workers");
    assert_eq!(
        at(2),
        "Group { last: StreamId { ms: 2300, sequence: 0 }, read: Some(4), pending: 3 }"
    );
    assert_eq!(
        at(4),
        "Pending { id: StreamId { ms: 1005, sequence: 10 }, at_ms: 1700000000000, deliveries: 70 }"
    );
    assert_eq!(at(6), "Consumer alice");
    assert_eq!(at(7), "Consumer { seen_ms: 0, active_ms: Some(0), pending: 2 }");
    assert_eq!(at(16), "Producer producer");
}

#[test]
fn a_long_field_name_of_a_stream_is_told_before_each_value_up_to_a_limit() {
    use E::{I, S};
    let id = [1u64.to_be_bytes(), 1u64.to_be_bytes()].concat();
    let one = |name: &[u8]| {
        let big = vec![b'v'; 30_000];
        let node = listpack(&[I(1), I(0), I(1), S(name), I(0), I(2), I(0), I(0), S(&big), I(4)]);
        [
            length(1),
            string(&id),
            string(&node),
            length(1),
            length(1),
            length(1),
            length(0),
        ]
        .concat()
    };
    let told = events(15, &one(&vec![b'n'; 50_000]));
    assert_eq!(told[1..3], ["Field 50000 bytes", "Value 30000 bytes"]);
    let beyond = file(11, &entry(15, b"k", &one(&vec![b'n'; 5 * 1024 * 1024])));
    for chunk in [1000, beyond.len()] {
        let (mut validator, mut sink) = (Validator::new(), Lines::default());
        let error = beyond
            .chunks(chunk)
            .find_map(|piece| validator.feed(piece, &mut sink).err());
        assert_eq!(error.unwrap().kind.name(), "limit_exceeded");
        // Who does not want values need not hold the names.
        assert!(read(beyond.chunks(chunk)).is_ok());
    }
}

#[test]
fn every_part_of_a_string_in_pieces_is_of_one_kind() {
    struct Kinds(Option<Part>);
    impl Sink for Kinds {
        const VALUES: bool = true;
        fn key(&mut self, _key: &KeySummary<'_>) {
            assert_eq!(self.0, None);
        }
        fn event(&mut self, event: Event<'_>) {
            self.0 = match event {
                Event::Piece(part, _) => {
                    assert!(self.0.is_none_or(|before| before == part));
                    Some(part)
                }
                Event::End(part) => {
                    // The pieces of an empty rest may have been none.
                    assert!(self.0.is_none_or(|before| before == part));
                    None
                }
                _ => {
                    assert_eq!(self.0, None);
                    None
                }
            };
        }
    }
    let big = vec![b'x'; 40_000];
    let values = [
        (1, counted(2, &[string(&big), string(&big)])),
        (4, counted(1, &[string(&big), string(&big)])),
        (9, string(&zipmap(&[(&big, &big)], 0))),
        (13, string(&ziplist(&[E::S(&big), E::S(&big)]))),
        (16, string(&listpack(&[E::S(&big), E::S(&big)]))),
    ];
    for (code, value) in values {
        let bytes = file(11, &entry(code, b"k", &value));
        for chunk in [1, 999, 20_000] {
            let (mut validator, mut kinds) = (Validator::new(), Kinds(None));
            for piece in bytes.chunks(chunk) {
                validator.feed(piece, &mut kinds).unwrap();
            }
            validator.finish().unwrap();
        }
    }
}
