//! The picture: what there is, the tokens of the last minute, the models, the requests.

use mlxr_api::native::requests::RunningRequest;
use mlxr_api::native::stats::{EmbedderStats, EngineStats};
use ratatui::Frame;
use ratatui::layout::{Constraint, Layout, Rect};
use ratatui::style::{Color, Style, Stylize};
use ratatui::text::{Line, Span};
use ratatui::widgets::{Block, Borders, Cell, Paragraph, Row, Sparkline, Table};

use super::history::{History, Total};
use super::{Sample, State};
use crate::units::{bytes, count, span};

const TTFT: &str = "mlxr_time_to_first_token_seconds";
const ITL: &str = "mlxr_inter_token_latency_seconds";

/// Lines of the curve, its title among them.
const CURVE_HEIGHT: u16 = 5;

pub fn draw(frame: &mut Frame<'_>, state: &State) {
    let Some(latest) = state.history.latest() else { return };
    let n_models = latest.stats.models.len() + latest.stats.embedders.len();
    let models_height = u16::try_from(n_models.max(1)).unwrap_or(u16::MAX).saturating_add(2);
    let [head, curve, models, requests, foot] = Layout::vertical([
        Constraint::Length(2),
        Constraint::Length(CURVE_HEIGHT),
        Constraint::Length(models_height),
        Constraint::Min(0),
        Constraint::Length(1),
    ])
    .areas(frame.area());
    frame.render_widget(header(state, latest), head);
    draw_curve(frame, &state.history, curve);
    draw_models(frame, &state.history, latest, models);
    draw_requests(frame, latest, state.n_scrolled, requests);
    frame.render_widget(footer(state), foot);
}

fn header<'a>(state: &'a State, latest: &'a Sample) -> Paragraph<'a> {
    let stats = &latest.stats;
    let first = Line::from(vec![
        Span::from("mlxr ").bold(),
        Span::from(format!("{} at {}, up {}", stats.version, state.server, span(stats.uptime_s as u64))),
    ]);
    let memory = &stats.memory;
    let process = stats.process_bytes.map_or_else(String::new, |n| format!("; process {}", bytes(n)));
    let used =
        format!("memory {} of {} planned{process}", bytes(memory.used_bytes), bytes(memory.limit_bytes));
    let sum = |of: fn(&EngineStats) -> usize| stats.models.iter().map(of).sum::<usize>();
    let work =
        format!("; {} running, {} waiting", sum(|model| model.n_running), sum(|model| model.n_waiting));
    Paragraph::new(vec![first, Line::from(used + &work)])
}

fn draw_curve(frame: &mut Frame<'_>, history: &History, area: Rect) {
    let points = history.generated();
    let now = points.last().copied().unwrap_or_default();
    let peak = points.iter().copied().fold(0.0, f64::max);
    let title = format!(" generated: {now:.0} tok/s, at most {peak:.0} in the last minute ");
    let block = Block::new().borders(Borders::TOP).title(title);
    // The newest point is on the right; those that do not fit fall off on the left.
    let width = usize::from(area.width);
    let n_empty = width.saturating_sub(points.len());
    let shown = points[points.len().saturating_sub(width)..].iter().map(|rate| rate.round() as u64);
    let data: Vec<u64> = std::iter::repeat_n(0, n_empty).chain(shown).collect();
    frame.render_widget(Sparkline::default().block(block).data(data).style(Color::Green), area);
}

fn draw_models(frame: &mut Frame<'_>, history: &History, latest: &Sample, area: Rect) {
    let heading = [
        "MODEL",
        "RUN",
        "WAIT",
        "TOK/S",
        "ROWS/S",
        "BATCH",
        "KV",
        "CACHED",
        "TTFT p50/p95",
        "ITL p50/p95",
        "MEMORY",
    ];
    let engines = latest.stats.models.iter().map(|engine| engine_row(history, engine));
    let embedders = latest.stats.embedders.iter().map(embedder_row);
    let mut rows: Vec<Row<'_>> = engines.chain(embedders).collect();
    if rows.is_empty() {
        rows.push(Row::new([Cell::from("no model is in memory").dim()]));
    }
    let widths = [
        Constraint::Min(12),
        Constraint::Length(4),
        Constraint::Length(5),
        Constraint::Length(6),
        Constraint::Length(7),
        Constraint::Length(6),
        Constraint::Length(5),
        Constraint::Length(6),
        Constraint::Length(13),
        Constraint::Length(13),
        Constraint::Length(9),
    ];
    let block = Block::new().borders(Borders::TOP).title(" models; latencies of the last minute ");
    let table = Table::new(rows, widths).header(Row::new(heading).style(Style::new().bold())).block(block);
    frame.render_widget(table, area);
}

