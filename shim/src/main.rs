//! Entry point of the shim.

fn main() {}
