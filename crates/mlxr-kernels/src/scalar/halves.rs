//! Halves to floats and back, one at a time.

use half::f16;

pub(crate) fn widen(halves: &[u8], out: &mut [f32]) {
    let halves = &halves.as_chunks::<2>().0[..out.len()];
    out.iter_mut().zip(halves).for_each(|(o, &h)| *o = f16::from_le_bytes(h).to_f32());
}

pub(crate) fn narrow(values: &[f32], out: &mut [u8]) {
    let out = &mut out.as_chunks_mut::<2>().0[..values.len()];
    out.iter_mut().zip(values).for_each(|(o, &v)| *o = f16::from_f32(v).to_le_bytes());
}
