//! Who may use whom. A new arrow between crates is a change of the design: it is made here first.

use std::fs;
use std::path::Path;

use serde_json::Value;

use crate::Outcome;
use crate::setup::root;
use crate::step::cargo;

/// Each crate of ours, and those of ours that it may use outside its tests.
const MAY_USE: [(&str, &[&str]); 8] = [
    ("kailash-core", &[]),
    ("kailash", &["kailash-core"]),
    ("kailash-workflow", &["kailash"]),
    ("kailash-cli", &["kailash", "kailash-workflow"]),
    (
        "kailash-python",
        &["kailash-core", "kailash", "kailash-workflow"],
    ),
    ("hot-paths", &["kailash"]),
    ("test-servers", &[]),
    ("xtask", &[]),
];

/// Checks the manifests against the table, and that the core stays without std, clock and friends.
pub(crate) fn check() -> Outcome {
    let metadata = cargo("metadata")
        .args(["--no-deps", "--format-version", "1", "--locked"])
        .current_dir(root())
        .output()?;
    let metadata: Value = serde_json::from_str(&metadata)?;
    let mut problems = Vec::new();
    for package in metadata["packages"].as_array().into_iter().flatten() {
        problems.extend(problems_of(package));
    }
    problems.extend(core_problems(&root().join("crates/kailash-core/src"))?);
    if problems.is_empty() {
        println!("{} crates use what they may", MAY_USE.len());
        return Ok(());
    }
    Err(problems.join("\n").into())
}

fn problems_of(package: &Value) -> Vec<String> {
    let name = package["name"].as_str().unwrap_or_default();
    let Some((_, allowed)) = MAY_USE.iter().find(|(known, _)| *known == name) else {
        return vec![format!("{name} is not in the table of xtask/src/layers.rs")];
    };
    let dependencies = package["dependencies"].as_array().into_iter().flatten();
    let used = dependencies.filter(|dependency| dependency["kind"] != "dev");
    let names = used.filter_map(|dependency| dependency["name"].as_str());
    let mut problems = Vec::new();
    for used in names {
        let ours = MAY_USE.iter().any(|(known, _)| *known == used);
        if ours && !allowed.contains(&used) {
            problems.push(format!("{name} may not use {used}"));
        } else if !ours && name == "kailash-core" {
            problems.push(format!(
                "kailash-core depends on nothing, not even on {used}"
            ));
        }
    }
    problems
}

/// `no_std` makes a clock or a socket a compile error, unless `std` is let in by hand.
fn core_problems(folder: &Path) -> Result<Vec<String>, std::io::Error> {
    let mut problems = Vec::new();
    for entry in fs::read_dir(folder)? {
        let path = entry?.path();
        if path.is_dir() {
            problems.extend(core_problems(&path)?);
            continue;
        }
        let text = fs::read_to_string(&path)?;
        let mut before = "";
        for line in text.lines() {
            if line.trim() == "extern crate std;" && !before.contains("cfg(test)") {
                problems.push(format!("{}: lets std in", path.display()));
            }
            before = line;
        }
    }
    Ok(problems)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn the_workspace_keeps_the_table() {
        check().unwrap();
    }

    #[test]
    fn an_arrow_that_is_not_in_the_table_is_found() {
        let uses = |name: &str, used: &str, kind: Option<&str>| {
            let dependency = json!({"name": used, "kind": kind});
            problems_of(&json!({"name": name, "dependencies": [dependency]}))
        };
        assert_eq!(
            uses("kailash", "kailash-workflow", None),
            ["kailash may not use kailash-workflow"]
        );
        assert_eq!(uses("kailash-core", "serde", None).len(), 1);
        assert_eq!(uses("kailash-new", "kailash", None).len(), 1);
        assert!(uses("kailash-core", "proptest", Some("dev")).is_empty());
        assert!(uses("kailash", "tokio", None).is_empty());
    }
}
