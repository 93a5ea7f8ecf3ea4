//! Long work: how far it is, on a terminal; and Ctrl-C, which ends it where that leaves nothing half done.

use std::{
    cell::{Cell, RefCell},
    io::IsTerminal,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use anyhow::{Result, bail};
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use keeper_api::keeper::{keeper as api, keeper_ttrpc::KeeperClient};
use tokio::signal::unix::{SignalKind, signal};
use ttrpc::context::Context;

use super::client::{patient, said};

/// How often the keeper is asked.
const OFTEN: Duration = Duration::from_millis(100);
/// What is done sooner needs no bar.
const SHORT: Duration = Duration::from_millis(400);

/// Makes a call of the keeper that may take long: on a terminal with a bar, its rate and the time left. Ctrl-C ends the
/// call where that leaves nothing half done; a second one leaves it to the keeper.
///
/// # Errors
/// The keeper's.
pub async fn long<T>(
    client: &KeeperClient,
    call: impl AsyncFnOnce(Context) -> ttrpc::Result<T>,
) -> Result<T> {
    let task = name();
    let mut context = patient();
    context.add(keeper_api::TASK.into(), task.clone());
    let work = call(context);
    let watch = watch(client, task);
    tokio::pin!(work, watch);
    tokio::select! {
        biased;
        done = &mut work => said(done),
        left = &mut watch => left,
    }
}

/// A name that no other call has.
fn name() -> String {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    format!("{}-{}", std::process::id(), since.as_nanos())
}

/// Shows how far a task is until this is dropped, or somebody presses Ctrl-C twice.
async fn watch<T>(client: &KeeperClient, task: String) -> Result<T> {
    let mut interrupt = signal(SignalKind::interrupt())?;
    let bar = RefCell::new(Bar::new(ProgressDrawTarget::stderr));
    let stop = Cell::new(false);
    let show = async {
        let shown = std::io::stderr().is_terminal();
        let begun = tokio::time::Instant::now();
        loop {
            tokio::time::sleep(OFTEN).await;
            if !shown && !stop.get() {
                continue;
            }
            let request = api::ProgressRequest {
                task: task.clone(),
                stop: stop.get(),
                ..api::ProgressRequest::default()
            };
            // A keeper of an earlier version does not know: then there is no bar.
            if let Ok(now) = client.progress(patient(), &request).await
                && shown
                && begun.elapsed() >= SHORT
            {
                bar.borrow_mut().show(&now);
            }
        }
    };
    let listen = async {
        interrupt.recv().await;
        stop.set(true);
        bar.borrow()
            .say("stopping; another Ctrl-C leaves it to the keeper");
        interrupt.recv().await;
    };
    tokio::select! {
        () = listen => bail!(crate::exit::Interrupted(
            "the keeper goes on with it; `diffkeeper log` and `diffkeeper stats` show what has become of it".into(),
        )),
        never = show => never,
    }
}

/// A bar for each step.
struct Bar {
    target: fn() -> ProgressDrawTarget,
    step: String,
    bar: Option<ProgressBar>,
}

impl Bar {
    fn new(target: fn() -> ProgressDrawTarget) -> Bar {
        Bar {
            target,
            step: String::new(),
            bar: None,
        }
    }

    fn show(&mut self, now: &api::ProgressResponse) {
        if now.step.is_empty() {
            return;
        }
        let (done, all, style) = match (now.of_bytes, now.of_entries) {
            (0, 0) => (now.entries, 0, "{msg} {spinner} {human_pos} [{elapsed}]"),
            (0, all) => (
                now.entries,
                all,
                "{msg} {wide_bar} {human_pos} of {human_len}, {per_sec}, {eta} left",
            ),
            (all, _) => (
                now.bytes,
                all,
                "{msg} {wide_bar} {binary_bytes} of {binary_total_bytes}, {binary_bytes_per_sec}, {eta} left",
            ),
        };
        let step = now.step.clone();
        let known = all > 0;
        let bar = match &mut self.bar {
            Some(bar) if self.step == step && bar.length().is_some() == known => bar,
            place => {
                if let Some(old) = place.take() {
                    old.finish_and_clear();
                }
                let bar = ProgressBar::with_draw_target(known.then_some(all), (self.target)());
                if let Ok(style) = ProgressStyle::with_template(style) {
                    bar.set_style(style);
                }
                bar.set_message(step.clone());
                self.step = step;
                place.insert(bar)
            }
        };
        if known {
            bar.set_length(all);
        }
        // What a container writes meanwhile comes on top of what was expected.
        bar.set_position(if known { done.min(all) } else { done });
        bar.tick();
    }

    fn say(&self, words: &str) {
        match &self.bar {
            Some(bar) => bar.suspend(|| eprintln!("{words}")),
            None => eprintln!("{words}"),
        }
    }
}

impl Drop for Bar {
    fn drop(&mut self) {
        if let Some(bar) = self.bar.take() {
            bar.finish_and_clear();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bar_says_how_far_and_how_fast() {
        let term = indicatif::InMemoryTerm::new(5, 100);
        thread_local! {
            static TERM: RefCell<Option<indicatif::InMemoryTerm>> = const { RefCell::new(None) };
        }
        TERM.set(Some(term.clone()));
        let mut bar = Bar::new(|| {
            let term = TERM.with_borrow(Clone::clone);
            term.map_or_else(ProgressDrawTarget::hidden, |term| {
                ProgressDrawTarget::term_like(Box::new(term))
            })
        });
        let mut now = api::ProgressResponse {
            step: "exporting".into(),
            entries: 1,
            of_entries: 5,
            bytes: 1 << 20,
            of_bytes: 3 << 20,
            ..api::ProgressResponse::default()
        };
        bar.show(&now);
        let text = term.contents();
        for part in ["exporting", "1.00 MiB of 3.00 MiB", "/s", "left"] {
            assert!(text.contains(part), "{part} is not in {text:?}");
        }
        now.step = "verifying".into();
        (now.bytes, now.of_bytes) = (0, 0);
        bar.show(&now);
        let text = term.contents();
        assert!(text.contains("verifying") && text.contains("1 of 5"), "{text:?}");
        assert!(!text.contains("exporting"), "{text:?}");
        (now.entries, now.of_entries) = (7, 0);
        bar.show(&now);
        assert!(term.contents().contains('7'), "{:?}", term.contents());
        drop(bar);
        assert_eq!(term.contents(), "");
    }
}
