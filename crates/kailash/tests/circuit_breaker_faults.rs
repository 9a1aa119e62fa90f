//! Faults that other circuit breakers have had, each with what keeps it out of this one.
//!
//! What keeps it is the name of a vector's case or of a test, in Rust or Python; the last test here finds each of them.
//!
//! | fault | kept out by |
//! |---|---|
//! | an ignored or cancelled probe eats its slot, and the breaker never leaves half-open | `an ignored probe gives its slot back and decides nothing`, `a cancelled probe gives its slot back and decides nothing, however long it ran` |
//! | a probe that hangs keeps it half-open for ever | `a probe that hangs loses its slot at its deadline and counts as failed`, `opening_and_half_opening_take_turns_by_timer_alone` |
//! | a lease is lost, so that a probe that hangs never lapses | `whoever_stalls_as_a_probe_takes_no_later_probes_lease`, `whoever_stalls_while_it_becomes_half_open_frees_no_later_probes_lease` |
//! | an error that nobody classified, or a panic, leaves it half-open | `a_panic_is_a_failure_and_leaks_nothing` |
//! | a cancelled call leaks its slot, at one await point or another | `while_half_open_a_probe_gives_its_slot_back_and_decides_nothing`, `while_closed_a_call_that_ran_short_is_neutral` |
//! | a probe that an inner layer turns away never ends | `a probe that the partition turns away gives its slot back and decides nothing` |
//! | a result of an older state decides in a newer one | `calls that began while closed decide nothing while half-open`, `a straggler that ends once the wait is over decides nothing, though no probe is in flight`, `a probe of an earlier half-open decides nothing in a later one, and takes nobody's slot`, `a_late_result_changes_nothing_whenever_it_arrives`, `what ends late is in no total` |
//! | permits of an older state raise the number of probes | `permits of an older state never raise the number of probes`, `a_hundred_old_permits_never_raise_the_number_of_probes` |
//! | more probes pass than allowed when many callers come at once | `a_thousand_callers_at_the_moment_of_recovery_are_as_many_probes_as_allowed`, `never_more_probes_than_allowed_are_in_flight` |
//! | a call that ends twice frees two slots, or one whose end wakes somebody who panics frees none | `a_call_that_ends_twice_frees_one_slot`, `a_subscriber_whose_waker_panics_takes_no_call_its_result_and_no_probe_its_slot` |
//! | one call takes two slots | `one_call_takes_one_probe_by_every_entry_point` |
//! | transitions race: illegal, twice, or never told | `of_two_trips_one_opens_and_all_agree_on_its_end`, `a_close_and_a_failed_probe_at_the_same_moment_are_one_transition`, `what_an_order_tells_follows_from_what_was_told_before`, `shuttle_orders_among_calls_keep_every_invariant`, `the_event_log_is_the_transition_log` |
//! | two expired times call each other without end | `openings_of_a_nanosecond_take_bounded_steps` |
//! | a timer that was due ends a forced opening | `an expired wait does not end a forced opening`, `no_timer_ends_a_forced_opening` |
//! | a timer fires once and is lost the second time | `opening_and_half_opening_take_turns_by_timer_alone` |
//! | a timer or a subscription keeps a breaker alive, or outlives it | `a_breaker_that_nobody_holds_is_gone`, `a_subscription_keeps_no_key_from_being_forgotten`, `a_registrys_subscription_ends_with_the_last_of_its_breakers` |
//! | half-open is invisible until somebody calls | `subscribers_hear_each_change_once_and_without_a_call` |
//! | a lapse is invisible to whoever waited before its probe began | `a_lapse_is_told_on_time_to_whoever_waited_before_the_probe_began` |
//! | whoever listens to many breakers works for all of them at each event, and falls behind | `one_look_of_a_subscriber_changes_one_breaker_at_most`, `however_many_are_due_at_once_who_keeps_up_hears_of_each` |
//! | the wall clock is stepped, or two clocks disagree | `no_breaker_reads_the_wall_clock`, `the_monotonic_clock_moves_forward_only`, `one_clock_drives_wait_window_and_slow_calls` |
//! | the smallest windows are wrong | `the_machine_decides_as_a_naive_model_does`, `a window of one call` |
//! | a threshold is off by one | `the rate waits for the minimum of calls, and a rate that equals the threshold opens`, `five failures in a row open it, four do not` |
//! | the largest numbers overflow | `extreme_values_are_taken`, `the_largest_settings_hold` |
//! | a listener deadlocks or delays a call | `a_listener_may_use_its_breaker`, `a_subscriber_that_does_not_listen_loses_the_oldest_and_is_told` |
//! | refusals grow memory or a traceback | `a_breaker_allocates_nothing_for_a_success_a_failure_or_a_refusal`, `a_million_refusals_take_no_memory`, `test_rejections_are_new_exceptions_whose_tracebacks_do_not_grow` |
//! | an entry point or a state passes the classifier by | `every_entry_point_classifies_alike`, `every_entry_point_classifies_alike_while_half_open_too` |
//! | a classifier that panics loses the call | `a_panic_is_a_failure_and_leaks_nothing`, `test_a_classifier_that_raises_is_a_failure_and_leaks_nothing` |
//! | callers that hang up open a healthy breaker | `callers that hang up early do not trip it`, `a_thousand_callers_that_hang_up_are_no_failure` |
//! | a dependency that hangs opens nothing, since each caller gives up first | `a_dependency_that_hangs_trips_it_though_every_caller_times_out_outside`, `a dependency that hangs in nearly all calls trips it though a few succeed`, `calls that hang open the breaker before any of them has ended` |
//! | refusals are tried again and again | `T12: attempts that open the breaker are over with its refusal` |
//! | a reload loses calls in flight, counts or subscribers | `a_thousand_calls_in_flight_survive_a_reload`, `settings_change_live_and_keep_state_and_counts`, `a_reload_keeps_those_who_listen`, `a_reload_keeps_what_was_counted_before_it_and_at_most_loses_what_ends_meanwhile` |
//! | a panic of somebody else's in the same task counts as failures of the calls in flight | `a_panic_elsewhere_cancels_the_calls_it_drops_and_fails_none`, `a_panic_elsewhere_cancels_the_responses_it_drops_and_fails_none`, `a_panic_elsewhere_cancels_the_nodes_it_drops_and_fails_none` |
//! | refusals of layers within open the breaker around them | `a_refusal_of_an_inner_breaker_is_neutral_to_the_outer_one`, `refusals_are_found_in_boxes_and_behind_other_layers`, `a_refusal_within_a_node_is_neutral_to_its_breaker_and_not_tried_again` |
//! | a caller's own mistake, a request that cannot be built, opens the breaker | `a_request_that_cannot_be_built_is_no_failure_and_one_without_an_answer_is` |
//! | a breaker that is open makes the whole service unhealthy, and its orchestrator kills it | `an_open_breaker_makes_nothing_unhealthy_unless_a_check_says_so` |
//! | context is lost on the way to the call, its retry, its fallback or another thread | `a_call_its_classifier_and_its_fallback_see_the_callers_context`, `blocking_work_runs_in_the_span_of_its_caller`, `test_context_variables_travel_and_the_partition_is_known_inside` |
//! | a call leaves a timer or a task behind | `a_call_needs_no_timer_and_leaves_no_task_behind` |
//! | calls wait for each other on a lock | `a_call_while_closed_and_a_refusal_take_no_lock` |
//! | transitions are told out of order | `each_transition_is_told_once_and_in_order_whoever_brings_it_about` |
//! | a listener that panics breaks a call, or the other listeners | `a_listener_to_logs_that_panics_harms_neither_the_breaker_nor_other_listeners`, `a_listener_to_logs_that_panics_turns_no_refusal_into_a_panic`, `a_subscriber_whose_waker_panics_takes_no_call_its_result_and_no_probe_its_slot`, `a_subscriber_whose_waker_panics_harms_nobody_who_drops_the_breaker`, `whoevers_waker_panics_the_others_are_woken`, `test_listeners_hear_each_transition_and_can_harm_no_call` |
//! | an option is dropped where settings build on others, or they build on themselves | `a_derived_config_is_its_base_with_every_said_field_laid_over_it`, `a_circle_of_bases_is_an_error_that_names_the_way_round` |
//! | a registry gives two breakers of one name, or grows without bound | `racing_makers_of_one_name_with_different_settings_agree_on_one`, `keys_that_were_not_asked_for_in_a_while_are_forgotten`, `a_host_that_died_is_forgotten_some_day`, `a_flood_of_keys_that_fail_stays_within_the_capacity_and_pushes_nothing_out_that_must_stay`, `what_must_not_be_forgotten_is_not_forgotten` |
//! | one breaker for many hosts: one that is down takes all away | `one_bad_key_of_ten_leaves_the_others_alone` |
//! | metrics: a series for every reload or key, a count that falls, nothing before the first opening | `a_breaker_is_one_series_from_its_creation_on_however_often_it_is_reconfigured`, `two_hundred_thousand_keys_are_no_more_series_than_allowed`, `a_reset_from_every_state_leaves_zeros_and_no_metric_falls` |
//! | an open layer waits for the service within, or calls another instance than was made ready | `a_service_that_is_never_ready_stops_no_refusal`, `the_instance_that_was_made_ready_is_the_one_called` |
//! | a body is cut off with the call's end | `a_call_ends_with_the_head_of_its_response_whatever_becomes_of_the_body` |
//! | a reset keeps counts | `a reset closes from every state and forgets all counts` |
//! | a count that never forgets: old successes dilute an outage | `an_outage_after_a_hundred_thousand_successes_opens_it_in_half_a_window`, `only the newest calls count: old successes do not dilute an outage` |
//! | a count that never forgets: rare failures add up | `failures_far_apart_never_open_it`, `a time window forgets what is older than it` |
//! | the window must be full before it is looked at | `a_window_need_not_be_full`, `failures from the start open it after the minimum of calls, long before the window is full` |
//! | one failure among many successes opens it | `one failure after many successes of the same window opens nothing` |
//! | probes that come further apart than the window reaches never close it | `probes need no window: they may come further apart than it reaches` |
//! | an open breaker makes the call all the same | `of_fifty_failing_calls_two_reach_the_dependency` |
//! | the first call after the wait blocks | `an_open_breaker_does_not_make_the_call` |
//! | cancelled probes wedge it half-open | `a_cancelled_probe_gives_its_slot_back`, `test_cancelled_probes_give_their_slots_back_and_decide_nothing` |

