//! What a service manager (systemd, or whoever speaks its protocol) is told, when one listens.

#[cfg(target_os = "linux")]
use std::time::Duration;

#[cfg(target_os = "linux")]
use sd_notify::NotifyState;

/// Connections are taken from now on.
pub fn ready() {
    #[cfg(target_os = "linux")]
    notify(&[NotifyState::Ready]);
}

/// No new connections are taken from now on.
pub fn stopping() {
    #[cfg(target_os = "linux")]
    notify(&[NotifyState::Stopping]);
}

/// Says again and again that the calling runtime is alive, if the service manager wants to hear it. A runtime whose
/// threads hang stops saying so and is started anew.
pub async fn keep_alive() {
    #[cfg(target_os = "linux")]
    if let Some(limit) = sd_notify::watchdog_enabled() {
        // Twice as often as needed, as the protocol advises.
        let mut ticks = tokio::time::interval((limit / 2).max(Duration::from_millis(1)));
        loop {
            ticks.tick().await;
            notify(&[NotifyState::Watchdog]);
        }
    }
    std::future::pending().await
}

#[cfg(target_os = "linux")]
fn notify(state: &[NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(state) {
        tracing::warn!(%error, "the service manager cannot be told how we are");
    }
}
