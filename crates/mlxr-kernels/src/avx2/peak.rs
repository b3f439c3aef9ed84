//! Loops of nothing but multiplications, see [`crate::peak`].

use core::arch::x86_64::*;

use crate::kernels::PeakLoops;
use crate::peak::peak_loop;

pub(super) const LOOPS: PeakLoops = PeakLoops { codes, floats };

// 32 products take two multiplying instructions: one adds them up in pairs, the other these.
peak_loop! {
    codes, "avx2", 64, (_mm256_setzero_si256(), _mm256_set1_epi8(1)),
    |sum, x| _mm256_madd_epi16(_mm256_maddubs_epi16(x, sum), x)
}

peak_loop! {
    codes_vnni, "avx2,avxvnni", 64, (_mm256_setzero_si256(), _mm256_set1_epi8(1)),
    |sum, x| _mm256_dpbusd_avx_epi32(sum, x, x)
}

peak_loop! { floats, "avx2,fma", 16, (_mm256_setzero_ps(), _mm256_set1_ps(1.0)), |sum, x| _mm256_fmadd_ps(x, x, sum) }
