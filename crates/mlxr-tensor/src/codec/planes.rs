//! The one packing scheme of GGML blocks: runs of codes laid over the same bytes, run after run from the low bits up.
//!
//! With `BITS`-wide codes and a `STRIDE`, the first `STRIDE` codes sit in the low bits of `STRIDE` bytes, the next
//! `STRIDE` codes in the bits above them, and so on until the bytes are full; then the next `STRIDE` bytes follow.
//! A stride of 1 is a plain little-endian bit stream.

/// Unpacks `codes.len()` codes.
pub fn unpack<const BITS: usize, const STRIDE: usize>(packed: &[u8], codes: &mut [u8]) {
    let per_byte = 8 / BITS;
    let mask = (1u8 << BITS) - 1;
    let (chunks, _) = packed.as_chunks::<STRIDE>();
    for (bytes, runs) in chunks.iter().zip(codes.chunks_exact_mut(STRIDE * per_byte)) {
        for (plane, run) in runs.as_chunks_mut::<STRIDE>().0.iter_mut().enumerate() {
            for (code, byte) in run.iter_mut().zip(bytes) {
                *code = byte >> (plane * BITS) & mask;
            }
        }
    }
}

/// Packs codes, which must be below `1 << BITS`; every bit of `packed` is written.
pub fn pack<const BITS: usize, const STRIDE: usize>(codes: &[u8], packed: &mut [u8]) {
    let per_byte = 8 / BITS;
    packed.fill(0);
    let (chunks, _) = packed.as_chunks_mut::<STRIDE>();
    for (bytes, runs) in chunks.iter_mut().zip(codes.chunks_exact(STRIDE * per_byte)) {
        for (plane, run) in runs.as_chunks::<STRIDE>().0.iter().enumerate() {
            for (byte, code) in bytes.iter_mut().zip(run) {
                *byte |= code << (plane * BITS);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_second_run_of_codes_takes_the_high_bits() {
        let mut codes = [0; 4];
        unpack::<4, 2>(&[0x31, 0x42], &mut codes);
        assert_eq!(codes, [1, 2, 3, 4]);
        let mut packed = [0xff; 2];
        pack::<4, 2>(&codes, &mut packed);
        assert_eq!(packed, [0x31, 0x42]);
    }

    #[test]
    fn a_stride_of_one_is_a_bit_stream() {
        let mut codes = [0; 8];
        unpack::<1, 1>(&[0b1000_0110], &mut codes);
        assert_eq!(codes, [0, 1, 1, 0, 0, 0, 0, 1]);
    }
}
