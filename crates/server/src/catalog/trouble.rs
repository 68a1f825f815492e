//! A server that refuses, ends a connection, or says nothing: what is asked next goes well.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::time::{Duration, Instant};

use xtask::postgres::Postgres;

use super::*;

fn catalogue(schema: &str) -> (Postgres, Catalog) {
    let server = Postgres::start().unwrap();
    let url = server.make_schema(schema).unwrap();
    let catalog = Catalog::connect(&url, true).unwrap();
    (server, catalog)
}

fn count(catalog: &Catalog) -> Result<Option<i64>, Error> {
    catalog.read(|tx| tx.one("SELECT count(*) FROM project", (), |row| row.get(0)))
}

/// The number that this statement answers with, once it answers.
fn found(server: &Postgres, asked: &str) -> String {
    let since = Instant::now();
    loop {
        let answer = server.sql(asked).unwrap().trim().to_owned();
        if !answer.is_empty() {
            return answer;
        }
        assert!(since.elapsed() < Duration::from_secs(20), "{asked}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

#[test]
fn a_write_that_is_refused_as_it_begins_leaves_no_connection_within_what_failed() {
    let (server, catalog) = catalogue("refused");
    let (has_lock, told) = std::sync::mpsc::sync_channel(1);
    let (release, released) = std::sync::mpsc::sync_channel::<()>(1);
    let other = Catalog::connect(&server.url("refused"), true).unwrap();
    std::thread::scope(|scope| {
        let other = &other;
        let holder = scope.spawn(move || {
            other.write(|_| {
                has_lock.send(()).unwrap();
                released.recv().unwrap();
                Ok::<_, Error>(())
            })
        });
        told.recv().unwrap();
        let refused = scope.spawn(|| catalog.write(|_| Ok::<_, Error>(())));
        let waiting =
            "SELECT pid FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND wait_event = 'advisory'";
        let pid = found(&server, waiting);
        server.sql(&format!("SELECT pg_cancel_backend({pid})")).unwrap();
        let refused = refused.join().unwrap();
        assert!(matches!(refused, Err(Error::Away(_))), "{refused:?}");
        release.send(()).unwrap();
        holder.join().unwrap().unwrap();
    });
    // The connection that was given back last is taken first.
    let seen = catalog.seen().unwrap();
    let looked = catalog.look(seen, |tx| {
        tx.one("SELECT count(*) FROM project", (), |row| row.get::<i64>(0))
    });
    assert!(matches!(looked, Ok(Some(0))), "{looked:?}");
    catalog.write(|_| Ok::<_, Error>(())).unwrap();
}

#[test]
fn a_read_on_a_connection_that_the_server_has_ended_is_answered_by_another_one() {
    let (server, catalog) = catalogue("ended");
    assert!(matches!(count(&catalog), Ok(Some(0))));
    let others =
        "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity WHERE application_name = 'cachekeep'";
    assert_eq!(server.sql(others).unwrap().trim(), "1");
    let again = count(&catalog);
    assert!(matches!(again, Ok(Some(0))), "{again:?}");
}

/// A link on which the server's last words come once the client has asked again, and the end of the connection not at all.
fn link_that_hides_the_end(server: SocketAddr) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    std::thread::spawn(move || {
        for client in listener.incoming() {
            let (mut client, mut server) = (client.unwrap(), TcpStream::connect(server).unwrap());
            let (mut from_client, mut to_server) = (client.try_clone().unwrap(), server.try_clone().unwrap());
            let (asked, is_asked) = std::sync::mpsc::sync_channel(1);
            std::thread::spawn(move || {
                let mut bytes = [0; 4096];
                while let Ok(count @ 1..) = from_client.read(&mut bytes) {
                    // The server may be gone: what was asked is told all the same.
                    let _sent = to_server.write_all(&bytes[..count]);
                    let _told = asked.try_send(());
                }
            });
            std::thread::spawn(move || {
                let mut bytes = [0; 4096];
                while let Ok(count @ 1..) = server.read(&mut bytes) {
                    if bytes[..count].windows(5).any(|word| word == b"FATAL") {
                        while is_asked.try_recv().is_ok() {}
                        is_asked.recv().unwrap();
                    }
                    client.write_all(&bytes[..count]).unwrap();
                }
                // Until the client has given up.
                while is_asked.recv().is_ok() {}
            });
        }
    });
    address
}

#[test]
fn the_last_word_of_a_server_that_ends_a_connection_is_no_answer_to_a_read() {
    let (server, _made) = catalogue("last_word");
    let link = link_that_hides_the_end(server.address());
    let own = format!("127.0.0.1:{}", server.address().port());
    let url = server.url("last_word").replace(&own, &link.to_string());
    let catalog = Catalog::connect(&url, false).unwrap();
    assert!(matches!(count(&catalog), Ok(Some(0))));
    // What is owed to the server has been sent, so that the next words are the next read's.
    let idle = "FROM pg_stat_activity WHERE application_name = 'cachekeep' AND query = 'COMMIT'";
    let pid = found(&server, &format!("SELECT pid {idle}"));
    server
        .sql(&format!("SELECT pg_terminate_backend({pid})"))
        .unwrap();
    let again = count(&catalog);
    assert!(matches!(again, Ok(Some(0))), "{again:?}");
}

#[test]
fn a_server_that_takes_questions_and_answers_none_is_not_well_and_keeps_no_thread() {
    let (server, catalog) = catalogue("silent");
    assert!(catalog.is_readable());
    let asked = "SELECT pid FROM pg_stat_activity WHERE application_name = 'cachekeep' ORDER BY pid";
    let pids = server.sql(asked).unwrap();
    let pids: Vec<&str> = pids.split_whitespace().collect();
    let signal = |name: &str| {
        let sent = std::process::Command::new("kill").arg(name).args(&pids).status();
        assert!(sent.unwrap().success());
    };
    signal("-STOP");
    // A new connection is answered, for the server itself goes on; the one that is kept is given up after two seconds.
    let since = Instant::now();
    let healths: Vec<bool> = std::thread::scope(|scope| {
        let asking: Vec<_> = (0..4).map(|_| scope.spawn(|| catalog.is_readable())).collect();
        asking.into_iter().map(|one| one.join().unwrap()).collect()
    });
    let took = since.elapsed();
    signal("-CONT");
    assert!(took < Duration::from_secs(8), "{took:?}");
    assert!(healths.contains(&true), "{healths:?}");
    assert!(catalog.is_readable());
}

#[test]
fn the_servers_of_a_url_are_tried_in_their_order_for_what_it_asks_of_them() {
    let (server, _made) = catalogue("several");
    let url = server.url("several");
    let port = server.address().port();
    let nobody = TcpListener::bind("127.0.0.1:0").unwrap();
    let dead = nobody.local_addr().unwrap().port();
    drop(nobody);
    let own = format!("@127.0.0.1:{port}/");
    assert!(url.contains(&own) && url.contains("sslmode=disable"), "{url}");
    let folder = server.data_folder().display().to_string().replace('/', "%2F");
    let with = |hosts: &str| url.replace(&own, &format!("@{hosts}/"));
    for asked in [
        with(&format!("127.0.0.1:{dead},127.0.0.1:{port}")),
        // It is asked whether it speaks TLS, and does not.
        with(&format!("localhost:{port}")).replace("sslmode=disable", "sslmode=prefer"),
        with(&format!("{folder}:{port}")),
        format!("{url}&target_session_attrs=read-write&load_balance_hosts=random"),
        format!("{url}&hostaddr=127.0.0.1"),
    ] {
        let catalog = Catalog::connect(&asked, false).unwrap_or_else(|error| panic!("{asked}: {error:?}"));
        assert!(matches!(count(&catalog), Ok(Some(0))), "{asked}");
    }
    let refused = |asked: &str| match Catalog::connect(asked, false) {
        Ok(catalog) => count(&catalog).unwrap_err(),
        Err(error) => error,
    };
    let told = |error: &Error| format!("{error:?}");
    let error = refused(&with(&format!("127.0.0.1:{dead}")));
    assert!(
        matches!(error, Error::Away(_)) && told(&error).contains("refused"),
        "{error:?}"
    );
    let error = refused(&format!("{url}&target_session_attrs=read-only"));
    assert!(matches!(error, Error::Away(_)), "{error:?}");
    let error = refused(&url.replace("sslmode=disable", "sslmode=require"));
    assert!(told(&error).contains("TLS"), "{error:?}");
}

#[test]
fn a_read_is_over_soon_for_the_server_though_nobody_asks_again() {
    let (server, catalog) = catalogue("over");
    assert!(matches!(count(&catalog), Ok(Some(0))));
    let of_ours = "FROM pg_stat_activity WHERE application_name = 'cachekeep'";
    let pid = found(
        &server,
        &format!("SELECT pid {of_ours} AND (query LIKE '%project%' OR query = 'COMMIT') LIMIT 1"),
    );
    let idle = format!("SELECT pid {of_ours} AND state = 'idle' AND query = 'COMMIT'");
    assert_eq!(found(&server, &idle), pid);
    // The next one begins on the same connection.
    assert!(matches!(count(&catalog), Ok(Some(0))));
    assert_eq!(found(&server, &idle), pid);
}