#![expect(clippy::unwrap_used, reason = "helpers of tests unwrap as tests do")]

use std::cell::Cell;
use std::fs;
use std::future::pending;
use std::panic::AssertUnwindSafe;
use std::path::{Path, PathBuf};
use std::time::Duration;

use futures_util::FutureExt;
use kailash::circuit_breaker::{
    CallError, CircuitBreaker, Config, EventKind, Events, Manager, Outcome, State, Transition,
    WindowKind,
};
use kailash::clock::{Clock, ManualClock};
use kailash::health::checks::Custom;
use kailash::health::{self, CheckConfig, Monitor, Status};
use proptest::prelude::*;

const S: fn(u64) -> Duration = Duration::from_secs;

fn breaker(config: Config) -> (CircuitBreaker, ManualClock) {
    let (clock, hand) = Clock::manual();
    let config = Config {
        jitter_enabled: false,
        ..config
    };
    let breaker = CircuitBreaker::with_clock("test", config, clock).unwrap();
    (breaker, hand)
}

fn one_failure_opens() -> Config {
    Config {
        failure_threshold: 1,
        success_threshold: 1,
        ..Config::default()
    }
}

fn rates_alone() -> Config {
    Config {
        failure_threshold: 1_000_000,
        ..Config::default()
    }
}

