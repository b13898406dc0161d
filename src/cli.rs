//! The command line: reads the arguments, runs a command, and returns the exit code.
//!
//! Invariant: standard output has only a command's result; errors and the log go to standard error.

use std::io;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::error::ErrorKind;
use clap::{Args, CommandFactory, Parser, Subcommand};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use tokio::runtime::Builder;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::mpsc;

use crate::app;
use crate::config::{Config, LogConfig, LogFormat, LogIds};
use crate::logging::{self, LogFilter, LogStyle, LoggedEvents, Logging};
use crate::redact;
use crate::reload;
use terminal::{print, print_error, print_json};

mod check;
mod demo;
mod drain;
mod errors;
mod explain;
mod health;
mod help;
mod locks;
mod options;
mod presets;
mod terminal;

/// The arguments of the `seriatim` command.
#[derive(Debug, Parser)]
#[command(
    version,
    about,
    after_help = "Exit codes of the proxy: 0 stopped by a signal, 1 it could not start, 2 wrong arguments, \
                  78 invalid configuration."
)]
struct Arguments {
    /// The configuration file [default: config.toml]
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    #[command(subcommand)]
    command: Option<CliCommand>,
}

/// The configuration file of a command that reads it. A command without this option doesn't accept it.
#[derive(Debug, Default, Args)]
struct ConfigOption {
    /// The configuration file [default: config.toml]
    #[arg(
        id = "config_file",
        long = "config",
        global = true,
        value_name = "FILE"
    )]
    file: Option<PathBuf>,
}

#[derive(Debug, Subcommand)]
enum CliCommand {
    /// Run the proxy (default)
    Run(ConfigOption),
    /// Check the configuration and print it with all defaults
    Check(check::CheckArgs),
    /// Show which route a request matches, how its ids are read, and which lock it takes
    Explain(explain::ExplainArgs),
    /// List, show, release and interrupt session locks, and dequeue waiting requests
    Locks(locks::LocksArgs),
    /// List the presets for common backends, or print one as TOML
    Presets(presets::PresetsArgs),
    /// Check the health of the running process, for a container's health check
    Health(health::HealthArgs),
    /// Make a running process drain, for a preStop hook
    ///
    /// With --config, it is the process whose admin.listen is that of the file. Without it, process 1 of the
    /// container, or the only other process that runs seriatim.
    Drain(drain::DrainArgs),
    /// List all configuration options and describe them
    Options(options::OptionsArgs),
    /// List the error codes, or explain one
    Errors(errors::ErrorsArgs),
    /// Run a small demo agent behind the proxy, and show three turns
    Demo(demo::DemoArgs),
    /// Print the completions for a shell
    Completions(help::CompletionsArgs),
    /// Print the manual page of a command, in roff
    Man(help::ManArgs),
}

/// The command did what it was asked to do.
const OK: u8 = 0;
/// The process could not start.
const COULD_NOT_START: u8 = 1;
/// The configuration is invalid (`EX_CONFIG` of sysexits.h).
const BAD_CONFIGURATION: u8 = 78;

/// Runs the command of the process's arguments, and returns its exit code.
pub fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let command = arguments.command.unwrap_or_default();
    let code = match command.with_config_file(arguments.config) {
        CliCommand::Run(config) => {
            with_config(&config, |config, text, path| run(config, text, path.into()))
        }
        CliCommand::Check(check) => check.run(),
        CliCommand::Explain(explain) => explain.run(),
        CliCommand::Locks(locks) => locks.run(),
        CliCommand::Presets(presets) => presets.show(),
        CliCommand::Health(health) => block_on(async move { health.run().await }),
        CliCommand::Drain(drain) => drain.run(),
        CliCommand::Options(options) => options.show(),
        CliCommand::Errors(errors) => errors.show(),
        CliCommand::Demo(demo) => block_on(async move { demo.run().await }),
        CliCommand::Completions(completions) => completions.show(),
        CliCommand::Man(man) => man.show(),
    };
    ExitCode::from(code)
}

// === impl CliCommand ===

impl Default for CliCommand {
    fn default() -> Self {
        Self::Run(ConfigOption::default())
    }
}

impl CliCommand {
    /// This command with the file of a `--config` before the command's name. Ends the process if the command
    /// reads no file, or has one of its own.
    fn with_config_file(mut self, file: Option<PathBuf>) -> Self {
        let Some(file) = file else {
            return self;
        };
        let conflict = match self.config_option() {
            Some(ConfigOption { file: own @ None }) => {
                *own = Some(file);
                return self;
            }
            Some(_) => "--config is given twice",
            None => "this command reads no configuration file: leave out --config",
        };
        Arguments::command()
            .error(ErrorKind::ArgumentConflict, conflict)
            .exit()
    }

    fn config_option(&mut self) -> Option<&mut ConfigOption> {
        match self {
            Self::Run(config) => Some(config),
            Self::Check(check) => Some(&mut check.config),
            Self::Explain(explain) => Some(&mut explain.config),
            Self::Locks(locks) => Some(&mut locks.config),
            Self::Health(health) => Some(&mut health.config),
            Self::Drain(drain) => Some(&mut drain.config),
            Self::Presets(_)
            | Self::Options(_)
            | Self::Errors(_)
            | Self::Demo(_)
            | Self::Completions(_)
            | Self::Man(_) => None,
        }
    }
}

// === impl ConfigOption ===

