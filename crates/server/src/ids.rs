//! Identifiers as types: an instance's id cannot be passed where a backup's is wanted.

use std::fmt;

/// Makes a newtype over the text of an identifier.
macro_rules! id {
    ($(#[$doc:meta])* $name:ident, $check:path) => {
        $(#[$doc])*
        #[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, serde::Serialize, serde::Deserialize)]
        pub struct $name(String);

        #[allow(dead_code, reason = "one macro for all identifiers; not each comes from outside or goes there")]
        impl $name {
            /// Reads an identifier from outside; `None` where it is malformed.
            pub fn parse(text: &str) -> Option<Self> {
                $check(text).then(|| Self(text.to_ascii_lowercase()))
            }

            /// The text form.
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }

        impl rusqlite::ToSql for $name {
            fn to_sql(&self) -> rusqlite::Result<rusqlite::types::ToSqlOutput<'_>> {
                self.0.to_sql()
            }
        }

        impl rusqlite::types::FromSql for $name {
            fn column_result(value: rusqlite::types::ValueRef<'_>) -> rusqlite::types::FromSqlResult<Self> {
                String::column_result(value).map(Self)
            }
        }
    };
}

id!(
    /// A project: 32 lower-case hex digits. Every query takes one; it can only be had from a checked credential
    /// or from the catalogue.
    ProjectId,
    is_hex32
);
id!(
    /// A managed instance: a UUID.
    InstanceId,
    is_uuid
);
id!(
    /// A backup record: a UUID.
    BackupId,
    is_uuid
);
id!(
    /// A restore record: a UUID.
    RestoreId,
    is_uuid
);
id!(
    /// One set of process and directory that is or was an instance: a UUID, also the directory's name.
    GenerationId,
    is_uuid
);
id!(
    /// One engine of a generation: a UUID.
    NodeId,
    is_uuid
);
id!(
    /// A durable unit of work: a UUID.
    JobId,
    is_uuid
);
id!(
    /// A remote object store: a UUID.
    StorageId,
    is_uuid
);
id!(
    /// A person or program that logs in with a password: 32 hex digits.
    UserId,
    is_hex32
);

macro_rules! random_uuid {
    ($($name:ident),*) => {$(
        impl $name {
            /// A fresh random identifier.
            pub fn random() -> Self {
                Self(uuid::Uuid::new_v4().to_string())
            }
        }
    )*};
}
random_uuid!(
    InstanceId,
    BackupId,
    RestoreId,
    GenerationId,
    NodeId,
    JobId,
    StorageId
);

macro_rules! random_hex32 {
    ($($name:ident),*) => {$(
        impl $name {
            /// A fresh random identifier.
            pub fn random() -> Self {
                Self(uuid::Uuid::new_v4().simple().to_string())
            }
        }
    )*};
}
random_hex32!(ProjectId, UserId);

fn is_hex32(text: &str) -> bool {
    text.len() == 32 && text.bytes().all(|byte| byte.is_ascii_hexdigit())
}

fn is_uuid(text: &str) -> bool {
    text.len() == 36
        && text.bytes().enumerate().all(|(at, byte)| match at {
            8 | 13 | 18 | 23 => byte == b'-',
            _ => byte.is_ascii_hexdigit(),
        })
}

/// A moment: milliseconds since 1970-01-01T00:00:00Z. Stored as such; turned into text only at the edge.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Moment(pub i64);

impl Moment {
    /// The clock. Called at the edges only (a request, a job's step); inner code is handed the moment.
    pub fn now() -> Self {
        Self(jiff::Timestamp::now().as_millisecond())
    }

    /// `2026-01-02T03:04:05.678Z`: exactly three decimals, UTC.
    pub fn iso(self) -> String {
        String::from_utf8_lossy(&self.iso_bytes()).into_owned()
    }

    /// The text of [`Self::iso`]. A page of a list has hundreds of them: digits by hand, since the general formatter
    /// costs more than to read the record.
    pub fn iso_bytes(self) -> [u8; 24] {
        let mut text = *b"1970-01-01T00:00:00.000Z";
        let Ok(at) = jiff::Timestamp::from_millisecond(self.0) else {
            return text;
        };
        let at = jiff::tz::Offset::UTC.to_datetime(at);
        let parts = [
            (0..4, i32::from(at.year())),
            (5..7, i32::from(at.month())),
            (8..10, i32::from(at.day())),
            (11..13, i32::from(at.hour())),
            (14..16, i32::from(at.minute())),
            (17..19, i32::from(at.second())),
            (20..23, i32::from(at.millisecond())),
        ];
        for (digits, value) in parts {
            let mut left = value.unsigned_abs();
            for digit in text[digits].iter_mut().rev() {
                *digit = b'0' + u8::try_from(left % 10).unwrap_or(0);
                left /= 10;
            }
        }
        text
    }

    /// `20260102030405`: the form of names and of query windows, UTC.
    pub fn compact(self) -> String {
        self.iso()
            .bytes()
            .take(19)
            .filter(u8::is_ascii_digit)
            .map(char::from)
            .collect()
    }

    /// Reads the 14 digits of a query window; `None` where they are no real moment.
    pub fn from_compact(text: &str) -> Option<Self> {
        if text.len() != 14 || !text.bytes().all(|byte| byte.is_ascii_digit()) {
            return None;
        }
        let part = |from: usize, to: usize| text[from..to].parse::<i16>().ok();
        let small = |from: usize, to: usize| text[from..to].parse::<i8>().ok();
        let date = jiff::civil::DateTime::new(
            part(0, 4)?,
            small(4, 6)?,
            small(6, 8)?,
            small(8, 10)?,
            small(10, 12)?,
            small(12, 14)?,
            0,
        )
        .ok()?;
        // Not through a timestamp: that ends a day before the year 9999 does, which people write for "no end".
        let since = date.duration_since(jiff::civil::DateTime::constant(1970, 1, 1, 0, 0, 0, 0));
        i64::try_from(since.as_millis()).ok().map(Self)
    }

    /// This moment and `seconds` more.
    pub fn plus_seconds(self, seconds: i64) -> Self {
        Self(self.0.saturating_add(seconds.saturating_mul(1000)))
    }
}

impl rusqlite::ToSql for Moment {
    fn to_sql(&self) -> rusqlite::Result<rusqlite::types::ToSqlOutput<'_>> {
        self.0.to_sql()
    }
}

