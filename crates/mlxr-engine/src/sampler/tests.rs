//! Each sampler against its definition, against transformers, and as a distribution.

use mlxr_tensor::EXP_SUM_TOLERANCE;
use proptest::prelude::*;
use serde_json::Value;

use super::*;

/// Token probabilities by id, straight from the definition of the softmax.
fn softmax(logits: &[f64]) -> Vec<f64> {
    let max = logits.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let exp: Vec<f64> = logits.iter().map(|l| (l - max).exp()).collect();
    let sum: f64 = exp.iter().sum();
    exp.into_iter().map(|e| e / sum).collect()
}

/// Ids by descending logit, lower ids first among equals.
fn ranked(logits: &[f32]) -> Vec<usize> {
    let mut ids: Vec<usize> = (0..logits.len()).collect();
    ids.sort_by(|&a, &b| logits[b].total_cmp(&logits[a]).then(a.cmp(&b)));
    ids
}

fn wide(logits: &[f32]) -> Vec<f64> {
    logits.iter().map(|&l| f64::from(l)).collect()
}

fn distribution(params: SamplingParams, logits: &[f32], history: &[u32]) -> Vec<(u32, f32)> {
    assert_eq!(params.validate(), Ok(()));
    let mut left = Sampler::new(Arc::new(params), 0, &[]).distribution(logits, history, 0);
    left.sort_by_key(|&(id, _)| id);
    left
}

fn kept(params: SamplingParams, logits: &[f32]) -> Vec<usize> {
    distribution(params, logits, &[]).into_iter().map(|(id, _)| id as usize).collect()
}

fn sorted(mut ids: Vec<usize>) -> Vec<usize> {
    ids.sort_unstable();
    ids
}

/// Rows without values so close that rounding decides what is kept.
fn logits() -> impl Strategy<Value = Vec<f32>> {
    (2usize..300, any::<u64>(), 1u32..40).prop_map(|(n, seed, spread)| {
        let rng = TokenRng::new(seed, 0);
        (0..n as u64).map(|i| (rng.uniform(i, Draw::Token) * f64::from(spread)) as f32).collect()
    })
}

/// The shortest prefix of `order` whose probabilities reach `mass`, or `None` when it is too close to call.
fn prefix(order: &[usize], p: &[f64], mass: f64) -> Option<Vec<usize>> {
    let mut sum = 0.0;
    for (i, &id) in order.iter().enumerate() {
        sum += p[id];
        if (sum - mass).abs() < 1e-5 {
            return None;
        }
        if sum > mass {
            return Some(sorted(order[..=i].to_vec()));
        }
    }
    Some(sorted(order.to_vec()))
}

