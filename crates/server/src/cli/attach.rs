//! `cachekeep instance attach`: servers that somebody else runs become an instance.

use std::path::{Path, PathBuf};

use anyhow::Context;
use clap::Args;
use engine::node::Address;
use serde_json::{Map, Value, json};

use super::client::Client;
use super::remote::first_line;
use super::target::{plain, print_rows};
use super::{Global, Output, alone};

/// What the user of a node needs for discovery and capture, and nothing more; a cluster's nodes want the second line too.
const NEEDED: &str = "+ping +info +role +psync +replconf +command|info +acl|whoami +acl|dryrun";
const NEEDED_OF_CLUSTER: &str = "+cluster|nodes";
/// Saves the five seconds of repl-diskless-sync-delay, and tells what survives a crash.
const WISHED: &str = "+config|get +config|set";
/// Tells what waits for a capture from what waits for replicas.
const WISHED_BY_GUARD: &str = "+client|setname +client|list";
/// Where `PSYNC` is not to be had: all keys are read.
const NEEDED_WITHOUT_PSYNC: &str = "~* +scan +dump +pttl +time +select";
/// What a restore into them needs besides; of a cluster the next line too. The last names the commands that make values which are too
/// long to be sent as one, or are of another family.
const NEEDED_TO_WRITE: &str =
    "~* +restore +exists +select +scan +unlink +del +wait +client|setname +client|list +client|kill";
const NEEDED_TO_WRITE_TO_CLUSTER: &str = "+cluster|slots +asking";
const NEEDED_TO_WRITE_LONG: &str = "+multi +exec +rename +renamenx +set +append +rpush +sadd +zadd +hset +xadd +xgroup +xclaim \
                                    +xsetid +pexpireat";
/// What loads libraries of functions, and what takes them back.
const NEEDED_FOR_FUNCTIONS: &str = "+function|load +function|restore";
/// What the user of a Sentinel needs.
const NEEDED_OF_SENTINEL: &str = "+ping +info +sentinel|masters +sentinel|sentinels";

/// Attach servers that somebody else runs: they are backed up and restored into like instances of this service
#[derive(Args)]
#[command(
    after_help = "What is there is found out from any node or Sentinel, shown, and found out again at each use. The operator \
    of the service must allow its addresses: cachekeep serve --attach-allow 10.0.0.0/8:6379. `cachekeep instance delete` \
    detaches, and touches nothing of the servers. Nothing but a restore that somebody asks for changes their data.\n\
    While a capture begins, repl-diskless-sync-delay is 0 and rdbcompression no on the captured node, where the user may \
    CONFIG SET; both are put back as soon as it has begun, after a crash of the service too.\n\n\
    Examples:\n  \
    cachekeep instance attach orders redis://10.0.0.5:6379 --dry-run\n  \
    cachekeep instance attach orders redis://backup@10.0.0.5:6379 --password-stdin < password.txt\n  \
    cachekeep instance attach sessions redis://10.0.0.7:26379 redis://10.0.0.8:26379 --primary-name mymaster\n  \
    cachekeep instance attach carts rediss://backup@10.0.1.1:7000 --ca ca.pem --password-stdin < password.txt\n  \
    cachekeep instance attach --print-acl --user backup"
)]
pub(crate) struct Attach {
    /// Name of the instance: 4 to 64 characters: a letter, then letters, digits, _ and -
    #[arg(required_unless_present = "print_acl")]
    name: Option<String>,
    /// Nodes or Sentinels, of which one that answers is enough: redis://[USER@]HOST[:PORT], rediss:// for TLS; the password is
    /// better given in CACHEKEEP_SOURCE_PASSWORD or by --password-stdin
    #[arg(required_unless_present = "print_acl", value_name = "URL")]
    servers: Vec<String>,
    /// Show what is there, and attach nothing
    #[arg(long)]
    dry_run: bool,
    /// Print the commands that make the user that is needed and no more, for who runs the servers, and do nothing else
    #[arg(long)]
    print_acl: bool,
    /// Name of that user
    #[arg(long, default_value = "cachekeep", requires = "print_acl")]
    user: String,
    /// Read the password from the first line of standard input
    #[arg(long)]
    password_stdin: bool,
    /// Certificates that those of rediss:// servers must be signed by, PEM
    #[arg(long, value_name = "FILE")]
    ca: Option<PathBuf>,
    /// Our certificate, where the servers want one, PEM
    #[arg(long, value_name = "FILE", requires = "key")]
    cert: Option<PathBuf>,
    /// Its private key, PEM
    #[arg(long, value_name = "FILE", requires = "cert")]
    key: Option<PathBuf>,
    /// The name that all certificates of the servers are of, where that is not each one's host
    #[arg(long, value_name = "NAME")]
    server_name: Option<String>,
    /// What Sentinels call the primary, where they watch several
    #[arg(long, value_name = "NAME")]
    primary_name: Option<String>,
    /// ACL user of the Sentinels; its password is CACHEKEEP_SENTINEL_PASSWORD
    #[arg(long, value_name = "USER")]
    sentinel_user: Option<String>,
    /// Where a node is reached that calls itself otherwise, as behind NAT: NAMED=REACHED, each HOST:PORT. May be given again
    #[arg(long, value_name = "NAMED=REACHED", value_parser = moved)]
    map: Vec<(String, String)>,
    /// Free text
    #[arg(long)]
    description: Option<String>,
}

