//! Loops of nothing but multiplications, see [`crate::peak`].

use core::arch::x86_64::*;

use crate::kernels::PeakLoops;
use crate::peak::peak_loop;

pub(crate) const LOOPS: PeakLoops = PeakLoops { codes, floats };

peak_loop! {
    codes, "avx512f,avx512vnni", 128, (_mm512_setzero_si512(), _mm512_set1_epi32(0x0102_0304)),
    |sum, x| _mm512_dpbusd_epi32(sum, x, x)
}

peak_loop! { floats, "avx512f", 32, (_mm512_setzero_ps(), _mm512_set1_ps(1.0)), |sum, x| _mm512_fmadd_ps(x, x, sum) }

peak_loop! {
    bf16, "avx512f,avx512bf16", 64,
    (_mm512_setzero_ps(), _mm512_cvtne2ps_pbh(_mm512_set1_ps(1.0), _mm512_set1_ps(1.0))),
    |sum, x| _mm512_dpbf16_ps(sum, x, x)
}
