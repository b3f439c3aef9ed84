//! The backend against the suite that every backend passes.

#![allow(clippy::unwrap_used, reason = "a test that meets an unexpected None or Err should stop there")]

mod ahead;
mod failures;
mod greedy;
mod profile;
mod vision;

use std::sync::{Arc, OnceLock};

use mlxr_gpu::{AdapterChoice, GpuBackend, GpuError};
use mlxr_tensor::conformance;

/// The device under test; tests on a machine without one say so and pass.
fn backend() -> Option<Arc<GpuBackend>> {
    static BACKEND: OnceLock<Option<Arc<GpuBackend>>> = OnceLock::new();
    let open = || match GpuBackend::new(AdapterChoice::BestOrSoftware) {
        Ok(backend) => Some(Arc::new(backend)),
        Err(error @ GpuError::None) => {
            assert!(std::env::var_os("MLXR_REQUIRE_GPU").is_none(), "{error}");
            eprintln!("skipped: no GPU and no software driver");
            None
        }
        Err(error) => panic!("{error}"),
    };
    BACKEND.get_or_init(open).clone()
}

macro_rules! checks {
    ($($test:ident: $name:literal;)*) => {$(
        #[test]
        fn $test() {
            if let Some(backend) = backend() {
                let check = conformance::CHECKS.iter().find(|check| check.name == $name).expect($name);
                conformance::run_check(&*backend, check);
            }
        }
    )*};
}

checks! {
    acts_are_read_back: "acts are read back";
    linear_in_every_format: "linear in every format";
    linear_of_ragged_shapes: "linear of ragged shapes";
    linear_each_equals_linear: "linear_each equals linear";
    gated_linear_layers: "gated linear layers";
    linear_layers_added_and_normed: "linear layers added and normed";
    embed: "embed";
    weights_at_odd_addresses: "weights at odd addresses";
    rms_norms: "rms norms";
    layer_norms: "layer norms";
    ungated_activations: "ungated activations";
    add_scale_softcap: "add, scale, softcap";
    gated_activations: "gated activations";
    gather_rows_and_argmax: "gather_rows and argmax";
    scatter_rows: "scatter_rows";
    patches_of_an_image: "patches of an image";
    guessed_tokens: "guessed tokens";
    rope: "rope";
    rope_and_store: "rope and store";
    rotate_and_attend: "rotate and attend";
    attention_over_head_sizes: "attention over head sizes";
    attention_variants: "attention variants";
    attention_over_long_contexts: "attention over long contexts";
    attention_both_ways: "attention both ways";
    attention_over_a_spoiled_cache: "attention over a spoiled cache";
    copied_blocks: "copied blocks";
    routing: "routing";
    expert_linear_and_combine: "expert_linear and combine";
    uneven_experts: "experts of many rows, of one and of none";
}

#[test]
fn no_check_is_left_out() {
    let source = include_str!("main.rs");
    for check in conformance::CHECKS {
        assert!(source.contains(&format!("{:?};", check.name)), "{}", check.name);
    }
}
