//! A link to a server that fails: a question is cut off, an answer is lost after what was asked is done, or nothing gets through
//! for a while.

use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use crate::Stop;

/// What happens to a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fault {
    /// It ends in the middle of what the client says.
    QuestionCut,
    /// It ends, and the server's answer is gone.
    AnswerLost,
    /// It ends in the middle of the server's answer.
    AnswerCut,
    /// An answer comes late; all goes on, some times, and then an answer is lost.
    Late,
}

const FAULTS: [Fault; 4] = [
    Fault::QuestionCut,
    Fault::AnswerLost,
    Fault::AnswerCut,
    Fault::Late,
];
/// A connection carries at most so many bytes either way before its fault.
const WHOLE_BYTES_MAX: u64 = 6 * 1024;
/// How late.
const LATE: Duration = Duration::from_millis(200);
/// A connection that is only late would be kept for good, and in the end nothing else would happen.
const LATE_TIMES: u32 = 5;

struct State {
    fails: AtomicBool,
    is_closing: AtomicBool,
    random: Mutex<u64>,
    done: [AtomicU64; FAULTS.len()],
}

/// When what happens.
#[derive(Clone, Copy)]
struct Plan {
    fault: Fault,
    /// Of the direction that the fault is of.
    after_bytes: u64,
}

impl State {
    fn plan(&self) -> Plan {
        let mut random = self.random.lock().unwrap_or_else(PoisonError::into_inner);
        let mut next = || {
            *random = random
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1_442_695_040_888_963_407);
            *random >> 33
        };
        Plan {
            fault: FAULTS[next() as usize % FAULTS.len()],
            after_bytes: 1 + next() % WHOLE_BYTES_MAX,
        }
    }

    /// Whether it is to happen; if so it is counted.
    fn happens(&self, fault: Fault) -> bool {
        let fails = self.fails.load(Ordering::SeqCst);
        if fails {
            self.done[fault as usize].fetch_add(1, Ordering::SeqCst);
        }
        fails
    }
}

/// A port of ours behind which a server is; ends on drop.
pub struct FaultyLink {
    address: SocketAddr,
    state: Arc<State>,
}

impl FaultyLink {
    /// Listens on a free port of loopback, and passes on all until [it is to fail](Self::set_failing). `seed` chooses what happens.
    ///
    /// # Errors
    /// No port.
    pub fn to(server: SocketAddr, seed: u64) -> Result<Self, Stop> {
        let listener = TcpListener::bind("127.0.0.1:0")?;
        let address = listener.local_addr()?;
        let state = Arc::new(State {
            fails: AtomicBool::new(false),
            is_closing: AtomicBool::new(false),
            random: Mutex::new(seed),
            done: Default::default(),
        });
        let shared = state.clone();
        std::thread::spawn(move || {
            for client in listener.incoming().flatten() {
                if shared.is_closing.load(Ordering::SeqCst) {
                    break;
                }
                let state = shared.clone();
                // Either side may be gone: that is the other's to notice.
                std::thread::spawn(move || drop(join(&state, client, server)));
            }
        });
        Ok(Self { address, state })
    }

    /// Where clients connect.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Whether it fails from now on.
    pub fn set_failing(&self, fails: bool) {
        self.state.fails.store(fails, Ordering::SeqCst);
    }

    /// How often questions were cut off, answers lost, answers cut off, and answers late.
    pub fn done(&self) -> [u64; 4] {
        self.state
            .done
            .each_ref()
            .map(|count| count.load(Ordering::SeqCst))
    }
}

impl Drop for FaultyLink {
    fn drop(&mut self) {
        self.state.is_closing.store(true, Ordering::SeqCst);
        // Wakes the thread that accepts.
        let _woken = TcpStream::connect(self.address);
    }
}

fn join(state: &Arc<State>, client: TcpStream, server: SocketAddr) -> std::io::Result<()> {
    let server = TcpStream::connect(server)?;
    for stream in [&client, &server] {
        stream.set_nodelay(true)?;
    }
    let plan = state.plan();
    let (from, to) = (client.try_clone()?, server.try_clone()?);
    let there = state.clone();
    let forth = std::thread::spawn(move || {
        let is_of_question = plan.fault == Fault::QuestionCut;
        pump(&there, is_of_question.then_some(plan), from, to);
    });
    let is_of_answer = plan.fault != Fault::QuestionCut;
    pump(state, is_of_answer.then_some(plan), server, client);
    let _ended = forth.join();
    Ok(())
}

/// Until either side ends it, or the fault does.
fn pump(state: &State, mut plan: Option<Plan>, mut from: TcpStream, mut to: TcpStream) {
    let mut some = vec![0; 64 * 1024];
    let (mut passed, mut late) = (0, 0);
    loop {
        let count = from.read(&mut some).unwrap_or(0);
        passed += count as u64;
        let due = plan.filter(|plan| count > 0 && passed >= plan.after_bytes && state.happens(plan.fault));
        let whole = match due.map(|plan| plan.fault) {
            None => count,
            Some(Fault::Late) => {
                std::thread::sleep(LATE);
                // The next one is due after as much again.
                passed = 0;
                late += 1;
                if late == LATE_TIMES {
                    plan = plan.map(|plan| Plan {
                        fault: Fault::AnswerLost,
                        ..plan
                    });
                }
                count
            }
            Some(Fault::AnswerLost) => 0,
            Some(Fault::QuestionCut | Fault::AnswerCut) => count / 2,
        };
        if to.write_all(&some[..whole]).is_err() || whole < count || count == 0 {
            let _gone = (from.shutdown(Shutdown::Both), to.shutdown(Shutdown::Both));
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A server that says back what it is told; how much it was told in all.
    fn echo() -> (SocketAddr, Arc<AtomicU64>) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let told = Arc::new(AtomicU64::new(0));
        let counted = told.clone();
        std::thread::spawn(move || {
            for mut client in listener.incoming().flatten() {
                let told = counted.clone();
                std::thread::spawn(move || {
                    let mut some = [0; 4096];
                    while let Ok(count @ 1..) = client.read(&mut some) {
                        told.fetch_add(count as u64, Ordering::SeqCst);
                        if client.write_all(&some[..count]).is_err() {
                            break;
                        }
                    }
                });
            }
        });
        (address, told)
    }

    /// How many of these exchanges of 1,000 bytes were whole.
    fn exchanges(link: &FaultyLink, count: usize) -> usize {
        let mut client = TcpStream::connect(link.address()).unwrap();
        let (words, mut answer) = ([7; 1000], [0; 1000]);
        let whole = |client: &mut TcpStream, answer: &mut [u8]| {
            client.write_all(&words).is_ok() && client.read_exact(answer).is_ok()
        };
        (0..count).take_while(|_| whole(&mut client, &mut answer)).count()
    }

    #[test]
    fn every_kind_of_fault_happens_and_none_where_it_is_not_to_fail() {
        let (server, told) = echo();
        let link = FaultyLink::to(server, 1).unwrap();
        assert_eq!(exchanges(&link, 100), 100);
        assert_eq!(link.done(), [0; 4]);
        link.set_failing(true);
        let before = told.load(Ordering::SeqCst);
        let mut whole = 0;
        for _ in 0..40 {
            whole += exchanges(&link, 15);
        }
        let done = link.done();
        assert!(done.iter().all(|count| *count > 0), "{done:?}");
        // What was answered in vain had been heard.
        let heard = told.load(Ordering::SeqCst) - before;
        assert!(heard > whole as u64 * 1000, "{heard} {whole} {done:?}");
        link.set_failing(false);
        assert_eq!(exchanges(&link, 100), 100);
    }
}
