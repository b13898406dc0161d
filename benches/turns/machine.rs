//! The machine and the programs of a run, for the head of the report.

use std::ffi::OsStr;
use std::fs;
use std::process::Command;

use super::peers;
use super::stage::Stage;
use super::subject::Kind;

/// Lines of Markdown about the CPU, the kernel, and the version of each program.
pub(crate) fn describe(stage: &Stage, cast: &[Kind]) -> Vec<String> {
    let cores = std::thread::available_parallelism().map_or(0, |cores| cores.get());
    let kernel = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    let mut lines = vec![format!(
        "{}, {cores} cores, Linux {}",
        cpu().unwrap_or_else(|| "a CPU of an unknown model".to_owned()),
        kernel.trim()
    )];
    let mut programs = vec![("Seriatim", version(&stage.seriatim, "--version"))];
    if stage.redis.is_some() {
        programs.push(("Redis", version("redis-server", "--version")));
    }
    for &kind in cast.iter().filter(|kind| kind.is_peer()) {
        let flag = if kind == Kind::Envoy {
            "--version"
        } else {
            "-v"
        };
        let version = peers::find(kind.name()).and_then(|program| version(program, flag));
        programs.push((kind.name(), version));
    }
    let programs: Vec<_> = programs
        .into_iter()
        .map(|(name, version)| format!("{name} {}", version.as_deref().unwrap_or("?")))
        .collect();
    lines.push(programs.join(", "));
    lines
}

fn cpu() -> Option<String> {
    let text = fs::read_to_string("/proc/cpuinfo").ok()?;
    let line = text.lines().find(|line| line.starts_with("model name"))?;
    Some(line.split_once(':')?.1.trim().to_owned())
}

/// The first number with a dot in what a program says about its version.
fn version(program: impl AsRef<OsStr>, flag: &str) -> Option<String> {
    let output = Command::new(program).arg(flag).output().ok()?;
    let text = [output.stdout, output.stderr].concat();
    let text = String::from_utf8_lossy(&text).into_owned();
    let is_number = |word: &&str| word.starts_with(|c: char| c.is_ascii_digit());
    text.split(|c: char| !c.is_ascii_alphanumeric() && c != '.')
        .filter(is_number)
        .find(|word| word.contains('.'))
        .map(str::to_owned)
}
