use super::super::{Catalog, SCHEMA, dialect, postgres, sqlite};
use super::*;
use xtask::scratch::Scratch;

/// As it was when there was nothing else.
const VERSION_1: &str = include_str!("../steps/version-1.sql");
const PRELUDE: &str = include_str!("../steps/prelude-1.sql");

fn form_of(sql: &str) -> Vec<String> {
    let open = rusqlite::Connection::open_in_memory().unwrap();
    open.execute_batch(sql).unwrap();
    sqlite::form(&open).unwrap()
}

#[test]
fn the_first_step_begins_with_the_forms_of_version_1() {
    let step = &STEPS[0];
    assert_eq!(sqlite::digest(&form_of(VERSION_1)), step.sqlite_form);
    assert_eq!(
        postgres::digest(PRELUDE, &dialect::schema(VERSION_1)),
        step.postgres_form
    );
    let versions: Vec<i64> = STEPS.iter().map(|step| step.from).collect();
    assert_eq!(versions, (1..SCHEMA_VERSION).collect::<Vec<_>>());
}

fn old_file(folder: &Scratch) -> PathBuf {
    let path = folder.path().join("catalog.sqlite");
    let old = rusqlite::Connection::open(&path).unwrap();
    old.pragma_update(None, "journal_mode", "WAL").unwrap();
    old.execute_batch(VERSION_1).unwrap();
    old.execute_batch("INSERT INTO signer VALUES ('kept'); PRAGMA user_version = 1")
        .unwrap();
    path
}

fn signer(catalog: &Catalog) -> Option<String> {
    let sql = "SELECT verifying_key FROM signer";
    catalog.read(|tx| tx.one(sql, (), |row| row.get(0))).unwrap()
}

#[test]
fn a_file_of_version_1_is_refused_then_migrated_once_and_its_copy_is_as_it_was() {
    let folder = Scratch::new("migrate").unwrap();
    let path = old_file(&folder);
    let form = |path: &Path| sqlite::form(&rusqlite::Connection::open(path).unwrap()).unwrap();
    let refused = Catalog::open(&path);
    assert!(matches!(refused, Err(Error::Old(1))));

    let copy = folder.path().join("catalog.version-1.sqlite");
    let expected = Migration {
        from: 1,
        to: SCHEMA_VERSION,
        copy: Some(copy.clone()),
    };
    assert_eq!(migrate_file(&path, true).unwrap(), expected);
    assert!(!copy.exists());
    assert_eq!(form(&path), form_of(VERSION_1));

    // What an earlier attempt left behind is in nobody's way.
    std::fs::write(folder.path().join("catalog.version-1.part"), "left").unwrap();
    assert_eq!(migrate_file(&path, false).unwrap(), expected);
    assert_eq!(form(&path), form_of(SCHEMA));
    assert_eq!(signer(&Catalog::open(&path).unwrap()).as_deref(), Some("kept"));
    assert_eq!(form(&copy), form_of(VERSION_1));
    use std::os::unix::fs::PermissionsExt as _;
    assert_eq!(
        std::fs::metadata(&copy).unwrap().permissions().mode() & 0o777,
        0o600
    );
    let again = migrate_file(&path, false).unwrap();
    assert_eq!((again.from, again.copy), (SCHEMA_VERSION, None));

    // The way back, and from there once more.
    for ending in ["sqlite-wal", "sqlite-shm"] {
        let _absent = std::fs::remove_file(path.with_extension(ending));
    }
    std::fs::copy(&copy, &path).unwrap();
    assert!(matches!(Catalog::open(&path), Err(Error::Old(1))));
    assert_eq!(migrate_file(&path, false).unwrap(), expected);
    assert_eq!(signer(&Catalog::open(&path).unwrap()).as_deref(), Some("kept"));

    // What is destroyed in the file is not to be found in its copy.
    let also = folder.path().join("linked");
    std::fs::hard_link(&copy, &also).unwrap();
    let part = copy.with_extension("part");
    std::fs::write(&part, "left by a crash").unwrap();
    for _again in 0..2 {
        forget_copies(&path).unwrap();
        assert!(!copy.exists() && !part.exists());
    }
    assert!(std::fs::read(&also).unwrap().iter().all(|byte| *byte == 0));
}

#[test]
fn a_file_that_is_newer_or_of_others_or_that_is_not_there_is_not_migrated() {
    let folder = Scratch::new("migrate").unwrap();
    let path = old_file(&folder);
    let changed = |sql: &str| {
        rusqlite::Connection::open(&path)
            .unwrap()
            .execute_batch(sql)
            .unwrap();
    };
    let why = |path: &Path| migrate_file(path, false).unwrap_err().to_string();
    changed("PRAGMA user_version = 3");
    assert!(why(&path).contains("this program knows versions up to 2"));
    changed("PRAGMA user_version = 1; CREATE TABLE foreign_one (a INT)");
    assert!(why(&path).contains("has other tables than version 1 has"));
    let absent = folder.path().join("absent.sqlite");
    migrate_file(&absent, false).unwrap_err();
    assert!(!absent.exists());
}

