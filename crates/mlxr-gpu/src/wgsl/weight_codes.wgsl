// Quantised weights: chunks of 32 columns as signed bytes, with a scale and an offset for each half of 16.
// An element is scale * code - offset. Layouts are described in layout.rs. A gated product has a second matrix, `up`.

//# set code_words = "vec4<u32>" if bits >= 4 else "vec2<u32>"
//# set high_words = "vec2<u32>" if high_bits == 2 else "u32"
@group(0) @binding(0) var<storage, read> w_codes: array<{{ code_words }}>;
@group(0) @binding(1) var<storage, read> w_high: array<{{ high_words }}>;
@group(0) @binding(2) var<storage, read> w_scales: array<u32>;
//# if kind is defined
@group(0) @binding(8) var<storage, read> up_codes: array<{{ code_words }}>;
@group(0) @binding(9) var<storage, read> up_high: array<{{ high_words }}>;
@group(0) @binding(10) var<storage, read> up_scales: array<u32>;
//# endif

struct Chunk {
    // Columns 0..16 and 16..32, four codes a word.
    low: vec4<u32>,
    high: vec4<u32>,
    scale: vec2<f32>,
    offset: vec2<f32>,
}

//# if table
// Pairs of nibbles to pairs of bytes.
var<workgroup> w_table: array<u32, 256>;

const W_TABLE = array<i32, 16>({{ table | join(", ") }});

fn prepare_weights(lane: u32, n_lanes: u32) {
    for (var i = lane; i < 256u; i += n_lanes) {
        w_table[i] = (bitcast<u32>(W_TABLE[i & 15u]) & 0xffu) | ((bitcast<u32>(W_TABLE[i >> 4u]) & 0xffu) << 16u);
    }
    workgroupBarrier();
}

fn look_up(word: u32) -> vec2<u32> {
    let a = w_table[word & 0xffu];
    let b = w_table[(word >> 8u) & 0xffu];
    let c = w_table[(word >> 16u) & 0xffu];
    let d = w_table[word >> 24u];
    let low = (a & 0xffu) | ((b & 0xffu) << 8u) | ((c & 0xffu) << 16u) | (d << 24u);
    let high = (a >> 16u) | ((b >> 16u) << 8u) | ((c >> 16u) << 16u) | ((d >> 16u) << 24u);
    return vec2(low, high);
}
//# else
fn prepare_weights(lane: u32, n_lanes: u32) {}
//# endif

fn byte_at(word: u32, i: u32) -> u32 {
    return (word >> (8u * i)) & 0xffu;
}

fn crumbs(word: u32) -> vec4<u32> {
    return (vec4(word) >> vec4(0u, 2u, 4u, 6u)) & vec4(0x03030303u);
}

//# for w in ["w", "up"] if w == "w" or kind is defined
fn {{ w }}_half_at(i: u32) -> f32 {
    let pair = unpack2x16float({{ w }}_scales[i >> 1u]);
    return select(pair.x, pair.y, (i & 1u) == 1u);
}

