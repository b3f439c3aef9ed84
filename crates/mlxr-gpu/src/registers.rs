//! Matrices of the device's matrix units made of what lanes have in registers.
//!
//! WGSL loads matrices from memory and from nowhere else, and naga cannot see the bits of a word as two f16. SPIR-V has
//! words for both: there a matrix is a composite like any other, whose elements in a lane follow each other in an order that
//! is the device's own (`SPV_KHR_cooperative_matrix`). So kernels that need them have functions of two kinds that do nothing
//! as they are written; on Vulkan calls of them become what they stand for:
//!
//! - `halves_of_*(word) -> vec2<f16>`: the bits of a word.
//! - `matrix_of_*(pairs of f16...) -> coop_mat...`: a matrix with these elements, in the device's order.

use std::collections::HashMap;

use naga::back::spv;
use naga::front::wgsl;
use naga::valid::{Capabilities, ValidationFlags, Validator};

/// What functions that become matrices, or words, are called.
const MATRIX: &str = "matrix_of_";
const HALVES: &str = "halves_of_";

const UNDEF: u32 = 1;
const NAME: u32 = 5;
const TYPE_COOPERATIVE_MATRIX: u32 = 4456;
const FUNCTION_CALL: u32 = 57;
const COMPOSITE_EXTRACT: u32 = 81;
const COMPOSITE_INSERT: u32 = 82;
const BITCAST: u32 = 124;

/// Words before the first instruction; the one at [`BOUND`] is larger than every id.
const HEADER: usize = 5;
const BOUND: usize = 3;

/// Whether a kernel has such functions.
pub(crate) fn are_used(source: &str) -> bool {
    source.contains(&format!("fn {MATRIX}"))
}

/// A kernel in SPIR-V, its calls of such functions replaced.
///
/// # Errors
/// What is wrong with it.
pub(crate) fn compiled(source: &str) -> Result<Vec<u32>, String> {
    let module = wgsl::parse_str(source).map_err(|e| e.emit_to_string(source))?;
    let info = Validator::new(ValidationFlags::all(), Capabilities::all())
        .validate(&module)
        .map_err(|e| e.emit_to_string(source))?;
    let options = spv::Options {
        // What Vulkan 1.1 takes, and matrices need.
        lang_version: (1, 3),
        // Functions are told by their names.
        flags: spv::WriterFlags::DEBUG,
        zero_initialize_workgroup_memory: spv::ZeroInitializeWorkgroupMemoryMode::None,
        force_loop_bounding: false,
        emit_int_div_checks: false,
        use_storage_input_output_16: false,
        ..Default::default()
    };
    let words = spv::write_vec(&module, &info, &options, None).map_err(|e| e.to_string())?;
    replaced(&words)
}

/// Instructions' codes and operands.
fn instructions(words: &[u32]) -> impl Iterator<Item = (u32, &[u32])> {
    let mut rest = words;
    std::iter::from_fn(move || {
        let &first = rest.first()?;
        let (instruction, after) = rest.split_at((first >> 16) as usize);
        rest = after;
        Some((first & 0xffff, &instruction[1..]))
    })
}

fn push(words: &mut Vec<u32>, code: u32, operands: &[u32]) {
    words.push(((operands.len() as u32 + 1) << 16) | code);
    words.extend_from_slice(operands);
}

/// A text as SPIR-V holds it.
fn text(words: &[u32]) -> String {
    let bytes: Vec<u8> = words.iter().flat_map(|word| word.to_le_bytes()).collect();
    let text = bytes.split(|byte| *byte == 0).next().unwrap_or_default();
    String::from_utf8_lossy(text).into_owned()
}