proptest! {
    #[test]
    fn top_k_keeps_the_k_largest(logits in logits(), k in 1usize..320) {
        let expected = sorted(ranked(&logits).into_iter().take(k).collect());
        prop_assert_eq!(kept(SamplingParams { top_k: k, ..SamplingParams::neutral() }, &logits), expected);
    }

    #[test]
    fn top_p_keeps_the_smallest_likely_set(logits in logits(), top_p in 0.01f32..0.999) {
        let expected = prefix(&ranked(&logits), &softmax(&wide(&logits)), f64::from(top_p));
        prop_assume!(expected.is_some());
        let params = SamplingParams { top_p, ..SamplingParams::neutral() };
        prop_assert_eq!(kept(params, &logits), expected.unwrap());
    }

    #[test]
    fn min_p_keeps_what_is_likely_beside_the_best(logits in logits(), min_p in 0.001f32..0.999) {
        let p = softmax(&wide(&logits));
        let floor = f64::from(min_p) * p.iter().copied().fold(0.0, f64::max);
        prop_assume!(p.iter().all(|p| (p / floor - 1.0).abs() > 1e-4));
        let expected: Vec<usize> = (0..p.len()).filter(|&id| p[id] >= floor).collect();
        prop_assert_eq!(kept(SamplingParams { min_p, ..SamplingParams::neutral() }, &logits), expected);
    }

    #[test]
    fn typical_keeps_what_is_about_as_surprising_as_expected(logits in logits(), typical_p in 0.05f32..0.95) {
        let p = softmax(&wide(&logits));
        let entropy: f64 = p.iter().map(|p| -p * p.ln()).sum();
        let off = |id: usize| (-p[id].ln() - entropy).abs();
        let mut order: Vec<usize> = (0..p.len()).collect();
        order.sort_by(|&a, &b| off(a).total_cmp(&off(b)));
        // Neighbours that f32 could swap decide nothing here.
        prop_assume!(order.windows(2).all(|pair| off(pair[1]) - off(pair[0]) > 1e-5));
        let expected = prefix(&order, &p, f64::from(typical_p));
        prop_assume!(expected.is_some());
        let params = SamplingParams { typical_p, ..SamplingParams::neutral() };
        prop_assert_eq!(kept(params, &logits), expected.unwrap());
    }

    #[test]
    fn top_n_sigma_keeps_what_is_near_the_best(logits in logits(), n_sigma in 0.1f32..3.0) {
        let values = wide(&logits);
        let n = values.len() as f64;
        let mean = values.iter().sum::<f64>() / n;
        let sigma = (values.iter().map(|l| (l - mean).powi(2)).sum::<f64>() / n).sqrt();
        let floor = values.iter().copied().fold(f64::MIN, f64::max) - f64::from(n_sigma) * sigma;
        prop_assume!(values.iter().all(|l| (l - floor).abs() > 1e-4));
        let expected: Vec<usize> = (0..values.len()).filter(|&id| values[id] >= floor).collect();
        let params = SamplingParams { top_n_sigma: n_sigma, ..SamplingParams::neutral() };
        prop_assert_eq!(kept(params, &logits), expected);
    }

    #[test]
    fn xtc_excludes_all_top_choices_but_the_last(logits in logits(), threshold in 0.01f32..0.5) {
        let p = softmax(&wide(&logits));
        prop_assume!(p.iter().all(|p| (p - f64::from(threshold)).abs() > 1e-6));
        let top: Vec<usize> =
            ranked(&logits).into_iter().filter(|&id| p[id] >= f64::from(threshold)).collect();
        let excluded = &top[..top.len().saturating_sub(1)];
        let expected: Vec<usize> = (0..p.len()).filter(|id| !excluded.contains(id)).collect();
        let params = SamplingParams {
            xtc_probability: 1.0, xtc_threshold: threshold, ..SamplingParams::neutral()
        };
        prop_assert_eq!(kept(params, &logits), expected);
    }

    #[test]
    fn dynamic_temperature_follows_the_entropy(
        logits in logits(), base in 0.5f32..1.5, range in 0.1f32..0.5, exponent in 0.5f32..2.0
    ) {
        let p = softmax(&wide(&logits));
        let entropy: f64 = p.iter().filter(|&&p| p > 0.0).map(|p| -p * p.ln()).sum();
        let part = (entropy / (p.len() as f64).ln()).powf(f64::from(exponent));
        let temperature = f64::from(base - range) + 2.0 * f64::from(range) * part;
        prop_assume!(temperature > 1e-3);
        let expected = softmax(&wide(&logits).iter().map(|l| l / temperature).collect::<Vec<_>>());
        let params = SamplingParams {
            temperature: base, dynatemp_range: range, dynatemp_exponent: exponent, ..SamplingParams::neutral()
        };
        for (id, p) in distribution(params, &logits, &[]) {
            prop_assert!((f64::from(p) - expected[id as usize]).abs() < 1e-3);
        }
    }

    #[test]
    fn penalties_count_the_last_tokens(
        logits in proptest::collection::vec(-8f32..8.0, 12),
        history in proptest::collection::vec(0u32..12, 0..30),
        last_n in proptest::option::of(0usize..40),
        (repeat, frequency, presence) in (0.5f32..2.0, -1f32..1.0, -1f32..1.0),
    ) {
        let window: Vec<u32> = match last_n {
            Some(n) => history.iter().rev().take(n).copied().collect(),
            None => history.clone(),
        };
        let penalised: Vec<f64> = logits.iter().enumerate().map(|(id, &logit)| {
            let count = window.iter().filter(|&&t| t as usize == id).count() as f64;
            let logit = f64::from(logit);
            if count == 0.0 { return logit; }
            let scaled = if logit > 0.0 { logit / f64::from(repeat) } else { logit * f64::from(repeat) };
            scaled - count * f64::from(frequency) - f64::from(presence)
        }).collect();
        let expected = softmax(&penalised);
        let penalties = Penalties { last_n, repeat, frequency, presence };
        let params = SamplingParams { penalties, ..SamplingParams::neutral() };
        for (id, p) in distribution(params, &logits, &history) {
            prop_assert!((f64::from(p) - expected[id as usize]).abs() < 1e-5);
        }
    }

    #[test]
    fn no_valid_setting_panics_or_leaves_the_vocabulary(
        logits in logits(),
        (temperature, range) in (0f32..3.0, prop_oneof![Just(0f32), 0f32..3.0]),
        (top_k, top_p, min_p) in (0usize..50, 0.001f32..=1.0, 0f32..=1.0),
        (typical_p, top_n_sigma) in (0.001f32..=1.0, 0f32..4.0),
        (xtc_probability, xtc_threshold) in (0f32..=1.0, 0f32..=1.0),
        mirostat in prop_oneof![
            Just(Mirostat::Off),
            (0.1f32..10.0, 0f32..1.0).prop_map(|(tau, eta)| Mirostat::V1 { tau, eta }),
            (0.1f32..10.0, 0f32..1.0).prop_map(|(tau, eta)| Mirostat::V2 { tau, eta }),
        ],
        order in Just(Stage::DEFAULT_ORDER.to_vec()).prop_shuffle(),
    ) {
        let params = SamplingParams {
            temperature, dynatemp_range: range, top_k, top_p, min_p, typical_p, top_n_sigma,
            xtc_probability, xtc_threshold, mirostat, order,
            penalties: Penalties { repeat: 1.3, frequency: 0.2, presence: 0.1, last_n: Some(8) },
            dry: Dry { multiplier: 0.8, ..Dry::default() },
            ..SamplingParams::default()
        };
        prop_assert_eq!(params.validate(), Ok(()));
        let mut sampler = Sampler::new(Arc::new(params), 5, &[]);
        let (mut history, mut scratch) = (Vec::new(), Candidates::default());
        for i in 0..12 {
            let id = sampler.sample(&logits, &history, i, &mut scratch).unwrap();
            prop_assert!((id as usize) < logits.len());
            history.push(id);
            sampler.accept(b"x");
        }
    }
}

