//! Which of the servers that are known leads to the primary.
//!
//! Sentinels come first: where one is there, no node is asked who the primary is, for one that was succeeded takes itself for it
//! still. Of the Sentinels all are asked, and the one that has heard of the newest failover is believed. A node's own word counts
//! where no Sentinel is known; where all that are known are away it is enough to read from the only node that calls itself the
//! primary, and never to write.

use std::collections::HashSet;

use super::dialled::Dialled;
use super::sentinels::{SENTINELS_MAX, Word};
use super::{As, Dial, Found, HostPort, by_cluster, by_replication, field, mode, refused};
use crate::error::{Error, Kind};
use crate::node::{Node, Reply};

/// The operation of the error that says that all Sentinels are away.
pub const NO_SENTINEL: &str = "ask sentinels";
const NOT_WRITTEN: &str = "none of its Sentinels answers, and only they say which node takes writes; where it has none any more, \
                           detach it and attach it again";
const OWN_WORD: &str = "none of its Sentinels answers: which node is the primary is that node's own word, and nothing is written to it";
/// Nodes that were found before and are asked side by side, where the first one does not lead anywhere.
const NODES_AT_ONCE: usize = 8;

/// What is sought, and what is known of it.
#[derive(Debug, Clone, Copy)]
pub struct Wanted<'a> {
    /// Nodes or Sentinels that were given.
    pub seeds: &'a [HostPort],
    /// Of several primaries that a Sentinel watches, which one is meant.
    pub name: Option<&'a str>,
    /// What was found before.
    pub before: Option<&'a Found>,
    /// What it is for.
    pub aim: Aim,
}

/// What servers are found for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Aim {
    /// To be looked at and captured.
    Read,
    /// To be written to.
    Write,
}

/// Finds out what the seeds are part of, of which one that leads there is enough: another one may not have heard yet of a failover.
/// Opens a connection to each of the Sentinels, and to each seed that is not known yet, side by side.
///
/// # Errors
/// [`Kind::Connection`], [`Kind::Idle`], [`Kind::Auth`], [`Kind::Protocol`] where no seed, or a primary, can be used; with
/// [`NO_SENTINEL`] where it is to be written and no Sentinel that is known answers; [`Kind::Refused`] with what is not as it must
/// be: slots without a shard, a failover under way, two primaries and no Sentinel.
pub fn discover(wanted: &Wanted<'_>, dial: Dial<'_>) -> Result<Found, Error> {
    let dialled = Dialled::new(dial);
    let known = wanted.before.map(|before| before.sentinels.as_slice());
    let known: &[HostPort] = known.unwrap_or_default();
    let found: Vec<&HostPort> = wanted
        .before
        .map_or_else(Vec::new, |before| before.nodes().collect());
    let mut asked: Vec<&HostPort> = known.iter().take(SENTINELS_MAX).collect();
    for seed in wanted.seeds {
        if !asked.contains(&seed) && !found.contains(&seed) {
            asked.push(seed);
        }
    }
    let mut greeted = Greetings::default();
    greeted.greet(&asked, wanted.name, &dialled);
    if greeted.is_watched {
        greeted.hear_peers(&asked, &dialled);
        return match greeted.newest.take() {
            Some(word) => word.lead(&dialled),
            None => Err(greeted.why.told()),
        };
    }
    // Those that were given lead.
    let (mut nodes, others): (Vec<&HostPort>, Vec<&HostPort>) =
        found.into_iter().partition(|node| wanted.seeds.contains(node));
    nodes.extend(others);
    match (known, wanted.aim) {
        ([], _) => by_nodes(greeted, &nodes, wanted.name, &dialled),
        (_, Aim::Read) => unwatched(greeted, &nodes, known, &dialled),
        (_, Aim::Write) => {
            Err(Error::new(Kind::Connection, NO_SENTINEL, NOT_WRITTEN).because(greeted.why.told()))
        }
    }
}

