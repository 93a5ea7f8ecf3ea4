//! The live trees of a node.
