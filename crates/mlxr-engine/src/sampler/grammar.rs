//! The tokens a constraint leaves, before anything else looks at them.

use mlxr_text::grammar::{ConstraintState, GrammarError};

use super::Candidates;

/// Drops the candidates that may not come next.
pub(super) fn keep_allowed(
    state: &mut ConstraintState,
    candidates: &mut Candidates,
) -> Result<(), GrammarError> {
    if let Some(mask) = state.mask()? {
        candidates.retain(|candidate| mask.allows(candidate.id));
    }
    Ok(())
}
