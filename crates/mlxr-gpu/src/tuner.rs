//! Which division of a product is the fastest on this adapter: measured when that is asked for, kept in a file, and used
//! from then on.
//!
//! A division is how many rows of a weight go to how many subgroups of a workgroup. The order in which a result's parts are
//! added does not depend on it, so results do not either.
//!
//! Bound: the file has one line for each adapter, driver and shape that was measured.

use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};
use std::{fs, io};

use mlxr_tensor::TensorError;
use serde::{Deserialize, Serialize};

use crate::backend::GpuBackend;
use crate::buffers::Pooled;
use crate::kept::keep;
use crate::kernels::{Division, MatvecShape};
use crate::layout::Layout;
use crate::ops::{Matvec, Product};
use crate::weight::Numbered;

/// Changes when kernels do, so that what was measured of the old ones is not used for the new.
const VERSION: u32 = 4;
/// Bytes of weights read in turn while a division is measured, so that none is still in a cache.
const MEASURED_BYTES: u64 = 256 << 20;
const MAX_COPIES: u64 = 32;
/// Times that every division is measured, in turn, so that what slows the device down for a while meets all of them.
const N_ROUNDS: usize = 5;
/// A division replaces the usual one when it takes at most this part of its time.
const MIN_GAIN: f64 = 0.97;

/// What a division was measured for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Shape {
    pub(crate) layout: Layout,
    pub(crate) n_out: u32,
    pub(crate) cols: u32,
    /// Rows of the input that meet a row of the weight at a time.
    pub(crate) n_rows: u32,
}

impl Shape {
    fn name(&self) -> String {
        let Shape { layout, n_out, cols, n_rows } = self;
        format!("{n_out}x{cols}, {n_rows} rows, {layout:?}")
    }
}

/// What the file holds: by adapter with its driver, then by shape.
#[derive(Debug, Default, PartialEq, Serialize, Deserialize)]
struct Tuned {
    version: u32,
    adapters: BTreeMap<String, BTreeMap<String, Division>>,
}

impl Tuned {
    /// Nothing where there is no file, or where it is not of this version.
    fn read(path: &Path) -> Tuned {
        let unusable = |reason: String| {
            tracing::warn!(path = %path.display(), reason, "what was tuned for this GPU is not used");
            Tuned::default()
        };
        let text = match fs::read_to_string(path) {
            Ok(text) => text,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Tuned::default(),
            Err(error) => return unusable(error.to_string()),
        };
        match serde_json::from_str(&text) {
            Ok(Tuned { version, .. }) if version != VERSION => {
                unusable(format!("it is of version {version} and not {VERSION}"))
            }
            Ok(tuned) => tuned,
            Err(error) => unusable(error.to_string()),
        }
    }

    fn write(&self, path: &Path) -> io::Result<()> {
        keep(path, serde_json::to_string_pretty(self)?.as_bytes())
    }
}

/// See the module.
pub(crate) struct Tuner {
    path: PathBuf,
    adapter: String,
    is_measuring: bool,
    tuned: Mutex<Tuned>,
    /// What was looked up before.
    known: Mutex<HashMap<Shape, Option<Division>>>,
}

impl Tuner {
    fn new(path: PathBuf, adapter: String, is_measuring: bool) -> Tuner {
        let tuned = Mutex::new(Tuned { version: VERSION, ..Tuned::read(&path) });
        Tuner { path, adapter, is_measuring, tuned, known: Mutex::default() }
    }

    fn known(&self) -> MutexGuard<'_, HashMap<Shape, Option<Division>>> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn tuned(&self) -> MutexGuard<'_, Tuned> {
        self.tuned.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The division that is on file.
    fn find(&self, shape: &Shape) -> Option<Division> {
        let find = || self.tuned().adapters.get(&self.adapter)?.get(&shape.name()).copied();
        *self.known().entry(*shape).or_insert_with(find)
    }

    /// Keeps a division, on file too.
    fn keep(&self, shape: &Shape, division: Division) {
        self.known().insert(*shape, Some(division));
        let mut tuned = self.tuned();
        tuned.adapters.entry(self.adapter.clone()).or_default().insert(shape.name(), division);
        if let Err(error) = tuned.write(&self.path) {
            tracing::warn!(path = %self.path.display(), %error, "what was tuned for this GPU is not kept");
        }
    }
}

impl GpuBackend {
    /// Divides products as the file at `path` says. With `is_measuring`, every product that it does not know is measured the
    /// first time it is computed, and the file remembers what was fastest.
    #[must_use]
    pub fn with_tuning(mut self, path: PathBuf, is_measuring: bool) -> Self {
        let info = self.adapter();
        let adapter = format!("{} ({}, {})", info.name, info.api, info.driver);
        self.tuner = Some(Tuner::new(path, adapter, is_measuring));
        self
    }

    /// A product's shape, divided as is known to be faster than the usual way.
    pub(crate) fn tuned(
        &self,
        matvec: &Matvec<'_>,
        planes: [&Numbered; 3],
    ) -> Result<MatvecShape, TensorError> {
        let Matvec { product, params, shape: usual, .. } = *matvec;
        let (Some(tuner), None) = (&self.tuner, product.routing) else { return Ok(usual) };
        let Product { weight, .. } = product;
        let (n_out, cols) = (params.n_out, weight.cols as u32);
        let shape = Shape { layout: weight.layout, n_out, cols, n_rows: usual.n_rows };
        let found = match tuner.find(&shape) {
            None if tuner.is_measuring => {
                let fastest = self.fastest(matvec, planes)?;
                tracing::info!(shape = shape.name(), ?fastest, "measured");
                tuner.keep(&shape, fastest);
                Some(fastest)
            }
            found => found,
        };
        Ok(found.map_or(usual, |division| usual.divided(division)))
    }