#[test]
fn samplers_leave_what_transformers_leaves() {
    let golden: Value =
        serde_json::from_str(include_str!("../../../../golden/sampler/sampler.json")).unwrap();
    let numbers = |value: &Value| -> Vec<f32> {
        value.as_array().unwrap().iter().map(|v| v.as_f64().unwrap() as f32).collect()
    };
    let history: Vec<u32> = numbers(&golden["history"]).into_iter().map(|v| v as u32).collect();
    let cases = golden["cases"].as_array().unwrap();
    assert_eq!(cases.len(), 57);
    for case in cases {
        let (sampler, value) = (case["sampler"].as_str().unwrap(), case["value"].as_f64().unwrap());
        let neutral = SamplingParams::neutral();
        let params = match sampler {
            "temperature" => SamplingParams { temperature: value as f32, ..neutral },
            "top_k" => SamplingParams { top_k: value as usize, ..neutral },
            "top_p" => SamplingParams { top_p: value as f32, ..neutral },
            "min_p" => SamplingParams { min_p: value as f32, ..neutral },
            "typ_p" => SamplingParams { typical_p: value as f32, ..neutral },
            "repeat_penalty" => {
                let penalties = Penalties { last_n: None, repeat: value as f32, ..Penalties::default() };
                SamplingParams { penalties, ..neutral }
            }
            other => panic!("unknown sampler {other}"),
        };
        let logits = numbers(&golden["rows"][case["row"].as_u64().unwrap() as usize]);
        let found = distribution(params, &logits, &history);
        let expected = case["left"].as_array().unwrap();
        assert_eq!(found.len(), expected.len(), "{sampler} {value}");
        for ((id, p), expected) in found.into_iter().zip(expected) {
            assert_eq!(u64::from(id), expected[0].as_u64().unwrap(), "{sampler} {value}");
            let expected = expected[1].as_f64().unwrap();
            assert!(
                (f64::from(p) - expected).abs() <= 1e-6 + 1e-4 * expected,
                "{sampler} {value}: {p} {expected}"
            );
        }
    }
}

