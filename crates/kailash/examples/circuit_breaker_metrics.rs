//! What breakers have counted, as metrics in the text format of Prometheus.
//!
//! ```sh
//! cargo run -p kailash --example circuit_breaker_metrics
//! ```

use std::error::Error;
use std::fmt::{self, Write as _};
use std::io::{self, Write};
use std::time::Duration;

use kailash::circuit_breaker::{Config, Counts, KeyedConfig, Manager, State};
use kailash::clock::Clock;
use kailash::histogram;

fn main() -> Result<(), Box<dyn Error>> {
    let wait = std::thread::sleep;
    show(Clock::monotonic(), wait, &mut io::stdout())
}

/// Some calls, and what a scrape answers after them. A test waits by moving a clock.
pub(crate) fn show(
    clock: Clock,
    wait: impl Fn(Duration),
    out: &mut impl Write,
) -> Result<(), Box<dyn Error>> {
    let breakers = Manager::with_clock(clock);
    breakers.record_durations();
    let database = breakers.get_or_create("database", Config::default())?;
    for ms in [3, 5, 40] {
        database.call_sync(|| {
            wait(Duration::from_millis(ms));
            Ok::<_, io::Error>(())
        })?;
    }
    // Of the hosts that fail or are refused, the worst has series of its own.
    let config = KeyedConfig {
        series: 1,
        ..KeyedConfig::default()
    };
    let hosts = breakers.keyed("host", config)?;
    for (host, calls) in [("10.0.0.7", 9), ("10.0.0.8", 2), ("10.0.0.9", 0)] {
        hosts.get(host).record_success();
        for _ in 0..calls {
            let _ = hosts.get(host).call_sync(|| Err::<(), _>("refused"));
        }
    }
    Ok(out.write_all(metrics(&breakers).as_bytes())?)
}

/// A breaker, one key of a group, or all other keys of it.
struct Series {
    labels: String,
    counts: Counts,
    /// `None` of all other keys, which are in many.
    state: Option<State>,
    /// `None` of one key: the group has those of all its keys.
    durations: Option<histogram::Snapshot>,
}

/// A series for each breaker by name, and a bounded number of them for each group of keys.
fn metrics(breakers: &Manager) -> String {
    let mut all: Vec<Series> = Vec::new();
    for breaker in breakers.all() {
        all.push(Series {
            labels: format!("breaker=\"{}\"", escaped(breaker.name())),
            counts: breaker.counts(),
            state: Some(breaker.state()),
            durations: breaker.all_durations(),
        });
    }
    for group in breakers.groups() {
        let series = group.series();
        let labels = format!("group=\"{}\"", escaped(group.name()));
        all.extend(series.listed.iter().map(|key| Series {
            labels: format!("{labels},breaker=\"{}\"", escaped(&key.breaker)),
            // Not `counts`: what it had counted before it was listed is among the others'.
            counts: key.since_listed,
            state: Some(key.state),
            durations: None,
        }));
        all.push(Series {
            labels,
            counts: series.other,
            state: None,
            durations: Some(group.all_durations()),
        });
    }
    let mut text = String::new();
    write(&mut text, &all).expect("a string takes all that is written");
    text
}

type Counter = fn(&Counts) -> u64;

fn write(text: &mut String, all: &[Series]) -> fmt::Result {
    // No successes: what is left of the calls without the failures may fall, as no counter may.
    let counters: [(&str, &str, Counter); 5] = [
        ("calls", "Calls whose outcome counted.", |it| it.calls),
        ("failures", "Calls that counted as failures.", |it| {
            it.failures
        }),
        ("slow_calls", "Calls that counted as slow.", |it| {
            it.slow_calls
        }),
        ("rejections", "Calls that were refused.", |it| it.rejections),
        ("openings", "Openings, forced ones too.", |it| it.openings),
    ];
    for (name, help, count) in counters {
        let name = format!("circuit_breaker_{name}_total");
        head(text, &name, help, "counter")?;
        for Series { labels, counts, .. } in all {
            writeln!(text, "{name}{{{labels}}} {}", count(counts))?;
        }
    }

    let name = "circuit_breaker_state";
    head(
        text,
        name,
        "1 for the state that it is in, 0 for the others.",
        "gauge",
    )?;
    for Series { labels, state, .. } in all {
        for each in State::ALL {
            if let Some(is_it) = state.map(|state| u8::from(state == each)) {
                writeln!(text, "{name}{{{labels},state=\"{each}\"}} {is_it}")?;
            }
        }
    }

    let name = "circuit_breaker_call_duration_seconds";
    head(text, name, "How long calls took.", "histogram")?;
    for Series {
        labels, durations, ..
    } in all
    {
        let Some(durations) = durations else { continue };
        let count = durations.count();
        for (bound, count) in durations.octaves() {
            let bound = bound.as_secs_f64();
            writeln!(text, "{name}_bucket{{{labels},le=\"{bound}\"}} {count}")?;
        }
        writeln!(text, "{name}_bucket{{{labels},le=\"+Inf\"}} {count}")?;
        let sum = durations.sum().as_secs_f64();
        writeln!(text, "{name}_sum{{{labels}}} {sum}")?;
        writeln!(text, "{name}_count{{{labels}}} {count}")?;
    }
    Ok(())
}

fn head(text: &mut String, name: &str, help: &str, kind: &str) -> fmt::Result {
    writeln!(text, "# HELP {name} {help}\n# TYPE {name} {kind}")
}

/// A name as a label's value: whoever picks the keys of a group picks names.
fn escaped(name: &str) -> String {
    let name = name.replace('\\', r"\\").replace('"', "\\\"");
    name.replace('\n', "\\n")
}
