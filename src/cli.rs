//! The command line: what is asked for, and the process' exit code.

use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::{Parser, Subcommand};
use tokio::runtime::{Builder, Runtime};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::mpsc;

use crate::app;
use crate::config::{Config, LogFormat};
use crate::reload;
use crate::telemetry::{self, Format, Level, Telemetry};

mod demo;
mod presets;

/// Lets each chat session of an AI agent through one turn at a time.
#[derive(Debug, Parser)]
#[command(version, about)]
struct Arguments {
    /// The configuration file
    #[arg(
        long,
        global = true,
        default_value = "config.toml",
        value_name = "FILE"
    )]
    config: PathBuf,
    #[command(subcommand)]
    command: Option<Command>,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Serve (the default)
    Run,
    /// Check the configuration and print what it comes to
    Check,
    /// List the presets for backends that people run, or print one as TOML
    Presets(presets::Presets),
    /// Show a small streaming agent behind the proxy, and how to try it
    Demo(demo::Demo),
}

/// Done.
const OK: u8 = 0;
/// Could not start.
const COULD_NOT_START: u8 = 1;
/// The configuration can't be used (`EX_CONFIG` of sysexits.h).
const BAD_CONFIGURATION: u8 = 78;

/// Does what the command line asks for.
pub fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let code = match arguments.command {
        None | Some(Command::Run) => with_config(&arguments.config, |config, text| {
            run(config, text, arguments.config.clone())
        }),
        Some(Command::Check) => with_config(&arguments.config, |config, _| {
            say(config.to_string());
            for remark in config.remarks() {
                complain(format!("note: {remark}"));
            }
            OK
        }),
        Some(Command::Presets(presets)) => presets.show(),
        Some(Command::Demo(demo)) => in_a_runtime(async move { demo.run().await }),
    };
    ExitCode::from(code)
}

fn with_config(path: &Path, go_on: impl FnOnce(Config, String) -> u8) -> u8 {
    match Config::load(path) {
        Ok((config, text)) => go_on(config, text),
        Err(problems) => {
            complain(problems.to_string().trim_end());
            BAD_CONFIGURATION
        }
    }
}

fn run(config: Config, text: String, path: PathBuf) -> u8 {
    let telemetry = match tell(&config) {
        Ok(telemetry) => telemetry,
        Err(error) => return cant_start(error),
    };
    let code = in_a_runtime(serve(config, text, path, telemetry.level()));
    drop(telemetry);
    code
}

/// Serves until a signal, then drains; a second signal ends the draining. The file is loaded anew when
/// it changes, and at SIGHUP.
async fn serve(config: Config, text: String, path: PathBuf, level: Level) -> u8 {
    for remark in config.remarks() {
        tracing::warn!("{remark}");
    }
    let signals = [
        SignalKind::terminate(),
        SignalKind::interrupt(),
        SignalKind::hangup(),
    ];
    let [mut terminate, mut interrupt, mut hangup] = match signals.map(signal) {
        [Ok(terminate), Ok(interrupt), Ok(hangup)] => [terminate, interrupt, hangup],
        [Err(error), _, _] | [_, Err(error), _] | [_, _, Err(error)] => return cant_start(error),
    };
    let running = match app::start(config) {
        Ok(running) => running,
        Err(error) => return cant_start(error),
    };
    tracing::info!(address = %running.proxy_addr(), version = env!("CARGO_PKG_VERSION"), "serving");
    let reloader = running.reloader();
    let (ask, asked) = mpsc::channel(1);
    let metrics = running.metrics();
    let swap = |config: Config| {
        let wanted = config.log.level;
        reloader.swap(config).inspect(|()| level.set(wanted))
    };
    let reloading = reload::watch(path, text, asked, swap, &metrics);
    let hangups = async {
        while hangup.recv().await.is_some() {
            // Full: it is about to be read.
            let _ = ask.try_send(());
        }
    };
    tokio::select! {
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
        () = async { tokio::join!(reloading, hangups); } => {}
    }
    tracing::info!("draining; a second signal aborts what still runs");
    let drain = running.drain();
    let stopping = running.stop();
    let again = async {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
        drain.abort();
        std::future::pending::<()>().await;
    };
    let stopped = tokio::select! {
        stopped = stopping => stopped,
        // Never: it aborts, and `stopping` then comes to its end.
        () = again => return OK,
    };
    tracing::info!(
        in_time = stopped.in_time,
        all_released = stopped.all_released,
        "stopped"
    );
    OK
}

fn tell(config: &Config) -> io::Result<Telemetry> {
    let format = match config.log.format {
        LogFormat::Text => Format::Text,
        LogFormat::Json => Format::Json,
    };
    telemetry::init(format, config.log.level)
}

/// The main thread's runtime: it accepts connections and waits for signals; workers have their own.
fn in_a_runtime(work: impl Future<Output = u8>) -> u8 {
    let runtime: io::Result<Runtime> = Builder::new_current_thread().enable_all().build();
    match runtime {
        Ok(runtime) => runtime.block_on(work),
        Err(error) => cant_start(error),
    }
}

fn cant_start(error: impl std::fmt::Display) -> u8 {
    complain(format!("seriatim could not start: {error}"));
    COULD_NOT_START
}

/// Writes to standard output, which may be closed: then nobody wants to know.
fn say(text: impl std::fmt::Display) {
    let _ = writeln!(io::stdout(), "{text}");
}

/// Writes to standard error.
fn complain(text: impl std::fmt::Display) {
    let _ = writeln!(io::stderr(), "{text}");
}
