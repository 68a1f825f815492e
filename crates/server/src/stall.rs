//! A connection whose peer has to take what we write: one that does not is closed, and with it what it holds.

use std::future::Future;
use std::io::{self, IoSlice};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::Sleep;

use crate::connections::Use;

/// A stream that fails where a write makes no progress for `limit`. Reads may wait as long as they like.
pub struct Unstalled<S> {
    stream: S,
    limit: Duration,
    /// Since the first write that had to wait.
    waiting: Option<Pin<Box<Sleep>>>,
    /// Told of each write that its peer takes, and of what it sends.
    used: Option<Arc<Use>>,
}

impl<S: Unpin> Unstalled<S> {
    /// Watches a stream.
    pub fn new(stream: S, limit: Duration) -> Self {
        Self {
            stream,
            limit,
            waiting: None,
            used: None,
        }
    }

    /// Tells of what the peer takes and sends.
    #[must_use]
    pub fn telling(mut self, used: Arc<Use>) -> Self {
        self.used = Some(used);
        self
    }

    /// Lets `step` try; what has to wait too long becomes [`io::ErrorKind::TimedOut`].
    fn watch<T>(
        &mut self,
        context: &mut Context<'_>,
        step: impl FnOnce(Pin<&mut S>, &mut Context<'_>) -> Poll<io::Result<T>>,
    ) -> Poll<io::Result<T>> {
        if let Poll::Ready(done) = step(Pin::new(&mut self.stream), context) {
            self.waiting = None;
            if let Some(used) = &self.used {
                used.moved();
            }
            return Poll::Ready(done);
        }
        let limit = self.limit;
        let waiting = self
            .waiting
            .get_or_insert_with(|| Box::pin(tokio::time::sleep(limit)));
        match waiting.as_mut().poll(context) {
            Poll::Ready(()) => Poll::Ready(Err(io::ErrorKind::TimedOut.into())),
            Poll::Pending => Poll::Pending,
        }
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Unstalled<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let read = Pin::new(&mut self.stream).poll_read(context, buffer);
        if read.is_ready()
            && let Some(used) = &self.used
        {
            used.moved();
        }
        read
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Unstalled<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.watch(context, |stream, context| stream.poll_write(context, bytes))
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        parts: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.watch(context, |stream, context| {
            stream.poll_write_vectored(context, parts)
        })
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.watch(context, |stream, context| stream.poll_flush(context))
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.watch(context, |stream, context| stream.poll_shutdown(context))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    use std::future::poll_fn;
    use std::time::Instant;

    /// Writes to one end of a connection until that fails, while the other end is treated by `peer`.
    fn write_until_it_fails(
        peer: impl FnOnce(std::net::TcpStream) + Send + 'static,
    ) -> (io::ErrorKind, Duration) {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap();
        runtime.block_on(async {
            let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
            let other = std::net::TcpStream::connect(listener.local_addr().unwrap()).unwrap();
            let (stream, _) = listener.accept().await.unwrap();
            let thread = std::thread::spawn(move || peer(other));
            let mut stream = Unstalled::new(stream, Duration::from_millis(300));
            let began = Instant::now();
            let bytes = vec![7; 1 << 20];
            let error = loop {
                let wrote = poll_fn(|context| Pin::new(&mut stream).poll_write(context, &bytes)).await;
                if let Err(error) = wrote {
                    break error;
                }
            };
            drop(stream);
            let took = began.elapsed();
            thread.join().unwrap();
            (error.kind(), took)
        })
    }

    #[test]
    fn a_peer_that_takes_nothing_is_given_up_after_the_limit() {
        let (kind, took) = write_until_it_fails(|stream| {
            // Held open and never read.
            std::thread::sleep(Duration::from_millis(1500));
            drop(stream);
        });
        assert_eq!(kind, io::ErrorKind::TimedOut);
        assert!(took < Duration::from_millis(1500), "{took:?}");
    }

    #[test]
    fn a_slow_peer_that_takes_something_now_and_then_is_not_given_up() {
        let (kind, took) = write_until_it_fails(|mut stream| {
            let mut buffer = vec![0; 4 << 20];
            for _ in 0..8 {
                std::thread::sleep(Duration::from_millis(100));
                let _some = io::Read::read(&mut stream, &mut buffer).unwrap();
            }
        });
        assert_ne!(kind, io::ErrorKind::TimedOut, "the peer closed, it did not stall");
        assert!(took > Duration::from_millis(600), "{took:?}");
    }
}
