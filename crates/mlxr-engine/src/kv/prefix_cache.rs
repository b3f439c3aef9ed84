//! Full blocks that can be found again by the tokens they hold.
//!
//! An entry is found by a chained hash: of its parent's hash, which stands for everything before it, and its own
//! tokens, under a key drawn when the cache is made. A hash only names candidates; a hit has the same parent entry and
//! the same tokens, compared one by one, so that no collision ever gives a sequence somebody else's text.
//!
//! Blocks that no sequence uses are idle: they stay until somebody needs the room, least recently used first.
//!
//! Invariants: an entry's parent has an entry; a sequence that uses a cached block uses all of its ancestors. Idle
//! entries therefore go leaves first, because sequences let go of their last block first.

use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
use std::hash::{BuildHasher, RandomState};

use super::block_pool::IntegrityError;
use crate::BlockId;

/// Evictions that are remembered: by their hashes, so that a miss can be told from a loss.
const MAX_REMEMBERED: usize = 65_536;

/// What the prefix cache has done and holds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CacheStats {
    pub is_on: bool,
    /// Times a sequence was looked for.
    pub n_lookups: u64,
    /// Tokens looked for.
    pub n_lookup_tokens: u64,
    /// Tokens found, which were not computed again.
    pub n_hit_tokens: u64,
    /// Blocks that can be found, in use or not.
    pub n_blocks: usize,
    /// Those of them that no sequence uses.
    pub n_idle_blocks: usize,
    /// Blocks given up for others or to keep some free.
    pub n_evictions: u64,
    /// Evictions so long ago that [`PrefixStop::Evicted`] is no longer said of them.
    pub n_forgotten: u64,
}

/// How far a text is cached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PrefixMatch {
    /// Tokens that would be reused: whole blocks.
    pub n_matched: usize,
    /// Where the comparison ended: the first token that differs, or the first that is not cached.
    pub token_idx: usize,
    pub stop: PrefixStop,
}

/// Why no more of a text is cached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PrefixStop {
    /// The cache is switched off.
    Off,
    /// What is left does not fill a block, and only full blocks are cached.
    BlockNotFull { n_left: usize },
    /// The block is cached, but the last token of a prompt is always computed, for its logits.
    LastToken,
    /// Nothing cached begins like this.
    NeverSeen,
    /// It continues beyond what is cached.
    CachedTextEnds,
    /// The nearest cached block has another token, `cached`, at the place. Entries are numbered as they are cached.
    Diverges { entry: u64, cached: u32 },
    /// The block was cached and has been given up.
    Evicted,
}

/// One block that can be found.
#[derive(Debug)]
struct Entry {
    /// Never used twice, unlike the block.
    id: u64,
    hash: u64,
    parent: Option<u64>,
    tokens: Box<[u32]>,
    /// When the last sequence let go of it, if none uses it.
    idle_since: Option<u64>,
}

/// See the module.
#[derive(Debug)]
pub(super) struct PrefixCache {
    block_tokens: usize,
    /// The salt of all hashes.
    keys: RandomState,
    /// The bits of a hash that are used: all, but for tests of collisions.
    hash_mask: u64,
    /// By block.
    entries: Vec<Option<Entry>>,
    by_hash: HashMap<u64, Vec<BlockId>>,
    /// By the time they became idle.
    idle: BTreeSet<(u64, BlockId)>,
    n_entries: usize,
    next_id: u64,
    clock: u64,
    n_evictions: u64,
    evicted: Evicted,
}

impl PrefixCache {
    pub fn new(n_blocks: usize, block_tokens: usize) -> Self {
        Self::with_hash_mask(n_blocks, block_tokens, u64::MAX)
    }

    pub(super) fn with_hash_mask(n_blocks: usize, block_tokens: usize, hash_mask: u64) -> Self {
        Self {
            block_tokens,
            keys: RandomState::new(),
            hash_mask,
            entries: (0..n_blocks).map(|_| None).collect(),
            by_hash: HashMap::new(),
            idle: BTreeSet::new(),
            n_entries: 0,
            next_id: 0,
            clock: 0,
            n_evictions: 0,
            evicted: Evicted::default(),
        }
    }

    pub fn n_entries(&self) -> usize {
        self.n_entries
    }

    pub fn n_idle(&self) -> usize {
        self.idle.len()
    }

    pub fn n_evictions(&self) -> u64 {
        self.n_evictions
    }

    pub fn n_forgotten(&self) -> u64 {
        self.evicted.n_forgotten
    }

    pub fn contains(&self, block: BlockId) -> bool {
        self.entries[block.0 as usize].is_some()
    }

