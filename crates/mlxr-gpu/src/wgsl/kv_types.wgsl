// How eight elements of keys or values are stored. Layouts are described in kv.rs.

//# if dtype == "f32"
alias Octet = mat2x4<f32>;
//# elif dtype in ["q8_0", "f8_e4m3"]
alias Octet = vec2<u32>;
//# elif dtype == "q4_0"
// Low halves of bytes are the first four.
alias Octet = u32;
//# else
alias Octet = vec4<u32>;
//# endif

//# if dtype == "bf16"
fn bf16_bits(v: vec4<f32>) -> vec4<u32> {
    let bits = bitcast<vec4<u32>>(v);
    return (bits + vec4(0x7fffu) + ((bits >> vec4(16u)) & vec4(1u))) >> vec4(16u);
}
//# endif

//# if dtype == "f8_e4m3"
// Rounds to nearest even, and ends at 448.
fn f8_word(v: vec4<f32>) -> u32 {
    let magnitude = min(abs(v), vec4(448.0));
    // Codes are 2^-9 apart below 2^-6 and an eighth of the power of two above; exponents are 127 more.
    let exponent = max(bitcast<vec4<u32>>(magnitude) >> vec4(23u), vec4(121u));
    let steps = vec4<u32>(round(magnitude * bitcast<vec4<f32>>((vec4(257u) - exponent) << vec4(23u))));
    // Sixteen steps go over into the exponent.
    let codes = ((exponent - vec4(121u)) << vec4(3u)) + steps + ((bitcast<vec4<u32>>(v) >> vec4(24u)) & vec4(0x80u));
    return codes.x | (codes.y << 8u) | (codes.z << 16u) | (codes.w << 24u);
}

// Moved into place, codes are f16 with an exponent that is 8 lower.
fn f8_four(word: u32) -> vec4<f32> {
    let even = unpack2x16float(((word & 0x00800080u) << 8u) | ((word & 0x007f007fu) << 7u));
    let odd = unpack2x16float((word & 0x80008000u) | ((word & 0x7f007f00u) >> 1u));
    return 256.0 * vec4(even.x, odd.x, even.y, odd.y);
}
//# endif

//# if dtype == "q8_0"
fn encode(a: vec4<f32>, b: vec4<f32>, inverse: f32) -> Octet {
    return vec2(pack4xI8(vec4<i32>(round(a * inverse))), pack4xI8(vec4<i32>(round(b * inverse))));
}
//# elif dtype == "q4_0"
// The element of largest magnitude has code 0.
fn nibbles(v: vec4<f32>, inverse: f32) -> vec4<u32> {
    return min(vec4<u32>(max(v * inverse + 8.5, vec4(0.0))), vec4(15u));
}

fn encode(a: vec4<f32>, b: vec4<f32>, inverse: f32) -> Octet {
    return pack4xU8(nibbles(a, inverse) | (nibbles(b, inverse) << vec4(4u)));
}
//# else
fn encode(a: vec4<f32>, b: vec4<f32>) -> Octet {
    //# if dtype == "f32"
    return Octet(a, b);
    //# elif dtype == "f16"
    // Beyond the largest number nobody says what becomes of it.
    let low = clamp(a, vec4(-65504.0), vec4(65504.0));
    let high = clamp(b, vec4(-65504.0), vec4(65504.0));
    return vec4(pack2x16float(low.xy), pack2x16float(low.zw), pack2x16float(high.xy), pack2x16float(high.zw));
    //# elif dtype == "f8_e4m3"
    return vec2(f8_word(a), f8_word(b));
    //# else
    let low = bf16_bits(a);
    let high = bf16_bits(b);
    return vec4(low.x | (low.y << 16u), low.z | (low.w << 16u), high.x | (high.y << 16u), high.z | (high.w << 16u));
    //# endif
}
//# endif

// The first four elements, then the last four; those of q8_0 and q4_0 still lack their scale.
fn decode(o: Octet) -> mat2x4<f32> {
    //# if dtype == "f32"
    return o;
    //# elif dtype == "f16"
    return mat2x4<f32>(vec4(unpack2x16float(o.x), unpack2x16float(o.y)), vec4(unpack2x16float(o.z), unpack2x16float(o.w)));
    //# elif dtype == "bf16"
    let even = bitcast<vec4<f32>>(o << vec4(16u));
    let odd = bitcast<vec4<f32>>(o & vec4(0xffff0000u));
    return mat2x4<f32>(vec4(even.x, odd.x, even.y, odd.y), vec4(even.z, odd.z, even.w, odd.w));
    //# elif dtype == "f8_e4m3"
    return mat2x4<f32>(f8_four(o.x), f8_four(o.y));
    //# elif dtype == "q4_0"
    return mat2x4<f32>(vec4<f32>(unpack4xU8(o & 0x0f0f0f0fu)) - 8.0, vec4<f32>(unpack4xU8((o >> 4u) & 0x0f0f0f0fu)) - 8.0);
    //# else
    return mat2x4<f32>(vec4<f32>(unpack4xI8(o.x)), vec4<f32>(unpack4xI8(o.y)));
    //# endif
}
