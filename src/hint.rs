//! What one can do about an error, whichever room it is from.

use std::error::Error;

use crate::{
    admin::AdminError,
    engine::EngineError,
    init::InitError,
    nats::{ServerError, TrialError},
    options::OptionsError,
    reconcile::ReconcileError,
    source::SourceError,
    state::StateError,
    users::UserError,
};

/// What one can do about this error, or about what it came of.
pub fn hint(error: &(dyn Error + 'static)) -> Option<String> {
    let mut cause = Some(error);
    while let Some(it) = cause {
        let hint = None
            .or_else(|| it.downcast_ref::<OptionsError>()?.hint())
            .or_else(|| it.downcast_ref::<ReconcileError>()?.hint())
            .or_else(|| it.downcast_ref::<InitError>()?.hint())
            .or_else(|| it.downcast_ref::<UserError>()?.hint())
            .or_else(|| it.downcast_ref::<SourceError>()?.hint())
            .or_else(|| it.downcast_ref::<EngineError>()?.hint().map(str::to_owned))
            .or_else(|| it.downcast_ref::<StateError>()?.hint().map(str::to_owned))
            .or_else(|| it.downcast_ref::<ServerError>()?.hint())
            .or_else(|| it.downcast_ref::<TrialError>()?.hint())
            .or_else(|| Some(it.downcast_ref::<AdminError>()?.hint().to_owned()));
        if hint.is_some() {
            return hint;
        }
        cause = it.source();
    }
    None
}
