//! The command line teaches, keeps secrets to itself, and says what to do next.

use std::io::Write;
use std::process::{Command, Output, Stdio};

use serde_json::{Value, json};
use xtask::scratch::Scratch;

use crate::service::{Service, wait};

fn program() -> Command {
    Command::new(env!("CARGO_BIN_EXE_cachekeep"))
}

fn help(words: &[&str]) -> String {
    let output = program().args(words).arg("--help").output().unwrap();
    assert!(output.status.success(), "{words:?}");
    String::from_utf8(output.stdout).unwrap()
}

/// The names below a heading `Commands:`.
fn verbs(help: &str) -> Vec<String> {
    let rest = help.split("Commands:\n").nth(1).unwrap_or_default();
    rest.lines()
        .take_while(|line| line.starts_with("  "))
        .filter(|line| !line.starts_with("   "))
        .filter_map(|line| line.split_whitespace().next())
        .filter(|name| *name != "help")
        .map(str::to_owned)
        .collect()
}

#[test]
fn every_verb_has_an_example_and_its_options_are_not_lost_among_the_global_ones() {
    let mut seen = Vec::new();
    for noun in verbs(&help(&[])) {
        let below = verbs(&help(&[&noun]));
        if below.is_empty() {
            seen.push(vec![noun]);
        } else {
            seen.extend(below.into_iter().map(|verb| vec![noun.clone(), verb]));
        }
    }
    assert!(seen.len() >= 26, "{seen:?}");
    for words in seen {
        let words: Vec<&str> = words.iter().map(String::as_str).collect();
        let text = help(&words);
        let (_, examples) = text
            .split_once("Example")
            .unwrap_or_else(|| panic!("{words:?} has no example: {text}"));
        let call = format!("cachekeep {}", words.join(" "));
        assert!(examples.contains(&call), "{words:?}: {examples}");
        let (own, global) = text
            .split_once("Global options:\n")
            .unwrap_or_else(|| panic!("{words:?} does not set its options apart"));
        assert!(
            global.contains("--data-dir") && !own.contains("--data-dir"),
            "{text}"
        );
    }
    let serve = help(&["serve"]);
    for variable in ["CACHEKEEP_LOG", "CACHEKEEP_MASTER_KEY", "CACHEKEEP_REDIS_SERVER"] {
        assert!(serve.contains(variable), "{variable}");
    }
    assert!(help(&["restore", "undo"]).contains("--undo-keep"));
}

/// Runs a verb on the service with this on its standard input and these variables.
fn run(service: &Service, words: &[&str], input: &str, variables: &[(&str, &str)]) -> Output {
    let mut child = program()
        .args(words)
        .arg("--data-dir")
        .arg(service.data())
        .envs(variables.iter().copied())
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let _not_read = child.stdin.take().unwrap().write_all(input.as_bytes());
    child.wait_with_output().unwrap()
}

#[test]
fn a_password_comes_from_the_environment_or_standard_input_and_is_the_engines() {
    let service = Service::start();
    let base = [
        "instance",
        "create",
        "--capacity",
        "0.125",
        "-o",
        "json",
        "--name",
    ];
    for (name, further, input, variables, password) in [
        (
            "from-env",
            &[][..],
            "",
            &[("CACHEKEEP_PASSWORD", "From-Env-1")][..],
            "From-Env-1",
        ),
        (
            "from-stdin",
            &["--password-stdin"],
            "From-Stdin-1\r\nmore\n",
            &[],
            "From-Stdin-1",
        ),
    ] {
        let output = run(
            &service,
            &[&base[..], &[name], further].concat(),
            input,
            variables,
        );
        let told = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{told}");
        let made: Value = serde_json::from_slice(&output.stdout).unwrap();
        assert_eq!(made["password"], json!(password));
        let port = u16::try_from(made["port"].as_u64().unwrap()).unwrap();
        let mut engine = open(port, Some(password)).unwrap();
        engine.ask(&["PING"]).unwrap();
        assert!(
            open(port, None)
                .and_then(|mut engine| engine.ask(&["PING"]))
                .is_err()
        );
    }
    let none = [&base[..], &["without", "--password-stdin"]].concat();
    let output = run(&service, &none, "\n", &[]);
    assert_eq!(output.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&output.stderr).contains("no password"));
    // The value is not shown where the variable is.
    let shown = program()
        .args(["instance", "create", "--help"])
        .env("CACHEKEEP_PASSWORD", "From-Env-1")
        .output()
        .unwrap();
    let shown = String::from_utf8_lossy(&shown.stdout).into_owned();
    assert!(
        shown.contains("CACHEKEEP_PASSWORD") && !shown.contains("From-Env-1"),
        "{shown}"
    );
}