/// By the nodes' own words, for want of Sentinels: the first that leads anywhere.
fn by_nodes(
    mut greeted: Greetings,
    nodes: &[&HostPort],
    name: Option<&str>,
    dialled: &Dialled<'_>,
) -> Result<Found, Error> {
    // Most often the first one does.
    let (first, rest) = nodes.split_at(nodes.len().min(1));
    let given: &[&HostPort] = &[];
    for turn in [given, first].into_iter().chain(rest.chunks(NODES_AT_ONCE)) {
        greeted.greet(turn, name, dialled);
        if let Some(word) = greeted.newest.take() {
            return word.lead(dialled);
        }
        for node in std::mem::take(&mut greeted.nodes) {
            match node.lead(dialled) {
                Ok(found) => return Ok(found),
                Err(error) => greeted.why.add(error),
            }
        }
    }
    Err(greeted.why.told())
}

/// By the only node that calls itself the primary, where the Sentinels that are known are away.
fn unwatched(
    mut greeted: Greetings,
    nodes: &[&HostPort],
    sentinels: &[HostPort],
    dialled: &Dialled<'_>,
) -> Result<Found, Error> {
    let given: &[&HostPort] = &[];
    let mut runs = HashSet::new();
    let mut primary = None;
    for turn in std::iter::once(given).chain(nodes.chunks(NODES_AT_ONCE)) {
        greeted.greet(turn, None, dialled);
        for mut node in std::mem::take(&mut greeted.nodes) {
            match node.node.info("replication") {
                // One may be known by two names.
                Ok(replication) if field(&replication, "role") == Some("master") => {
                    if runs.insert(node.run()) {
                        primary.get_or_insert(node);
                    }
                }
                Ok(_) => {}
                Err(error) => greeted.why.add(error),
            }
        }
    }
    let (Some(primary), 1) = (primary, runs.len()) else {
        return Err(match runs.len() {
            0 => greeted.why.told(),
            count => refused(format!(
                "none of its Sentinels answers, and {count} of its nodes call themselves the primary"
            )),
        });
    };
    let mut found = by_replication(primary.at, primary.node, dialled)?;
    found.sentinels = sentinels.to_vec();
    found.notes.push(OWN_WORD.to_owned());
    Ok(found)
}

/// Who has answered, and what is to be told where nobody leads anywhere.
#[derive(Default)]
struct Greetings {
    nodes: Vec<Greeted>,
    /// Whether a Sentinel has answered.
    is_watched: bool,
    newest: Option<Word>,
    why: Why,
}

impl Greetings {
    /// Asks all of them, side by side.
    fn greet(&mut self, places: &[&HostPort], name: Option<&str>, dialled: &Dialled<'_>) {
        let answers: Vec<Result<Answer, Error>> = std::thread::scope(|scope| {
            let asked: Vec<_> = places
                .iter()
                .map(|at| scope.spawn(move || greet(at, name, dialled)))
                .collect();
            asked
                .into_iter()
                .map(|one| {
                    one.join()
                        .unwrap_or_else(|panic| std::panic::resume_unwind(panic))
                })
                .collect()
        });
        for answer in answers {
            match answer {
                Ok(Answer::Node(node)) => self.nodes.push(node),
                Ok(Answer::Sentinel(word)) => {
                    self.is_watched = true;
                    match word {
                        Ok(word) => self.hear(word),
                        Err(error) => self.why.add(error),
                    }
                }
                Err(error) => self.why.add(error),
            }
        }
    }

    fn hear(&mut self, word: Word) {
        self.newest = Some(match self.newest.take() {
            Some(known) => known.or_newer(word),
            None => word,
        });
    }

    /// Asks the Sentinels that those know which were asked: they may have heard of more.
    fn hear_peers(&mut self, asked: &[&HostPort], dialled: &Dialled<'_>) {
        let Some(word) = &self.newest else {
            return;
        };
        let (name, peers) = (word.name.clone(), word.sentinels.clone());
        let peers: Vec<&HostPort> = peers.iter().filter(|peer| !asked.contains(peer)).collect();
        self.greet(&peers, Some(&name), dialled);
    }
}

