//! Mutation testing of kailash-core: each change that no test notices is a test that is missing.

use std::error::Error;
use std::fs;

use serde_json::Value;

use crate::Outcome;
use crate::setup::{self, root, target};
use crate::step::command;

/// The share of changes that the tests must notice.
const BAR: f64 = 0.95;

/// Runs all mutants, or a part of them such as `1/4`.
pub(crate) fn run(shard: Option<&str>) -> Outcome {
    setup::cargo_tool("cargo-mutants")?;
    let folder = target().join("mutants");
    fs::create_dir_all(&folder)?;
    // What an earlier run left says nothing about this one.
    let outcomes = folder.join("mutants.out/outcomes.json");
    if outcomes.is_file() {
        fs::remove_file(&outcomes)?;
    }
    let core = ["mutants", "--package", "kailash-core"];
    // Tests are no part of what is tested; cargo-mutants knows only those marked by `cfg(test)` alone.
    let without = [
        "--exclude=**/*_tests.rs",
        "--exclude=**/*model.rs",
        "--exclude-re=tests::",
    ];
    let mutants = command(setup::tool("cargo-mutants"))
        .args(core)
        .args(without)
        .args(["--test-package=kailash-core", "--minimum-test-timeout=30"])
        .args(["--no-shuffle", "--colors=never", "--output"])
        .args([&folder])
        // A few histories find what many do.
        .env("PROPTEST_CASES", "64")
        .env("CARGO_TARGET_DIR", folder.join("target"))
        .current_dir(root());
    let mut mutants = match shard {
        Some(shard) => mutants.args(["--shard", &from_zero(shard)?]),
        None => mutants,
    };
    // It fails wherever a mutant was missed; what counts is the share, below.
    let ran = mutants.run();
    let Ok(outcomes) = fs::read_to_string(&outcomes) else {
        return Err(format!("cargo-mutants left no outcomes: {ran:?}").into());
    };
    judge(&serde_json::from_str(&outcomes)?)
}

/// `1/4` is the first of four here, and `0/4` there.
fn from_zero(shard: &str) -> Result<String, Box<dyn Error>> {
    let parts = shard.split_once('/');
    let parts =
        parts.and_then(|(part, all)| Some((part.parse::<u32>().ok()?, all.parse::<u32>().ok()?)));
    match parts {
        Some((part, all)) if (1..=all).contains(&part) => Ok(format!("{}/{all}", part - 1)),
        _ => Err(format!("{shard} is no part such as 1/4").into()),
    }
}

fn judge(outcomes: &Value) -> Outcome {
    let number = |name: &str| outcomes[name].as_u64().unwrap_or(0);
    let [caught, missed, timeout, unviable] =
        ["caught", "missed", "timeout", "unviable"].map(number);
    let listed = outcomes["outcomes"].as_array().into_iter().flatten();
    for outcome in listed.filter(|outcome| outcome["summary"] == "MissedMutant") {
        println!("missed: {}", outcome["scenario"]["Mutant"]["name"]);
    }
    // A mutant that hangs is noticed: by whoever waits for the tests.
    let noticed = caught + timeout;
    let all = noticed + missed;
    let share = noticed as f64 / all.max(1) as f64;
    println!(
        "{all} mutants: {caught} caught, {timeout} timed out, {missed} missed \
         ({unviable} did not build): {:.1} %",
        share * 100.0
    );
    if all == 0 || share < BAR {
        return Err(format!("at least {} % must be noticed", BAR * 100.0).into());
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn parts_are_counted_from_one() {
        assert_eq!(from_zero("1/4").unwrap(), "0/4");
        assert_eq!(from_zero("4/4").unwrap(), "3/4");
        for wrong in ["0/4", "5/4", "1", "a/b", "1/0"] {
            assert!(from_zero(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn less_than_the_bar_fails_and_so_does_nothing_at_all() {
        let judged = |caught, missed| judge(&json!({"caught": caught, "missed": missed})).is_ok();
        assert!(judged(95, 5));
        assert!(!judged(94, 6));
        assert!(!judged(0, 0));
    }
}
