//! How long to wait before more work is asked for, when what was given could not be started.
#![forbid(unsafe_code)]

use std::time::Duration;

/// The pause after the second attempt in a row that was given back; the first costs nothing.
const FIRST: Duration = Duration::from_millis(250);
/// The longest pause.
const LONGEST: Duration = Duration::from_secs(4);

/// Counts attempts that were given back since one was started: the host may lack something that each of them would
/// need, such as room on the disk.
#[derive(Debug, Default)]
pub struct Pause {
    given_back: u32,
}

impl Pause {
    /// An attempt was given back. Returns how long nothing is to be asked for.
    pub fn given_back(&mut self) -> Duration {
        self.given_back = self.given_back.saturating_add(1);
        match self.given_back {
            1 => Duration::ZERO,
            more => FIRST.saturating_mul(2_u32.saturating_pow(more - 2)).min(LONGEST),
        }
    }

    /// A program was started: the host is well.
    pub fn started(&mut self) {
        self.given_back = 0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_pause_doubles_up_to_a_bound_until_something_starts() {
        let mut pause = Pause::default();
        let millis: Vec<_> = (0..8).map(|_| pause.given_back().as_millis()).collect();
        assert_eq!(millis, [0, 250, 500, 1_000, 2_000, 4_000, 4_000, 4_000]);
        pause.given_back = u32::MAX;
        assert_eq!(pause.given_back(), LONGEST);
        pause.started();
        assert_eq!((pause.given_back(), pause.given_back()), (Duration::ZERO, FIRST));
    }
}
