// The largest of a value over the workgroup, the same on every lane; to be called once.

var<workgroup> maxima: array<f32, {{ lanes // subgroup }}>;

fn workgroup_max(value: f32, subgroup: u32, sublane: u32) -> f32 {
    var largest = lanes_max(value);
    if (sublane == 0u) {
        maxima[subgroup] = largest;
    }
    workgroupBarrier();
    for (var i = 0u; i < {{ lanes // subgroup }}u; i += 1u) {
        largest = max(largest, maxima[i]);
    }
    return largest;
}
