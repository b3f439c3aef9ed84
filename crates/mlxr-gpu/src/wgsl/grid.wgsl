// Workgroups along x and y count as one line; see Grid in recorder.rs.
fn workgroup_index(id: vec3<u32>, n: vec3<u32>) -> u32 {
    return id.y * n.x + id.x;
}
