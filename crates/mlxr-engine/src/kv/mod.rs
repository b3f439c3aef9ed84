//! Bookkeeping of the KV arena: which block belongs to which sequences. The bytes themselves are the backend's.

pub mod block_pool;
pub mod block_table;
pub mod map;
pub mod overflow;
pub mod prefix_cache;

pub use block_pool::{BlockPool, IntegrityError, PoolStats};
pub use block_table::{BlockTable, BlockTables, EvictionLimits, OutOfBlocks};
pub use map::{BlockInfo, BlockState, KvMap, MAX_MAP_BLOCKS, SeqOwner};
pub use overflow::{Overflow, OverflowStats, SwapIn, SwapOut};
pub use prefix_cache::{CacheStats, PrefixMatch, PrefixStop};
