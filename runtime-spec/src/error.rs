//! The error type.

/// How much of what somebody supplied a message repeats: it becomes an event, or a header of gRPC's, which clients
/// refuse whole when it is long.
const SHOWN: usize = 256;
/// The same of what is wrong with it: it may list what would be right.
const PROBLEM: usize = 1000;

fn shown(text: &str, limit: usize) -> String {
    let mut shown: String = text.chars().take(limit).collect();
    if shown.len() < text.len() {
        shown.push_str("...");
    }
    shown
}

/// What is wrong with what a person or an engine supplied.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// `config.json` does not parse.
    #[error("config.json does not parse: {0}")]
    Bundle(String),
    /// A name that cannot be a state's.
    #[error(
        "{} {:?} cannot name a state: {problem}; a name is 1 to 128 of the characters A-Z a-z 0-9 . _ - and not \".\" or \"..\"",
        // It may hold a container's name, which anybody may have supplied.
        shown(.source_of, SHOWN).escape_debug(),
        shown(.value, SHOWN)
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
    #[error("annotation {}={:?}: {}", shown(.key, SHOWN).escape_debug(), shown(.value, SHOWN), shown(.problem, PROBLEM))]
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_stay_short() {
        let long = "\u{e9}/".repeat(30_000);
        let name = Error::Name {
            source_of: long.clone(),
            value: long.clone(),
            problem: "it is long",
        };
        let annotation = Error::Annotation {
            key: long.clone(),
            value: long.clone(),
            problem: long,
        };
        for error in [name, annotation] {
            let told = error.to_string();
            assert!(told.len() < 4000 && told.contains("..."), "{} bytes", told.len());
        }
    }
}
