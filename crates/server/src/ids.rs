//! Identifiers as types: an instance's id cannot be passed where a backup's is wanted.

use std::fmt;

/// Makes a newtype over the text of an identifier, which is `$length` bytes of ASCII. It is kept in place: a page of
/// restore records has fifty of them.
macro_rules! id {
    ($(#[$doc:meta])* $name:ident, $length:literal, $check:path) => {
        $(#[$doc])*
        #[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
        pub struct $name([u8; $length]);

        #[allow(dead_code, reason = "one macro for all identifiers; not each comes from outside or goes there")]
        impl $name {
            /// Reads an identifier from outside; `None` where it is malformed.
            pub fn parse(text: &str) -> Option<Self> {
                let mut id: [u8; $length] = text.as_bytes().try_into().ok()?;
                id.make_ascii_lowercase();
                $check(&id).then_some(Self(id))
            }

            /// The text form.
            pub fn as_str(&self) -> &str {
                std::str::from_utf8(&self.0).unwrap_or_default()
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(self.as_str())
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{}({})", stringify!($name), self.as_str())
            }
        }

        impl serde::Serialize for $name {
            fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.serialize_str(self.as_str())
            }
        }

        impl<'de> serde::Deserialize<'de> for $name {
            fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                let text = String::deserialize(deserializer)?;
                Self::parse(&text).ok_or_else(|| {
                    serde::de::Error::custom(format!("{text:?} is no {}", stringify!($name)))
                })
            }
        }
    };
}

id!(
    /// A project: 32 lower-case hex digits. Every query takes one; it can only be had from a checked credential
    /// or from the catalogue.
    ProjectId,
    32,
    is_hex32
);
id!(
    /// A managed instance: a UUID.
    InstanceId,
    36,
    is_uuid
);
id!(
    /// A backup record: a UUID.
    BackupId,
    36,
    is_uuid
);
id!(
    /// A change of an instance's nodes: a UUID.
    ResizeId,
    36,
    is_uuid
);
id!(
    /// A restore record: a UUID.
    RestoreId,
    36,
    is_uuid
);
id!(
    /// An import task: a UUID.
    MigrationId,
    36,
    is_uuid
);
id!(
    /// One set of process and directory that is or was an instance: a UUID, also the directory's name.
    GenerationId,
    36,
    is_uuid
);
id!(
    /// One engine of a generation: a UUID.
    NodeId,
    36,
    is_uuid
);
id!(
    /// A durable unit of work: a UUID.
    JobId,
    36,
    is_uuid
);
id!(
    /// A verify that was asked of the service: a UUID.
    VerificationId,
    36,
    is_uuid
);
id!(
    /// A schedule of an instance: a UUID.
    ScheduleId,
    36,
    is_uuid
);
id!(
    /// A remote object store: a UUID.
    StorageId,
    36,
    is_uuid
);
id!(
    /// A service with its data directory among those that share a catalogue, a node to people: 16 hex digits. (In the code a node
    /// is an engine.)
    HostId,
    16,
    is_hex16
);
id!(
    /// A person or program that logs in with a password: 32 hex digits.
    UserId,
    32,
    is_hex32
);

macro_rules! random {
    ($form:ident: $($name:ident),*) => {$(
        impl $name {
            /// A fresh random identifier.
            pub fn random() -> Self {
                let mut id = Self([0; _]);
                uuid::Uuid::new_v4().$form().encode_lower(&mut id.0);
                id
            }
        }
    )*};
}
random!(hyphenated: InstanceId, BackupId, ResizeId, RestoreId, MigrationId, GenerationId, NodeId, JobId, VerificationId, ScheduleId, StorageId);
random!(simple: ProjectId, UserId);

impl HostId {
    /// The only host of a catalogue that is a file.
    pub const OF_A_FILE: Self = Self(*b"0000000000000000");

    /// A fresh random identifier.
    pub fn random() -> Self {
        let mut id = Self([0; _]);
        id.0.copy_from_slice(crate::secrets::random_hex(8).as_bytes());
        id
    }
}

fn is_hex16(text: &[u8; 16]) -> bool {
    text.iter().all(u8::is_ascii_hexdigit)
}

fn is_hex32(text: &[u8; 32]) -> bool {
    text.iter().all(u8::is_ascii_hexdigit)
}