/// Why nobody leads anywhere: the first cause, but for one that says more: a server that is there and does not let us in.
#[derive(Default)]
struct Why(Option<Error>);

impl Why {
    fn add(&mut self, error: Error) {
        let says_more = |error: &Error| matches!(error.kind, Kind::Auth | Kind::Refused);
        let is_wanted = match &self.0 {
            None => true,
            Some(known) => says_more(&error) && !says_more(known),
        };
        if is_wanted {
            self.0 = Some(error);
        }
    }

    fn told(self) -> Error {
        let nobody = || {
            Error::new(
                Kind::Connection,
                "discover",
                "none of the servers leads to a primary",
            )
        };
        self.0.unwrap_or_else(nobody)
    }
}

/// What somebody is who has answered.
enum Answer {
    Node(Greeted),
    /// What it says, or why it says nothing of use.
    Sentinel(Result<Word, Error>),
}

/// A node that has answered.
struct Greeted {
    at: HostPort,
    node: Node,
    server: Vec<(String, String)>,
}

impl Greeted {
    /// Tells this process from others: a place may have two names.
    fn run(&self) -> String {
        field(&self.server, "run_id").map_or_else(|| self.at.to_string(), str::to_owned)
    }

    /// What it leads to.
    fn lead(self, dialled: &Dialled<'_>) -> Result<Found, Error> {
        match mode(&self.server) {
            Some("cluster") => by_cluster(&self.at, self.node, dialled),
            Some("standalone") => by_replication(self.at, self.node, dialled),
            _ => Err(Error::new(
                Kind::Protocol,
                "discover",
                format!("{} does not say what it is (INFO server has no mode)", self.at),
            )),
        }
    }
}

/// Connects to somebody who answers as an engine or a Sentinel, and hears the latter.
fn greet(at: &HostPort, name: Option<&str>, dialled: &Dialled<'_>) -> Result<Answer, Error> {
    let mut node = match dialled.open(at, As::Node, |node| node.ask(&[b"INFO", b"server"])) {
        // A Sentinel has users of its own, and often none.
        Err(error) if error.kind == Kind::Auth => sentinel(at, dialled).ok_or(error)?,
        Err(error) => return Err(error),
        Ok((_, Reply::Error(text))) if text.starts_with("NOAUTH") => sentinel(at, dialled)
            .ok_or_else(|| Error::new(Kind::Auth, "discover", format!("{at} wants a password")))?,
        Ok((_, Reply::Error(text))) if text.starts_with("NOPERM") => {
            return Err(refused(format!(
                "{at} does not tell what it is: the user needs +info"
            )));
        }
        Ok((node, Reply::Bulk(_) | Reply::Simple(_))) => node,
        Ok(_) => {
            return Err(Error::new(
                Kind::Protocol,
                "discover",
                format!("{at} does not answer INFO as an engine does"),
            ));
        }
    };
    let server = node.info("server")?;
    if mode(&server) == Some("sentinel") {
        return Ok(Answer::Sentinel(Word::ask(at, &mut node, name)));
    }
    let at = at.clone();
    Ok(Answer::Node(Greeted { at, node, server }))
}

