//! How much memory a backup and a restore take: no more for a big instance with one huge value than for any other.

use std::path::Path;

use serde_json::json;
use xtask::foreign::{Access, Deployment, Form as Foreign};
use xtask::resp::Connection;

use crate::checker::{self, Catalogue, Form};
use crate::world::{World, text};

/// Growth of the service's resident memory during one backup or restore, at most: ARCHITECTURE.md, invariant 9.
const GROWTH_MAX_MIB: f64 = 64.0;

#[test]
fn a_backup_and_a_restore_stay_within_64_mib_whatever_the_data() {
    // MiB in all, MiB of one value.
    let (whole, giant) = if crate::long() { (2048, 500) } else { (384, 200) };
    let mut world = World::start(&[]);
    world.create("big", "redis.single.xu1.large.4", "aof");
    fill_with_noise(&mut world.client("big"), giant, whole);
    // The first operations of a process pay for what all later ones share.
    world.create("small", "redis.single.xu1.tiny.128", "aof");
    world.fill("small", 30, 1000);
    let backup = world.backup("small");
    restore(&mut world, "small", &backup, "full");

    let before = resident_mib(&world, "VmRSS");
    forget_peak(&world);
    let backup = world.backup("big");
    let grown = resident_mib(&world, "VmHWM") - before;
    println!("backup of {whole} MiB with one value of {giant} MiB: {grown:.1} MiB more than before");
    assert!(grown <= GROWTH_MAX_MIB, "the backup took {grown:.1} MiB");

    for verify in ["sample", "full"] {
        world.change("big");
        let before = resident_mib(&world, "VmRSS");
        forget_peak(&world);
        restore(&mut world, "big", &backup, verify);
        let grown = resident_mib(&world, "VmHWM") - before;
        println!("restore of it, verified by {verify}: {grown:.1} MiB more than before");
        assert!(grown <= GROWTH_MAX_MIB, "the restore took {grown:.1} MiB");
    }
    checker::check(&mut world, Form::Cheap, "after all");

    // Cut for another layout: the giant value spans many segments, and goes to one of three shards.
    world
        .ask_for_instance("wide", "redis.cluster.xu1.large.r1.4", "aof")
        .unwrap();
    world.wait_idle();
    world.learn_instance("wide");
    let before = resident_mib(&world, "VmRSS");
    forget_peak(&world);
    restore_from(&mut world, "wide", &backup, "big", "sample");
    let grown = resident_mib(&world, "VmHWM") - before;
    println!("restore of it, cut for three shards: {grown:.1} MiB more than before");
    assert!(grown <= GROWTH_MAX_MIB, "the restore took {grown:.1} MiB");
}

