//! What the monitor promises, on paused time.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use std::future::pending;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::mpsc;
use std::sync::{Arc, Condvar, Mutex};
use std::time::Duration;

use kailash::health::checks::Custom;
use kailash::health::{
    Alert, AlertLevel, CheckConfig, Config, ErrorClass, Monitor, Outcome, Status, run_once,
};
use tokio::time::{Instant, advance, sleep};

const INTERVAL: Duration = Duration::from_secs(30);
const GENEROUS: Duration = Duration::from_secs(60);

fn monitor(alert_threshold: u32) -> Monitor {
    let config = Config {
        check_interval: INTERVAL,
        alert_threshold,
    };
    Monitor::new(config).unwrap()
}

/// Threads know no paused time: tests with threads are given this instead.
fn within(timeout: Duration) -> CheckConfig {
    CheckConfig {
        timeout,
        ..CheckConfig::default()
    }
}

/// A check whose answers are set from outside, and its count of runs.
#[derive(Clone, Default)]
struct Switch(Arc<(AtomicBool, AtomicUsize)>);

impl Switch {
    fn set(&self, works: bool) {
        self.0.0.store(works, Ordering::SeqCst);
    }

    fn runs(&self) -> usize {
        self.0.1.load(Ordering::SeqCst)
    }

    fn check(&self) -> Custom {
        let switch = self.clone();
        Custom::new(move || {
            switch.0.1.fetch_add(1, Ordering::SeqCst);
            let works = switch.0.0.load(Ordering::SeqCst);
            async move { works }
        })
    }
}

/// Blocks threads until it is opened.
#[derive(Clone, Default)]
struct Gate(Arc<(Mutex<bool>, Condvar)>);

impl Gate {
    fn wait(&self) {
        let mut open = self.0.0.lock().unwrap();
        while !*open {
            open = self.0.1.wait(open).unwrap();
        }
    }

    fn open(&self) {
        *self.0.0.lock().unwrap() = true;
        self.0.1.notify_all();
    }
}