fn draw(params: &SamplingParams, seed: u64, n: u64, logits: &[f32]) -> Vec<u32> {
    let mut sampler = Sampler::new(Arc::new(params.clone()), seed, &[]);
    let mut scratch = Candidates::default();
    (0..n).map(|i| sampler.sample(logits, &[], i, &mut scratch).unwrap()).collect()
}

#[test]
fn draws_follow_the_distribution() {
    let logits = [0.3f32, 1.7, -1.0, 0.9, 2.2, -0.4, 0.0, 1.1];
    let n = 40_000;
    for (seed, params) in [
        (1, SamplingParams::neutral()),
        (2, SamplingParams { temperature: 0.6, ..SamplingParams::neutral() }),
        (3, SamplingParams { top_k: 5, ..SamplingParams::neutral() }),
        (4, SamplingParams { top_p: 0.8, temperature: 1.4, ..SamplingParams::neutral() }),
    ] {
        let expected = distribution(params.clone(), &logits, &[]);
        let drawn = draw(&params, seed, n, &logits);
        let mut chi_square = 0.0;
        let mut n_seen = 0;
        for &(id, p) in &expected {
            let count = drawn.iter().filter(|&&drawn| drawn == id).count();
            let expected = f64::from(p) * n as f64;
            chi_square += (count as f64 - expected).powi(2) / expected;
            n_seen += count;
        }
        assert_eq!(n_seen as u64, n, "only tokens that are left are drawn");
        // The 99.9th percentile at 7 degrees of freedom is 24.3; fewer degrees have a lower one.
        assert!(chi_square < 24.3, "seed {seed}: {chi_square}");
    }
}

#[test]
fn xtc_acts_as_often_as_asked() {
    let logits = [2.0f32, 1.9, 0.0];
    let params = SamplingParams { xtc_probability: 0.3, xtc_threshold: 0.2, ..SamplingParams::neutral() };
    let p = softmax(&wide(&logits));
    let n = 40_000;
    let count = draw(&params, 9, n, &logits).into_iter().filter(|&id| id == 0).count() as f64;
    let expected = 0.7 * p[0] * n as f64;
    assert!((count - expected).abs() < 4.0 * expected.sqrt(), "{count} of {expected}");
}