/// A half-open breaker with this many slots that no number of successes closes.
fn half_open(slots: u32) -> CircuitBreaker {
    let (breaker, hand) = breaker(Config {
        half_open_requests: slots,
        success_threshold: 10_000,
        ..one_failure_opens()
    });
    breaker.record_failure();
    hand.advance(S(60));
    assert_eq!(breaker.state(), State::HalfOpen);
    breaker
}

#[test]
fn a_hundred_old_permits_never_raise_the_number_of_probes() {
    let (breaker, hand) = breaker(Config {
        half_open_requests: 3,
        ..one_failure_opens()
    });
    let old: Vec<_> = (0..100).map(|_| breaker.try_acquire().unwrap()).collect();
    breaker.record_failure();
    hand.advance(S(60));
    let probes: Vec<_> = (0..3).map(|_| breaker.try_acquire().unwrap()).collect();
    for permit in old {
        permit.ignore();
        assert!(breaker.try_acquire().is_err());
        assert_eq!(breaker.snapshot().probes_in_flight, 3);
    }
    drop(probes);
}

#[tokio::test]
async fn a_call_that_ends_twice_frees_one_slot() {
    let in_call = || -> Result<(), ()> { panic!("in the call") };
    let in_future = || async { in_call() };
    let confused = |_: &Result<(), ()>| -> Outcome { panic!("in the classifier") };
    // A panic ends a call, and so does the drop that follows.
    for way in 0..6 {
        let (breaker, hand) = breaker(Config {
            half_open_requests: 3,
            max_wait_duration_in_half_open: S(5),
            ..one_failure_opens()
        });
        breaker.record_failure();
        hand.advance(S(60));
        let held: Vec<_> = (0..2).map(|_| breaker.try_acquire().unwrap()).collect();
        let once = AssertUnwindSafe(async {
            match way {
                0 => drop(breaker.call_sync(in_call)),
                1 => drop(breaker.call_sync_with(confused, || Ok(()))),
                2 => drop(breaker.call(in_future).await),
                3 => drop(breaker.call_with(confused, || async { Ok(()) }).await),
                4 => {
                    let _permit = breaker.try_acquire().unwrap();
                    let _ = in_call();
                }
                // Its lease lapses, and then it ends.
                _ => {
                    let late = breaker.try_acquire_owned().unwrap();
                    hand.advance(S(5));
                    assert_eq!(breaker.state(), State::Open);
                    late.failure();
                    panic!("as all of them");
                }
            }
        });
        assert!(once.catch_unwind().await.is_err());
        assert_eq!(breaker.state(), State::Open, "by way {way}");
        drop(held);
        hand.advance(S(1000));
        let probes: Vec<_> = std::iter::from_fn(|| breaker.try_acquire().ok()).collect();
        assert_eq!(probes.len(), 3, "by way {way}");
    }
}

