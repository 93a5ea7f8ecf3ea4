//! End-to-end tests on a real containerd: each runs on every version that this machine can have. What cannot run
//! is reported by name and reason.

mod bad_input;
mod calls;
mod cri;
mod databases;
mod export;
mod faults;
mod freezes;
mod history;
mod keeps;
mod kills;
mod limits;
mod operations;
mod parity;
mod people;
mod pods;
mod proofs;
mod records;
mod scripts;
mod watchers;

use std::{path::Path, process::ExitCode, sync::Arc};

use anyhow::{Result, bail};
use integration::{Daemon, operations::WORD, second_chance};
use libtest_mimic::{Arguments, Trial};

/// The containerd versions of Debian's suites.
const VERSIONS: [&str; 3] = ["1.6", "1.7", "2"];

type Test = fn(&Daemon) -> Result<()>;

/// Whether the long forms are wanted (`make soak`).
fn soak() -> bool {
    std::env::var_os("DIFFKEEPER_SOAK").is_some()
}

/// Whether a test that containerd's version makes no difference to is to be run on this one: the newest, or the only one
/// there is (`hack/vm`).
fn once(d: &Daemon) -> bool {
    d.version == "2" || soak() || std::env::var_os("DIFFKEEPER_ALONE").is_some()
}

fn main() -> ExitCode {
    // What the tests of random operations run in a container is this program.
    let words: Vec<String> = std::env::args().skip(1).collect();
    if let [WORD, dir, seed, which] = words.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        let done = seed
            .parse()
            .map_err(Into::into)
            .and_then(|seed| integration::operations::run(Path::new(dir), seed, which));
        eprintln!("{done:?}");
        return ExitCode::FAILURE;
    }
    let mut arguments = Arguments::from_args();
    // They kill daemons and measure: one at a time.
    arguments.test_threads = Some(1);
    let tests: Vec<(&str, Test)> = [
        parity::TESTS,
        calls::TESTS,
        keeps::TESTS,
        kills::TESTS,
        limits::TESTS,
        pods::TESTS,
        records::TESTS,
        databases::TESTS,
        cri::TESTS,
        history::TESTS,
        freezes::TESTS,
        proofs::TESTS,
        people::TESTS,
        export::TESTS,
        scripts::TESTS,
        bad_input::TESTS,
        watchers::TESTS,
        operations::TESTS,
        faults::TESTS,
    ]
    .concat();
    let listing = arguments.list;
    let mut skipped = 0;
    let mut failed = false;
    for version in VERSIONS {
        let daemon = if listing {
            Ok(Err("only listed".into()))
        } else {
            Daemon::up(version, "e2e", &["--cri"])
        };
        let daemon = match daemon {
            Ok(Ok(daemon)) => Some(Arc::new(daemon)),
            Ok(Err(reason)) => {
                for (name, _) in tests.iter().filter(|_| !listing) {
                    println!("skipped containerd-{version}::{name}: {reason}");
                    skipped += 1;
                }
                if !listing {
                    continue;
                }
                None
            }
            Err(error) => {
                println!("containerd {version} does not start: {error:#}");
                failed = true;
                continue;
            }
        };
        let trials = tests
            .iter()
            .map(|(name, test)| {
                let (daemon, test) = (daemon.clone(), *test);
                let full = format!("containerd-{version}::{name}");
                Trial::test(full.clone(), move || {
                    let daemon = daemon.ok_or("no daemon")?;
                    let again = || match Daemon::up(version, "again", &["--cri"])? {
                        Ok(fresh) => test(&fresh),
                        Err(reason) => bail!(reason),
                    };
                    let first = test(&daemon);
                    // One that failed between the daemon's end and its return is not to fail all that follow.
                    if first.is_err() && daemon.pid().is_err() {
                        daemon.restart().map_err(|error| format!("{error:#}"))?;
                    }
                    second_chance(&full, first, again).map_err(|error| format!("{error:#}").into())
                })
            })
            .collect();
        failed |= libtest_mimic::run(&arguments, trials).has_failed();
    }
    if skipped > 0 {
        println!("skipped: {skipped} tests, by name and reason above");
    }
    if failed {
        ExitCode::FAILURE
    } else {
        ExitCode::SUCCESS
    }
}
