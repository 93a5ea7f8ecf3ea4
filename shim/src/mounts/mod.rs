//! Root filesystem mounts.
