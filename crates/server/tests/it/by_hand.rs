//! The README's way back to the data without cachekeep: its own lines, stock programs, a stock engine.

use std::path::PathBuf;

use xtask::plain_engine::PlainEngine;
use xtask::resp;

use crate::readme;
use crate::service::Service;

/// The folder of the only archive in the store: project, instance, backup, attempt.
fn archive(service: &Service) -> PathBuf {
    let mut folder = service.data().join("store");
    for _ in 0..4 {
        let inside = std::fs::read_dir(&folder).unwrap();
        let mut inside: Vec<PathBuf> = inside.map(|entry| entry.unwrap().path()).collect();
        inside.retain(|path| !path.ends_with("journal") && !path.ends_with("catalog"));
        assert_eq!(inside.len(), 1, "more than one backup is stored");
        folder = inside.remove(0);
    }
    folder
}

#[test]
fn the_readmes_lines_bring_a_backup_back_with_age_and_zstd_alone() {
    use std::os::unix::fs::PermissionsExt as _;
    let service = Service::start();
    let caller = service.caller();
    let instance = caller.make_instance("by-hand");
    let mut engine = caller.engine(&instance);
    // More than one segment: each is a file of its own.
    for number in 0..3000 {
        let value = noise(number, 6000);
        engine
            .send(&["SET".as_bytes(), format!("key:{number}").as_bytes(), &value])
            .unwrap();
    }
    engine.send(&["HSET", "hash", "field", "value"]).unwrap();
    engine.settle().unwrap();
    let digest = engine.ask(&["DEBUG", "DIGEST"]).unwrap();
    caller.make_backup(&instance, "");
    let folder = archive(&service);
    assert!(
        std::fs::read_dir(folder.join("shard-0")).unwrap().count() > 1,
        "the lines must join segments in their order"
    );
    let warned = readme::run(&service, &folder, &readme::block("by-hand-key"));
    assert!(warned.contains("reads every backup"), "{warned}");
    let mode = std::fs::metadata(folder.join("key"))
        .unwrap()
        .permissions()
        .mode();
    assert_eq!(mode & 0o777, 0o600);
    readme::run(&service, &folder, &readme::block("by-hand"));
    let stock = PlainEngine::start_on(&folder.join("dump.rdb"), &[]).unwrap();
    let mut stock = resp::Connection::open(&stock.target()).unwrap();
    assert_eq!(stock.ask(&["DBSIZE"]).unwrap(), resp::Reply::Number(3001));
    assert_eq!(stock.ask(&["DEBUG", "DIGEST"]).unwrap(), digest);
}

/// Bytes that do not compress, the same for the same number.
fn noise(seed: u64, length: usize) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 32) as u8
    };
    std::iter::repeat_with(next).take(length).collect()
}

#[test]
fn a_projects_key_is_its_own_and_the_json_form_has_the_same_secret() {
    let service = Service::start();
    let second = service.second_project("second");
    let text = |name: &str| {
        let output = service.run(&["project", "key", name, "--quiet"]);
        assert!(output.status.success() && output.stderr.is_empty());
        String::from_utf8(output.stdout).unwrap()
    };
    let (first, other) = (text("local"), text(&second.project));
    let secret = |file: &str| {
        let mut lines = file.lines().filter(|line| !line.starts_with('#'));
        let secret = lines.next().unwrap().to_owned();
        assert!(
            secret.starts_with("AGE-SECRET-KEY-1") && lines.next().is_none(),
            "{file}"
        );
        secret
    };
    assert_ne!(secret(&first), secret(&other));
    let shown = service.run_json(&["project", "key", "second"]);
    assert_eq!(shown["identity"].as_str(), Some(secret(&other).as_str()));
    assert_eq!(shown["project_id"].as_str(), Some(second.project.as_str()));
    let public = format!("# public key: {}\n", shown["recipient"].as_str().unwrap());
    assert!(other.contains(&public), "{other}");
    let unknown = service.run(&["project", "key", "nobody"]);
    assert_eq!(unknown.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&unknown.stderr).contains("cachekeep project list"));
    assert!(!service.log().contains("AGE-SECRET-KEY"));
}
