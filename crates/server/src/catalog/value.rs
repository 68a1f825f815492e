//! Values on their way into the database and out of it, whichever database it is.

use super::Error;
use crate::ids::{
    BackupId, GenerationId, HostId, InstanceId, JobId, MigrationId, Moment, NodeId, ProjectId, ResizeId,
    RestoreId, ScheduleId, StorageId, UserId, VerificationId,
};

/// A value as both databases hold it.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Value<'a> {
    /// SQL's NULL.
    Null,
    /// BIGINT; true and false are 1 and 0.
    Integer(i64),
    /// Floating point.
    Real(f64),
    /// TEXT.
    Text(&'a str),
    /// BLOB, BYTEA.
    Blob(&'a [u8]),
}

impl<'a> Value<'a> {
    /// The text, if it is one.
    pub fn text(self) -> Option<&'a str> {
        match self {
            Value::Text(text) => Some(text),
            _ => None,
        }
    }

    /// The number, if it is one.
    pub fn integer(self) -> Option<i64> {
        match self {
            Value::Integer(number) => Some(number),
            _ => None,
        }
    }
}

/// What can be the value of a parameter.
pub trait ToSql {
    /// The value.
    ///
    /// # Errors
    /// [`Error::Unusable`] for a number beyond BIGINT.
    fn to_sql(&self) -> Result<Value<'_>, Error>;
}

/// What can be read from a column.
pub trait FromSql: Sized {
    /// `None`: no value of this type is stored so.
    fn from_sql(value: Value<'_>) -> Option<Self>;
}

impl<T: ToSql + ?Sized> ToSql for &T {
    fn to_sql(&self) -> Result<Value<'_>, Error> {
        (**self).to_sql()
    }
}

impl<T: ToSql> ToSql for Option<T> {
    fn to_sql(&self) -> Result<Value<'_>, Error> {
        self.as_ref().map_or(Ok(Value::Null), ToSql::to_sql)
    }
}

impl<T: FromSql> FromSql for Option<T> {
    fn from_sql(value: Value<'_>) -> Option<Self> {
        match value {
            Value::Null => Some(None),
            value => T::from_sql(value).map(Some),
        }
    }
}

impl ToSql for Value<'_> {
    fn to_sql(&self) -> Result<Value<'_>, Error> {
        Ok(*self)
    }
}

impl ToSql for str {
    fn to_sql(&self) -> Result<Value<'_>, Error> {
        Ok(Value::Text(self))
    }
}

impl ToSql for String {
    fn to_sql(&self) -> Result<Value<'_>, Error> {
        Ok(Value::Text(self))
    }
}

impl ToSql for std::borrow::Cow<'_, str> {
    fn to_sql(&self) -> Result<Value<'_>, Error> {
        Ok(Value::Text(self))
    }
}

impl FromSql for String {
    fn from_sql(value: Value<'_>) -> Option<Self> {
        value.text().map(str::to_owned)
    }
}

impl ToSql for [u8] {
    fn to_sql(&self) -> Result<Value<'_>, Error> {
        Ok(Value::Blob(self))
    }
}

impl ToSql for Vec<u8> {
    fn to_sql(&self) -> Result<Value<'_>, Error> {
        Ok(Value::Blob(self))
    }
}

impl<const N: usize> ToSql for [u8; N] {
    fn to_sql(&self) -> Result<Value<'_>, Error> {
        Ok(Value::Blob(self))
    }
}

impl FromSql for Vec<u8> {
    fn from_sql(value: Value<'_>) -> Option<Self> {
        match value {
            Value::Blob(bytes) => Some(bytes.to_vec()),
            _ => None,
        }
    }
}

impl<const N: usize> FromSql for [u8; N] {
    fn from_sql(value: Value<'_>) -> Option<Self> {
        match value {
            Value::Blob(bytes) => bytes.try_into().ok(),
            _ => None,
        }
    }
}

