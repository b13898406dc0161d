//! Reloading of the configuration file while turns run.
//!
//! The file is read every two seconds and its text compared, which also notices how Kubernetes replaces a
//! ConfigMap (by changing a symbolic link). SIGHUP reloads it at once, changed or not. Invariants: a
//! configuration that is invalid, or that changes an option which needs a restart, is logged and changes
//! nothing; a file that is still being written applies only on SIGHUP. A request keeps the configuration
//! with which it began.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{mpsc, watch};
use tokio::time::sleep;

use crate::config::problem::{Problem, Problems};
use crate::config::{Config, reader};
use crate::metrics::Metrics;

/// Replaces the configuration that is in effect, for everything that serves. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Reloader(watch::Sender<Arc<Config>>);

/// Shows the configuration that is in effect. Clones see the same changes.
pub type CurrentConfig = watch::Receiver<Arc<Config>>;

/// How often the file is read: soon enough for the person who changed it, and too rarely to cost anything
/// measurable.
const READ_INTERVAL: Duration = Duration::from_secs(2);

/// The pause before a changed file is read again. It counts as changed if it is the same then: while it is
/// written it is empty or cut for a moment, and its first part may be a valid configuration with fewer
/// routes.
const SETTLE_PAUSE: Duration = Duration::from_millis(200);

// === impl Reloader ===

impl Reloader {
    /// Begins with this configuration.
    pub fn new(config: Config) -> (Self, CurrentConfig) {
        let (sender, current) = watch::channel(Arc::new(config));
        (Self(sender), current)
    }

    /// The configuration that is in effect.
    pub fn current(&self) -> Arc<Config> {
        Arc::clone(&self.0.borrow())
    }

    /// Makes `new` the configuration of every request that begins from now on.
    ///
    /// # Errors
    /// When options differ whose change needs a restart; the error lists all of them. Then nothing changes.
    pub fn swap(&self, new: Config) -> Result<(), Vec<Problem>> {
        let problems: Vec<_> = self.0.borrow().fixed(&new);
        if problems.is_empty() {
            self.0.send_replace(Arc::new(new));
            return Ok(());
        }
        Err(problems)
    }
}

