use std::{
    fs,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use super::{Bench, Running, held};
use crate::{Ending, Error, Policy, State, StateInfo};

const DAY: Duration = Duration::from_secs(86_400);

fn noon() -> SystemTime {
    UNIX_EPOCH + DAY * 20_000
}

/// A state whose only life began and ended at `at`.
fn lived(bench: &Bench, name: &str, policy: Policy, at: SystemTime) -> State {
    let state = bench.prepared(name);
    state.taken(policy, "c1", at).unwrap();
    state.detached(Ending::Fine, at).unwrap();
    state
}

fn names(infos: &[StateInfo]) -> Vec<String> {
    infos.iter().map(|info| info.name.to_string()).collect()
}

#[test]
fn names_like_our_own_files_are_states_too() {
    let Some(bench) = Bench::new("names_like_our_own_files_are_states_too") else {
        return;
    };
    assert_eq!(bench.node.states().unwrap().len(), 0);
    let all = [
        "ctr/default/roots",
        "docker/lock",
        "docker/roots",
        "k8s/shop/pod/state.json",
    ];
    for name in all {
        let state = lived(&bench, name, Policy::Keep, noon());
        // A container's own directories are never taken for states.
        fs::create_dir_all(state.upper().join("ctr/default/inner")).unwrap();
    }
    assert_eq!(names(&bench.node.states().unwrap()), all);
}

#[test]
fn a_long_life_counts_to_its_end() {
    let Some(bench) = Bench::new("a_long_life_counts_to_its_end") else {
        return;
    };
    lived(&bench, "ctr/default/kept", Policy::Keep, noon());
    lived(&bench, "ctr/default/gone", Policy::Delete, noon());
    let week = lived(&bench, "ctr/default/week", Policy::After(7 * 86_400), noon());
    week.taken(Policy::After(7 * 86_400), "c2", noon() + DAY).unwrap();
    week.detached(Ending::Fine, noon() + DAY * 30).unwrap();
    let due = |at| names(&bench.node.due(at).unwrap());
    assert_eq!(due(noon() - DAY), [""; 0]);
    assert_eq!(due(noon()), ["ctr/default/gone"]);
    assert_eq!(
        due(noon() + DAY * 37 - Duration::from_secs(1)),
        ["ctr/default/gone"]
    );
    assert_eq!(due(noon() + DAY * 37), ["ctr/default/gone", "ctr/default/week"]);
}

#[test]
fn a_clock_that_went_backwards_expires_nothing() {
    let Some(bench) = Bench::new("a_clock_that_went_backwards_expires_nothing") else {
        return;
    };
    let state = lived(&bench, "ctr/default/a", Policy::After(86_400), noon());
    assert!(bench.node.due(noon() - DAY * 100).unwrap().is_empty());
    // A node without a clock of its own starts in 1970, until the network tells it the time.
    state.taken(Policy::After(86_400), "c2", UNIX_EPOCH).unwrap();
    assert_eq!(state.record().unwrap().last_container.as_deref(), Some("c2"));
    state.detached(Ending::Fine, UNIX_EPOCH + DAY).unwrap();
    assert!(bench.node.due(noon() + DAY / 2).unwrap().is_empty());
    assert_eq!(bench.node.due(noon() + DAY).unwrap().len(), 1);
    // Before 1970 there is nothing.
    state.detached(Ending::Fine, UNIX_EPOCH - DAY).unwrap();
    assert!(bench.node.due(noon() + DAY / 2).unwrap().is_empty());
}

#[test]
fn times_beyond_any_clock_are_never_reached() {
    let Some(bench) = Bench::new("times_beyond_any_clock_are_never_reached") else {
        return;
    };
    let state = lived(&bench, "ctr/default/a", Policy::After(u64::MAX), noon());
    let far = noon() + DAY * 365 * 1000;
    assert!(bench.node.due(far).unwrap().is_empty());
    let record = crate::Record {
        last_used: u64::MAX,
        reclaim: Policy::Delete,
        ..state.record().unwrap()
    };
    fs::write(
        state.dir().join("state.json"),
        serde_json::to_vec(&record).unwrap(),
    )
    .unwrap();
    assert!(bench.node.due(far).unwrap().is_empty());
}

#[test]
fn an_orphan_that_still_runs_is_not_removed() {
    let Some(bench) = Bench::new("an_orphan_that_still_runs_is_not_removed") else {
        return;
    };
    let state = lived(&bench, "ctr/default/a", Policy::Delete, noon());
    let mut lease = held(&state, "c1");
    let mut child = Running::sleep();
    lease.update(|h| h.set_init(child.0.id())).unwrap();
    let mounted = bench.mounted(&state, &bench.scratch("lower"), "merged");
    drop(lease);
    assert!(matches!(
        bench.node.remove(state.name()),
        Err(Error::StillInUse { .. })
    ));
    assert!(state.exists() && child.lives(), "removing kills nobody");
    // The record is still there for whoever attaches next.
    assert_eq!(held(&state, "c2").previous().unwrap().container_id, "c1");
    drop(mounted);
    super::until("it is free", || state.refuse_if_mounted().is_ok());
    bench.node.remove(state.name()).unwrap();
    assert!(child.lives());
}

#[test]
fn a_damaged_record_keeps_the_state() {
    let Some(bench) = Bench::new("a_damaged_record_keeps_the_state") else {
        return;
    };
    let state = lived(&bench, "ctr/default/a", Policy::Delete, UNIX_EPOCH);
    let whole = fs::read(state.dir().join("state.json")).unwrap();
    for damaged in [
        b"".as_slice(),
        &whole[..whole.len() - 1],
        b"\0\0",
        b"{\"format\":2}",
    ] {
        fs::write(state.dir().join("state.json"), damaged).unwrap();
        assert!(bench.node.due(noon()).unwrap().is_empty());
        let listed = &bench.node.states().unwrap()[0];
        assert!(listed.record.is_none() && listed.last_used().is_none());
        // Nor does leaving it make a record of it.
        state.detached(Ending::Fine, noon()).unwrap();
        assert!(bench.node.due(noon()).unwrap().is_empty());
    }
}

#[test]
fn a_record_of_a_later_version_keeps_the_state() {
    let Some(bench) = Bench::new("a_record_of_a_later_version_keeps_the_state") else {
        return;
    };
    let state = lived(&bench, "ctr/default/a", Policy::Delete, UNIX_EPOCH);
    let record = crate::Record {
        format: 2,
        ..state.record().unwrap()
    };
    fs::write(
        state.dir().join("state.json"),
        serde_json::to_vec(&record).unwrap(),
    )
    .unwrap();
    assert_eq!(state.record(), None);
    assert!(bench.node.due(noon()).unwrap().is_empty());
}

#[test]
fn hard_links_count_once_and_holes_not() {
    let Some(bench) = Bench::new("hard_links_count_once_and_holes_not") else {
        return;
    };
    let state = bench.prepared("ctr/default/a");
    let size = || bench.node.states().unwrap()[0].size().unwrap();
    let before = size();
    fs::write(state.upper().join("a"), vec![7u8; 1 << 20]).unwrap();
    fs::hard_link(state.upper().join("a"), state.upper().join("b")).unwrap();
    let sparse = fs::File::create(state.upper().join("sparse")).unwrap();
    sparse.set_len(1 << 30).unwrap();
    sparse.sync_all().unwrap();
    fs::File::open(state.upper().join("a"))
        .unwrap()
        .sync_all()
        .unwrap();
    let after = size();
    assert_eq!(after.entries - before.entries, 3);
    assert_eq!(after.apparent - before.apparent, (1 << 20) + (1 << 30));
    let allocated = after.allocated - before.allocated;
    assert!((1 << 20..1 << 21).contains(&allocated), "{allocated}");
}
