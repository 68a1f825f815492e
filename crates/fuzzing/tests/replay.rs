//! Runs every target in this process: over its seeds, over mutations of them, over what once broke it.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use fuzzing::mutation::{Random, mutate};
use fuzzing::{INPUT_BYTES_MAX, TARGETS, crashes};

/// Mutations per target; ten times as many in the long form.
const MUTATIONS: u64 = 2000;

#[test]
fn seeds_and_mutations_of_them_break_no_target() {
    let is_long = std::env::var("CACHEKEEP_TEST_LONG").is_ok_and(|long| long == "1");
    let mutations = if is_long { 10 * MUTATIONS } else { MUTATIONS };
    for target in &TARGETS {
        let seeds = (target.seeds)();
        assert!(seeds.len() > 1, "{} has no seeds", target.name);
        for seed in &seeds {
            (target.run)(seed);
        }
        for number in 0..mutations {
            let mut random = Random::new(number + 1);
            let mut input = seeds[random.below(seeds.len())].clone();
            let other = &seeds[random.below(seeds.len())];
            mutate(&mut input, other, &mut random);
            input.truncate(INPUT_BYTES_MAX);
            let done = std::panic::catch_unwind(|| (target.run)(&input));
            assert!(
                done.is_ok(),
                "{} breaks at mutation {number}: {input:?}",
                target.name
            );
        }
    }
}

#[test]
fn inputs_that_once_broke_a_target_do_not_any_more() {
    for target in &TARGETS {
        let folder = crashes(target);
        for entry in std::fs::read_dir(folder).into_iter().flatten() {
            let path = entry.unwrap().path();
            println!("{}", path.display());
            (target.run)(&std::fs::read(path).unwrap());
        }
    }
}