fn is_uuid(text: &[u8; 36]) -> bool {
    text.iter().enumerate().all(|(at, byte)| match at {
        8 | 13 | 18 | 23 => *byte == b'-',
        _ => byte.is_ascii_hexdigit(),
    })
}

/// `00` to `99`.
const PAIRS: [[u8; 2]; 100] = {
    let mut pairs = [[b'0'; 2]; 100];
    let mut at = 0;
    while at < 100 {
        pairs[at] = [b'0' + (at / 10) as u8, b'0' + (at % 10) as u8];
        at += 1;
    }
    pairs
};

/// A moment: milliseconds since 1970-01-01T00:00:00Z. Stored as such; turned into text only at the edge.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Moment(pub i64);

impl Moment {
    /// The clock. Called at the edges only (a request, a job's step); inner code is handed the moment.
    pub fn now() -> Self {
        Self(crate::clock::wall_ms())
    }

    /// So much later.
    pub fn after(self, passed: std::time::Duration) -> Self {
        Self(
            self.0
                .saturating_add(i64::try_from(passed.as_millis()).unwrap_or(i64::MAX)),
        )
    }

    /// `2026-01-02T03:04:05.678Z`: exactly three decimals, UTC.
    pub fn iso(self) -> String {
        String::from_utf8_lossy(&self.iso_bytes()).into_owned()
    }

    /// The text of [`Self::iso`]. A page of a list has hundreds of them: by hand, since the general calendar and formatter
    /// cost more than to read the record. Years before 0000 and after 9999 are shown as these.
    pub fn iso_bytes(self) -> [u8; 24] {
        const DAY_MS: i64 = 86_400_000;
        let at = self.0.clamp(-62_167_219_200_000, 253_402_300_799_999);
        // Counted from 0000-03-01, so that the day that leap years add ends a year. The day before the first of all days
        // is in the cycle of 400 years before, like any other cycle.
        let since = u32::try_from(at.div_euclid(DAY_MS) + 719_468 + 146_097).unwrap_or(0);
        let in_day = u32::try_from(at.rem_euclid(DAY_MS)).unwrap_or(0);
        let (cycle, day) = (since / 146_097, since % 146_097);
        let year = (day - day / 1_460 + day / 36_524 - day / 146_096) / 365;
        let day = day - (365 * year + year / 4 - year / 100);
        let month = (5 * day + 2) / 153;
        let day = day - (153 * month + 2) / 5 + 1;
        let (month, next) = if month < 10 {
            (month + 3, 0)
        } else {
            (month - 9, 1)
        };
        let year = cycle * 400 + year + next - 400;
        let mut text = *b"0000-00-00T00:00:00.000Z";
        for (at, value) in [
            (0, year / 100),
            (2, year % 100),
            (5, month),
            (8, day),
            (11, in_day / 3_600_000),
            (14, in_day / 60_000 % 60),
            (17, in_day / 1_000 % 60),
            (20, in_day % 1_000 / 10),
        ] {
            text[at..at + 2].copy_from_slice(&PAIRS[value as usize % 100]);
        }
        text[22] = PAIRS[in_day as usize % 10][1];
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_calendar_by_hand_is_the_librarys() {
        let step = 86_400_000 * 13 + 3_723_004;
        let (first, last) = (-62_167_219_200_000_i64, 253_402_207_200_000);
        for at in (first..last).step_by(step).chain([0, -1, last]) {
            let peer = jiff::Timestamp::from_millisecond(at).unwrap();
            assert_eq!(Moment(at).iso(), format!("{peer:.3}"), "{at}");
        }
    }

    #[test]
    fn a_moment_prints_three_decimals_and_reads_its_compact_form_back() {
        let at = Moment(1_500_414_080_000);
        assert_eq!(at.iso(), "2017-07-18T21:41:20.000Z");
        for (at, text) in [
            (0, "1970-01-01T00:00:00.000Z"),
            (1_709_210_096_789, "2024-02-29T12:34:56.789Z"),
            (253_402_207_199_999, "9999-12-30T21:59:59.999Z"),
            (-1, "1969-12-31T23:59:59.999Z"),
            (i64::MAX, "9999-12-31T23:59:59.999Z"),
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
