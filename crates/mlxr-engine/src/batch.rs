//! Plan to rows: tokens, positions, slots, and which rows give logits.

use mlxr_tensor::Batch;

use crate::SeqId;
use crate::kv::BlockTables;
use crate::scheduler::Plan;

/// The batch of a plan. `tokens` yields all known tokens of a sequence.
///
/// # Panics
/// When plan, tables and tokens disagree, which is a bug of the engine.
pub fn build<'a>(plan: &Plan, tables: &BlockTables, tokens: impl Fn(SeqId) -> &'a [u32]) -> Batch {
    let mut batch = Batch::new();
    for scheduled in &plan.rows {
        let table = tables.get(scheduled.seq).expect("planned sequences have tables");
        let blocks: Vec<u32> = table.blocks().iter().map(|block| block.0).collect();
        let chunk = &tokens(scheduled.seq)[scheduled.start..scheduled.start + scheduled.n_tokens];
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
        let batch = build(&plan, &tables, |seq| {
            if seq == a { &[10, 11, 12, 13, 14, 15, 16] } else { &[20, 21, 22, 23, 24] }
        });
        assert_eq!(batch.tokens, [24, 13, 14, 15]);
        assert_eq!(batch.positions, [4, 3, 4, 5]);
        assert_eq!(batch.slots, [8, 3, 12, 13]);
        assert_eq!(batch.output_rows, [0, 2, 3]);
        assert_eq!(batch.spans[1].block_table, [0, 3]);
    }
}