#[tokio::test]
async fn one_call_takes_one_probe_by_every_entry_point() {
    let breaker = half_open(1);
    let in_flight = || breaker.snapshot().probes_in_flight;
    let inside = || -> Result<u32, ()> { Ok(in_flight()) };
    let judge = |_: &Result<u32, ()>| Outcome::Success;
    assert_eq!(breaker.call(|| async { inside() }).await, Ok(1));
    assert_eq!(breaker.call_with(judge, || async { inside() }).await, Ok(1));
    assert_eq!(breaker.call_sync(inside), Ok(1));
    assert_eq!(breaker.call_sync_with(judge, inside), Ok(1));
    let permit = breaker.try_acquire().unwrap();
    assert_eq!(in_flight(), 1);
    permit.success();
    let permit = breaker.try_acquire_owned().unwrap();
    assert_eq!(in_flight(), 1);
    permit.success();
    assert_eq!((in_flight(), breaker.snapshot().probe_successes), (0, 6));
}

#[tokio::test]
async fn every_entry_point_classifies_alike_while_half_open_too() {
    let judge = |result: &Result<u32, &str>| match result {
        Ok(..500) => Outcome::Success,
        Err("not found") => Outcome::Ignored,
        Ok(_) | Err(_) => Outcome::Failure,
    };
    let cases = [
        (Ok(200), State::HalfOpen, 1),
        (Ok(503), State::Open, 0),
        (Err("not found"), State::HalfOpen, 0),
        (Err("reset"), State::Open, 0),
    ];
    for (result, state, successes) in cases {
        for entry in 0..4 {
            let breaker = half_open(1);
            match entry {
                0 => drop(breaker.call_sync_with(judge, || result)),
                1 => drop(breaker.call_with(judge, || async { result }).await),
                2 => drop(breaker.try_acquire().unwrap().record(judge(&result))),
                _ => drop(breaker.try_acquire_owned().unwrap().record(judge(&result))),
            }
            let status = breaker.snapshot();
            let found = (status.state, status.probe_successes);
            assert_eq!(found, (state, successes), "{result:?} by entry {entry}");
        }
    }
}

