//! Every kernel is also printed in Metal's language, so that none lands that an Apple GPU cannot run.

use std::collections::HashSet;

use mlxr_tensor::conformance::data;
use naga::back::{msl, spv};
use naga::valid::{Capabilities, ValidationFlags, Validator};

use crate::kernels::*;
use crate::layout::Layout;
use crate::pipelines::{Kernel, Pipelines};
use crate::registers;

/// Lanes of a subgroup on Apple's GPUs.
const SUBGROUP: u32 = 32;

/// The kernel files that were printed.
#[derive(Default)]
struct Printed {
    files: HashSet<&'static str>,
    n: usize,
}

impl Printed {
    fn print<K: Kernel>(&mut self, pipelines: &Pipelines, kernel: &K) {
        // Subgroups and packed integer products came with 2.1.
        self.print_for((2, 1), pipelines, kernel);
    }

    fn print_for<K: Kernel>(&mut self, lang_version: (u8, u8), pipelines: &Pipelines, kernel: &K) {
        let source = pipelines.render(kernel).unwrap();
        let module = naga::front::wgsl::parse_str(&source)
            .unwrap_or_else(|e| panic!("{}: {}", K::FILE, e.emit_to_string(&source)));
        let info = Validator::new(ValidationFlags::all(), msl::supported_capabilities())
            .validate(&module)
            .unwrap_or_else(|e| panic!("{}: {}", K::FILE, e.emit_to_string(&source)));
        let options = msl::Options { lang_version, ..msl::Options::default() };
        let (text, _) = msl::write_string(&module, &info, &options, &msl::PipelineOptions::default())
            .unwrap_or_else(|e| panic!("{}: {e}", K::FILE));
        assert!(text.contains("kernel void"), "{}:\n{text}", K::FILE);
        self.files.insert(K::FILE);
        self.n += 1;
    }
}

#[test]
fn every_kernel_can_be_printed_for_metal() {
    let pipelines = Pipelines::new();
    let mut printed = Printed::default();
    simple_kernels(&pipelines, &mut printed);
    weight_kernels(&pipelines, &mut printed);
    cache_kernels(&pipelines, &mut printed);
    let mut kernels: HashSet<&str> = Pipelines::kernel_files().collect();
    // For matrices of 16 by 16; Metal's are 8 by 8.
    kernels.remove(AttendTiles::FILE);
    kernels.remove(MatmulFew::FILE);
    kernels.remove(MatmulFewCodes::FILE);
    assert_eq!(printed.files, kernels);
    assert!(printed.n > 200, "{} kernels", printed.n);
}

fn simple_kernels(pipelines: &Pipelines, printed: &mut Printed) {
    printed.print(pipelines, &Add {});
    for is_scattering in [false, true] {
        printed.print(pipelines, &MoveRows { is_scattering });
    }
    printed.print(pipelines, &Patches {});
    printed.print(pipelines, &PadRows {});
    printed.print(pipelines, &CopyWords {});
    printed.print(pipelines, &Argmax { lanes: 1024 });
    printed.print(pipelines, &Largest { lanes: 1024 });
    printed.print(pipelines, &ExpSum { lanes: 1024, subgroup: SUBGROUP });
    printed.print(pipelines, &GuessTokens {});
    printed.print(pipelines, &DrawTokens { lanes: 1024, subgroup: SUBGROUP });
    printed.print(pipelines, &FeedTokens {});
    printed.print(pipelines, &Combine {});
    printed.print(pipelines, &Group { n_experts: 128, tile: 16 });
    printed.print(pipelines, &QuantiseRows {});
    printed.print(pipelines, &ScaleRows { lanes: 256, subgroup: SUBGROUP, n_squares: 128 });
    printed.print(pipelines, &HalfRows {});
    printed.print(pipelines, &FloatRows {});
    printed.print(pipelines, &FragmentRows {});
    // Metal's matrices are 8 by 8, and came with 2.3.
    let shape = MatmulShape {
        subgroup: SUBGROUP,
        tile_rows: 64,
        tile_outs: 64,
        n_down: 2,
        n_across: 4,
        k_tile: 32,
        size: 8,
        has_vectors: false,
    };
    printed.print_for((2, 3), pipelines, &Matmul { shape });
    for kind in ["silu", "gelu", "gelu_tanh", "clamped_swiglu"] {
        for is_quantising in [false, true] {
            printed.print(pipelines, &Gated { kind, is_quantising });
        }
    }
    for kind in ["gelu", "gelu_tanh", "silu", "relu", "tanh_stable"] {
        printed.print(pipelines, &Activate { kind });
    }
    for either in [false, true] {
        printed.print(pipelines, &Scale { is_softcap: either });
        printed.print(pipelines, &RotateHeads { is_interleaved: either });
        printed.print(pipelines, &Route { softmax_over_all: either });
    }
    for lanes in [64, 1024] {
        printed.print(pipelines, &LayerNorm { lanes, subgroup: SUBGROUP });
        for (has_quads, is_quantising) in [(false, false), (true, false), (true, true)] {
            let shape = NormShape { lanes, subgroup: SUBGROUP, has_quads, per_lane: 2 };
            let is_half = false;
            let has_fragments = is_quantising;
            let kind = "out_of_place";
            printed.print(pipelines, &RmsNorm { kind, is_half, is_quantising, has_fragments, shape });
            let (kind, is_quantising_in_place, has_none) = ("in_place", false, false);
            let in_place = RmsNormInPlace {
                kind,
                is_half,
                is_quantising: is_quantising_in_place,
                has_fragments: has_none,
                shape,
            };
            printed.print(pipelines, &in_place);
            let (kind, is_half) = ("residual", has_quads && !is_quantising);
            printed.print(pipelines, &AddRmsNorm { kind, is_half, is_quantising, has_fragments, shape });
        }
    }
}