fn moved(text: &str) -> Result<(String, String), String> {
    let (named, here) = text
        .split_once('=')
        .ok_or("NAMED=REACHED is wanted, as 172.17.0.2:6379=10.0.0.5:16379")?;
    Ok((named.to_owned(), here.to_owned()))
}

/// Runs the verb.
///
/// # Errors
/// The service does not answer, or what it refused and why.
pub(crate) fn run(global: &Global, verb: &Attach) -> anyhow::Result<()> {
    if verb.print_acl {
        print_acl(&verb.user);
        return Ok(());
    }
    let (Some(name), false) = (&verb.name, verb.servers.is_empty()) else {
        anyhow::bail!("a name and a server are wanted");
    };
    let wish = wish(verb, name)?;
    let client = Client::find(global)?;
    let found = client.call("POST", "ck/v1", "/attachments", "", Some(&wish))?;
    match global.output {
        Output::Json => println!("{found:#}"),
        Output::Table => show(global, &found),
    }
    if !global.quiet {
        match verb.dry_run {
            true => eprintln!("nothing is attached: leave --dry-run out for that"),
            false => eprintln!("attached; a backup of it: cachekeep backup create {name} --wait"),
        }
    }
    Ok(())
}

fn print_acl(user: &str) {
    println!(
        "# On every node, replicas too: users are not replicated. Then ACL SAVE, or the same as a line of redis.conf."
    );
    println!("ACL SETUSER {user} reset on >PASSWORD {NEEDED}");
    println!("# On the nodes of a cluster also:");
    println!("ACL SETUSER {user} {NEEDED_OF_CLUSTER}");
    println!(
        "# Where a capture may begin at once (else repl-diskless-sync-delay later); it lets the user change any setting:"
    );
    println!("ACL SETUSER {user} {WISHED}");
    println!("# Where a capture is not to be given up for the buffers of other replicas:");
    println!("ACL SETUSER {user} {WISHED_BY_GUARD}");
    println!(
        "# Instead of +psync and +replconf, where those are not to be had (a backup is of no single moment then):"
    );
    println!("ACL SETUSER {user} {NEEDED_WITHOUT_PSYNC}");
    println!("# For restores into them, on every node that is or may become a primary:");
    println!("ACL SETUSER {user} {NEEDED_TO_WRITE}");
    println!("ACL SETUSER {user} {NEEDED_TO_WRITE_TO_CLUSTER}");
    println!("ACL SETUSER {user} {NEEDED_TO_WRITE_LONG}");
    println!("# For restores with --functions into 7.0 and later also: {NEEDED_FOR_FUNCTIONS}");
    println!("# On Sentinels, where they want a user at all:");
    println!("ACL SETUSER {user} reset on >PASSWORD {NEEDED_OF_SENTINEL}");
}

