//! Servers that take commands as an engine does, and answer what a test says.

use std::io::{BufRead, BufReader};
use std::net::TcpStream;

/// Takes the commands of a client, each in lower case, and lets `answer` write what it says to them, until either side is gone or
/// `answer` fails.
pub fn serve(client: TcpStream, answer: impl Fn(&[&str], &mut TcpStream) -> std::io::Result<()>) {
    let Ok(input) = client.try_clone() else {
        return;
    };
    let (mut input, mut output) = (BufReader::new(input), client);
    while let Ok(Some(words)) = command(&mut input) {
        let words: Vec<&str> = words.iter().map(String::as_str).collect();
        if answer(&words, &mut output).is_err() {
            return;
        }
    }
}

/// The next command; `None` at the end.
fn command(input: &mut impl BufRead) -> std::io::Result<Option<Vec<String>>> {
    let mut line = String::new();
    if input.read_line(&mut line)? == 0 {
        return Ok(None);
    }
    let count: usize = line.trim_start_matches('*').trim().parse().unwrap_or(0);
    let mut words = Vec::new();
    for _ in 0..count {
        line.clear();
        input.read_line(&mut line)?;
        let length: usize = line.trim_start_matches('$').trim().parse().unwrap_or(0);
        let mut word = vec![0; length + 2];
        input.read_exact(&mut word)?;
        words.push(String::from_utf8_lossy(&word[..length]).to_lowercase());
    }
    Ok(Some(words))
}

pub fn bulk(text: &str) -> String {
    format!("${}\r\n{text}\r\n", text.len())
}

pub fn list(items: &[String]) -> String {
    format!("*{}\r\n{}", items.len(), items.concat())
}

/// What an engine of version 7.0 with little data says, which knows few commands.
pub fn as_engine(words: &[&str]) -> String {
    match words {
        ["info", "server"] => bulk("redis_mode:standalone\r\nredis_version:7.0.15\r\n"),
        ["info", "replication"] => bulk("role:master\r\nconnected_slaves:0\r\nmaster_repl_offset:1\r\n"),
        ["info", "memory"] => bulk("used_memory:1000000\r\nmaxmemory:0\r\n"),
        ["info", _] => bulk("loading:0\r\n"),
        ["ping"] => "+PONG\r\n".to_owned(),
        ["replconf", ..] => "+OK\r\n".to_owned(),
        _ => "-ERR unknown command\r\n".to_owned(),
    }
}
