//! What a client loses with a primary that is killed, at the instance's address and with Sentinels alone.

use std::io;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use serde_json::Value;

use super::Scale;
use super::client::{Client, Instance};
use super::clients::Watcher;
use super::report::{Row, Section};
use crate::Stop;
use crate::foreign::{self, Access, Deployment, Form};
use crate::resp::{Connection, Reply, Target};
use crate::service::{Scheme, Service};

/// What the instance's Sentinels are told, `DOWN_AFTER` and `FAILOVER_TIMEOUT` of `crates/engine/src/sentinel.rs`.
const SETTINGS: [(&str, &str); 2] = [("down-after-milliseconds", "5000"), ("failover-timeout", "10000")];
/// How long clients write before the primary is killed, and after.
const AROUND: Duration = Duration::from_secs(1);
/// Between two questions to a Sentinel, who the primary is.
const POLL_EVERY: Duration = Duration::from_millis(5);
/// How long a failover, and what comes back after it, may take.
const LIMIT: Duration = Duration::from_secs(60);

/// What one failover cost.
struct Lost {
    /// From the kill until a Sentinel tells another primary.
    named: Duration,
    /// The writing client's longest time without a success.
    gap: Duration,
}

/// A primary with two replicas and three Sentinels, ours and bare ones.
pub fn measure(scale: &Scale) -> Result<Section, Stop> {
    println!("failover, as a client sees it");
    let mut service = Service::start(Scheme::Http, &[])?;
    let mut client = Client::login(&service)?;
    let instance = client.create_as("watched", 4, "redis.ha.xu1.large.r3.4", &Value::Null)?;
    let (mut named, mut gaps) = (Vec::new(), Vec::new());
    let (mut named_alone, mut gaps_alone) = (Vec::new(), Vec::new());
    for round in 0..scale.pairs {
        let (mut peer, mut ours, mut alone) = (None, None, None);
        for turn in 0..3 {
            match (round + turn) % 3 {
                0 => peer = Some(fail_over_bare()?),
                1 => ours = Some(fail_over_ours(&mut client, &instance, None)?),
                _ => {
                    alone = Some(fail_over_ours(&mut client, &instance, Some(&mut service))?);
                    client = Client::login(&service)?;
                }
            }
        }
        if let (Some(peer), Some(ours), Some(alone)) = (peer, ours, alone) {
            named.push((peer.named, ours.named));
            gaps.push((peer.gap, ours.gap));
            named_alone.push((peer.named, alone.named));
            gaps_alone.push((peer.gap, alone.gap));
        }
    }
    Ok(Section {
        title: "Failover",
        how: "A primary with two replicas and three Sentinels (down after 5 s, quorum 2); the primary's process is killed. \
              Ours: one client writes every millisecond at the instance's address and knows nothing of Sentinels. Other: \
              stock redis-servers and Sentinels with the same settings, and a client that asks a Sentinel for the primary \
              before each try to reconnect. Sentinels wait 5 s, and up to a second at random before they stand for election. \
              The service looks every 5 s whether processes are gone, and has a Sentinel promote a replica then: the rows \
              without it show what Sentinels do alone. (The prediction of the first two forgot that.)"
            .to_owned(),
        rows: vec![
            Row::of_pairs("until a Sentinel names another primary", &named, "shown", "1.0x").shown(),
            Row::of_pairs("longest time without a write", &gaps, "<= 1.1x", "1.0x").shown(),
            Row::of_pairs(
                "until a Sentinel names another primary, the service ended",
                &named_alone,
                "shown",
                "1.0x",
            )
            .shown(),
            Row::of_pairs(
                "longest time without a write, the service ended",
                &gaps_alone,
                "<= 1.1x",
                "1.0x",
            )
            .shown(),
        ],
    })
}

/// `without`: a service that is ended before, and runs again afterwards.
fn fail_over_ours(
    client: &mut Client,
    instance: &Instance,
    without: Option<&mut Service>,
) -> Result<Lost, Stop> {
    let told = client.show(instance)?;
    let sentinels: Vec<u16> = told["ext"]["sentinels"]
        .as_array()
        .into_iter()
        .flatten()
        .filter_map(|address| address.as_str()?.rsplit(':').next()?.parse().ok())
        .collect();
    let [sentinel, ..] = sentinels[..] else {
        return Err(Stop::new("the instance has no Sentinels"));
    };
    wait_electable(&sentinels)?;
    let pid = Connection::open(&instance.target())?.info("server", "process_id")?;
    let kill = || match Command::new("kill").args(["-9", &pid]).status()?.success() {
        true => Ok(()),
        false => Err(Stop::new(format!("process {pid} cannot be killed"))),
    };
    match without {
        None => fail_over(Watcher::start(instance)?, sentinel, kill),
        Some(service) => {
            service.end()?;
            let lost = fail_over(Watcher::start(instance)?, sentinel, kill)?;
            service.run()?;
            Ok(lost)
        }
    }
}