impl rusqlite::types::FromSql for Moment {
    fn column_result(value: rusqlite::types::ValueRef<'_>) -> rusqlite::types::FromSqlResult<Self> {
        i64::column_result(value).map(Self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_moment_prints_three_decimals_and_reads_its_compact_form_back() {
        let at = Moment(1_500_414_080_000);
        assert_eq!(at.iso(), "2017-07-18T21:41:20.000Z");
        for (at, text) in [
            (0, "1970-01-01T00:00:00.000Z"),
            (1_709_210_096_789, "2024-02-29T12:34:56.789Z"),
            (253_402_207_199_999, "9999-12-30T21:59:59.999Z"),
            (-1, "1969-12-31T23:59:59.999Z"),
            (i64::MAX, "1970-01-01T00:00:00.000Z"),
        ] {
            assert_eq!(Moment(at).iso(), text);
        }
        assert_eq!(at.compact(), "20170718214120");
        assert_eq!(Moment::from_compact("20170718214120"), Some(at));
        assert_eq!(Moment::from_compact("19700101000000"), Some(Moment(0)));
        assert_eq!(
            Moment::from_compact("99991231235959"),
            Some(Moment(253_402_300_799_000))
        );
    }

    #[test]
    fn times_that_do_not_exist_are_refused() {
        for text in [
            "2017",
            "20170230000000",
            "20171301000000",
            "20170101250000",
            "2017010100000x",
            "",
        ] {
            assert_eq!(Moment::from_compact(text), None, "{text}");
        }
    }

    #[test]
    fn malformed_ids_are_refused() {
        assert!(InstanceId::parse("a6155972-800c-4170-a479-3231e907d2f6").is_some());
        for text in [
            "",
            "x",
            "a6155972-800c-4170-a479-3231e907d2fg",
            "a6155972800c4170a4793231e907d2f6",
        ] {
            assert!(InstanceId::parse(text).is_none(), "{text}");
        }
        assert!(ProjectId::parse("{project_id}").is_none());
    }
}
