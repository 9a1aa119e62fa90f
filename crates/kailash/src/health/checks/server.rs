//! What the checks of servers have in common: connecting within sight, and the classes of errors.

use std::error::Error;
use std::future::Future;
use std::io;
use std::iter;
use std::net::IpAddr;
use std::sync::Arc;

use tokio::net::{TcpStream, lookup_host};
use tokio::time::sleep;

use crate::health::{ErrorClass, Outcome, Phase, Run};

/// Where a server listens.
#[derive(Clone, Debug)]
pub(super) struct Address {
    pub(super) host: String,
    pub(super) port: u16,
}

impl Address {
    pub(super) fn new(host: &str, port: u16) -> Self {
        // The brackets belong to a URL, not to the address.
        let host = host.trim_start_matches('[').trim_end_matches(']');
        Self {
            host: host.to_owned(),
            port,
        }
    }

    /// Looks up the name, so that a name without an address is told from a server that is away.
    pub(super) async fn look_up(&self, run: &Run) -> Result<(), Outcome> {
        if self.host.parse::<IpAddr>().is_ok() {
            return Ok(());
        }
        run.reached(Phase::LookUp);
        let found = lookup_host((self.host.as_str(), self.port)).await;
        if found.is_ok_and(|mut addresses| addresses.next().is_some()) {
            return Ok(());
        }
        let host = &self.host;
        let message = format_args!("{host:?} has no address");
        Err(Outcome::error(ErrorClass::Dns, message))
    }

    /// Awaits an attempt whose inside cannot be seen, a connection being made by a driver. When half
    /// of the time left is over, it asks by itself whether the server accepts connections at all.
    pub(super) async fn watch<T>(&self, run: &Run, attempt: impl Future<Output = T>) -> T {
        run.reached(Phase::Connecting);
        let mut attempt = std::pin::pin!(attempt);
        let accepts = async {
            sleep(run.remaining() / 2).await;
            let address = (self.host.as_str(), self.port);
            if TcpStream::connect(address).await.is_ok() {
                run.reached(Phase::Connected);
            }
        };
        tokio::select! {
            biased;
            done = &mut attempt => return done,
            () = accepts => {}
        }
        attempt.await
    }
}

/// The class of an error, if an I/O or a TLS error is among its causes.
pub(super) fn class_of(error: &(dyn Error + 'static)) -> Option<ErrorClass> {
    let mut class = None;
    for cause in causes(error) {
        #[cfg(any(feature = "http", feature = "redis"))]
        if cause.is::<rustls::Error>() {
            return Some(ErrorClass::Tls);
        }
        if let Some(cause) = cause.downcast_ref::<io::Error>() {
            class = Some(io_class(cause.kind()));
        }
    }
    class
}

/// The error and what caused it, the innermost last.
pub(super) fn causes<'e>(
    error: &'e (dyn Error + 'static),
) -> impl Iterator<Item = &'e (dyn Error + 'static)> {
    iter::successors(Some(error), |&error| {
        // These two hand on the source of what they hold, not what they hold.
        if let Some(error) = error.downcast_ref::<io::Error>() {
            let held = error.get_ref();
            return held.map(|held| held as &(dyn Error + 'static));
        }
        if let Some(held) = error.downcast_ref::<Arc<dyn Error + Send + Sync>>() {
            return Some(&**held);
        }
        error.source()
    })
}

fn io_class(kind: io::ErrorKind) -> ErrorClass {
    match kind {
        io::ErrorKind::ConnectionRefused => ErrorClass::Refused,
        io::ErrorKind::HostUnreachable
        | io::ErrorKind::NetworkUnreachable
        | io::ErrorKind::NetworkDown
        | io::ErrorKind::AddrNotAvailable => ErrorClass::Unreachable,
        io::ErrorKind::TimedOut => ErrorClass::TimeoutConnect,
        io::ErrorKind::NotFound => ErrorClass::Missing,
        io::ErrorKind::InvalidData => ErrorClass::Mismatch,
        _ => ErrorClass::Closed,
    }
}