#[test]
fn a_backup_of_attached_servers_and_a_restore_into_them_stay_within_64_mib() {
    let (whole, giant) = if crate::long() { (2048, 500) } else { (384, 200) };
    let settings = [("enable-debug-command", "local")];
    let foreign = Deployment::start(
        Path::new("redis-server"),
        Foreign::Single,
        Access::Open,
        &settings,
    )
    .unwrap();
    let node = &foreign.nodes[0];
    let world = World::start(&["--attach-allow", "127.0.0.1"]);
    let wish = json!({"name": "foreign", "addresses": [format!("127.0.0.1:{}", node.port)]});
    let made = world.call("POST", "/ck/v1/{project}/attachments", Some(&wish));
    let id = text(&made, "instance_id").unwrap();
    let (backups, restores) = (
        format!("/v2/{{project}}/instances/{id}/backups"),
        format!("/v2/{{project}}/instances/{id}/restores"),
    );
    // The first operations of a process pay for what all later ones share.
    node.ask(&["DEBUG", "POPULATE", "1000", "key", "100"]).unwrap();
    let small = text(&world.call("POST", &backups, Some(&json!({}))), "backup_id").unwrap();
    world.wait_idle();
    world.call(
        "POST",
        &restores,
        Some(&json!({"backup_id": small, "replay": {}})),
    );
    world.wait_idle();
    node.ask(&["FLUSHALL"]).unwrap();
    fill_with_noise(&mut node.open().unwrap(), giant, whole);
    let digest = foreign.digest().unwrap();

    let before = resident_mib(&world, "VmRSS");
    forget_peak(&world);
    let big = text(&world.call("POST", &backups, Some(&json!({}))), "backup_id").unwrap();
    world.wait_idle();
    let grown = resident_mib(&world, "VmHWM") - before;
    println!(
        "backup of {whole} MiB of an attached server, one value of {giant} MiB: {grown:.1} MiB more than before"
    );
    assert!(grown <= GROWTH_MAX_MIB, "the backup took {grown:.1} MiB");

    // By payloads and by commands; what is there before is backed up and some of it removed.
    for commands in [false, true] {
        node.ask(&["DEL", "giant"]).unwrap();
        node.ask(&["DEBUG", "POPULATE", "20000", "other", "1000"])
            .unwrap();
        let before = resident_mib(&world, "VmRSS");
        forget_peak(&world);
        let wish = json!({"backup_id": big, "replay": {"commands": commands}});
        world.call("POST", &restores, Some(&wish));
        world.wait_idle();
        let grown = resident_mib(&world, "VmHWM") - before;
        let last = Catalogue::open(&world).restores(&id).pop().unwrap();
        assert_eq!(
            (last.status.as_str(), last.target_state.as_str()),
            ("succeeded", "replaced"),
            "{last:?}"
        );
        assert_eq!(foreign.digest().unwrap(), digest);
        println!("restore of it, commands {commands}: {grown:.1} MiB more than before");
        assert!(grown <= GROWTH_MAX_MIB, "the restore took {grown:.1} MiB");
    }
}

/// Bytes that nothing compresses, so that no buffer is small by luck.
fn fill_with_noise(client: &mut Connection, giant_mib: u64, whole_mib: u64) {
    const PIECE: usize = 1024 * 1024;
    let mut random = xtask::fill::Random::new(30, 0);
    let mut piece = Vec::new();
    for _ in 0..giant_mib {
        piece.clear();
        random.noise(PIECE, &mut piece);
        client.ask(&[b"APPEND".as_slice(), b"giant", &piece]).unwrap();
    }
    for number in giant_mib..whole_mib {
        piece.clear();
        random.noise(PIECE, &mut piece);
        for (part, value) in piece.chunks(PIECE / 64).enumerate() {
            let key = format!("noise:{number}:{part}");
            client.send(&[b"SET".as_slice(), key.as_bytes(), value]).unwrap();
        }
    }
    client.settle().unwrap();
}

fn restore(world: &mut World, name: &str, backup: &str, verify: &str) {
    restore_from(world, name, backup, name, verify);
}

fn restore_from(world: &mut World, name: &str, backup: &str, source: &str, verify: &str) {
    let path = format!("/ck/v1/{{project}}/instances/{}/restores", world.id(name));
    let body =
        serde_json::json!({"backup_id": backup, "source_instance_id": world.id(source), "verify": verify});
    world.call("POST", &path, Some(&body));
    checker::settle(world, "restore");
    let last = Catalogue::open(world).restores(&world.id(name)).pop().unwrap();
    assert_eq!(last.status, "succeeded", "{last:?}");
}

fn resident_mib(world: &World, field: &str) -> f64 {
    let status = std::fs::read_to_string(format!("/proc/{}/status", world.pid())).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix(field)).unwrap();
    let kib: f64 = line
        .trim_start_matches(':')
        .trim()
        .trim_end_matches(" kB")
        .parse()
        .unwrap();
    kib / 1024.0
}

/// Lets the kernel's high-water mark start anew.
fn forget_peak(world: &World) {
    std::fs::write(format!("/proc/{}/clear_refs", world.pid()), "5").unwrap();
}