fn engine_row(history: &History, engine: &EngineStats) -> Row<'static> {
    let model = engine.model.as_str();
    let rate = |total| history.rate(model, total);
    let (rows, steps) = (rate(Total::Rows), rate(Total::Steps));
    let batch = rows.zip(steps).filter(|(_, steps)| *steps > 0.0).map(|(rows, steps)| rows / steps);
    let n_used = engine.n_blocks.saturating_sub(engine.n_blocks_free);
    let kv = (engine.n_blocks > 0).then(|| n_used as f64 / engine.n_blocks as f64);
    let quantiles = |metric: &str| {
        let of = |q| history.quantile(model, metric, q).map_or_else(dash, short_time);
        format!("{}/{}", of(0.5), of(0.95))
    };
    let waiting = Cell::from(engine.n_waiting.to_string());
    Row::new([
        Cell::from(engine.model.clone()),
        Cell::from(engine.n_running.to_string()),
        if engine.n_waiting > 0 { waiting.yellow() } else { waiting },
        Cell::from(rate(Total::Generated).map_or_else(dash, |rate| format!("{rate:.0}"))),
        Cell::from(rows.map_or_else(dash, |rate| format!("{rate:.0}"))),
        Cell::from(batch.map_or_else(dash, |batch| format!("{batch:.1}"))),
        Cell::from(kv.map_or_else(dash, percent)),
        Cell::from(history.share(model, Total::CacheHits, Total::CacheLookups).map_or_else(dash, percent)),
        Cell::from(quantiles(TTFT)),
        Cell::from(quantiles(ITL)),
        Cell::from(bytes(engine.memory_bytes)),
    ])
}

/// A model that makes vectors has texts and no sequences.
fn embedder_row(embedder: &EmbedderStats) -> Row<'static> {
    let texts = format!("{} texts", count(embedder.n_texts));
    let mut cells =
        vec![Cell::from(embedder.model.clone()), Cell::from("-"), Cell::from(embedder.n_waiting.to_string())];
    cells.extend((0..5).map(|_| Cell::from("-")));
    cells.extend([Cell::from(texts), Cell::from("-"), Cell::from(bytes(embedder.memory_bytes))]);
    Row::new(cells)
}

fn draw_requests(frame: &mut Frame<'_>, latest: &Sample, n_scrolled: usize, area: Rect) {
    let Some(requests) = &latest.requests else {
        let block = Block::new().borders(Borders::TOP).title(" requests ");
        let text = "the key may not see them; that takes the scope admin";
        frame.render_widget(Paragraph::new(text).dim().block(block), area);
        return;
    };
    let widths = [
        Constraint::Min(16),
        Constraint::Length(20),
        Constraint::Length(11),
        Constraint::Length(13),
        Constraint::Length(8),
        Constraint::Length(10),
        Constraint::Length(8),
    ];
    let heading = ["REQUEST", "MODEL", "STATE", "PROMPT", "CACHED", "GENERATED", "AGE"];
    let rows = requests.iter().skip(n_scrolled).map(request_row);
    let title = format!(" {} requests ", requests.len());
    let block = Block::new().borders(Borders::TOP).title(title);
    let table = Table::new(rows, widths).header(Row::new(heading).style(Style::new().bold())).block(block);
    frame.render_widget(table, area);
}

fn request_row(request: &RunningRequest) -> Row<'static> {
    let style = match request.state.as_str() {
        "decoding" => Style::new(),
        "prefilling" => Style::new().cyan(),
        _ => Style::new().yellow(),
    };
    Row::new([
        request.label.clone().unwrap_or_else(|| request.id.to_string()),
        request.model.clone(),
        request.state.clone(),
        format!("{}/{}", request.n_done_prompt, request.n_prompt),
        request.n_cached.to_string(),
        request.n_generated.to_string(),
        span(request.age_s as u64),
    ])
    .style(style)
}

fn footer(state: &State) -> Paragraph<'_> {
    if let Some(failure) = &state.failure {
        return Paragraph::new(format!("{failure}; asking again")).red();
    }
    let keys = "q quit   p pause   up/down scroll";
    if state.is_paused {
        return Paragraph::new(Line::from(vec![Span::from("paused   ").yellow(), Span::from(keys).dim()]));
    }
    Paragraph::new(keys).dim()
}

