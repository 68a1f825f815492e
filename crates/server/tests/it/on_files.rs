//! Engines that are started by hand on a backup's files.

use std::path::Path;
use std::process::{Command, Stdio};

use serde_json::json;
use xtask::resp::{Connection, Place, Target};
use xtask::scratch::Scratch;

use crate::http::Request;
use crate::service::{Caller, wait};

/// The `DEBUG DIGEST` that this program makes of each file of a backup: not every engine makes the same of the same data.
pub fn digests(caller: &Caller, instance: &str, backup: &str, program: &Path) -> Vec<String> {
    let links = format!("/instances/{instance}/backups/{backup}/links");
    let links = caller
        .v2("POST", &links, Some(&json!({"expiration": 300})))
        .expect(200)
        .json();
    let links = links["links"].as_array().unwrap();
    let digests = links.iter().map(|link| {
        let link = link["link"].as_str().unwrap();
        let folder = Scratch::new("by-hand").unwrap();
        let (_, path) = link.split_once("//").unwrap().1.split_once('/').unwrap();
        let file = caller
            .send(Request::new("GET", &format!("/{path}")))
            .expect(200)
            .body;
        std::fs::write(folder.path().join("dump.rdb"), file).unwrap();
        let socket = folder.path().join("socket");
        let mut process = Command::new(program)
            .args(["--port", "0", "--save", "", "--logfile", "log", "--dir"])
            .arg(folder.path())
            .arg("--unixsocket")
            .arg(&socket)
            .args(match program.to_string_lossy().contains("redis-6.") {
                true => &[][..],
                false => &["--enable-debug-command", "yes"],
            })
            .stdout(Stdio::null())
            .spawn()
            .unwrap();
        let by_hand = Target {
            place: Place::Unix(socket),
            user: None,
            password: None,
        };
        let told = wait("an engine on the file", || {
            let mut connection = Connection::open(&by_hand).ok()?;
            // This is refused while it loads, and the digest is not.
            connection.ask(&["DBSIZE"]).ok()?;
            Some(connection.ask(&["DEBUG", "DIGEST"]).ok()?.text()?.to_owned())
        });
        process.kill().unwrap();
        process.wait().unwrap();
        told
    });
    digests.collect()
}
