// Values as 8-bit codes in chunks of 32 columns that share a scale. Eight lanes make a chunk, four columns each.
//
// Chunks lie in groups of 32, so that lanes that read one chunk each read what lies together: first what of all chunks of
// a group comes first, then the rest.

// Columns 0..16 of the chunks, four codes a word, then columns 16..32.
@group(0) @binding({{ first_of_codes }}) var<storage, read_write> codes: array<u32>;
// The scales and the scales times the sums of all codes, then those times the sums of codes 0..16 and 16..32.
@group(0) @binding({{ first_of_codes + 1 }}) var<storage, read_write> scales: array<vec2<f32>>;

// Stores the codes of four columns. Chunks are whole: either all of a chunk's lanes have something to store or none,
// and all of them come here.
fn quantise(i: u32, v: vec4<f32>, has_some: bool) {
    quantise_times(i, v, 1.0, has_some);
}

// The same of factor * v, whose codes are those of v.
fn quantise_times(i: u32, v: vec4<f32>, factor: f32, has_some: bool) {
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
        let group = i >> 8u;
        let chunk = (i >> 3u) & 31u;
        codes[group * 256u + ((i >> 2u) & 1u) * 128u + chunk * 4u + (i & 3u)] = pack4xI8(q);
        if ((i & 7u) == 0u) {
            scales[group * 64u + chunk] = scale * vec2<f32>(1.0, f32(sum + other)) * factor;
            scales[group * 64u + 32u + chunk] = scale * vec2<f32>(f32(sum), f32(other)) * factor;
        }
    }
}
