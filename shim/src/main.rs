//! Entry point: containerd calls `start`, `delete` and `-info`; `start` calls the server.

use std::{io::Write, process::ExitCode};

use shim::{
    args::{Action, Args},
    bootstrap, delete,
    error::Result,
    info, server, sys,
};

fn main() -> ExitCode {
    sys::frugal_allocator();
    match Args::parse(std::env::args().skip(1)).and_then(|args| run(&args)) {
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