fn sentinel(at: &HostPort, dialled: &Dialled<'_>) -> Option<Node> {
    let (node, server) = dialled.open(at, As::Sentinel, |node| node.info("server")).ok()?;
    (mode(&server) == Some("sentinel")).then_some(node)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::collections::HashMap;
    use std::io::{BufRead as _, BufReader, Write as _};
    use std::os::unix::net::UnixStream;
    use std::sync::Mutex;

    use super::*;

    /// What somebody is, and what it says.
    #[derive(Clone)]
    enum Is {
        /// It takes itself for the primary.
        Primary,
        /// It follows this one.
        Replica(&'static str),
        /// It names this primary, with this epoch, and knows these.
        Sentinel(&'static str, u64, Vec<&'static str>),
    }

    /// Who is there, by host; and who was dialled.
    struct World {
        there: HashMap<&'static str, Is>,
        dialled: Mutex<Vec<String>>,
    }

    fn at(host: &str) -> HostPort {
        HostPort::new(host, 6379)
    }

    fn bulk(text: &str) -> String {
        format!("${}\r\n{text}\r\n", text.len())
    }

    fn map(fields: &[(&str, &str)]) -> String {
        let pairs: String = fields
            .iter()
            .map(|(name, value)| bulk(name) + &bulk(value))
            .collect();
        format!("*{}\r\n{pairs}", 2 * fields.len())
    }

    fn answer(host: &str, is: &Is, words: &[String]) -> String {
        let words: Vec<&str> = words.iter().map(String::as_str).collect();
        match (words.as_slice(), is) {
            (["INFO", "server"], Is::Sentinel(..)) => bulk("redis_mode:sentinel\r\n"),
            (["INFO", "server"], _) => bulk(&format!(
                "redis_version:7.0.15\r\nredis_mode:standalone\r\nrun_id:{host}\r\n"
            )),
            (["INFO", "replication"], Is::Primary) => bulk("role:master\r\nconnected_slaves:0\r\n"),
            (["INFO", "replication"], Is::Replica(of)) => bulk(&format!(
                "role:slave\r\nmaster_host:{of}\r\nmaster_port:6379\r\nmaster_link_status:up\r\n"
            )),
            (["INFO", "memory"], _) => bulk("used_memory:1000\r\nmaxmemory:0\r\n"),
            (["COMMAND", ..], _) => format!("*1\r\n{}", map(&[("name", "known")])),
            (["SENTINEL", "MASTERS"], Is::Sentinel(primary, epoch, _)) => {
                let epoch = epoch.to_string();
                let fields = [
                    ("name", "mymaster"),
                    ("ip", *primary),
                    ("port", "6379"),
                    ("flags", "master"),
                    ("config-epoch", epoch.as_str()),
                ];
                format!("*1\r\n{}", map(&fields))
            }
            (["SENTINEL", "SENTINELS", "mymaster"], Is::Sentinel(_, _, peers)) => {
                let told: String = peers
                    .iter()
                    .map(|peer| map(&[("ip", *peer), ("port", "6379")]))
                    .collect();
                format!("*{}\r\n{told}", peers.len())
            }
            _ => "-ERR unknown command\r\n".to_owned(),
        }
    }

    fn serve(host: &str, is: &Is, socket: UnixStream) -> std::io::Result<()> {
        let mut output = socket.try_clone()?;
        let mut lines = BufReader::new(socket).lines();
        while let Some(count) = lines.next() {
            let count: usize = count?[1..].parse().unwrap();
            let mut words = Vec::new();
            for _ in 0..count {
                // Its length, which its line says too.
                lines.next().unwrap()?;
                words.push(lines.next().unwrap()?);
            }
            output.write_all(answer(host, is, &words).as_bytes())?;
        }
        Ok(())
    }

    impl World {
        fn new(there: &[(&'static str, Is)]) -> Self {
            Self {
                there: there.iter().cloned().collect(),
                dialled: Mutex::default(),
            }
        }

        fn dial(&self, to: &HostPort) -> Result<Node, Error> {
            self.dialled.lock().unwrap().push(to.host.clone());
            let Some((host, is)) = self.there.get_key_value(to.host.as_str()) else {
                return Err(Error::new(Kind::Idle, "connect", format!("{to} is silent")));
            };
            let (ours, theirs) = UnixStream::pair().unwrap();
            let (host, is) = (*host, is.clone());
            std::thread::spawn(move || {
                let _ended = serve(host, &is, theirs);
            });
            Ok(Node::over(ours, host))
        }

        fn find(&self, seeds: &[&str], before: Option<&Found>, aim: Aim) -> Result<Found, Error> {
            let seeds: Vec<HostPort> = seeds.iter().map(|host| at(host)).collect();
            let wanted = Wanted {
                seeds: &seeds,
                name: None,
                before,
                aim,
            };
            discover(&wanted, &|to, _| self.dial(to))
        }

        fn primary(&self, seeds: &[&str], before: Option<&Found>) -> String {
            let found = self.find(seeds, before, Aim::Write).unwrap();
            found.shards[0].primary.host.clone()
        }

        fn dials_of(&self, host: &str) -> usize {
            let dialled = self.dialled.lock().unwrap();
            dialled.iter().filter(|known| *known == host).count()
        }
    }

    #[test]
    fn a_node_that_stands_before_a_sentinel_is_not_believed() {
        let world = World::new(&[
            ("old", Is::Primary),
            ("new", Is::Primary),
            ("sentinel", Is::Sentinel("new", 1, Vec::new())),
        ]);
        assert_eq!(world.primary(&["old", "sentinel"], None), "new");
        assert_eq!(world.dials_of("old"), 1);
    }

    #[test]
    fn the_sentinel_with_the_highest_epoch_is_believed_wherever_it_is_named() {
        let world = World::new(&[
            ("old", Is::Primary),
            ("new", Is::Primary),
            ("cut-off", Is::Sentinel("old", 1, vec!["second", "third"])),
            ("second", Is::Sentinel("new", 2, vec!["cut-off", "third"])),
            ("third", Is::Sentinel("new", 2, vec!["cut-off", "second"])),
        ]);
        for seeds in [
            &["cut-off"][..],
            &["old", "cut-off", "third"],
            &["third", "cut-off"],
        ] {
            assert_eq!(world.primary(seeds, None), "new", "{seeds:?}");
        }
        let found = world.find(&["cut-off"], None, Aim::Read).unwrap();
        let known: Vec<&str> = found.sentinels.iter().map(|at| at.host.as_str()).collect();
        assert_eq!(known, ["cut-off", "second", "third"]);
        assert_eq!(world.dials_of("old"), 1, "as a seed");
    }

    #[test]
    fn where_all_known_sentinels_are_away_one_primary_is_read_and_none_is_written_to() {
        let sentinel = Is::Sentinel("first", 1, Vec::new());
        let world = World::new(&[("first", Is::Primary), ("sentinel", sentinel)]);
        let before = world.find(&["sentinel"], None, Aim::Read).unwrap();
        assert_eq!(before.notes, Vec::<String>::new());

        let world = World::new(&[("first", Is::Primary), ("other", Is::Replica("first"))]);
        let seeds = ["sentinel", "other", "first"];
        let found = world.find(&seeds, Some(&before), Aim::Read).unwrap();
        assert_eq!(found.shards[0].primary, at("first"));
        assert_eq!(found.sentinels, before.sentinels);
        assert_eq!(found.notes, [OWN_WORD]);
        let refused = world.find(&seeds, Some(&before), Aim::Write).unwrap_err();
        assert_eq!((refused.kind, refused.operation), (Kind::Connection, NO_SENTINEL));

        let world = World::new(&[("first", Is::Primary), ("other", Is::Primary)]);
        let refused = world.find(&seeds, Some(&before), Aim::Read).unwrap_err();
        assert_eq!(refused.kind, Kind::Refused, "{refused}");
        // Without one that is known, it is as it always was.
        let before = world.find(&["first"], None, Aim::Read).unwrap();
        assert_eq!(world.primary(&["first"], Some(&before)), "first");
    }

    #[test]
    fn a_primary_that_is_gone_is_dialled_once_however_many_name_it() {
        let gone = ["a", "b", "c", "d", "e", "f"].map(|host| (host, Is::Replica("gone")));
        let world = World::new(&[&gone[..], &[("good", Is::Primary)]].concat());
        let seeds = ["a", "b", "c", "d", "e", "f", "good"];
        assert_eq!(world.primary(&seeds, None), "good");
        assert_eq!(world.dials_of("gone"), 1);
        let error = world.find(&seeds[..6], None, Aim::Read).unwrap_err();
        assert_eq!(error.kind, Kind::Idle);
        assert_eq!(error.context, "gone:6379 is silent");
        assert_eq!(world.dials_of("gone"), 2);
    }
}
