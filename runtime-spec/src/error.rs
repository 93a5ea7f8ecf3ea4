//! The error type.

/// What is wrong with what a person or an engine supplied.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// `config.json` does not parse.
    #[error("config.json does not parse: {0}")]
    Bundle(String),
    /// A name that cannot be a state's.
    #[error(
        "{} {value:?} cannot name a state: {problem}; a name is 1 to 128 of the characters A-Z a-z 0-9 . _ - and not \".\" or \"..\"",
        // It may hold a container's name, which anybody may have supplied.
        .source_of.escape_debug()
    )]
    Name {
        /// Where the name comes from.
        source_of: String,
        /// What was supplied.
        value: String,
        /// What is wrong with it.
        problem: &'static str,
    },
    /// An annotation that does not parse.
    #[error("annotation {}={value:?}: {problem}", .key.escape_debug())]
    Annotation {
        /// Its key.
        key: String,
        /// Its value.
        value: String,
        /// What is wrong with it, and what would be right.
        problem: String,
    },
    /// The configuration does not parse.
    #[error("{0}")]
    Config(String),
    /// An engine's own record does not parse.
    #[error("{0}")]
    Engine(String),
    /// A mount that cannot be part of a live tree's root.
    #[error("{0}")]
    Mount(String),
}
