//! What an engine answers, and what lies in a store.

use std::sync::OnceLock;

use engine::archive::{MANIFEST_VERSION, Manifest, ObjectRecord, SegmentRecord, segment_name};
use engine::fuzzing::{
    capture, encrypted, manifest as judged, replies as all_replies, segment as opened, signed_manifest,
};
use engine::segment::PLAIN_BYTES_MAX;
use engine::{Identity, Reply, SigningKey};

use crate::INPUT_BYTES_MAX;

/// What a reply takes when it is written.
fn reply_bytes(reply: &Reply) -> usize {
    match reply {
        Reply::Simple(text) | Reply::Error(text) => text.len(),
        Reply::Int(_) | Reply::Bulk(None) => 1,
        Reply::Bulk(Some(bytes)) => bytes.len(),
        Reply::Array(items) => 1 + items.iter().map(reply_bytes).sum::<usize>(),
    }
}

/// The input is all that a peer ever says: to commands, and to a replica that wants a snapshot.
pub(crate) fn replies(input: &[u8]) {
    let input = &input[..input.len().min(INPUT_BYTES_MAX)];
    let mut taken = 0;
    let ended = all_replies(input, |reply| taken += reply_bytes(&reply));
    assert!(ended.is_err(), "replies without an end");
    // A byte that is no UTF-8 becomes three.
    assert!(taken <= 3 * input.len(), "{taken} bytes out of {}", input.len());
    let (small, large) = (capture(input, 41), capture(input, INPUT_BYTES_MAX));
    if let (Ok(small), Ok(large)) = (small, large) {
        // No engine sends anything behind the mark; where a stranger does, it ends the snapshot or does not, as the
        // bytes come, and the validator judges what there is.
        assert!(small.starts_with(&large) || large.starts_with(&small));
        assert!(small.len().max(large.len()) <= input.len());
    }
}

pub(crate) fn replies_seeds() -> Vec<Vec<u8>> {
    let replid = "8371b4fb1155b71f4a04d3e1bc3e18c4a990aeeb";
    let mark = "0123456789abcdef0123456789abcdef01234567";
    [
        format!("+OK\r\n-ERR unknown\r\n\n\n+FULLRESYNC {replid} 1\r\n\n$10\r\nREDIS0011x"),
        format!("+OK\r\n+OK\r\n+FULLRESYNC {replid} 77\r\n$EOF:{mark}\r\nREDIS0011 and so on{mark}"),
        "-NOAUTH Authentication required.\r\n".to_owned(),
        "+OK\r\n+OK\r\n-LOADING Redis is loading the dataset in memory\r\n".to_owned(),
        "*3\r\n$3\r\nabc\r\n:-17\r\n*2\r\n+a\r\n$-1\r\n*0\r\n*-1\r\n$0\r\n\r\n".to_owned(),
        "*1\r\n".repeat(8) + ":1\r\n",
    ]
    .map(String::into_bytes)
    .to_vec()
}

fn signer() -> &'static SigningKey {
    // Of no use to anybody: made for this, and printed here.
    const KEY: &str = "302e020100300506032b65700422042000000000000000000000000000000000\
                       00000000000000000000000000000001";
    static SIGNER: OnceLock<SigningKey> = OnceLock::new();
    SIGNER.get_or_init(
        || match SigningKey::parse(KEY).or_else(|_| SigningKey::generate()) {
            Ok(key) => key,
            Err(error) => panic!("no key to sign with: {error}"),
        },
    )
}

fn identity() -> &'static Identity {
    static IDENTITY: OnceLock<Identity> = OnceLock::new();
    IDENTITY.get_or_init(Identity::generate)
}

/// The input is the object of a manifest, and the text in it with a signature that holds.
pub(crate) fn manifest(input: &[u8]) {
    assert!(judged(input, signer()).is_err(), "a signature out of nothing");
    let Ok(text) = std::str::from_utf8(input) else {
        return;
    };
    if let Ok(manifest) = signed_manifest(text, signer()) {
        let total: u64 = manifest
            .segments
            .iter()
            .map(|segment| segment.object.plain_bytes)
            .sum();
        assert_eq!(total, manifest.plain_bytes);
        let again = serde_json::to_string(&manifest).unwrap_or_default();
        assert_eq!(signed_manifest(&again, signer()).ok(), Some(manifest));
    }
}

pub(crate) fn manifest_seeds() -> Vec<Vec<u8>> {
    let object = |name: String, plain_bytes| ObjectRecord {
        name,
        plain_bytes,
        stored_bytes: 300,
        plain_blake3: "ab".repeat(32),
        stored_blake3: "cd".repeat(32),
    };
    let manifest = Manifest {
        version: MANIFEST_VERSION,
        project: "project".to_owned(),
        instance: "instance".to_owned(),
        backup: "backup".to_owned(),
        attempt: 1,
        created_at_ms: 1_795_000_000_000,
        engine_version: "7.0.15".to_owned(),
        rdb_version: 10,
        replid: "8371b4fb1155b71f4a04d3e1bc3e18c4a990aeeb".to_owned(),
        offset: 77,
        keys: 3,
        plain_bytes: 900,
        stored_bytes: 600,
        recipient: identity().recipient().to_string(),
        details: object("details.age".to_owned(), 100),
        index: None,
        segments: [0, 1]
            .map(|index| SegmentRecord {
                object: object(segment_name(index), 450),
                first_offset: 450 * index as u64,
                mid_key: index > 0,
                db: 0,
            })
            .to_vec(),
        shards: Vec::new(),
    };
    let later = Manifest {
        version: 3,
        ..manifest.clone()
    };
    [manifest, later].iter().flat_map(serde_json::to_vec).collect()
}

/// The input is a form, a claimed size of three bytes, and the bytes of an object, or of the frame in it.
pub(crate) fn segment(input: &[u8]) {
    let [form, a, b, c, bytes @ ..] = input else {
        return;
    };
    let claimed = u64::from(u32::from_le_bytes([*a, *b, *c, 0])) * 3;
    assert!(claimed <= 2 * PLAIN_BYTES_MAX);
    let stored = if form % 2 == 0 {
        bytes.to_vec()
    } else {
        match encrypted(bytes, identity()) {
            Ok(stored) => stored,
            Err(error) => panic!("{error}"),
        }
    };
    let opened = opened(&stored, claimed, "no digest", identity());
    assert!(opened.is_err(), "opened against a digest that is none");
}

pub(crate) fn segment_seeds() -> Vec<Vec<u8>> {
    let plain = b"REDIS0011 and more of it, again and again and again".repeat(30);
    let size = (plain.len() as u32 / 3).to_le_bytes();
    let frames = [1, 3].map(|level| zstd::bulk::compress(&plain, level).unwrap_or_default());
    let mut seeds = Vec::new();
    for frame in frames {
        let stored = encrypted(&frame, identity()).unwrap_or_default();
        seeds.push([&[1], &size[..3], &frame].concat());
        seeds.push([&[0], &size[..3], &stored].concat());
        seeds.push([&[1, 0, 0, 0], &frame[..]].concat());
    }
    seeds
}
