//! What a call costs, here and with the peers, as one table with the bars it is held to.

mod render;

use std::error::Error;
use std::fs;
use std::path::Path;

use serde_json::Value;

use crate::Outcome;
use crate::setup::{self, root, target};
use crate::step::{cargo, command};
use render::{Bar, Row, render};

/// The peers of the Python bench.
const PYTHON_PEERS: [&str; 6] = [
    "circuitbreaker",
    "interlock-cb",
    "pybreaker",
    "aiobreaker",
    "purgatory",
    "hyx",
];

/// Builds and runs everything, prints the table and writes it to `benches/RESULTS.md`.
pub(crate) fn run() -> Outcome {
    let benches = root().join("benches");
    // Before the builds of this run, which would be seen in it.
    let load = load();
    let mut rows = rust_rows(&benches)?;
    let python = python_rows(&benches)?;
    rows.extend(python.rows);
    let bars: Vec<Bar> = read_bars(&benches)?;
    let machine = format!("{}; {load}", machine(python.version.as_deref())?);
    let text = render(&machine, &rows, &bars)?;
    println!("{text}");
    Ok(fs::write(benches.join("RESULTS.md"), text)?)
}

fn rust_rows(benches: &Path) -> Result<Vec<Row>, Box<dyn Error>> {
    // A folder of its own: its dependencies are built with other settings.
    let folder = target().join("benches");
    let mut build = cargo("build")
        .args(["--release", "--quiet"])
        .env("CARGO_TARGET_DIR", &folder)
        .current_dir(benches);
    build.run()?;
    println!("measuring Rust");
    let measured = command(folder.join("release/benches")).output()?;
    let measured: Value = serde_json::from_str(&measured)?;
    let calls = measured["calls"].as_array().into_iter().flatten();
    let mut rows: Vec<Row> = calls.filter_map(Row::of_calls).collect();
    let memory = measured["memory"].as_array().into_iter().flatten();
    rows.extend(memory.filter_map(Row::of_memory));
    Ok(rows)
}

const PYTHON_SCRIPTS: [&str; 2] = ["circuit_breaker.py", "bulkhead.py"];

/// What the Python benches measured, and with which Python.
#[derive(Default)]
struct Python {
    rows: Vec<Row>,
    version: Option<String>,
}

fn python_rows(benches: &Path) -> Result<Python, Box<dyn Error>> {
    setup::tools()?;
    // A venv of its own: the peers are no part of what the tests import.
    let venv = target().join("bench-venv");
    setup::make_venv(&venv)?;
    setup::pip_install(&venv, PYTHON_PEERS)?;
    setup::pip_install(&venv, ["--force-reinstall", "--no-deps", "."])?;
    println!("measuring Python");
    let mut found = Python::default();
    for script in PYTHON_SCRIPTS {
        let script = benches.join("python").join(script);
        let python = command(venv.join("bin/python"));
        let measured = python.args([&script]).args(["--json"]).output()?;
        let measured: Value = serde_json::from_str(&measured)?;
        let rows = measured["rows"].as_array().into_iter().flatten();
        found.rows.extend(rows.filter_map(Row::of_python));
        let version = measured["python"].as_str();
        found.version = version.map(|version| format!("CPython {version}"));
    }
    Ok(found)
}

fn read_bars(benches: &Path) -> Result<Vec<Bar>, Box<dyn Error>> {
    let bars: Value = serde_json::from_str(&fs::read_to_string(benches.join("bars.json"))?)?;
    let bars = bars.as_array().ok_or("bars.json is no list")?;
    bars.iter().map(Bar::read).collect()
}

/// How busy the machine was: with others on it, only the least figures tell much.
fn load() -> String {
    let load = fs::read_to_string("/proc/loadavg").unwrap_or_default();
    let load = load.split_whitespace().next().unwrap_or("unknown");
    format!("load {load} before the run")
}

/// What the figures were taken on, in one line.
fn machine(python: Option<&str>) -> Result<String, Box<dyn Error>> {
    let cpus = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let model = cpus.lines().find(|line| line.starts_with("model name"));
    let model = model.and_then(|line| line.split_once(": "));
    let model = model.map_or("an unknown processor", |(_, model)| model.trim());
    let cores = std::thread::available_parallelism()?;
    let rustc = command("rustc")
        .args(["--version"])
        .current_dir(root())
        .output()?;
    let (rustc, python) = (rustc.trim(), python.unwrap_or("no Python"));
    Ok(format!(
        "{model}, {cores} cores; {rustc}, fat LTO; {python}"
    ))
}
