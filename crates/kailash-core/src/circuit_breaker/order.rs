//! What a breaker can be told. Two orders to one breaker must not overlap.

use super::Machine;
use super::call::Transition;
use super::config::{Config, Window};
use super::state::{self, Cause, Phase, State, Word};
use crate::config::ConfigError;
use crate::sync::Ordering;
use crate::time::Timestamp;

impl Machine {
    /// Opens the breaker until [`Machine::force_close`] or [`Machine::reset`].
    pub fn force_open(&self, now: Timestamp) -> Option<Transition> {
        let news = self.go(Phase::ForcedOpen, now, |phase| phase != Phase::ForcedOpen);
        if news.is_some() {
            self.totals.openings.add(1);
        }
        news
    }

    /// Closes the breaker, whatever its state, and pins nothing: it opens again as ever.
    pub fn force_close(&self, now: Timestamp) -> Option<Transition> {
        self.go(Phase::Closed, now, |phase| phase != Phase::Closed)
    }

    /// Lets all calls pass and counts nothing.
    pub fn disable(&self, now: Timestamp) -> Option<Transition> {
        self.go(Phase::Disabled, now, |phase| phase != Phase::Disabled)
    }

    /// Lets all calls pass and counts them, so that a snapshot says what it would have done.
    pub fn metrics_only(&self, now: Timestamp) -> Option<Transition> {
        self.go(Phase::MetricsOnly, now, |phase| phase != Phase::MetricsOnly)
    }

    /// Ends [`Machine::disable`] and [`Machine::metrics_only`]: the breaker is closed, and empty.
    pub fn enable(&self, now: Timestamp) -> Option<Transition> {
        self.go(Phase::Closed, now, |phase| {
            matches!(phase, Phase::Disabled | Phase::MetricsOnly)
        })
    }

    /// Closes the breaker from any state and forgets all counts.
    pub fn reset(&self, now: Timestamp) -> Option<Transition> {
        let news = self.go(Phase::Closed, now, |_| true);
        self.reset_counts();
        news.filter(|news| news.from != State::Closed)
    }

    /// Changes the settings and keeps state and counts; a new `window_size` begins with the newest
    /// outcomes.
    ///
    /// When the window outgrows its memory the breaker starts a new generation, and the calls in
    /// flight at that moment are not counted; so it does where calls are watched and
    /// `slow_call_threshold` is another one. A window of the other kind, or a time window of another
    /// duration, begins empty; so does a time window in that last case. `initial_state` no longer matters.
    ///
    /// # Errors
    /// When a field of the config is out of range; nothing has changed then.
    pub fn reconfigure(&self, config: &Config, now: Timestamp) -> Result<(), ConfigError> {
        let checked = config.checked()?;
        let class = self.rings.class_for(checked.window);
        self.leases.make_room(checked.half_open_requests);
        let (before, quarter) = (self.settings.window(), self.settings.watched_quarter());
        // First, so that nobody counts in the next generation's buckets by the old duration.
        self.settings.set(&checked);
        let window = self.settings.window();
        let other_span = matches!(window, Window::Span(_)) && window != before;
        // Calls in flight were watched by the old quarter, and would be taken for older or younger.
        let other_quarter = quarter.is_some() && quarter != self.settings.watched_quarter();
        loop {
            let bits = self.word.load(Ordering::Acquire);
            let generation = state::generation(bits);
            let current = self.window(generation);
            let next = self.window(generation.wrapping_add(1));
            let is_stale = !current.fits(class) || other_span || other_quarter;
            let is_ramp = matches!(Word::unpack(bits).phase, Phase::Ramp { .. });
            if !(state::counts(bits) && is_stale || is_ramp && other_quarter) {
                break;
            }
            let tick = self.tick(now);
            next.take_over(&current, generation, (class, tick));
            let in_a_row = self.failures_in_a_row(generation);
            let word = Word::unpack(bits);
            if self.replace(bits, word.next(word.phase)) {
                self.carry_failures_in_a_row(generation, in_a_row);
                break;
            }
        }
        Ok(())
    }

    /// Takes the failures in a row over into the next generation, where there were `before` of them when
    /// that began.
    pub(super) fn carry_failures_in_a_row(&self, from: u32, before: u32) {
        let next = from.wrapping_add(1);
        let mut seen = self.in_a_row.load(Ordering::Relaxed);
        loop {
            let failures = seen as u32;
            let carried = match state::generation(seen) {
                // A call that ends late may still count in the old generation: what it counted comes along.
                generation if generation == from => failures,
                // A call of the next generation has failed meanwhile, and begun a row of its own.
                generation if generation == next && failures > 0 => failures.saturating_add(before),
                _ => return,
            };
            match self.in_a_row.compare_exchange(
                seen,
                state::in_generation(next, carried),
                Ordering::AcqRel,
                Ordering::Relaxed,
            ) {
                Ok(_) => return,
                Err(other) => seen = other,
            }
        }
    }

    fn go(&self, to: Phase, now: Timestamp, from: impl Fn(Phase) -> bool) -> Option<Transition> {
        loop {
            let bits = self.word.load(Ordering::Acquire);
            let word = Word::unpack(bits);
            if !from(word.phase) {
                return None;
            }
            if let Phase::Open(opening) = word.phase {
                // No opening is left without its deadline: the next one takes another tag then.
                self.decide_deadline(bits, opening, now);
            }
            if self.enter(bits, word, to, Some(now)) {
                return Some(Transition {
                    from: word.phase.state(),
                    to: to.state(),
                    cause: Cause::Told,
                    at: now,
                    forced: to == Phase::ForcedOpen,
                    wait: None,
                });
            }
        }
    }
}