#[test]
fn openings_of_a_nanosecond_take_bounded_steps() {
    let nanosecond = Duration::from_nanos(1);
    let (breaker, hand) = breaker(Config {
        recovery_timeout: nanosecond,
        max_recovery_timeout: nanosecond,
        max_wait_duration_in_half_open: nanosecond,
        ..one_failure_opens()
    });
    breaker.record_failure();
    let mut hung = Vec::new();
    for _ in 0..1000 {
        hand.advance(Duration::from_micros(10));
        hung.extend(breaker.try_acquire_owned());
        let _ = breaker.state();
        breaker.record_failure();
    }
    assert!(hung.len() > 100, "it probes on");
    hung.into_iter().for_each(|permit| permit.success());
    hand.advance(S(1));
    breaker.try_acquire().unwrap().success();
    assert_eq!(breaker.state(), State::Closed);
}

async fn state_after(events: &mut Events) -> State {
    loop {
        if let EventKind::Transition(transition) = events.recv().await.unwrap().kind {
            return transition.to;
        }
    }
}

fn on_paused_time(config: Config) -> CircuitBreaker {
    let config = Config {
        jitter_enabled: false,
        ..config
    };
    CircuitBreaker::with_clock("test", config, Clock::tokio()).unwrap()
}

#[tokio::test(start_paused = true)]
async fn no_timer_ends_a_forced_opening() {
    let breaker = on_paused_time(one_failure_opens());
    let mut events = breaker.subscribe();
    breaker.record_failure();
    assert_eq!(state_after(&mut events).await, State::Open);
    // Somebody waits for the end of the opening, which a later order takes away.
    let waiting = tokio::time::timeout(S(30), state_after(&mut events));
    assert!(waiting.await.is_err());
    breaker.force_open();
    assert_eq!(state_after(&mut events).await, State::Open);
    let waiting = tokio::time::timeout(S(100_000), state_after(&mut events));
    assert!(waiting.await.is_err());
    assert!(breaker.snapshot().forced);
}

#[tokio::test(start_paused = true)]
async fn opening_and_half_opening_take_turns_by_timer_alone() {
    let breaker = on_paused_time(Config {
        recovery_timeout: S(10),
        max_wait_duration_in_half_open: S(5),
        ..one_failure_opens()
    });
    let mut events = breaker.subscribe();
    breaker.record_failure();
    assert_eq!(state_after(&mut events).await, State::Open);
    let mut hung = Vec::new();
    for _ in 0..3 {
        assert_eq!(state_after(&mut events).await, State::HalfOpen);
        hung.push(breaker.try_acquire_owned().unwrap());
        assert_eq!(state_after(&mut events).await, State::Open);
    }
    assert_eq!(breaker.snapshot().openings_in_a_row, 4);
}

