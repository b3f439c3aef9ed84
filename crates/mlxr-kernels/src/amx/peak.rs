//! Loops of nothing but multiplications, see [`crate::peak`].

use core::arch::asm;

use super::unit::{self, Config, ROW_BYTES, Shape, TILE_ROWS};

/// How often a loop runs. It has four sums, since a multiplication takes three to four times as long as it keeps the unit
/// busy.
const N_STEPS: u64 = 1 << 13;
const N_SUMS: u64 = 4;

/// Names a loop over an instruction that multiplies tiles of `$n_cols` columns.
macro_rules! peak_loop {
    ($name:ident, $instruction:literal, $n_cols:literal) => {
        #[target_feature(enable = "avx512f")]
        pub(super) fn $name() -> u64 {
            let full = Shape { rows: TILE_ROWS, row_bytes: ROW_BYTES };
            // SAFETY: a table is only handed out where the unit is there and has the instruction; tiles begin as zeros.
            unsafe {
                unit::configure(&Config::new([full; 8]));
                asm!(
                    "2:",
                    concat!($instruction, " tmm0, tmm4, tmm6"),
                    concat!($instruction, " tmm1, tmm4, tmm7"),
                    concat!($instruction, " tmm2, tmm5, tmm6"),
                    concat!($instruction, " tmm3, tmm5, tmm7"),
                    "dec {n}",
                    "jnz 2b",
                    n = inout(reg) N_STEPS => _,
                    options(nomem, nostack),
                );
                unit::release();
            }
            N_STEPS * N_SUMS * (2 * TILE_ROWS * TILE_ROWS * $n_cols) as u64
        }
    };
}

peak_loop!(codes, "tdpbssd", 64);
peak_loop!(bf16, "tdpbf16ps", 32);