fn dash() -> String {
    "-".to_owned()
}

fn percent(share: f64) -> String {
    format!("{:.0}%", share * 100.0)
}

/// In five characters and a unit.
fn short_time(seconds: f64) -> String {
    match seconds {
        s if s < 0.01 => format!("{:.1}ms", s * 1e3),
        s if s < 1.0 => format!("{:.0}ms", s * 1e3),
        s if s < 100.0 => format!("{s:.1}s"),
        s => format!("{s:.0}s"),
    }
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, Instant};

    use ratatui::Terminal;
    use ratatui::backend::TestBackend;
    use serde_json::json;

    use super::super::history::tests::sample;
    use super::*;

    fn picture(state: &State, width: u16, height: u16) -> Vec<String> {
        let mut terminal = Terminal::new(TestBackend::new(width, height)).unwrap();
        terminal.draw(|frame| draw(frame, state)).unwrap();
        let cells = terminal.backend().buffer().content();
        let lines = cells.chunks(usize::from(width));
        let text = |line: &[ratatui::buffer::Cell]| {
            line.iter().map(ratatui::buffer::Cell::symbol).collect::<String>()
        };
        lines.map(|line| text(line).trim_end().to_owned()).collect()
    }

    fn busy() -> State {
        let start = Instant::now();
        let mut state = State { server: "/run/mlxr.sock".to_owned(), ..State::default() };
        for (s, n) in [(0, 1000), (1, 1040), (2, 1120)] {
            state.history.push(sample(start + Duration::from_secs(s), n));
        }
        let mut last = sample(start + Duration::from_secs(3), 1240);
        let request = json!({
            "model": "qwen", "id": 7, "label": "chatcmpl-1", "state": "decoding", "priority": 0, "n_choices": 1,
            "n_prompt": 20, "n_done_prompt": 20, "n_cached": 16, "n_generated": 33, "age_s": 2.5,
        });
        let mut waiting = request.clone();
        (waiting["label"], waiting["state"]) = (json!(null), json!("waiting"));
        last.requests =
            Some(vec![serde_json::from_value(request).unwrap(), serde_json::from_value(waiting).unwrap()]);
        state.history.push(last);
        state
    }

    #[test]
    fn the_picture_says_what_is_going_on() {
        let lines = picture(&busy(), 110, 17);
        let expected = [
            "mlxr 1.2.3 at /run/mlxr.sock, up 1 h",
            "memory 3.0 GiB of 8.0 GiB planned; process 1.0 GiB; 2 running, 3 waiting",
            "generated: 120 tok/s, at most 120 in the last minute",
            "models; latencies of the last minute",
            "MODEL",
            "qwen",
            "2 requests",
            "REQUEST",
            "chatcmpl-1",
            "7 ",
            "q quit",
        ];
        let mut rest = lines.iter();
        for text in expected {
            assert!(rest.any(|line| line.contains(text)), "{text:?} is not in\n{}", lines.join("\n"));
        }
        let words = |name: &str| -> Vec<String> {
            let line = lines.iter().find(|line| line.starts_with(name)).unwrap();
            line.split_whitespace().map(str::to_owned).collect()
        };
        let row = ["qwen", "2", "3", "80", "80", "2.0", "75%", "40%", "30ms/39ms", "30ms/39ms", "3.0", "GiB"];
        assert_eq!(words("qwen"), row);
        assert_eq!(words("chatcmpl-1"), ["chatcmpl-1", "qwen", "decoding", "20/20", "16", "33", "2", "s"]);
        assert!(lines[6].ends_with('█'), "the newest point is the highest: {:?}", lines[6]);
    }

    #[test]
    fn the_last_line_tells_what_is_wrong() {
        let mut state = busy();
        state.is_paused = true;
        assert!(picture(&state, 80, 20).last().unwrap().starts_with("paused"));
        state.failure = Some("no server answers".to_owned());
        assert_eq!(picture(&state, 80, 20).last().unwrap(), "no server answers; asking again");
        state.n_scrolled = 1;
        assert!(!picture(&state, 110, 20).join("\n").contains("chatcmpl-1"));
    }

    #[test]
    fn any_size_of_terminal_can_be_drawn_on() {
        for (width, height) in [(1, 1), (3, 40), (200, 3), (400, 100)] {
            assert_eq!(picture(&busy(), width, height).len(), usize::from(height));
        }
    }
}