/// Waits for threads, which paused time does not move.
async fn wait_for(what: &str, mut condition: impl FnMut() -> bool) {
    let begun = std::time::Instant::now();
    while !condition() {
        assert!(begun.elapsed() < GENEROUS, "{what}");
        tokio::task::yield_now().await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_check_runs_at_once_and_then_at_every_interval_give_or_take_a_tenth() {
    let starts = Arc::new(Mutex::new(Vec::new()));
    let seen = Arc::clone(&starts);
    let monitor = monitor(3);
    let check = Custom::new(move || {
        seen.lock().unwrap().push(Instant::now());
        async { true }
    });
    monitor
        .register("db", CheckConfig::default(), check)
        .unwrap();
    sleep(INTERVAL * 3).await;
    assert!(
        starts.lock().unwrap().is_empty(),
        "a stopped monitor runs nothing"
    );
    let begun = Instant::now();
    monitor.start();
    sleep(INTERVAL * 20).await;
    monitor.stop();
    sleep(INTERVAL * 3).await;
    let starts = starts.lock().unwrap();
    assert_eq!(starts[0], begun);
    assert!((18..=23).contains(&starts.len()), "{}", starts.len());
    let gaps = starts.windows(2).map(|pair| pair[1] - pair[0]);
    let gaps: Vec<_> = gaps.collect();
    let millisecond = Duration::from_millis(1);
    assert!(
        gaps.iter()
            .all(|gap| (INTERVAL * 9 / 10..=INTERVAL * 11 / 10 + millisecond).contains(gap))
    );
    assert!(gaps.iter().any(|gap| *gap != gaps[0]), "they are spread");
}

#[tokio::test(start_paused = true)]
async fn a_check_added_to_a_running_monitor_runs_at_once() {
    let monitor = monitor(3);
    monitor.start();
    let switch = Switch::default();
    monitor
        .register("db", CheckConfig::default(), switch.check())
        .unwrap();
    sleep(Duration::from_millis(1)).await;
    assert_eq!(switch.runs(), 1);
}

#[tokio::test(start_paused = true)]
async fn reading_runs_nothing_that_is_fresh_and_says_its_age() {
    let monitor = monitor(3);
    let switch = Switch::default();
    switch.set(true);
    monitor
        .register("db", CheckConfig::default(), switch.check())
        .unwrap();
    assert_eq!(monitor.status("db").await.unwrap().age, Duration::ZERO);
    advance(INTERVAL).await;
    for _ in 0..10 {
        assert_eq!(monitor.status("db").await.unwrap().age, INTERVAL);
        assert_eq!(monitor.statuses().await["db"].age, INTERVAL);
        assert_eq!(monitor.overall().await, Status::Healthy);
    }
    assert_eq!(switch.runs(), 1);
    advance(Duration::from_millis(1)).await;
    assert_eq!(monitor.status("db").await.unwrap().age, Duration::ZERO);
    assert_eq!(
        switch.runs(),
        2,
        "nobody monitors it, and it is older than its interval"
    );
    assert_eq!(monitor.check_now("db").await.unwrap().age, Duration::ZERO);
    assert_eq!(switch.runs(), 3);
}

#[tokio::test(start_paused = true)]
async fn reading_a_monitored_check_never_runs_it_however_old_it_is() {
    let monitor = monitor(3);
    let runs = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&runs);
    let check = Custom::new(move || {
        let run = counted.fetch_add(1, Ordering::SeqCst);
        async move {
            if run > 0 {
                pending::<()>().await;
            }
            true
        }
    });
    let config = CheckConfig {
        timeout: INTERVAL * 100,
        ..CheckConfig::default()
    };
    monitor.register("db", config, check).unwrap();
    monitor.start();
    sleep(INTERVAL * 10).await;
    let report = monitor.status("db").await.unwrap();
    assert_eq!(report.age, INTERVAL * 10);
    assert_eq!(runs.load(Ordering::SeqCst), 2);
}

#[tokio::test(start_paused = true)]
async fn one_run_serves_all_who_ask_meanwhile() {
    let monitor = monitor(3);
    let runs = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&runs);
    let check = Custom::new(move || {
        counted.fetch_add(1, Ordering::SeqCst);
        async {
            sleep(Duration::from_secs(1)).await;
            true
        }
    });
    monitor
        .register("db", CheckConfig::default(), check)
        .unwrap();
    let mut readers = Vec::new();
    for reader in 0..100 {
        let monitor = monitor.clone();
        readers.push(tokio::spawn(async move {
            match reader % 3 {
                0 => monitor.status("db").await.unwrap().status,
                1 => monitor.overall().await,
                _ => monitor.check_now("db").await.unwrap().status,
            }
        }));
    }
    for reader in readers {
        assert_eq!(reader.await.unwrap(), Status::Healthy);
    }
    assert_eq!(runs.load(Ordering::SeqCst), 1);
}

#[tokio::test(start_paused = true)]
async fn a_reader_that_goes_away_ends_no_run_of_others() {
    let monitor = monitor(3);
    let check = Custom::new(|| async {
        sleep(Duration::from_secs(2)).await;
        true
    });
    monitor
        .register("db", CheckConfig::default(), check)
        .unwrap();
    let first = tokio::time::timeout(Duration::from_secs(1), monitor.status("db")).await;
    assert!(first.is_err());
    let report = monitor.status("db").await.unwrap();
    assert_eq!(report.response_time, Duration::from_secs(2));
    assert_eq!(report.status, Status::Healthy);
}

