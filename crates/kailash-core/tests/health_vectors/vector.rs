//! A health vector as it is written, and where they all are.

use std::collections::BTreeMap;
use std::fs;
use std::path::PathBuf;

use serde::Deserialize;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Vector {
    #[serde(rename = "about")]
    _about: String,
    pub(crate) monitor: Settings,
    pub(crate) checks: BTreeMap<String, Check>,
    pub(crate) steps: Vec<Step>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Settings {
    pub(crate) alert_threshold: u32,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Check {
    pub(crate) critical: bool,
    pub(crate) alert_threshold: Option<u32>,
}

/// One result of every check, what it changes, and how the whole is afterwards.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Step {
    pub(crate) results: BTreeMap<String, String>,
    pub(crate) news: Vec<Told>,
    pub(crate) overall: String,
}

#[derive(Debug, Deserialize, PartialEq)]
#[serde(deny_unknown_fields)]
pub(crate) struct Told {
    pub(crate) check: String,
    pub(crate) news: String,
    pub(crate) level: Option<String>,
}

/// Every vector; says of which file each is when it comes to it.
#[expect(clippy::print_stdout, reason = "says which file a failed test was at")]
pub(crate) fn all() -> impl Iterator<Item = Vector> {
    let folder = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../vectors/health");
    let files = fs::read_dir(folder).unwrap();
    let files: Vec<PathBuf> = files.map(|file| file.unwrap().path()).collect();
    assert!(!files.is_empty(), "there are vectors");
    files.into_iter().map(|path| {
        println!("{}", path.display());
        serde_json::from_str(&fs::read_to_string(&path).unwrap()).unwrap()
    })
}
