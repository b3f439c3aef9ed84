// What attention and the joining of its splits are told.
struct Params {
    first_row: u32,
    n_rows: u32,
    n_heads: u32,
    n_kv_heads: u32,
    max_splits: u32,
    // 0: none.
    window: u32,
    scale: f32,
    // 0: none.
    softcap: f32,
    sees_both: u32,
    first_split: u32,
    // Rows that see fewer or more are not served.
    least_seen: u32,
    most_seen: u32,
    has_sinks: u32,
    // As the kernel's own.
    n_rounds: u32,
    // Rows that end before this are said to see nothing.
    single: u32,
}
var<immediate> p: Params;