fn wish(verb: &Attach, name: &str) -> anyhow::Result<Value> {
    let (mut addresses, mut user, mut password, mut tls) = (Vec::new(), None, None, None);
    for url in &verb.servers {
        let endpoint = alone::endpoint(url, verb.ca.as_deref())?;
        let Address::Tcp(host, port) = &endpoint.address else {
            anyhow::bail!("{url} is reached from the service's machine alone: redis://HOST:PORT is wanted");
        };
        let is_tls = endpoint.tls.is_some();
        anyhow::ensure!(
            tls.is_none_or(|before| before == is_tls),
            "all servers are reached in the same way: redis:// and rediss:// do not go together"
        );
        tls = Some(is_tls);
        addresses.push(match host.contains(':') {
            true => format!("[{host}]:{port}"),
            false => format!("{host}:{port}"),
        });
        user = user.or(endpoint.user);
        password = password.or(endpoint.password.map(|secret| secret.expose().to_owned()));
    }
    if verb.password_stdin {
        password = Some(first_line(std::io::stdin())?);
    }
    let file = |path: &Option<PathBuf>| path.as_deref().map(read).transpose();
    let map: Map<String, Value> = verb
        .map
        .iter()
        .map(|(named, here)| (named.clone(), json!(here)))
        .collect();
    Ok(json!({
        "name": name, "description": verb.description, "addresses": addresses, "user": user, "password": password,
        "tls": tls, "ca": file(&verb.ca.clone().filter(|_| tls == Some(true)))?, "certificate": file(&verb.cert)?,
        "private_key": file(&verb.key)?, "server_name": verb.server_name, "primary_name": verb.primary_name,
        "sentinel_user": verb.sentinel_user, "sentinel_password": std::env::var("CACHEKEEP_SENTINEL_PASSWORD").ok(),
        "address_map": map, "dry_run": verb.dry_run,
    }))
}

fn read(path: &Path) -> anyhow::Result<String> {
    std::fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))
}

/// What was found, for people: what it is, then its nodes, then what is to be known.
fn show(global: &Global, found: &Value) {
    let text = |name: &str| plain(&found[name]);
    println!("instance_id: {}", text("instance_id"));
    println!("name: {}", text("name"));
    println!(
        "found: {} {} {}, {} MB of data, capture by {}",
        text("cache_mode"),
        text("engine"),
        text("engine_version"),
        found["used_memory"].as_u64().unwrap_or(0) >> 20,
        text("capture")
    );
    let mut rows = Vec::new();
    for shard in found["shards"].as_array().into_iter().flatten() {
        let slots: Vec<String> = shard["slots"]
            .as_array()
            .into_iter()
            .flatten()
            .map(plain)
            .collect();
        let slots = slots.join(" ");
        rows.push(json!({"node": shard["primary"], "role": "primary", "slots": slots, "state": "ok"}));
        for replica in shard["replicas"].as_array().into_iter().flatten() {
            let state = replica["amiss"].as_str().unwrap_or("ok");
            rows.push(json!({"node": replica["address"], "role": "replica", "slots": slots, "state": state}));
        }
    }
    for sentinel in found["sentinels"].as_array().into_iter().flatten() {
        rows.push(json!({"node": sentinel, "role": "sentinel", "slots": "", "state": ""}));
    }
    print_rows(global, &["node", "role", "slots", "state"], &rows, found);
    for note in found["notes"].as_array().into_iter().flatten() {
        println!("note: {}", plain(note));
    }
}
