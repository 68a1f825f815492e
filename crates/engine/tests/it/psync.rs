//! The replica's side against a scripted source: framing, keep-alives, refusals.

use std::io::{Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::time::Duration;

use engine::psync::Handshake;
use engine::{Address, Control, Endpoint, Error, Kind, Node};

use crate::harness::Scratch;

const MARK: &str = "0123456789abcdef0123456789abcdef01234567";
const FULLRESYNC: &str = "+FULLRESYNC 8de1787ba490483314a4d30f1c628bc5025eb761 1234\r\n";

/// What the capture gets from a source that answers `PSYNC` with these pieces, one write each, and then hangs or
/// hangs up.
fn capture(pieces: &[&[u8]], hangs_up: bool, idle: Duration) -> Result<(Vec<u8>, i64), Error> {
    let scratch = Scratch::new();
    let listener = UnixListener::bind(scratch.join("s")).unwrap();
    let endpoint = Endpoint {
        address: Address::Unix(scratch.join("s")),
        user: None,
        password: None,
        tls: None,
        timeout: Duration::from_secs(5),
    };
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let (mut peer, _) = listener.accept().unwrap();
            wait_for(&mut peer, b"psync2\r\n");
            peer.write_all(b"+OK\r\n").unwrap();
            wait_for(&mut peer, b"rdb-only\r\n$1\r\n1\r\n");
            peer.write_all(b"-ERR Unrecognized REPLCONF option: rdb-only\r\n")
                .unwrap();
            wait_for(&mut peer, b"-1\r\n");
            for piece in pieces {
                if peer.write_all(piece).is_err() {
                    return;
                }
                std::thread::sleep(Duration::from_millis(1));
            }
            if !hangs_up {
                let _until_the_capture_hangs_up = peer.read(&mut [0]);
            }
        });
        let control = Control::new(Some(Duration::from_secs(20)));
        let started = Handshake::begin(Node::connect(&endpoint)?, idle)?.started(&control)?;
        let mut snapshot = started.payload(&control)?;
        let (mut rdb, mut chunk) = (Vec::new(), Vec::new());
        loop {
            let more = snapshot.fill(&mut chunk, 64, || control.check("test"))?;
            rdb.extend_from_slice(&chunk);
            if !more {
                return Ok((rdb, snapshot.offset));
            }
        }
    })
}

fn wait_for(peer: &mut UnixStream, end: &[u8]) {
    let mut seen = Vec::new();
    let mut byte = [0];
    while !seen.ends_with(end) {
        assert_eq!(peer.read(&mut byte).unwrap(), 1);
        seen.push(byte[0]);
    }
}

const PATIENT: Duration = Duration::from_secs(10);

#[test]
fn length_framing_yields_exactly_the_counted_bytes() {
    let rdb: Vec<u8> = (0..=255).cycle().take(1000).collect();
    for cut in [0, 1, 500, 999, 1000] {
        let header = [FULLRESYNC.as_bytes(), b"$1000\r\n"].concat();
        let tail = [&rdb[cut..], b"*1\r\n$4\r\nPING\r\n"].concat();
        let (got, offset) = capture(&[b"\n\n", &header, &rdb[..cut], &tail], false, PATIENT).unwrap();
        assert!(got == rdb && offset == 1234, "cut at {cut}");
    }
}

#[test]
fn mark_is_found_however_the_reads_split_it() {
    // The payload holds the start of the mark, so a half match must not end it.
    let rdb = [
        &b"RDB"[..],
        &MARK.as_bytes()[..39],
        b"!",
        &[b'x'; 50],
        &MARK.as_bytes()[..20],
    ]
    .concat();
    let header = [FULLRESYNC.as_bytes(), b"\n\n$EOF:", MARK.as_bytes(), b"\r\n"].concat();
    let whole = [&rdb[..], MARK.as_bytes()].concat();
    for cut in 0..whole.len() {
        let (got, _) = capture(&[&header, &whole[..cut], &whole[cut..]], false, PATIENT).unwrap();
        assert!(got == rdb, "cut at {cut}");
    }
    let bytes: Vec<&[u8]> = whole.chunks(1).collect();
    assert!(
        capture(&[&[&header[..]], &bytes[..]].concat(), true, PATIENT)
            .unwrap()
            .0
            == rdb
    );
}

