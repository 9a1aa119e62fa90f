//! A dependency behind a layer, which does as it is told and keeps tower's contract strictly.

use std::future::pending;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll};
use std::time::Duration;

use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use tokio::time::sleep;
use tower::Service;

/// What a dependency is told to do with the next readiness.
#[derive(Clone, Copy)]
pub(crate) enum Readiness {
    Ready,
    Never,
    Fails,
    Panics,
}

/// What a request makes its dependency do.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Work {
    Succeeds,
    Fails,
    Takes(Duration),
    Hangs,
    PanicsInCall,
    PanicsInFuture,
}

/// A service that keeps tower's contract strictly: it must be ready when it is called, and its
/// clones are not.
pub(crate) struct Dependency {
    seen: Arc<Seen>,
    is_ready: bool,
}

pub(crate) struct Seen {
    readiness: Mutex<Readiness>,
    asked: AtomicUsize,
    called: AtomicUsize,
}

impl Seen {
    pub(crate) fn asked(&self) -> usize {
        self.asked.load(Ordering::Relaxed)
    }

    pub(crate) fn called(&self) -> usize {
        self.called.load(Ordering::Relaxed)
    }

    pub(crate) fn becomes(&self, readiness: Readiness) {
        *self.readiness.lock().unwrap() = readiness;
    }
}

pub(crate) fn dependency() -> (Dependency, Arc<Seen>) {
    let seen = Arc::new(Seen {
        readiness: Mutex::new(Readiness::Ready),
        asked: AtomicUsize::new(0),
        called: AtomicUsize::new(0),
    });
    let dependency = Dependency {
        seen: Arc::clone(&seen),
        is_ready: false,
    };
    (dependency, seen)
}

impl Clone for Dependency {
    fn clone(&self) -> Self {
        Self {
            seen: Arc::clone(&self.seen),
            is_ready: false,
        }
    }
}

impl Service<Work> for Dependency {
    type Response = &'static str;
    type Error = &'static str;
    type Future = BoxFuture<'static, Result<&'static str, &'static str>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        self.seen.asked.fetch_add(1, Ordering::Relaxed);
        let readiness = *self.seen.readiness.lock().unwrap();
        match readiness {
            Readiness::Ready => {
                self.is_ready = true;
                Poll::Ready(Ok(()))
            }
            Readiness::Never => Poll::Pending,
            Readiness::Fails => Poll::Ready(Err("cannot connect")),
            Readiness::Panics => panic!("while getting ready"),
        }
    }

    fn call(&mut self, work: Work) -> Self::Future {
        assert!(self.is_ready, "called without readiness");
        self.is_ready = false;
        self.seen.called.fetch_add(1, Ordering::Relaxed);
        match work {
            Work::Succeeds => async { Ok("done") }.boxed(),
            Work::Fails => async { Err("down") }.boxed(),
            Work::Takes(time) => sleep(time).map(|()| Ok("done")).boxed(),
            Work::Hangs => pending().boxed(),
            Work::PanicsInCall => panic!("in call"),
            Work::PanicsInFuture => async { panic!("in the future") }.boxed(),
        }
    }
}
