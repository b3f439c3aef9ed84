//! Plain numbers as blocks of one. Integers above 2^24 and doubles round to the nearest f32.

macro_rules! decoders {
    ($($name:ident($number:ty) -> $to_f32:expr;)*) => {
        $(pub fn $name(bytes: &[u8; size_of::<$number>()], out: &mut [f32; 1]) {
            out[0] = ($to_f32)(<$number>::from_le_bytes(*bytes));
        })*
    };
}

decoders! {
    decode_f32(f32) -> |v| v;
    decode_f16(half::f16) -> half::f16::to_f32;
    decode_bf16(half::bf16) -> half::bf16::to_f32;
    decode_f64(f64) -> |v| v as f32;
    decode_i8(i8) -> f32::from;
    decode_i16(i16) -> f32::from;
    decode_i32(i32) -> |v| v as f32;
    decode_i64(i64) -> |v| v as f32;
}

pub fn encode_f32(x: &[f32; 1], out: &mut [u8; 4]) {
    *out = x[0].to_le_bytes();
}

pub fn encode_f16(x: &[f32; 1], out: &mut [u8; 2]) {
    *out = half::f16::from_f32(x[0]).to_le_bytes();
}

pub fn encode_bf16(x: &[f32; 1], out: &mut [u8; 2]) {
    *out = half::bf16::from_f32(x[0]).to_le_bytes();
}
