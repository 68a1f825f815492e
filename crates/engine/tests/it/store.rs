use engine::{Kind, Store};

use crate::harness::Scratch;

#[test]
fn objects_are_never_replaced() {
    let scratch = Scratch::new();
    let store = Store::open(scratch.join("new/root")).unwrap();
    store.put("a/b/c.x", b"first").unwrap();
    assert_eq!(store.put("a/b/c.x", b"second").unwrap_err().kind, Kind::Store);
    assert_eq!(store.get("a/b/c.x").unwrap(), b"first");
    assert_eq!(store.size("a/b/c.x").unwrap(), 5);
    assert_eq!(store.list("").unwrap(), ["a/b/c.x"]);
    let left: Vec<_> = std::fs::read_dir(scratch.join("new/root/a/b")).unwrap().collect();
    assert_eq!(left.len(), 1, "a temporary file is left");
}

#[test]
fn absent_objects_are_not_found_and_deleted_already() {
    let scratch = Scratch::new();
    let store = Store::open(scratch.path()).unwrap();
    store.put("a/b", b"").unwrap();
    for absent in ["x", "a/x", "a", "a/b/c"] {
        assert_eq!(
            store.get(absent).unwrap_err().kind,
            if absent == "a" {
                Kind::Store
            } else {
                Kind::NotFound
            }
        );
        assert_eq!(store.size(absent).unwrap_err().kind, Kind::NotFound);
        assert!(!store.exists(absent).unwrap());
    }
    store.delete("a/b").unwrap();
    store.delete("a/b").unwrap();
    store.delete("never/was").unwrap();
    store.delete_prefix("never/was").unwrap();
    assert_eq!(store.list("never").unwrap(), [""; 0]);
}

#[test]
fn deleting_a_prefix_takes_remains_and_empty_parents_and_nothing_else() {
    let scratch = Scratch::new();
    let store = Store::open(scratch.path()).unwrap();
    store.put("p/i/b1/manifest.json", b"").unwrap();
    store.put("p/i/b1/shard-0/seg", b"").unwrap();
    std::fs::write(scratch.join("p/i/b1/shard-0/.put-1-1"), b"half").unwrap();
    store.put("p/i/b10/seg", b"").unwrap();
    store.delete_prefix("p/i/b1").unwrap();
    assert_eq!(store.list("").unwrap(), ["p/i/b10/seg"]);
    assert!(!scratch.join("p/i/b1").exists());
    store.delete_prefix("p/i/b10").unwrap();
    assert!(std::fs::read_dir(scratch.path()).unwrap().next().is_none());
}

#[test]
fn names_that_leave_the_store_are_refused() {
    let scratch = Scratch::new();
    let store = Store::open(scratch.path()).unwrap();
    let long = "a".repeat(201);
    for name in [
        "", "/", "/a", "a/", "a//b", ".", "..", "a/../b", ".hidden", "a b", "a\\b", "ä", "a\0", &long,
    ] {
        assert_eq!(store.put(name, b"").unwrap_err().kind, Kind::Store, "{name:?}");
        assert_eq!(store.delete(name).unwrap_err().kind, Kind::Store, "{name:?}");
        assert_eq!(store.get(name).unwrap_err().kind, Kind::Store, "{name:?}");
    }
    assert!(store.delete_prefix("").is_err());
}

#[test]
fn puts_and_deletes_of_neighbours_do_not_disturb_each_other() {
    let scratch = Scratch::new();
    let store = Store::open(scratch.path()).unwrap();
    std::thread::scope(|scope| {
        for thread in 0..4 {
            let store = &store;
            scope.spawn(move || {
                for round in 0..50 {
                    let prefix = format!("p/i/b{thread}-{round}");
                    store.put(&format!("{prefix}/seg"), b"bytes").unwrap();
                    assert!(store.exists(&format!("{prefix}/seg")).unwrap());
                    store.delete_prefix(&prefix).unwrap();
                }
            });
        }
    });
    assert_eq!(store.list("").unwrap(), [""; 0]);
}
