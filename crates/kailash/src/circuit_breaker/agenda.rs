//! What time alone will bring about, for those who want to hear of it when it is due.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use kailash_core::time::Timestamp;
use tokio::sync::Notify;
use tokio::sync::futures::Notified;

use super::journal::Journal;
use super::{CircuitBreaker, Shared};
use crate::foreign::contained;

/// The breakers that time alone will change, by when.
///
/// A breaker enters it, moves in it and leaves it under the lock of its journal, as its state
/// changes: so whoever waits looks at the first entry only, however many there are.
#[derive(Default)]
pub(super) struct Agenda {
    entries: Mutex<Entries>,
    /// Told when the first entry is earlier than it was.
    sooner: Notify,
}

#[derive(Default)]
struct Entries {
    by_due: BTreeMap<Key, Weak<Shared>>,
    /// How many were entered so far.
    entered: u64,
}

/// When, and how many were entered before: so those that are due at the same time take turns.
type Key = (Timestamp, u64);

/// A breaker's entry, which leaves the agenda when it is dropped.
pub(super) struct Appointment {
    agenda: Arc<Agenda>,
    key: Key,
}

impl Agenda {
    /// When the first breaker changes.
    pub(super) fn first(&self) -> Timestamp {
        self.entries().first()
    }

    /// Wakes who makes this before he asks for [`Agenda::first`], once that has become earlier.
    pub(super) fn sooner(&self) -> Notified<'_> {
        self.sooner.notified()
    }

    /// Carries out the first change that is due by now. Answers whether there was one.
    pub(super) fn carry_out_first(&self, now: Timestamp) -> bool {
        let mut entries = self.entries();
        let Some(first) = entries.by_due.first_entry() else {
            return false;
        };
        let (due, _) = *first.key();
        // A clock may come to show the time that never comes.
        if due > now || due == Timestamp::NEVER {
            return false;
        }
        // What is not due after all enters again.
        let breaker = first.remove().upgrade();
        drop(entries);
        if let Some(breaker) = breaker {
            CircuitBreaker(breaker).wake();
        }
        true
    }

    /// Enters a breaker, or moves it. Answers whether it is now the first.
    fn enter(
        self: &Arc<Self>,
        breaker: &Arc<Shared>,
        due: Timestamp,
        kept: &mut Option<Appointment>,
    ) -> bool {
        let mut entries = self.entries();
        if let Some(kept) = kept {
            if kept.key.0 == due && entries.by_due.contains_key(&kept.key) {
                return false;
            }
            entries.by_due.remove(&kept.key);
        }
        let is_first = due < entries.first();
        let key = (due, entries.entered);
        entries.entered += 1;
        entries.by_due.insert(key, Arc::downgrade(breaker));
        drop(entries);
        match kept {
            Some(kept) => kept.key = key,
            None => {
                let agenda = Arc::clone(self);
                *kept = Some(Appointment { agenda, key });
            }
        }
        is_first
    }

    fn entries(&self) -> MutexGuard<'_, Entries> {
        self.entries.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Entries {
    fn first(&self) -> Timestamp {
        let first = self.by_due.first_key_value();
        first.map_or(Timestamp::NEVER, |(&(due, _), _)| due)
    }
}

impl Drop for Appointment {
    fn drop(&mut self) {
        self.agenda.entries().by_due.remove(&self.key);
    }
}

impl CircuitBreaker {
    /// Enters the breaker in the agendas of those who want to hear of it.
    ///
    /// Later changes do so by themselves. Only one that is born open has something to enter before.
    pub(super) fn make_appointments(&self) {
        if self.agendas().iter().all(Option::is_none) {
            return;
        }
        let now = self.clock().now();
        let mut journal = self.journal();
        let is_sooner = self.keep_appointments(&mut journal, now);
        drop(journal);
        if is_sooner {
            self.tell_sooner();
        }
    }

    /// Has the agendas agree with the breaker. Answers whether to [tell](Self::tell_sooner) of it,
    /// once the journal is free again.
    pub(super) fn keep_appointments(&self, journal: &mut Journal, now: Timestamp) -> bool {
        let agendas = self.agendas();
        let is_wanted = agendas.iter().any(Option::is_some);
        let due = is_wanted.then(|| self.0.machine.next_due(now)).flatten();
        if due.is_none() && !journal.has_appointments() {
            return false;
        }
        let mut is_sooner = false;
        for (agenda, kept) in agendas.into_iter().zip(journal.appointments()) {
            match agenda.zip(due) {
                Some((agenda, due)) => is_sooner |= agenda.enter(&self.0, due, kept),
                None => *kept = None,
            }
        }
        is_sooner
    }

    /// Has those who wait look at their agendas again.
    #[cold]
    pub(super) fn tell_sooner(&self) {
        for agenda in self.agendas().into_iter().flatten() {
            contained(|| agenda.sooner.notify_waiters());
        }
    }