fn fail_over_bare() -> Result<Lost, Stop> {
    let mut bare = Deployment::start(Path::new("redis-server"), Form::Watched, Access::Password, &[])?;
    let sentinels: Vec<u16> = bare.sentinels.iter().map(|sentinel| sentinel.port).collect();
    for sentinel in &bare.sentinels {
        for (name, value) in SETTINGS {
            sentinel.ask(&["SENTINEL", "SET", NAME, name, value])?;
        }
    }
    wait_electable(&sentinels)?;
    let [asked, ..] = sentinels[..] else {
        return Err(Stop::new("there are no Sentinels"));
    };
    let watcher = Watcher::start_where(foreign::PASSWORD, move || {
        let (_, port) = primary_of(asked)?;
        Ok(port)
    })?;
    fail_over(watcher, asked, || {
        bare.nodes[0].kill();
        Ok(())
    })
}

const NAME: &str = "mymaster";

fn fail_over(watcher: Watcher, sentinel: u16, kill: impl FnOnce() -> Result<(), Stop>) -> Result<Lost, Stop> {
    std::thread::sleep(AROUND);
    let before = primary_of(sentinel)?;
    kill()?;
    let killed = Instant::now();
    while primary_of(sentinel)? == before {
        in_time(killed, "another primary")?;
        std::thread::sleep(POLL_EVERY);
    }
    let named = killed.elapsed();
    std::thread::sleep(AROUND);
    let gap = watcher.stop()?;
    println!(
        "  a failover: named after {} ms, {} ms without a write",
        named.as_millis(),
        gap.as_millis()
    );
    Ok(Lost { named, gap })
}

/// Address and port of the primary that the Sentinel tells.
fn primary_of(sentinel: u16) -> io::Result<(String, u16)> {
    let reply = open(sentinel)?.ask(&["SENTINEL", "GET-MASTER-ADDR-BY-NAME", NAME])?;
    let Reply::List(words) = &reply else {
        return Err(io::Error::other(format!("{reply:?}")));
    };
    let words: Vec<&str> = words.iter().filter_map(Reply::text).collect();
    match words[..] {
        [address, port] => Ok((address.to_owned(), port.parse().map_err(io::Error::other)?)),
        _ => Err(io::Error::other("no address")),
    }
}

fn open(sentinel: u16) -> io::Result<Connection> {
    Connection::open(&Target::local(sentinel, None))
}

/// Waits until every Sentinel knows the others and two replicas that it could promote.
fn wait_electable(sentinels: &[u16]) -> Result<(), Stop> {
    let began = Instant::now();
    for sentinel in sentinels {
        loop {
            let mut link = open(*sentinel)?;
            let primary = fields(&link.ask(&["SENTINEL", "MASTER", NAME])?);
            let Reply::List(replicas) = link.ask(&["SENTINEL", "REPLICAS", NAME])? else {
                return Err(Stop::new("a Sentinel tells no replicas"));
            };
            let electable = replicas
                .iter()
                .map(fields)
                .filter(|replica| {
                    has(replica, "flags", "slave")
                        && has(replica, "master-link-status", "ok")
                        && !has(replica, "slave-priority", "0")
                })
                .count();
            if electable == 2 && has(&primary, "num-other-sentinels", "2") && has(&primary, "flags", "master")
            {
                break;
            }
            in_time(began, "replicas that can be promoted")?;
            std::thread::sleep(POLL_EVERY);
        }
    }
    Ok(())
}

fn fields(reply: &Reply) -> Vec<(String, String)> {
    let Reply::List(words) = reply else {
        return Vec::new();
    };
    let text = |word: &Reply| word.text().unwrap_or_default().to_owned();
    words
        .chunks_exact(2)
        .map(|pair| (text(&pair[0]), text(&pair[1])))
        .collect()
}

fn has(fields: &[(String, String)], name: &str, value: &str) -> bool {
    fields
        .iter()
        .any(|(field, found)| field == name && found == value)
}

fn in_time(since: Instant, what: &str) -> Result<(), Stop> {
    match since.elapsed() < LIMIT {
        true => Ok(()),
        false => Err(Stop::new(format!("in vain waited for {what}"))),
    }
}
