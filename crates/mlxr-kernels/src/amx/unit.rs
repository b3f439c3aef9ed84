//! The tile unit's instructions, and whether the process may use them.
//!
//! The compiler has no stable intrinsics for the unit and never touches its registers itself, so what one `asm!` block
//! leaves in them is there for the next. A thread holds a configuration only between [`configure`] and [`release`]:
//! unused tiles keep context switches short.

use core::arch::asm;
use core::arch::x86_64::__cpuid_count;

/// Rows of a tile, and bytes of a row, at most.
pub(super) const TILE_ROWS: usize = 16;
pub(super) const ROW_BYTES: usize = 64;

/// The shapes of the eight tile registers, as the processor reads them.
#[repr(C, align(64))]
pub(super) struct Config {
    palette: u8,
    start_row: u8,
    reserved: [u8; 14],
    row_bytes: [u16; 16],
    rows: [u8; 16],
}

/// Rows and bytes of a row of a tile register.
#[derive(Clone, Copy)]
pub(super) struct Shape {
    pub(super) rows: usize,
    pub(super) row_bytes: usize,
}

impl Config {
    pub(super) fn new(shapes: [Shape; 8]) -> Self {
        let mut config =
            Self { palette: 1, start_row: 0, reserved: [0; 14], row_bytes: [0; 16], rows: [0; 16] };
        for (i, shape) in shapes.iter().enumerate() {
            assert!((1..=TILE_ROWS).contains(&shape.rows), "{} rows of a tile", shape.rows);
            assert!((4..=ROW_BYTES).contains(&shape.row_bytes), "{} bytes of a tile's row", shape.row_bytes);
            config.row_bytes[i] = shape.row_bytes as u16;
            config.rows[i] = shape.rows as u8;
        }
        config
    }
}

/// Sets the tile registers' shapes, and zeroes them.
///
/// # Safety
/// [`is_available`] said yes.
#[inline]
pub(super) unsafe fn configure(config: &Config) {
    // SAFETY: the unit is there; the operand is 64 readable bytes of a valid configuration (`Config::new`).
    unsafe { asm!("ldtilecfg [{}]", in(reg) config, options(nostack, preserves_flags)) }
}

/// Takes the shapes away again.
///
/// # Safety
/// [`is_available`] said yes.
#[inline]
pub(super) unsafe fn release() {
    // SAFETY: the unit is there.
    unsafe { asm!("tilerelease", options(nomem, nostack, preserves_flags)) }
}

/// Whether this CPU multiplies 8-bit tiles and the system lets this process do it: asked once.
pub(super) fn is_available() -> bool {
    static AVAILABLE: std::sync::OnceLock<bool> = std::sync::OnceLock::new();
    *AVAILABLE.get_or_init(|| has_int8_tiles() && permitted())
}

fn has_int8_tiles() -> bool {
    const AMX_TILE: u32 = 1 << 24;
    const AMX_INT8: u32 = 1 << 25;
    let edx = __cpuid_count(7, 0).edx;
    edx & AMX_TILE != 0 && edx & AMX_INT8 != 0
}

/// Whether the unit, known to be available, multiplies bf16 as well, and vectors convert to it.
pub(super) fn has_bf16_tiles() -> bool {
    const AMX_BF16: u32 = 1 << 22;
    __cpuid_count(7, 0).edx & AMX_BF16 != 0 && is_x86_feature_detected!("avx512bf16")
}

/// Asks Linux for the tile registers: they enlarge a thread's saved state, so a process has them only on request
/// (`Documentation/arch/x86/xstate.rst`). Threads that run already are covered.
#[cfg(target_os = "linux")]
fn permitted() -> bool {
    const SYS_ARCH_PRCTL: i64 = 158;
    const ARCH_REQ_XCOMP_PERM: u64 = 0x1023;
    const XFEATURE_XTILEDATA: u64 = 18;
    let result: i64;
    // SAFETY: the call takes two numbers and touches no memory of this process; a kernel that does not know it, or
    // refuses, returns an error. A system call clobbers `rcx` and `r11`.
    unsafe {
        asm!(
            "syscall",
            inlateout("rax") SYS_ARCH_PRCTL => result,
            in("rdi") ARCH_REQ_XCOMP_PERM,
            in("rsi") XFEATURE_XTILEDATA,
            lateout("rcx") _,
            lateout("r11") _,
            options(nostack),
        );
    }
    result == 0
}

/// Other systems have rules of their own, which nobody has tried here.
#[cfg(not(target_os = "linux"))]
fn permitted() -> bool {
    false
}