    /// Those of its registry's subscribers and of its own, where there are any.
    #[inline]
    fn agendas(&self) -> [Option<&Arc<Agenda>>; 2] {
        let own = self.0.audience.get();
        [
            self.0.context.hub.topics.agenda(),
            own.and_then(|audience| audience.topics.agenda()),
        ]
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::time::Duration;

    use proptest::prelude::*;

    use super::*;
    use crate::circuit_breaker::{Config, Events, Manager, Outcome};
    use crate::clock::Clock;

    fn config() -> Config {
        Config {
            failure_threshold: 1,
            success_threshold: 2,
            half_open_requests: 2,
            recovery_timeout: Duration::from_secs(4),
            max_wait_duration_in_half_open: Duration::from_secs(3),
            ..Config::default()
        }
    }

    /// When, and the address of the breaker.
    type Due = BTreeSet<(Timestamp, usize)>;

    fn entered(agenda: &Agenda) -> Due {
        let entries = agenda.entries();
        let all = entries.by_due.iter();
        all.map(|(key, breaker)| (key.0, breaker.as_ptr().addr()))
            .collect()
    }

    fn due(breakers: &[CircuitBreaker]) -> Due {
        let key = |it: &CircuitBreaker| {
            let due = it.0.machine.next_due(it.clock().now());
            due.map(|due| (due, Arc::as_ptr(&it.0).addr()))
        };
        breakers.iter().filter_map(key).collect()
    }

    /// What is due by now has been taken out, and the rest is as if looked up at each breaker.
    fn settle(events: &mut Events) {
        while events.try_recv().is_some() {}
    }

    proptest! {
        #![proptest_config(ProptestConfig {
            failure_persistence: None,
            ..ProptestConfig::default()
        })]

        #[test]
        fn it_says_of_each_breaker_when_time_changes_it(
            steps in prop::collection::vec((0..13_u8, 0..3_usize), 1..120),
        ) {
            let (clock, hand) = Clock::manual();
            let manager = Manager::with_clock(clock);
            let mut breakers: Vec<_> = ["a", "b", "c"]
                .map(|name| manager.get_or_create(name, config()).unwrap())
                .into();
            let mut all = Some(manager.subscribe_transitions());
            let mut own = None;
            let mut in_flight = Vec::new();
            for (step, n) in steps {
                let it = &breakers[n];
                match step {
                    0..3 => in_flight.extend(it.try_acquire_owned()),
                    3 => drop(in_flight.pop()),
                    4 => in_flight.pop().into_iter().for_each(|permit| permit.success()),
                    5 => in_flight.pop().into_iter().for_each(|permit| permit.failure()),
                    6 => it.record(Outcome::RetryAfter(Duration::from_secs(9))),
                    7 => it.force_open(),
                    8 => it.reset(),
                    9 => hand.advance(Duration::from_secs(1)),
                    10 => own = own.xor(Some((n, it.subscribe()))),
                    11 => all = all.xor(Some(manager.subscribe())),
                    _ => {
                        // Another takes its place, born open, and nobody's permits keep the old one.
                        in_flight.clear();
                        own.take_if(|(of, _)| *of == n);
                        let name = Arc::clone(it.name());
                        manager.remove(&name);
                        let initial_state = crate::circuit_breaker::State::Open;
                        let config = Config { initial_state, ..config() };
                        breakers[n] = manager.get_or_create(&name, config).unwrap();
                    }
                }
                if let Some(events) = &mut all {
                    settle(events);
                    let agenda = manager_agenda(&breakers[0]);
                    prop_assert_eq!(entered(agenda), due(&breakers));
                }
                if let Some((of, events)) = &mut own {
                    settle(events);
                    let own = &breakers[*of];
                    let agenda = own.audience().topics.agenda().unwrap();
                    prop_assert_eq!(entered(agenda), due(std::slice::from_ref(own)));
                }
            }
        }
    }

    fn manager_agenda(breaker: &CircuitBreaker) -> &Arc<Agenda> {
        breaker.0.context.hub.topics.agenda().unwrap()
    }

    #[test]
    fn it_agrees_with_breakers_that_changed_while_somebody_subscribed() {
        for round in 0..200 {
            let manager = Manager::new();
            let breakers = [0, 1, 2, 3].map(|n: u8| {
                let made = manager.get_or_create(&n.to_string(), config());
                made.unwrap()
            });
            let subscribed = std::thread::scope(|scope| {
                for own in breakers.chunks(2) {
                    scope.spawn(move || {
                        for step in round..round + 9 {
                            own[step % 2].record_failure();
                            own[step / 2 % 2].reset();
                            own[step / 3 % 2].record_failure();
                        }
                    });
                }
                let given_up = manager.subscribe();
                let kept = manager.subscribe_transitions();
                drop(given_up);
                kept
            });
            assert_eq!(entered(manager_agenda(&breakers[0])), due(&breakers));
            drop(subscribed);
        }
    }

    #[test]
    fn who_is_woken_before_his_time_enters_again() {
        let manager = Manager::with_clock(Clock::manual().0);
        let events = manager.subscribe();
        let breaker = manager.get_or_create("a", config()).unwrap();
        breaker.record_failure();
        let agenda = manager_agenda(&breaker);
        let later = agenda.first() + Duration::from_secs(1);
        assert!(agenda.carry_out_first(later));
        assert_eq!(entered(agenda), due(std::slice::from_ref(&breaker)));
        assert_eq!(entered(agenda).len(), 1);
        drop(events);
    }

    #[test]
    fn a_breaker_that_is_gone_leaves_it() {
        let manager = Manager::new();
        let events = manager.subscribe();
        let kept = manager.get_or_create("kept", config()).unwrap();
        let gone = manager.get_or_create("gone", config()).unwrap();
        gone.record_failure();
        assert_eq!(entered(manager_agenda(&kept)).len(), 1);
        manager.remove("gone");
        drop(gone);
        assert!(entered(manager_agenda(&kept)).is_empty());
        drop(events);
    }
}