impl ToSql for bool {
    fn to_sql(&self) -> Result<Value<'_>, Error> {
        Ok(Value::Integer(i64::from(*self)))
    }
}

impl FromSql for bool {
    fn from_sql(value: Value<'_>) -> Option<Self> {
        value.integer().map(|number| number != 0)
    }
}

impl FromSql for f64 {
    fn from_sql(value: Value<'_>) -> Option<Self> {
        match value {
            Value::Real(number) => Some(number),
            _ => None,
        }
    }
}

impl ToSql for f64 {
    fn to_sql(&self) -> Result<Value<'_>, Error> {
        Ok(Value::Real(*self))
    }
}

macro_rules! integer {
    ($($name:ty),*) => {$(
        impl ToSql for $name {
            fn to_sql(&self) -> Result<Value<'_>, Error> {
                let number = i64::try_from(*self);
                number.map(Value::Integer).map_err(|_| Error::Unusable(format!("{self} is more than the catalogue can hold")))
            }
        }

        impl FromSql for $name {
            fn from_sql(value: Value<'_>) -> Option<Self> {
                value.integer()?.try_into().ok()
            }
        }
    )*};
}

integer!(i64, i32, u8, u16, u32, u64, usize);

macro_rules! id {
    ($($name:ty),*) => {$(
        impl ToSql for $name {
            fn to_sql(&self) -> Result<Value<'_>, Error> {
                Ok(Value::Text(self.as_str()))
            }
        }

        impl FromSql for $name {
            fn from_sql(value: Value<'_>) -> Option<Self> {
                Self::parse(value.text()?)
            }
        }
    )*};
}

id!(
    ScheduleId,
    ProjectId,
    InstanceId,
    BackupId,
    ResizeId,
    RestoreId,
    MigrationId,
    GenerationId,
    NodeId,
    JobId,
    VerificationId,
    StorageId,
    HostId,
    UserId
);

impl ToSql for Moment {
    fn to_sql(&self) -> Result<Value<'_>, Error> {
        Ok(Value::Integer(self.0))
    }
}

impl FromSql for Moment {
    fn from_sql(value: Value<'_>) -> Option<Self> {
        value.integer().map(Self)
    }
}

