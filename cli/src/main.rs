//! `diffkeeper`: what a person types.

fn main() {}
