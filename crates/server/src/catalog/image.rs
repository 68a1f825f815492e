//! Rows as values of JSON, column by column: what leaves this catalogue for the mirror and comes back into another.

use rusqlite::types::{Value as Stored, ValueRef};
use rusqlite::{Params, params_from_iter};
use serde_json::{Map, Value, json};

use super::{Error, Tx};

/// A row: its columns by name. Bytes are `{"hex": "00ff"}`.
pub type Image = Map<String, Value>;

impl Tx<'_> {
    /// The first row with all its columns, if any.
    ///
    /// # Errors
    /// [`Error::Database`].
    pub fn image(&self, sql: &'static str, params: impl Params) -> Result<Option<Image>, Error> {
        let mut statement = self.0.prepare_cached(sql)?;
        let names: Vec<String> = statement.column_names().map(str::to_owned).collect();
        let mut rows = statement.query(params)?;
        let Some(row) = rows.next()? else {
            return Ok(None);
        };
        let mut image = Image::new();
        for (at, name) in names.into_iter().enumerate() {
            let value = match row.get_ref(at)? {
                ValueRef::Null => Value::Null,
                ValueRef::Integer(number) => json!(number),
                ValueRef::Real(number) => json!(number),
                ValueRef::Text(text) => json!(String::from_utf8_lossy(text)),
                ValueRef::Blob(bytes) => json!({"hex": crate::secrets::hex(bytes)}),
            };
            image.insert(name, value);
        }
        Ok(Some(image))
    }

    /// Puts a row in; where there is one with the same `key` (columns or expression of a unique index), it becomes
    /// this one. The table's checks and triggers hold. Columns that the image lacks get their default.
    ///
    /// # Errors
    /// [`Error::Unusable`] for a column that the table does not have or a value that no column holds; else as
    /// [`Tx::execute`].
    pub fn put_image(&self, table: &'static str, key: &'static str, image: &Image) -> Result<(), Error> {
        let known = self.all("SELECT name FROM pragma_table_info(?1)", (table,), |row| {
            row.get::<_, String>(0)
        })?;
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
        let places = vec!["?"; names.len()].join(", ");
        let updates: Vec<String> = names
            .iter()
            .map(|name| format!("{name} = excluded.{name}"))
            .collect();
        let sql = format!(
            "INSERT INTO {table} ({}) VALUES ({places}) ON CONFLICT ({key}) DO UPDATE SET {}",
            names.join(", "),
            updates.join(", ")
        );
        self.0.prepare_cached(&sql)?.execute(params_from_iter(values))?;
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
        let run = |sql| self.0.prepare_cached(sql)?.execute([]).map_err(Error::from);
        run("SAVEPOINT attempt")?;
        let done = work(self);
        if done.is_err() {
            run("ROLLBACK TO attempt")?;
        }
        run("RELEASE attempt")?;
        Ok(done)
    }

    /// Checks of foreign keys wait for the end of this transaction.
    ///
    /// # Errors
    /// [`Error::Database`].
    pub fn defer_foreign_keys(&self) -> Result<(), Error> {
        self.0.pragma_update(None, "defer_foreign_keys", true)?;
        Ok(())
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