/// Loads the file at `path` whenever it changes or `requests` receives a message, and hands a valid
/// configuration to `swap`, which may reject it. `metrics` count the results. `text` is the file's text when
/// it was read last. Never resolves. Cancel-safe: dropping the future ends the watching.
pub async fn watch(
    path: PathBuf,
    mut text: String,
    mut requests: mpsc::Receiver<()>,
    mut swap: impl FnMut(Config) -> Result<(), Vec<Problem>>,
    metrics: &Metrics,
) {
    let (mut was_unreadable, mut is_applied) = (false, true);
    // A text that was read once and may still be written.
    let mut unsettled = None;
    loop {
        let pause = match unsettled {
            Some(_) => SETTLE_PAUSE,
            None => READ_INTERVAL,
        };
        let is_requested = tokio::select! {
            Some(()) = requests.recv() => true,
            () = sleep(pause) => false,
        };
        // On a thread of its own: a file system that hangs must not block accepting connections.
        let file = path.clone();
        let read = tokio::task::spawn_blocking(move || std::fs::read_to_string(file)).await;
        let new = match read.unwrap_or_else(|error| Err(std::io::Error::other(error))) {
            Ok(new) => new,
            Err(error) => {
                // Logged once: the file may be in the middle of being replaced.
                if is_requested || !was_unreadable {
                    let file = path.display();
                    tracing::warn!(%file, %error, "can't read the configuration; the old one stays in effect");
                    metrics.reloaded(false);
                }
                (was_unreadable, unsettled) = (true, None);
                continue;
            }
        };
        if new != text && !is_requested && unsettled.as_ref() != Some(&new) {
            unsettled = Some(new);
            continue;
        }
        unsettled = None;
        let is_back = std::mem::replace(&mut was_unreadable, false);
        if new == text && !is_requested {
            if is_back {
                metrics.is_as_configured(is_applied);
            }
            continue;
        }
        text = new;
        let file = path.display().to_string();
        let loaded = Config::read_over_environment(&file, &text);
        let swapped = loaded.and_then(|config| {
            let remarks = config.remarks();
            let refused = |mut problems: Vec<Problem>| {
                reader::locate(&text, &mut problems);
                Problems { file, problems }
            };
            swap(config).map(|()| remarks).map_err(refused)
        });
        is_applied = swapped.is_ok();
        metrics.reloaded(is_applied);
        match swapped {
            Ok(remarks) => {
                tracing::info!(file = %path.display(), "new configuration applied");
                for remark in remarks {
                    tracing::warn!(file = %path.display(), "{remark}");
                }
            }
            Err(Problems { file, problems }) => {
                for problem in problems {
                    tracing::error!(%file, %problem, "new configuration refused; the old one stays in effect");
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::metrics::ExpositionFormat;

    const RIGHT: &str = "upstream = \"http://127.0.0.1:8000\"\n";

    #[tokio::test]
    async fn the_result_of_each_reload_is_counted() {
        crate::time_limit::limit_this_test();
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("config.toml");
        let write = |text: &str| std::fs::write(&path, text).unwrap();
        let (metrics, (ask, asked)) = (Metrics::new(), mpsc::channel(1));
        let (reloader, _current) = Reloader::new(Config::read("test", RIGHT, &Vec::new()).unwrap());
        let swap = |config| reloader.swap(config);
        write(RIGHT);
        let watching = watch(path.clone(), RIGHT.into(), asked, swap, &metrics);
        let counts = |applied, refused, as_configured| {
            let text = metrics.text(ExpositionFormat::Classic);
            [
                format!("seriatim_config_reloads_total{{result=\"applied\"}} {applied}"),
                format!("seriatim_config_reloads_total{{result=\"refused\"}} {refused}"),
                format!("seriatim_config_last_reload_successful {as_configured}"),
            ]
            .iter()
            .all(|line| text.lines().any(|metric| metric == line))
        };
        let steps = async {
            assert!(counts(0, 0, 1), "the configuration at the start is applied");
            for (what, text, expected) in [
                ("asked for", Some(RIGHT), (1, 0, 1)),
                ("wrong", Some("upstream = 7\n"), (1, 1, 0)),
                ("away", None, (1, 2, 0)),
                ("right again", Some(RIGHT), (2, 2, 1)),
                ("fixed", Some("listen = \"127.0.0.1:1\"\n"), (2, 3, 0)),
            ] {
                match text {
                    Some(text) => write(text),
                    None => std::fs::remove_file(&path).unwrap(),
                }
                ask.send(()).await.unwrap();
                let (applied, refused, as_configured) = expected;
                while !counts(applied, refused, as_configured) {
                    assert!(!counts(applied, refused + 1, 0), "{what}: is counted once");
                    sleep(Duration::from_millis(1)).await;
                }
            }
        };
        tokio::select! {
            () = watching => {}
            done = tokio::time::timeout(Duration::from_secs(20), steps) => {
                done.expect("each is counted as it was");
            }
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_file_that_comes_back_unchanged_counts_as_applied() {
        crate::time_limit::limit_this_test();
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("config.toml");
        let (metrics, (_ask, asked)) = (Metrics::new(), mpsc::channel(1));
        let swap = |_| panic!("the file has not changed");
        let watching = watch(path.clone(), RIGHT.into(), asked, swap, &metrics);
        let is_so = |is_so: u8| {
            let line = format!("\nseriatim_config_last_reload_successful {is_so}\n");
            metrics.text(ExpositionFormat::Classic).contains(&line)
        };
        let steps = async {
            while !is_so(0) {
                sleep(READ_INTERVAL).await;
            }
            std::fs::write(&path, RIGHT).unwrap();
            while !is_so(1) {
                sleep(READ_INTERVAL).await;
            }
        };
        tokio::select! {
            () = watching => {}
            () = steps => {}
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_file_that_is_being_written_applies_when_it_is_whole() {
        crate::time_limit::limit_this_test();
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("config.toml");
        let (metrics, (_ask, asked)) = (Metrics::new(), mpsc::channel(1));
        let swaps = std::cell::Cell::new(0);
        let swap = |_| {
            swaps.set(swaps.get() + 1);
            Ok(())
        };
        let whole = format!("{RIGHT}unmatched = \"reject\"\n");
        std::fs::write(&path, &whole).unwrap();
        let watching = watch(path.clone(), whole.clone(), asked, swap, &metrics);
        let steps = async {
            // Empty, a valid part of it, and all of it, each for less than the pause.
            sleep(READ_INTERVAL - SETTLE_PAUSE / 2).await;
            std::fs::write(&path, "").unwrap();
            sleep(SETTLE_PAUSE).await;
            std::fs::write(&path, RIGHT).unwrap();
            sleep(SETTLE_PAUSE).await;
            std::fs::write(&path, &whole).unwrap();
            sleep(READ_INTERVAL * 3).await;
            assert_eq!(swaps.get(), 0, "no part of a file applies");
            std::fs::write(&path, RIGHT).unwrap();
            sleep(READ_INTERVAL * 3).await;
            assert_eq!(swaps.get(), 1, "a changed file applies, and once");
        };
        tokio::select! {
            () = watching => {}
            () = steps => {}
        }
        let text = metrics.text(ExpositionFormat::Classic);
        let none_refused = "\nseriatim_config_reloads_total{result=\"refused\"} 0\n";
        assert!(text.contains(none_refused), "no part of a file is refused");
    }

    #[test]
    fn an_option_of_any_section_that_needs_a_restart_is_refused_by_its_name() {
        let config = |rest: &str| {
            let text = format!("{RIGHT}{rest}");
            Config::read("test", &text, &Vec::new()).unwrap()
        };
        let (reloader, _current) = Reloader::new(config(""));
        for (key, rest) in [
            ("listen", "listen = \"127.0.0.1:1\""),
            ("store.timeout", "[store]\ntimeout = \"2s\""),
            ("limits.max_connections", "[limits]\nmax_connections = 7"),
            ("timeouts.request_head", "[timeouts]\nrequest_head = \"7s\""),
            ("admin.listen", "[admin]\nlisten = \"127.0.0.1:1\""),
            ("log.format", "[log]\nformat = \"json\""),
            ("tracing.otlp", "[tracing]\notlp = \"http://127.0.0.1:1\""),
        ] {
            let problems = reloader.swap(config(rest)).expect_err(key);
            let problems: Vec<_> = problems.iter().map(ToString::to_string).collect();
            let is_named = problems[0].starts_with(&format!("{key} = "));
            let is_named = is_named && problems[0].contains(": can't be changed");
            assert!(is_named && problems.len() == 1, "{key}: {problems:?}");
        }
        reloader
            .swap(config("unmatched = \"reject\""))
            .expect("other options apply");
    }
}