    pub fn is_idle(&self, block: BlockId) -> bool {
        self.entry(block).is_some_and(|entry| entry.idle_since.is_some())
    }

    fn entry(&self, block: BlockId) -> Option<&Entry> {
        self.entries[block.0 as usize].as_ref()
    }

    /// The block that holds `tokens` after everything up to `parent`, if it is cached.
    pub fn find(&self, parent: Option<BlockId>, tokens: &[u32]) -> Option<BlockId> {
        let parent = self.parent(parent);
        let candidates = self.by_hash.get(&self.hash(parent, tokens))?;
        candidates.iter().copied().find(|&block| {
            let entry = self.entry(block).expect("a listed block has an entry");
            entry.parent == parent.map(|entry| entry.id) && *entry.tokens == *tokens
        })
    }

    /// # Panics
    /// When the parent has no entry: sequences keep what their cached blocks follow.
    fn parent(&self, parent: Option<BlockId>) -> Option<&Entry> {
        parent.map(|block| self.entry(block).expect("a cached block follows a cached block"))
    }

    fn hash(&self, parent: Option<&Entry>, tokens: &[u32]) -> u64 {
        self.keys.hash_one((parent.map(|entry| entry.hash), tokens)) & self.hash_mask
    }

    /// Makes a block that is in use findable.
    ///
    /// # Panics
    /// When it is already.
    pub fn insert(&mut self, block: BlockId, parent: Option<BlockId>, tokens: &[u32]) {
        let parent = self.parent(parent);
        let hash = self.hash(parent, tokens);
        let entry = Entry {
            id: self.next_id,
            hash,
            parent: parent.map(|entry| entry.id),
            tokens: tokens.into(),
            idle_since: None,
        };
        let previous = self.entries[block.0 as usize].replace(entry);
        assert!(previous.is_none(), "{block} is cached as something else");
        self.by_hash.entry(hash).or_default().push(block);
        self.next_id += 1;
        self.n_entries += 1;
    }

    /// Keeps a block its last sequence has let go of. Returns whether it is cached at all.
    pub fn park(&mut self, block: BlockId) -> bool {
        let Some(entry) = self.entries[block.0 as usize].as_mut() else { return false };
        self.clock += 1;
        let previous = entry.idle_since.replace(self.clock);
        assert!(previous.is_none(), "{block} is idle already");
        self.idle.insert((self.clock, block));
        true
    }

    /// Puts an idle block to use again. Returns whether it was idle.
    pub fn unpark(&mut self, block: BlockId) -> bool {
        let entry = self.entries[block.0 as usize].as_mut();
        let Some(since) = entry.and_then(|entry| entry.idle_since.take()) else { return false };
        self.idle.remove(&(since, block));
        true
    }

    /// Gives up the idle block that was let go of first.
    pub fn evict(&mut self) -> Option<BlockId> {
        let &(_, block) = self.idle.first()?;
        self.remove(block);
        self.n_evictions += 1;
        Some(block)
    }

    /// Forgets everything. Returns the blocks that were idle.
    pub fn clear(&mut self) -> Vec<BlockId> {
        let idle = self.idle.iter().map(|&(_, block)| block).collect();
        for block in 0..self.entries.len() as u32 {
            if self.contains(BlockId(block)) {
                self.remove(BlockId(block));
            }
        }
        idle
    }

    fn remove(&mut self, block: BlockId) {
        let entry = self.entries[block.0 as usize].take().expect("only a cached block is removed");
        if let Some(since) = entry.idle_since {
            self.idle.remove(&(since, block));
        }
        let same_hash = self.by_hash.get_mut(&entry.hash).expect("an entry is listed");
        same_hash.retain(|&other| other != block);
        if same_hash.is_empty() {
            self.by_hash.remove(&entry.hash);
        }
        self.n_entries -= 1;
        self.evicted.remember(entry.hash);
    }

    /// How far `tokens` are cached, and why no further.
    pub fn explain(&self, tokens: &[u32]) -> PrefixMatch {
        let mut parent = None;
        let n = self.block_tokens;
        for (i, block) in tokens.chunks_exact(n).enumerate() {
            match self.find(parent, block) {
                Some(found) => parent = Some(found),
                None => return self.explain_miss(parent, i * n, block),
            }
        }
        let n_left = tokens.len() % n;
        if n_left == 0 && !tokens.is_empty() {
            let n_matched = tokens.len() - n;
            return PrefixMatch { n_matched, token_idx: n_matched, stop: PrefixStop::LastToken };
        }
        let n_matched = tokens.len() - n_left;
        PrefixMatch { n_matched, token_idx: n_matched, stop: PrefixStop::BlockNotFull { n_left } }
    }

