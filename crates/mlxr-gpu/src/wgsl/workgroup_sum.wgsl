// The sum of a value over the workgroup, the same on every lane.

var<workgroup> partial: array<f32, {{ lanes // subgroup }}>;

fn workgroup_sum(value: f32, subgroup: u32, sublane: u32) -> f32 {
    let of_subgroup = lanes_add(value);
    // The sum before may still be being read.
    workgroupBarrier();
    if (sublane == 0u) {
        partial[subgroup] = of_subgroup;
    }
    workgroupBarrier();
    var total = 0.0;
    for (var i = sublane; i < {{ lanes // subgroup }}u; i += {{ subgroup }}u) {
        total += partial[i];
    }
    return lanes_add(total);
}
