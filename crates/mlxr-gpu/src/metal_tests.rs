//! Every kernel is also printed in Metal's language, so that none lands that an Apple GPU cannot run.

use std::collections::HashSet;

use mlxr_tensor::conformance::data;
use naga::back::msl;
use naga::valid::{ValidationFlags, Validator};

use crate::kernels::*;
use crate::layout::Layout;
use crate::pipelines::{Kernel, Pipelines};

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
        let source = pipelines.render(kernel).unwrap();
        let module = naga::front::wgsl::parse_str(&source)
            .unwrap_or_else(|e| panic!("{}: {}", K::FILE, e.emit_to_string(&source)));
        let info = Validator::new(ValidationFlags::all(), msl::supported_capabilities())
            .validate(&module)
            .unwrap_or_else(|e| panic!("{}: {}", K::FILE, e.emit_to_string(&source)));
        // Subgroups and packed integer products came with 2.1.
        let options = msl::Options { lang_version: (2, 1), ..msl::Options::default() };
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
    let kernels: HashSet<&str> = Pipelines::kernel_files().collect();
    assert_eq!(printed.files, kernels);
    assert!(printed.n > 200, "{} kernels", printed.n);
}

fn simple_kernels(pipelines: &Pipelines, printed: &mut Printed) {
    printed.print(pipelines, &Add {});
    printed.print(pipelines, &GatherRows {});
    printed.print(pipelines, &PadRows {});
    printed.print(pipelines, &CopyWords {});
    printed.print(pipelines, &Argmax {});
    printed.print(pipelines, &Largest {});
    printed.print(pipelines, &Combine {});
    printed.print(pipelines, &QuantiseRows {});
    for kind in ["silu", "gelu", "gelu_tanh", "clamped_swiglu"] {
        printed.print(pipelines, &Gated { kind });
    }
    for kind in ["gelu", "gelu_tanh", "silu", "relu", "tanh_stable"] {
        printed.print(pipelines, &Activate { kind });
    }
    for either in [false, true] {
        printed.print(pipelines, &Scale { is_softcap: either });
        printed.print(pipelines, &RotateHeads { is_interleaved: either });
        printed.print(pipelines, &Route { softmax_over_all: either });
    }
    for lanes in [64, 256] {
        let n_subgroups = lanes / SUBGROUP;
        printed.print(pipelines, &RmsNorm { kind: "out_of_place", lanes, n_subgroups });
        printed.print(pipelines, &RmsNormInPlace { kind: "in_place", lanes, n_subgroups });
        printed.print(pipelines, &AddRmsNorm { kind: "residual", lanes, n_subgroups });
        printed.print(pipelines, &LayerNorm { lanes, n_subgroups });
    }
}

fn weight_kernels(pipelines: &Pipelines, printed: &mut Printed) {
    let layouts: Vec<Layout> = data::formats().into_iter().filter_map(Layout::of).collect();
    let shapes = [(1, false), (2, false), (4, false), (8, false), (1, true)].map(|(n_rows, is_routed)| {
        MatvecShape { subgroup: SUBGROUP, n_split: 4, n_sets: 2, n_out: 2, n_rows, is_routed }
    });
    for layout in layouts {
        match layout {
            Layout::Codes(layout) => {
                printed.print(pipelines, &EmbedCodes { layout });
                for shape in shapes {
                    printed.print(pipelines, &MatvecCodes { layout, shape });
                }
            }
            Layout::Floats(layout) => {
                printed.print(pipelines, &EmbedFloats { layout });
                for shape in shapes {
                    printed.print(pipelines, &MatvecFloats { layout, shape });
                }
            }
        }
    }
}

fn cache_kernels(pipelines: &Pipelines, printed: &mut Printed) {
    for dtype in ["f32", "f16", "bf16", "q8_0"] {
        for dim in [64, 128, 256] {
            let heads = KvShape { dtype, k_dim: dim, v_dim: dim, block_tokens: 16 };
            for n_heads in [1, 4] {
                let shape = AttentionShape { n_heads, split: 256, lanes: 128, n_subgroups: 128 / SUBGROUP };
                if dtype == "q8_0" {
                    printed.print(pipelines, &AttendQ8 { heads, shape });
                } else {
                    printed.print(pipelines, &Attend { heads, shape });
                }
            }
            if dtype == "q8_0" {
                printed.print(pipelines, &StoreKvQ8 { heads, octets: 4 });
            } else {
                printed.print(pipelines, &StoreKv { heads, octets: 1 });
            }
            printed.print(pipelines, &MergeAttention { split: 256, v_dim: dim });
        }
    }
}
