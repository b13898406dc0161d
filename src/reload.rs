//! Reloading of the configuration file while turns run.
//!
//! The file is read every two seconds and its text compared, which also notices how Kubernetes replaces a
//! ConfigMap (by changing a symbolic link). SIGHUP reloads it at once, changed or not. Invariant: a
//! configuration that is invalid, or that changes an option which needs a restart, is logged and changes
//! nothing. A request keeps the configuration with which it began.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{mpsc, watch};
use tokio::time::sleep;

use crate::config::Config;
use crate::config::problem::{Problem, Problems};
use crate::metrics::Metrics;

/// Replaces the configuration that is in effect, for everything that serves. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Reloader(watch::Sender<Arc<Config>>);

/// Shows the configuration that is in effect. Clones see the same changes.
pub type CurrentConfig = watch::Receiver<Arc<Config>>;

/// How often the file is read: soon enough for the person who changed it, and too rarely to cost anything
/// measurable.
const READ_INTERVAL: Duration = Duration::from_secs(2);

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
    loop {
        let is_requested = tokio::select! {
            Some(()) = requests.recv() => true,
            () = sleep(READ_INTERVAL) => false,
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
                was_unreadable = true;
                continue;
            }
        };
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
            let refused = |problems| Problems { file, problems };
            swap(config).map(|()| remarks).map_err(refused)
        });
        is_applied = swapped.is_ok();
        metrics.reloaded(is_applied);
        match swapped {
            Ok(remarks) => {
                tracing::info!(file = %path.display(), "new configuration applied");
                for remark in remarks {
                    tracing::warn!("{remark}");
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
}
