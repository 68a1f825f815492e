//! What a verb acts on: a service, an instance of it, records of that; and how results are printed.

use std::process::ExitCode;

use comfy_table::Table;
use serde_json::Value;

use super::client::Client;
use super::{Global, Output, watch};
use signature::encode;

/// Prints rows as a table of the named columns, or `whole` as JSON. On a terminal that is narrower than the table each row is
/// a list of its fields: wrapped lines of a table can be neither read nor copied from.
pub(crate) fn print_rows(global: &Global, columns: &[&str], rows: &[Value], whole: &Value) {
    if global.output == Output::Json {
        println!("{whole:#}");
        return;
    }
    let mut table = Table::new();
    table
        .load_style(comfy_table::presets::UTF8_FULL_CONDENSED)
        .set_header(columns);
    let cell = |row: &Value, column: &str| {
        let value = column.split('.').fold(row, |value, name| &value[name]);
        plain(value)
    };
    for row in rows {
        table.add_row(columns.iter().map(|column| cell(row, column)));
    }
    let text = table.to_string();
    let wraps = table
        .width()
        .is_some_and(|width| text.lines().any(|line| line.chars().count() > usize::from(width)));
    if !wraps || rows.is_empty() {
        println!("{text}");
        return;
    }
    for (index, row) in rows.iter().enumerate() {
        if index > 0 {
            println!();
        }
        for column in columns {
            println!("{column}: {}", cell(row, column));
        }
    }
}

/// A value as text for a terminal.
pub(crate) fn plain(value: &Value) -> String {
    match value {
        Value::Null => String::new(),
        // Names come from outside: no control character reaches the terminal.
        Value::String(text) => text.chars().filter(|letter| !letter.is_control()).collect(),
        other => other.to_string(),
    }
}

/// Prints the fields of an object, those under `ext` among them, or the object as JSON. What `ext` has under the same name
/// as DCS is the more exact of the two, and shown alone.
pub(crate) fn print_one(global: &Global, value: &Value) {
    if global.output == Output::Json {
        println!("{value:#}");
        return;
    }
    let ext = &value["ext"];
    for (name, value) in value.as_object().into_iter().flatten() {
        if ext.get(name).is_some() {
            continue;
        }
        if let Some(inner) = value.as_object().filter(|_| name == "ext") {
            for (name, value) in inner {
                println!("{name}: {}", plain(value));
            }
        } else {
            println!("{name}: {}", plain(value));
        }
    }
}

/// What `latest` means to an undo. No name of a record has a blank.
pub(crate) const UNDOABLE: &str = "latest undoable";
/// The backup that waits or is at work, as far as a person can cancel it.
pub(crate) const UNENDED: &str = "latest unended";

/// A service, and an instance of it found by name or id.
pub(crate) struct Target {
    /// The service.
    pub(crate) client: Client,
    /// The instance.
    pub(crate) id: String,
    /// What the user calls it, its name or its id: so that what is advised can be typed as the first command was.
    pub(crate) called: String,
}

impl Target {
    /// Finds it.
    ///
    /// # Errors
    /// The service does not answer, or what it refused and why.
    pub(crate) fn find(global: &Global, instance: &str) -> anyhow::Result<Self> {
        let client = Client::find(global)?;
        if crate::ids::InstanceId::parse(instance).is_some() {
            return Ok(Self {
                client,
                id: instance.to_owned(),
                called: instance.to_owned(),
            });
        }
        let name = encode(instance.as_bytes());
        let query = format!("name={name}&name_equal=true&include_failure=true&limit=1000");
        let found = client.call("GET", "v2", "/instances", &query, None)?;
        let found = found["instances"].as_array().cloned().unwrap_or_default();
        match found.as_slice() {
            [one] => Ok(Self {
                client,
                id: plain(&one["instance_id"]),
                called: instance.to_owned(),
            }),
            [] => anyhow::bail!("there is no instance {instance}: `cachekeep instance list` shows all"),
            several => {
                let ids: Vec<String> = several.iter().map(|one| plain(&one["instance_id"])).collect();
                anyhow::bail!(
                    "several instances are named {instance}: use an id, {}",
                    ids.join(" or ")
                )
            }
        }
    }

    /// Calls `/v2/{project}/instances/{instance}<path>`.
    ///
    /// # Errors
    /// The service does not answer, or what it refused and why.
    pub(crate) fn call(
        &self,
        method: &str,
        path: &str,
        query: &str,
        body: Option<&Value>,
    ) -> anyhow::Result<Value> {
        self.client.call(
            method,
            "v2",
            &format!("/instances/{}{path}", self.id),
            query,
            body,
        )
    }

