//! Refusing without changing anything, and what else a shell may ask without changing anything.

use core::time::Duration;

use super::state::{Cause, Phase, State, Word};
use super::{Machine, Rejected};
use crate::sync::Ordering;
use crate::time::{Timestamp, nanos};

impl Machine {
    /// The refusal of a call made now, if it changes nothing else; counted as one.
    ///
    /// `None` where a call passes, or may pass: [`Machine::try_acquire`] decides then. A shell that
    /// tells transitions in their order asks here first, since only what may bring one about has to
    /// wait its turn.
    #[inline]
    pub fn refuse(&self, now: Timestamp) -> Option<Rejected> {
        let rejected = self.refusal(now)?;
        self.count_refusal();
        Some(rejected)
    }

    /// Whether a call made now may be admitted. Another call may be faster.
    #[must_use]
    pub fn may_admit(&self, now: Timestamp) -> bool {
        self.refusal(now).is_none()
    }

    /// Counts a call that was refused because of what [`Machine::refusal`] said.
    #[inline]
    pub fn count_refusal(&self) {
        self.totals.rejections.add(1);
    }

    /// Whether a call that ran this long is slow.
    #[must_use]
    pub fn is_slow(&self, ran: Duration) -> bool {
        self.settings.is_slow(Some(nanos(ran)))
    }

    /// As [`Machine::refuse`], and uncounted: for a shell that must know before there is a call.
    ///
    /// Nothing is taken, so the call may be refused after all, or pass. A refusal that is made of
    /// this is counted with [`Machine::count_refusal`].
    #[inline]
    #[must_use]
    pub fn refusal(&self, now: Timestamp) -> Option<Rejected> {
        let bits = self.word.load(Ordering::Acquire);
        let word = Word::unpack(bits);
        match word.phase {
            Phase::Closed | Phase::MetricsOnly | Phase::Disabled | Phase::Ramp { .. } => None,
            Phase::ForcedOpen => Some(Rejected {
                state: State::Open,
                forced: true,
                retry_after: None,
                cause: Cause::Told,
            }),
            Phase::Open(opening) => {
                let until = self.deadline(bits, opening, now);
                (now < until).then(|| Rejected {
                    state: State::Open,
                    forced: false,
                    retry_after: (until != Timestamp::NEVER).then(|| until.since(now)),
                    cause: opening.cause,
                })
            }
            Phase::HalfOpen { in_flight, .. } => {
                let is_full = in_flight >= self.settings.half_open_requests();
                let lapsed = self.lapse(word.generation, now).is_some();
                (is_full && !lapsed).then(|| Rejected {
                    state: State::HalfOpen,
                    forced: false,
                    retry_after: None,
                    cause: self.left().cause,
                })
            }
        }
    }
}

#[cfg(all(test, not(kailash_loom)))]
mod tests {
    use super::super::{Config, Outcome, Verdict};
    use super::*;

    const fn at(secs: u64) -> Timestamp {
        Timestamp::from_nanos(secs * 1_000_000_000)
    }

    fn opened() -> Machine {
        let config = Config {
            failure_threshold: 1,
            half_open_requests: 1,
            ..Config::default()
        };
        let machine = Machine::new(&config).expect("the config is right");
        let permit = machine.admit().expect("it is closed");
        let Verdict::Trip(trip) = machine.record(permit, Outcome::Failure, None) else {
            panic!("one failure is enough");
        };
        machine.trip(trip, at(0), 0.5).expect("it was closed");
        machine
    }

    /// Asks both in the same state: what `refuse` says, `try_acquire` must say too.
    fn both_refuse(machine: &Machine, now: Timestamp) -> bool {
        let before = machine.state(now);
        let refused = machine.refuse(now);
        assert_eq!(machine.state(now), before);
        let Some(refused) = refused else {
            return false;
        };
        assert!(!machine.may_admit(now));
        let (acquired, news) = machine.try_acquire(now, 0.5);
        assert_eq!(acquired, Err(refused));
        assert_eq!(news.into_iter().count(), 0);
        true
    }

    #[test]
    fn what_it_refuses_an_acquisition_refuses_with_the_same_words() {
        let machine = opened();
        assert!(both_refuse(&machine, at(0)));
        assert!(both_refuse(&machine, at(59)));
        assert!(!both_refuse(&machine, at(60)), "the wait is over");
        let probe = machine.try_acquire(at(60), 0.5).0;
        assert!(both_refuse(&machine, at(61)), "the only probe is in flight");
        assert!(!both_refuse(&machine, at(120)), "the probe has lapsed");
        drop(probe);
        machine.force_open(at(121));
        assert!(both_refuse(&machine, at(9999)));
        machine.force_close(at(9999));
        assert!(machine.may_admit(at(9999)));
    }

    #[test]
    fn each_refusal_is_counted_once() {
        let machine = opened();
        for _ in 0..3 {
            assert!(machine.refuse(at(1)).is_some());
        }
        assert_eq!(machine.counts().rejections, 3);
    }

    #[test]
    fn a_reset_sets_the_snapshot_back_but_no_counts() {
        let machine = opened();
        let _ = machine.refuse(at(1));
        let before = machine.counts();
        assert_eq!((before.calls, before.failures, before.openings), (1, 1, 1));
        machine.reset(at(2));
        assert_eq!(machine.counts(), before);
        let snapshot = machine.snapshot(at(2));
        let counted = (snapshot.calls, snapshot.failures, snapshot.rejections);
        assert_eq!((counted, snapshot.openings), ((0, 0, 0), 0));
        let permit = machine.admit().expect("it is closed");
        let _ = machine.record(permit, Outcome::Success, None);
        assert_eq!(
            (machine.snapshot(at(3)).calls, machine.counts().calls),
            (1, 2)
        );
    }

    #[test]
    fn a_breaker_with_the_default_config_is_small() {
        // What it allocates besides is nothing: see `Rings` and `Leases`.
        assert!(size_of::<Machine>() <= 384, "{}", size_of::<Machine>());
    }
}
