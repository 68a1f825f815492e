//! A TCP proxy behind which a server sends slowly: what a capture over a network of that speed sees.

use std::io::{Read, Write};
use std::net::{IpAddr, Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use crate::Stop;

/// Pieces in which is sent: small beside what is sent in a second.
const PIECE: usize = 4096;

/// A running proxy; ends on drop, its connections with either side.
pub struct Throttle {
    address: SocketAddr,
    open: Arc<AtomicUsize>,
    is_closing: Arc<AtomicBool>,
}

impl Throttle {
    /// Starts on a free loopback port. Each connection gets so many bytes a second of what the server sends.
    ///
    /// # Errors
    /// No port.
    pub fn start(server: SocketAddr, bytes_per_second: u32) -> Result<Self, Stop> {
        Self::start_at(Ipv4Addr::LOCALHOST.into(), server, bytes_per_second)
    }

    /// As [`Throttle::start`], at an address of this machine.
    ///
    /// # Errors
    /// No port.
    pub fn start_at(at: IpAddr, server: SocketAddr, bytes_per_second: u32) -> Result<Self, Stop> {
        let listener = TcpListener::bind((at, 0))?;
        let address = listener.local_addr()?;
        let (open, is_closing) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicBool::new(false)));
        let (counted, closing) = (open.clone(), is_closing.clone());
        std::thread::spawn(move || {
            for client in listener.incoming().flatten() {
                if closing.load(Ordering::SeqCst) {
                    break;
                }
                let open = counted.clone();
                std::thread::spawn(move || {
                    open.fetch_add(1, Ordering::SeqCst);
                    // Either side may go at any time.
                    let _ended = forward(&client, server, bytes_per_second);
                    open.fetch_sub(1, Ordering::SeqCst);
                });
            }
        });
        Ok(Self {
            address,
            open,
            is_closing,
        })
    }

    /// Where clients connect.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// How many connections are open.
    pub fn connections(&self) -> usize {
        self.open.load(Ordering::SeqCst)
    }
}

impl Drop for Throttle {
    fn drop(&mut self) {
        self.is_closing.store(true, Ordering::SeqCst);
        let _wakes_it = TcpStream::connect(self.address);
    }
}

fn forward(client: &TcpStream, server: SocketAddr, bytes_per_second: u32) -> std::io::Result<()> {
    let server = TcpStream::connect(server)?;
    client.set_nodelay(true)?;
    server.set_nodelay(true)?;
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let _ended = std::io::copy(&mut &*client, &mut &server);
            let _gone_already = server.shutdown(Shutdown::Both);
        });
        let mut piece = [0; PIECE];
        let (mut credit, mut since) = (f64::from(bytes_per_second) / 4.0, Instant::now());
        let sent = loop {
            let count = match (&server).read(&mut piece) {
                Ok(0) => break Ok(()),
                Ok(count) => count,
                Err(error) => break Err(error),
            };
            credit += since.elapsed().as_secs_f64() * f64::from(bytes_per_second);
            credit = credit.min(f64::from(bytes_per_second) / 4.0);
            since = Instant::now();
            credit -= count as f64;
            if credit < 0.0 {
                std::thread::sleep(Duration::from_secs_f64(-credit / f64::from(bytes_per_second)));
            }
            if let Err(error) = (&mut &*client).write_all(&piece[..count]) {
                break Err(error);
            }
        };
        let _gone_already = client.shutdown(Shutdown::Both);
        let _gone_already = server.shutdown(Shutdown::Both);
        sent
    })
}
