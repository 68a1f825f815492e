//! libFuzzer around the targets of the crate `fuzzing`. Which one, CACHEKEEP_FUZZ_TARGET says; its seeds are written to the
//! folder that CACHEKEEP_FUZZ_SEEDS names. Run by `cargo xtask fuzz`.

#![no_main]

use std::sync::OnceLock;

use fuzzing::Target;

static TARGET: OnceLock<&'static Target> = OnceLock::new();

fn prepare() {
    let name = std::env::var("CACHEKEEP_FUZZ_TARGET").unwrap_or_default();
    let target = fuzzing::target(&name).unwrap_or_else(|| panic!("no target is called {name:?}"));
    if let Some(folder) = std::env::var_os("CACHEKEEP_FUZZ_SEEDS") {
        for (number, seed) in (target.seeds)().iter().enumerate() {
            let path = std::path::Path::new(&folder).join(format!("seed-{number:03}"));
            std::fs::write(&path, seed).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        }
    }
    let _set_once = TARGET.set(target);
}

libfuzzer_sys::fuzz_target!(
    init: prepare(),
    |input: &[u8]| {
        if let Some(target) = TARGET.get() {
            (target.run)(input);
        }
    }
);
