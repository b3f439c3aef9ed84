//! What a driver has made of kernels, kept in a file from one run to the next.
//!
//! Bound: a file that has grown beyond [`MAX_BYTES`] is begun anew.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::{fs, io};

use wgpu::Features;

use crate::device::Gpu;
use crate::kept::keep;

/// Kernels of many models and of versions gone by.
const MAX_BYTES: usize = 64 << 20;

/// See the module.
pub(crate) struct PipelineCache {
    cache: wgpu::PipelineCache,
    path: PathBuf,
    has_new: AtomicBool,
}

impl PipelineCache {
    /// The cache of this device, whose file lies in `folder`; `None` where the driver has none to offer.
    pub(crate) fn open(gpu: &Gpu, folder: &Path) -> Option<PipelineCache> {
        if !gpu.device.features().contains(Features::PIPELINE_CACHE) {
            return None;
        }
        let path = folder.join(wgpu::util::pipeline_cache_key(&gpu.device.adapter_info())?);
        let stored = match fs::read(&path) {
            Ok(stored) if stored.len() <= MAX_BYTES => Some(stored),
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                tracing::warn!(path = %path.display(), %error, "compiled kernels cannot be read");
                None
            }
            _ => None,
        };
        let descriptor =
            wgpu::PipelineCacheDescriptor { label: None, data: stored.as_deref(), fallback: true };
        // SAFETY: the file is this program's own, written whole by `save` from what such a cache gave out; wgpu compares
        // its header with the device and driver, and begins an empty cache where they differ.
        let cache = unsafe { gpu.device.create_pipeline_cache(&descriptor) };
        Some(PipelineCache { cache, path, has_new: AtomicBool::new(false) })
    }

    pub(crate) fn cache(&self) -> &wgpu::PipelineCache {
        &self.cache
    }

    /// Something was compiled.
    pub(crate) fn note(&self) {
        self.has_new.store(true, Ordering::Release);
    }

    /// Writes what is new.
    pub(crate) fn save(&self) {
        if !self.has_new.swap(false, Ordering::AcqRel) {
            return;
        }
        let Some(data) = self.cache.get_data() else { return };
        if let Err(error) = keep(&self.path, &data) {
            tracing::warn!(path = %self.path.display(), %error, "compiled kernels cannot be kept");
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test that meets an unexpected None or Err should stop there")]
mod tests {
    use mlxr_tensor::Backend;

    use crate::{AdapterChoice, GpuBackend};

    #[test]
    fn kernels_are_kept_in_a_file_and_a_broken_one_is_begun_anew() {
        let folder = tempfile::tempdir().unwrap();
        let values = [1.0, -2.0, 3.0, 4.5];
        let doubled = || {
            let gpu = GpuBackend::new(AdapterChoice::BestOrSoftware).ok()?.with_pipeline_cache(folder.path());
            let mut x = gpu.act(1, 4, &values);
            gpu.scale(&mut x, 2.0);
            Some(gpu.read(&x).unwrap())
        };
        let Some(first) = doubled() else {
            assert!(std::env::var_os("MLXR_REQUIRE_GPU").is_none(), "no GPU");
            return;
        };
        assert_eq!(first, values.map(|value| 2.0 * value));
        let files = || std::fs::read_dir(folder.path()).map_or(Vec::new(), |files| files.collect());
        // Drivers other than Vulkan's keep compiled kernels themselves.
        for file in files() {
            let path = file.unwrap().path();
            let kept = std::fs::read(&path).unwrap();
            assert_eq!(doubled().unwrap(), first, "with the file");
            std::fs::write(&path, b"no kernels").unwrap();
            assert_eq!(doubled().unwrap(), first, "with a broken file");
            assert_eq!(std::fs::read(&path).unwrap().len(), kept.len(), "begun anew");
        }
    }
}
