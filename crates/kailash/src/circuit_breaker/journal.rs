//! A breaker's settings, and its transitions in their order.

use std::collections::VecDeque;
use std::sync::Arc;

use super::agenda::Appointment;
use super::{Config, Transition};

/// The changes that one act has brought.
#[derive(Default)]
pub(super) struct News([Option<Transition>; 4]);

impl News {
    /// Adds changes; an act brings four at most.
    pub(super) fn extend(&mut self, changes: impl IntoIterator<Item = Transition>) {
        let mut free = self.0.iter_mut().filter(|place| place.is_none());
        for change in changes {
            let place = free.next();
            debug_assert!(place.is_some(), "an act brought more than four changes");
            if let Some(place) = place {
                *place = Some(change);
            }
        }
    }
}

/// What the lock of a breaker guards.
pub(super) struct Journal {
    pub(super) config: Arc<Config>,
    /// Made by the first transition or appointment.
    transitions: Option<Box<Transitions>>,
}

#[derive(Default)]
struct Transitions {
    /// The newest, the oldest first.
    kept: VecDeque<Transition>,
    untold: VecDeque<Transition>,
    is_telling: bool,
    /// In the agendas of the registry's subscribers and of the breaker's own.
    appointments: [Option<Appointment>; 2],
}

const KEPT: usize = 5;

impl Journal {
    pub(super) fn new(config: Arc<Config>) -> Self {
        Self {
            config,
            transitions: None,
        }
    }

    /// Writes news down. Answers whether there are any.
    pub(super) fn note(&mut self, news: News) -> bool {
        let mut is_news = false;
        for transition in news.0.into_iter().flatten() {
            is_news = true;
            let transitions = self.transitions.get_or_insert_default();
            if transitions.kept.len() == KEPT {
                transitions.kept.pop_front();
            }
            transitions.kept.push_back(transition);
            transitions.untold.push_back(transition);
        }
        is_news
    }

    /// The newest transitions, the oldest first.
    pub(super) fn kept(&self) -> impl Iterator<Item = &Transition> {
        self.transitions.iter().flat_map(|all| &all.kept)
    }

    pub(super) fn has_appointments(&self) -> bool {
        let all = self.transitions.iter().flat_map(|all| &all.appointments);
        all.flatten().next().is_some()
    }

    pub(super) fn appointments(&mut self) -> &mut [Option<Appointment>; 2] {
        &mut self.transitions.get_or_insert_default().appointments
    }

    /// Whether the asker has to tell what is untold, because nobody else does.
    pub(super) fn start_telling(&mut self) -> bool {
        let Some(transitions) = &mut self.transitions else {
            return false;
        };
        !std::mem::replace(&mut transitions.is_telling, true)
    }

    /// The next to tell; after `None`, the asker has stopped telling.
    pub(super) fn next_to_tell(&mut self) -> Option<Transition> {
        let transitions = self.transitions.as_mut()?;
        let next = transitions.untold.pop_front();
        transitions.is_telling = next.is_some();
        next
    }

    pub(super) fn stop_telling(&mut self) {
        if let Some(transitions) = &mut self.transitions {
            transitions.is_telling = false;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;
    use std::thread;
    use std::time::Duration;

    use crate::circuit_breaker::{CircuitBreaker, Config};

    /// Longer than any machine needs.
    const LIMIT: Duration = Duration::from_secs(20);

    #[test]
    fn a_call_while_closed_and_a_refusal_take_no_lock() {
        let [closed, open] = ["closed", "open"]
            .map(|name| CircuitBreaker::new(name, Config::default()).expect("valid settings"));
        open.force_open();
        let locks = [closed.journal(), open.journal()];
        let (tell, told) = mpsc::channel();
        let breakers = (closed.clone(), open.clone());
        let caller = thread::spawn(move || {
            let (closed, open) = breakers;
            for _ in 0..4 {
                let ends = [
                    closed.call_sync(|| Ok::<_, ()>(())).is_ok(),
                    closed.call_sync(|| Err::<(), _>(())).is_err(),
                    closed.try_acquire().map(drop).is_ok(),
                    open.try_acquire().is_err(),
                ];
                assert_eq!(ends, [true; 4]);
            }
            tell.send(()).expect("the test waits");
        });
        let is_done = told.recv_timeout(LIMIT).is_ok();
        drop(locks);
        caller.join().expect("all calls ended as they should");
        assert!(is_done, "it waited for a lock");
    }
}
