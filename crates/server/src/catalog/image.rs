//! Rows as values of JSON, column by column: what leaves this catalogue for the mirror and comes back into another.

use serde_json::{Map, Value, json};

use super::{Error, Params, Row, Session, ToSql, Tx, Value as Cell, sqlite};

/// A row: its columns by name. Bytes are `{"hex": "00ff"}`.
pub type Image = Map<String, Value>;

impl Tx<'_> {
    /// The first row with all its columns, if any.
    ///
    /// # Errors
    /// [`Error::Database`].
    pub fn image(&self, sql: &'static str, params: impl Params) -> Result<Option<Image>, Error> {
        let names = match self.0 {
            Session::Sqlite(open) => {
                let statement = open.prepare_cached(sql)?;
                statement.column_names().map(str::to_owned).collect()
            }
            Session::Postgres(open) => open.columns(sql)?,
        };
        self.one(sql, params, |row| image(&names, row))
    }

    /// Puts a row in; where there is one with the same `key` (columns or expression of a unique index), it becomes
    /// this one. The table's checks and triggers hold. Columns that the image lacks get their default.
    ///
    /// # Errors
    /// [`Error::Unusable`] for a column that the table does not have or a value that no column holds; else as
    /// [`Tx::execute`].
    pub fn put_image(&self, table: &'static str, key: &'static str, image: &Image) -> Result<(), Error> {
        let known = match self.0 {
            Session::Sqlite(_) => {
                const COLUMNS: &str = "SELECT name FROM pragma_table_info(?1)";
                self.all(COLUMNS, (table,), |row| row.get::<String>(0))?
            }
            Session::Postgres(_) => {
                const COLUMNS: &str = "SELECT column_name::text FROM information_schema.columns \
                     WHERE table_schema = current_schema() AND table_name = ?1";
                self.all(COLUMNS, (table,), |row| row.get::<String>(0))?
            }
        };
        let mut names = Vec::with_capacity(image.len());
        let mut values = Vec::with_capacity(image.len());
        for (name, value) in image {
            if !known.contains(name) {
                return Err(Error::Unusable(format!(
                    "the mirror holds a column {table}.{name}, which this version does not know: use the version that \
                     wrote it"
                )));
            }
            names.push(name.as_str());
            values.push(stored(value).ok_or_else(|| {
                Error::Unusable(format!("the mirror holds a value of {table}.{name} that is none"))
            })?);
        }
        let places: Vec<String> = (1..=names.len()).map(|place| format!("?{place}")).collect();
        let updates: Vec<String> = names
            .iter()
            .map(|name| format!("{name} = excluded.{name}"))
            .collect();
        let sql = format!(
            "INSERT INTO {table} ({}) VALUES ({}) ON CONFLICT ({key}) DO UPDATE SET {}",
            names.join(", "),
            places.join(", "),
            updates.join(", ")
        );
        let values: Vec<&dyn ToSql> = values.iter().map(|value| value as _).collect();
        match self.0 {
            Session::Sqlite(open) => sqlite::execute(open, &sql, &values.as_slice())?,
            Session::Postgres(open) => open.execute(&sql, &values.as_slice())?,
        };
        Ok(())
    }

    /// Runs `work`; where it returns `Err`, only what it did is undone, and the transaction goes on.
    ///
    /// # Errors
    /// The outer one: the transaction itself is broken. The inner one: what `work` returns.
    pub fn attempt<T>(
        &self,
        work: impl FnOnce(&Tx<'_>) -> Result<T, Error>,
    ) -> Result<Result<T, Error>, Error> {
        let run = |sql| match self.0 {
            Session::Sqlite(open) => sqlite::begin(open, sql),
            Session::Postgres(open) => open.run_plain(sql),
        };
        run("SAVEPOINT attempt")?;
        let done = work(self);
        if done.is_err() {
            run("ROLLBACK TO attempt")?;
            if let Session::Postgres(open) = self.0 {
                open.is_back_at_savepoint();
            }
        }
        run("RELEASE attempt")?;
        Ok(done)
    }

    /// Checks of foreign keys wait for the end of this transaction.
    ///
    /// # Errors
    /// [`Error::Database`].
    pub fn defer_foreign_keys(&self) -> Result<(), Error> {
        match self.0 {
            Session::Sqlite(open) => Ok(open.pragma_update(None, "defer_foreign_keys", true)?),
            Session::Postgres(open) => open.run_plain("SET CONSTRAINTS ALL DEFERRED"),
        }
    }
}

fn image(names: &[String], row: &Row<'_>) -> Result<Image, Error> {
    let mut image = Image::new();
    for (at, name) in names.iter().enumerate() {
        let value = match row.value(at)? {
            Cell::Null => Value::Null,
            Cell::Integer(number) => json!(number),
            Cell::Real(number) => json!(number),
            Cell::Text(text) => json!(text),
            Cell::Blob(bytes) => json!({"hex": crate::secrets::hex(bytes)}),
        };
        image.insert(name.clone(), value);
    }
    Ok(image)
}

/// A value of a mirror, as it is stored.
enum Stored {
    Null,
    Integer(i64),
    Real(f64),
    Text(String),
    Blob(Vec<u8>),
}

impl ToSql for Stored {
    fn to_sql(&self) -> Result<Cell<'_>, Error> {
        Ok(match self {
            Stored::Null => Cell::Null,
            Stored::Integer(number) => Cell::Integer(*number),
            Stored::Real(number) => Cell::Real(*number),
            Stored::Text(text) => Cell::Text(text),
            Stored::Blob(bytes) => Cell::Blob(bytes),
        })
    }
}

fn stored(value: &Value) -> Option<Stored> {
    Some(match value {
        Value::Null => Stored::Null,
        Value::Number(number) => match number.as_i64() {
            Some(number) => Stored::Integer(number),
            None => Stored::Real(number.as_f64()?),
        },
        Value::String(text) => Stored::Text(text.clone()),
        Value::Object(bytes) => Stored::Blob(crate::secrets::unhex(bytes.get("hex")?.as_str()?)?),
        Value::Bool(_) | Value::Array(_) => return None,
    })
}