#[tokio::test(start_paused = true)]
async fn checks_that_hang_panic_or_raise_are_unhealthy_and_say_why() {
    let monitor = monitor(3);
    let timeout = Duration::from_secs(2);
    let config = CheckConfig {
        timeout,
        ..CheckConfig::default()
    };
    monitor
        .register("hangs", config, Custom::new(pending::<bool>))
        .unwrap();
    let panics = Custom::new(|| async {
        assert!(std::hint::black_box(false), "no such table");
        true
    });
    monitor.register("panics", config, panics).unwrap();
    let raises = Custom::new(|| async { "many".parse::<u8>().map(drop) });
    monitor.register("raises", config, raises).unwrap();
    let begun = Instant::now();
    let reports = monitor.statuses().await;
    assert_eq!(begun.elapsed(), timeout, "they run at the same time");
    for (name, class, message) in [
        ("hangs", ErrorClass::Timeout, "timeout: nothing within 2s"),
        ("panics", ErrorClass::Panic, "panic: no such table"),
        (
            "raises",
            ErrorClass::Failed,
            "invalid digit found in string",
        ),
    ] {
        let report = &reports[name];
        assert_eq!(report.status, Status::Unhealthy, "{name}");
        assert_eq!(report.class, Some(class), "{name}");
        assert_eq!(report.message, message);
        assert_eq!(report.failures, 1);
    }
    assert_eq!(reports["hangs"].response_time, timeout);
    assert_eq!(monitor.overall().await, Status::Unhealthy);
}

#[tokio::test(start_paused = true)]
async fn of_a_thousand_checks_two_hundred_that_hang_keep_no_other_waiting() {
    let monitor = monitor(3);
    let starts = Arc::new(Mutex::new(vec![Vec::new(); 1_000]));
    for check in 0..1_000 {
        let seen = Arc::clone(&starts);
        let hangs = check % 5 == 0;
        let custom = Custom::new(move || {
            seen.lock().unwrap()[check].push(Instant::now());
            async move {
                if hangs {
                    pending::<()>().await;
                }
                true
            }
        });
        monitor
            .register(format!("check {check}"), CheckConfig::default(), custom)
            .unwrap();
    }
    monitor.start();
    sleep(INTERVAL * 10).await;
    let reports = monitor.statuses().await;
    let healthy = reports
        .values()
        .filter(|report| report.status == Status::Healthy);
    assert_eq!(healthy.count(), 800);
    let starts = starts.lock().unwrap();
    for starts in starts.iter() {
        let late = |pair: &[Instant]| (pair[1] - pair[0]).saturating_sub(INTERVAL * 11 / 10);
        let latest = starts.windows(2).map(late).max().unwrap();
        assert!(latest < Duration::from_millis(100), "{latest:?}");
        assert!(starts.len() >= 9, "{}", starts.len());
    }
    let alerts = monitor.alerts(Some(false));
    assert_eq!(alerts.len(), 200, "each of those that hang, once");
}

