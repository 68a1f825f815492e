//! Patterns for keys, as the `KEYS` command knows them.

/// Whether a key matches: `*` any bytes, `?` any byte, `[a-c]` and `[^a-c]` one of a class, `\` the next byte as it
/// is.
pub(super) fn matches(pattern: &[u8], key: &[u8]) -> bool {
    // Engines look at no pattern for a key without a byte, but for the one star that takes all keys.
    if key.is_empty() {
        return pattern.is_empty() || pattern == b"*";
    }
    let (mut p, mut k) = (0, 0);
    // Where to go on after the last star: behind it in the pattern, and at the next byte of the key.
    let mut retry: Option<(usize, usize)> = None;
    loop {
        let step = match (pattern.get(p), key.get(k)) {
            (None, None) => return true,
            (Some(b'*'), _) => {
                retry = Some((p + 1, k));
                p += 1;
                continue;
            }
            (Some(_), Some(byte)) => one(&pattern[p..], *byte),
            _ => None,
        };
        match (step, retry) {
            (Some(used), _) => (p, k) = (p + used, k + 1),
            (None, Some((behind, from))) if from < key.len() => {
                retry = Some((behind, from + 1));
                (p, k) = (behind, from + 1);
            }
            _ => return false,
        }
    }
}

/// Bytes of the pattern's next item, if that matches the byte.
fn one(pattern: &[u8], byte: u8) -> Option<usize> {
    match pattern {
        [b'?', ..] => Some(1),
        [b'\\', escaped, ..] => (*escaped == byte).then_some(2),
        [b'[', class @ ..] => {
            let (negated, mut rest) = match class {
                [b'^', rest @ ..] => (true, rest),
                rest => (false, rest),
            };
            let mut found = false;
            loop {
                let (used, hit) = match rest {
                    // A class that is not closed ends with the pattern.
                    [] | [b']', ..] => break,
                    [b'\\', escaped, ..] => (2, *escaped == byte),
                    // Whatever byte stands behind the dash, a closing bracket too.
                    [low, b'-', high, ..] => (3, (*low.min(high)..=*low.max(high)).contains(&byte)),
                    [single, ..] => (1, *single == byte),
                };
                found |= hit;
                rest = &rest[used..];
            }
            let used = pattern.len() - rest.len() + usize::from(!rest.is_empty());
            (found != negated).then_some(used)
        }
        [literal, ..] => (*literal == byte).then_some(1),
        [] => None,
    }
}

#[cfg(test)]
mod tests {
    use super::matches;

    #[test]
    fn patterns_match_as_the_engines_do() {
        for (pattern, key, expected) in [
            ("", "", true),
            ("*", "", true),
            ("user:*", "user:1", true),
            ("user:*", "use", false),
            ("*:1", "user:21:1", true),
            ("a*b*c", "aXbXbc", true),
            ("a*b*c", "aXbXb", false),
            ("h?llo", "hello", true),
            ("h[ae]llo", "hallo", true),
            ("h[^e]llo", "hello", false),
            ("h[a-c]llo", "hbllo", true),
            ("h[c-a]llo", "hbllo", true),
            ("h[-]llo", "h-llo", true),
            (r"h\*llo", "h*llo", true),
            (r"h\*llo", "hello", false),
            (r"[\]]", "]", true),
            ("[ab", "b", true),
            ("**", "anything", true),
            ("**", "", false),
            ("[a-]z", "]z", false),
            ("[a-]z", "^", true),
        ] {
            assert_eq!(
                matches(pattern.as_bytes(), key.as_bytes()),
                expected,
                "{pattern} {key}"
            );
        }
    }

    #[test]
    fn a_pattern_of_many_stars_ends_soon() {
        let started = std::time::Instant::now();
        assert!(!matches(&b"a*".repeat(50), &[b'a'; 5000]) || started.elapsed().as_secs() < 1);
        assert!(!matches(&[&b"a*".repeat(50)[..], b"b"].concat(), &[b'a'; 5000]));
        assert!(started.elapsed().as_secs() < 1);
    }
}
