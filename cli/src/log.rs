//! The keeper's log, on standard error, and how much it says.

use std::{io::IsTerminal, path::PathBuf};

use anyhow::{Result, anyhow};
use keeper::serve::Level;
use runtime_spec::config::{Config, Log};
use tracing_subscriber::{EnvFilter, fmt::format::FmtSpan};

/// Begins a log at the level that is configured, or that `DIFFKEEPER_LOG` asks for. Answers with what changes it: the
/// configuration is read again for that.
///
/// # Errors
/// A `DIFFKEEPER_LOG` that means nothing.
pub fn to_stderr(config: &Config, file: PathBuf) -> Result<impl Fn(Level) + use<>> {
    let filter = match std::env::var("DIFFKEEPER_LOG") {
        Ok(asked) => {
            EnvFilter::try_new(&asked).map_err(|error| anyhow!("DIFFKEEPER_LOG={asked}: {error}"))?
        }
        Err(_) => EnvFilter::new(config.history.log.word()),
    };
    let log = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_target(false)
        // At `debug` each step of a commit says how long it took.
        .with_span_events(FmtSpan::CLOSE)
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal())
        .with_filter_reloading();
    let handle = log.reload_handle();
    log.init();
    Ok(move |level| {
        let level = match level {
            Level::Debug => Log::Debug,
            Level::Configured => match crate::read_config(&file) {
                Ok(config) => config.history.log,
                Err(error) => {
                    tracing::error!("the log stays as it is: {error:#}");
                    return;
                }
            },
        };
        // Said while it is sure to be heard: before it becomes less, and after it became more.
        tracing::info!(level = level.word(), "the log's level changes");
        if let Err(error) = handle.reload(EnvFilter::new(level.word())) {
            tracing::error!(%error, "the log stays as it is");
        }
    })
}
