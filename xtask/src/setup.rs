//! What the tests and checks need beside Rust, found or installed.

use std::env;
use std::error::Error;
use std::fs;
use std::path::{Path, PathBuf};

use crate::Outcome;
use crate::step::{cargo, command};

/// A program that the tests start, and the Debian package that brings it.
const PROGRAMS: [(&str, &str); 5] = [
    ("initdb", "postgresql"),
    ("mariadbd", "mariadb-server"),
    ("redis-server", "redis-server"),
    ("python3", "python3"),
    ("setpriv", "util-linux"),
];

/// The oldest Python that the package supports.
const PYTHON: (u32, u32) = (3, 11);

/// What counts instructions, and the Debian package that brings it.
const VALGRIND: [(&str, &str); 1] = [("valgrind", "valgrind")];

/// What is built under the target folder: name, version and features.
const CARGO_TOOLS: [(&str, &str, &[&str]); 2] = [
    ("cargo-deny", "0.20.2", &["--no-default-features"]),
    ("cargo-mutants", "27.1.0", &[]),
];

pub(crate) fn root() -> PathBuf {
    let xtask = Path::new(env!("CARGO_MANIFEST_DIR"));
    xtask.parent().expect("xtask lies in the repository").into()
}

pub(crate) fn target() -> PathBuf {
    env::var_os("CARGO_TARGET_DIR").map_or_else(|| root().join("target"), PathBuf::from)
}

pub(crate) fn venv() -> PathBuf {
    target().join("venv")
}

pub(crate) fn python() -> PathBuf {
    venv().join("bin/python")
}

/// A program that `cargo install` has put under the target folder.
pub(crate) fn tool(name: &str) -> PathBuf {
    target().join("tools/bin").join(name)
}

/// Finds the programs that the tests start; as root on Debian, installs those that are missing.
pub(crate) fn tools() -> Outcome {
    let mut packages = missing(&PROGRAMS);
    let venv_works = find("python3").is_some_and(|python| {
        command(python)
            .args(["-c", "import ensurepip"])
            .output()
            .is_ok()
    });
    if !venv_works {
        packages.push("python3-venv");
    }
    install(&packages)
}

/// Finds valgrind; as root on Debian, installs it if it is missing.
pub(crate) fn valgrind() -> Outcome {
    install(&missing(&VALGRIND))
}

fn missing(programs: &[(&'static str, &'static str)]) -> Vec<&'static str> {
    let absent = programs
        .iter()
        .filter(|(program, _)| find(program).is_none());
    absent.map(|(_, package)| *package).collect()
}

fn install(packages: &[&str]) -> Outcome {
    if packages.is_empty() {
        return Ok(());
    }
    let listed = packages.join(" ");
    if !is_root() || find("apt-get").is_none() {
        return Err(format!("this needs: apt-get install {listed}").into());
    }
    println!("installing {listed}");
    let apt = || command("apt-get").env("DEBIAN_FRONTEND", "noninteractive");
    apt().args(["update", "-qq"]).run()?;
    let install = ["install", "-y", "-qq", "--no-install-recommends"];
    apt().args(install).args(packages).run()
}

/// The program's path: Debian keeps PostgreSQL's and some daemons' out of `PATH`.
fn find(program: &str) -> Option<PathBuf> {
    let path = env::var_os("PATH").unwrap_or_default();
    let mut folders: Vec<PathBuf> = env::split_paths(&path).collect();
    folders.push("/usr/sbin".into());
    let postgres = fs::read_dir("/usr/lib/postgresql").into_iter().flatten();
    folders.extend(postgres.flatten().map(|version| version.path().join("bin")));
    folders
        .iter()
        .map(|folder| folder.join(program))
        .find(|path| path.is_file())
}

fn is_root() -> bool {
    let id = command("id").args(["-u"]).output();
    id.is_ok_and(|id| id.trim() == "0")
}

/// Makes `target/venv` and installs what the Python tests import, as pyproject.toml lists it.
pub(crate) fn venv_with_tests() -> Outcome {
    make_venv(&venv())?;
    pip_install(&venv(), test_requirements()?)
}

/// Makes a virtual environment in this folder, unless there is one.
pub(crate) fn make_venv(folder: &Path) -> Outcome {
    let python3 = find("python3").ok_or("python3 is missing")?;
    let version = "import sys; print(*sys.version_info[:2])";
    let version = command(&python3).args(["-c", version]).output()?;
    let mut parts = version.split_whitespace().map(str::parse);
    let (Some(Ok(major)), Some(Ok(minor))) = (parts.next(), parts.next()) else {
        return Err(format!("python3 says it is version {version}").into());
    };
    if (major, minor) < PYTHON {
        let (needs_major, needs_minor) = PYTHON;
        let needs = format!("{needs_major}.{needs_minor}");
        return Err(format!("python3 is {major}.{minor}, and {needs} or later is needed").into());
    }
    if folder.join("bin/python").is_file() {
        return Ok(());
    }
    command(python3).args(["-m", "venv"]).args([folder]).run()
}

/// Installs packages, or a folder that is one, into a virtual environment.
pub(crate) fn pip_install(
    venv: &Path,
    what: impl IntoIterator<Item: AsRef<std::ffi::OsStr>>,
) -> Outcome {
    let pip = [
        "-m",
        "pip",
        "install",
        "--quiet",
        "--disable-pip-version-check",
    ];
    command(venv.join("bin/python"))
        .args(pip)
        .args(what)
        .current_dir(root())
        .run()
}

fn test_requirements() -> Result<Vec<String>, Box<dyn Error>> {
    let read = "import tomllib; print(*tomllib.load(open('pyproject.toml', 'rb'))\
                ['project']['optional-dependencies']['test'], sep='\\n')";
    let listed = command(python())
        .args(["-c", read])
        .current_dir(root())
        .output()?;
    Ok(listed.lines().map(str::to_owned).collect())
}

/// Builds a tool of cargo's under the target folder, unless it is there.
pub(crate) fn cargo_tool(name: &str) -> Outcome {
    if tool(name).is_file() {
        return Ok(());
    }
    let listed = CARGO_TOOLS.iter().find(|(listed, ..)| *listed == name);
    let (_, version, features) = listed.ok_or_else(|| format!("no version of {name} is known"))?;
    println!("installing {name} {version}");
    cargo("install")
        .args([name, "--version", version, "--locked", "--quiet"])
        .args(*features)
        .args(["--root"])
        .args([target().join("tools")])
        .run()
}
