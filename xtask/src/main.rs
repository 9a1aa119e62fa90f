//! What the repository runs: set-up, tests and checks.

#![expect(
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "a command line for developers"
)]

mod bench;
mod instructions;
mod layers;
mod mutants;
mod setup;
mod step;

use std::env;
use std::error::Error;
use std::process::ExitCode;

use step::{Steps, cargo, command};

type Outcome = Result<(), Box<dyn Error>>;

const USAGE: &str = "usage: cargo xtask COMMAND

  test           set up what the tests need, and run all of them
  ci             test, and everything else that CI checks
  lint           formatting, clippy, rustdoc and the table of who may use whom
  interleavings  the lock-free machines under loom's schedules and random ones
  wheel          build the Python package and install it into target/venv
  bench          what a call costs beside the peers; writes benches/RESULTS.md
  instructions   the hot paths' instructions against their budgets
                 --write takes what was counted as the new budgets
  mutants        changes kailash-core bit by bit and looks for what no test notices;
                 mutants 1/4 does the first quarter";

fn main() -> ExitCode {
    let words: Vec<String> = env::args().skip(1).collect();
    let mut steps = Steps::default();
    let outcome = match words.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        ["test"] => test(&mut steps),
        ["ci"] => ci(&mut steps),
        ["lint"] => lint(&mut steps),
        ["interleavings"] => interleavings(&mut steps),
        ["wheel"] => setup::tools().and_then(|()| wheel(&mut steps)),
        ["bench"] => bench::run(),
        ["instructions"] => steps.check("instructions", instructions::check),
        ["instructions", "--write"] => steps.check("instructions", instructions::write),
        ["mutants"] => mutants::run(None),
        ["mutants", shard] => mutants::run(Some(shard)),
        _ => Err(USAGE.into()),
    };
    steps.print_table();
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{error}");
            ExitCode::FAILURE
        }
    }
}

fn ci(steps: &mut Steps) -> Outcome {
    setup::tools()?;
    lint(steps)?;
    setup::cargo_tool("cargo-deny")?;
    let deny = setup::tool("cargo-deny");
    let checks = [
        "check",
        "--hide-inclusion-graph",
        "bans",
        "licenses",
        "sources",
    ];
    steps.run("cargo-deny", command(deny).args(checks))?;
    interleavings(steps)?;
    steps.check("instructions", instructions::check)?;
    test(steps)
}

fn lint(steps: &mut Steps) -> Outcome {
    steps.check("layers", layers::check)?;
    steps.run("fmt", cargo("fmt").args(["--all", "--", "--check"]))?;
    let benches = ["--manifest-path", "benches/Cargo.toml", "--", "--check"];
    let benches = cargo("fmt").args(benches).current_dir(setup::root());
    steps.run("fmt of benches", benches)?;
    let clippy = ["--workspace", "--all-targets", "--all-features", "--locked"];
    let strict = ["--", "-D", "warnings"];
    steps.run("clippy", cargo("clippy").args(clippy).args(strict))?;
    // Its dependencies are the peers: a workspace and a folder of its own.
    let benches = cargo("check").args(["--locked"]);
    let benches = benches.env("CARGO_TARGET_DIR", setup::target().join("benches"));
    steps.run(
        "benches",
        benches.current_dir(setup::root().join("benches")),
    )?;
    let docs = ["--workspace", "--all-features", "--no-deps", "--locked"];
    // The command's page would have the name of the library's.
    let docs = cargo("doc")
        .args(docs)
        .args(["--lib", "--document-private-items"]);
    steps.run("rustdoc", docs.env("RUSTDOCFLAGS", "-D warnings"))
}

fn interleavings(steps: &mut Steps) -> Outcome {
    model(steps, "loom", "--cfg kailash_loom")?;
    model(steps, "shuttle", "--cfg kailash_shuttle")
}

/// Runs the tests of a model checker, whose atomics the flag puts into the machines, and those that
/// any checker can run.
fn model(steps: &mut Steps, checker: &'static str, flag: &str) -> Outcome {
    let tests = [
        "--package",
        "kailash-core",
        "--lib",
        "--release",
        "--locked",
        "--",
        checker,
        "interleaving",
    ];
    // A folder of its own: the flag would rebuild everything else.
    let target = setup::target().join(checker);
    let model = cargo("test").args(tests).env("RUSTFLAGS", flag);
    steps.run(checker, model.env("CARGO_TARGET_DIR", target))
}

fn test(steps: &mut Steps) -> Outcome {
    setup::tools()?;
    // The Python face is tested from Python.
    let all = [
        "--workspace",
        "--exclude",
        "kailash-python",
        "--all-features",
        "--locked",
    ];
    steps.run("rust tests", cargo("test").args(all))?;
    wheel(steps)?;
    let python = || command(setup::python());
    steps.run("python tests", python().args(["-m", "pytest", "-q"]))?;
    // Outside the repository, so that the installed package is what is looked at.
    let stubs = python()
        .args(["-m", "mypy.stubtest", "kailash"])
        .current_dir(setup::venv());
    steps.run("python stubs", stubs)
}

fn wheel(steps: &mut Steps) -> Outcome {
    setup::venv_with_tests()?;
    let install = [
        "-m",
        "pip",
        "install",
        "--quiet",
        "--no-deps",
        "--force-reinstall",
        ".",
    ];
    steps.run("python package", command(setup::python()).args(install))
}
