//! What the live trees of a namespace take together.
//!
//! A project has one limit, and each state is a project of its own, so no disk holds the sum to anything: it is counted
//! when a state begins, and now and then by the keeper.

use std::time::Instant;

use crate::{error::Result, layout::Node, reclaim::StateInfo, tree};

/// A sum over states.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Total {
    /// Bytes on the disk.
    pub bytes: u64,
    /// The states, what takes most first.
    pub states: Vec<(String, u64)>,
    /// There was no time to look at all of them: it is more.
    pub more: bool,
}

impl Node {
    /// What the live trees of a namespace, [named with its engine](runtime_spec::name::StateName::engine_namespace), take. Those that the disk counts cost nothing; the others are walked, until it is
    /// time.
    ///
    /// # Errors
    /// A directory of ours that cannot be read.
    pub fn total(&self, namespace: &str, until: Option<Instant>) -> Result<Total> {
        let mut total = Total::default();
        let of = |info: &StateInfo| info.name.engine_namespace() == namespace;
        let mut uncounted = Vec::new();
        for info in self.states()?.into_iter().filter(of) {
            match info.quota().and_then(|quota| quota.used) {
                Some(used) => total.add(info, used),
                None => uncounted.push(info),
            }
        }
        for info in uncounted {
            match tree::size_until(info.dir(), until)? {
                Some(size) => total.add(info, size.allocated),
                None => total.more = true,
            }
        }
        total
            .states
            .sort_by(|a, b| b.1.cmp(&a.1).then_with(|| a.0.cmp(&b.0)));
        Ok(total)
    }
}

impl Total {
    fn add(&mut self, info: StateInfo, bytes: u64) {
        self.bytes = self.bytes.saturating_add(bytes);
        self.states.push((info.name.to_string(), bytes));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Root;

    #[test]
    fn a_namespace_is_summed_up() {
        if !nix::unistd::geteuid().is_root() {
            println!("skipped: a_namespace_is_summed_up needs root");
            return;
        }
        let dir = tempfile::tempdir().unwrap();
        let node = Node::open(&dir.path().join("root")).unwrap();
        for (name, bytes) in [
            ("k8s/shop/db/pg", 3),
            ("k8s/shop/web/app", 9),
            ("k8s/other/web/app", 5),
            // containerd's of that name is another.
            ("ctr/shop/pg", 7),
        ] {
            let root = node.state(&name.parse().unwrap()).root(&Root::Rootfs).unwrap();
            root.prepare_overlay(0o755, (0, 0)).unwrap();
            std::fs::write(root.upper().join("f"), vec![1; bytes << 20]).unwrap();
        }
        let total = node.total("k8s/shop", None).unwrap();
        assert!((12 << 20..13 << 20).contains(&total.bytes), "{total:?}");
        let names: Vec<&str> = total.states.iter().map(|(name, _)| name.as_str()).collect();
        assert_eq!(names, ["k8s/shop/web/app", "k8s/shop/db/pg"]);
        assert!(!total.more);
        assert_eq!(node.total("k8s/none", None).unwrap(), Total::default());
        // No time at all.
        let none = node.total("k8s/shop", Some(Instant::now())).unwrap();
        assert_eq!((none.bytes, none.more), (0, true));
    }
}