/// What PostgreSQL says that lies in a schema, a line for each column, rule, index and trigger.
fn lies_in(server: &xtask::postgres::Postgres, schema: &str) -> Vec<String> {
    let told = server
        .sql(&format!(
            "SELECT concat_ws(' ', 'column', table_name, column_name, data_type, collation_name, is_nullable, column_default) \
             FROM information_schema.columns WHERE table_schema = '{schema}' UNION ALL \
             SELECT concat_ws(' ', 'rule', conrelid::regclass::text, conname, pg_get_constraintdef(oid)) \
             FROM pg_constraint WHERE connamespace = '{schema}'::regnamespace UNION ALL \
             SELECT 'index ' || indexdef FROM pg_indexes WHERE schemaname = '{schema}' UNION ALL \
             SELECT 'trigger ' || pg_get_triggerdef(oid) FROM pg_trigger WHERE NOT tgisinternal \
             AND tgrelid IN (SELECT oid FROM pg_class WHERE relnamespace = '{schema}'::regnamespace)"
        ))
        .unwrap();
    let mut lines: Vec<String> = told
        .lines()
        .map(|line| line.replace(&format!("{schema}."), ""))
        .collect();
    lines.sort();
    lines
}

#[test]
fn a_database_of_version_1_is_migrated_to_what_a_new_one_is_while_its_programs_go_on() {
    let server = xtask::postgres::Postgres::start().unwrap();
    let (old, new) = (
        server.make_schema("before").unwrap(),
        server.make_schema("fresh").unwrap(),
    );
    let script = format!(
        "SET search_path = before; {PRELUDE}; {}; INSERT INTO catalogue VALUES (1, '{}'); INSERT INTO signer VALUES ('kept')",
        dialect::schema(VERSION_1),
        STEPS[0].postgres_form
    );
    server.sql(&script).unwrap();
    assert!(matches!(Catalog::connect(&old, true), Err(Error::Old(1))));
    let expected = Migration {
        from: 1,
        to: SCHEMA_VERSION,
        copy: None,
    };
    assert_eq!(migrate_database(&old, true).unwrap(), expected);
    assert!(matches!(Catalog::connect(&old, true), Err(Error::Old(1))));
    assert_eq!(migrate_database(&old, false).unwrap(), expected);
    assert_eq!(migrate_database(&old, false).unwrap().from, SCHEMA_VERSION);
    let catalog = Catalog::connect(&old, true).unwrap();
    assert_eq!(signer(&catalog).as_deref(), Some("kept"));
    drop(Catalog::connect(&new, true).unwrap());
    let (migrated, made) = (lies_in(&server, "before"), lies_in(&server, "fresh"));
    let differ = |a: &[String], b: &[String]| -> Vec<String> {
        a.iter().filter(|line| !b.contains(line)).cloned().collect()
    };
    assert_eq!(
        (differ(&migrated, &made), differ(&made, &migrated)),
        (vec![], vec![])
    );
    assert!(made.len() > 300, "{}", made.len());

    // A later version adds something: who is there goes on, and so does who comes.
    let every = |tx: &super::super::Tx<'_>| tx.image("SELECT * FROM signer", ());
    assert_eq!(catalog.read(every).unwrap().unwrap().len(), 1);
    server
        .sql(
            "BEGIN; ALTER TABLE before.signer ADD COLUMN later BIGINT; UPDATE before.catalogue SET version = 3, form = 'later'; \
             UPDATE before.compatibility SET least_program = 2; COMMIT",
        )
        .unwrap();
    assert!(matches!(catalog.read(every), Err(Error::Away(_))));
    assert_eq!(catalog.read(every).unwrap().unwrap().len(), 2);
    let note = |tx: &super::super::Tx<'_>| tx.execute("INSERT INTO signer (verifying_key) VALUES ('k')", ());
    catalog.write(note).unwrap();
    Catalog::connect(&old, true).unwrap().write(note).unwrap();
    let newer = migrate_database(&old, false).unwrap_err().to_string();
    assert!(newer.contains("use the program that wrote it"), "{newer}");

    // And one that changes what there is: nobody who does not know it writes or reads any more, or comes.
    server
        .sql("UPDATE before.compatibility SET least_program = 3")
        .unwrap();
    assert!(matches!(catalog.write(note), Err(Error::Away(_))));
    assert!(matches!(catalog.read(every), Err(Error::Away(_))));
    assert!(matches!(Catalog::connect(&old, true), Err(Error::Unusable(_))));
    assert_eq!(
        server.sql("SELECT count(*) FROM before.signer").unwrap().trim(),
        "3"
    );
}
