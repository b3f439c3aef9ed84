//! How the server is told to end: first to finish what runs, then not to wait for it.

use tokio::sync::watch;

/// How far the end has come.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum Phase {
    #[default]
    Serving,
    /// Nobody new gets in; what runs may finish within the grace period.
    Finishing,
    /// What runs is cancelled.
    Cancelling,
}

/// Tells a server to end, from wherever that is decided: a signal, a request.
#[derive(Debug, Default)]
pub struct Stopper(watch::Sender<Phase>);

impl Stopper {
    /// Moves on to `phase`; there is no way back.
    pub fn enter(&self, phase: Phase) {
        self.0.send_if_modified(|current| {
            let is_later = *current < phase;
            *current = (*current).max(phase);
            is_later
        });
    }

    /// Done when `phase` or a later one has come.
    pub async fn wait_for(&self, phase: Phase) {
        // The sender is borrowed, so the channel is open.
        let _ = self.0.subscribe().wait_for(|current| phase <= *current).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn phases_only_go_forward() {
        let stopper = Stopper::default();
        stopper.enter(Phase::Cancelling);
        stopper.enter(Phase::Finishing);
        stopper.wait_for(Phase::Finishing).await;
        stopper.wait_for(Phase::Cancelling).await;
        assert_eq!(*stopper.0.borrow(), Phase::Cancelling);
    }
}
