// Values as 8-bit codes in chunks of 32 columns that share a scale. Eight lanes make a chunk, four columns each.

// Four codes a word.
@group(0) @binding({{ first_of_codes }}) var<storage, read_write> codes: array<u32>;
// Per chunk: the scale, and the scale times the sum of all codes, of codes 0..16 and 16..32.
@group(0) @binding({{ first_of_codes + 1 }}) var<storage, read_write> scales: array<vec4<f32>>;

// Stores the codes of four columns. Chunks are whole: either all of a chunk's lanes have something to store or none,
// and all of them come here.
fn quantise(i: u32, v: vec4<f32>, has_some: bool) {
    let m = abs(v);
    var largest = max(max(m.x, m.y), max(m.z, m.w));
    largest = max(largest, subgroupShuffleXor(largest, 1u));
    largest = max(largest, subgroupShuffleXor(largest, 2u));
    largest = max(largest, subgroupShuffleXor(largest, 4u));
    let scale = largest / 127.0;
    let inverse = select(0.0, 127.0 / largest, largest > 0.0);
    let q = vec4<i32>(round(v * inverse));
    var sum = q.x + q.y + q.z + q.w;
    sum += subgroupShuffleXor(sum, 1u);
    sum += subgroupShuffleXor(sum, 2u);
    let other = subgroupShuffleXor(sum, 4u);
    if (has_some) {
        codes[i] = pack4xI8(q);
        if ((i & 7u) == 0u) {
            scales[i >> 3u] = scale * vec4<f32>(1.0, f32(sum + other), f32(sum), f32(other));
        }
    }
}
