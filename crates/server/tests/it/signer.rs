//! SDK-HMAC-SHA256 a second time, written from the description of what clients do and not from the service's code.

use crate::http::Request;

/// Both halves of an access key.
#[derive(Debug, Clone)]
pub struct Key {
    pub ak: String,
    pub sk: String,
}

/// The moment as the header wants it, so many seconds from now.
pub fn date(offset_seconds: i64) -> String {
    let at = jiff::Timestamp::now() + jiff::SignedDuration::from_secs(offset_seconds);
    at.strftime("%Y%m%dT%H%M%SZ").to_string()
}

impl Key {
    /// Signs a request now. `signed` names the headers to be covered; they are in the request already, but for the
    /// date, which is added.
    pub fn sign(&self, request: Request, signed: &[&str]) -> Request {
        self.sign_at(request, signed, &date(0))
    }

    pub fn sign_at(&self, request: Request, signed: &[&str], date: &str) -> Request {
        let hash = sha256_hex(&request.body);
        self.sign_payload(request, signed, date, &hash)
    }

    pub fn sign_payload(&self, request: Request, signed: &[&str], date: &str, payload: &str) -> Request {
        let request = request.with("X-Sdk-Date", date);
        let mut names: Vec<String> = signed.iter().map(|name| name.to_lowercase()).collect();
        names.push("x-sdk-date".to_owned());
        names.sort();
        let list = names.join(";");
        let mut text = format!("{}\n{}\n", request.method, uri(&request.target));
        text += &query(&request.target);
        text.push('\n');
        for name in &names {
            let value = request
                .header(name)
                .unwrap_or_else(|| panic!("{name} is not in the request"));
            text += &format!("{name}:{}\n", value.trim());
        }
        text += &format!("\n{list}\n{payload}");
        let to_sign = format!("SDK-HMAC-SHA256\n{date}\n{}", sha256_hex(text.as_bytes()));
        let key = ring::hmac::Key::new(ring::hmac::HMAC_SHA256, self.sk.as_bytes());
        let signature = hex(ring::hmac::sign(&key, to_sign.as_bytes()).as_ref());
        let value = format!(
            "SDK-HMAC-SHA256 Access={}, SignedHeaders={list}, Signature={signature}",
            self.ak
        );
        request.with("Authorization", &value)
    }
}

fn uri(target: &str) -> String {
    let path = target.split('?').next().unwrap_or_default();
    let mut out = String::new();
    for segment in path.split('/').skip(1) {
        out.push('/');
        out += &escape(&unescape(segment));
    }
    if !out.ends_with('/') {
        out.push('/');
    }
    out
}

fn query(target: &str) -> String {
    let Some((_, text)) = target.split_once('?') else {
        return String::new();
    };
    let mut pairs = Vec::new();
    for pair in text.split('&').filter(|pair| !pair.is_empty()) {
        let mut halves = pair.splitn(2, '=');
        let mut half = || unescape(&halves.next().unwrap_or_default().replace('+', " "));
        pairs.push((half(), half()));
    }
    pairs.sort();
    let words: Vec<String> = pairs
        .iter()
        .map(|(name, value)| format!("{}={}", escape(name), escape(value)))
        .collect();
    words.join("&")
}

fn unescape(text: &str) -> Vec<u8> {
    let mut out = Vec::new();
    let mut rest = text.as_bytes();
    while let Some((first, after)) = rest.split_first() {
        if let (b'%', [high, low, beyond @ ..]) = (first, after) {
            let digits = [*high, *low];
            let digits = std::str::from_utf8(&digits).unwrap();
            out.push(u8::from_str_radix(digits, 16).unwrap());
            rest = beyond;
        } else {
            out.push(*first);
            rest = after;
        }
    }
    out
}

/// Percent-encoding of all but the unreserved characters.
pub fn escape(bytes: &[u8]) -> String {
    let plain = |byte: &u8| byte.is_ascii_alphanumeric() || b"-_.~".contains(byte);
    bytes
        .iter()
        .map(|byte| match plain(byte) {
            true => char::from(*byte).to_string(),
            false => format!("%{byte:02X}"),
        })
        .collect()
}

pub fn sha256_hex(bytes: &[u8]) -> String {
    hex(ring::digest::digest(&ring::digest::SHA256, bytes).as_ref())
}

pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
