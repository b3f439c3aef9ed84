//! The devices that models compute on, and how one is had again after it failed.

use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use mlxr_tensor::{Backend, HostTensor, KernelTime};

/// Opens a device; the error says why there is none.
type Open = dyn Fn() -> Result<Arc<dyn Backend>, DeviceError> + Send + Sync;

/// Bytes that a weight takes on a device.
pub type WeightBytes = fn(&HostTensor) -> usize;

/// A device cannot be had.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{reason}")]
pub struct DeviceError {
    pub reason: String,
}

/// A device: opened when it is first needed, and anew once it has failed. Models on one that failed keep it until they
/// are loaded again. Cheap to clone.
#[derive(Clone)]
pub struct Device(Arc<Inner>);

struct Inner {
    open: Box<Open>,
    weight_bytes: WeightBytes,
    backend: Mutex<Option<Arc<dyn Backend>>>,
    /// What kernels took on those that failed.
    past_times: Mutex<Vec<KernelTime>>,
}

impl Device {
    /// One on which weights take what they do in their files.
    pub fn new(open: impl Fn() -> Result<Arc<dyn Backend>, DeviceError> + Send + Sync + 'static) -> Device {
        Device::with_weights_of(HostTensor::n_bytes, open)
    }

    /// One that gives weights another form.
    pub fn with_weights_of(
        weight_bytes: WeightBytes,
        open: impl Fn() -> Result<Arc<dyn Backend>, DeviceError> + Send + Sync + 'static,
    ) -> Device {
        let (backend, past_times) = (Mutex::default(), Mutex::default());
        Device(Arc::new(Inner { open: Box::new(open), weight_bytes, backend, past_times }))
    }

    /// What weights take on it.
    pub fn weight_bytes(&self) -> WeightBytes {
        self.0.weight_bytes
    }

    /// One that is never opened anew.
    pub fn of(backend: Arc<dyn Backend>) -> Device {
        let current = Mutex::new(Some(backend.clone()));
        let open = Box::new(move || Ok(backend.clone()));
        let (weight_bytes, past_times) = (HostTensor::n_bytes, Mutex::default());
        Device(Arc::new(Inner { open, weight_bytes, backend: current, past_times }))
    }

    /// What computes. Opening a device may take a second; blocks.
    ///
    /// # Errors
    /// There is none, or none any more.
    pub fn backend(&self) -> Result<Arc<dyn Backend>, DeviceError> {
        let mut current = self.0.backend.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(backend) = &*current {
            let Some(reason) = backend.failure() else { return Ok(backend.clone()) };
            tracing::warn!(device = backend.describe(), reason, "the device failed; it is opened anew");
            add_times(&mut self.past_times(), backend.kernel_times());
        }
        // The old one may hold what the new one needs.
        *current = None;
        Ok(current.insert((self.0.open)()?).clone())
    }

    /// What its kernels have taken since the start, where they are timed.
    pub fn kernel_times(&self) -> Vec<KernelTime> {
        let current = self.0.backend.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let mut times = self.past_times().clone();
        add_times(&mut times, current.map_or_else(Vec::new, |backend| backend.kernel_times()));
        times
    }

    fn past_times(&self) -> MutexGuard<'_, Vec<KernelTime>> {
        self.0.past_times.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// One line for people; the last known one of a device that failed.
    pub fn describe(&self) -> String {
        let current = self.0.backend.lock().unwrap_or_else(PoisonError::into_inner);
        current.as_ref().map_or_else(|| "not opened".to_owned(), |backend| describe(&**backend))
    }
}

fn add_times(all: &mut Vec<KernelTime>, more: Vec<KernelTime>) {
    for KernelTime { kernel, n_calls, time } in more {
        match all.iter_mut().find(|known| known.kernel == kernel) {
            Some(known) => {
                known.n_calls += n_calls;
                known.time += time;
            }
            None => all.push(KernelTime { kernel, n_calls, time }),
        }
    }
}

/// A backend in one line.
pub fn describe(backend: &dyn Backend) -> String {
    format!("{}, {}", backend.name(), backend.describe())
}

/// The devices of a model in one line, where there are several with their layers.
pub fn describe_devices<'a>(devices: impl IntoIterator<Item = (&'a Arc<dyn Backend>, usize)>) -> String {
    let devices: Vec<_> = devices.into_iter().collect();
    match &*devices {
        [(backend, _)] => describe(&***backend),
        several => {
            let one =
                |&(backend, n): &(&Arc<dyn Backend>, usize)| format!("{} ({n} layers)", describe(&**backend));
            several.iter().rev().map(one).collect::<Vec<_>>().join("; ")
        }
    }
}

impl fmt::Debug for Device {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Device({})", self.describe())
    }
}