fn replaced(words: &[u32]) -> Result<Vec<u32>, String> {
    let (header, code) = words.split_at(HEADER);
    let mut names = HashMap::new();
    let mut elements = HashMap::new();
    for instruction in instructions(code) {
        match instruction {
            (NAME, [id, name @ ..]) => {
                names.insert(*id, text(name));
            }
            (TYPE_COOPERATIVE_MATRIX, [id, element, ..]) => {
                elements.insert(*id, *element);
            }
            _ => {}
        }
    }
    let is = |id: u32, what: &str| names.get(&id).is_some_and(|name| name.starts_with(what));
    let mut made = header.to_vec();
    let mut next = header[BOUND];
    let mut new_id = || {
        next += 1;
        next - 1
    };
    for (code, operands) in instructions(code) {
        match (code, operands) {
            (FUNCTION_CALL, [result, id, callee, word]) if is(*callee, HALVES) => {
                push(&mut made, BITCAST, &[*result, *id, *word]);
            }
            (FUNCTION_CALL, [result, id, callee, pairs @ .., last]) if is(*callee, MATRIX) => {
                let element = *elements.get(result).ok_or("what becomes a matrix is none")?;
                let mut matrix = new_id();
                push(&mut made, UNDEF, &[*result, matrix]);
                for (i, pair) in (0..).zip(pairs.iter().chain([last])) {
                    for half in 0..2 {
                        let taken = new_id();
                        push(&mut made, COMPOSITE_EXTRACT, &[element, taken, *pair, half]);
                        // The last one has the name of the call's result.
                        let is_last = i as usize == pairs.len() && half == 1;
                        let with = if is_last { *id } else { new_id() };
                        push(&mut made, COMPOSITE_INSERT, &[*result, with, taken, matrix, 2 * i + half]);
                        matrix = with;
                    }
                }
            }
            _ => push(&mut made, code, operands),
        }
    }
    made[BOUND] = next;
    Ok(made)
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test that meets an unexpected None or Err should stop there")]
mod tests {
    use super::*;

    const KERNEL: &str = "
        enable f16;
        enable wgpu_cooperative_matrix;
        @group(0) @binding(0) var<storage, read_write> x: array<u32>;
        @group(0) @binding(1) var<storage, read_write> y: array<f32>;
        fn halves_of_word(word: u32) -> vec2<f16> { return vec2<f16>(); }
        fn matrix_of_a(a: vec2<f16>, b: vec2<f16>) -> coop_mat16x16<f16, A> { return coop_mat16x16<f16, A>(); }
        fn matrix_of_b(a: vec2<f16>, b: vec2<f16>) -> coop_mat16x16<f16, B> { return coop_mat16x16<f16, B>(); }
        @compute @workgroup_size(32)
        fn main(@builtin(local_invocation_index) lane: u32) {
            let a = matrix_of_a(halves_of_word(x[lane]), halves_of_word(x[lane + 32u]));
            let b = matrix_of_b(halves_of_word(x[lane + 64u]), halves_of_word(x[lane + 96u]));
            coopStoreT(coopMultiplyAdd(a, b, coop_mat16x16<f32, C>()), &y[0], 16u);
        }";

    #[test]
    fn calls_become_bits_and_elements_in_their_order() {
        assert!(are_used(KERNEL));
        assert!(!are_used("fn main() {}"));
        let words = compiled(KERNEL).unwrap();
        let all: Vec<_> = instructions(&words[HEADER..]).collect();
        let of =
            |code: u32| all.iter().filter(move |(other, _)| *other == code).map(|(_, operands)| *operands);
        assert_eq!(of(FUNCTION_CALL).count(), 0);
        assert_eq!(of(BITCAST).count(), 4);
        // Of each matrix four elements, of pairs that follow each other.
        let inserted: Vec<_> = of(COMPOSITE_INSERT).map(|operands| operands[4]).collect();
        assert_eq!(inserted, [0, 1, 2, 3, 0, 1, 2, 3]);
        let pairs: Vec<_> = of(BITCAST).map(|operands| operands[1]).collect();
        let taken: Vec<_> = of(COMPOSITE_EXTRACT).map(|operands| [operands[2], operands[3]]).collect();
        let expected: Vec<_> = pairs.iter().flat_map(|pair| [[*pair, 0], [*pair, 1]]).collect();
        assert_eq!(&taken[taken.len() - 8..], expected);
        // No id is defined twice or beyond the bound.
        let made: Vec<_> =
            of(COMPOSITE_INSERT).chain(of(COMPOSITE_EXTRACT)).chain(of(UNDEF)).map(|o| o[1]).collect();
        let different: std::collections::HashSet<_> = made.iter().collect();
        assert_eq!(different.len(), made.len());
        assert!(made.iter().all(|id| *id < words[BOUND]));
    }

    #[test]
    fn what_is_wrong_with_a_kernel_is_told() {
        assert!(compiled("fn matrix_of_a() -> nothing").is_err());
    }
}