    /// Calls `/ck/v1/{project}/instances/{instance}<path>`.
    ///
    /// # Errors
    /// The service does not answer, or what it refused and why.
    pub(crate) fn ours(&self, method: &str, path: &str, body: Option<&Value>) -> anyhow::Result<Value> {
        self.client.call(
            method,
            "ck/v1",
            &format!("/instances/{}{path}", self.id),
            "",
            body,
        )
    }

    /// The id of a record given by id, by name, or as `latest`.
    fn record(&self, list: &str, key: &str, name: &str, given: &str) -> anyhow::Result<String> {
        if crate::ids::BackupId::parse(given).is_some() {
            return Ok(given.to_owned());
        }
        let mut offset = 0;
        loop {
            let query = format!("include_deleted=true&limit=1000&offset={offset}");
            let page = self.call("GET", &format!("/{list}"), &query, None)?;
            let rows = page[format!("{key}_record_response")]
                .as_array()
                .cloned()
                .unwrap_or_default();
            let found = rows.iter().find(|row| match given {
                // What a switch has replaced is no backup that a person means by "latest".
                "latest" => {
                    key == "restore" || (row["status"] == "succeed" && row["ext"]["kind"] != "generation")
                }
                UNDOABLE => {
                    !row["ext"]["undo_until"].is_null()
                        || row["status"] == "succeed" && row["ext"]["undone_by"].is_null()
                }
                UNENDED => {
                    matches!(row["status"].as_str(), Some("waiting" | "backuping"))
                        && row["ext"]["kind"] != "safety"
                }
                _ => row[name] == given,
            });
            if let Some(row) = found {
                return Ok(plain(&row[format!("{key}_id")]));
            }
            offset += rows.len();
            anyhow::ensure!(
                !rows.is_empty() || given != UNDOABLE,
                "no restore of this instance succeeded and is not undone: there is nothing to undo"
            );
            anyhow::ensure!(
                !rows.is_empty() || given != UNENDED,
                "no backup of {} waits or is at work: there is nothing to cancel",
                self.called
            );
            anyhow::ensure!(
                !rows.is_empty() || given != "latest" || key != "backup",
                "no backup of this instance has succeeded: `cachekeep backup create {} --wait` makes one",
                self.called
            );
            anyhow::ensure!(
                !rows.is_empty() || given != "latest",
                "there is no {key} of this instance yet"
            );
            anyhow::ensure!(
                !rows.is_empty(),
                "there is no {key} {given}: `cachekeep {key} list {}` shows all",
                self.called
            );
        }
    }

    /// The id of a backup given by id, by name, as `latest`, or as [`UNENDED`].
    ///
    /// # Errors
    /// The service does not answer, or what it refused and why.
    pub(crate) fn backup(&self, given: &str) -> anyhow::Result<String> {
        self.record("backups", "backup", "backup_name", given)
    }

    /// The id of a restore given by id, by name, as `latest`, or as [`UNDOABLE`].
    ///
    /// # Errors
    /// The service does not answer, or what it refused and why.
    pub(crate) fn restore(&self, given: &str) -> anyhow::Result<String> {
        self.record("restores", "restore", "restore_name", given)
    }

    /// Prints the id, or follows the record to its end, prints it, and says what comes next.
    ///
    /// # Errors
    /// The service does not answer, or what it refused and why.
    pub(crate) fn finish(
        &self,
        global: &Global,
        kind: &str,
        started: &Value,
        wait: bool,
    ) -> anyhow::Result<ExitCode> {
        let id = plain(&started[format!("{kind}_id")]);
        if !wait {
            match global.output {
                Output::Json => println!("{started:#}"),
                Output::Table => println!("{id}"),
            }
            return Ok(ExitCode::SUCCESS);
        }
        let record = watch::follow(global, kind, || self.ours("GET", &format!("/{kind}s/{id}"), None))?;
        print_one(global, &record);
        let ext = &record["ext"];
        if record["status"] == "succeed" {
            if let Some(until) = ext["undo_until"].as_str().filter(|_| !global.quiet) {
                eprintln!(
                    "the data from before is kept until {until} at the latest: `cachekeep restore undo {}`",
                    self.called
                );
            }
            return Ok(ExitCode::SUCCESS);
        }
        eprintln!(
            "cachekeep: the {kind} failed ({}): {}",
            plain(&record["error_code"]),
            plain(&ext["failure"])
        );
        eprintln!(
            "{}",
            match (kind, ext["target_state"].as_str()) {
                ("restore", Some("unknown")) => format!(
                    "The old data does not serve yet; the service goes on trying. `cachekeep instance show {}` says when it does.",
                    self.called
                ),
                ("restore", _) =>
                    "The old data serves, unchanged. Mend what is named above, or choose another backup, and restore again."
                        .to_owned(),
                _ =>
                    "Nothing is stored of it, and the instance is unchanged. Mend what is named above and back up again."
                        .to_owned(),
            }
        );
        Ok(ExitCode::FAILURE)
    }
}
