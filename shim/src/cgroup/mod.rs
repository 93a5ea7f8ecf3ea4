//! A container's cgroup: statistics, out-of-memory events, membership.
