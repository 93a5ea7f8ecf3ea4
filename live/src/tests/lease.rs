use std::{fs::File, process::Command, time::SystemTime};

use super::{Bench, Running, held, holder, until};
use crate::{Attempt, Error, Policy};

/// The child of [`a_killed_holders_lease_is_free_and_names_it`]: takes the lease and waits.
#[test]
fn holding_child() {
    let Some(root) = std::env::var_os("LIVE_TEST_HOLD") else {
        return;
    };
    let node = crate::Node::open(root.as_ref()).unwrap();
    let mut lease = held(&node.state(&"ctr/default/a".parse().unwrap()), "first");
    lease.update(|_| {}).unwrap();
    std::thread::sleep(std::time::Duration::from_secs(1000));
}

#[test]
fn a_killed_holders_lease_is_free_and_names_it() {
    let Some(bench) = Bench::new("a_killed_holders_lease_is_free_and_names_it") else {
        return;
    };
    let state = bench.state("ctr/default/a");
    let mut child = Running::new(
        Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "tests::lease::holding_child", "--test-threads=1"])
            .env("LIVE_TEST_HOLD", bench.dir.path().join("root")),
    );
    until("the child has the lease", || {
        state.dir().join("holder.json").exists()
    });
    let Attempt::Busy(by) = state.acquire(holder("second")).unwrap() else {
        panic!("two have it");
    };
    assert_eq!((by.container_id.as_str(), by.shim_pid), ("first", child.0.id()));
    child.0.kill().unwrap();
    child.0.wait().unwrap();
    let second = held(&state, "second");
    assert_eq!(second.previous().unwrap().shim_pid, child.0.id());
    // Not yet written: if the second dies now, the third hears of the first.
    drop(second);
    let mut third = held(&state, "third");
    assert_eq!(third.previous().unwrap().container_id, "first");
    third.update(|_| {}).unwrap();
    third.release().unwrap();
    assert!(held(&state, "fourth").previous().is_none());
}

#[test]
fn released_it_is_free_even_while_a_starting_process_shares_it() {
    let Some(bench) = Bench::new("released_it_is_free_even_while_a_starting_process_shares_it") else {
        return;
    };
    let state = bench.state("ctr/default/a");
    let lease = held(&state, "first");
    // As between another thread's fork and exec.
    let shared = lease.share();
    lease.release().unwrap();
    let second = state.acquire(holder("second")).unwrap();
    assert!(matches!(second, Attempt::Held(_)), "{second:?}");
    drop(shared);
}

#[test]
fn a_started_process_does_not_keep_it() {
    let Some(bench) = Bench::new("a_started_process_does_not_keep_it") else {
        return;
    };
    let state = bench.state("ctr/default/a");
    let lease = held(&state, "first");
    let mut child = Running::sleep();
    // Not released: as if the shim had died and its child lived on.
    drop(lease);
    until("it is free", || {
        matches!(state.acquire(holder("second")).unwrap(), Attempt::Held(_))
    });
    assert!(child.lives());
}

#[test]
fn attaching_and_removing_at_once_end_with_one_state_or_none() {
    let Some(bench) = Bench::new("attaching_and_removing_at_once_end_with_one_state_or_none") else {
        return;
    };
    let state = bench.state("k8s/shop/pod/main");
    let one = |attaches: bool| {
        for round in 0..300 {
            if !attaches {
                match bench.node.remove(state.name()) {
                    Ok(_) | Err(Error::Missing(_) | Error::InUse { .. }) => {}
                    Err(error) => panic!("{error}"),
                }
            } else if let Attempt::Held(mut lease) = state.acquire(holder("c")).unwrap() {
                // Held: nobody takes it away.
                lease.update(|_| {}).unwrap();
                let at = SystemTime::now();
                state.taken(Policy::Keep, "c", at).unwrap();
                assert!(state.record().is_some(), "round {round}");
                lease.release().unwrap();
            }
        }
    };
    std::thread::scope(|scope| {
        for n in 0..4 {
            scope.spawn(move || one(n % 2 == 0));
        }
    });
    assert!(bench.node.states().unwrap().len() <= 1);
    assert_eq!(bench.node.leftovers().unwrap(), 0);
}

#[test]
fn damaged_records_stop_nobody_and_cost_no_tree() {
    let Some(bench) = Bench::new("damaged_records_stop_nobody_and_cost_no_tree") else {
        return;
    };
    let state = bench.prepared("ctr/default/a");
    std::fs::write(state.upper().join("kept"), b"x").unwrap();
    let whole = serde_json::to_vec(&holder("first")).unwrap();
    let all: [&[u8]; 6] = [
        b"",
        &whole[..whole.len() / 2],
        b"\0\0\0\0",
        b"[]",
        b"{\"container_id\":7}",
        b"\xff",
    ];
    for damaged in all {
        for file in ["holder.json", "state.json", "roots/rootfs/placeholders.json"] {
            std::fs::write(state.dir().join(file), damaged).unwrap();
        }
        let mut lease = held(&state, "next");
        assert_eq!(lease.previous(), None);
        assert_eq!(state.evict(&lease, std::time::Duration::ZERO).unwrap(), None);
        assert_eq!(state.record(), None);
        state.remove_placeholders().unwrap();
        // While it is held, a damaged record is a holder without a name, not a free lease.
        let Attempt::Busy(by) = state.acquire(holder("other")).unwrap() else {
            panic!("two have it");
        };
        assert_eq!(by, crate::Holder::default());
        let info = &bench.node.states().unwrap()[0];
        assert!(info.in_use_by.is_some() && info.record.is_none() && info.expires_at().is_none());
        lease.update(|_| {}).unwrap();
        state.taken(Policy::Keep, "next", SystemTime::now()).unwrap();
        assert_eq!(state.record().unwrap().last_container.as_deref(), Some("next"));
        lease.release().unwrap();
        assert!(!state.dir().join("holder.json").exists());
    }
    assert!(state.upper().join("kept").exists());
}

#[test]
fn a_lock_that_is_a_link_is_not_followed() {
    let Some(bench) = Bench::new("a_lock_that_is_a_link_is_not_followed") else {
        return;
    };
    let state = bench.prepared("ctr/default/a");
    let outside = bench.dir.path().join("outside");
    std::os::unix::fs::symlink(&outside, state.dir().join("lock")).unwrap();
    assert!(state.acquire(holder("c")).is_err());
    assert!(File::open(outside).is_err());
}
