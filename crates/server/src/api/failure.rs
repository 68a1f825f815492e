//! Why something failed, as a tenant may read it. The whole text, with this machine's paths and processes, is for the
//! operator: in the log and in the catalogue.

use crate::config::Config;

/// The text without the places and process numbers of this machine; a path keeps its last part, which names the file.
pub fn shown(config: &Config, text: Option<&str>) -> Option<String> {
    // A data directory may have blanks in its name; every other path here is one word.
    let text = text?.replace(&config.data_dir.display().to_string(), "");
    let mut words: Vec<&str> = Vec::new();
    for word in text.split(' ') {
        let number = word.trim_end_matches([':', ',', ';']);
        let is_process = words
            .last()
            .is_some_and(|before| matches!(*before, "process" | "pid"))
            && number.parse::<u32>().is_ok();
        if !is_process {
            words.push(without_folder(word));
        }
    }
    Some(words.join(" "))
}

fn without_folder(word: &str) -> &str {
    let bare = word.trim_start_matches(['\'', '"', '(']);
    // An engine is called by its socket.
    match bare.strip_prefix("unix:").unwrap_or(bare).starts_with('/') {
        true => word.rsplit('/').next().unwrap_or_default(),
        false => word,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_lose_their_folders_and_processes_their_numbers() {
        let config = Config {
            database: None,
            data_dir: "/srv/my data".into(),
            listen: ([127, 0, 0, 1], 0).into(),
            metrics_listen: None,
            tls: None,
            region: String::new(),
            engine_bind: [127, 0, 0, 1].into(),
            engine_ports: 1..=1,
            engines: Vec::new(),
            run_as: None,
            undo_keep_seconds: 0,
            store_patience: std::time::Duration::ZERO,
            import_allowed: Vec::new(),
            attach_allowed: Vec::new(),
            node_name: None,
            keys_dir: None,
            roles: crate::config::Roles::ALL,
            jobs_at_once: 1,
            jobs_per_project: None,
            lease: std::time::Duration::ZERO,
            drain: std::time::Duration::ZERO,
            strict_dcs: false,
        };
        for (whole, told) in [
            (
                "cannot read /srv/my data/instances/a/b/dump.rdb: No such file",
                "cannot read dump.rdb: No such file",
            ),
            (
                "process 4711 lives in /srv/my data/instances/a already",
                "process lives in a already",
            ),
            ("signal process 12: gone", "signal process gone"),
            (
                "port 80 is taken (unix:/srv/my data/instances/a/b/engine.sock: ERR)",
                "port 80 is taken engine.sock: ERR)",
            ),
            (
                "start (/usr/bin/redis-server) failed",
                "start redis-server) failed",
            ),
            (
                "the checksum is wrong at offset 4711",
                "the checksum is wrong at offset 4711",
            ),
            (
                "1/2 segments of project/instance",
                "1/2 segments of project/instance",
            ),
        ] {
            assert_eq!(shown(&config, Some(whole)).as_deref(), Some(told));
        }
        assert_eq!(shown(&config, None), None);
    }
}