    /// Measures a product divided in all ways, on buffers of the same sizes.
    fn fastest(&self, matvec: &Matvec<'_>, planes: [&Numbered; 3]) -> Result<Division, TensorError> {
        let Matvec { product, shape: usual, .. } = *matvec;
        let sizes = planes.map(|plane| plane.buffer().size());
        let n_copies = (MEASURED_BYTES / sizes.iter().sum::<u64>()).clamp(1, MAX_COPIES);
        let take = |n_bytes: u64| self.take(n_bytes as usize);
        let copies: Vec<[Pooled; 3]> = (0..n_copies)
            .map(|_| Ok([take(sizes[0])?, take(sizes[1])?, take(sizes[2])?]))
            .collect::<Result<_, TensorError>>()?;
        let y = self.take(product.n_rows * product.weight.n_out * 4)?;
        let max_lanes = self.gpu().limits.max_compute_invocations_per_workgroup;
        let mut times: Vec<(Division, Duration)> = [1, 2, 4, 8]
            .into_iter()
            .flat_map(|n_out| [1, 2, 4, 8].map(|n_sets| Division { n_out, n_sets }))
            .filter(|division| division.n_sets * usual.n_split * usual.subgroup <= max_lanes)
            .map(|division| (division, Duration::MAX))
            .collect();
        for _ in 0..N_ROUNDS {
            for (division, best) in &mut times {
                let matvec = Matvec { shape: usual.divided(*division), ..*matvec };
                let start = Instant::now();
                for planes in &copies {
                    self.matvec(&matvec, planes.each_ref().map(Pooled::bound), y.bound())?;
                }
                self.read_floats(y.bound(), 1)?;
                *best = start.elapsed().min(*best);
            }
        }
        let time_of = |wanted| times.iter().find(|(division, _)| *division == wanted);
        let (fastest, time) = *times.iter().min_by_key(|(_, time)| *time).expect("divisions were measured");
        let is_better = time_of(usual.division())
            .is_none_or(|(_, usual)| time.as_secs_f64() <= MIN_GAIN * usual.as_secs_f64());
        Ok(if is_better { fastest } else { usual.division() })
    }
}

#[cfg(test)]
mod tests {
    use mlxr_tensor::conformance::data::{self, Noise};
    use mlxr_tensor::{Backend, DType, Format};

    use super::*;
    use crate::device::AdapterChoice;

    fn shape(n_rows: u32) -> Shape {
        let layout = Layout::of(Format::Plain(DType::Q4_0)).unwrap();
        Shape { layout, n_out: 64, cols: 256, n_rows }
    }

    /// A file in a folder that goes with the first of the two.
    fn path() -> (tempfile::TempDir, PathBuf) {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("deep/tuning.json");
        (folder, path)
    }

    #[test]
    fn what_was_kept_is_found_again_for_the_same_adapter_and_shape_alone() {
        let (_folder, path) = path();
        let division = Division { n_out: 8, n_sets: 1 };
        Tuner::new(path.clone(), "one".to_owned(), true).keep(&shape(4), division);
        let again = Tuner::new(path.clone(), "one".to_owned(), false);
        assert_eq!(again.find(&shape(4)), Some(division));
        assert_eq!(again.find(&shape(8)), None);
        let other = Tuner::new(path.clone(), "two".to_owned(), true);
        assert_eq!(other.find(&shape(4)), None);
        other.keep(&shape(4), Division { n_out: 1, n_sets: 2 });
        assert_eq!(Tuner::new(path, "one".to_owned(), false).find(&shape(4)), Some(division));
    }

    #[test]
    fn a_file_that_is_broken_or_of_another_version_is_not_used_and_replaced() {
        for text in ["not a table", "{\"version\": 1}", "{\"version\": 0, \"adapters\": {}}"] {
            let (_folder, path) = path();
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(&path, text).unwrap();
            assert_eq!(Tuned::read(&path), Tuned::default(), "{text}");
            let division = Division { n_out: 2, n_sets: 2 };
            Tuner::new(path.clone(), "one".to_owned(), true).keep(&shape(1), division);
            assert_eq!(Tuner::new(path, "one".to_owned(), false).find(&shape(1)), Some(division));
        }
    }

    #[test]
    fn measured_divisions_change_no_result() {
        let Ok(plain) = GpuBackend::new(AdapterChoice::BestOrSoftware) else { return };
        let (_folder, path) = path();
        let tuned = GpuBackend::new(AdapterChoice::BestOrSoftware).unwrap().with_tuning(path.clone(), true);
        let mut noise = Noise::new(5);
        for dtype in [DType::Q4_0, DType::F16] {
            let tensor = data::tensor(Format::Plain(dtype), &[40, 512], &mut noise);
            let values = noise.values(4 * 512);
            let result = |backend: &GpuBackend| {
                let (x, w) = (backend.act(4, 512, &values), backend.upload(&tensor).unwrap());
                backend.read(&backend.linear(&x, &w, None)).unwrap()
            };
            assert_eq!(result(&tuned), result(&plain), "{dtype}");
        }
        let n_measured: usize = Tuned::read(&path).adapters.values().map(BTreeMap::len).sum();
        assert_eq!(n_measured, 2);
    }
}