#[test]
fn one_clock_drives_wait_window_and_slow_calls() {
    let (breaker, hand) = breaker(Config {
        window: WindowKind::Time,
        window_duration: S(16),
        min_calls_before_evaluation: 2,
        slow_call_threshold: Some(S(3600)),
        slow_call_rate_threshold: Some(1.0),
        ..rates_alone()
    });
    let slow = || {
        breaker.call_sync(|| -> Result<(), ()> {
            hand.advance(S(3600));
            Ok(())
        })
    };
    assert_eq!(slow(), Ok(()));
    assert_eq!(slow(), Ok(()));
    let seen = breaker.snapshot();
    assert_eq!(
        (seen.slow_calls, seen.window_calls),
        (2, 1),
        "an hour apart"
    );
    assert_eq!(breaker.state(), State::Closed);
    for _ in 0..2 {
        breaker.record_failure();
    }
    assert_eq!(breaker.state(), State::Open);
    hand.advance(S(60));
    assert_eq!(breaker.state(), State::HalfOpen);
}

#[test]
fn no_breaker_reads_the_wall_clock() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut all = fs::read_to_string(root.join("src/circuit_breaker.rs")).unwrap();
    for folder in ["src/circuit_breaker", "../kailash-core/src"] {
        read_all(&root.join(folder), &mut all);
    }
    assert!(all.contains("fn try_acquire") && all.contains("Timestamp"));
    for word in ["SystemTime", "wall_time", "Instant", "chrono::", "quanta"] {
        assert!(!all.contains(word), "{word}");
    }
}

#[test]
fn the_largest_settings_hold() {
    for window in [WindowKind::Count, WindowKind::Time] {
        let (breaker, hand) = breaker(Config {
            failure_threshold: 1000,
            success_threshold: 10_000,
            recovery_timeout: Duration::MAX,
            max_recovery_timeout: Duration::MAX,
            half_open_requests: 1024,
            error_rate_threshold: None,
            window,
            window_size: 65_536,
            window_duration: S(24 * 3600),
            min_calls_before_evaluation: u32::MAX,
            slow_call_threshold: Some(Duration::MAX),
            max_wait_duration_in_half_open: Duration::MAX,
            exponential_backoff_multiplier: 1000.0,
            cancelled_counts_after: Some(Duration::MAX),
            overdue_calls_enabled: true,
            ..Config::default()
        });
        for _ in 0..999 {
            breaker.record_failure();
        }
        hand.advance(S(1 << 33));
        drop(breaker.try_acquire().unwrap());
        assert_eq!(breaker.state(), State::Closed, "{window:?}");
        breaker.record_failure();
        assert_eq!(breaker.state(), State::Open, "{window:?}");
        hand.advance(S(1 << 33));
        let rejected = breaker.try_acquire().unwrap_err();
        assert_eq!(rejected.retry_after, None, "it never ends");
    }
}

tokio::task_local! {
    static ORDER: u32;
}

#[tokio::test]
async fn a_call_its_classifier_and_its_fallback_see_the_callers_context() {
    let (breaker, _) = breaker(Config::default());
    let order = || ORDER.try_with(|order| *order).ok();
    ORDER
        .scope(7, async {
            let seen = Cell::new(None);
            let classify = |_: &Result<_, ()>| {
                seen.set(order());
                Outcome::Success
            };
            let within = breaker.call_with(classify, || async { Ok(order()) }).await;
            assert_eq!((within, seen.get()), (Ok(Some(7)), Some(7)));
            breaker.force_open();
            let fallback = async |_| Ok(order());
            let instead = breaker.call_or(fallback, || async { Err(()) }).await;
            assert_eq!(instead, Ok(Some(7)));
        })
        .await;
}