    /// Why `tokens`, which begin at `start`, were not found after `parent`.
    fn explain_miss(&self, parent: Option<BlockId>, start: usize, tokens: &[u32]) -> PrefixMatch {
        let parent = self.parent(parent);
        let at = |token_idx, stop| PrefixMatch { n_matched: start, token_idx, stop };
        if self.evicted.remembers(self.hash(parent, tokens)) {
            return at(start, PrefixStop::Evicted);
        }
        let parent_id = parent.map(|entry| entry.id);
        let siblings = self.entries.iter().flatten().filter(|entry| entry.parent == parent_id);
        let n_common = |entry: &Entry| {
            entry.tokens.iter().zip(tokens).take_while(|(cached, given)| cached == given).count()
        };
        match siblings.map(|entry| (n_common(entry), entry)).max_by_key(|&(n, entry)| (n, entry.id)) {
            Some((n, entry)) if n > 0 || parent.is_some() => {
                at(start + n, PrefixStop::Diverges { entry: entry.id, cached: entry.tokens[n] })
            }
            None if parent.is_some() => at(start, PrefixStop::CachedTextEnds),
            _ => at(start, PrefixStop::NeverSeen),
        }
    }

    /// Entries follow entries, those in use such that are in use; every one is listed, and exactly those nobody uses are idle.
    ///
    /// # Errors
    /// The first block of which that is not so.
    pub fn check_integrity(&self, is_used: impl Fn(BlockId) -> bool) -> Result<(), IntegrityError> {
        let entries = || self.entries.iter().zip(0..).filter_map(|(e, i)| Some((e.as_ref()?, BlockId(i))));
        let by_id: BTreeMap<u64, BlockId> = entries().map(|(entry, block)| (entry.id, block)).collect();
        let mut n_idle = 0;
        for (entry, block) in entries() {
            let check = |is_right, what| {
                if is_right { Ok(()) } else { Err(IntegrityError::Cache { block, what }) }
            };
            let listed = self.by_hash.get(&entry.hash).is_some_and(|blocks| blocks.contains(&block));
            check(listed, "is not listed under its hash")?;
            if let Some(parent) = entry.parent {
                let parent = by_id.get(&parent);
                check(parent.is_some(), "follows a block that is not cached")?;
                let has_user = |parent: &BlockId| is_used(*parent) || !is_used(block);
                check(parent.is_some_and(has_user), "is in use, but the block before it is not")?;
            }
            check(entry.idle_since.is_none() == is_used(block), "is idle and in use, or neither")?;
            if let Some(since) = entry.idle_since {
                n_idle += 1;
                check(self.idle.contains(&(since, block)), "is idle but cannot be given up")?;
            }
        }
        let (n_listed, n_entries) = (self.by_hash.values().map(Vec::len).sum(), by_id.len());
        if (self.idle.len(), n_listed, self.n_entries) != (n_idle, n_entries, n_entries) {
            return Err(IntegrityError::CacheCounts { n_entries, n_listed, n_idle: self.idle.len() });
        }
        Ok(())
    }
}

/// Hashes of blocks that were given up, the latest [`MAX_REMEMBERED`] of them.
#[derive(Debug, Default)]
struct Evicted {
    order: VecDeque<(u64, u64)>,
    /// The last time each was evicted.
    latest: HashMap<u64, u64>,
    n_total: u64,
    n_forgotten: u64,
}

impl Evicted {
    fn remember(&mut self, hash: u64) {
        self.n_total += 1;
        self.order.push_back((hash, self.n_total));
        self.latest.insert(hash, self.n_total);
        if self.order.len() > MAX_REMEMBERED
            && let Some((oldest, time)) = self.order.pop_front()
            && self.latest.get(&oldest) == Some(&time)
        {
            self.latest.remove(&oldest);
            self.n_forgotten += 1;
        }
    }

