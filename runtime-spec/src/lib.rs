//! Pure logic of a DiffKeeper container.
