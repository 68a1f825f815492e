//! SDK-HMAC-SHA256: the AK/SK signature of Huawei Cloud requests. Contract §2.2.
//!
//! Pure: takes the request as it came, returns what must be compared. A crate of its own, so that the fuzzers reach
//! what a stranger's first bytes reach.

/// The algorithm's name in the header.
pub const ALGORITHM: &str = "SDK-HMAC-SHA256";

/// A parsed `Authorization` header.
#[derive(Debug, PartialEq, Eq)]
pub struct Authorization<'a> {
    /// The access key id.
    pub access: &'a str,
    /// Names of the signed headers, lower case, in the order given.
    pub signed_headers: Vec<&'a str>,
    /// The signature as sent.
    pub signature: &'a str,
}

impl<'a> Authorization<'a> {
    /// Reads `SDK-HMAC-SHA256 Access=.., SignedHeaders=..;.., Signature=..`; `None` where it is anything else.
    pub fn parse(text: &'a str) -> Option<Self> {
        let rest = text.strip_prefix(ALGORITHM)?.strip_prefix(' ')?;
        let (mut access, mut headers, mut signature) = (None, None, None);
        for part in rest.split(',') {
            let (name, value) = part.trim().split_once('=')?;
            let slot = match name {
                "Access" => &mut access,
                "SignedHeaders" => &mut headers,
                "Signature" => &mut signature,
                _ => return None,
            };
            if slot.replace(value).is_some() {
                return None;
            }
        }
        let signed_headers: Vec<&str> = headers?.split(';').collect();
        let named = signed_headers.iter().all(|name| {
            !name.is_empty()
                && name
                    .bytes()
                    .all(|byte| byte.is_ascii_graphic() && !byte.is_ascii_uppercase())
        });
        let unique = signed_headers
            .iter()
            .enumerate()
            .all(|(at, name)| !signed_headers[..at].contains(name));
        (named && unique).then_some(Self {
            access: access?,
            signed_headers,
            signature: signature?,
        })
    }
}

/// The parts of a request that a signature covers.
pub struct Signed<'a> {
    /// `GET`
    pub method: &'a str,
    /// The path as it came, percent-encoded.
    pub path: &'a str,
    /// The query as it came, without `?`.
    pub query: &'a str,
    /// Name (lower case) and value of each signed header, in the order of `SignedHeaders`.
    pub headers: Vec<(&'a str, String)>,
    /// SHA-256 of the body's bytes, hex.
    pub payload_hash: &'a str,
}

/// The canonical request: six parts.
pub fn canonical_request(signed: &Signed<'_>) -> String {
    let headers: String = signed
        .headers
        .iter()
        .map(|(name, value)| format!("{name}:{}\n", value.trim()))
        .collect();
    let names: Vec<&str> = signed.headers.iter().map(|(name, _)| *name).collect();
    [
        // As it came: `get` is another method than `GET`, and no client signs it as the same.
        signed.method.to_owned(),
        canonical_path(signed.path),
        canonical_query(signed.query),
        headers,
        names.join(";"),
        signed.payload_hash.to_owned(),
    ]
    .join("\n")
}

/// What the secret key signs.
pub fn string_to_sign(date: &str, canonical: &str) -> String {
    format!("{ALGORITHM}\n{date}\n{}", hex(&sha256(canonical.as_bytes())))
}

/// Whether `signature` (hex) is the one of `text` under `secret`, in constant time.
pub fn holds(secret: &str, text: &str, signature: &str) -> bool {
    let key = ring::hmac::Key::new(ring::hmac::HMAC_SHA256, secret.as_bytes());
    // Lower-case hex only: every other spelling would be a second valid form of the same request.
    let lower = signature.len() == 64 && !signature.bytes().any(|byte| byte.is_ascii_uppercase());
    let given = unhex(signature).unwrap_or_default();
    ring::hmac::verify(&key, text.as_bytes(), &given).is_ok() && lower
}

/// Each segment decoded and encoded again, and always a `/` at the end.
fn canonical_path(path: &str) -> String {
    let mut out: String = path
        .split('/')
        .map(|segment| encode(&decode(segment, false)))
        .collect::<Vec<_>>()
        .join("/");
    if !out.ends_with('/') {
        out.push('/');
    }
    out
}

/// Pairs sorted by decoded name and value, encoded again; a name without a value gets an empty one.
fn canonical_query(query: &str) -> String {
    let mut pairs: Vec<(Vec<u8>, Vec<u8>)> = query
        .split('&')
        .filter(|pair| !pair.is_empty())
        .map(|pair| {
            let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
            (decode(name, true), decode(value, true))
        })
        .collect();
    pairs.sort();
    let encoded: Vec<String> = pairs
        .iter()
        .map(|(name, value)| format!("{}={}", encode(name), encode(value)))
        .collect();
    encoded.join("&")
}

