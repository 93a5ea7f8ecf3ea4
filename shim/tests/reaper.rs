//! The reaper takes every child of its process, so its one test has a process of its own.

#![allow(clippy::unwrap_used)]

use std::{process::Command, time::Duration};

use shim::reaper::Reaper;

fn spawn(script: &str) -> i32 {
    // Waited for by the reaper: that is the test.
    #[allow(clippy::zombie_processes)]
    let child = Command::new("sh").args(["-c", script]).spawn().unwrap();
    child.id().cast_signed()
}

async fn until_gone(pid: i32) {
    while std::path::Path::new(&format!("/proc/{pid}")).exists() {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

#[tokio::test(flavor = "current_thread")]
async fn exits_reach_whoever_asks() {
    let reaper = Reaper::start().unwrap();

    assert_eq!(reaper.claim(spawn("exit 7")).await.unwrap().status, 7);
    assert_eq!(reaper.claim(spawn("kill -KILL $$")).await.unwrap().status, 137);

    // Dead before anybody knows its pid, as a container's init may be: kept while a window is open.
    let window = reaper.window();
    let pid = spawn("exit 3");
    until_gone(pid).await;
    assert_eq!(reaper.claim(pid).await.unwrap().status, 3);
    let unknown = spawn("exit 4");
    until_gone(unknown).await;
    drop(window);

    // And forgotten afterwards: the same pid may by then be another process.
    let claim = tokio::time::timeout(Duration::from_millis(50), reaper.claim(unknown)).await;
    assert!(claim.is_err());

    // A realtime signal does not stop the reaper.
    let first = spawn("kill -34 $$");
    until_gone(first).await;
    assert_eq!(reaper.claim(spawn("exit 5")).await.unwrap().status, 5);
}
