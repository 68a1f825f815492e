//! Patterns for keys, judged by an engine.

use engine::Selection;
use xtask::fill::Random;
use xtask::plain_engine::PlainEngine;
use xtask::resp::{Connection, Reply};

/// What patterns and keys are made of: all that has a meaning in a pattern; of keys bytes too that are of no text. (Whether those are
/// above or below others in a range depends on what the engine was built for.)
const OF_PATTERNS: &[u8] = b"aabbc[[]]^--\\**?";
const OF_KEYS: &[u8] = b"aaabbbccc[]^-\\*?\xe9\x80";

fn some(random: &mut Random, bytes: &[u8], most: u64) -> Vec<u8> {
    let length = random.below(most + 1);
    (0..length)
        .map(|_| bytes[random.below(bytes.len() as u64) as usize])
        .collect()
}

#[test]
fn a_pattern_takes_the_keys_that_the_engine_lists_for_it() {
    let engine = PlainEngine::start(&[]).unwrap();
    let mut link = Connection::open(&engine.target()).unwrap();
    let mut random = Random::new(5, 0);
    for _ in 0..2000 {
        link.send(&[&b"SET"[..], &some(&mut random, OF_KEYS, 5), b""])
            .unwrap();
    }
    link.settle().unwrap();
    let listed = |link: &mut Connection, pattern: &[u8]| -> Vec<Vec<u8>> {
        let Reply::List(names) = link.ask(&[&b"KEYS"[..], pattern]).unwrap() else {
            panic!("no list");
        };
        let name = |reply| match reply {
            Reply::Bytes(name) => name,
            other => panic!("{other:?}"),
        };
        let mut names: Vec<_> = names.into_iter().map(name).collect();
        names.sort();
        names
    };
    let all = listed(&mut link, b"*");
    let mut wrong = Vec::new();
    for _ in 0..10_000 {
        let pattern = some(&mut random, OF_PATTERNS, 7);
        let selection = Selection {
            glob: Some(pattern.clone()),
            ..Selection::default()
        };
        let taken: Vec<Vec<u8>> = all
            .iter()
            .filter(|key| selection.takes_name(0, key))
            .cloned()
            .collect();
        let wanted = listed(&mut link, &pattern);
        if taken != wanted {
            let key = all.iter().find(|key| taken.contains(key) != wanted.contains(key));
            let shown = |bytes: &[u8]| bytes.escape_ascii().to_string();
            wrong.push(format!("{} and key {}", shown(&pattern), shown(key.unwrap())));
        }
    }
    assert!(
        wrong.is_empty(),
        "{} patterns: {:#?}",
        wrong.len(),
        &wrong[..wrong.len().min(20)]
    );
}
