//! The command line: what is asked for, and the process' exit code.

use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::{Parser, Subcommand};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use tokio::runtime::{Builder, Runtime};
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::mpsc;

use crate::app;
use crate::config::{Config, LogConfig, LogFormat, LogIds};
use crate::logging::{self, LogFilter, LogStyle, LoggedEvents, Logging};
use crate::redact;
use crate::reload;

mod demo;
mod drain;
mod explain;
mod health;
mod locks;
mod options;
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
    command: Option<CliCommand>,
}

#[derive(Debug, Subcommand)]
enum CliCommand {
    /// Serve (the default)
    Run,
    /// Check the configuration and print what it comes to
    Check,
    /// Say which route takes a request, what its alternatives come to, and which lock it needs
    Explain(explain::ExplainArgs),
    /// See who holds which session, and free one
    Locks(locks::LocksArgs),
    /// List the presets for backends that people run, or print one as TOML
    Presets(presets::PresetsArgs),
    /// Ask the process that serves by this configuration how it does
    Health(health::HealthArgs),
    /// Tell the process that serves in this container to drain, as a preStop hook does
    Drain(drain::DrainArgs),
    /// Tell what options there are, and what each does
    Options(options::OptionsArgs),
    /// Show a small streaming agent behind the proxy, and how to try it
    Demo(demo::DemoArgs),
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
        None | Some(CliCommand::Run) => with_config(&arguments.config, |config, text| {
            run(config, text, arguments.config.clone())
        }),
        Some(CliCommand::Check) => with_config(&arguments.config, |config, _| {
            say(config.to_string());
            for remark in config.remarks() {
                complain(format!("note: {remark}"));
            }
            OK
        }),
        Some(CliCommand::Explain(explain)) => {
            with_config(&arguments.config, |config, _| explain.show(&config))
        }
        Some(CliCommand::Locks(locks)) => {
            with_config(&arguments.config, |config, _| locks.run(&config))
        }
        Some(CliCommand::Presets(presets)) => presets.show(),
        Some(CliCommand::Health(health)) => {
            in_a_runtime(async move { health.ask(&arguments.config).await })
        }
        Some(CliCommand::Drain(drain)) => drain.tell(),
        Some(CliCommand::Options(options)) => options.show(),
        Some(CliCommand::Demo(demo)) => in_a_runtime(async move { demo.run().await }),
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
    let code = in_a_runtime(serve(config, text, path, telemetry.filter()));
    drop(telemetry);
    code
}

/// Lets this process open as many files as it may at all. A connection is one, and who has none left accepts
/// no probe either.
fn allow_files(connections: usize) {
    let limit = getrlimit(Resource::Nofile);
    let most = Rlimit {
        current: limit.maximum,
        ..limit
    };
    let limit = setrlimit(Resource::Nofile, most).map_or(limit, |()| most);
    // Each connection, and the one to its backend.
    let needed = 2 * u64::try_from(connections).unwrap_or(u64::MAX / 2);
    if let Some(allowed) = limit.current.filter(|allowed| *allowed < needed) {
        tracing::warn!(
            allowed,
            needed,
            "limits.max_connections may need more files than the system allows to be open (ulimit -n)"
        );
    }
}

/// Serves until a signal, then drains; a second signal ends the draining, unless the first was
/// `seriatim drain`'s. The file is loaded anew when it changes, and at SIGHUP.
async fn serve(config: Config, text: String, path: PathBuf, filter: LogFilter) -> u8 {
    for remark in config.remarks() {
        tracing::warn!("{remark}");
    }
    allow_files(config.limits.max_connections);
    let (mut terminate, mut interrupt, mut hangup, mut leaving) = match signals() {
        Ok(signals) => signals,
        Err(error) => return cant_start(error),
    };
    let running = match app::start(config) {
        Ok(running) => running,
        Err(error) => return cant_start(error),
    };
    tracing::info!(address = %running.proxy_addr(), admin = %running.admin_addr(), version = env!("CARGO_PKG_VERSION"), "serving");
    let reloader = running.reloader();
    let (ask, asked) = mpsc::channel(1);
    let metrics = running.metrics();
    let swap = |config: Config| {
        let wanted = config.log;
        reloader
            .swap(config)
            .inspect(|()| filter.set(told(&wanted)))
    };
    let reloading = reload::watch(path, text, asked, swap, &metrics);
    let hangups = async {
        while hangup.recv().await.is_some() {
            // Full: it is about to be read.
            let _ = ask.try_send(());
        }
    };
    let is_told = tokio::select! {
        _ = terminate.recv() => false,
        _ = interrupt.recv() => false,
        _ = leaving.recv() => true,
        () = async { tokio::join!(reloading, hangups); } => false,
    };
    tracing::info!("draining; a second signal aborts what still runs");
    let drain = running.drain();
    let stopping = running.stop();
    let again = async {
        // Whoever was told before it was to stop gets its SIGTERM yet, and that is no second one.
        for _ in 0..if is_told { 2 } else { 1 } {
            tokio::select! {
                _ = terminate.recv() => {}
                _ = interrupt.recv() => {}
            }
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

/// SIGTERM, SIGINT, SIGHUP, and SIGUSR1, by which `seriatim drain` tells.
fn signals() -> io::Result<(Signal, Signal, Signal, Signal)> {
    Ok((
        signal(SignalKind::terminate())?,
        signal(SignalKind::interrupt())?,
        signal(SignalKind::hangup())?,
        signal(SignalKind::user_defined1())?,
    ))
}

/// Begins to tell.
fn tell(config: &Config) -> io::Result<Logging> {
    let format = match config.log.format {
        LogFormat::Text => LogStyle::Text,
        LogFormat::Json => LogStyle::Json,
    };
    logging::hide_panics(redact::is_enabled);
    logging::init(format, told(&config.log))
}

/// What is to be told; ids are hidden from now on, or shown.
fn told(log: &LogConfig) -> LoggedEvents {
    let hidden = log.ids == LogIds::Hash;
    redact::set_enabled(hidden);
    LoggedEvents {
        level: log.level,
        own_only: hidden,
    }
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
