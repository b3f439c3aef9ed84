//! A sequence's logits are the same bits alone, in company, in chunks, and wherever its blocks lie.

use crate::harness::{Blocks, Rows, Session, Wanted, open, open_split};

/// Families that between them use every op.
const MODELS: [&str; 8] = [
    "gemma2/hf",
    "gpt_oss/hf",
    "llama/model.gguf",
    "llama/mlx-4bit",
    "mixtral/mlx-4bit",
    "olmo2/hf",
    "qwen3/hf",
    "smollm3/hf",
];

/// Ids of a prompt; different seeds give different ones.
fn prompt(n: usize, seed: u32) -> Vec<u32> {
    (0..n as u32).map(|i| 3 + (i * 37 + seed * 101 + i * i * 7) % 280).collect()
}

fn bits(rows: &[Vec<f32>]) -> Vec<u32> {
    rows.iter().flatten().map(|v| v.to_bits()).collect()
}

/// The prompt's logits in one step, one block size and blocks in order.
fn alone(model: &mlxr_models::Model, tokens: &[u32]) -> Vec<u32> {
    bits(&Session::new(model, 1, 16, Blocks::InOrder).feed(tokens))
}

#[test]
fn chunks_blocks_and_their_places_change_no_bit() {
    for path in MODELS {
        let model = open(path, None);
        let tokens = prompt(41, 1);
        let expected = alone(&model, &tokens);
        for (block_tokens, blocks, chunk) in [
            (16, Blocks::InOrder, 7),
            (16, Blocks::Scattered, 41),
            (32, Blocks::InOrder, 41),
            (32, Blocks::Scattered, 1),
            (16, Blocks::Scattered, 16),
        ] {
            let mut session = Session::new(&model, 1, block_tokens, blocks);
            let found: Vec<Vec<f32>> = tokens.chunks(chunk).flat_map(|c| session.feed(c)).collect();
            assert!(
                bits(&found) == expected,
                "{path}: blocks of {block_tokens}, {blocks:?}, chunks of {chunk} differ"
            );
        }
    }
}

#[test]
fn layers_on_two_devices_change_no_bit() {
    for path in MODELS {
        let whole = open(path, None);
        let split = open_split(path, 1);
        let n_layers: Vec<usize> = split.devices().map(|(_, n_layers)| n_layers).collect();
        assert_eq!(n_layers, [1, whole.config().layers.len() - 1], "{path}");
        let tokens = prompt(23, 1);
        let mut session = Session::new(&split, 1, 16, Blocks::Scattered);
        let found: Vec<Vec<f32>> = tokens.chunks(9).flat_map(|chunk| session.feed(chunk)).collect();
        assert!(bits(&found) == alone(&whole, &tokens), "{path}");
    }
}

#[test]
fn company_changes_no_bit() {
    for path in MODELS {
        let model = open(path, None);
        let prompts: Vec<Vec<u32>> = [29, 5, 41].iter().zip(1..).map(|(&n, seed)| prompt(n, seed)).collect();
        let expected: Vec<Vec<u32>> = prompts.iter().map(|tokens| alone(&model, tokens)).collect();

        let mut session = Session::new(&model, 3, 16, Blocks::Scattered);
        let mut found = vec![Vec::new(); 3];
        // Steps of mixed kinds: prefill beside a chunk, a single row beside chunks, other orders.
        let steps: [&[(usize, usize)]; 4] =
            [&[(1, 5), (0, 12)], &[(0, 1), (2, 20)], &[(2, 1), (0, 15)], &[(0, 1), (2, 20)]];
        let mut starts = [0; 3];
        for step in steps {
            let rows: Vec<Rows<'_>> = step
                .iter()
                .map(|&(sequence, n)| {
                    let tokens = &prompts[sequence][starts[sequence]..starts[sequence] + n];
                    starts[sequence] += n;
                    Rows { sequence, tokens, wanted: Wanted::All }
                })
                .collect();
            let mut logits = session.step(&rows).into_iter();
            for &(sequence, n) in step {
                found[sequence].extend(logits.by_ref().take(n));
            }
        }
        for (sequence, expected) in expected.iter().enumerate() {
            assert!(bits(&found[sequence]) == *expected, "{path}: sequence {sequence} differs in company");
        }
    }
}

#[test]
fn rows_that_nobody_asks_for_change_no_bit_of_others() {
    for path in MODELS {
        for model in [open(path, None), open_split(path, 1)] {
            let [first, second] = [1, 2].map(|seed| prompt(41, seed));
            let [all, others] = [&first, &second].map(|tokens| alone(&model, tokens));
            let vocab = model.config().vocab;
            let mut session = Session::new(&model, 2, 16, Blocks::Scattered);
            let mut step = |rows: &[(usize, &[u32], Wanted)]| {
                let rows = rows.iter().map(|&(sequence, tokens, wanted)| Rows { sequence, tokens, wanted });
                bits(&session.step(&rows.collect::<Vec<_>>()))
            };
            assert!(step(&[(0, &first[..20], Wanted::None)]).is_empty(), "{path}");
            let found = step(&[(0, &first[20..30], Wanted::None), (1, &second[..9], Wanted::Last)]);
            assert!(found == others[8 * vocab..9 * vocab], "{path}: beside rows that nobody asks for");
            let found = step(&[(1, &second[9..], Wanted::None), (0, &first[30..], Wanted::All)]);
            assert!(found == all[30 * vocab..], "{path}: after rows that nobody asked for");
        }
    }
}
