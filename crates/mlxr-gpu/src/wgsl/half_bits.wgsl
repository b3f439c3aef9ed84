// Four elements as f16, what is too large for it as its largest.
fn half_bits(v: vec4<f32>) -> vec2<u32> {
    let clamped = clamp(v, vec4(-65504.0), vec4(65504.0));
    return vec2(pack2x16float(clamped.xy), pack2x16float(clamped.zw));
}
