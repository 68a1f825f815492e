//! Validates RDB files, or DUMP payloads named `*.dump`, and prints one line for each.

use std::path::Path;

fn check(path: &Path) -> std::io::Result<()> {
    let bytes = std::fs::read(path)?;
    let name = path.display();
    if path.extension().is_some_and(|extension| extension == "dump") {
        let family = rdb::Family::of_footer(&bytes).unwrap_or(rdb::Family::Redis);
        let mut validator = rdb::DumpValidator::new(bytes.len() as u64, family);
        match validator.feed(&bytes).and_then(|()| validator.finish()) {
            Ok(summary) => println!("{name}: ok, {} of {} elements", summary.kind, summary.elements),
            Err(error) => println!("{name}: {} ({error})", error.kind.name()),
        }
        return Ok(());
    }
    let mut validator = rdb::Validator::new();
    match validator.feed(&bytes, &mut ()).and_then(|()| validator.finish()) {
        Ok(report) => {
            let totals = report.census.totals();
            println!(
                "{name}: ok, version {}, {} keys, {} with expiry, {} functions",
                report.rdb_version,
                totals.keys,
                totals.expires,
                report.functions.len()
            );
        }
        Err(error) => println!("{name}: {} ({error})", error.kind.name()),
    }
    Ok(())
}

fn main() -> std::io::Result<()> {
    for path in std::env::args_os().skip(1) {
        check(Path::new(&path))?;
    }
    Ok(())
}