/// Mirostat straight from its description, in f64 and by full sorts.
fn naive_mirostat(mode: Mirostat, logits: &[f32], seed: u64, n: u64) -> Vec<u32> {
    let rng = TokenRng::new(seed, 0);
    let p = softmax(&wide(logits));
    let order = ranked(logits);
    let mut mu = 2.0
        * match mode {
            Mirostat::V1 { tau, .. } | Mirostat::V2 { tau, .. } => f64::from(tau),
            Mirostat::Off => unreachable!(),
        };
    let mut drawn = Vec::new();
    for i in 0..n {
        let (k, tau, eta) = match mode {
            Mirostat::V1 { tau, eta } => {
                let (mut tb, mut tt) = (0.0, 0.0);
                for j in 0..99.min(order.len() - 1) {
                    let t = ((j + 2) as f64 / (j + 1) as f64).ln();
                    tb += t * (p[order[j]] / p[order[j + 1]]).ln();
                    tt += t * t;
                }
                let s = tb / tt;
                let e = s - 1.0;
                let k = (e * mu.exp2() / (1.0 - (order.len() as f64).powf(-e))).powf(1.0 / s);
                (k.round().max(1.0) as usize, f64::from(tau), f64::from(eta))
            }
            Mirostat::V2 { tau, eta } => {
                let k = order.iter().filter(|&&id| -p[id].log2() <= mu).count();
                (k.max(1), f64::from(tau), f64::from(eta))
            }
            Mirostat::Off => unreachable!(),
        };
        let left = &order[..k.min(order.len())];
        let sum: f64 = left.iter().map(|&id| p[id]).sum();
        let mut u = rng.uniform(i, Draw::Token) * sum;
        let chosen = *left
            .iter()
            .find(|&&id| {
                u -= p[id];
                u < 0.0
            })
            .unwrap();
        mu -= eta * (-(p[chosen] / sum).log2() - tau);
        drawn.push(chosen as u32);
    }
    drawn
}

#[test]
fn mirostat_equals_its_description_and_meets_its_target() {
    let rng = TokenRng::new(11, 0);
    let logits: Vec<f32> = (0..400).map(|i| (8.0 * rng.uniform(i, Draw::Xtc)) as f32).collect();
    for mirostat in [Mirostat::V1 { tau: 3.0, eta: 0.1 }, Mirostat::V2 { tau: 3.0, eta: 0.1 }] {
        let params = SamplingParams { mirostat, ..SamplingParams::neutral() };
        let drawn = draw(&params, 4, 300, &logits);
        assert_eq!(drawn, naive_mirostat(mirostat, &logits, 4, 300));
        let distinct = drawn.iter().collect::<std::collections::BTreeSet<_>>().len();
        assert!((4..60).contains(&distinct), "about 2^3 tokens of 400 are in play, not {distinct}");
    }
}

#[test]
fn greedy_takes_the_largest_after_penalties_whatever_else_is_set() {
    let logits = [1.0f32, 3.0, 2.9];
    let greedy = SamplingParams { xtc_probability: 1.0, ..SamplingParams::greedy() };
    assert_eq!(draw(&greedy, 0, 1, &logits), [1]);
    let penalties = Penalties { presence: 0.5, ..Penalties::default() };
    let mut sampler = Sampler::new(Arc::new(SamplingParams { penalties, ..greedy }), 0, &[]);
    assert_eq!(sampler.sample(&logits, &[1], 0, &mut Candidates::default()), Ok(2));
}

#[test]
fn biases_and_ignore_eos_forbid_tokens() {
    let logits = [5.0f32, 4.0, 3.0, 2.0];
    let params = SamplingParams {
        logit_bias: vec![(1, f32::NEG_INFINITY), (3, 1.5)],
        ignore_eos: true,
        ..SamplingParams::greedy()
    };
    let mut sampler = Sampler::new(Arc::new(params), 0, &[0]);
    assert_eq!(sampler.sample(&logits, &[], 0, &mut Candidates::default()), Ok(3));
}