fn open(port: u16, password: Option<&str>) -> std::io::Result<xtask::resp::Connection> {
    xtask::resp::Connection::open(&xtask::resp::Target::local(port, password))
}

#[test]
fn deletions_print_json_and_a_file_of_credentials_reaches_another_project() {
    let service = Service::start();
    service.run_json(&["project", "create", "second"]);
    let key = service.run_json(&["key", "create", "--project", "second"]);
    let file = service.data().join("second.json");
    std::fs::write(&file, key.to_string()).unwrap();
    let file = file.to_str().unwrap();
    let made = service.run_json(&[
        "--credentials",
        file,
        "instance",
        "create",
        "--name",
        "theirs",
        "--capacity",
        "0.125",
    ]);
    assert_eq!(service.run_json(&["instance", "list"])["instance_num"], 0);
    let listed = service.run_json(&["instance", "list", "--credentials", file]);
    assert_eq!(listed["instances"][0]["instance_id"], made["instance_id"]);
    let output = run(
        &service,
        &["instance", "show", "theirs"],
        "",
        &[("CACHEKEEP_CREDENTIALS", file)],
    );
    assert!(output.status.success());
    let backup = service.run_json(&[
        "backup",
        "create",
        "theirs",
        "--wait",
        "-q",
        "--credentials",
        file,
    ]);
    let id = backup["backup_id"].as_str().unwrap();
    let deleted = service.run_json(&["backup", "delete", "theirs", id, "--credentials", file]);
    assert_eq!(deleted, json!({"backup_id": id, "deleted": true}));
    let deleted = service.run_json(&["instance", "delete", "theirs", "--credentials", file]);
    assert_eq!(
        deleted,
        json!({"instance_id": made["instance_id"], "deleted": true})
    );
    let missing = service.run(&["instance", "list", "--credentials", "/nonexistent"]);
    assert_eq!(missing.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&missing.stderr).contains("cachekeep key create"));
}

#[test]
fn who_waits_sees_lines_or_a_bar_and_what_comes_next() {
    let service = Service::start();
    let caller = service.caller();
    let instance = caller.make_instance("watched");
    caller.engine(&instance).ask(&["SET", "key", "value"]).unwrap();
    let told = |words: &[&str], succeeds: bool| {
        let output = service.run(words);
        let told = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.success(), succeeds, "{words:?}: {told}");
        told
    };
    let nothing = told(&["restore", "create", "watched", "--backup", "latest"], false);
    assert!(nothing.contains("cachekeep backup create"), "{nothing}");
    let nothing = told(&["restore", "undo", "watched"], false);
    assert!(nothing.contains("nothing to undo"), "{nothing}");
    let lines = told(&["backup", "create", "watched", "--wait"], true);
    let last = lines.lines().last().unwrap();
    assert!(last.starts_with("backup: succeed 100%"), "{lines}");
    assert!(
        !lines.contains('\u{1b}'),
        "no terminal, no control characters: {lines:?}"
    );
    let lines = told(
        &["restore", "create", "watched", "--backup", "latest", "--wait"],
        true,
    );
    assert!(lines.contains("restore: succeed 100%"), "{lines}");
    assert!(
        lines.contains("until 20") && lines.contains("cachekeep restore undo"),
        "{lines}"
    );

    // On a terminal: script(1) gives it one.
    let call = format!(
        "{} backup create watched --wait --data-dir '{}'",
        env!("CARGO_BIN_EXE_cachekeep"),
        service.data().display()
    );
    let output = Command::new("script")
        .args(["-qec", &call, "/dev/null"])
        .stdin(Stdio::null())
        .env("TERM", "xterm")
        .output()
        .unwrap();
    let screen = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success(), "{screen}");
    assert!(
        screen.contains("backup [") && screen.contains("backup: succeed in "),
        "{screen:?}"
    );

    // A restore that fails: the old data serves, and what next.
    let mut segments = Vec::new();
    files_below(&service.data().join("store"), &mut segments);
    for segment in segments
        .iter()
        .filter(|path| path.to_string_lossy().contains("seg-"))
    {
        std::fs::write(segment, b"spoilt").unwrap();
    }
    let failed = told(
        &["restore", "create", "watched", "--backup", "latest", "--wait"],
        false,
    );
    assert!(
        failed.contains("dcs.08.000")
            && failed.contains("The old data serves")
            && failed.contains("choose another"),
        "{failed}"
    );
    // The newest restore failed; the one before it can still be undone.
    let undone = service.run_json(&["restore", "undo", "watched", "--wait", "-q"]);
    assert_eq!(undone["status"], "succeed");
    wait("the end of the undo", || {
        let shown = caller.get(&format!("/instances/{instance}")).json();
        (shown["status"] == "RUNNING").then_some(())
    });
}

