//! Entry point: containerd calls `start`, `delete` and `-info`; `start` calls the server, and the server what thaws.

use std::{io::Write, process::ExitCode};

use shim::{
    args::{Action, Args},
    bootstrap, delete,
    error::Result,
    info, server, sys, thaw,
};

fn main() -> ExitCode {
    sys::frugal_allocator();
    let mut args = std::env::args();
    let done = if args.next().as_deref() == Some(thaw::NAME) {
        thaw::run(args)
    } else {
        Args::parse(args).and_then(|args| run(&args))
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            // containerd shows this text to the person who asked for the container. There is no other way out.
            let _ = write!(std::io::stderr(), "{}: {error}", info::RUNTIME);
            ExitCode::FAILURE
        }
    }
}

fn run(args: &Args) -> Result<()> {
    match args.action {
        Action::Start => bootstrap::start(args),
        Action::Delete => delete::delete(args),
        Action::Info => info::info(),
        Action::Serve => server::serve(args),
        Action::Version => {
            // Nobody reads it when standard output is closed.
            let _ = writeln!(
                std::io::stdout(),
                "containerd-shim-diffkeeper-v1:\n  Version:  {}",
                env!("CARGO_PKG_VERSION")
            );
            Ok(())
        }
    }
}
