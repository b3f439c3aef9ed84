// Weights that are floats: chunks of 8 columns as two vectors. Layouts are described in layout.rs. A gated product has a
// second matrix, `up`.

//# set code_words = "vec4<u32>" if element in ["f32", "f16", "bf16"] else "u32" if element == "table" else "vec2<u32>"
@group(0) @binding(0) var<storage, read> w_codes: array<{{ code_words }}>;
@group(0) @binding(1) var<storage, read> w_scales: array<f32>;
//# if kind is defined
@group(0) @binding(6) var<storage, read> up_codes: array<{{ code_words }}>;
@group(0) @binding(7) var<storage, read> up_scales: array<f32>;
//# endif

struct Chunk {
    low: vec4<f32>,
    high: vec4<f32>,
}

//# if element == "table"
var<workgroup> w_table: array<f32, 16>;

const W_TABLE = array<f32, 16>({{ table | join(", ") }});

fn prepare_weights(lane: u32, n_lanes: u32) {
    for (var i = lane; i < 16u; i += n_lanes) {
        w_table[i] = W_TABLE[i];
    }
    workgroupBarrier();
}

fn four(word: u32) -> vec4<f32> {
    return vec4(w_table[word & 15u], w_table[(word >> 4u) & 15u], w_table[(word >> 8u) & 15u], w_table[(word >> 12u) & 15u]);
}
//# else
fn prepare_weights(lane: u32, n_lanes: u32) {}
//# endif

//# if element == "f8_e4m3"
// An f16 with a shorter exponent.
fn four(word: u32) -> vec4<f32> {
    let even = ((word & 0x00800080u) << 8u) | ((word & 0x007f007fu) << 7u);
    let odd = (word & 0x80008000u) | ((word & 0x7f007f00u) >> 1u);
    let e = unpack2x16float(even);
    let o = unpack2x16float(odd);
    return 256.0 * vec4(e.x, o.x, e.y, o.y);
}
//# elif element == "f8_e5m2"
fn four(word: u32) -> vec4<f32> {
    let e = unpack2x16float((word & 0x00ff00ffu) << 8u);
    let o = unpack2x16float(word & 0xff00ff00u);
    return vec4(e.x, o.x, e.y, o.y);
}
//# elif element == "bf16"
fn four(words: vec2<u32>) -> vec4<f32> {
    let even = bitcast<vec2<f32>>(words << vec2(16u));
    let odd = bitcast<vec2<f32>>(words & vec2(0xffff0000u));
    return vec4(even.x, odd.x, even.y, odd.y);
}
//# endif

//# for w in ["w", "up"] if w == "w" or kind is defined
// Chunk c of a row.
fn {{ w }}_chunk(row: u32, c: u32) -> Chunk {
    let at = row * p.n_chunks + c;
    var chunk: Chunk;
    //# if element == "f32"
    chunk.low = bitcast<vec4<f32>>({{ w }}_codes[2u * at]);
    chunk.high = bitcast<vec4<f32>>({{ w }}_codes[2u * at + 1u]);
    //# elif element == "f16"
    let words = {{ w }}_codes[at];
    chunk.low = vec4(unpack2x16float(words.x), unpack2x16float(words.y));
    chunk.high = vec4(unpack2x16float(words.z), unpack2x16float(words.w));
    //# elif element == "bf16"
    let words = {{ w }}_codes[at];
    chunk.low = four(words.xy);
    chunk.high = four(words.zw);
    //# elif element == "table"
    let word = {{ w }}_codes[at];
    chunk.low = four(word);
    chunk.high = four(word >> 16u);
    //# else
    let words = {{ w }}_codes[at];
    chunk.low = four(words.x);
    chunk.high = four(words.y);
    //# endif
    //# if has_scales
    let scale = {{ w }}_scales[row * p.n_groups + c * 8u / p.group];
    chunk.low *= scale;
    chunk.high *= scale;
    //# endif
    return chunk;
}
//# endfor
