//! The pace. Nothing here waits for an answer before the next request is due: where no connection is free, requests queue up,
//! and their time in the queue is part of their latency.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::rc::Rc;
use std::time::Duration;

use tokio::io::AsyncWriteExt as _;
use tokio::net::TcpStream;
use tokio::sync::Notify;
use tokio::task::LocalSet;
use tokio::time::{Instant, sleep, sleep_until, timeout};

use crate::connection::Connection;
use crate::mix::{Mix, Wish, Writer, value};
use crate::report::{Tally, Written, micros};
use crate::{Plan, Report};

/// Between two bytes of a connection that is slow on purpose.
const SLOW_BYTE_EVERY: Duration = Duration::from_secs(2);
/// Before a connection that could not be made is tried again.
const DIAL_PAUSE: Duration = Duration::from_millis(100);

/// A request, and when it is due.
#[derive(Clone, Copy)]
struct Due {
    at: Instant,
    wish: Wish,
}

/// What all tasks share; they are on one thread, and nobody holds it while he waits.
struct Shared {
    /// Due, and not taken by a connection.
    queue: VecDeque<Due>,
    /// Connections without a request, longest first: all are in use in turn.
    idle: VecDeque<usize>,
    /// What a connection is given.
    given: Vec<Option<Due>>,
    /// Requests under way.
    under_way: usize,
    tally: Tally,
    writer: Writer,
    started: Instant,
    last_answer: Instant,
}

/// Runs the plan on this thread.
///
/// # Errors
/// No connection can be made at the beginning.
pub fn run(plan: &Plan) -> std::io::Result<Report> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    LocalSet::new().block_on(&runtime, run_here(Rc::new(plan.clone())))
}

async fn run_here(plan: Rc<Plan>) -> std::io::Result<Report> {
    let mut connections = Vec::with_capacity(plan.connections);
    for _ in 0..plan.connections {
        connections.push(Connection::to(&plan.address));
    }
    // Connected before the first request is due, as clients that have been there for long are. One that the service has no place
    // for is made when its turn comes.
    for (at, connection) in connections.iter_mut().enumerate() {
        match timeout(Duration::from_secs(5), connection.open()).await {
            Ok(Err(error)) if at == 0 => return Err(error),
            _ => {}
        }
    }
    let now = Instant::now();
    let shared = Rc::new(RefCell::new(Shared {
        queue: VecDeque::new(),
        idle: (0..plan.connections).collect(),
        given: vec![None; plan.connections],
        under_way: 0,
        tally: Tally::new(),
        writer: Writer::default(),
        started: now,
        last_answer: now,
    }));
    let wakers: Rc<Vec<Notify>> = Rc::new((0..plan.connections).map(|_| Notify::new()).collect());
    for (at, connection) in connections.into_iter().enumerate() {
        tokio::task::spawn_local(serve(
            plan.clone(),
            shared.clone(),
            wakers.clone(),
            at,
            connection,
        ));
    }
    for _ in 0..plan.slow {
        tokio::task::spawn_local(be_slow(plan.address.clone(), shared.clone()));
    }
    let cpu = cpu_time();
    pace(&plan, &shared, &wakers).await;
    let until = Instant::now() + Duration::from_secs_f64(plan.patience_seconds);
    loop {
        let is_over = {
            let shared = shared.borrow();
            shared.queue.is_empty() && shared.under_way == 0
        };
        if is_over || Instant::now() > until {
            break;
        }
        sleep(Duration::from_millis(5)).await;
    }
    let cpu = cpu_time() - cpu;
    let mut shared = shared.borrow_mut();
    let mut report = std::mem::replace(&mut shared.tally, Tally::new()).finish();
    let whole = (shared.last_answer - shared.started).as_secs_f64();
    report.offered_rate = plan.rate;
    report.seconds = whole;
    let over = if whole > plan.seconds + 1.0 {
        whole
    } else {
        plan.seconds
    };
    report.achieved_rate = report.count(200, 300) as f64 / over;
    report.cpu_seconds = cpu;
    Ok(report)
}

