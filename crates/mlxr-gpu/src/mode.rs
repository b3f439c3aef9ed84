//! What becomes of ops.

#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Mode {
    Computing,
    /// Nothing runs, and what is read are zeros: see [`mlxr_tensor::Backend::rehearsal`].
    Rehearsing,
    /// So that kernels can be compared with others they begin to be compiled; nothing runs, and what is read are zeros.
    Compiling,
    /// Each kernel is waited for, and one that the driver refuses is no failure of the device.
    Comparing,
}

impl Mode {
    /// Whether kernels run, and what they have computed is read.
    pub(crate) fn runs(self) -> bool {
        matches!(self, Mode::Computing | Mode::Comparing)
    }
}