/// What a terminal of so many columns shows of a call: the lines as they were written, without what only moves or colours.
fn on_a_terminal(service: &Service, columns: u16, words: &str) -> Vec<String> {
    let call = format!(
        "stty cols {columns} rows 24; {} {words} --data-dir '{}'",
        env!("CARGO_BIN_EXE_cachekeep"),
        service.data().display()
    );
    let output = Command::new("script")
        .args(["-qec", &call, "/dev/null"])
        .stdin(Stdio::null())
        .env("TERM", "xterm")
        .output()
        .unwrap();
    let screen = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success(), "{screen}");
    let mut plain = String::new();
    let mut letters = screen.chars();
    while let Some(letter) = letters.next() {
        match letter {
            // A sequence ends with its first letter.
            '\u{1b}' => {
                letters.by_ref().find(char::is_ascii_alphabetic);
            }
            '\r' => plain.push('\n'),
            other => plain.push(other),
        }
    }
    plain.lines().map(str::to_owned).collect()
}

#[test]
fn the_bar_stays_on_one_line_of_a_terminal_of_80_and_of_40_columns() {
    // It stands still in mid-capture, where there is most to tell.
    let service = Service::start_with(
        &[],
        &[(
            "CACHEKEEP_FAILPOINT",
            "backup.mid_capture:stall,sideload.mid_place:stall",
        )],
    );
    let caller = service.caller();
    let instance = caller.make_instance("narrow");
    let mut engine = caller.engine(&instance);
    engine
        .ask(&["DEBUG", "POPULATE", "100000", "key", "300"])
        .unwrap();
    for (columns, words) in [
        (80, "backup create narrow --wait"),
        (40, "restore create narrow --backup latest --wait"),
    ] {
        let lines = on_a_terminal(&service, columns, words);
        let bars: Vec<&String> = lines.iter().filter(|line| line.contains(" [")).collect();
        assert!(
            bars.iter()
                .any(|line| line.contains("% ca") || line.contains("% l")),
            "{bars:#?}"
        );
        for line in bars {
            let width = line.chars().count();
            assert!(
                width <= usize::from(columns),
                "{width} of {columns} columns: {line:?}"
            );
        }
    }
}

#[test]
fn a_service_that_is_away_and_a_key_that_is_not_accepted_are_told_with_what_to_do() {
    let mut service = Service::start();
    let mut key = service.run_json(&["key", "create", "--project", "local"]);
    key["sk"] = json!("not the one");
    let file = service.data().join("wrong.json");
    std::fs::write(&file, key.to_string()).unwrap();
    let file = file.to_str().unwrap();
    let said = |service: &Service, words: &[&str]| {
        let output = service.run(words);
        assert_eq!(output.status.code(), Some(1), "{words:?}");
        String::from_utf8(output.stderr).unwrap()
    };
    let refused = said(&service, &["instance", "list", "--credentials", file]);
    for part in ["APIGW.0301", file, "`cachekeep key list`"] {
        assert!(refused.contains(part), "{part}: {refused}");
    }
    service.kill();
    let away = said(&service, &["instance", "list"]);
    for part in [service.admin("endpoint"), "admin.json", "`cachekeep serve`"] {
        assert!(away.contains(part), "{part}: {away}");
    }
}

