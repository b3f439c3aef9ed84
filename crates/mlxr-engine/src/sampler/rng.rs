//! Random numbers that are a function of where they are used, not of what was drawn before.
//!
//! Philox4x32-10 (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011) with the request's seed as
//! key and `(token index, choice, draw)` as counter. The i-th token of a choice therefore sees the same numbers
//! alone, in a batch, after preemption, and on every platform.

/// The number stream of one choice of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TokenRng {
    seed: u64,
    choice: u32,
}

/// The independent numbers one token may need.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Draw {
    /// Which candidate is taken.
    Token = 0,
    /// Whether XTC acts.
    Xtc = 1,
}

impl TokenRng {
    pub fn new(seed: u64, choice: u32) -> Self {
        Self { seed, choice }
    }

    /// Uniform in `[0, 1)`, 53 bits, for the generated token with this index.
    pub fn uniform(&self, token_idx: u64, draw: Draw) -> f64 {
        let counter = [token_idx as u32, (token_idx >> 32) as u32, self.choice, draw as u32];
        let words = philox4x32_10(counter, [self.seed as u32, (self.seed >> 32) as u32]);
        let bits = (u64::from(words[0]) << 32 | u64::from(words[1])) >> 11;
        bits as f64 * (1.0 / (1u64 << 53) as f64)
    }
}

fn philox4x32_10(mut counter: [u32; 4], mut key: [u32; 2]) -> [u32; 4] {
    for _ in 0..10 {
        let a = u64::from(counter[0]) * 0xD251_1F53;
        let b = u64::from(counter[2]) * 0xCD9E_8D57;
        counter = [
            (b >> 32) as u32 ^ counter[1] ^ key[0],
            b as u32,
            (a >> 32) as u32 ^ counter[3] ^ key[1],
            a as u32,
        ];
        key = [key[0].wrapping_add(0x9E37_79B9), key[1].wrapping_add(0xBB67_AE85)];
    }
    counter
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn philox_gives_the_published_vectors() {
        let ones = u32::MAX;
        let check = |counter, key, expected| assert_eq!(philox4x32_10(counter, key), expected);
        check([0; 4], [0; 2], [0x6627_e8d5, 0xe169_c58d, 0xbc57_ac4c, 0x9b00_dbd8]);
        check([ones; 4], [ones; 2], [0x408f_276d, 0x41c8_3b0e, 0xa20b_c7c6, 0x6d54_51fd]);
        check(
            [0x243f_6a88, 0x85a3_08d3, 0x1319_8a2e, 0x0370_7344],
            [0xa409_3822, 0x299f_31d0],
            [0xd16c_fe09, 0x94fd_cceb, 0x5001_e420, 0x2412_6ea1],
        );
    }

    #[test]
    fn tokens_choices_draws_and_seeds_are_independent() {
        let at = |seed, choice, token, draw| TokenRng::new(seed, choice).uniform(token, draw);
        let base = at(7, 0, 0, Draw::Token);
        assert_eq!(base, at(7, 0, 0, Draw::Token));
        for other in [
            at(8, 0, 0, Draw::Token),
            at(7, 1, 0, Draw::Token),
            at(7, 0, 1, Draw::Token),
            at(7, 0, 0, Draw::Xtc),
            at(7 | 1 << 32, 0, 0, Draw::Token),
        ] {
            assert_ne!(base, other);
        }
        let mean = (0..10_000).map(|i| at(1, 0, i, Draw::Token)).sum::<f64>() / 10_000.0;
        assert!((mean - 0.5).abs() < 0.01, "{mean}");
    }
}
