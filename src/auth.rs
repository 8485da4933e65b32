//! What NATS should allow, as a pure function of what the source said.
//!
//! Nothing in here touches a file, a socket, a clock or a log, so nothing in here can fail for a
//! reason outside its arguments.

mod changes;
pub mod conf;
mod connection;
mod decide;
mod desired;
mod diff;
pub mod explain;
mod finding;
mod lint;
mod matching;
mod render;
mod rules;
mod snapshot;
mod subject;
#[cfg(test)]
mod tests;

pub use changes::{Changes, Event, EventType, Limits, MaxRemoved, Refused, counted};
pub use connection::{ConnectionType, ConnectionTypes};
pub use decide::Policy;
pub use desired::{Credential, Desired, Grant, User};
pub use diff::{Answers, Change, Diff, Holding, Hunk, Rights};
pub use explain::{Action, Answer, Explain, Question, Verdict};
pub use finding::{Effect, Finding, Problem};
pub use lint::{Advice, Remark, lint};
pub use matching::Delivery;
pub use render::{Found, closed, dated, parse, reads_back, render, stamp};
pub use rules::{Responses, Rules, Subjects};
pub use snapshot::{PasswordHash, Permissions, RoleRecord, Snapshot, UserRecord};
pub use subject::{BadSubject, Subject, check_template};
