//! Values on their way to PostgreSQL and back.

use postgres::types::{FromSql, IsNull, ToSql, Type, to_sql_checked};

use super::{Error, Params, Value};

/// A value on its way to the server.
#[derive(Debug, PartialEq)]
pub enum Sent {
    Null,
    Integer(i64),
    Real(f64),
    Text(String),
    Blob(Vec<u8>),
}

impl Sent {
    /// All parameters of a statement.
    ///
    /// # Errors
    /// What a parameter says.
    pub fn all(params: &impl Params) -> Result<Vec<Self>, Error> {
        let mut all = Vec::new();
        params.each(&mut |value| {
            all.push(Self::of(value));
            Ok(())
        })?;
        Ok(all)
    }

    fn of(value: Value<'_>) -> Self {
        match value {
            Value::Null => Sent::Null,
            Value::Integer(number) => Sent::Integer(number),
            Value::Real(number) => Sent::Real(number),
            Value::Text(text) => Sent::Text(text.to_owned()),
            Value::Blob(bytes) => Sent::Blob(bytes.to_owned()),
        }
    }
}

impl ToSql for Sent {
    fn to_sql(
        &self,
        ty: &Type,
        out: &mut postgres::types::private::BytesMut,
    ) -> Result<IsNull, Box<dyn std::error::Error + Sync + Send>> {
        match (self, ty) {
            (Sent::Null, _) => Ok(IsNull::Yes),
            (Sent::Integer(number), &Type::INT8) => number.to_sql(ty, out),
            (Sent::Integer(number), &Type::INT4) => i32::try_from(*number)?.to_sql(ty, out),
            (Sent::Integer(number), &Type::INT2) => i16::try_from(*number)?.to_sql(ty, out),
            (Sent::Integer(number), &Type::BOOL) => (*number != 0).to_sql(ty, out),
            (Sent::Real(number), &Type::FLOAT8) => number.to_sql(ty, out),
            // Text as the server holds it has no zero byte.
            (Sent::Text(text), &Type::TEXT | &Type::VARCHAR) if !text.contains('\0') => text.to_sql(ty, out),
            (Sent::Blob(bytes), &Type::BYTEA) => bytes.to_sql(ty, out),
            (value, ty) => Err(format!("{value:?} is no {ty}").into()),
        }
    }

    fn accepts(_: &Type) -> bool {
        true
    }

    to_sql_checked!();
}

/// A value that the server sent.
pub struct Received<'r>(pub Value<'r>);

impl<'r> FromSql<'r> for Received<'r> {
    fn from_sql(ty: &Type, raw: &'r [u8]) -> Result<Self, Box<dyn std::error::Error + Sync + Send>> {
        Ok(Self(match *ty {
            Type::INT8 => Value::Integer(i64::from_sql(ty, raw)?),
            Type::INT4 => Value::Integer(i32::from_sql(ty, raw)?.into()),
            Type::INT2 => Value::Integer(i16::from_sql(ty, raw)?.into()),
            Type::BOOL => Value::Integer(bool::from_sql(ty, raw)?.into()),
            Type::FLOAT8 => Value::Real(f64::from_sql(ty, raw)?),
            Type::BYTEA => Value::Blob(raw),
            Type::TEXT | Type::VARCHAR | Type::NAME | Type::UNKNOWN => Value::Text(std::str::from_utf8(raw)?),
            _ => return Err(format!("the catalogue has no values of type {ty}").into()),
        }))
    }

    fn from_sql_null(_: &Type) -> Result<Self, Box<dyn std::error::Error + Sync + Send>> {
        Ok(Self(Value::Null))
    }

    fn accepts(ty: &Type) -> bool {
        is_read(ty)
    }
}

/// Whether [`Received`] reads values of this type. A sum of BIGINT is NUMERIC and has to be cast.
pub fn is_read(ty: &Type) -> bool {
    matches!(
        *ty,
        Type::INT8
            | Type::INT4
            | Type::INT2
            | Type::BOOL
            | Type::FLOAT8
            | Type::BYTEA
            | Type::TEXT
            | Type::VARCHAR
            | Type::NAME
            | Type::UNKNOWN
    )
}
