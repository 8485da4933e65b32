//! What NATS should allow, as a pure function of what the source said.
//!
//! Nothing in here touches a file, a socket, a clock or a log, so nothing in here can fail for a
//! reason outside its arguments.

mod changes;
mod snapshot;

pub use changes::{Event, EventType, MaxRemoved};
pub use snapshot::{PasswordHash, Permissions, RoleRecord, Snapshot, UserRecord};