fn {{ w }}_scales_of(row: u32, c: u32, at: u32) -> vec4<f32> {
    //# if scale == "half"
    let s = {{ "0.0625 * " if is_signed else "" }}{{ w }}_half_at(at);
    return vec4(s, s, {{ zero }}.0 * s, {{ zero }}.0 * s);
    //# elif scale == "half_min"
    let s = unpack2x16float({{ w }}_scales[at]);
    return vec4(s.x, s.x, -s.y, -s.y);
    //# elif scale == "e8m0"
    let e = byte_at({{ w }}_scales[at >> 2u], at & 3u);
    let s = {{ "0.5" if is_doubled else "1.0" }} * bitcast<f32>(select(e << 23u, 0x00400000u, e == 0u));
    return vec4(s, s, 0.0, 0.0);
    //# elif scale == "float"
    let s = bitcast<f32>({{ w }}_scales[row * p.n_groups + c * 32u / {{ group }}u]);
    return vec4(s, s, {{ zero }}.0 * s, {{ zero }}.0 * s);
    //# elif scale == "float_halves"
    return vec4(bitcast<f32>({{ w }}_scales[2u * at]), bitcast<f32>({{ w }}_scales[2u * at + 1u]), 0.0, 0.0);
    //# elif scale == "mlx_f32"
    let g = (row * p.n_groups + c * 32u / {{ group }}u) * 2u;
    let s = bitcast<f32>({{ w }}_scales[g]);
    let offset = fma(-{{ zero }}.0, s, -bitcast<f32>({{ w }}_scales[g + 1u]));
    return vec4(s, s, offset, offset);
    //# elif scale == "mlx_f16" or scale == "mlx_bf16"
    let packed = {{ w }}_scales[row * p.n_groups + c * 32u / {{ group }}u];
    //# if scale == "mlx_f16"
    let s = unpack2x16float(packed);
    //# else
    let s = vec2(bitcast<f32>(packed << 16u), bitcast<f32>(packed & 0xffff0000u));
    //# endif
    let offset = fma(-{{ zero }}.0, s.x, -s.y);
    return vec4(s.x, s.x, offset, offset);
    //# elif scale == "k_affine"
    // d and dmin, then (scale, min) bytes of eight chunks.
    let block = (at >> 3u) * 5u;
    let d = unpack2x16float({{ w }}_scales[block]);
    let pair = {{ w }}_scales[block + 1u + ((at & 7u) >> 1u)] >> (16u * (at & 1u));
    let s = d.x * f32(pair & 0xffu);
    let m = d.y * f32((pair >> 8u) & 0xffu);
    return vec4(s, s, m, m);
    //# elif scale == "k_affine16"
    // d and dmin, then (scale, min) nibbles of sixteen halves.
    let block = (at >> 3u) * 5u;
    let d = unpack2x16float({{ w }}_scales[block]);
    let pair = {{ w }}_scales[block + 1u + ((at & 7u) >> 1u)] >> (16u * (at & 1u));
    return vec4(d.xx, d.yy) * vec4<f32>(vec4(pair & 15u, (pair >> 8u) & 15u, (pair >> 4u) & 15u, (pair >> 12u) & 15u));
    //# elif scale == "k_signed16"
    // d, then signed scales of sixteen halves.
    let block = (at >> 3u) * 5u;
    let d = unpack2x16float({{ w }}_scales[block]).x;
    let four = unpack4xI8({{ w }}_scales[block + 1u + ((at & 7u) >> 1u)]);
    let s = d * vec2<f32>(select(four.xy, four.zw, (at & 1u) == 1u));
    return vec4(s, {{ zero }}.0 * s);
    //# endif
}

// Chunk c of a row.
fn {{ w }}_chunk(row: u32, c: u32) -> Chunk {
    let at = row * p.n_chunks + c;
    var chunk: Chunk;
    //# if bits == 8
    chunk.low = {{ w }}_codes[2u * at];
    chunk.high = {{ w }}_codes[2u * at + 1u];
    //# elif bits >= 4
    let words = {{ w }}_codes[at];
    //# if table
    let x = look_up(words.x);
    let y = look_up(words.y);
    let z = look_up(words.z);
    let w = look_up(words.w);
    chunk.low = vec4(x.x, y.x, z.x, w.x);
    chunk.high = vec4(x.y, y.y, z.y, w.y);
    //# elif is_signed
    // A signed nibble at the top of a byte is sixteen times its value.
    chunk.low = (words << vec4(4u)) & vec4(0xf0f0f0f0u);
    chunk.high = words & vec4(0xf0f0f0f0u);
    //# else
    chunk.low = words & vec4(0x0f0f0f0fu);
    chunk.high = (words >> vec4(4u)) & vec4(0x0f0f0f0fu);
    //# endif
    //# else
    let words = {{ w }}_codes[at];
    chunk.low = crumbs(words.x);
    chunk.high = crumbs(words.y);
    //# endif
    //# if high_bits == 2
    let more = {{ w }}_high[at];
    chunk.low |= crumbs(more.x) << vec4({{ bits - 2 }}u);
    chunk.high |= crumbs(more.y) << vec4({{ bits - 2 }}u);
    //# elif high_bits == 1
    let more = {{ w }}_high[at];
    chunk.low |= ((vec4(more) >> vec4(0u, 1u, 2u, 3u)) & vec4(0x01010101u)) << vec4({{ bits - 1 }}u);
    chunk.high |= ((vec4(more) >> vec4(4u, 5u, 6u, 7u)) & vec4(0x01010101u)) << vec4({{ bits - 1 }}u);
    //# endif
    let scales = {{ w }}_scales_of(row, c, at);
    chunk.scale = scales.xy;
    chunk.offset = scales.zw;
    return chunk;
}
//# endfor