#[test]
fn a_download_goes_into_a_directory_that_is_named_and_leaves_nothing_where_it_fails() {
    let service = Service::start();
    let caller = service.caller();
    let instance = caller.make_instance("fetched");
    caller.make_backup(&instance, "");
    let folder = Scratch::new("download").unwrap();
    let to = |path: &str| folder.path().join(path).to_str().unwrap().to_owned();
    let fetched = service.run_json(&["backup", "download", "fetched", "latest", "--to", &to("")]);
    assert!(
        fetched["file"].as_str().unwrap().starts_with(&to("")),
        "{fetched}"
    );
    let names = || std::fs::read_dir(folder.path()).unwrap().count();
    assert_eq!(names(), 1, "the file and no part of it");
    // What is written goes to a device that is always full.
    std::os::unix::fs::symlink("/dev/full", to("spoilt.rdb.part")).unwrap();
    let failed = service.run(&[
        "backup",
        "download",
        "fetched",
        "latest",
        "--to",
        &to("spoilt.rdb"),
    ]);
    assert_eq!(failed.status.code(), Some(1));
    let said = String::from_utf8(failed.stderr).unwrap();
    assert!(said.contains("No space left"), "{said}");
    let missing = service.run(&[
        "backup",
        "download",
        "fetched",
        "latest",
        "--to",
        &to("no/such.rdb"),
    ]);
    assert_eq!(missing.status.code(), Some(1));
    assert_eq!(names(), 1, "no part of what failed");
    // Two of one name are told apart by their ids, which the refusal names.
    let other = caller.make_instance("fetched");
    let output = service.run(&["instance", "show", "fetched"]);
    let said = String::from_utf8(output.stderr).unwrap();
    assert!(said.contains(&instance) && said.contains(&other), "{said}");
    let output = service.run(&["restore", "show", &other, "latest"]);
    let said = String::from_utf8(output.stderr).unwrap();
    assert!(said.contains("no restore of this instance yet"), "{said}");
}

#[test]
fn a_list_that_is_wider_than_the_terminal_is_shown_field_by_field() {
    let service = Service::start();
    let id = service.caller().make_instance("listed");
    let narrow = on_a_terminal(&service, 60, "instance list");
    assert!(narrow.contains(&format!("instance_id: {id}")), "{narrow:#?}");
    let wide = on_a_terminal(&service, 200, "instance list");
    assert!(
        !wide.iter().any(|line| line.starts_with("instance_id: ")),
        "{wide:#?}"
    );
    assert!(wide.iter().any(|line| line.contains(&id)), "{wide:#?}");
}

#[test]
fn what_is_advised_names_the_instance_as_the_user_did_and_nothing_is_shown_twice() {
    let service = Service::start();
    let id = service.caller().make_instance("named");
    for called in ["named", id.as_str()] {
        let said = |words: &[&str]| String::from_utf8(service.run(words).stderr).unwrap();
        let advised = said(&["restore", "create", called, "--backup", "latest"]);
        assert!(
            advised.contains(&format!("`cachekeep backup create {called} --wait`")),
            "{advised}"
        );
        let advised = said(&["backup", "show", called, "backup_20200101000000"]);
        assert!(
            advised.contains(&format!("`cachekeep backup list {called}`")),
            "{advised}"
        );
        service.run_json(&["backup", "create", called, "--wait", "-q"]);
        let advised = said(&["restore", "create", called, "--backup", "latest", "--wait"]);
        assert!(
            advised.contains(&format!("`cachekeep restore undo {called}`")),
            "{advised}"
        );
        let backup = service.run_json(&["backup", "show", called, "latest"]);
        let deleted = service.run(&["backup", "delete", called, backup["backup_id"].as_str().unwrap()]);
        assert!(deleted.status.success());
    }
    for words in [
        ["instance", "show", "named"].as_slice(),
        &["restore", "show", "named", "latest"],
    ] {
        let shown = String::from_utf8(service.run(words).stdout).unwrap();
        let mut names: Vec<&str> = shown.lines().filter_map(|line| line.split(": ").next()).collect();
        names.sort_unstable();
        let all = names.len();
        names.dedup();
        assert_eq!(names.len(), all, "{shown}");
    }
    let shown = String::from_utf8(service.run(&["instance", "show", "named"]).stdout).unwrap();
    let version = shown
        .lines()
        .find(|line| line.starts_with("engine_version: "))
        .unwrap();
    assert!(version.matches('.').count() >= 2, "the whole version: {version}");
}

fn files_below(folder: &std::path::Path, found: &mut Vec<std::path::PathBuf>) {
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            files_below(&path, found);
        } else {
            found.push(path);
        }
    }
}