#[test]
fn logits_that_are_no_distribution_are_an_error() {
    let mut sampler = Sampler::new(Arc::new(SamplingParams::default()), 0, &[]);
    let mut sample = |logits: &[f32]| sampler.sample(logits, &[], 0, &mut Candidates::default());
    let error = sample(&[0.0, f32::NAN]).unwrap_err();
    assert_eq!(error.to_string(), "the model's logit for token 1 is NaN");
    assert_eq!(sample(&[f32::INFINITY, 0.0]), Err(SampleError::BadLogit { id: 0, logit: f32::INFINITY }));
    assert_eq!(sample(&[f32::NEG_INFINITY; 3]), Err(SampleError::NoCandidate));
    assert_eq!(sample(&[]), Err(SampleError::NoCandidate));
    assert!(sample(&[0.0, f32::NEG_INFINITY]).is_ok());
}

#[test]
fn a_choice_has_its_own_numbers_and_the_seed_repeats_them() {
    let logits = [0.0f32; 64];
    let params = Arc::new(SamplingParams::neutral());
    let draw = |sampler: &Sampler| -> Vec<u32> {
        let mut sampler = sampler.clone();
        (0..16).map(|i| sampler.sample(&logits, &[], i, &mut Candidates::default()).unwrap()).collect()
    };
    let first = Sampler::new(params.clone(), 42, &[]);
    assert_eq!(draw(&first), draw(&first));
    assert_eq!(draw(&first), draw(&Sampler::new(params.clone(), 42, &[])));
    assert_ne!(draw(&first), draw(&first.for_choice(42, 1)));
    assert_ne!(draw(&first), draw(&Sampler::new(params, 43, &[])));
    // Pinned: a change of the stream changes every seeded user's text.
    assert_eq!(draw(&first)[..6], [39, 63, 52, 46, 20, 20]);
}

proptest! {
    #[test]
    fn forbidden_tokens_leave_what_biases_of_minus_infinity_leave(
        logits in logits(), n_forbidden in 1usize..4, top_k in 0usize..6, temperature in prop::bool::ANY, seed: u64,
    ) {
        // The best are forbidden, so that it matters.
        let forbidden: Vec<u32> = ranked(&logits).into_iter().take(n_forbidden).map(|id| id as u32).collect();
        let base = if temperature { SamplingParams::neutral() } else { SamplingParams::greedy() };
        let params = SamplingParams { top_k, ignore_eos: true, ..base.clone() };
        let mut sampler = Sampler::new(Arc::new(params), seed, &forbidden);
        let logit_bias = forbidden.iter().map(|&id| (id, f32::NEG_INFINITY)).collect();
        let biased = SamplingParams { top_k, logit_bias, ..base };
        let expected =
            Sampler::new(Arc::new(biased), seed, &[]).sample(&logits, &[], 0, &mut Candidates::default());
        prop_assert_eq!(&sampler.sample(&logits, &[], 0, &mut Candidates::default()), &expected);
        if let Need::Largest(n) = sampler.need() {
            for n in [n, n + 3] {
                let found = largest(&logits, n);
                prop_assert_eq!(&sampler.sample_ranked(&found, &[], 0, &mut Candidates::default()), &expected);
            }
        } else {
            prop_assert!(temperature && top_k == 0);
        }
    }
}

