//! The live view of a server: a thread that asks, and a terminal that is drawn when an answer or a key comes.
//!
//! Bounds: one answer waits for the terminal; [`history::WINDOW`] of answers is remembered.

mod history;
mod view;

use std::sync::mpsc::{Receiver, SyncSender, TryRecvError, sync_channel};
use std::thread;
use std::time::{Duration, Instant};

use hyper::StatusCode;
use mlxr_api::native::metrics::MetricList;
use mlxr_api::native::requests::{RequestList, RunningRequest};
use mlxr_api::native::stats::Stats;
use ratatui::DefaultTerminal;
use ratatui::crossterm::event::{self, Event, KeyCode, KeyEvent, KeyEventKind, KeyModifiers};

use self::history::History;
use crate::client::{Client, Refusal};

/// The longest wait for a key before answers are looked for.
const KEY_PAUSE: Duration = Duration::from_millis(50);

/// What a server said of itself at one time.
#[derive(Clone, Debug)]
pub struct Sample {
    at: Instant,
    stats: Stats,
    metrics: MetricList,
    /// `None` where the key may not see them.
    requests: Option<Vec<RunningRequest>>,
}

impl Sample {
    fn ask(client: &Client) -> anyhow::Result<Sample> {
        let stats = client.get("/mlxr/v1/stats")?;
        let metrics = client.get("/mlxr/v1/metrics")?;
        let requests = match client.get::<RequestList>("/mlxr/v1/requests") {
            Ok(list) => Some(list.requests),
            Err(error) => match error.downcast_ref::<Refusal>() {
                Some(refusal) if refusal.status == StatusCode::FORBIDDEN => None,
                _ => return Err(error),
            },
        };
        Ok(Sample { at: Instant::now(), stats, metrics, requests })
    }
}

/// What is shown.
#[derive(Debug, Default)]
struct State {
    server: String,
    history: History,
    /// Why the last answer did not come.
    failure: Option<String>,
    is_paused: bool,
    /// Requests scrolled past.
    n_scrolled: usize,
}

/// What a key does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Action {
    Quit,
    Pause,
    Down(usize),
    Up(usize),
    Top,
}

/// Shows the server until the user has seen enough.
///
/// # Errors
/// The server does not answer the first time, or the terminal is gone.
pub fn show(client: Client, interval: Duration) -> anyhow::Result<()> {
    let mut state = State { server: client.address().to_string(), ..State::default() };
    // A server that does not answer at all is told without a picture.
    state.history.push(Sample::ask(&client)?);
    let (send, samples) = sync_channel(1);
    thread::spawn(move || ask_on(&client, interval, &send));
    let mut terminal = ratatui::try_init()?;
    let result = run(&mut terminal, &mut state, &samples);
    ratatui::try_restore()?;
    result
}

/// Asks until nobody listens any more.
fn ask_on(client: &Client, interval: Duration, send: &SyncSender<anyhow::Result<Sample>>) {
    loop {
        thread::sleep(interval);
        if send.send(Sample::ask(client)).is_err() {
            return;
        }
    }
}

fn run(
    terminal: &mut DefaultTerminal,
    state: &mut State,
    samples: &Receiver<anyhow::Result<Sample>>,
) -> anyhow::Result<()> {
    loop {
        terminal.draw(|frame| view::draw(frame, state))?;
        loop {
            if event::poll(KEY_PAUSE)? {
                match event::read()? {
                    Event::Key(key) => match action(key) {
                        Some(Action::Quit) => return Ok(()),
                        Some(action) => state.act(action),
                        None => continue,
                    },
                    Event::Resize(..) => {}
                    _ => continue,
                }
                break;
            }
            match samples.try_recv() {
                Ok(sample) => state.take(sample),
                Err(TryRecvError::Empty) => continue,
                Err(TryRecvError::Disconnected) => anyhow::bail!("the thread that asks the server has ended"),
            }
            break;
        }
    }
}

impl State {
    fn take(&mut self, sample: anyhow::Result<Sample>) {
        if self.is_paused {
            return;
        }
        match sample {
            Ok(sample) => {
                self.history.push(sample);
                self.failure = None;
            }
            Err(error) => self.failure = Some(crate::failure::Report::new(&error).message),
        }
    }

    fn act(&mut self, action: Action) {
        let n_requests =
            self.history.latest().and_then(|sample| sample.requests.as_ref()).map_or(0, Vec::len);
        match action {
            Action::Quit => {}
            Action::Pause => self.is_paused = !self.is_paused,
            Action::Down(n) => self.n_scrolled = (self.n_scrolled + n).min(n_requests.saturating_sub(1)),
            Action::Up(n) => self.n_scrolled = self.n_scrolled.saturating_sub(n),
            Action::Top => self.n_scrolled = 0,
        }
    }
}

fn action(key: KeyEvent) -> Option<Action> {
    const PAGE: usize = 10;
    if key.kind == KeyEventKind::Release {
        return None;
    }
    match key.code {
        KeyCode::Char('c') if key.modifiers.contains(KeyModifiers::CONTROL) => Some(Action::Quit),
        KeyCode::Char('q') | KeyCode::Esc => Some(Action::Quit),
        KeyCode::Char('p' | ' ') => Some(Action::Pause),
        KeyCode::Down | KeyCode::Char('j') => Some(Action::Down(1)),
        KeyCode::Up | KeyCode::Char('k') => Some(Action::Up(1)),
        KeyCode::PageDown => Some(Action::Down(PAGE)),
        KeyCode::PageUp => Some(Action::Up(PAGE)),
        KeyCode::Home => Some(Action::Top),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_do_what_the_last_line_says() {
        let press = |code, modifiers| action(KeyEvent::new(code, modifiers));
        assert_eq!(press(KeyCode::Char('q'), KeyModifiers::NONE), Some(Action::Quit));
        assert_eq!(press(KeyCode::Char('c'), KeyModifiers::CONTROL), Some(Action::Quit));
        assert_eq!(press(KeyCode::Char('c'), KeyModifiers::NONE), None);
        assert_eq!(press(KeyCode::PageDown, KeyModifiers::NONE), Some(Action::Down(10)));
    }

    #[test]
    fn a_paused_view_takes_no_answers_and_a_lost_server_is_told() {
        let mut state = State::default();
        state.act(Action::Pause);
        state.take(Err(anyhow::anyhow!("gone")));
        assert_eq!(state.failure, None);
        state.act(Action::Pause);
        state.take(Err(anyhow::anyhow!("gone\nhint: start it")));
        assert_eq!(state.failure.as_deref(), Some("gone"));
        state.act(Action::Down(5));
        assert_eq!(state.n_scrolled, 0, "there is nothing to scroll");
    }
}
