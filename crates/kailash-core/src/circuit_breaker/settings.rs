//! A breaker's settings while it runs: atomics, so that they can change under traffic.
//!
//! Each setting changes by itself. A call that runs while they change may see some old and some
//! new ones.

use core::time::Duration;

use super::backoff;
use super::config::{Checked, Window};
use super::window::BUCKETS;
use crate::ratio::Ratio;
use crate::sync::{AtomicU32, AtomicU64, Ordering};
use crate::time::{Timestamp, nanos};

/// What calls read comes first, see [`Machine`](super::Machine).
#[repr(C)]
pub(super) struct Settings {
    /// Flags: what calls need.
    needs: AtomicU32,
    failure_threshold: AtomicU32,
    window_size: AtomicU32,
    /// One bucket of a time window in nanoseconds; 0 for a count window.
    bucket: AtomicU64,
    min_calls: AtomicU32,
    slow_call_threshold: AtomicU64,
    /// A quarter of the threshold for slow calls.
    quarter: AtomicU64,
    cancelled_counts_after: AtomicU64,
    error_rate: AtomicU64,
    slow_call_rate: AtomicU64,
    success_threshold: AtomicU32,
    half_open_requests: AtomicU32,
    probe_lease: AtomicU64,
    recovery_timeout: AtomicU64,
    max_recovery_timeout: AtomicU64,
    multiplier: AtomicU64,
    jitter: AtomicU64,
}

/// Calls are timed from their start.
const START: u32 = 1;
/// The time at a call's end is needed, if only to know where it belongs.
const END: u32 = 2;
/// Calls in flight are watched.
const WATCH: u32 = 4;
/// Recovery ends in a ramp.
const RAMP: u32 = 8;

/// Stands for a duration that never ends, and for a rule that is off.
const OFF: u64 = u64::MAX;

impl Settings {
    pub(super) fn new(checked: &Checked) -> Self {
        let settings = Self {
            needs: AtomicU32::new(0),
            failure_threshold: AtomicU32::new(0),
            window_size: AtomicU32::new(0),
            bucket: AtomicU64::new(0),
            min_calls: AtomicU32::new(0),
            slow_call_threshold: AtomicU64::new(0),
            quarter: AtomicU64::new(0),
            cancelled_counts_after: AtomicU64::new(0),
            error_rate: AtomicU64::new(0),
            slow_call_rate: AtomicU64::new(0),
            success_threshold: AtomicU32::new(0),
            half_open_requests: AtomicU32::new(0),
            probe_lease: AtomicU64::new(0),
            recovery_timeout: AtomicU64::new(0),
            max_recovery_timeout: AtomicU64::new(0),
            multiplier: AtomicU64::new(0),
            jitter: AtomicU64::new(0),
        };
        settings.set(checked);
        settings
    }

    pub(super) fn set(&self, checked: &Checked) {
        let word = |setting: &AtomicU32, value| setting.store(value, Ordering::Relaxed);
        let long = |setting: &AtomicU64, value| setting.store(value, Ordering::Relaxed);
        let rate = |ratio: Option<Ratio>| ratio.map_or(0, |ratio| ratio.get().to_bits());
        let slow = checked.slow_call;
        let cancelled = checked.cancelled_counts_after.map_or(OFF, nanos);
        let timed = slow.is_some() || (cancelled != OFF && cancelled != 0);
        let (size, bucket) = match checked.window {
            Window::Calls(size) => (size, 0),
            Window::Span(span) => (u32::MAX, nanos(span) / BUCKETS as u64),
        };
        let flags = [
            (START, timed),
            (END, timed || bucket != 0),
            (WATCH, slow.is_some() && checked.overdue_calls),
            (RAMP, checked.ramp),
        ];
        let needs = flags.iter().filter(|(_, on)| *on);
        word(&self.needs, needs.fold(0, |all, (flag, _)| all | flag));
        word(&self.failure_threshold, checked.failure_threshold);
        word(&self.window_size, size);
        long(&self.bucket, bucket);
        word(&self.min_calls, checked.min_calls);
        long(
            &self.slow_call_threshold,
            slow.map_or(OFF, |(threshold, _)| nanos(threshold)),
        );
        let quarter = slow.map_or(OFF, |(threshold, _)| nanos(threshold) / 4);
        long(&self.quarter, quarter.max(1));
        long(&self.cancelled_counts_after, cancelled);
        long(&self.error_rate, rate(checked.error_rate));
        long(&self.slow_call_rate, rate(slow.map(|(_, ratio)| ratio)));
        word(&self.success_threshold, checked.success_threshold);
        word(&self.half_open_requests, checked.half_open_requests);
        let lease = match nanos(checked.probe_lease) {
            0 => OFF,
            lease => lease,
        };
        long(&self.probe_lease, lease);
        long(&self.recovery_timeout, nanos(checked.recovery_timeout));
        long(
            &self.max_recovery_timeout,
            nanos(checked.max_recovery_timeout),
        );
        long(&self.multiplier, checked.multiplier.to_bits());
        long(&self.jitter, checked.jitter.to_bits());
    }

