//! What the checks of servers have in common: connecting within sight, and the classes of errors.

use std::error::Error;
use std::future::Future;
use std::io;
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

/// The class of an I/O error.
pub(super) fn io_class(error: &io::Error) -> ErrorClass {
    if let Some(class) = error.get_ref().and_then(|inner| inner_class(inner)) {
        return class;
    }
    match error.kind() {
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

/// The class of the first error in a chain of sources that has one.
pub(super) fn class_of(error: &(dyn Error + 'static)) -> Option<ErrorClass> {
    let mut next = Some(error);
    while let Some(error) = next {
        if let Some(class) = inner_class(error) {
            return Some(class);
        }
        next = error.source();
    }
    None
}

fn inner_class(error: &(dyn Error + 'static)) -> Option<ErrorClass> {
    // A shared error hides its type and hands on only its source.
    if let Some(shared) = error.downcast_ref::<Arc<dyn Error + Send + Sync>>() {
        return class_of(&**shared);
    }
    if let Some(error) = error.downcast_ref::<io::Error>() {
        return Some(io_class(error));
    }
    #[cfg(any(feature = "http", feature = "redis"))]
    if error.is::<rustls::Error>() {
        return Some(ErrorClass::Tls);
    }
    None
}
