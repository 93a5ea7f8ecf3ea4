//! States are looked at side by side, a few at a time.
//!
//! A disk that does not answer is not to hold up all others, and all together are not to take the machine. Whoever only waits,
//! for an application that makes itself ready or for somebody else's commit of the same state, takes no place meanwhile; and
//! none is waited for afterwards: an application that is ready does not wait for other states.

use std::sync::{Condvar, Mutex, PoisonError};

/// How many there are.
const SIDE_BY_SIDE: usize = 3;

/// As many places as there are.
#[derive(Default)]
pub(crate) struct Places {
    taken: Mutex<usize>,
    left: Condvar,
}

/// One of them, until this goes.
pub(crate) struct Place<'p>(&'p Places);

/// Somebody who has left a place for as long as this is there.
pub(crate) struct Away<'p>(&'p Places);

impl Places {
    /// Waits for one.
    pub(crate) fn take(&self) -> Place<'_> {
        let taken = self.taken.lock().unwrap_or_else(PoisonError::into_inner);
        let full = |taken: &mut usize| *taken >= SIDE_BY_SIDE;
        let free = self.left.wait_while(taken, full);
        *free.unwrap_or_else(PoisonError::into_inner) += 1;
        Place(self)
    }

    fn leave(&self) {
        *self.taken.lock().unwrap_or_else(PoisonError::into_inner) -= 1;
        self.left.notify_one();
    }
}

impl Place<'_> {
    /// Leaves it for a while.
    pub(crate) fn leave(&self) -> Away<'_> {
        self.0.leave();
        Away(self.0)
    }
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        self.0.leave();
    }
}

impl Drop for Away<'_> {
    fn drop(&mut self) {
        *self.0.taken.lock().unwrap_or_else(PoisonError::into_inner) += 1;
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use super::*;

    #[test]
    fn who_waits_takes_no_place_and_comes_back_without_waiting() {
        let places = Places::default();
        let mut taken: Vec<Place<'_>> = (0..SIDE_BY_SIDE).map(|_| places.take()).collect();
        let (tell, told) = mpsc::channel();
        std::thread::scope(|scope| {
            let away = taken[0].leave();
            let another = places.take();
            // One more than there are, and nobody else until two have gone.
            drop(away);
            scope.spawn(|| {
                let place = places.take();
                tell.send(()).unwrap();
                drop(place);
            });
            drop(another);
            assert!(told.recv_timeout(std::time::Duration::from_millis(50)).is_err());
            taken.pop();
            told.recv().unwrap();
        });
        drop(taken);
        assert_eq!(*places.taken.lock().unwrap(), 0);
    }
}
