// Floats by their bits: compilers may take for granted that a float is finite.

const INFINITY_BITS: u32 = 0x7f800000u;
const NEGATIVE_INFINITY: u32 = 0xff800000u;

fn is_finite(bits: u32) -> bool {
    return (bits & INFINITY_BITS) != INFINITY_BITS;
}

// An integer that orders as the float does; 0 is none's but a NaN's.
fn float_key(bits: u32) -> u32 {
    return select(bits | 0x80000000u, ~bits, bits >= 0x80000000u);
}
