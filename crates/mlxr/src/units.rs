//! Numbers as people read and write them.

use std::time::Duration;

/// `27.3 M`, `1.1 B`; exact below a thousand.
pub fn count(n: u64) -> String {
    scaled(n as f64, &[(1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "K")]).unwrap_or_else(|| n.to_string())
}

/// `28.9 MiB`; exact below a KiB.
pub fn bytes(n: u64) -> String {
    let steps =
        [(1024f64.powi(4), "TiB"), (1024f64.powi(3), "GiB"), (1024f64.powi(2), "MiB"), (1024.0, "KiB")];
    scaled(n as f64, &steps).unwrap_or_else(|| format!("{n} B"))
}

/// `12.3 ms`, `1.25 s`.
pub fn seconds(s: f64) -> String {
    if s < 1e-3 {
        format!("{:.0} us", s * 1e6)
    } else if s < 1.0 {
        format!("{:.1} ms", s * 1e3)
    } else if s < 120.0 {
        format!("{s:.2} s")
    } else {
        format!("{:.0} min {:02.0} s", (s / 60.0).floor(), s % 60.0)
    }
}

/// The largest unit that fits, whole.
pub fn span(seconds: u64) -> String {
    let (n, unit) = match seconds {
        0..60 => (seconds, "s"),
        60..3600 => (seconds / 60, "min"),
        3600..172_800 => (seconds / 3600, "h"),
        _ => (seconds / 86_400, "d"),
    };
    format!("{n} {unit}")
}

/// `90s`, `5m`, `12h`, `30d`, `52w`.
pub fn parse_span(text: &str) -> Result<Duration, String> {
    let expected = || "expected a time such as 12h, 30d or 52w".to_owned();
    let unit = text.chars().last().ok_or_else(expected)?;
    let factor = match unit {
        's' => 1,
        'm' => 60,
        'h' => 3600,
        'd' => 86_400,
        'w' => 604_800,
        _ => return Err(expected()),
    };
    let digits = &text[..text.len() - 1];
    let seconds = digits.parse::<u64>().ok().filter(|n| *n > 0).and_then(|n| n.checked_mul(factor));
    seconds.map(Duration::from_secs).ok_or_else(expected)
}

fn scaled(value: f64, steps: &[(f64, &str)]) -> Option<String> {
    let &(size, unit) = steps.iter().find(|(size, _)| *size <= value)?;
    let scaled = value / size;
    let decimals = if scaled < 100.0 { 1 } else { 0 };
    Some(format!("{scaled:.decimals$} {unit}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_get_the_largest_unit_that_fits() {
        assert_eq!(count(999), "999");
        assert_eq!(count(27_265_536), "27.3 M");
        assert_eq!(count(1_100_048_384), "1.1 B");
        assert_eq!(bytes(1023), "1023 B");
        assert_eq!(bytes(30_300_000), "28.9 MiB");
        assert_eq!(bytes(200 << 20), "200 MiB");
        assert_eq!(seconds(0.0123), "12.3 ms");
        assert_eq!(seconds(150.0), "2 min 30 s");
    }

    #[test]
    fn spans_are_read_and_written_in_one_unit() {
        assert_eq!(parse_span("30d"), Ok(Duration::from_secs(2_592_000)));
        assert_eq!(parse_span("90s"), Ok(Duration::from_secs(90)));
        for bad in ["", "d", "0d", "-1d", "1y", "30", "1.5h", "99999999999999999999d", "3ü"] {
            assert!(parse_span(bad).is_err(), "{bad}");
        }
        assert_eq!(span(59), "59 s");
        assert_eq!(span(7200), "2 h");
        assert_eq!(span(2_592_000), "30 d");
    }
}
