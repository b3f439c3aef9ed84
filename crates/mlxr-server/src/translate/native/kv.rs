//! What the KV blocks hold.

use axum::http::Uri;
use mlxr_api::native::kv::{KvBlock, KvMap, KvSeq, KvState};
use mlxr_engine::{BlockInfo, BlockState, MAX_MAP_BLOCKS, SeqOwner};

use super::query_pairs;
use crate::ServeError;
use crate::loaded::LoadedModel;

/// Blocks shown when nobody says.
const DEFAULT_BLOCKS: usize = 4096;

/// Which blocks are wanted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KvQuery {
    /// Absent is every model in memory.
    pub model: Option<String>,
    pub first: usize,
    pub limit: usize,
}

impl KvQuery {
    /// # Errors
    /// A parameter nobody knows, or a value it cannot have.
    pub fn read(uri: &Uri) -> Result<KvQuery, ServeError> {
        let mut query = KvQuery { model: None, first: 0, limit: DEFAULT_BLOCKS };
        for (name, value) in query_pairs(uri)? {
            let wrong = |expected: &str| {
                ServeError::invalid(&name, format!("{name} is {value:?}, but must be {expected}"))
            };
            match name.as_str() {
                "model" => query.model = Some(value),
                "first" => query.first = value.parse().map_err(|_| wrong("the number of a block"))?,
                "limit" => {
                    let expected = format!("a number from 1 to {MAX_MAP_BLOCKS}");
                    let limit = value.parse().ok().filter(|n| (1..=MAX_MAP_BLOCKS).contains(n));
                    query.limit = limit.ok_or_else(|| wrong(&expected))?;
                }
                _ => {
                    let reason = format!("there is no parameter {name}: known are model, first, limit");
                    return Err(ServeError::invalid(name, reason));
                }
            }
        }
        Ok(query)
    }
}

/// # Errors
/// The engine is gone.
pub async fn map(model: &LoadedModel, query: &KvQuery) -> Result<KvMap, ServeError> {
    let found = model.engine.kv_map(query.first..query.first.saturating_add(query.limit)).await?;
    Ok(KvMap {
        model: model.name.clone(),
        n_blocks: found.n_blocks,
        block_tokens: found.block_tokens,
        block_bytes: model.plan.block_bytes,
        blocks: found.blocks.into_iter().map(block).collect(),
        seqs: found.seqs.into_iter().map(seq).collect(),
    })
}

fn block(info: BlockInfo) -> KvBlock {
    let state = match info.state {
        BlockState::Free => KvState::Free,
        BlockState::Used => KvState::Used,
        BlockState::Idle => KvState::Idle,
    };
    KvBlock {
        block: info.block.0,
        state,
        is_cached: info.is_cached,
        n_seqs: info.n_seqs,
        seq: info.seq.map(|seq| seq.0),
        n_tokens: info.n_tokens,
        idle_steps: info.idle_steps,
    }
}

fn seq(owner: SeqOwner) -> KvSeq {
    KvSeq { seq: owner.seq.0, request: owner.request.0, choice: owner.choice }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(query: &str) -> Result<KvQuery, ServeError> {
        KvQuery::read(&format!("/mlxr/v1/kv?{query}").parse().expect("a URI"))
    }

    #[test]
    fn a_query_says_which_blocks() {
        let query = read("model=a&first=8&limit=2").expect("a query");
        assert_eq!(query, KvQuery { model: Some("a".to_owned()), first: 8, limit: 2 });
        for (query, text) in [
            ("limit=0", "from 1 to 65536"),
            ("limit=65537", "from 1 to 65536"),
            ("first=-1", "first is \"-1\""),
            ("last=3", "known are model, first, limit"),
        ] {
            let error = read(query).expect_err(query).to_string();
            assert!(error.contains(text), "{error}");
        }
    }
}
