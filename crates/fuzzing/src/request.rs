//! The request signature: what anybody may send.

use signature::{Authorization, Signed, canonical_request, decode, encode, holds, string_to_sign};

/// Percent-decoding once more, by its definition.
fn decoded(text: &[u8], plus_is_space: bool) -> Vec<u8> {
    let digit = |byte: &u8| char::from(*byte).to_digit(16).map(|value| value as u8);
    match text {
        [] => Vec::new(),
        [b'%', high, low, rest @ ..] if digit(high).is_some() && digit(low).is_some() => {
            let byte = digit(high).unwrap_or(0) << 4 | digit(low).unwrap_or(0);
            [&[byte][..], &decoded(rest, plus_is_space)].concat()
        }
        [b'+', rest @ ..] if plus_is_space => [b" ", &decoded(rest, plus_is_space)[..]].concat(),
        [byte, rest @ ..] => [&[*byte][..], &decoded(rest, plus_is_space)].concat(),
    }
}

/// Lines: the header of the authorization, method, path, query, and the value of each signed header.
pub(crate) fn signature(input: &[u8]) {
    let Ok(text) = std::str::from_utf8(input) else {
        return;
    };
    let mut lines = text.split('\n');
    let mut next = || lines.next().unwrap_or_default();
    let (header, method, path, query) = (next(), next(), next(), next());
    for part in [path, query].map(|part| part.get(..500).unwrap_or_default()) {
        for plus_is_space in [false, true] {
            let plain = decode(part, plus_is_space);
            assert_eq!(plain, decoded(part.as_bytes(), plus_is_space), "{part:?}");
            assert_eq!(decode(&encode(&plain), false), plain);
        }
    }
    let given = Authorization::parse(header);
    let names = given
        .as_ref()
        .map_or(Vec::new(), |given| given.signed_headers.clone());
    let signed = Signed {
        method,
        path,
        query,
        headers: names.into_iter().map(|name| (name, next().to_owned())).collect(),
        payload_hash: "00",
    };
    let canonical = canonical_request(&signed);
    // What was made canonical stays as it is.
    let mut parts = canonical.split('\n').skip(1);
    let (path, query) = (parts.next().unwrap_or_default(), parts.next().unwrap_or_default());
    if !method.contains('\n') {
        let again = canonical_request(&Signed {
            path,
            query,
            headers: signed.headers.clone(),
            ..signed
        });
        assert_eq!(again, canonical);
    }
    let to_sign = string_to_sign("20261125T000000Z", &canonical);
    if let Some(given) = given {
        assert!(!holds("a secret that nobody knows", &to_sign, given.signature));
    }
}

pub(crate) fn signature_seeds() -> Vec<Vec<u8>> {
    let hash = "7be6668032f70418fcc22abc52071e57aff61b84a1d2381bb430d6870f4f6ebe";
    [
        format!(
            "SDK-HMAC-SHA256 Access=AKAK, SignedHeaders=content-type;host;x-sdk-date, Signature={hash}\nGET\n\
             /v2/77b6a44c/instances/a%20b\nlimit=2&marker=13551d6b&x=a+b&c\napplication/json\nhost\n20191115T033655Z"
        ),
        "SDK-HMAC-SHA256 Access=A, SignedHeaders=host, Signature=00\nPOST\n/%7bp%7d//x/\nb=2&a=1&a=%2F&=&%zz=%\nh".to_owned(),
    ]
    .map(String::into_bytes)
    .to_vec()
}