#[test]
fn empty_payload_of_counted_length_ends_at_once() {
    let answer = [FULLRESYNC.as_bytes(), b"$0\r\n"].concat();
    assert_eq!(capture(&[&answer], false, PATIENT).unwrap().0, b"");
}

#[test]
fn refusals_keep_the_text_of_the_engine() {
    for (answer, kind) in [
        ("-NOAUTH Authentication required.\r\n", Kind::Auth),
        (
            "-NOPERM this user has no permissions to run the 'psync' command\r\n",
            Kind::Refused,
        ),
        (
            "-LOADING Redis is loading the dataset in memory\r\n",
            Kind::Refused,
        ),
        ("-MASTERDOWN Link with MASTER is down\r\n", Kind::Refused),
        (
            "-NOMASTERLINK Can't SYNC while not connected with my master\r\n",
            Kind::Refused,
        ),
        ("-ERR unknown command 'PSYNC'\r\n", Kind::Refused),
    ] {
        let error = capture(&[answer.as_bytes()], false, PATIENT).unwrap_err();
        assert_eq!(error.kind, kind);
        assert!(error.context.contains(answer[1..].trim_end()), "{error}");
        // A fork that fails is told after +FULLRESYNC.
        let later = [FULLRESYNC, answer].concat();
        assert_eq!(
            capture(&[later.as_bytes()], false, PATIENT).unwrap_err().kind,
            kind
        );
    }
}

#[test]
fn answers_out_of_protocol_are_refused() {
    let long = "x".repeat(5000);
    for answer in [
        "+CONTINUE\r\n",
        "+FULLRESYNC short 1\r\n",
        "+FULLRESYNC 8de1787ba490483314a4d30f1c628bc5025eb761 many\r\n",
        "+FULLRESYNC 8de1787ba490483314a4d30f1c628bc5025eb761\r\n",
        ":1\r\n",
        &long,
    ] {
        let error = capture(&[answer.as_bytes()], false, PATIENT).unwrap_err();
        assert_eq!(error.kind, Kind::Protocol, "{answer}");
        assert!(error.context.len() < 300);
    }
    for header in [
        "$\r\n",
        "$-1\r\n",
        "$EOF:short\r\n",
        "$12x\r\n",
        "REDIS0011",
        "*1\r\n",
    ] {
        let answer = [FULLRESYNC, header, "\r\n"].concat();
        assert_eq!(
            capture(&[answer.as_bytes()], false, PATIENT).unwrap_err().kind,
            Kind::Protocol,
            "{header}"
        );
    }
}

#[test]
fn silence_and_hang_ups_are_told_apart() {
    let short = Duration::from_millis(300);
    let answer = [FULLRESYNC.as_bytes(), b"$EOF:", MARK.as_bytes(), b"\r\nREDIS"].concat();
    for pieces in [&[&b""[..]][..], &[b"\n"], &[FULLRESYNC.as_bytes()], &[&answer]] {
        assert_eq!(capture(pieces, false, short).unwrap_err().kind, Kind::Idle);
        assert_eq!(capture(pieces, true, PATIENT).unwrap_err().kind, Kind::Connection);
    }
}

#[test]
fn keep_alives_count_as_life() {
    let mut pieces: Vec<&[u8]> = vec![b"\n"; 150];
    let answer = [FULLRESYNC.as_bytes(), b"$4\r\nRDB!"].concat();
    pieces.push(&answer);
    assert_eq!(
        capture(&pieces, false, Duration::from_millis(120)).unwrap().0,
        b"RDB!"
    );
}
