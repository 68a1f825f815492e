//! Counts what is put into a store, and asks before more is put than was granted.

use std::sync::{Mutex, PoisonError};

use crate::error::Error;

/// See [`super::Store::metered`].
type Ask = Box<dyn Fn(u64) -> Result<u64, Error> + Send + Sync>;

/// Of one attempt: all clones of its store count together.
pub(super) struct Meter {
    counted: Mutex<Counted>,
    ask: Ask,
}

#[derive(Debug)]
struct Counted {
    put_bytes: u64,
    granted_bytes: u64,
}

impl std::fmt::Debug for Meter {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Meter").field(&self.counted).finish()
    }
}

impl Meter {
    pub(super) fn new(granted_bytes: u64, ask: Ask) -> Self {
        let counted = Mutex::new(Counted {
            put_bytes: 0,
            granted_bytes,
        });
        Self { counted, ask }
    }

    pub(super) fn put_bytes(&self) -> u64 {
        self.counted
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .put_bytes
    }

    /// Counts an object that is about to be put. Others wait while it is asked for: they would have to ask too.
    pub(super) fn count(&self, bytes: u64) -> Result<(), Error> {
        let mut counted = self.counted.lock().unwrap_or_else(PoisonError::into_inner);
        let with_it = counted.put_bytes.saturating_add(bytes);
        if with_it > counted.granted_bytes {
            counted.granted_bytes = (self.ask)(with_it)?;
        }
        counted.put_bytes = with_it;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicU64, Ordering};

    use super::super::Store;
    use crate::error::{Error, Kind};

    #[test]
    fn a_metered_store_puts_nothing_that_was_not_granted() {
        let folder = std::env::temp_dir().join(format!("cachekeep-meter-{}", std::process::id()));
        let store = Store::open(&folder).unwrap();
        let asked = Arc::new(AtomicU64::new(0));
        let told = asked.clone();
        let metered = store.metered(10, move |bytes| {
            told.fetch_add(1, Ordering::SeqCst);
            match bytes <= 25 {
                true => Ok(25),
                false => Err(Error::new(Kind::StoreFull, "store", format!("{bytes} bytes"))),
            }
        });
        metered.put("a", &[0; 10]).unwrap();
        assert_eq!(asked.load(Ordering::SeqCst), 0);
        metered.clone().put("b", &[0; 10]).unwrap();
        metered
            .put_buffer("c", vec![0; 5], &super::super::always)
            .unwrap();
        assert_eq!(asked.load(Ordering::SeqCst), 1);
        for _again in 0..2 {
            let refused = metered.put("d", &[0; 1]).unwrap_err();
            assert_eq!(refused.kind, Kind::StoreFull);
            assert!(crate::chain(&refused).contains("26 bytes"));
        }
        assert_eq!((metered.metered_bytes(), store.metered_bytes()), (25, 0));
        assert_eq!(store.list("").unwrap(), ["a", "b", "c"]);
        std::fs::remove_dir_all(&folder).unwrap();
    }
}
