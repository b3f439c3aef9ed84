//! Dot products of 8-bit codes with 256-bit vectors, by AVX2 and by AVX-VNNI: the same sums, bit for bit.

use core::arch::x86_64::*;

use super::dot::reduce;

/// Sums of four products each, of codes without a sign and codes with one.
#[inline]
#[target_feature(enable = "avx2")]
fn fours(unsigned: __m256i, signed: __m256i) -> __m256i {
    // Products of codes up to 128 with codes up to 127 in pairs: no sum is cut.
    _mm256_madd_epi16(_mm256_maddubs_epi16(unsigned, signed), _mm256_set1_epi16(1))
}

/// As [`fours`], by one instruction.
#[inline]
#[target_feature(enable = "avx2,avxvnni")]
fn fours_vnni(unsigned: __m256i, signed: __m256i) -> __m256i {
    _mm256_dpbusd_avx_epi32(_mm256_setzero_si256(), unsigned, signed)
}

/// A kernel in a module of its own, since a function is only inlined where its instructions may be used.
macro_rules! dot_codes {
    ($module:ident, $name:ident, $features:literal, $fours:ident) => {
        mod $module {
            use core::arch::x86_64::*;

            use super::{add_offsets, load_codes, reduce, $fours};
            use crate::kernels::TILE;
            use crate::linear::codes::{ACT_GROUP, CodeKind, CodeRow, QuantRow};
            use crate::tiles::for_micro_tiles;

            #[target_feature(enable = $features)]
            pub(crate) fn $name(
                kind: CodeKind,
                weights: &[CodeRow<'_>],
                xs: &[QuantRow<'_>],
                out: &mut [f32],
            ) {
                for_micro_tiles!(weights, xs, |w, x, w0, x0| micro_codes(
                    kind,
                    w,
                    x,
                    &mut out[x0 * TILE + w0..]
                ));
            }

            #[inline]
            #[target_feature(enable = $features)]
            fn micro_codes<const W: usize, const X: usize>(
                kind: CodeKind,
                weights: &[CodeRow<'_>],
                xs: &[QuantRow<'_>],
                out: &mut [f32],
            ) {
                match (kind.signed, kind.group) {
                    (false, 32) => micro_groups::<W, X, false, 32>(kind.offsets, weights, xs, out),
                    (false, _) => micro_groups::<W, X, false, 16>(kind.offsets, weights, xs, out),
                    (true, 32) => micro_groups::<W, X, true, 32>(kind.offsets, weights, xs, out),
                    (true, _) => micro_groups::<W, X, true, 16>(kind.offsets, weights, xs, out),
                }
            }

            /// One accumulator per product: the integer sums of 32 columns, scaled, lane by lane.
            #[inline]
            #[target_feature(enable = $features)]
            fn micro_groups<const W: usize, const X: usize, const SIGNED: bool, const GROUP: usize>(
                offsets: bool,
                weights: &[CodeRow<'_>],
                xs: &[QuantRow<'_>],
                out: &mut [f32],
            ) {
                let weights: &[CodeRow<'_>; W] = weights.try_into().expect("W rows");
                let xs: &[QuantRow<'_>; X] = xs.try_into().expect("X rows");
                let mut acc = [[_mm256_setzero_ps(); W]; X];
                let parts = xs.each_ref().map(|x| (x.codes(), x.scales()));
                for step in 0..xs[0].cols() / ACT_GROUP {
                    let at = step * ACT_GROUP;
                    let mut w = [_mm256_setzero_si256(); W];
                    let mut w_scale = [_mm256_setzero_ps(); W];
                    for ((codes, scale), row) in w.iter_mut().zip(&mut w_scale).zip(weights) {
                        *codes = load_codes(&row.codes[at..]);
                        *scale = if GROUP == 32 {
                            _mm256_set1_ps(row.scales[step])
                        } else {
                            let pair = &row.scales[2 * step..2 * step + 2];
                            _mm256_set_m128(_mm_set1_ps(pair[1]), _mm_set1_ps(pair[0]))
                        };
                    }
                    for (acc, (x_codes, x_scales)) in acc.iter_mut().zip(&parts) {
                        let codes = load_codes(&x_codes[at..]);
                        let x_scale = _mm256_set1_ps(x_scales[step]);
                        for ((acc, &w), &w_scale) in acc.iter_mut().zip(&w).zip(&w_scale) {
                            let (w, codes) = match SIGNED {
                                true => (_mm256_abs_epi8(w), _mm256_sign_epi8(codes, w)),
                                false => (w, codes),
                            };
                            let sums = $fours(w, codes);
                            let scale = _mm256_mul_ps(w_scale, x_scale);
                            *acc = _mm256_fmadd_ps(scale, _mm256_cvtepi32_ps(sums), *acc);
                        }
                    }
                }
                for (i, x) in xs.iter().enumerate() {
                    for (j, row) in weights.iter().enumerate() {
                        let mut sum = acc[i][j];
                        if offsets {
                            let sums = x.sums(GROUP);
                            sum = add_offsets(sum, row.offsets, sums);
                        }
                        out[i * TILE + j] = reduce(sum);
                    }
                }
            }
        }
        pub(crate) use $module::$name;
    };
}

dot_codes!(pairs, dot_codes, "avx2,fma,f16c", fours);
dot_codes!(vnni, dot_codes_vnni, "avx2,fma,f16c,avxvnni", fours_vnni);

#[inline]
#[target_feature(enable = "avx2")]
fn load_codes(codes: &[i8]) -> __m256i {
    let codes = &codes[..32];
    // SAFETY: 32 bytes are in bounds; the load needs no alignment.
    unsafe { _mm256_loadu_si256(codes.as_ptr().cast()) }
}

/// `acc + offsets * sums`, both padded to whole vectors.
#[inline]
#[target_feature(enable = "avx2,fma")]
fn add_offsets(mut acc: __m256, offsets: &[f32], sums: &[f32]) -> __m256 {
    for (a, b) in offsets.as_chunks::<8>().0.iter().zip(sums.as_chunks::<8>().0) {
        // SAFETY: eight floats each; the loads need no alignment.
        let (a, b) = unsafe { (_mm256_loadu_ps(a.as_ptr()), _mm256_loadu_ps(b.as_ptr())) };
        acc = _mm256_fmadd_ps(a, b, acc);
    }
    acc
}
