//! Dot products of floats, written once for vectors of eight and compiled for each instruction set that has them.

use crate::kernels::TILE;

/// Eight floats in vectors, and sums of products. What is here is compiled in line into functions that name their
/// instruction set.
pub(crate) trait Vectors {
    type Eight: Copy;
    type Sum: Copy;
    /// Activation rows whose sums with [`TILE`] weight rows stay in registers.
    const MOST_ROWS: usize;

    /// # Safety
    /// The CPU has the instruction set, here and below.
    unsafe fn zero() -> Self::Sum;

    /// Eight floats.
    ///
    /// # Safety
    /// They are there.
    unsafe fn load(bytes: *const u8) -> Self::Eight;

    /// Eight halves.
    ///
    /// # Safety
    /// They are there.
    unsafe fn load_f16(bytes: *const u8) -> Self::Eight;

    /// Eight numbers in bf16.
    ///
    /// # Safety
    /// They are there.
    unsafe fn load_bf16(bytes: *const u8) -> Self::Eight;

    /// # Safety
    /// See above.
    unsafe fn add_products(sum: Self::Sum, a: Self::Eight, b: Self::Eight) -> Self::Sum;

    /// # Safety
    /// See above.
    unsafe fn total(sum: Self::Sum) -> f32;
}

/// A plain float type.
pub(crate) trait Element {
    const BYTES: usize;

    /// The eight elements at `bytes`.
    ///
    /// # Safety
    /// They are there, and the CPU has the instruction set.
    unsafe fn load<V: Vectors>(bytes: *const u8) -> V::Eight;

    /// One element.
    fn to_f32(bytes: &[u8]) -> f32;
}

macro_rules! element {
    ($name:ident, $bytes:literal, $load:ident, $to_f32:expr) => {
        pub(crate) struct $name;

        impl Element for $name {
            const BYTES: usize = $bytes;

            #[inline(always)]
            unsafe fn load<V: Vectors>(bytes: *const u8) -> V::Eight {
                // SAFETY: passes the caller's promise on.
                unsafe { V::$load(bytes) }
            }

            #[inline(always)]
            fn to_f32(bytes: &[u8]) -> f32 {
                $to_f32(*bytes.first_chunk::<$bytes>().expect("an element"))
            }
        }
    };
}

element! { F32, 4, load, f32::from_le_bytes }
element! { F16, 2, load_f16, |bytes| half::f16::from_le_bytes(bytes).to_f32() }
element! { Bf16, 2, load_bf16, |bytes| half::bf16::from_le_bytes(bytes).to_f32() }

/// `W` by `X` products: one sum each over whole vectors, then the ragged tail.
///
/// # Safety
/// The CPU has the instruction set.
#[inline(always)]
pub(crate) unsafe fn micro<V: Vectors, E: Element, const W: usize, const X: usize>(
    weights: &[&[u8]],
    xs: &[&[f32]],
    out: &mut [f32],
) {
    let weights: &[&[u8]; W] = weights.try_into().expect("W rows");
    let xs: &[&[f32]; X] = xs.try_into().expect("X rows");
    let cols = xs[0].len();
    let is_whole = |row: &&[u8]| row.len() == cols * E::BYTES;
    assert!(weights.iter().all(is_whole) && xs.iter().all(|x| x.len() == cols), "rows of one length");
    // SAFETY: by the caller's promise.
    let mut acc = unsafe { [[V::zero(); W]; X] };
    let whole = cols / 8 * 8;
    for at in (0..whole).step_by(8) {
        // SAFETY: all rows have eight more elements; the rest is the caller's promise.
        unsafe {
            let w = weights.map(|row| E::load::<V>(row.as_ptr().add(at * E::BYTES)));
            for (acc, x) in acc.iter_mut().zip(xs) {
                let x = V::load(x.as_ptr().add(at).cast());
                for (acc, &w) in acc.iter_mut().zip(&w) {
                    *acc = V::add_products(*acc, w, x);
                }
            }
        }
    }
    for (i, x) in xs.iter().enumerate() {
        for (j, row) in weights.iter().enumerate() {
            // SAFETY: by the caller's promise.
            let mut sum = unsafe { V::total(acc[i][j]) };
            for at in whole..cols {
                sum = E::to_f32(&row[at * E::BYTES..]).mul_add(x[at], sum);
            }
            out[i * TILE + j] = sum;
        }
    }
}

/// Names the kernels that multiply by `$vectors`: `$name` for each `$element`.
macro_rules! dot_kernels {
    ($vectors:ty, $features:literal: $($name:ident $element:ident),*) => {
        $(
            #[target_feature(enable = $features)]
            pub(crate) fn $name(weights: &[&[u8]], xs: &[&[f32]], out: &mut [f32]) {
                use $crate::dot::{self, Vectors};
                use $crate::kernels::TILE;

                /// So many rows at a time that their sums stay in registers.
                #[target_feature(enable = $features)]
                fn micro<const W: usize, const X: usize>(weights: &[&[u8]], xs: &[&[f32]], out: &mut [f32]) {
                    if <$vectors>::MOST_ROWS < X {
                        some::<W, 2>(weights, &xs[..2], out);
                        some::<W, 2>(weights, &xs[2..], &mut out[2 * TILE..]);
                    } else {
                        some::<W, X>(weights, xs, out);
                    }
                }

                // A function of its own: among others in one, operands go through memory.
                #[inline(never)]
                #[target_feature(enable = $features)]
                fn some<const W: usize, const X: usize>(weights: &[&[u8]], xs: &[&[f32]], out: &mut [f32]) {
                    // SAFETY: this is compiled for the instruction set.
                    unsafe { dot::micro::<$vectors, dot::$element, W, X>(weights, xs, out) };
                }

                $crate::tiles::for_micro_tiles!(weights, xs, |w, x, w0, x0| micro(
                    w,
                    x,
                    &mut out[x0 * TILE + w0..]
                ));
            }
        )*
    };
}
pub(crate) use dot_kernels;
