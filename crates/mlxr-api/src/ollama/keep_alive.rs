//! How long a model stays in memory: a number of seconds, or a text such as `"1h30m"`. What is negative is for ever.

use std::fmt;
use std::time::Duration;

use serde::de::{self, Visitor};
use serde::{Deserialize, Deserializer};

use crate::schema::{self, schema_of};

/// A time to stay.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum KeepAlive {
    For(Duration),
    Forever,
}

/// Units of texts, longest spelling first where one begins like another, in nanoseconds.
const UNITS: [(&str, f64); 8] = [
    ("ns", 1.0),
    ("us", 1e3),
    ("\u{b5}s", 1e3),
    ("\u{3bc}s", 1e3),
    ("ms", 1e6),
    ("s", 1e9),
    ("m", 6e10),
    ("h", 3.6e12),
];

impl KeepAlive {
    /// Longer times than a `Duration` can hold are for ever.
    fn from_s(seconds: f64) -> KeepAlive {
        if seconds < 0.0 {
            return KeepAlive::Forever;
        }
        Duration::try_from_secs_f64(seconds).map_or(KeepAlive::Forever, KeepAlive::For)
    }

    /// Numbers with units, one after the other, behind an optional sign; `0` needs no unit.
    fn from_text(text: &str) -> Option<KeepAlive> {
        let (is_negative, mut rest) = match text.strip_prefix('-') {
            Some(rest) => (true, rest),
            None => (false, text.strip_prefix('+').unwrap_or(text)),
        };
        if rest == "0" {
            return Some(KeepAlive::For(Duration::ZERO));
        }
        if rest.is_empty() {
            return None;
        }
        let mut total_ns = 0.0;
        while !rest.is_empty() {
            let n_digits = rest.bytes().take_while(|byte| byte.is_ascii_digit() || *byte == b'.').count();
            let number: f64 = rest[..n_digits].parse().ok()?;
            rest = &rest[n_digits..];
            let (unit, ns) = UNITS.iter().find(|(unit, _)| rest.starts_with(unit))?;
            total_ns += number * ns;
            rest = &rest[unit.len()..];
        }
        let is_forever = is_negative && total_ns > 0.0;
        Some(if is_forever { KeepAlive::Forever } else { KeepAlive::from_s(total_ns / 1e9) })
    }
}

schema_of!(KeepAlive, "ollama.KeepAlive", schema::any_of([schema::number(), schema::text()]));

impl<'de> Deserialize<'de> for KeepAlive {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct AnyKeepAlive;

        impl Visitor<'_> for AnyKeepAlive {
            type Value = KeepAlive;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a number of seconds or a duration such as \"5m\"")
            }

            fn visit_str<E: de::Error>(self, text: &str) -> Result<KeepAlive, E> {
                KeepAlive::from_text(text).ok_or_else(|| E::invalid_value(de::Unexpected::Str(text), &self))
            }

            fn visit_u64<E: de::Error>(self, seconds: u64) -> Result<KeepAlive, E> {
                Ok(KeepAlive::For(Duration::from_secs(seconds)))
            }

            fn visit_i64<E: de::Error>(self, seconds: i64) -> Result<KeepAlive, E> {
                Ok(u64::try_from(seconds)
                    .map_or(KeepAlive::Forever, |s| KeepAlive::For(Duration::from_secs(s))))
            }

            fn visit_f64<E: de::Error>(self, seconds: f64) -> Result<KeepAlive, E> {
                Ok(KeepAlive::from_s(seconds))
            }
        }

        deserializer.deserialize_any(AnyKeepAlive)
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn read(value: Value) -> Result<KeepAlive, String> {
        serde_json::from_value(value).map_err(|error| error.to_string())
    }

    #[test]
    fn numbers_are_seconds_and_texts_have_units() {
        let check = |value: Value, ms: u64| {
            assert_eq!(read(value.clone()), Ok(KeepAlive::For(Duration::from_millis(ms))), "{value}");
        };
        check(json!(0), 0);
        check(json!(3600), 3_600_000);
        check(json!(1.5), 1500);
        check(json!("0"), 0);
        check(json!("5m"), 300_000);
        check(json!("1h30m"), 5_400_000);
        check(json!("1.5s"), 1500);
        check(json!("+250ms"), 250);
        check(json!("-0s"), 0);
        for forever in [json!(-1), json!(-0.5), json!("-1m"), json!("-1ns"), json!(1e300)] {
            assert_eq!(read(forever.clone()), Ok(KeepAlive::Forever), "{forever}");
        }
    }

    #[test]
    fn what_is_no_time_is_refused() {
        for bad in [
            json!(""),
            json!("5"),
            json!("m"),
            json!("5 m"),
            json!("5x"),
            json!("-"),
            json!("1..5s"),
            json!(true),
        ] {
            assert!(read(bad.clone()).is_err(), "{bad}");
        }
        assert!(read(json!("soon")).unwrap_err().contains("a duration such as"));
    }
}
