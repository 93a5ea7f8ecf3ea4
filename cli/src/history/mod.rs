//! What was, and going back to it: `log`, `show`, `diff`, `ls`, `cat`, `timeline`, `commit`, `tag`, `restore`, `undo`,
//! `fork`, `export`, `verify`, `repair`, `gc`, `audit`, `keygen`, `prove`, `stats`, `tune`.

mod change;
mod chunks;
mod client;
mod export;
mod graph;
mod image;
mod log;
mod look;
mod progress;
mod record;
mod repair;
mod store;
mod tune;

use std::path::PathBuf;

use clap::{Args, Subcommand};

/// The commands. A version is written `STATE@VERSION`: `web@head`, `web@~3`, `web@-5m`, `web@2026-11-20T19:02:11Z`,
/// `'web@2026-11-20 19:02:11'`, `web@TAG`, `web@1a2b3c`; a state alone is its newest commit.
#[derive(Subcommand, Clone)]
pub enum Command {
    /// List a state's commits, newest first
    Log(log::Log),
    /// Show one commit: when, why, what it stood on, what it changed
    Show {
        /// The version
        version: String,
        /// Instead, how each chunk of this file is stored
        #[arg(long, value_name = "PATH")]
        chunks: Option<String>,
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// What changed between two versions
    Diff {
        /// The older version
        before: String,
        /// The newer one; the newest of the same state where it is not given
        after: Option<String>,
        /// Show changed text files line by line
        #[arg(long, short)]
        patch: bool,
        /// Only say how much
        #[arg(long)]
        stat: bool,
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// List what a version holds: what the container wrote, not what the image has
    Ls {
        /// The version
        version: String,
        /// A path in the container
        path: Option<String>,
        /// All that is below it
        #[arg(long, short = 'R')]
        recursive: bool,
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// Print a file of a version
    Cat {
        /// The version
        version: String,
        /// The file's path in the container
        path: String,
    },
    /// List every recorded change of every file, newest last
    Timeline {
        /// The state
        state: String,
        /// Only paths like this: '/var/lib/*.conf' (* is anything, ? one character)
        #[arg(long)]
        path: Option<String>,
        /// Only what is younger than this, or changed since then: 10m, '2026-11-20 19:02'
        #[arg(long)]
        since: Option<String>,
        /// Only what is older than this, or changed until then
        #[arg(long)]
        until: Option<String>,
        /// Print JSON, one array of objects
        #[arg(long)]
        json: bool,
    },
    /// Record a state now
    Commit {
        /// The state
        state: String,
        /// What to remember it by
        #[arg(long, short, default_value = "")]
        message: String,
        /// A tag to give it
        #[arg(long)]
        tag: Option<String>,
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// Give a version a name of its own, or take one away
    Tag {
        /// The version
        version: String,
        /// The tag
        name: String,
        /// Take it away
        #[arg(long)]
        delete: bool,
    },
    /// Go back to a version: at once, or at the next start of a container that runs
    Restore(Restore),
    /// Take the last restore back
    Undo {
        /// The state
        state: String,
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// Begin a state with a version of another; it costs no space
    Fork {
        /// The version
        version: String,
        /// The new state's name
        name: String,
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// Take a version, or a part of it, out: into a directory, an archive, a layer or an image
    Export(Box<export::Export>),
    /// Begin a state with what a tar, a layer of an image or a directory holds
    Import {
        /// The new state: its whole name, or the last part of ctr/default/NAME
        state: String,
        /// The tar (plain, gzip or zstd) or the directory
        from: PathBuf,
        /// What lies below this path of the container goes to a volume; several are allowed. Those that a replaced state has are
        /// known
        #[arg(long, value_name = "PATH")]
        volume: Vec<String>,
        /// Where there is such a state, not in use: record what it holds, and put this in its place
        #[arg(long)]
        replace: bool,
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// Is everything in the store, and is it what it was?
    Verify {
        /// Read chunks too: all, or a share such as 5%
        #[arg(long, num_args = 0..=1, default_missing_value = "100%", require_equals = true, value_parser = percent)]
        read_data: Option<u32>,
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// Drop what is provably lost of a damaged store, say exactly what that is, and keep the rest
    Repair {
        /// Only say what would be done
        #[arg(long)]
        dry_run: bool,
        /// Remove the damaged packs and the damaged catalog that earlier repairs have put aside
        #[arg(long)]
        discard: bool,
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// Give up the content of old commits by the rules, and get the space back
    Gc {
        /// Only say what would go
        #[arg(long)]
        dry_run: bool,
        /// Store in fewer bytes first what was stored while there was no time, of this state or of all: takes the processors
        /// for long
        #[arg(long, value_name = "STATE", num_args = 0..=1, conflicts_with = "dry_run")]
        recompact: Option<Option<String>>,
        /// Rewrite every pack that holds a byte of what no commit needs
        #[arg(long, conflicts_with = "dry_run")]
        erase: bool,
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// Walk a state's chain of commits and prove that nothing was altered or removed
    Audit {
        /// The state
        state: String,
        /// Check signatures too, which have to be by this key (the file that `keygen` calls .pub); may be given again
        #[arg(long, value_name = "FILE")]
        public_key: Vec<PathBuf>,
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// Make a key that signs commits: FILE for `signing-key` in the configuration, FILE.pub for whoever audits
    Keygen {
        /// The file; it must not be there yet
        file: PathBuf,
    },
    /// Print a proof that a file was in a version, to standard output
    Prove {
        /// The version
        version: String,
        /// The file's path in the container
        path: String,
    },
    /// Check such a proof, without the store
    CheckProof {
        /// The file with the proof
        proof: PathBuf,
        /// The commit that it must be of: what `show` says
        #[arg(long)]
        commit: Option<String>,
    },
    /// Record a plain directory while a command runs: no containers, no root
    #[command(after_help = record::HELP)]
    Record(record::Record),
    /// What the store holds, what it takes, and how it is stored
    Stats {
        /// Only how the chunks of this state are stored
        state: Option<String>,
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// Measure what a state's history would take by each way to store it; changes nothing
    Tune {
        /// The state
        state: String,
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
}

impl Command {
    /// Whether what it prints may be longer than a screen, and is for people.
    #[must_use]
    pub fn is_paged(&self) -> bool {
        match self {
            Command::Log(how) => !how.json,
            Command::Diff { json, .. } | Command::Ls { json, .. } | Command::Timeline { json, .. } => !json,
            _ => false,
        }
    }
}

/// Going back.
#[derive(Args, Clone)]
pub struct Restore {
    /// The version, or with --cancel a state
    pub version: String,
    /// Only this path of the container, into a state that is not in use
    #[arg(long)]
    pub path: Option<String>,
    /// Into this directory instead of the live tree, at any time
    #[arg(long)]
    pub to: Option<PathBuf>,
    /// End the container that uses it, so that its owner (the kubelet, Docker's restart policy) starts it again with that
    /// version; refused where nobody would
    #[arg(long, conflicts_with_all = ["to", "path", "cancel", "dry_run"])]
    pub now: bool,
    /// How long the container has to end well, with --now; then it is killed
    #[arg(long, value_name = "TIME", default_value = "10s", value_parser = grace)]
    pub grace: u32,
    /// Only say what would change
    #[arg(long, conflicts_with_all = ["to", "cancel"])]
    pub dry_run: bool,
    /// Give up a restore that waits for the next start
    #[arg(long, conflicts_with_all = ["to", "path"])]
    pub cancel: bool,
    /// Print JSON
    #[arg(long, conflicts_with = "to")]
    pub json: bool,
}

/// Milliseconds.
fn grace(text: &str) -> Result<u32, String> {
    runtime_spec::duration::parse(text)
        .and_then(|time| u32::try_from(time.as_millis()).ok())
        .ok_or_else(|| "expected a duration such as 10s".into())
}

fn percent(text: &str) -> Result<u32, String> {
    let number = text.strip_suffix('%').unwrap_or(text);
    let number: u32 = number
        .parse()
        .map_err(|_| "expected a share such as 5%".to_owned())?;
    if number > 100 {
        return Err("there are only 100%".into());
    }
    Ok(number)
}

pub use self::{
    client::{History, histories, reclaim, stop_keeper},
    record::recording,
    store::forget,
};

impl Command {
    /// The versions that it is about, or the states.
    fn versions(&mut self) -> Vec<&mut String> {
        match self {
            Command::Show { version, .. }
            | Command::Ls { version, .. }
            | Command::Cat { version, .. }
            | Command::Tag { version, .. }
            | Command::Prove { version, .. }
            | Command::Fork { version, .. } => vec![version],
            Command::Log(log) => vec![&mut log.version],
            Command::Diff { before, after, .. } => {
                [Some(before), after.as_mut()].into_iter().flatten().collect()
            }
            Command::Timeline { state, .. }
            | Command::Commit { state, .. }
            | Command::Undo { state, .. }
            | Command::Audit { state, .. }
            | Command::Tune { state, .. }
            | Command::Gc {
                recompact: Some(Some(state)),
                ..
            }
            | Command::Stats {
                state: Some(state), ..
            } => vec![state],
            Command::Restore(restore) => vec![&mut restore.version],
            Command::Export(export) => vec![&mut export.version],
            Command::Import { .. }
            | Command::Verify { .. }
            | Command::Gc { .. }
            | Command::Repair { .. }
            | Command::Keygen { .. }
            | Command::CheckProof { .. }
            | Command::Record(_)
            | Command::Stats { state: None, .. } => Vec::new(),
        }
    }

    /// Whether it changes what a live tree is made of: a recording has none.
    fn needs_live_tree(&self) -> bool {
        match self {
            Command::Commit { .. } | Command::Undo { .. } | Command::Fork { .. } => true,
            Command::Restore(restore) => restore.to.is_none(),
            _ => false,
        }
    }
}

/// Does what a command says.
///
/// # Errors
/// The keeper's, as it says them.
pub fn run(
    config: &runtime_spec::config::Config,
    command: &Command,
) -> anyhow::Result<std::process::ExitCode> {
    match command {
        Command::Log(how) => log::log(config, how),
        Command::Show {
            version,
            chunks: Some(path),
            json,
        } => chunks::show(config, version, path, *json),
        Command::Show { version, json, .. } => look::show(config, version, *json),
        Command::Diff {
            before,
            after,
            patch,
            stat,
            json,
        } => change::diff(config, before, after.as_deref(), *patch, *stat, *json),
        Command::Ls {
            version,
            path,
            recursive,
            json,
        } => look::ls(config, version, path.as_deref().unwrap_or(""), *recursive, *json),
        Command::Cat { version, path } => look::cat(config, version, path),
        Command::Timeline {
            state,
            path,
            since,
            until,
            json,
        } => {
            let span = (since.as_deref(), until.as_deref());
            change::timeline(config, state, path.as_deref(), span, *json)
        }
        Command::Commit {
            state,
            message,
            tag,
            json,
        } => store::commit(config, state, message, tag.as_deref(), *json),
        Command::Tag {
            version,
            name,
            delete,
        } => store::tag(config, version, name, *delete),
        Command::Restore(restore) => store::restore(config, restore),
        Command::Undo { state, json } => store::undo(config, state, *json),
        Command::Fork { version, name, json } => store::fork(config, version, name, *json),
        Command::Export(how) => export::run(config, how),
        Command::Import {
            state,
            from,
            volume,
            replace,
            json,
        } => store::import(config, state, from, volume, *replace, *json),
        Command::Verify { read_data, json } => store::verify(config, read_data.unwrap_or(0), *json),
        Command::Repair {
            dry_run,
            discard,
            json,
        } => repair::repair(config, *dry_run, *discard, *json),
        Command::Gc {
            dry_run,
            recompact,
            erase,
            json,
        } => {
            let state = recompact.as_ref().map(Option::as_deref);
            store::gc(config, (*dry_run, *erase), state, *json)
        }
        Command::Audit {
            state,
            public_key,
            json,
        } => store::audit(config, state, public_key, *json),
        Command::Keygen { file } => store::keygen(file),
        Command::Prove { version, path } => store::prove(config, version, path),
        Command::CheckProof { proof, commit } => store::check_proof(proof, commit.as_deref()),
        Command::Record(how) => record::run(how),
        Command::Tune { state, json } => tune::tune(config, state, *json),
        Command::Stats { state, json } => store::stats(config, state.as_deref(), *json),
    }
}