#[test]
fn a_call_needs_no_timer_and_leaves_no_task_behind() {
    let (breaker, hand) = breaker(one_failure_opens());
    // A timer of tokio's would panic here.
    let runtime = tokio::runtime::Builder::new_current_thread().build();
    let runtime = runtime.unwrap();
    runtime.block_on(async {
        for _ in 0..3 {
            assert!(breaker.call(|| async { Ok::<_, ()>(()) }).await.is_ok());
            assert!(breaker.call(|| async { Err::<(), _>(()) }).await.is_err());
            assert!(breaker.call(|| async { Ok::<_, ()>(()) }).await.is_err());
            hand.advance(S(10_000));
            assert!(breaker.call(|| async { Ok::<_, ()>(()) }).await.is_ok());
            assert_eq!(breaker.state(), State::Closed);
        }
    });
    assert_eq!(runtime.metrics().num_alive_tasks(), 0);
}

#[tokio::test]
async fn an_open_breaker_makes_nothing_unhealthy_unless_a_check_says_so() {
    let breaker = Manager::new().get_or_create("api", None).unwrap();
    breaker.force_open();
    let monitor = Monitor::new(health::Config::default()).unwrap();
    let well = Custom::new(|| async { true });
    monitor
        .register("queue", CheckConfig::default(), well)
        .unwrap();
    assert_eq!(monitor.overall().await, Status::Healthy);
    let own = Custom::new(move || {
        let is_well = breaker.state() != State::Open;
        async move { is_well }
    });
    monitor
        .register("api", CheckConfig::default(), own)
        .unwrap();
    assert_ne!(monitor.overall().await, Status::Healthy);
}

#[test]
fn a_thousand_callers_that_hang_up_are_no_failure() {
    let (breaker, _) = breaker(one_failure_opens());
    let runtime = tokio::runtime::Builder::new_current_thread().build();
    runtime.unwrap().block_on(async {
        for _ in 0..1000 {
            let mut call = Box::pin(breaker.call(pending::<Result<(), ()>>));
            assert!(futures_util::poll!(&mut call).is_pending());
        }
    });
    let status = breaker.snapshot();
    assert_eq!(
        (status.state, status.calls, status.failures),
        (State::Closed, 0, 0)
    );
}

#[test]
fn a_reload_keeps_those_who_listen() {
    let (breaker, _) = breaker(Config {
        failure_threshold: 2,
        ..Config::default()
    });
    let mut events = breaker.subscribe();
    breaker.record_failure();
    breaker
        .reconfigure(Config {
            window_size: 60_000,
            ..breaker.config()
        })
        .unwrap();
    breaker.record_failure();
    let told = transitions(&mut events);
    assert_eq!(
        told.iter().map(|news| news.to).collect::<Vec<_>>(),
        [State::Open]
    );
}

fn transitions(events: &mut Events) -> Vec<Transition> {
    let told = std::iter::from_fn(|| events.try_recv());
    told.filter_map(|event| match event.kind {
        EventKind::Transition(transition) => Some(transition),
        _ => None,
    })
    .collect()
}

proptest! {
    #![proptest_config(ProptestConfig {
        failure_persistence: None,
        ..ProptestConfig::default()
    })]

    #[test]
    fn the_event_log_is_the_transition_log(steps in prop::collection::vec(0..12_u8, 1..100)) {
        let (breaker, hand) = breaker(Config {
            max_wait_duration_in_half_open: S(5),
            ..one_failure_opens()
        });
        let mut events = breaker.subscribe();
        let mut in_flight = Vec::new();
        let mut last = State::Closed;
        for step in steps {
            match step {
                0 | 1 => in_flight.extend(breaker.try_acquire_owned()),
                2 => drop(in_flight.pop()),
                3 => in_flight.pop().into_iter().for_each(|permit| permit.success()),
                4 => in_flight.pop().into_iter().for_each(|permit| permit.failure()),
                5 => breaker.record_failure(),
                6 => breaker.record_success(),
                7 => hand.advance(S(60)),
                8 => hand.advance(S(5)),
                9 => breaker.force_open(),
                10 => breaker.force_close(),
                _ => breaker.reset(),
            }
            // Reading, too, carries out what is due.
            let told = transitions(&mut events);
            for news in &told {
                prop_assert_eq!(news.from, last, "{:?}", told);
                last = news.to;
            }
            prop_assert_eq!(breaker.state(), last);
            let kept = breaker.transitions();
            let newest: Vec<_> = kept.iter().rev().map(|(news, _)| *news).collect();
            for (told, kept) in told.iter().rev().zip(newest) {
                prop_assert_eq!(*told, kept);
            }
        }
    }
}