/// The parameters of one statement: `?1` is the first.
pub trait Params {
    /// Tells them in their order.
    ///
    /// # Errors
    /// As [`ToSql::to_sql`], and what `bind` returns.
    fn each(&self, bind: &mut dyn FnMut(Value<'_>) -> Result<(), Error>) -> Result<(), Error>;
}

impl Params for () {
    fn each(&self, _: &mut dyn FnMut(Value<'_>) -> Result<(), Error>) -> Result<(), Error> {
        Ok(())
    }
}

impl<T: ToSql, const N: usize> Params for [T; N] {
    fn each(&self, bind: &mut dyn FnMut(Value<'_>) -> Result<(), Error>) -> Result<(), Error> {
        self.iter().try_for_each(|value| bind(value.to_sql()?))
    }
}

impl Params for &[&dyn ToSql] {
    fn each(&self, bind: &mut dyn FnMut(Value<'_>) -> Result<(), Error>) -> Result<(), Error> {
        self.iter().try_for_each(|value| bind(value.to_sql()?))
    }
}

macro_rules! tuple {
    ($($name:ident $at:tt),+) => {
        impl<$($name: ToSql),+> Params for ($($name,)+) {
            fn each(&self, bind: &mut dyn FnMut(Value<'_>) -> Result<(), Error>) -> Result<(), Error> {
                $(bind(self.$at.to_sql()?)?;)+
                Ok(())
            }
        }
    };
}

tuple!(A 0);
tuple!(A 0, B 1);
tuple!(A 0, B 1, C 2);
tuple!(A 0, B 1, C 2, D 3);
tuple!(A 0, B 1, C 2, D 3, E 4);
tuple!(A 0, B 1, C 2, D 3, E 4, F 5);
tuple!(A 0, B 1, C 2, D 3, E 4, F 5, G 6);
tuple!(A 0, B 1, C 2, D 3, E 4, F 5, G 6, H 7);
tuple!(A 0, B 1, C 2, D 3, E 4, F 5, G 6, H 7, I 8);
tuple!(A 0, B 1, C 2, D 3, E 4, F 5, G 6, H 7, I 8, J 9);
tuple!(A 0, B 1, C 2, D 3, E 4, F 5, G 6, H 7, I 8, J 9, K 10);
tuple!(A 0, B 1, C 2, D 3, E 4, F 5, G 6, H 7, I 8, J 9, K 10, L 11);
tuple!(A 0, B 1, C 2, D 3, E 4, F 5, G 6, H 7, I 8, J 9, K 10, L 11, M 12);
tuple!(A 0, B 1, C 2, D 3, E 4, F 5, G 6, H 7, I 8, J 9, K 10, L 11, M 12, N 13);
tuple!(A 0, B 1, C 2, D 3, E 4, F 5, G 6, H 7, I 8, J 9, K 10, L 11, M 12, N 13, O 14);
tuple!(A 0, B 1, C 2, D 3, E 4, F 5, G 6, H 7, I 8, J 9, K 10, L 11, M 12, N 13, O 14, P 15);

/// Parameters of different types, however many.
macro_rules! params {
    ($($value:expr),* $(,)?) => {
        &[$(&$value as &dyn $crate::catalog::ToSql),*] as &[&dyn $crate::catalog::ToSql]
    };
}
pub(crate) use params;

/// One row of an answer.
pub enum Row<'r> {
    /// As it lies in SQLite's memory.
    Sqlite(&'r rusqlite::Row<'r>),
    /// As PostgreSQL sent it.
    Postgres(&'r postgres::Row),
}

impl<'r> Row<'r> {
    /// The column's value, the first is 0.
    ///
    /// # Errors
    /// [`Error::Unreadable`]: there is no such column, or it holds nothing of that type.
    pub fn get<T: FromSql>(&self, column: usize) -> Result<T, Error> {
        T::from_sql(self.value(column)?).ok_or_else(|| {
            Error::Unreadable(format!("column {column} holds no {}", std::any::type_name::<T>()))
        })
    }

    /// The column's value where it lies.
    ///
    /// # Errors
    /// As [`Self::get`].
    pub fn value(&self, column: usize) -> Result<Value<'r>, Error> {
        use rusqlite::types::ValueRef;
        match self {
            Row::Sqlite(row) => Ok(match row.get_ref(column)? {
                ValueRef::Null => Value::Null,
                ValueRef::Integer(number) => Value::Integer(number),
                ValueRef::Real(number) => Value::Real(number),
                ValueRef::Text(text) => Value::Text(std::str::from_utf8(text).map_err(|error| {
                    Error::Unreadable(format!("column {column} holds text that is not UTF-8: {error}"))
                })?),
                ValueRef::Blob(bytes) => Value::Blob(bytes),
            }),
            Row::Postgres(row) => Ok(row.try_get::<_, super::sent::Received<'r>>(column)?.0),
        }
    }

    /// The bytes of a text, which are not looked at: for text that is passed on.
    ///
    /// # Errors
    /// As [`Self::get`].
    pub fn text_bytes(&self, column: usize) -> Result<&'r [u8], Error> {
        match self {
            Row::Sqlite(row) => Ok(row.get_ref(column)?.as_bytes().map_err(rusqlite::Error::from)?),
            Row::Postgres(_) => self.text(column).map(|text| text.unwrap_or_default().as_bytes()),
        }
    }

    /// The column's text where it lies; `None`: NULL.
    ///
    /// # Errors
    /// As [`Self::get`].
    pub fn text(&self, column: usize) -> Result<Option<&'r str>, Error> {
        match self.value(column)? {
            Value::Null => Ok(None),
            Value::Text(text) => Ok(Some(text)),
            _ => Err(Error::Unreadable(format!("column {column} holds no text"))),
        }
    }
}
