//! The hot paths' instructions, counted by callgrind and held against budgets.

use std::collections::BTreeMap;
use std::env::consts::ARCH;
use std::error::Error;
use std::fs;
use std::path::{Path, PathBuf};

use serde_json::{Map, Value};

use crate::Outcome;
use crate::setup::{self, root, target};
use crate::step::{Call, cargo, command};

/// What a path may take beyond its budget: libraries differ by an instruction here and there.
const TOLERATED_SHARE: f64 = 0.02;
const TOLERATED: f64 = 1.0;

/// Instructions per call, by path.
type Counts = BTreeMap<String, f64>;

/// Counts, and says which paths take more than their budgets.
pub(crate) fn check() -> Outcome {
    let budgets = read_budgets()?;
    let Some(budgets) = budgets.get(ARCH).and_then(Value::as_object) else {
        println!("there are no budgets for {ARCH}");
        return Ok(());
    };
    let counts = count()?;
    let problems = compare(&counts, budgets);
    if problems.is_empty() {
        return Ok(());
    }
    let hint = "\nif that is meant: cargo xtask instructions --write";
    Err(format!("{}{hint}", problems.join("\n")).into())
}

/// Counts, and takes the counts as this architecture's budgets.
pub(crate) fn write() -> Outcome {
    let counts = count()?;
    let mut budgets = read_budgets()?;
    let counts = counts.into_iter().map(|(path, count)| (path, count.into()));
    budgets.insert(ARCH.into(), Value::Object(counts.collect()));
    let text = serde_json::to_string_pretty(&budgets)?;
    Ok(fs::write(budgets_file(), text + "\n")?)
}

fn budgets_file() -> PathBuf {
    root().join("crates/hot-paths/budgets.json")
}

fn read_budgets() -> Result<Map<String, Value>, Box<dyn Error>> {
    Ok(serde_json::from_str(&fs::read_to_string(budgets_file())?)?)
}

fn count() -> Result<Counts, Box<dyn Error>> {
    setup::valgrind()?;
    let build = ["--package", "hot-paths", "--release", "--locked", "--quiet"];
    // The budgets are for the architecture as such, not for what this machine can do beyond it.
    let build = cargo("build").args(build).env("RUSTFLAGS", "");
    build.current_dir(root()).run()?;
    let program = target().join("release/hot-paths");
    let listed = command(&program).output()?;
    let mut lines = listed.lines();
    let calls: f64 = lines.next().unwrap_or_default().parse()?;
    let mut counts = Counts::new();
    for path in lines {
        let log = target().join("callgrind.log");
        callgrind(&log).args([&program]).args([path]).run()?;
        let said = fs::read_to_string(&log)?;
        let total = collected(&said);
        let total = total.ok_or_else(|| format!("nothing was counted for {path}:\n{said}"))?;
        let count = (10.0 * total / calls).round() / 10.0;
        println!("{path:<36} {count:>7.1}");
        counts.insert(path.to_owned(), count);
    }
    Ok(counts)
}

fn callgrind(log: &Path) -> Call {
    command("valgrind")
        .args(["--tool=callgrind", "--toggle-collect=hot_paths::measured*"])
        .args([format!("--log-file={}", log.display())])
        .args(["--callgrind-out-file=/dev/null"])
}

/// The number in callgrind's line `==123== Collected : 2344043`.
fn collected(said: &str) -> Option<f64> {
    let line = said.lines().find(|line| line.contains("Collected :"))?;
    let total = line.rsplit(':').next()?.trim().parse().ok()?;
    // Nothing is counted where the loop was not found.
    (total > 0.0).then_some(total)
}

fn compare(counts: &Counts, budgets: &Map<String, Value>) -> Vec<String> {
    let mut problems = Vec::new();
    for (path, &count) in counts {
        let Some(budget) = budgets.get(path).and_then(Value::as_f64) else {
            problems.push(format!("{path} has no budget"));
            continue;
        };
        if count > budget * (1.0 + TOLERATED_SHARE) + TOLERATED {
            problems.push(format!(
                "{path} takes {count} instructions, its budget is {budget}"
            ));
        }
    }
    let gone = budgets.keys().filter(|path| !counts.contains_key(*path));
    problems.extend(gone.map(|path| format!("{path} has a budget and is not counted")));
    problems
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_path_over_its_budget_is_named_and_so_is_one_without() {
        let counts = |listed: &[(&str, f64)]| -> Counts {
            listed
                .iter()
                .map(|(path, count)| ((*path).into(), *count))
                .collect()
        };
        let budgets = json!({"closed": 100.0, "open": 50.0});
        let budgets = budgets.as_object().unwrap();
        let problems = |listed: &[(&str, f64)]| compare(&counts(listed), budgets);
        assert!(problems(&[("closed", 103.0), ("open", 50.0)]).is_empty());
        assert_eq!(
            problems(&[("closed", 103.1), ("half_open", 1.0)]),
            [
                "closed takes 103.1 instructions, its budget is 100",
                "half_open has no budget",
                "open has a budget and is not counted",
            ]
        );
    }

    #[test]
    fn a_run_in_which_nothing_was_counted_is_no_count() {
        assert_eq!(collected("==7== Collected : 2344043"), Some(2_344_043.0));
        assert_eq!(collected("==7== Collected : 0"), None);
        assert_eq!(collected("==7== error"), None);
    }
}
