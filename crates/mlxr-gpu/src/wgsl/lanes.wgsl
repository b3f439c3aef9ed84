// What {{ subgroup }} lanes side by side find together. They are a subgroup, or a part of one where a driver has larger subgroups
// or chooses their size; pairs are exchanged, so that what is added to what depends on neither.

fn lanes_add(value: f32) -> f32 {
    var total = value;
    //# for mask in [16, 8, 4, 2, 1]
    //# if mask < subgroup
    total += subgroupShuffleXor(total, {{ mask }}u);
    //# endif
    //# endfor
    return total;
}

fn lanes_max(value: f32) -> f32 {
    var largest = value;
    //# for mask in [16, 8, 4, 2, 1]
    //# if mask < subgroup
    largest = max(largest, subgroupShuffleXor(largest, {{ mask }}u));
    //# endif
    //# endfor
    return largest;
}