proptest! {
    /// A device's sum is a little off; where that could matter nothing is chosen.
    #[test]
    fn the_largest_and_their_share_choose_what_all_logits_choose(
        logits in logits(), top_p in 0.05f32..1.0, min_p in 0.0f32..0.3, has_top_p: bool, n in 1usize..40,
        temperature in 0.3f32..2.0, error in -1.0f32..1.0, forbidden_ranks in prop::collection::btree_set(0usize..12, 0..4),
        seed: u64,
    ) {
        let base = SamplingParams { temperature, min_p, ..SamplingParams::neutral() };
        let top_p = if has_top_p { top_p } else { 1.0 };
        let params = Arc::new(SamplingParams { top_p, ignore_eos: true, ..base });
        let by_rank = ranked(&logits);
        let forbidden: Vec<u32> =
            forbidden_ranks.iter().filter_map(|&rank| by_rank.get(rank)).map(|&id| id as u32).collect();
        let mut sampler = Sampler::new(params, seed, &forbidden);
        let mut row = Ranked::of(&logits, n);
        row.exp_sum *= 1.0 + 0.9 * error * EXP_SUM_TOLERANCE;
        let expected = sampler.clone().sample(&logits, &[], 0, &mut Candidates::default());
        let found = sampler.sample_from(&row, logits.len(), &[], 0, &mut Candidates::default());
        match found {
            Ok(Some(id)) => prop_assert_eq!(Ok(id), expected),
            Ok(None) => prop_assert!(sampler.need() >= Need::Ranked),
            Err(error) => prop_assert_eq!(Err(error), expected),
        }
        if sampler.need() == Need::Ranked && top_p < 0.99 {
            // All logits say everything, unless the sum of those that are kept is on the edge.
            let whole = Ranked::of(&logits, logits.len());
            let found = sampler.sample_from(&whole, logits.len(), &[], 0, &mut Candidates::default());
            prop_assert!(has_top_p || found.is_ok_and(|found| found.is_some()));
        }
    }
}

proptest! {
    /// Biases and penalties that only lower leave the tokens to choose from among so many more of the largest.
    #[test]
    fn the_largest_choose_what_all_logits_choose_where_some_are_lowered(
        logits in logits(), history in prop::collection::vec(0u32..20, 0..30), last_n in 0usize..20, top_k in 1usize..8,
        (repeat, frequency, presence) in (1.0f32..2.0, 0.0f32..1.0, 0.0f32..1.0),
        biases in prop::collection::btree_map(0u32..20, prop_oneof![-3.0f32..0.0, Just(f32::NEG_INFINITY)], 0..4),
        is_greedy: bool, is_late: bool, seed: u64,
    ) {
        let n_vocab = logits.len() as u32;
        let mut order = Stage::DEFAULT_ORDER.to_vec();
        if is_late {
            order.rotate_left(1);
        }
        let params = SamplingParams {
            temperature: if is_greedy { 0.0 } else { 0.9 },
            top_k,
            penalties: Penalties { last_n: Some(last_n), repeat, frequency, presence },
            logit_bias: biases.into_iter().filter(|(id, _)| *id < n_vocab).collect(),
            ignore_eos: true,
            order,
            ..SamplingParams::default()
        };
        let history: Vec<u32> = history.into_iter().map(|id| id % n_vocab).collect();
        let mut sampler = Sampler::new(Arc::new(params), seed, &[0]);
        let Need::Largest(n) = sampler.need() else { panic!("{:?}", sampler.need()) };
        let largest = Ranked::of(&logits, n).largest;
        let mut scratch = Candidates::default();
        scratch.reset(&logits);
        let expected = sampler.clone().choose(logits.len(), &history, 0, &mut scratch, None);
        let found = sampler.clone().sample_ranked(&largest, &history, 0, &mut Candidates::default());
        prop_assert_eq!(&found, &expected);
        prop_assert_eq!(&sampler.sample(&logits, &history, 0, &mut Candidates::default()), &expected);
    }
}

#[test]
fn a_cut_on_the_edge_is_left_to_the_logits() {
    let mut sampler = {
        let params = SamplingParams { top_p: 0.5, ..SamplingParams::neutral() };
        Sampler::new(Arc::new(params), 1, &[])
    };
    let mut sample = |logits: &[f32], n| {
        sampler.sample_from(&Ranked::of(logits, n), logits.len(), &[], 0, &mut Candidates::default())
    };
    assert_eq!(sample(&[0.0, 0.0, -30.0], 3), Ok(None), "one of two is just half");
    assert!(sample(&[0.1, 0.0, -30.0], 3).unwrap().is_some());
    assert_eq!(sample(&[0.0; 9], 3), Ok(None), "three of nine are less than half");
    assert!(sample(&[0.0; 9], 6).unwrap().is_some());
}
