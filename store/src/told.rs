//! Whoever hears how far long work is may end it.

use std::ops::ControlFlow;

use crate::error::{Error, Result};

/// What is answered to the news of how far something is: nothing, or whether it is to go on.
pub trait Answer {
    /// Whether to go on.
    fn flow(self) -> ControlFlow<()>;
}

impl Answer for () {
    fn flow(self) -> ControlFlow<()> {
        ControlFlow::Continue(())
    }
}

impl Answer for ControlFlow<()> {
    fn flow(self) -> ControlFlow<()> {
        self
    }
}

/// Goes on, or ends with [`Error::Stopped`].
pub(crate) fn heed(answer: impl Answer) -> Result<()> {
    match answer.flow() {
        ControlFlow::Continue(()) => Ok(()),
        ControlFlow::Break(()) => Err(Error::Stopped),
    }
}
