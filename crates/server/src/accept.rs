//! Takes connections and serves what comes over them.

use std::sync::Arc;
use std::time::Duration;

use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio_rustls::TlsAcceptor;

use crate::connections::{Answered, Connections, Patience, Place, Shared};
use crate::limits;
use crate::stall::Unstalled;

/// Serves connections, at most so many at once, until the service is told to stop.
///
/// # Errors
/// Signals cannot be waited for.
pub async fn run(
    service: axum::Router,
    listener: TcpListener,
    tls: Option<TlsAcceptor>,
    most: usize,
) -> anyhow::Result<()> {
    let patience = Patience {
        fresh: limits::FRESH_CONNECTION_MIN,
        served: limits::UNUSED_CONNECTION_MIN,
    };
    let connections = Connections::of(most, patience);
    let farewells = Arc::new(Semaphore::new(limits::FAREWELLS_AT_ONCE));
    let mut term = tokio::signal::unix::signal(tokio::signal::unix::SignalKind::terminate())?;
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            _ = tokio::signal::ctrl_c() => return Ok(()),
            _ = term.recv() => return Ok(()),
        };
        let stream = match accepted {
            Ok((stream, _)) => Arc::new(stream),
            Err(error) => {
                // Out of descriptors: connections will close.
                tracing::warn!(%error, "cannot accept a connection");
                tokio::time::sleep(Duration::from_millis(50)).await;
                continue;
            }
        };
        let Some(place) = connections.enter(&stream) else {
            if tls.is_none()
                && let Some(stream) = Arc::into_inner(stream)
                && let Ok(turn) = farewells.clone().try_acquire_owned()
            {
                tokio::spawn(refuse(stream, turn));
            }
            continue;
        };
        let (service, tls) = (service.clone(), tls.clone());
        tokio::spawn(async move {
            // Small answers go out at once.
            let _unsupported_is_fine = stream.set_nodelay(true);
            let stream = Unstalled::new(Shared(stream), limits::WRITE_STALL_MAX).telling(place.used());
            let served = async {
                match tls {
                    None => talk(stream, service, &place).await,
                    Some(acceptor) => {
                        let agreed = tokio::time::timeout(limits::HEADER_TIME_MAX, acceptor.accept(stream));
                        match agreed.await {
                            Ok(Ok(stream)) => talk(stream, service, &place).await,
                            _ => Ok(()),
                        }
                    }
                }
            };
            tokio::select! {
                served = served => {
                    if let Err(error) = served {
                        tracing::debug!(%error, "a connection ended early");
                    }
                }
                () = place.ended() => tracing::debug!("an unused connection made room for another one"),
            }
        });
    }
}

/// What a connection is told for which there is no place.
const NO_PLACE: &[u8] =
    b"HTTP/1.1 503 Service Unavailable\r\nRetry-After: 1\r\nContent-Length: 0\r\nConnection: close\r\n\r\n";

/// Says so, and reads what comes until the peer has read it: with bytes unread, closing would take the answer back.
async fn refuse(mut stream: TcpStream, _turn: OwnedSemaphorePermit) {
    let told = async {
        stream.write_all(NO_PLACE).await?;
        stream.shutdown().await?;
        let mut unread = [0; 1024];
        while stream.read(&mut unread).await? > 0 {}
        Ok::<_, std::io::Error>(())
    };
    let _gone_or_slow = tokio::time::timeout(limits::FAREWELL_TIME_MAX, told).await;
}

/// Serves what comes over one connection.
async fn talk<S>(stream: S, service: axum::Router, place: &Place) -> Result<(), hyper::Error>
where
    S: tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin,
{
    let service = TowerToHyperService::new(service);
    let answer = hyper::service::service_fn(|mut request: hyper::Request<hyper::body::Incoming>| {
        let (used, service) = (place.used(), service.clone());
        used.begin();
        // For whoever has to wait for its body.
        request.extensions_mut().insert(used.clone());
        async move {
            let answer = hyper::service::Service::call(&service, request).await;
            answer.map(|answer| answer.map(|body| Answered::on(used, body)))
        }
    });
    let mut http = hyper::server::conn::http1::Builder::new();
    http.timer(TokioTimer::new())
        .header_read_timeout(limits::HEADER_TIME_MAX)
        .max_buf_size(limits::HEAD_BYTES_MAX)
        .keep_alive(true);
    http.serve_connection(TokioIo::new(stream), answer).await
}

/// Lets this process have the descriptors that it may need, where the system allows it, and says how many of them may be connections.
/// Programs are started with a limit (1,024 on most systems) that is made for those that use `select`; ours use none, and `redis-server`
/// sets its own. No more than is needed: there are programs that try to close every descriptor that they could have.
pub fn connections_max() -> usize {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let limit = getrlimit(Resource::Nofile);
    let needed = limits::DESCRIPTORS_KEPT + limits::CONNECTIONS_MAX as u64;
    let allowed = limit.maximum.map_or(needed, |most| most.min(needed));
    let mut has = limit.current.unwrap_or(u64::MAX);
    if has < allowed {
        let raised = Rlimit {
            current: Some(allowed),
            maximum: limit.maximum,
        };
        match setrlimit(Resource::Nofile, raised) {
            Ok(()) => has = allowed,
            Err(error) => tracing::warn!(%error, "the limit of open files stays as it is"),
        }
    }
    let most = connections_of(has);
    if most < limits::CONNECTIONS_MAX {
        tracing::warn!(
            descriptors = has,
            connections = most,
            "the limit of open files is low: fewer connections are served at once than could be (ulimit -Hn, LimitNOFILE=)"
        );
    }
    most
}

/// Connections that so many descriptors are enough for: half of few, beside [`limits::DESCRIPTORS_KEPT`] others of many.
fn connections_of(descriptors: u64) -> usize {
    let free = descriptors
        .saturating_sub(limits::DESCRIPTORS_KEPT)
        .max(descriptors / 2);
    usize::try_from(free).map_or(limits::CONNECTIONS_MAX, |free| free.min(limits::CONNECTIONS_MAX))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_few_descriptors_half_are_connections_and_of_many_as_many_as_may_be() {
        let of = connections_of;
        assert_eq!(
            [of(256), of(1024), of(4096), of(9216), of(20_000)],
            [128, 512, 3072, 8192, 8192]
        );
    }
}
