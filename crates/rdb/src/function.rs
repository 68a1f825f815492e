//! Function libraries found in a file.

/// A function library, described by the first line of its code.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FunctionSummary {
    /// The engine named after `#!`, for example `LUA`, in upper case. `None` if the first line names none.
    pub engine: Option<String>,
    /// The library named by `name=`. `None` if the first line names none.
    pub name: Option<String>,
    /// Bytes of the code, with its first line.
    pub code_bytes: u64,
}

/// Longest engine or library name kept.
const NAME_BYTES_MAX: usize = 256;

impl FunctionSummary {
    pub(crate) fn of(code: &[u8]) -> Self {
        let line = code.split(|byte| *byte == b'\n').next().unwrap_or_default();
        let mut words = line
            .strip_prefix(b"#!")
            .unwrap_or_default()
            .split(u8::is_ascii_whitespace)
            .filter(|word| !word.is_empty());
        let text = |word: &[u8]| {
            let word = &word[..word.len().min(NAME_BYTES_MAX)];
            String::from_utf8_lossy(word).into_owned()
        };
        let engine = words.next().map(|word| text(word).to_ascii_uppercase());
        let name = words.find_map(|word| word.strip_prefix(b"name=")).map(text);
        Self {
            engine,
            name,
            code_bytes: code.len() as u64,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn first_line_names_engine_and_library() {
        let summary = FunctionSummary::of(b"#!lua  name=mylib\nredis.register_function(...)");
        assert_eq!(summary.engine.as_deref(), Some("LUA"));
        assert_eq!(summary.name.as_deref(), Some("mylib"));
        assert_eq!(summary.code_bytes, 46);
        assert_eq!(
            FunctionSummary::of(b"return 1"),
            FunctionSummary {
                engine: None,
                name: None,
                code_bytes: 8
            }
        );
        assert_eq!(FunctionSummary::of(b"").name, None);
    }
}
