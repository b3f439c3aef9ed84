//! Barriers of subgroups that order workgroup memory.
//!
//! WGSL says of `subgroupBarrier` that it does; naga writes it for Vulkan as a barrier that orders no memory of a workgroup.
//! So kernels that have one are parsed here, and their barriers told.

use wgpu::naga::front::wgsl;
use wgpu::naga::{Barrier, Block, Module, Statement};

/// Loads of the next run wait at such a barrier too: 16 sequences of F16 took a tenth longer with it on an H200. Its driver
/// orders the memory of this kernel all the same, which the check of matrix units at start finds out.
const AS_WRITTEN: &str = "matmul_few.wgsl";

/// Whether barriers of a kernel are to be told to order workgroup memory.
pub(crate) fn are_told(kernel: &str, source: &str) -> bool {
    kernel != AS_WRITTEN && source.contains("subgroupBarrier")
}

/// A kernel whose barriers of subgroups order workgroup memory too.
///
/// # Errors
/// What is wrong with it.
pub(crate) fn ordered(source: &str) -> Result<Module, String> {
    let mut module = wgsl::parse_str(source).map_err(|e| e.emit_to_string(source))?;
    let entry_points = module.entry_points.iter_mut().map(|entry_point| &mut entry_point.function);
    for function in entry_points.chain(module.functions.iter_mut().map(|(_, function)| function)) {
        order(&mut function.body);
    }
    Ok(module)
}

fn order(block: &mut Block) {
    for statement in block.iter_mut() {
        match statement {
            Statement::ControlBarrier(flags) if flags.contains(Barrier::SUB_GROUP) => {
                flags.insert(Barrier::WORK_GROUP);
            }
            Statement::Block(block) => order(block),
            Statement::If { accept, reject, .. } => {
                order(accept);
                order(reject);
            }
            Statement::Loop { body, continuing, .. } => {
                order(body);
                order(continuing);
            }
            Statement::Switch { cases, .. } => cases.iter_mut().for_each(|case| order(&mut case.body)),
            _ => {}
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test that meets an unexpected None or Err should stop there")]
mod tests {
    use naga::back::spv;
    use naga::valid::{Capabilities, ValidationFlags, Validator};

    use super::*;

    /// Scopes of execution and memory, and semantics, of all barriers.
    fn barriers(source: &str) -> Vec<[u32; 3]> {
        const CONTROL_BARRIER: u32 = 224;
        const CONSTANT: u32 = 43;
        let module = ordered(source).unwrap();
        let info = Validator::new(ValidationFlags::all(), Capabilities::all()).validate(&module).unwrap();
        let options = spv::Options { lang_version: (1, 6), ..Default::default() };
        let words = spv::write_vec(&module, &info, &options, None).unwrap();
        let mut instructions = vec![];
        let mut rest = &words[5..];
        while let Some(&first) = rest.first() {
            let (instruction, after) = rest.split_at((first >> 16) as usize);
            instructions.push((first & 0xffff, &instruction[1..]));
            rest = after;
        }
        let value = |id: u32| {
            let is_it = |(code, words): &&(u32, &[u32])| *code == CONSTANT && words[1] == id;
            instructions.iter().find(is_it).unwrap().1[2]
        };
        let found = instructions.iter().filter(|(code, _)| *code == CONTROL_BARRIER);
        found.map(|(_, words)| [value(words[0]), value(words[1]), value(words[2])]).collect()
    }

    #[test]
    fn barriers_of_subgroups_order_workgroup_memory_wherever_they_stand() {
        const SUBGROUP: u32 = 3;
        const WORKGROUP: u32 = 2;
        const ACQUIRE_RELEASE: u32 = 8;
        const SUBGROUP_MEMORY: u32 = 0x80;
        const WORKGROUP_MEMORY: u32 = 0x100;
        let kernel = "
            fn inner() { subgroupBarrier(); }
            @compute @workgroup_size(64)
            fn main(@builtin(num_workgroups) n: vec3<u32>) {
                subgroupBarrier();
                for (var i = 0u; i < n.x; i++) { { subgroupBarrier(); } }
                if (n.x > 1u) { subgroupBarrier(); } else { subgroupBarrier(); }
                switch (n.y) { case 1u: { subgroupBarrier(); } default: { inner(); } }
                workgroupBarrier();
            }";
        let all = ACQUIRE_RELEASE | SUBGROUP_MEMORY | WORKGROUP_MEMORY;
        let of_subgroup = [SUBGROUP, SUBGROUP, all];
        let of_workgroup = [WORKGROUP, WORKGROUP, ACQUIRE_RELEASE | WORKGROUP_MEMORY];
        let found = barriers(kernel);
        assert_eq!(found.iter().filter(|found| **found == of_subgroup).count(), 6);
        assert_eq!(found.iter().filter(|found| **found == of_workgroup).count(), 1);
        assert_eq!(found.len(), 7);
    }
}
