// The choices of a routing in tiles of {{ tile }} that went to the same expert, one workgroup per expert; within an expert they stay
// in order.
//
// A tile is the expert's index and {{ tile }} choices; places that are left over, and tiles, have NOTHING.

struct Params {
    n_choices: u32,
    // As many as there may be.
    n_tiles: u32,
}
var<immediate> p: Params;

const NOTHING = 0xffffffffu;
const N_LANES = 256u;

@group(0) @binding(0) var<storage, read> experts: array<u32>;
@group(0) @binding(1) var<storage, read_write> tiles: array<u32>;

// Choices of each expert.
var<workgroup> counts: array<atomic<u32>, {{ n_experts }}>;
// Of this expert, those of each lane and of all before it.
var<workgroup> ends: array<u32, 256>;

//# include "grid.wgsl"

@compute @workgroup_size(256)
fn main(
    @builtin(workgroup_id) wg: vec3<u32>,
    @builtin(num_workgroups) n_wg: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let expert = workgroup_index(wg, n_wg);
    for (var e = lane; e < {{ n_experts }}u; e += N_LANES) {
        atomicStore(&counts[e], 0u);
    }
    workgroupBarrier();
    // A lane has a run of choices.
    let n_own = (p.n_choices + N_LANES - 1u) / N_LANES;
    let first = min(lane * n_own, p.n_choices);
    let end = min(first + n_own, p.n_choices);
    var n_found = 0u;
    for (var i = first; i < end; i++) {
        let e = experts[i];
        atomicAdd(&counts[e], 1u);
        n_found += u32(e == expert);
    }
    ends[lane] = n_found;
    workgroupBarrier();
    for (var step = 1u; step < N_LANES; step = step * 2u) {
        let before = select(0u, ends[max(lane, step) - step], lane >= step);
        workgroupBarrier();
        ends[lane] += before;
        workgroupBarrier();
    }
    // Tiles of the experts before this one, and of all.
    var first_tile = 0u;
    var n_used = 0u;
    for (var e = 0u; e < {{ n_experts }}u; e++) {
        let n = (atomicLoad(&counts[e]) + {{ tile - 1 }}u) / {{ tile }}u;
        first_tile += select(0u, n, e < expert);
        n_used += n;
    }
    var place = ends[lane] - n_found;
    for (var i = first; i < end; i++) {
        if (experts[i] == expert) {
            tiles[(first_tile + place / {{ tile }}u) * {{ tile + 1 }}u + 1u + place % {{ tile }}u] = i;
            place += 1u;
        }
    }
    let n = ends[N_LANES - 1u];
    let n_tiles = (n + {{ tile - 1 }}u) / {{ tile }}u;
    for (var t = lane; t < n_tiles; t += N_LANES) {
        tiles[(first_tile + t) * {{ tile + 1 }}u] = expert;
    }
    for (var i = n + lane; i < n_tiles * {{ tile }}u; i += N_LANES) {
        tiles[(first_tile + i / {{ tile }}u) * {{ tile + 1 }}u + 1u + i % {{ tile }}u] = NOTHING;
    }
    if (expert == 0u) {
        for (var t = n_used + lane; t < p.n_tiles; t += N_LANES) {
            tiles[t * {{ tile + 1 }}u] = NOTHING;
        }
    }
}