fn weight_kernels(pipelines: &Pipelines, printed: &mut Printed) {
    let layouts: Vec<Layout> = data::formats().into_iter().filter_map(Layout::of).collect();
    let shapes = |layout: &Layout| {
        let of = |n_rows, is_routed| MatvecShape::new(SUBGROUP, layout, [4096, 448], n_rows, is_routed);
        let unscaled = MatvecShape { is_unscaled: true, ..of(2, false) };
        let all = [1, 2, 4, 8, 16].map(|n_rows| [of(n_rows, false), of(n_rows, true)]).concat();
        [all, vec![unscaled]].concat()
    };
    let kind = "silu";
    for layout in layouts {
        let shapes = shapes(&layout);
        let is_quantising = matches!(layout, Layout::Codes(_));
        let gated =
            [1, 4].map(|n_rows| MatvecShape::gated(SUBGROUP, &layout, [4096, 448], n_rows, is_quantising));
        let normed = [1, 2].map(|n_rows| MatvecShape::normed(SUBGROUP, &layout, [4096, 448], n_rows, 1024));
        let gated = [gated, gated.map(|shape| MatvecShape { is_unscaled: true, ..shape })].concat();
        let is_normed = true;
        match layout {
            Layout::Codes(layout) => {
                printed.print(pipelines, &EmbedCodes { layout });
                printed.print(pipelines, &UnpackCodes { layout, lanes: 256, n_each: 2 });
                for shape in shapes {
                    printed.print(pipelines, &MatvecCodes { layout, shape });
                }
                for shape in gated {
                    printed.print(pipelines, &GatedMatvecCodes { layout, shape, kind, is_quantising });
                }
                for shape in normed {
                    printed.print(pipelines, &NormedMatvecCodes { layout, shape, is_normed, is_quantising });
                }
            }
            Layout::Floats(layout) => {
                printed.print(pipelines, &EmbedFloats { layout });
                printed.print(pipelines, &UnpackFloats { layout, lanes: 256, n_each: 2 });
                for shape in shapes {
                    printed.print(pipelines, &MatvecFloats { layout, shape });
                }
                for shape in gated {
                    printed.print(pipelines, &GatedMatvecFloats { layout, shape, kind, is_quantising });
                }
                for shape in normed {
                    printed.print(pipelines, &NormedMatvecFloats { layout, shape, is_normed, is_quantising });
                }
            }
        }
    }
}

fn cache_kernels(pipelines: &Pipelines, printed: &mut Printed) {
    for dtype in ["f32", "f16", "bf16", "q8_0", "q4_0", "f8_e4m3"] {
        for dim in [64, 128, 256] {
            let heads = KvShape { dtype, k_dim: dim, v_dim: dim, block_tokens: 16 };
            for (n_heads, split) in [(1, 128), (1, 256), (4, 128), (4, 256)] {
                let plain = attend(heads, shape(n_heads, split));
                printed.print(pipelines, &plain);
                if !heads.has_scales() {
                    for (n_pairs, is_interleaved) in [(dim / 2, false), (dim / 4, true)] {
                        printed.print(pipelines, &Attend { n_pairs, is_interleaved, ..plain });
                    }
                }
            }
            for is_quantising in [false, true] {
                let single = attend(heads, AttentionShape { is_single: true, ..shape(2, 256) });
                printed.print(pipelines, &Attend { is_quantising, ..single });
                if !heads.has_scales() {
                    printed.print(pipelines, &Attend { n_pairs: dim / 2, is_quantising, ..single });
                }
            }
            if heads.has_scales() {
                printed.print(pipelines, &StoreKvScaled { heads, octets: 4 });
            } else {
                printed.print(pipelines, &StoreKv { heads, octets: 1 });
                for (n_pairs, is_interleaved) in [(dim / 2, false), (dim / 2, true), (dim / 4, false)] {
                    printed.print(pipelines, &RotateAndStore { heads, n_pairs, is_interleaved });
                }
            }
            for (n_heads, is_quantising) in [(1, false), (4, true)] {
                let merge = MergeAttention { split: 128, v_dim: dim, n_heads, is_quantising };
                printed.print(pipelines, &merge);
            }
        }
    }
}

