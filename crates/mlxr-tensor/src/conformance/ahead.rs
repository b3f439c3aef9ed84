//! Tokens that a device guesses, and batches that begin with them.

use super::data::Noise;
use super::{assert_same_bits, read};
use crate::{
    Backend, Batch, DRAW_TOLERANCE, DType, Fed, Format, Guess, GuessStage, GuessedToken, LogitChange,
    MAX_LARGEST, Ranked, Rows, RowsWanted, largest,
};

use GuessStage::{MinP, Temperature, TopK, TopP};

const COLS: usize = 1000;
/// Values of a row that are looked at.
const N: usize = 100;

/// Stages that samplers have, in several orders.
const CHAINS: [&[GuessStage]; 8] = [
    &[TopK(1)],
    &[TopK(40), TopP(0.95), MinP(0.05), Temperature(0.8)],
    &[TopK(100)],
    &[TopK(7), Temperature(1.7)],
    &[TopP(0.9), Temperature(0.6)],
    &[MinP(0.1), Temperature(1.3)],
    &[TopK(60), Temperature(2.0), MinP(0.3), TopP(0.7)],
    &[TopP(0.3)],
];

/// Each chain three times: without the best column, with some columns changed, and with none.
fn guesses(noise: &mut Noise) -> Vec<Guess> {
    let lowered = |id| LogitChange { id, bias: -0.5, repeat: 1.3, minus: 0.2 };
    let mut guesses = Vec::new();
    for chain in CHAINS {
        let some = (0..COLS as u32).step_by(3).take(200).map(lowered).collect();
        for changes in [vec![LogitChange::leave_out(500)], some, Vec::new()] {
            guesses.push(Guess {
                stages: std::array::from_fn(|i| chain.get(i).copied()),
                is_by_id: !chain.iter().any(|stage| matches!(stage, TopK(_) | TopP(_))),
                u: uniform(noise),
                changes,
                ..Guess::BEST
            });
        }
    }
    guesses
}

fn uniform(noise: &mut Noise) -> f32 {
    noise.below(1 << 20) as f32 / (1 << 20) as f32
}

pub(super) fn tokens(backend: &dyn Backend) {
    let Some(ahead) = backend.ahead() else { return };
    let mut noise = Noise::new(31);
    let guesses = guesses(&mut noise);
    let n_rows = guesses.len();
    let mut x: Vec<f32> = noise.values(n_rows * COLS).iter().map(|v| v * 6.0).collect();
    x.iter_mut().skip(500).step_by(COLS).for_each(|best| *best = 7.0);
    // The last row is no distribution.
    *x.last_mut().expect("there are rows") = f32::NAN;
    let act = backend.act(n_rows, COLS, &x);
    let rows: Vec<&[f32]> = x.chunks_exact(COLS).collect();
    for wanted in [RowsWanted::Best, RowsWanted::Largest(N), RowsWanted::Ranked(N), RowsWanted::All] {
        let started = ahead.start_rows(&act, wanted, &guesses).expect("the device works");
        let (found, guessed) = ahead.finish_rows(started).expect("the device works");
        match found {
            Rows::Best(best) => assert!(best.iter().copied().eq(guessed.iter().map(|token| token.id))),
            Rows::Largest(found) => assert_eq!(found, backend.largest(&act, N).expect("the device works")),
            Rows::Ranked(found) => assert_eq!(found, backend.ranked(&act, N).expect("the device works")),
            Rows::All(found) => assert_same_bits(&found, &x, &"all values"),
        }
        assert_eq!(guessed.len(), n_rows);
        for (i, ((row, guess), token)) in rows.iter().zip(&guesses).zip(guessed).enumerate() {
            let guess = if wanted == RowsWanted::Best { &Guess::BEST } else { guess };
            let n = if wanted == RowsWanted::All { MAX_LARGEST } else { N };
            let sum =
                matches!(wanted, RowsWanted::Ranked(_) | RowsWanted::All).then(|| Ranked::of(row, n).exp_sum);
            let largest = if i + 1 == n_rows { Vec::new() } else { largest(row, n) };
            // A device may round its sums; numbers this near to a boundary belong to both sides.
            let at = |shift| Guess { u: guess.u + shift, ..guess.clone() }.token(&largest, sum);
            let near = [-1e-4, 0.0, 1e-4].map(at);
            let GuessedToken { id, is_sure } = token;
            assert!(
                near.contains(&id) && !is_sure,
                "row {i}, {wanted:?}: {token:?} for {near:?} by {guess:?}"
            );
        }
    }
    whole(backend);
    fed(backend, &x[..COLS * 2]);
}

