//! What a terminal gets and a pipe does not: colours and a pager.

use std::{
    io::{IsTerminal, Write},
    os::fd::OwnedFd,
    process::{Child, Command, Stdio},
};

use anstyle::{AnsiColor, Style};

/// When colours are shown.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum Color {
    /// On a terminal, unless NO_COLOR or TERM=dumb say otherwise
    #[default]
    Auto,
    /// Into pipes too
    Always,
    /// Never
    Never,
}

impl Color {
    /// Decides it for this process, before a pager takes the terminal's place.
    pub fn decide(self) {
        let choice = match self {
            Color::Always => anstream::ColorChoice::Always,
            Color::Never => anstream::ColorChoice::Never,
            Color::Auto => anstream::AutoStream::choice(&std::io::stdout()),
        };
        choice.write_global();
    }
}

/// A commit's name.
pub const COMMIT: Style = AnsiColor::Yellow.on_default();
/// A tag, or another version that is named.
pub const NAME: Style = AnsiColor::Cyan.on_default();
/// What was added.
pub const ADDED: Style = AnsiColor::Green.on_default();
/// What was removed, or is wrong.
pub const REMOVED: Style = AnsiColor::Red.on_default();
/// What is not the same any more.
pub const CHANGED: Style = AnsiColor::Blue.on_default();

/// The text in a style, where colours are shown.
#[must_use]
pub fn paint(style: Style, text: &str) -> String {
    let shown = matches!(
        anstream::ColorChoice::global(),
        anstream::ColorChoice::Always | anstream::ColorChoice::AlwaysAnsi
    );
    if shown && !text.is_empty() {
        format!("{style}{text}{style:#}")
    } else {
        text.to_owned()
    }
}

/// How many columns a text takes, whatever its style.
#[must_use]
pub fn width(text: &str) -> usize {
    anstream::adapter::strip_str(text).to_string().chars().count()
}

/// A program that shows a long text page by page; while this lives, standard output goes there.
pub struct Pager {
    child: Child,
    terminal: OwnedFd,
}

impl Pager {
    /// Starts `$PAGER`, or `less -FRX`, where standard output is a terminal; none where there is no such program: the
    /// text then goes to the terminal.
    #[must_use]
    pub fn start() -> Option<Pager> {
        let stdout = std::io::stdout();
        if !stdout.is_terminal() {
            return None;
        }
        let asked = std::env::var("PAGER").unwrap_or_else(|_| "less -FRX".into());
        if matches!(asked.trim(), "" | "cat") {
            return None;
        }
        let mut command = Command::new("sh");
        command.arg("-c").arg(&asked).stdin(Stdio::piped());
        if std::env::var_os("LESS").is_none() {
            // As git does: whatever less is called by.
            command.env("LESS", "FRX");
        }
        let mut child = command.spawn().ok()?;
        let terminal = nix::unistd::dup(&stdout).ok();
        let input = child.stdin.take();
        match (terminal, input) {
            (Some(terminal), Some(input)) if nix::unistd::dup2_stdout(&input).is_ok() => {
                Some(Pager { child, terminal })
            }
            _ => {
                let _ = child.kill();
                let _ = child.wait();
                None
            }
        }
    }
}

impl Drop for Pager {
    fn drop(&mut self) {
        // The text has been written, or nobody reads it any more.
        let _ = std::io::stdout().flush();
        let _ = nix::unistd::dup2_stdout(&self.terminal);
        let _ = self.child.wait();
    }
}

/// A reader of the output that goes away (`| head`, a pager that is left) ends the program, as it ends others.
pub fn end_with_the_reader() {
    #[allow(unsafe_code)]
    // SAFETY: no handler runs. Rust writes to sockets with MSG_NOSIGNAL: a keeper that dies is an error.
    let _ = unsafe {
        nix::sys::signal::signal(
            nix::sys::signal::Signal::SIGPIPE,
            nix::sys::signal::SigHandler::SigDfl,
        )
    };
}