impl ConfigOption {
    fn path(&self) -> &Path {
        self.file.as_deref().unwrap_or(Path::new("config.toml"))
    }
}

/// Loads the configuration and runs a command with it, with the file's text and with the file's path.
fn with_config(option: &ConfigOption, command: impl FnOnce(Config, String, &Path) -> u8) -> u8 {
    let path = option.path();
    match Config::load(path) {
        Ok((config, text)) => command(config, text, path),
        Err(problems) => {
            print_error(problems.to_string().trim_end());
            BAD_CONFIGURATION
        }
    }
}

fn run(config: Config, text: String, path: PathBuf) -> u8 {
    let logging = match start_logging(&config) {
        Ok(logging) => logging,
        Err(error) => return cant_start(error),
    };
    let code = block_on(serve(config, text, path, logging.filter.clone()));
    drop(logging);
    code
}

/// Raises the limit of open files to its maximum. Each connection is an open file; a process at the limit
/// can't even accept a probe.
fn raise_file_limit(connections: usize) {
    let limit = getrlimit(Resource::Nofile);
    let max = Rlimit {
        current: limit.maximum,
        ..limit
    };
    let limit = setrlimit(Resource::Nofile, max).map_or(limit, |()| max);
    // One for the client's connection, one for the backend's.
    let needed = 2 * u64::try_from(connections).unwrap_or(u64::MAX / 2);
    if let Some(allowed) = limit.current.filter(|allowed| *allowed < needed) {
        tracing::warn!(
            allowed,
            needed,
            "limits.max_connections may need more open files than the system allows; raise ulimit -n"
        );
    }
}

/// Serves until a signal, then drains. SIGTERM or SIGINT while draining aborts the remaining turns; after
/// `seriatim drain` the first of them doesn't, because it is the regular SIGTERM of the container. The
/// configuration file is reloaded when it changes, and at SIGHUP.
async fn serve(config: Config, text: String, path: PathBuf, filter: LogFilter) -> u8 {
    for remark in config.remarks() {
        tracing::warn!(file = %path.display(), "{remark}");
    }
    raise_file_limit(config.limits.max_connections);
    let Signals {
        mut terminate,
        mut interrupt,
        mut hangup,
        mut drain_command,
    } = match Signals::new() {
        Ok(signals) => signals,
        Err(error) => return cant_start(error),
    };
    let running = match app::start(config) {
        Ok(running) => running,
        Err(error) => return cant_start(error),
    };
    tracing::info!(address = %running.proxy_addr(), admin = %running.admin_addr(), version = env!("CARGO_PKG_VERSION"), "serving");
    let reloader = running.reloader();
    let (request, requests) = mpsc::channel(1);
    let metrics = running.metrics();
    let swap = |config: Config| {
        let log = config.log;
        reloader
            .swap(config)
            .inspect(|()| filter.set(logged_events(&log)))
    };
    let reloading = reload::watch(path, text, requests, swap, &metrics);
    let hangups = async {
        while hangup.recv().await.is_some() {
            // If the channel is full, a reload is pending already.
            let _ = request.try_send(());
        }
    };
    let is_drain_command = tokio::select! {
        _ = terminate.recv() => false,
        _ = interrupt.recv() => false,
        _ = drain_command.recv() => true,
        () = async { tokio::join!(reloading, hangups); } => false,
    };
    tracing::info!("draining; a second signal aborts the turns that still run");
    let drain = running.drain();
    let stopping = running.stop();
    let aborting = async {
        // After `seriatim drain`, the container's regular SIGTERM is still to come.
        for _ in 0..if is_drain_command { 2 } else { 1 } {
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
        // Never resolves; it makes `stopping` end sooner.
        () = aborting => return OK,
    };
    tracing::info!(
        in_time = stopped.in_time,
        all_released = stopped.all_released,
        "stopped"
    );
    OK
}

/// The signals that the serving process handles.
struct Signals {
    /// SIGTERM, which drains.
    terminate: Signal,
    /// SIGINT, which drains.
    interrupt: Signal,
    /// SIGHUP, which reloads the configuration.
    hangup: Signal,
    /// SIGUSR1, which `seriatim drain` sends.
    drain_command: Signal,
}

impl Signals {
    fn new() -> io::Result<Self> {
        Ok(Self {
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
            hangup: signal(SignalKind::hangup())?,
            drain_command: signal(SignalKind::user_defined1())?,
        })
    }
}

/// Starts the log as `[log]` configures it.
fn start_logging(config: &Config) -> io::Result<Logging> {
    let style = match config.log.format {
        LogFormat::Text => LogStyle::Text,
        LogFormat::Json => LogStyle::Json,
    };
    logging::hide_panics(redact::is_enabled);
    logging::init(style, logged_events(&config.log))
}

/// The events that `[log]` selects. Also switches redaction on or off for the whole process.
fn logged_events(log: &LogConfig) -> LoggedEvents {
    let is_redacted = log.ids == LogIds::Hash;
    redact::set_enabled(is_redacted);
    LoggedEvents {
        level: log.level,
        own_only: is_redacted,
    }
}

/// Runs a command on the main thread's runtime. While serving, it accepts connections and waits for signals;
/// workers have runtimes of their own.
fn block_on(work: impl Future<Output = u8>) -> u8 {
    match Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime.block_on(work),
        Err(error) => cant_start(error),
    }
}

fn cant_start(error: impl std::fmt::Display) -> u8 {
    print_error(format!("seriatim could not start: {error}"));
    COULD_NOT_START
}
