//! Hashes of logical content, independent of how the content is encoded.
//!
//! A byte string hashes to its XXH3-128, except that a string which is the canonical decimal form of an
//! `i64` hashes by that number: packed encodings store such strings as integers, and need not be turned
//! back into text. Hashes are combined with [`mix`]; order-independent collections add up the hashes of
//! their elements.

use xxhash_rust::xxh3;

/// A 128-bit digest, most significant byte first.
pub type Digest = [u8; 16];

const P1: u128 = 0x9e37_79b9_7f4a_7c15_f39c_c060_5ced_c835;
const P2: u128 = 0xd1b5_4a32_d192_ed03_aef1_7502_108e_f2d9;
const P3: u128 = 0xa24b_aed4_963e_e407_9fb2_1c65_1e98_df25;
const INTEGER: u128 = 0x6a09_e667_f3bc_c908_bb67_ae85_84ca_a73b;

/// Combines two hashes; order matters. One-to-one in each argument while the other is fixed.
#[inline]
pub(crate) fn mix(first: u128, second: u128) -> u128 {
    let mut t = first.wrapping_mul(P1).rotate_left(59) ^ second;
    t = t.wrapping_mul(P2);
    t ^= t >> 65;
    t = t.wrapping_mul(P3);
    t ^ (t >> 63)
}

/// The hash of a byte string.
#[inline]
pub(crate) fn of_bytes(bytes: &[u8]) -> u128 {
    match canonical_integer(bytes) {
        Some(value) => of_integer(value),
        None => xxh3::xxh3_128(bytes),
    }
}

/// The hash that [`KeySummary::key_hash`](crate::KeySummary::key_hash) has of a key. Not keyed: who chooses keys can make
/// two of one hash.
pub fn hash_of_key(key: &[u8]) -> u128 {
    of_bytes(key)
}

/// The hash of the decimal form of an integer.
#[inline]
pub(crate) fn of_integer(value: i64) -> u128 {
    mix(INTEGER, u128::from(value.cast_unsigned()))
}

/// The integer whose shortest decimal form the bytes are, if they are one.
#[inline]
pub(crate) fn canonical_integer(bytes: &[u8]) -> Option<i64> {
    let first = *bytes.first()?;
    if bytes.len() > 20 || !(first == b'-' || first.is_ascii_digit()) {
        return None;
    }
    let (negative, digits) = match bytes {
        [b'-', digits @ ..] => (true, digits),
        digits => (false, digits),
    };
    match digits {
        [] => return None,
        [b'0'] => return if negative { None } else { Some(0) },
        [b'0', ..] => return None,
        _ if digits.len() > 19 => return None,
        _ => {}
    }
    // Nineteen digits always fit a u64.
    let mut magnitude: u64 = 0;
    for digit in digits {
        let digit = digit.wrapping_sub(b'0');
        if digit > 9 {
            return None;
        }
        magnitude = magnitude * 10 + u64::from(digit);
    }
    if negative {
        0i64.checked_sub_unsigned(magnitude)
    } else {
        i64::try_from(magnitude).ok()
    }
}

/// Appends the decimal form of an integer.
pub(crate) fn push_decimal(out: &mut Vec<u8>, value: i64) {
    let mut digits = [0u8; 20];
    let mut at = digits.len();
    let mut rest = value.unsigned_abs();
    loop {
        at -= 1;
        digits[at] = b'0' + (rest % 10) as u8;
        rest /= 10;
        if rest == 0 {
            break;
        }
    }
    if value < 0 {
        out.push(b'-');
    }
    out.extend_from_slice(&digits[at..]);
}

/// Hashes a string that arrives in pieces. Only for strings too long to be integers.
#[derive(Default)]
pub(crate) struct Hasher(xxh3::Xxh3);

impl Hasher {
    pub(crate) fn reset(&mut self) {
        self.0.reset();
    }

    pub(crate) fn update(&mut self, bytes: &[u8]) {
        self.0.update(bytes);
    }

    pub(crate) fn finish(&self) -> u128 {
        self.0.digest128()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn canonical_integers_hash_like_integers_and_other_texts_do_not() {
        for value in [0, 1, -1, 9, 10, 12345, -12345, i64::MAX, i64::MIN, i64::MAX - 1] {
            let mut text = Vec::new();
            push_decimal(&mut text, value);
            assert_eq!(text, value.to_string().as_bytes());
            assert_eq!(canonical_integer(&text), Some(value));
            assert_eq!(of_bytes(&text), of_integer(value));
        }
        for text in [
            &b""[..],
            b"-",
            b"-0",
            b"00",
            b"01",
            b"+1",
            b"1 ",
            b" 1",
            b"9223372036854775808",
            b"-9223372036854775809",
            b"99999999999999999999",
            b"-99999999999999999999",
            b"12a",
        ] {
            assert_eq!(canonical_integer(text), None, "{text:?}");
        }
    }

    #[test]
    fn pieces_hash_like_the_whole() {
        let bytes: Vec<u8> = (0..100_000u32).map(|i| (i * 7 % 251) as u8).collect();
        let mut hasher = Hasher::default();
        for piece in bytes.chunks(777) {
            hasher.update(piece);
        }
        assert_eq!(hasher.finish(), of_bytes(&bytes));
    }

    #[test]
    fn mixing_depends_on_order() {
        assert_ne!(mix(1, 2), mix(2, 1));
        assert_ne!(mix(0, 1), mix(0, 2));
    }
}