/// Lets each request be due at its moment.
async fn pace(plan: &Plan, shared: &RefCell<Shared>, wakers: &[Notify]) {
    let mut mix = Mix::of(plan);
    let total = (plan.rate * plan.seconds).round() as u64;
    let started = Instant::now();
    shared.borrow_mut().started = started;
    for number in 0..total {
        let at = started + Duration::from_secs_f64(number as f64 / plan.rate);
        if at > Instant::now() {
            sleep_until(at).await;
        }
        {
            let mut shared = shared.borrow_mut();
            shared.tally.report.due += 1;
            let due = Due { at, wish: mix.draw() };
            match shared.idle.pop_front() {
                Some(connection) => {
                    shared.tally.sent(at.elapsed());
                    shared.given[connection] = Some(due);
                    shared.under_way += 1;
                    wakers[connection].notify_one();
                }
                None => shared.queue.push_back(due),
            }
        }
        // Where more is due than can be sent, answers must be read in between all the same.
        if number % 64 == 63 {
            tokio::task::yield_now().await;
        }
    }
    // The last one's share of the time.
    sleep_until(started + Duration::from_secs_f64(plan.seconds)).await;
}

/// One connection: sends what it is given, then what has queued up.
async fn serve(
    plan: Rc<Plan>,
    shared: Rc<RefCell<Shared>>,
    wakers: Rc<Vec<Notify>>,
    at: usize,
    mut connection: Connection,
) {
    loop {
        wakers[at].notified().await;
        let mut next = shared.borrow_mut().given[at].take();
        while let Some(due) = next {
            let bytes = shared.borrow_mut().writer.bytes(&plan, due.wish);
            while connection.open().await.is_err() {
                sleep(DIAL_PAUSE).await;
            }
            shared.borrow_mut().tally.report.sent += 1;
            let sent = Instant::now();
            let answer = connection.ask(&bytes).await;
            let done = Instant::now();
            let mut shared = shared.borrow_mut();
            let mut status = 0;
            match &answer {
                Ok(answer) => {
                    status = answer.status;
                    shared.last_answer = done;
                    let since = if plan.from_sent { sent } else { due.at };
                    let second = due.at.saturating_duration_since(shared.started).as_secs();
                    shared.tally.answered(due.wish.kind, status, second, done - since);
                    if matches!(status, 429 | 503) && !answer.has_retry_after {
                        shared.tally.report.without_retry_after += 1;
                    }
                }
                Err(error) => {
                    shared.tally.report.broken += 1;
                    let kind = due.wish.kind.word();
                    let after = (done - sent).as_secs();
                    let how = format!("{kind}: {} after {after} s", error.kind());
                    *shared.tally.report.broken_by.entry(how).or_default() += 1;
                }
            }
            if due.wish.kind.is_write() {
                let since = |moment: Instant| micros(moment.saturating_duration_since(shared.started));
                let written = Written {
                    kind: due.wish.kind,
                    tenant: due.wish.tenant,
                    value: value(due.wish),
                    sent_us: since(sent),
                    done_us: if status == 0 { 0 } else { since(done) },
                    status,
                    id: answer.ok().and_then(|answer| backup_id(&answer.body)),
                };
                shared.tally.report.written.push(written);
            }
            next = shared.queue.pop_front();
            if next.is_none() {
                shared.under_way -= 1;
                shared.idle.push_back(at);
            }
        }
    }
}

fn backup_id(body: &[u8]) -> Option<String> {
    let body: serde_json::Value = serde_json::from_slice(body).ok()?;
    Some(body["backup_id"].as_str()?.to_owned())
}

/// A client that never ends its head, and comes back when it is thrown out.
async fn be_slow(address: String, shared: Rc<RefCell<Shared>>) {
    loop {
        let Ok(mut stream) = TcpStream::connect(&address).await else {
            sleep(DIAL_PAUSE).await;
            continue;
        };
        let mut is_open = stream
            .write_all(b"GET /healthz HTTP/1.1\r\nHost: slow\r\nX-Slow: ")
            .await
            .is_ok();
        while is_open {
            let mut read = [0; 256];
            // It may be told why.
            let ended = timeout(
                SLOW_BYTE_EVERY,
                tokio::io::AsyncReadExt::read(&mut stream, &mut read),
            )
            .await;
            is_open = match ended {
                Ok(Ok(0) | Err(_)) => false,
                Ok(Ok(_)) => true,
                Err(_) => stream.write_all(b"x").await.is_ok(),
            };
        }
        shared.borrow_mut().tally.report.slow_ended += 1;
        sleep(DIAL_PAUSE).await;
    }
}

/// Processor time of this process, user and system, in seconds.
fn cpu_time() -> f64 {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::ProcessCPUTime);
    time.tv_sec as f64 + time.tv_nsec as f64 / 1e9
}
