//! A store for one who has reserved so many bytes of the project's quota: what it needs beyond that is reserved before it is put, or
//! it is not put (ADR 85).

use std::sync::mpsc::{SyncSender, sync_channel};

use engine::store::Store;
use engine::{Error, Kind};

use super::quota_record::Exceeded;

const RESERVE: &str = "reserve quota";

/// So much more than is needed now is reserved at once, or a quarter, as long as there is room for it: each time is a transaction.
const AHEAD_BYTES: u64 = 64 * 1024 * 1024;

/// One question: so many bytes, and where the answer goes.
type Question = (u64, SyncSender<Result<u64, Error>>);

/// Does `work` with the store of one who has reserved `granted` bytes. `write` runs in a transaction what has them reserved: of a
/// job only while its claim holds.
pub fn metered<T>(
    store: &Store,
    granted: u64,
    write: impl Fn(u64) -> Result<Result<(), Exceeded>, Error> + Send + Sync,
    work: impl FnOnce(&Store) -> T,
) -> T {
    // Whoever puts may be any thread of the data plane, and none of them may borrow what `write` needs.
    let (ask, asked) = sync_channel::<Question>(1);
    let metered = store.metered(granted, move |bytes| {
        let (answer, answered) = sync_channel(1);
        let gone = || Error::new(Kind::Cancelled, RESERVE, "nobody answers any more");
        ask.send((bytes, answer)).map_err(|_| gone())?;
        answered.recv().map_err(|_| gone())?
    });
    std::thread::scope(|scope| {
        scope.spawn(move || {
            engine::failpoint::exempt_this_thread();
            for (bytes, answer) in asked {
                // Who asked has ended where this does not arrive.
                let _gone = answer.send(grow(bytes, &write));
            }
        });
        let done = work(&metered);
        // With its last clone the questions end, and so does the thread.
        drop(metered);
        done
    })
}

fn grow(bytes: u64, write: &impl Fn(u64) -> Result<Result<(), Exceeded>, Error>) -> Result<u64, Error> {
    let mut ahead = AHEAD_BYTES.max(bytes / 4);
    loop {
        let wanted = bytes.saturating_add(ahead);
        match write(wanted)? {
            Ok(()) => return Ok(wanted),
            Err(exceeded) if ahead == 0 => return Err(refused(&exceeded)),
            Err(_) if ahead > AHEAD_BYTES => ahead /= 2,
            Err(_) => ahead = 0,
        }
    }
}

/// What a job or an import says that finds no room.
pub fn refused(exceeded: &Exceeded) -> Error {
    Error::new(Kind::Quota, RESERVE, exceeded.to_string())
}