/// Percent-decoding; a `%` without two hex digits stands for itself. In a query `+` is a space.
pub fn decode(text: &str, plus_is_space: bool) -> Vec<u8> {
    let bytes = text.as_bytes();
    let mut out = Vec::with_capacity(bytes.len());
    let mut at = 0;
    while at < bytes.len() {
        match (bytes[at], bytes.get(at + 1..at + 3).and_then(hex_byte)) {
            (b'%', Some(byte)) => {
                out.push(byte);
                at += 2;
            }
            (b'+', _) if plus_is_space => out.push(b' '),
            (byte, _) => out.push(byte),
        }
        at += 1;
    }
    out
}

/// Percent-encoding of all but the unreserved characters.
pub fn encode(bytes: &[u8]) -> String {
    let mut out = String::with_capacity(bytes.len());
    for byte in bytes {
        match byte {
            b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'-' | b'_' | b'.' | b'~' => {
                out.push(char::from(*byte))
            }
            _ => out.push_str(&format!("%{byte:02X}")),
        }
    }
    out
}

/// Lower-case hex.
pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Reads hex of even length.
pub fn unhex(text: &str) -> Option<Vec<u8>> {
    if !text.len().is_multiple_of(2) {
        return None;
    }
    text.as_bytes().chunks(2).map(hex_byte).collect()
}

/// The byte of two hex digits. The standard library's parser takes a sign for one: `+1` would be a second way to
/// write `01`.
fn hex_byte(two: &[u8]) -> Option<u8> {
    let digit = |byte: u8| {
        char::from(byte)
            .to_digit(16)
            .and_then(|value| u8::try_from(value).ok())
    };
    match *two {
        [high, low] => Some(digit(high)? << 4 | digit(low)?),
        _ => None,
    }
}

/// SHA-256.
pub fn sha256(bytes: &[u8]) -> [u8; 32] {
    let digest = ring::digest::digest(&ring::digest::SHA256, bytes);
    let mut out = [0; 32];
    out.copy_from_slice(digest.as_ref());
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The vector that Huawei Cloud publishes for its gateway's signature.
    #[test]
    fn the_published_vector_verifies() {
        let secret = "MFyfvK41ba2giqM7Uio6PznpdUKGpownRZlmVmHc";
        let signed = Signed {
            method: "GET",
            path: "/v1/77b6a44cba5143ab91d13ab9a8ff44fd/vpcs",
            query: "limit=2&marker=13551d6b-755d-4757-b956-536f674975c0",
            headers: vec![
                ("content-type", "application/json".to_owned()),
                ("host", "service.region.example.com".to_owned()),
                ("x-sdk-date", "20191115T033655Z".to_owned()),
            ],
            payload_hash: &hex(&sha256(b"")),
        };
        let canonical = canonical_request(&signed);
        assert_eq!(
            hex(&sha256(canonical.as_bytes())),
            "b25362e603ee30f4f25e7858e8a7160fd36e803bb2dfe206278659d71a9bcd7a"
        );
        let text = string_to_sign("20191115T033655Z", &canonical);
        let signature = "7be6668032f70418fcc22abc52071e57aff61b84a1d2381bb430d6870f4f6ebe";
        assert!(holds(secret, &text, signature));
        assert!(!holds(secret, &text, &signature.to_uppercase()));
        assert!(!holds(secret, &text, &signature.replace('7', "8")));
    }

    #[test]
    fn queries_and_paths_are_sorted_and_encoded_once() {
        assert_eq!(canonical_query("b=2&a=1&a=%2F&c"), "a=%2F&a=1&b=2&c=");
        assert_eq!(canonical_query("x=a+b&y=%e5%a4%87"), "x=a%20b&y=%E5%A4%87");
        assert_eq!(canonical_path("/v2/a%20b"), "/v2/a%20b/");
        assert_eq!(canonical_path("/v2/%7bp%7d/x/"), "/v2/%7Bp%7D/x/");
    }

    #[test]
    fn a_sign_is_no_hex_digit() {
        assert_eq!(decode("%+1%-1%2", false), b"%+1%-1%2");
        assert_eq!(unhex("+1"), None);
        assert_eq!(unhex("00é0"), None);
        assert_eq!(unhex("01fF"), Some(vec![1, 255]));
    }

    #[test]
    fn only_the_one_form_of_the_header_is_read() {
        let good = "SDK-HMAC-SHA256 Access=AK, SignedHeaders=host;x-sdk-date, Signature=00";
        assert!(Authorization::parse(good).is_some());
        for bad in [
            "SDK-HMAC-SM3 Access=AK, SignedHeaders=host, Signature=00",
            "SDK-HMAC-SHA256 Access=AK, SignedHeaders=Host, Signature=00",
            "SDK-HMAC-SHA256 Access=AK, SignedHeaders=host;host, Signature=00",
            "SDK-HMAC-SHA256 Access=AK, SignedHeaders=, Signature=00",
            "SDK-HMAC-SHA256 Access=AK, Signature=00",
            "SDK-HMAC-SHA256 Access=AK, Access=BK, SignedHeaders=host, Signature=00",
            "SDK-HMAC-SHA256",
            "",
        ] {
            assert_eq!(Authorization::parse(bad), None, "{bad}");
        }
    }
}
