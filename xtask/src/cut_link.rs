//! A link to a server that can be cut: what is on its way waits until it is whole again, as when a network is gone for a while.

use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, PoisonError};

use crate::Stop;

#[derive(Default)]
struct State {
    is_cut: Mutex<bool>,
    is_whole: Condvar,
    is_closing: AtomicBool,
}

impl State {
    fn wait_whole(&self) {
        let is_cut = self.is_cut.lock().unwrap_or_else(PoisonError::into_inner);
        let closing = |cut: &mut bool| *cut && !self.is_closing.load(Ordering::Relaxed);
        let _whole = self.is_whole.wait_while(is_cut, closing);
    }

    fn set(&self, cut: bool) {
        *self.is_cut.lock().unwrap_or_else(PoisonError::into_inner) = cut;
        self.is_whole.notify_all();
    }
}

/// A port of ours behind which a server is; ends on drop.
pub struct CutLink {
    address: SocketAddr,
    state: Arc<State>,
}

impl CutLink {
    /// Listens on a free port of loopback.
    ///
    /// # Errors
    /// No port.
    pub fn to(server: SocketAddr) -> Result<Self, Stop> {
        let listener = TcpListener::bind("127.0.0.1:0")?;
        let address = listener.local_addr()?;
        let state = Arc::new(State::default());
        let shared = state.clone();
        std::thread::spawn(move || {
            for client in listener.incoming().flatten() {
                if shared.is_closing.load(Ordering::Relaxed) {
                    break;
                }
                let state = shared.clone();
                std::thread::spawn(move || {
                    state.wait_whole();
                    // Either side may be gone: that is the other's to notice.
                    let _ended = join(&state, client, server);
                });
            }
        });
        Ok(Self { address, state })
    }

    /// Where clients connect.
    pub fn port(&self) -> u16 {
        self.address.port()
    }

    /// From now on nothing gets through.
    pub fn cut(&self) {
        self.state.set(true);
    }

    /// From now on all gets through, what was held up too.
    pub fn mend(&self) {
        self.state.set(false);
    }
}

impl Drop for CutLink {
    fn drop(&mut self) {
        self.state.is_closing.store(true, Ordering::Relaxed);
        self.state.set(false);
        // Wakes the thread that accepts.
        let _woken = TcpStream::connect(self.address);
    }
}

fn join(state: &Arc<State>, client: TcpStream, server: SocketAddr) -> std::io::Result<()> {
    let server = TcpStream::connect(server)?;
    for stream in [&client, &server] {
        stream.set_nodelay(true)?;
    }
    let (from, to) = (client.try_clone()?, server.try_clone()?);
    let there = state.clone();
    let forth = std::thread::spawn(move || pump(&there, from, to));
    pump(state, server, client);
    let _ended = forth.join();
    Ok(())
}

/// Until either side ends it.
fn pump(state: &State, mut from: TcpStream, mut to: TcpStream) {
    let mut some = vec![0; 64 * 1024];
    loop {
        let count = from.read(&mut some).unwrap_or(0);
        state.wait_whole();
        if count == 0 || to.write_all(&some[..count]).is_err() {
            let _gone = (from.shutdown(Shutdown::Both), to.shutdown(Shutdown::Both));
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn nothing_gets_through_while_it_is_cut_and_everything_after_that() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let link = CutLink::to(listener.local_addr().unwrap()).unwrap();
        let mut client = TcpStream::connect(("127.0.0.1", link.port())).unwrap();
        let (mut server, _) = listener.accept().unwrap();
        client.write_all(b"one").unwrap();
        let mut seen = [0; 3];
        server.read_exact(&mut seen).unwrap();
        assert_eq!(&seen, b"one");
        link.cut();
        client.write_all(b"two").unwrap();
        server.set_read_timeout(Some(Duration::from_millis(300))).unwrap();
        assert!(server.read_exact(&mut seen).is_err());
        link.mend();
        server.set_read_timeout(None).unwrap();
        server.read_exact(&mut seen).unwrap();
        assert_eq!(&seen, b"two");
        drop(client);
        assert_eq!(server.read(&mut seen).unwrap(), 0);
    }
}
