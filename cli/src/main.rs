//! `diffkeeper`: what a person types.

mod doctor;
mod exit;
mod history;
mod image;
mod install;
mod log;
mod states;
mod table;
mod terminal;

use std::{path::PathBuf, process::ExitCode};

use anyhow::{Context, Result};
use clap::{CommandFactory, Parser, Subcommand};
use runtime_spec::config::Config;

/// Containers that keep what they write: look after their states.
#[derive(Parser)]
#[command(name = "diffkeeper", version, after_help = exit::HELP)]
struct Cli {
    /// The configuration file
    #[arg(
        long,
        global = true,
        env = "DIFFKEEPER_CONFIG",
        default_value = "/etc/diffkeeper/config.toml"
    )]
    config: PathBuf,
    /// Colours
    #[arg(long, global = true, value_name = "WHEN", default_value = "auto")]
    color: terminal::Color,
    /// Never page through long output
    #[arg(long, global = true)]
    no_pager: bool,
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// List what is kept: size, last use, who uses it, when it expires
    States {
        /// Print JSON, one array of objects
        #[arg(long)]
        json: bool,
    },
    /// Forget a state and everything in it
    Rm {
        /// The state, or the shortest end of its name that is unambiguous (`web` for `ctr/default/web`)
        state: String,
        /// Do not ask
        #[arg(long, short)]
        yes: bool,
        /// Forget its history too; the space comes back with the next gc
        #[arg(long)]
        history: bool,
        /// And rewrite every pack that holds a byte of what no other state needs
        #[arg(long)]
        erase: bool,
    },
    /// Forget the live trees and histories that have expired, and what crashes left behind
    Prune {
        /// Only say what would go
        #[arg(long)]
        dry_run: bool,
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    #[command(flatten)]
    History(history::Command),
    /// Run the service that records histories and goes back in them
    Keeper {
        /// Start it, and leave it running when it answers: by systemd where there is one
        #[arg(long, conflicts_with = "stop")]
        detach: bool,
        /// End the one that runs
        #[arg(long)]
        stop: bool,
        /// Take nothing from whoever started it
        #[arg(long, hide = true)]
        apart: bool,
    },
    /// Is this machine fit? What to do if it is not?
    Doctor {
        /// Print JSON
        #[arg(long)]
        json: bool,
        /// containerd's socket
        #[arg(
            long,
            env = "CONTAINERD_ADDRESS",
            default_value = "/run/containerd/containerd.sock"
        )]
        address: PathBuf,
    },
    /// Put the runtime on this machine: the binaries, and a handler in containerd's or Docker's configuration
    Install(install::Options),
    /// Take out what install put in; what containers kept stays
    Uninstall {
        #[command(flatten)]
        options: install::Options,
        /// Even while containers of this runtime run
        #[arg(long)]
        force: bool,
    },
    /// Ask containerd which image a container has; the shim does
    #[command(hide = true)]
    ImageOf {
        /// containerd's socket
        #[arg(long)]
        address: PathBuf,
        /// containerd's namespace
        #[arg(long)]
        namespace: String,
        /// The container's id
        container: String,
    },
    /// Print a completion script: `diffkeeper completions bash > /etc/bash_completion.d/diffkeeper`
    Completions {
        /// The shell
        shell: clap_complete::Shell,
    },
    /// Write man pages into a directory
    #[command(hide = true)]
    Man {
        /// The directory
        dir: PathBuf,
    },
}

fn main() -> ExitCode {
    match run(&Cli::parse()) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("diffkeeper: {error:#}");
            exit::of(&error)
        }
    }
}

fn run(cli: &Cli) -> Result<ExitCode> {
    cli.color.decide();
    if !matches!(cli.command, Command::Keeper { .. }) {
        terminal::end_with_the_reader();
    }
    match &cli.command {
        Command::States { json } => states::list(&config(cli)?, *json),
        Command::Rm {
            state,
            yes,
            history,
            erase,
        } => {
            let forget = (*history || *erase).then_some(*erase);
            states::remove(&config(cli)?, state, *yes, forget)
        }
        Command::Prune { dry_run, json } => states::prune(&config(cli)?, *dry_run, *json),
        Command::History(command) => {
            let of_recording = history::recording(command)?;
            let (config, command) = match &of_recording {
                Some((config, command)) => (config.clone(), command),
                None => (config(cli)?, command),
            };
            let _pager = (command.is_paged() && !cli.no_pager)
                .then(terminal::Pager::start)
                .flatten();
            history::run(&config, command)
        }
        Command::Keeper { apart, .. } if *apart => {
            keeper::detach::leave()?;
            serve(cli)?;
            Ok(ExitCode::SUCCESS)
        }
        Command::Keeper { detach, stop, .. } => {
            match (detach, stop) {
                (true, _) => keeper::detach::start(&config(cli)?, &cli.config)?,
                (_, true) => history::stop_keeper(&config(cli)?)?,
                _ => serve(cli)?,
            }
            Ok(ExitCode::SUCCESS)
        }
        // Doctor also says what is wrong with the configuration itself.
        Command::Doctor { json, address } => doctor::run(&cli.config, address, *json),
        Command::Install(options) => install::install(options),
        Command::Uninstall { options, force } => install::uninstall(options, &cli.config, *force),
        Command::ImageOf {
            address,
            namespace,
            container,
        } => image::print(address, namespace, container),
        Command::Completions { shell } => {
            clap_complete::generate(*shell, &mut Cli::command(), "diffkeeper", &mut std::io::stdout());
            Ok(ExitCode::SUCCESS)
        }
        Command::Man { dir } => {
            clap_mangen::generate_to(Cli::command(), dir)
                .with_context(|| format!("write man pages into {}", dir.display()))?;
            Ok(ExitCode::SUCCESS)
        }
    }
}

/// Runs the service.
fn serve(cli: &Cli) -> Result<()> {
    let config = config(cli)?;
    let levels = log::to_stderr(&config, cli.config.clone())?;
    Ok(keeper::serve::serve(&config, &levels)?)
}

fn config(cli: &Cli) -> Result<Config> {
    read_config(&cli.config)
}

fn read_config(file: &std::path::Path) -> Result<Config> {
    match std::fs::read_to_string(file) {
        Ok(text) => Config::parse(&text).with_context(|| format!("the configuration {}", file.display())),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(Config::default()),
        Err(error) => Err(error).with_context(|| format!("read the configuration {}", file.display())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_sound() {
        Cli::command().debug_assert();
    }
}
