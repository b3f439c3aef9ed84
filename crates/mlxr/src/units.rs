//! Numbers as people read them.

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
}
