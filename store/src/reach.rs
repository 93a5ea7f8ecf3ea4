//! What a commit needs.

use std::{collections::HashSet, ops::ControlFlow};

use prost::Message;

use crate::{
    error::{Error, Result, damaged},
    format::{Child, Commit, Entry, HIGHEST, Node, Piece},
    id::Id,
    pack::Object,
    store::Store,
};

/// What was come by: the objects that commits need.
pub(crate) type Reached = HashSet<(Object, Id)>;

impl Store {
    /// Adds to `reached` all that a commit needs. What is there already is not gone into again: histories share most
    /// of what they are.
    pub(crate) fn reach(
        &self,
        domain: u32,
        commit: Id,
        content: &Commit,
        reached: &mut Reached,
    ) -> Result<()> {
        reached.insert((Object::Commit, commit));
        self.reach_node(domain, content.tree_id()?, HIGHEST, true, reached)
    }

    /// `of_tree`: its lowest items are entries, else pieces.
    fn reach_node(&self, domain: u32, id: Id, left: u32, of_tree: bool, reached: &mut Reached) -> Result<()> {
        if !reached.insert((Object::Node, id)) {
            return Ok(());
        }
        let node = match self.node(domain, id) {
            // What is below it is lost too.
            Err(Error::Missing(_)) if self.catalog.is_lost(domain, Object::Node, id)? => return Ok(()),
            node => node?,
        };
        if node.level > left {
            return Err(damaged(format!("node {id}"), "it stands on the wrong level"));
        }
        for item in &node.items {
            match (node.level, of_tree) {
                (0, true) => {
                    let entry = Entry::read(item)?;
                    match entry.content_id() {
                        Some(chunk) if entry.height == 0 => {
                            reached.insert((Object::Chunk, chunk));
                        }
                        Some(list) => self.reach_node(domain, list, entry.height - 1, false, reached)?,
                        None => {}
                    }
                }
                (0, false) => {
                    let piece = Piece::decode(item.as_slice()).map_err(|e| damaged("a list's piece", e))?;
                    if let Some(chunk) = Id::from_slice(&piece.chunk) {
                        reached.insert((Object::Chunk, chunk));
                    }
                }
                (level, _) => {
                    let id = child_of(item)?;
                    self.reach_node(domain, id, level - 1, of_tree, reached)?;
                }
            }
        }
        Ok(())
    }

    /// The commits of a domain that have content: not those that retention has taken it from.
    pub(crate) fn live_commits(&self, domain: u32) -> Result<Vec<(Id, Commit)>> {
        let mut found = Vec::new();
        for state in self.states()?.iter().filter(|state| state.domain == domain) {
            let gone = self.given_up(state)?;
            self.log(state, u64::MAX, |recorded| {
                if !gone.contains(&recorded.commit.sequence) {
                    found.push((recorded.id, recorded.commit));
                }
                Ok(ControlFlow::Continue(()))
            })?;
        }
        Ok(found)
    }
}

pub(crate) fn child_of(item: &[u8]) -> Result<Id> {
    let child = Child::decode(item).map_err(|e| damaged("a node's child", e))?;
    Id::from_slice(&child.id).ok_or_else(|| damaged("a node's child", "its name has another length"))
}

/// The entries of a lowest node of a tree.
pub(crate) fn entries_of(node: &Node) -> impl Iterator<Item = Result<Entry>> {
    let lowest = node.level == 0;
    node.items
        .iter()
        .filter(move |_| lowest)
        .map(|item| Entry::read(item))
}
