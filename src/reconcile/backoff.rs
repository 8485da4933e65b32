//! How long to wait after a failure, and how often to log that it goes on.

use std::time::{Duration, Instant};

use tracing::{debug, error, info};

use super::ReconcileError;
use crate::causes::chain;

/// The wait between failed passes: it doubles until one comes to its end.
#[derive(Debug, Default)]
pub(super) struct Backoff {
    wait: Duration,
    /// Which failure was logged last, and when.
    logged: Option<(String, Instant)>,
}

impl Backoff {
    const FIRST: Duration = Duration::from_millis(250);
    const LONGEST: Duration = Duration::from_secs(5);
    /// The same failure is logged again after this.
    const AGAIN: Duration = Duration::from_mins(1);

    /// How long to wait after this failure. Says that it failed, unless that was said a moment ago.
    pub(super) fn failed(&mut self, failure: &ReconcileError, resync: Duration) -> Duration {
        self.wait = match failure {
            // It takes a person, and no hint of theirs will be missed.
            ReconcileError::Guard(_) => resync.min(Backoff::AGAIN),
            _ => (self.wait * 2).clamp(Backoff::FIRST, Backoff::LONGEST),
        };
        let text = chain(failure);
        let recent =
            |(logged, at): &(String, Instant)| *logged == text && at.elapsed() < Backoff::AGAIN;
        if self.logged.as_ref().is_some_and(recent) {
            debug!(error = text, retry = ?self.wait, "still failing");
        } else {
            let (retry, hint) = (self.wait, failure.hint());
            let would_go = match failure {
                ReconcileError::Guard(refused) => Some(listed(refused.removed())),
                _ => None,
            };
            let holds = match failure {
                ReconcileError::NotInForce(_) => "not known to be in force everywhere",
                _ => "the last good state stays in force",
            };
            error!(error = text, would_go, hint, ?retry, "{holds}");
            self.logged = Some((text, Instant::now()));
        }
        self.wait
    }

    /// The next failure is a new one.
    pub(super) fn recovered(&mut self) {
        self.wait = Duration::ZERO;
        if self.logged.take().is_some() {
            info!("recovered");
        }
    }
}

/// Names for a line of the log, which nobody reads to the end of.
fn listed(names: &[String]) -> String {
    const MOST: usize = 100;
    let more = names.len().saturating_sub(MOST);
    let listed = names.iter().take(MOST).map(|it| format!("{it:?}")).collect::<Vec<_>>().join(", ");
    if more > 0 { format!("{listed} and {more} more") } else { listed }
}
