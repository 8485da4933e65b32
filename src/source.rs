//! Where users and roles come from.

use crate::auth::Snapshot;

/// A place that knows the users and roles.
///
/// An implementation owns everything about getting at that knowledge: login, paging, reconnecting,
/// backing off. It does not judge what it reads.
pub trait Source: Send {
    /// Reads everything, as of one moment.
    ///
    /// Any doubt is an error: an empty answer is only given when the source surely is empty.
    fn snapshot(&mut self) -> impl Future<Output = Result<Snapshot, SourceError>> + Send;

    /// Returns when the answer of [`snapshot`](Source::snapshot) may have changed.
    ///
    /// It is a hint. It may come late, twice, or for nothing; if it never comes, the periodic
    /// resync still does. A hint that arrives while nobody waits is kept for the next call, and
    /// every reconnect is itself a hint, since nobody knows what was missed. Dropping the future
    /// loses nothing.
    fn changed(&mut self) -> impl Future<Output = ()> + Send;
}

/// The source could not be read. Nothing was changed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SourceError {}