    #[inline]
    fn has(&self, flag: u32) -> bool {
        self.needs.load(Ordering::Relaxed) & flag != 0
    }

    #[inline]
    pub(super) fn is_timed(&self) -> bool {
        self.has(START)
    }

    #[inline]
    pub(super) fn needs_end(&self) -> bool {
        self.has(END)
    }

    #[inline]
    pub(super) fn watches(&self) -> bool {
        self.has(WATCH)
    }

    pub(super) fn ramps(&self) -> bool {
        self.has(RAMP)
    }

    /// The window as it was asked for.
    pub(super) fn window(&self) -> Window {
        match self.bucket.load(Ordering::Relaxed) {
            0 => Window::Calls(self.window_size()),
            bucket => Window::Span(Duration::from_nanos(bucket * BUCKETS as u64)),
        }
    }

    /// The bucket of a time window that `now` falls into, counted from the clock's origin; `None` in
    /// a count window.
    pub(super) fn tick(&self, now: Timestamp) -> Option<u64> {
        now.as_nanos()
            .checked_div(self.bucket.load(Ordering::Relaxed))
    }

    /// How long a quarter of the threshold for slow calls is, where calls are watched.
    pub(super) fn watched_quarter(&self) -> Option<u64> {
        self.watches().then(|| self.quarter.load(Ordering::Relaxed))
    }

    /// The quarter of the threshold for slow calls that `now` falls into, counted from the clock's
    /// origin.
    pub(super) fn quarter(&self, now: Timestamp) -> u64 {
        let quarter = self.quarter.load(Ordering::Relaxed);
        now.as_nanos().checked_div(quarter).unwrap_or(0)
    }

    #[inline]
    pub(super) fn failure_threshold(&self) -> u32 {
        self.failure_threshold.load(Ordering::Relaxed)
    }

    /// How many calls a rate looks at; no limit in a time window.
    #[inline]
    pub(super) fn window_size(&self) -> u32 {
        self.window_size.load(Ordering::Relaxed)
    }

    #[inline]
    pub(super) fn min_calls(&self) -> u32 {
        self.min_calls.load(Ordering::Relaxed)
    }

    #[inline]
    pub(super) fn is_slow(&self, ran: Option<u64>) -> bool {
        let threshold = self.slow_call_threshold.load(Ordering::Relaxed);
        threshold != OFF && ran.is_some_and(|ran| ran >= threshold)
    }

    /// Whether a cancelled call that ran this many nanoseconds is a failure.
    pub(super) fn counts_cancelled(&self, ran: Option<u64>) -> bool {
        match self.cancelled_counts_after.load(Ordering::Relaxed) {
            OFF => false,
            0 => true,
            after => ran.is_some_and(|ran| ran >= after),
        }
    }

    pub(super) fn error_rate(&self) -> Option<Ratio> {
        Ratio::new(float(&self.error_rate))
    }

    pub(super) fn slow_call_rate(&self) -> Option<Ratio> {
        Ratio::new(float(&self.slow_call_rate))
    }

    pub(super) fn success_threshold(&self) -> u32 {
        self.success_threshold.load(Ordering::Relaxed)
    }

    pub(super) fn half_open_requests(&self) -> u32 {
        self.half_open_requests.load(Ordering::Relaxed)
    }

    pub(super) fn probe_lease(&self) -> Duration {
        duration(&self.probe_lease)
    }

    /// The longest an opening lasts.
    pub(super) fn max_recovery_timeout(&self) -> Duration {
        duration(&self.max_recovery_timeout)
    }

    /// How long the `opening`-th opening in a row lasts.
    pub(super) fn wait(&self, opening: u32, draw: f64) -> Duration {
        backoff::wait(
            duration(&self.recovery_timeout),
            float(&self.multiplier),
            opening,
            float(&self.jitter),
            duration(&self.max_recovery_timeout),
            draw,
        )
    }
}

fn float(setting: &AtomicU64) -> f64 {
    f64::from_bits(setting.load(Ordering::Relaxed))
}

fn duration(setting: &AtomicU64) -> Duration {
    Duration::from_nanos(setting.load(Ordering::Relaxed))
}