fn shape(n_heads: u32, split: u32) -> AttentionShape {
    AttentionShape {
        n_heads,
        n_tiles: 8,
        tiles_per_kv: 1,
        split,
        subgroup: SUBGROUP,
        is_single: false,
        n_rounds: 2,
    }
}

fn attend(heads: KvShape, shape: AttentionShape) -> Attend {
    let (is_joining, is_quantising) = (false, false);
    Attend { heads, shape, n_pairs: 0, is_interleaved: false, is_joining, is_quantising }
}

/// No software driver has matrices, so that this is the only check of their kernels off a device that does.
#[test]
fn kernels_on_matrices_can_be_printed_for_vulkan() {
    let pipelines = Pipelines::new();
    let shape = MatmulShape {
        subgroup: 32,
        tile_rows: 128,
        tile_outs: 128,
        n_down: 2,
        n_across: 2,
        k_tile: 64,
        size: 16,
        has_vectors: true,
    };
    print_for_vulkan(&pipelines.render(&Matmul { shape }).unwrap());
    for kind in ["silu", "gelu", "gelu_tanh", "clamped_swiglu"] {
        print_for_vulkan(&pipelines.render(&GatedMatmul { shape, kind }).unwrap());
    }
    for is_half in [false, true] {
        print_for_vulkan(&pipelines.render(&MatmulFew { shape: FewShape::new(32, is_half, 1) }).unwrap());
        let (shape, kind) = (FewShape::new(32, is_half, 2), "clamped_swiglu");
        print_for_vulkan(&pipelines.render(&GatedMatmulFew { shape, kind }).unwrap());
    }
    for layout in data::formats().into_iter().filter_map(Layout::of) {
        if let Layout::Codes(layout) = layout {
            let (n_split, kind) = (8, "clamped_swiglu");
            let plain = pipelines.render(&MatmulFewCodes { layout, n_split }).unwrap();
            let gated = pipelines.render(&GatedMatmulFewCodes { layout, n_split, kind }).unwrap();
            for source in [plain, gated] {
                assert!(registers::are_used(&source));
                registers::compiled(&source).unwrap();
            }
        }
    }
    for (dim, n_heads, n_subgroups, is_half) in
        [(128, 4, 8, true), (128, 4, 4, false), (64, 1, 8, false), (32, 16, 4, true)]
    {
        let heads = KvShape { dtype: "f16", k_dim: dim, v_dim: dim, block_tokens: 16 };
        let n_queries = 16 * n_subgroups / n_heads;
        let kernel = AttendTiles { heads, n_heads, n_queries, n_subgroups, tile: 32, is_half };
        print_for_vulkan(&pipelines.render(&kernel).unwrap());
    }
}

/// Kernels whose last workgroup goes on with what all have written, which Metal does not promise to show it.
#[test]
fn kernels_that_join_can_be_printed_for_vulkan() {
    let pipelines = Pipelines::new();
    let heads = KvShape { dtype: "f16", k_dim: 128, v_dim: 128, block_tokens: 16 };
    for split in [128, 256] {
        let joining = Attend { is_joining: true, is_quantising: true, ..attend(heads, shape(4, split)) };
        print_for_vulkan(&pipelines.render(&joining).unwrap());
        print_for_vulkan(&pipelines.render(&Attend { n_pairs: 64, ..joining }).unwrap());
    }
}

fn print_for_vulkan(source: &str) {
    let module =
        naga::front::wgsl::parse_str(source).unwrap_or_else(|e| panic!("{}", e.emit_to_string(source)));
    let info = Validator::new(ValidationFlags::all(), Capabilities::all())
        .validate(&module)
        .unwrap_or_else(|e| panic!("{}", e.emit_to_string(source)));
    let options = spv::Options { lang_version: (1, 6), ..spv::Options::default() };
    assert!(!spv::write_vec(&module, &info, &options, None).unwrap().is_empty());
}