#[test]
fn an_outage_after_a_hundred_thousand_successes_opens_it_in_half_a_window() {
    let (breaker, _) = breaker(rates_alone());
    for _ in 0..100_000 {
        breaker.record_success();
    }
    for _ in 0..49 {
        breaker.record_failure();
    }
    assert_eq!(breaker.state(), State::Closed);
    breaker.record_failure();
    assert_eq!(breaker.state(), State::Open);
}

#[test]
fn a_window_need_not_be_full() {
    let (breaker, _) = breaker(rates_alone());
    for _ in 0..9 {
        breaker.record_failure();
    }
    assert_eq!(breaker.state(), State::Closed);
    breaker.record_failure();
    assert_eq!(breaker.state(), State::Open, "ten of at most a hundred");
}

#[test]
fn failures_far_apart_never_open_it() {
    let (breaker, _) = breaker(Config {
        failure_threshold: 3,
        ..Config::default()
    });
    for _ in 0..3 {
        for _ in 0..10_000 {
            breaker.record_success();
        }
        breaker.record_failure();
    }
    assert_eq!(breaker.state(), State::Closed);
}

#[test]
fn of_fifty_failing_calls_two_reach_the_dependency() {
    let (breaker, _) = breaker(Config {
        failure_threshold: 2,
        ..Config::default()
    });
    let reached = Cell::new(0);
    let refused = (0..50).filter(|_| {
        let result = breaker.call_sync(|| -> Result<(), ()> {
            reached.set(reached.get() + 1);
            Err(())
        });
        matches!(result, Err(CallError::Rejected(_)))
    });
    assert_eq!((refused.count(), reached.get()), (48, 2));
}

#[test]
fn each_fault_is_kept_out_by_a_test_that_exists() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    let mut known = String::new();
    for folder in ["crates", "python/tests", "vectors"] {
        read_all(&root.join(folder), &mut known);
    }
    let table = include_str!("circuit_breaker_faults.rs").lines();
    let rows = table.filter(|line| line.starts_with("//! | ")).skip(1);
    let mut rows_seen = 0;
    for row in rows {
        let names: Vec<_> = row.split('`').skip(1).step_by(2).collect();
        assert!(!names.is_empty(), "nothing keeps it out: {row}");
        for name in names {
            let is_there = [
                format!("fn {name}("),
                format!("def {name}("),
                format!("\"name\": \"{name}\""),
            ]
            .iter()
            .any(|sign| known.contains(sign));
            assert!(is_there, "there is no test or vector {name:?}");
        }
        rows_seen += 1;
    }
    assert!(rows_seen > 30, "only {rows_seen} rows were read");
}

fn read_all(folder: &Path, into: &mut String) {
    for entry in fs::read_dir(folder).unwrap() {
        let path: PathBuf = entry.unwrap().path();
        let is_read = |name: &str| path.extension().is_some_and(|extension| extension == name);
        if path.is_dir() {
            read_all(&path, into);
        } else if ["rs", "py", "json"].into_iter().any(is_read) {
            into.push_str(&fs::read_to_string(&path).unwrap());
        }
    }
}
