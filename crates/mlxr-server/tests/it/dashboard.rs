//! The Grafana dashboard and the metrics: what it asks for is there.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::{Value, json};

use crate::harness::{TINY, app, ask_json, get, repository};

/// The names of the metrics a scrape shows, and the labels each has.
fn scraped(text: &str) -> BTreeMap<String, BTreeSet<String>> {
    let mut metrics: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    for line in text.lines().filter(|line| !line.is_empty() && !line.starts_with('#')) {
        let (name, rest) = line.split_at(line.find([' ', '{']).unwrap());
        let labels = rest.split_once('{').map_or("", |(_, labels)| labels.split_once('}').unwrap().0);
        let names =
            labels.split(',').filter_map(|label| label.split_once('=')).map(|(name, _)| name.to_owned());
        metrics.entry(name.to_owned()).or_default().extend(names);
    }
    metrics
}

/// Every string under a key that holds PromQL.
fn queries(value: &Value, found: &mut Vec<String>) {
    match value {
        Value::Object(fields) => {
            for (name, value) in fields {
                match value {
                    Value::String(text) if name == "expr" || name == "query" => found.push(text.clone()),
                    _ => queries(value, found),
                }
            }
        }
        Value::Array(items) => items.iter().for_each(|item| queries(item, found)),
        _ => {}
    }
}

/// The words of a query that begin like our metrics, and the labels it selects or groups by.
fn names(query: &str) -> (Vec<&str>, Vec<&str>) {
    let is_word = |c: char| c.is_ascii_alphanumeric() || c == '_';
    let words = query.split(|c| !is_word(c));
    let metrics = words.filter(|word| word.starts_with("mlxr_")).collect();
    let grouped = query.split("by (").skip(1).map(|rest| rest.split_once(')').unwrap().0);
    let selected = query.split('{').skip(1).map(|rest| rest.split(is_operator).next().unwrap());
    (metrics, grouped.chain(selected).collect())
}

fn is_operator(c: char) -> bool {
    matches!(c, '=' | '!' | '~' | '}')
}

#[tokio::test]
async fn the_dashboard_asks_for_metrics_and_labels_there_are() {
    let app = app();
    let body = json!({"model": TINY, "prompt": "a", "max_tokens": 3, "ignore_eos": true});
    ask_json(&app, "/v1/completions", body).await;
    let metrics = scraped(&get(&app, "/metrics").await.text);
    let text = std::fs::read_to_string(repository("packaging/grafana/mlxr.json")).unwrap();
    let dashboard: Value = serde_json::from_str(&text).unwrap();
    let mut asked = Vec::new();
    queries(&dashboard, &mut asked);
    let mut n_names = 0;
    for query in asked {
        let (wanted, labels) = names(&query);
        for name in &wanted {
            assert!(metrics.contains_key(*name), "{query}: there is no metric {name}");
        }
        for label in labels {
            let has = wanted.iter().all(|name| metrics[*name].contains(label));
            assert!(has, "{query}: a metric has no label {label}");
        }
        n_names += wanted.len();
    }
    assert!(n_names > 20, "the dashboard has queries");
}

#[test]
fn its_panels_have_places_and_numbers_of_their_own() {
    let text = std::fs::read_to_string(repository("packaging/grafana/mlxr.json")).unwrap();
    let dashboard: Value = serde_json::from_str(&text).unwrap();
    let mut ids = BTreeSet::new();
    let mut cells = BTreeSet::new();
    for panel in dashboard["panels"].as_array().unwrap() {
        assert!(ids.insert(panel["id"].as_u64().unwrap()), "{}", panel["title"]);
        let at = |name: &str| panel["gridPos"][name].as_u64().unwrap();
        assert!(at("x") + at("w") <= 24, "{}", panel["title"]);
        for y in at("y")..at("y") + at("h") {
            for x in at("x")..at("x") + at("w") {
                assert!(cells.insert((x, y)), "{} lies on another panel", panel["title"]);
            }
        }
    }
}