    fn remembers(&self, hash: u64) -> bool {
        self.latest.contains_key(&hash)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const A: BlockId = BlockId(0);
    const B: BlockId = BlockId(1);
    const C: BlockId = BlockId(2);

    /// A holds 1 2, B holds 3 4 after it, C holds 3 5 after it.
    fn tree(hash_mask: u64) -> PrefixCache {
        let mut cache = PrefixCache::with_hash_mask(4, 2, hash_mask);
        cache.insert(A, None, &[1, 2]);
        cache.insert(B, Some(A), &[3, 4]);
        cache.insert(C, Some(A), &[3, 5]);
        cache
    }

    #[test]
    fn a_block_is_found_after_its_parent_alone_even_when_all_hashes_are_equal() {
        for hash_mask in [u64::MAX, 0] {
            let cache = tree(hash_mask);
            assert_eq!(cache.find(None, &[1, 2]), Some(A));
            assert_eq!(cache.find(Some(A), &[3, 4]), Some(B));
            assert_eq!(cache.find(Some(A), &[3, 5]), Some(C));
            assert_eq!(cache.find(None, &[3, 4]), None);
            assert_eq!(cache.find(Some(B), &[3, 4]), None);
            assert_eq!(cache.find(Some(A), &[3, 6]), None);
        }
    }

    #[test]
    fn a_block_that_comes_back_is_no_parent_of_what_followed_it_before() {
        let mut cache = tree(0);
        for block in [B, C, A] {
            assert!(cache.park(block));
        }
        assert!(cache.unpark(C) && !cache.unpark(C));
        assert_eq!(cache.evict(), Some(B));
        cache.insert(B, None, &[1, 2]);
        assert_eq!(cache.find(Some(B), &[3, 5]), None);
    }

    #[test]
    fn the_longest_idle_goes_first() {
        let mut cache = tree(u64::MAX);
        for block in [B, C, A] {
            cache.park(block);
        }
        cache.unpark(A);
        cache.unpark(B);
        cache.park(B);
        cache.park(A);
        assert_eq!(
            [cache.evict(), cache.evict(), cache.evict(), cache.evict()],
            [Some(C), Some(B), Some(A), None]
        );
        assert_eq!((cache.n_entries(), cache.n_evictions()), (0, 3));
    }

    #[test]
    fn a_miss_is_explained() {
        let mut cache = tree(u64::MAX);
        let check = |cache: &PrefixCache, tokens: &[u32], n_matched, token_idx, stop| {
            assert_eq!(cache.explain(tokens), PrefixMatch { n_matched, token_idx, stop }, "{tokens:?}");
        };
        check(&cache, &[], 0, 0, PrefixStop::BlockNotFull { n_left: 0 });
        check(&cache, &[1], 0, 0, PrefixStop::BlockNotFull { n_left: 1 });
        check(&cache, &[1, 2], 0, 0, PrefixStop::LastToken);
        check(&cache, &[1, 2, 3], 2, 2, PrefixStop::BlockNotFull { n_left: 1 });
        check(&cache, &[7, 2, 3], 0, 0, PrefixStop::NeverSeen);
        check(&cache, &[1, 3, 3], 0, 1, PrefixStop::Diverges { entry: 0, cached: 2 });
        check(&cache, &[1, 2, 3, 6, 9], 2, 3, PrefixStop::Diverges { entry: 2, cached: 5 });
        check(&cache, &[1, 2, 8, 6, 9], 2, 2, PrefixStop::Diverges { entry: 2, cached: 3 });
        check(&cache, &[1, 2, 3, 4, 5, 6, 7], 4, 4, PrefixStop::CachedTextEnds);
        cache.park(B);
        cache.evict();
        check(&cache, &[1, 2, 3, 4, 5], 2, 2, PrefixStop::Evicted);
        cache.insert(B, Some(A), &[3, 4]);
        check(&cache, &[1, 2, 3, 4, 5], 4, 4, PrefixStop::BlockNotFull { n_left: 1 });
    }

    #[test]
    fn what_was_evicted_long_ago_is_forgotten_and_counted() {
        let mut evicted = Evicted::default();
        for hash in 0..MAX_REMEMBERED as u64 + 2 {
            evicted.remember(hash);
        }
        assert!(!evicted.remembers(1) && evicted.remembers(2));
        assert_eq!(evicted.n_forgotten, 2);
        // One that was evicted again since its first time is still known.
        evicted.remember(2);
        evicted.remember(MAX_REMEMBERED as u64 + 2);
        assert!(evicted.remembers(2) && !evicted.remembers(3));
        assert_eq!((evicted.order.len(), evicted.n_forgotten), (MAX_REMEMBERED, 3));
    }

    #[test]
    fn clearing_gives_back_what_nobody_uses() {
        let mut cache = tree(u64::MAX);
        cache.park(C);
        cache.park(B);
        assert_eq!(cache.clear(), [C, B]);
        assert_eq!((cache.n_entries(), cache.n_idle(), cache.find(None, &[1, 2])), (0, 0, None));
        assert_eq!(cache.check_integrity(|_| false), Ok(()));
    }
}
