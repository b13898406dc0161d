//! A new configuration, swapped in whole while turns run.
//!
//! The file is read every other second and compared as a whole, which is what fits the way Kubernetes
//! swaps a ConfigMap (a symbolic link, and then another file); a signal has it read at once, changed
//! or not. Invariant: a configuration that is wrong, or asks for what a running process can't change,
//! is told of and changes nothing. What a request began with it ends with.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{mpsc, watch};
use tokio::time::sleep;

use crate::config::Config;
use crate::config::problem::{Problem, Problems};
use crate::metrics::Metrics;

/// Where the configuration that is in force is put, and seen by all who serve by it.
#[derive(Clone, Debug)]
pub struct Reloader(watch::Sender<Arc<Config>>);

/// The configuration that is in force. Clones see the same changes.
pub type CurrentConfig = watch::Receiver<Arc<Config>>;

/// How often the file is looked at: a reload is noticed sooner than the person who asked for it
/// begins to wonder, and a small file read so often costs nothing that can be measured.
const EVERY: Duration = Duration::from_secs(2);

// === impl Reloader ===

impl Reloader {
    /// A configuration to begin with, and where it is seen.
    pub fn new(config: Config) -> (Self, CurrentConfig) {
        let (sender, current) = watch::channel(Arc::new(config));
        (Self(sender), current)
    }

    /// The configuration that is in force.
    pub fn current(&self) -> Arc<Config> {
        Arc::clone(&self.0.borrow())
    }

    /// Puts `new` in place of the present configuration, for every request that begins from now on.
    ///
    /// # Errors
    /// With all options whose change needs a restart. Then nothing is changed.
    pub fn swap(&self, new: Config) -> Result<(), Vec<Problem>> {
        let problems: Vec<_> = self.0.borrow().fixed(&new);
        if problems.is_empty() {
            self.0.send_replace(Arc::new(new));
            return Ok(());
        }
        Err(problems)
    }
}

/// Loads the file at `path` anew whenever it changes or somebody asks for it, and hands what is right
/// to `swap`, which may refuse it; `metrics` count what became of it. Never resolves; dropping it ends
/// the watch.
///
/// `text` is what the file said when it was read last. `asked` tells that a person wants it read.
pub async fn watch(
    path: PathBuf,
    mut text: String,
    mut asked: mpsc::Receiver<()>,
    mut swap: impl FnMut(Config) -> Result<(), Vec<Problem>>,
    metrics: &Metrics,
) {
    let (mut was_unreadable, mut in_force) = (false, true);
    loop {
        let is_asked = tokio::select! {
            Some(()) = asked.recv() => true,
            () = sleep(EVERY) => false,
        };
        // On a thread of its own: a file system that hangs must not hold up who accepts connections.
        let file = path.clone();
        let read = tokio::task::spawn_blocking(move || std::fs::read_to_string(file)).await;
        let new = match read.unwrap_or_else(|error| Err(std::io::Error::other(error))) {
            Ok(new) => new,
            Err(error) => {
                // Said once: it may be in the middle of being replaced.
                if is_asked || !was_unreadable {
                    let file = path.display();
                    tracing::warn!(%file, %error, "can't read the configuration; the old one stays");
                    metrics.reloaded(false);
                }
                was_unreadable = true;
                continue;
            }
        };
        let is_back = std::mem::replace(&mut was_unreadable, false);
        if new == text && !is_asked {
            if is_back {
                metrics.is_as_configured(in_force);
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
        in_force = swapped.is_ok();
        metrics.reloaded(in_force);
        match swapped {
            Ok(remarks) => {
                tracing::info!(file = %path.display(), "new configuration in force");
                for remark in remarks {
                    tracing::warn!("{remark}");
                }
            }
            Err(Problems { file, problems }) => {
                for problem in problems {
                    tracing::error!(%file, %problem, "new configuration refused; the old one stays");
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
    async fn what_became_of_each_configuration_is_counted() {
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
            .all(|line| text.lines().any(|told| told == line))
        };
        let steps = async {
            assert!(counts(0, 0, 1), "what it starts with is in force");
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
    async fn a_file_that_was_away_and_is_back_as_it_was_is_in_force() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("config.toml");
        let (metrics, (_ask, asked)) = (Metrics::new(), mpsc::channel(1));
        let swap = |_| panic!("there is nothing new");
        let watching = watch(path.clone(), RIGHT.into(), asked, swap, &metrics);
        let is_so = |is_so: u8| {
            let line = format!("\nseriatim_config_last_reload_successful {is_so}\n");
            metrics.text(ExpositionFormat::Classic).contains(&line)
        };
        let steps = async {
            while !is_so(0) {
                sleep(EVERY).await;
            }
            std::fs::write(&path, RIGHT).unwrap();
            while !is_so(1) {
                sleep(EVERY).await;
            }
        };
        tokio::select! {
            () = watching => {}
            () = steps => {}
        }
    }
}