/// Draws from whole rows: what is sure is the exact choice, and most draws are sure.
fn whole(backend: &dyn Backend) {
    const COLS: usize = 40_003;
    const N_ROWS: usize = 24;
    let Some(ahead) = backend.ahead() else { return };
    let mut noise = Noise::new(33);
    let mut x: Vec<f32> = noise.values(N_ROWS * COLS).iter().map(|v| v * v * v * 14.0).collect();
    x[7 * COLS..][..COLS].fill(f32::NEG_INFINITY);
    x[8 * COLS..][..300].fill(f32::NEG_INFINITY);
    let guess = |row: usize| Guess {
        is_whole: true,
        is_by_id: true,
        stages: [(!row.is_multiple_of(3)).then_some(Temperature(0.5 + row as f32 / 16.0)), None, None, None],
        u: uniform(&mut noise),
        changes: if !row.is_multiple_of(2) {
            (0..8).map(|i| LogitChange::leave_out(i * 5000 + 1)).collect()
        } else {
            vec![]
        },
    };
    let guesses: Vec<Guess> = (0..N_ROWS).map(guess).collect();
    let act = backend.act(N_ROWS, COLS, &x);
    let started = ahead.start_rows(&act, RowsWanted::Ranked(N), &guesses).expect("the device works");
    let (_, found) = ahead.finish_rows(started).expect("the device works");
    let mut n_sure = 0;
    for (i, ((row, guess), token)) in x.chunks_exact(COLS).zip(&guesses).zip(found).enumerate() {
        let all: Vec<(u32, f32)> = (0..).zip(row.iter().copied()).collect();
        let at = |shift| Guess { u: guess.u + shift, ..guess.clone() }.token(&all, None);
        let near = [-2.0 * DRAW_TOLERANCE, 0.0, 2.0 * DRAW_TOLERANCE].map(at);
        assert!(near.contains(&token.id), "row {i}: {token:?} for {near:?}");
        assert!(!token.is_sure || token.id == near[1], "row {i}: {token:?} for {near:?}");
        n_sure += usize::from(token.is_sure);
    }
    assert!((N_ROWS / 2..N_ROWS).contains(&n_sure), "{n_sure} of {N_ROWS} draws are sure");
}

/// Two steps are on their way before the first is waited for, and the second begins with what the first has chosen.
fn fed(backend: &dyn Backend, x: &[f32]) {
    let Some(ahead) = backend.ahead() else { return };
    let mut noise = Noise::new(32);
    let table = super::data::tensor(Format::Plain(DType::F32), &[COLS, 64], &mut noise);
    let table = backend.upload(&table).expect("a table of f32");
    let first = backend.act(2, COLS, x);
    let started =
        ahead.start_rows(&first, RowsWanted::Best, &[Guess::BEST, Guess::BEST]).expect("the device works");
    let mut batch = Batch::new();
    batch.push(&[3, 4, 0, 0], 0, &[0], 16);
    batch.fed = Some(Fed { tokens: started.tokens.clone(), rows: vec![[3, 0], [2, 1]] });
    let embedded = backend.embed(&table, &batch, 1.0);
    let again = ahead
        .start_rows(&first, RowsWanted::Largest(2), &[Guess::BEST, Guess::BEST])
        .expect("the device works");
    let (_, best) = ahead.finish_rows(started).expect("the device works");
    let (_, same) = ahead.finish_rows(again).expect("the device works");
    assert_eq!(best, same);
    let mut plain = Batch::new();
    let tokens = [Some(3), Some(4), best[1].id, best[0].id].map(|token| token.expect("a distribution"));
    plain.push(&tokens, 0, &[0], 16);
    let expected = read(backend, &backend.embed(&table, &plain, 1.0));
    assert_same_bits(&read(backend, &embedded), &expected, &"rows of tokens that were fed");
}
