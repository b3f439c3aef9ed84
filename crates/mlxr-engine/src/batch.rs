//! Plan to rows: tokens, positions, slots, and which rows give logits.

use std::collections::BTreeMap;

use mlxr_tensor::{Batch, DeviceTokens, Fed};

use crate::SeqId;
use crate::images::PlacedImage;
use crate::kv::BlockTables;
use crate::scheduler::Plan;

/// Tokens a step has guessed and the host does not know yet.
pub struct Guessed {
    pub tokens: DeviceTokens,
    /// The row of `tokens` of each sequence.
    pub rows: BTreeMap<SeqId, u32>,
}

/// What is known of a sequence.
pub struct Contents<'a> {
    pub tokens: &'a [u32],
    pub images: &'a [PlacedImage],
}

/// The batch of a plan. `contents` yields all known tokens of a sequence; the one behind them may be among `guessed`.
///
/// # Panics
/// When plan, tables and tokens disagree, which is a bug of the engine.
pub fn build<'a>(
    plan: &Plan,
    tables: &BlockTables,
    contents: impl Fn(SeqId) -> Contents<'a>,
    guessed: Option<&Guessed>,
) -> Batch {
    let mut batch = Batch::new();
    batch.fed = guessed.map(|guessed| Fed { tokens: guessed.tokens.clone(), rows: Vec::new() });
    for scheduled in &plan.rows {
        let table = tables.get(scheduled.seq).expect("planned sequences have tables");
        let blocks: Vec<u32> = table.blocks().iter().map(|block| block.0).collect();
        let Contents { tokens: known, images } = contents(scheduled.seq);
        let places = scheduled.start..scheduled.start + scheduled.n_tokens;
        let first_row = batch.n_rows();
        batch.given.extend(images.iter().filter_map(|image| image.given(&places, first_row)));
        let chunk = match (guessed, &mut batch.fed) {
            (Some(guessed), Some(fed)) if scheduled.start == known.len() => {
                fed.rows.push([batch.tokens.len() as u32, guessed.rows[&scheduled.seq]]);
                &[0]
            }
            _ => &known[places],
        };
        batch.push(chunk, scheduled.start as u32, &blocks, tables.block_tokens());
        let n_rows = batch.n_rows();
        batch.output_rows.extend((n_rows - scheduled.n_logits..n_rows).map(|row| row as u32));
    }
    batch
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::scheduler::Scheduled;

    #[test]
    fn rows_carry_positions_slots_and_outputs() {
        let (a, b) = (SeqId(0), SeqId(1));
        let mut tables = BlockTables::new(4, 4);
        let mut copies = Vec::new();
        for (seq, n) in [(a, 3), (b, 5), (a, 3)] {
            if tables.get(seq).is_none() {
                tables.insert(seq);
            }
            tables.append(seq, n, &mut copies).unwrap();
        }
        let rows = vec![
            Scheduled { seq: b, start: 4, n_tokens: 1, n_reused: 0, n_logits: 1, is_complete: true },
            Scheduled { seq: a, start: 3, n_tokens: 3, n_reused: 0, n_logits: 2, is_complete: false },
        ];
        let plan = Plan { rows, ..Plan::default() };
        let tokens =
            |seq| -> &[u32] { if seq == a { &[10, 11, 12, 13, 14, 15, 16] } else { &[20, 21, 22, 23, 24] } };
        let contents = |seq| Contents { tokens: tokens(seq), images: &[] };
        let batch = build(&plan, &tables, contents, None);
        assert_eq!(batch.tokens, [24, 13, 14, 15]);
        assert_eq!(batch.positions, [4, 3, 4, 5]);
        assert_eq!(batch.slots, [8, 3, 12, 13]);
        assert_eq!(batch.output_rows, [0, 2, 3]);
        assert_eq!(batch.spans[1].block_table, [0, 3]);
        // The device knows the last token of b.
        let guessed = Guessed { tokens: DeviceTokens::new(()), rows: [(a, 3), (b, 7)].into() };
        let cut = |seq| &tokens(seq)[..if seq == b { 4 } else { 7 }];
        let contents = |seq| Contents { tokens: cut(seq), images: &[] };
        let batch = build(&plan, &tables, contents, Some(&guessed));
        assert_eq!(batch.tokens, [0, 13, 14, 15]);
        assert_eq!(batch.fed.unwrap().rows, [[0, 7]]);
    }
}