#[tokio::test]
async fn a_blocking_check_that_never_ends_takes_one_thread_and_is_shown() {
    let monitor = monitor(3);
    let gate = Gate::default();
    let entered = Arc::new(AtomicUsize::new(0));
    let (blocks, counted) = (gate.clone(), Arc::clone(&entered));
    let check = Custom::blocking(move || {
        counted.fetch_add(1, Ordering::SeqCst);
        blocks.wait();
        true
    });
    monitor
        .register("blocks", within(Duration::from_millis(20)), check)
        .unwrap();
    monitor
        .register("fine", within(GENEROUS), Custom::blocking(|| true))
        .unwrap();
    let first = monitor.check_now("blocks").await.unwrap();
    assert_eq!(first.class, Some(ErrorClass::Timeout));
    wait_for("the thread is given up", || monitor.leaked_threads() == 1).await;
    let second = monitor.check_now("blocks").await.unwrap();
    assert_eq!(second.message, "timeout: an earlier run has not ended");
    assert_eq!(second.failures, 2);
    assert_eq!(entered.load(Ordering::SeqCst), 1);
    assert_eq!(
        monitor.check_now("fine").await.unwrap().status,
        Status::Healthy
    );
    gate.open();
    wait_for("the thread ends", || monitor.leaked_threads() == 0).await;
    let third = monitor.check_now("blocks").await.unwrap();
    assert_eq!(third.status, Status::Healthy);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_check_that_blocks_its_runtime_thread_still_times_out_and_delays_no_other() {
    let monitor = monitor(3);
    let gate = Gate::default();
    let blocks = gate.clone();
    let check = Custom::new(move || {
        let gate = blocks.clone();
        async move {
            gate.wait();
            true
        }
    });
    let short = within(Duration::from_millis(50));
    monitor.register("blocks", short, check).unwrap();
    let fine = Custom::new(|| async { true });
    monitor.register("fine", within(GENEROUS), fine).unwrap();
    let first = monitor.check_now("blocks").await.unwrap();
    assert_eq!(first.message, "timeout: nothing within 50ms");
    let second = monitor.check_now("blocks").await.unwrap();
    assert_eq!(second.message, "timeout: an earlier run has not ended");
    assert_eq!(
        monitor.check_now("fine").await.unwrap().status,
        Status::Healthy
    );
    gate.open();
    while monitor.check_now("blocks").await.unwrap().status != Status::Healthy {}
}

#[tokio::test(start_paused = true)]
async fn a_timeout_beyond_what_the_clock_can_tell_never_comes() {
    let finished = run_once(Arc::new(Custom::new(|| async { true })), Duration::MAX).await;
    assert_eq!(finished.outcome.status, Status::Healthy);
}

#[tokio::test]
async fn when_all_threads_are_leaked_the_others_are_unknown_not_unhealthy() {
    let monitor = monitor(1);
    let gate = Gate::default();
    for check in 0..256 {
        let gate = gate.clone();
        let check_name = format!("blocks {check}");
        let blocks = Custom::blocking(move || {
            gate.wait();
            true
        });
        monitor
            .register(check_name, within(Duration::from_millis(20)), blocks)
            .unwrap();
    }
    assert_eq!(monitor.overall().await, Status::Unhealthy);
    // A run whose time was over before its turn came has no thread yet.
    while monitor.leaked_threads() < 256 {
        for name in monitor.names() {
            monitor.check_now(&name).await.unwrap();
        }
    }
    monitor
        .register("fine", within(GENEROUS), Custom::blocking(|| true))
        .unwrap();
    let report = monitor.check_now("fine").await.unwrap();
    assert_eq!(report.status, Status::Unknown);
    assert_eq!(
        report.message,
        "not run: all 256 threads are taken, 256 leaked"
    );
    gate.open();
    wait_for("the threads end", || monitor.leaked_threads() == 0).await;
    assert_eq!(
        monitor.check_now("fine").await.unwrap().status,
        Status::Healthy
    );
}

#[tokio::test]
async fn a_panic_on_a_thread_is_told() {
    let check = Arc::new(Custom::blocking(|| {
        assert!(std::hint::black_box(false), "disk is gone");
        true
    }));
    let finished = run_once(check, GENEROUS).await;
    assert_eq!(finished.outcome.class, Some(ErrorClass::Panic));
    assert_eq!(finished.outcome.message, "panic: disk is gone");
}

#[tokio::test(start_paused = true)]
async fn an_alert_is_raised_once_and_resolved_once_and_callbacks_hear_both() {
    let monitor = monitor(2);
    let switch = Switch::default();
    monitor
        .register("db", CheckConfig::default(), switch.check())
        .unwrap();
    let (told, heard) = mpsc::channel::<Alert>();
    monitor.on_alert(move |alert| told.send(alert.clone()).unwrap());
    for _ in 0..100 {
        monitor.check_now("db").await.unwrap();
    }
    let raised = monitor.alerts(None);
    assert_eq!(raised.len(), 1);
    assert_eq!(raised[0].level, AlertLevel::Critical);
    assert_eq!(raised[0].failures, 2);
    assert_eq!(
        raised[0].message,
        "check \"db\": unhealthy 2 times in a row: the check says no"
    );
    assert_eq!(monitor.alerts(Some(false)), raised);
    assert_eq!(monitor.alerts(Some(true)), []);
    switch.set(true);
    for _ in 0..100 {
        monitor.check_now("db").await.unwrap();
    }
    assert_eq!(monitor.alerts(Some(false)), []);
    let resolved = monitor.alerts(Some(true));
    assert_eq!(resolved.len(), 1);
    assert_eq!(resolved[0].id, raised[0].id);
    let first = heard.recv_timeout(GENEROUS).unwrap();
    assert_eq!(first, raised[0]);
    let second = heard.recv_timeout(GENEROUS).unwrap();
    assert_eq!((second.id, second.is_resolved()), (first.id, true));
    assert_eq!(second.level, AlertLevel::Info);
    assert_eq!(second.message, "check \"db\": healthy again");
    drop(monitor);
    assert!(
        heard.recv_timeout(GENEROUS).is_err(),
        "nothing more, and the thread has ended"
    );
}

#[tokio::test(start_paused = true)]
async fn a_callback_that_panics_or_hangs_harms_neither_checks_nor_others() {
    let monitor = monitor(1);
    let gate = Gate::default();
    let switch = Switch::default();
    monitor
        .register("db", CheckConfig::default(), switch.check())
        .unwrap();
    let hangs = gate.clone();
    monitor.on_alert(move |_| hangs.wait());
    monitor.on_alert(|alert| assert!(alert.is_resolved(), "a bug of the callback"));
    let (told, heard) = mpsc::channel();
    monitor.on_alert(move |alert| told.send(alert.is_resolved()).unwrap());
    for works in [false, true, false, true] {
        switch.set(works);
        monitor.check_now("db").await.unwrap();
        assert_eq!(heard.recv_timeout(GENEROUS), Ok(works));
    }
    gate.open();
}

#[tokio::test(start_paused = true)]
async fn only_the_oldest_resolved_alerts_are_forgotten() {
    let monitor = monitor(1);
    monitor
        .register(
            "down",
            CheckConfig::default(),
            Custom::new(|| async { false }),
        )
        .unwrap();
    monitor.check_now("down").await.unwrap();
    let switch = Switch::default();
    monitor
        .register("flaps", CheckConfig::default(), switch.check())
        .unwrap();
    for run in 0..2_010 {
        switch.set(run % 2 == 1);
        monitor.check_now("flaps").await.unwrap();
    }
    let resolved = monitor.alerts(Some(true));
    assert_eq!(resolved.len(), 1_000);
    assert_eq!(monitor.alerts(Some(false))[0].check, "down");
}

#[tokio::test(start_paused = true)]
async fn taking_a_check_away_ends_its_runs_and_resolves_its_alert() {
    let monitor = monitor(1);
    let switch = Switch::default();
    monitor
        .register("db", CheckConfig::default(), switch.check())
        .unwrap();
    monitor.start();
    sleep(Duration::from_millis(1)).await;
    assert_eq!(monitor.alerts(Some(false)).len(), 1);
    assert!(monitor.unregister("db"));
    assert!(!monitor.unregister("db"));
    assert_eq!(monitor.alerts(Some(true)).len(), 1);
    sleep(INTERVAL * 5).await;
    assert_eq!(switch.runs(), 1);
    let error = monitor.status("db").await.unwrap_err();
    assert_eq!(
        error.to_string(),
        "check \"db\": unknown, none is registered"
    );
    assert_eq!(monitor.overall().await, Status::Unknown);
}

#[tokio::test(start_paused = true)]
async fn a_run_that_outlives_its_check_raises_nothing() {
    let monitor = monitor(1);
    let check = Custom::new(|| async {
        sleep(Duration::from_secs(1)).await;
        false
    });
    monitor
        .register("db", CheckConfig::default(), check)
        .unwrap();
    monitor.start();
    sleep(Duration::from_millis(500)).await;
    let works = Custom::new(|| async { true });
    monitor
        .register("db", CheckConfig::default(), works)
        .unwrap();
    sleep(INTERVAL).await;
    assert_eq!(monitor.alerts(None), []);
    assert_eq!(monitor.status("db").await.unwrap().status, Status::Healthy);
}

#[tokio::test(start_paused = true)]
async fn changing_the_config_keeps_the_checks_and_takes_hold_at_once() {
    let monitor = monitor(100);
    let switch = Switch::default();
    monitor
        .register("db", CheckConfig::default(), switch.check())
        .unwrap();
    monitor.start();
    sleep(Duration::from_secs(5)).await;
    assert_eq!(switch.runs(), 1);
    let fast = Config {
        check_interval: Duration::from_secs(1),
        alert_threshold: 2,
    };
    monitor.reconfigure(fast).unwrap();
    sleep(Duration::from_millis(1)).await;
    assert_eq!(
        switch.runs(),
        2,
        "the wait of 30 s is over with the new interval"
    );
    assert_eq!(monitor.alerts(Some(false)).len(), 1);
    sleep(Duration::from_secs(10)).await;
    assert!(switch.runs() >= 10);
    let wrong = Config {
        alert_threshold: 0,
        ..fast
    };
    assert_eq!(
        monitor.reconfigure(wrong).unwrap_err().field,
        "alert_threshold"
    );
    assert_eq!(monitor.config(), fast);
}

#[tokio::test(start_paused = true)]
async fn a_check_may_have_an_interval_and_a_threshold_of_its_own() {
    let monitor = monitor(100);
    let switch = Switch::default();
    let config = CheckConfig {
        check_interval: Some(Duration::from_secs(1)),
        alert_threshold: Some(1),
        critical: false,
        ..CheckConfig::default()
    };
    monitor.register("cache", config, switch.check()).unwrap();
    monitor.start();
    sleep(Duration::from_secs(10)).await;
    assert!(switch.runs() >= 9);
    assert_eq!(monitor.alerts(None)[0].level, AlertLevel::Warning);
    assert_eq!(monitor.overall().await, Status::Degraded);
}

#[tokio::test(start_paused = true)]
async fn no_secret_of_a_check_comes_out() {
    let monitor = monitor(1);
    let secret = "hunter2";
    let check = Custom::new(move || async move {
        Outcome::unhealthy(format!("no route to postgres://app:{secret}@db/x"))
            .detail("password", secret)
            .detail("hosts", vec![format!("redis://:{secret}@a")])
    });
    monitor
        .register("says", CheckConfig::default(), check)
        .unwrap();
    let panics = Custom::new(move || async move {
        assert!(std::hint::black_box(false), "login with password={secret}");
        true
    });
    monitor
        .register("panics", CheckConfig::default(), panics)
        .unwrap();
    let text = format!("{:?} {:?}", monitor.statuses().await, monitor.alerts(None));
    assert!(!text.contains(secret), "{text}");
    assert!(
        text.contains("no route to postgres://app:***@db/x"),
        "{text}"
    );
}

#[test]
fn a_monitor_runs_on_the_runtime_it_is_given_and_is_used_from_any_thread() {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .enable_all()
        .build()
        .unwrap();
    let monitor = Monitor::on(runtime.handle().clone(), Config::default()).unwrap();
    let inside = Custom::new(|| async {
        let name = std::thread::current().name().map(str::to_owned);
        Outcome::healthy().message(name.unwrap_or_default())
    });
    monitor
        .register("db", CheckConfig::default(), inside)
        .unwrap();
    monitor.start();
    let other = tokio::runtime::Builder::new_current_thread()
        .build()
        .unwrap();
    let report = other.block_on(monitor.status("db")).unwrap();
    assert!(report.message.starts_with("tokio"), "{}", report.message);
    // With its runtime gone it still answers, with what it knows.
    drop(runtime);
    let report = other.block_on(monitor.check_now("db")).unwrap();
    assert_eq!(report.status, Status::Healthy);
    monitor
        .register(
            "late",
            CheckConfig::default(),
            Custom::new(|| async { true }),
        )
        .unwrap();
    let report = other.block_on(monitor.status("late")).unwrap();
    assert_eq!(report.status, Status::Unknown);
}

#[tokio::test(start_paused = true)]
async fn the_last_handle_takes_the_tasks_with_it() {
    let monitor = monitor(3);
    let switch = Switch::default();
    monitor
        .register("db", CheckConfig::default(), switch.check())
        .unwrap();
    monitor.start();
    sleep(Duration::from_millis(1)).await;
    drop(monitor);
    sleep(INTERVAL * 5).await;
    assert_eq!(switch.runs(), 1);
    assert_eq!(Arc::strong_count(&switch.0), 1, "the check is dropped");
}
