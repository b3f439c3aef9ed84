//! A small persistent thread pool: every worker runs the same closure on its own share of the output.
//!
//! Workers spin briefly for the next job, then sleep. A panic in any share is raised again in the caller once all
//! shares have ended. A caller that finds the pool busy (nested or from another thread) does all shares itself, so no
//! combination of callers can deadlock.

use std::any::Any;
use std::cell::UnsafeCell;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, TryLockError};
use std::thread::JoinHandle;

/// Rounds of looking for a job before a worker sleeps: tens of microseconds, the gap between two ops of a step.
const SPINS: u32 = 4_000;

/// `job(part, n_parts)` behind a pointer whose lifetime `ThreadPool::run` guards.
type Job = *const (dyn Fn(usize, usize) + Sync);

struct Shared {
    n_threads: usize,
    /// Odd or even does not matter: a change announces a job.
    epoch: AtomicU64,
    job: UnsafeCell<Option<Job>>,
    /// Workers that have not finished the current job.
    pending: AtomicUsize,
    stop: AtomicBool,
    panic: Mutex<Option<Box<dyn Any + Send>>>,
    sleep: Mutex<()>,
    n_sleeping: AtomicUsize,
    wake: Condvar,
    done: Condvar,
}

// SAFETY: `job` is written by the one caller that holds `ThreadPool::busy` while `pending` is 0, and read by workers
// only after they saw the new epoch (release/acquire).
unsafe impl Sync for Shared {}
// SAFETY: the job pointer is only followed while `run` keeps the closure alive.
unsafe impl Send for Shared {}

/// Threads that run one closure at a time; see the module's documentation.
pub struct ThreadPool {
    shared: Arc<Shared>,
    workers: Vec<JoinHandle<()>>,
    busy: Mutex<()>,
}

impl std::fmt::Debug for ThreadPool {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "ThreadPool({} threads)", self.n_threads())
    }
}

impl ThreadPool {
    /// A pool of `n_threads`, the caller of [`Self::run`] being one of them. Fewer when the system refuses threads.
    pub fn new(n_threads: usize) -> Self {
        let n_threads = n_threads.max(1);
        let (go_send, mut workers) = (Arc::new(Mutex::new(None)), Vec::new());
        for index in 1..n_threads {
            let slot: Arc<Mutex<Option<Arc<Shared>>>> = Arc::clone(&go_send);
            let spawned = std::thread::Builder::new()
                .name(format!("mlxr-kernel-{index}"))
                .spawn(move || wait_for_start(&slot, index));
            match spawned {
                Ok(handle) => workers.push(handle),
                Err(_) => break,
            }
        }
        let shared = Arc::new(Shared {
            n_threads: workers.len() + 1,
            epoch: AtomicU64::new(0),
            job: UnsafeCell::new(None),
            pending: AtomicUsize::new(0),
            stop: AtomicBool::new(false),
            panic: Mutex::new(None),
            sleep: Mutex::new(()),
            n_sleeping: AtomicUsize::new(0),
            wake: Condvar::new(),
            done: Condvar::new(),
        });
        *lock(&go_send) = Some(Arc::clone(&shared));
        for worker in &workers {
            worker.thread().unpark();
        }
        Self { shared, workers, busy: Mutex::new(()) }
    }

    /// The number of physical cores this process may use.
    pub fn default_threads() -> usize {
        let allowed = std::thread::available_parallelism().map_or(1, usize::from);
        physical_cores().map_or(allowed, |n| n.clamp(1, allowed))
    }

    pub fn n_threads(&self) -> usize {
        self.shared.n_threads
    }

    /// Calls `work(part, n_parts)` for every part and waits for all of them.
    ///
    /// # Panics
    /// When a part panicked: with its payload, after all parts have ended.
    pub fn run(&self, work: impl Fn(usize, usize) + Sync) {
        let n_parts = self.n_threads();
        let _busy = match self.busy.try_lock() {
            Ok(guard) if n_parts > 1 => guard,
            Err(TryLockError::Poisoned(poisoned)) if n_parts > 1 => poisoned.into_inner(),
            _ => {
                (0..n_parts).for_each(|part| work(part, n_parts));
                return;
            }
        };
        let shared = &*self.shared;
        let job: &(dyn Fn(usize, usize) + Sync) = &work;
        // SAFETY: only the lifetime changes; `finish` below returns after every worker has let go of the pointer.
        let job: Job = unsafe { std::mem::transmute::<&(dyn Fn(usize, usize) + Sync), Job>(job) };
        // SAFETY: this caller holds `busy` and the previous job's workers are done, so nobody reads the cell.
        unsafe { *shared.job.get() = Some(job) };
        shared.pending.store(n_parts - 1, Ordering::Relaxed);
        shared.epoch.fetch_add(1, Ordering::SeqCst);
        if shared.n_sleeping.load(Ordering::SeqCst) > 0 {
            let _sleep = lock(&shared.sleep);
            shared.wake.notify_all();
        }
        let own = catch_unwind(AssertUnwindSafe(|| work(0, n_parts)));
        shared.finish();
        let theirs = lock(&shared.panic).take();
        if let Some(payload) = own.err().or(theirs) {
            resume_unwind(payload);
        }
    }
}

impl Drop for ThreadPool {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::SeqCst);
        self.shared.epoch.fetch_add(1, Ordering::SeqCst);
        {
            let _sleep = lock(&self.shared.sleep);
            self.shared.wake.notify_all();
        }
        for worker in self.workers.drain(..) {
            // A worker catches its jobs' panics, so joining cannot fail for a reason worth reporting.
            let _ = worker.join();
        }
    }
}

impl Shared {
    /// Waits until no worker is in the current job.
    fn finish(&self) {
        for _ in 0..SPINS {
            if self.pending.load(Ordering::Acquire) == 0 {
                return;
            }
            std::hint::spin_loop();
        }
        let mut sleep = lock(&self.sleep);
        while self.pending.load(Ordering::Acquire) != 0 {
            sleep = self.done.wait(sleep).unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// Waits for an epoch other than `seen` and returns it.
    fn next_epoch(&self, seen: u64) -> u64 {
        for _ in 0..SPINS {
            let epoch = self.epoch.load(Ordering::Acquire);
            if epoch != seen {
                return epoch;
            }
            std::hint::spin_loop();
        }
        let mut sleep = lock(&self.sleep);
        self.n_sleeping.fetch_add(1, Ordering::SeqCst);
        let epoch = loop {
            let epoch = self.epoch.load(Ordering::SeqCst);
            if epoch != seen {
                break epoch;
            }
            sleep = self.wake.wait(sleep).unwrap_or_else(PoisonError::into_inner);
        };
        self.n_sleeping.fetch_sub(1, Ordering::SeqCst);
        epoch
    }
}

fn wait_for_start(slot: &Mutex<Option<Arc<Shared>>>, index: usize) {
    let shared = loop {
        if let Some(shared) = lock(slot).clone() {
            break shared;
        }
        std::thread::park();
    };
    work_loop(&shared, index);
}

fn work_loop(shared: &Shared, index: usize) {
    let mut seen = 0;
    loop {
        seen = shared.next_epoch(seen);
        if shared.stop.load(Ordering::SeqCst) {
            return;
        }
        // SAFETY: the new epoch was published after the cell was written, and `run` waits for `pending` to reach 0
        // before the cell is written again.
        let job = unsafe { *shared.job.get() };
        if let Some(job) = job {
            // SAFETY: `run` keeps the closure alive until this worker has decremented `pending`.
            let work = unsafe { &*job };
            if let Err(payload) = catch_unwind(AssertUnwindSafe(|| work(index, shared.n_threads))) {
                lock(&shared.panic).get_or_insert(payload);
            }
        }
        if shared.pending.fetch_sub(1, Ordering::AcqRel) == 1 {
            let _sleep = lock(&shared.sleep);
            shared.done.notify_all();
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Cores as the kernel lists them, counting hyper-threads once; `None` where the system does not say.
fn physical_cores() -> Option<usize> {
    let mut first_siblings = std::collections::BTreeSet::new();
    for entry in std::fs::read_dir("/sys/devices/system/cpu").ok()? {
        let path = entry.ok()?.path();
        if let Ok(siblings) = std::fs::read_to_string(path.join("topology/thread_siblings_list")) {
            first_siblings.insert(siblings.trim().to_owned());
        }
    }
    (!first_siblings.is_empty()).then_some(first_siblings.len())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_part_runs_once_per_job() {
        let pool = ThreadPool::new(3);
        for _ in 0..200 {
            let counts: Vec<AtomicUsize> = (0..3).map(|_| AtomicUsize::new(0)).collect();
            pool.run(|part, n_parts| {
                assert_eq!(n_parts, 3);
                counts[part].fetch_add(1, Ordering::Relaxed);
            });
            assert!(counts.iter().all(|c| c.load(Ordering::Relaxed) == 1));
        }
    }

    #[test]
    fn a_panic_in_any_part_reaches_the_caller_and_the_pool_lives_on() {
        let pool = ThreadPool::new(3);
        for bad in 0..3 {
            let result = catch_unwind(AssertUnwindSafe(|| {
                pool.run(|part, _| assert_ne!(part, bad, "part {bad} fails"));
            }));
            assert!(result.is_err(), "the panic of part {bad} was lost");
        }
        let ran = AtomicUsize::new(0);
        pool.run(|_, _| {
            ran.fetch_add(1, Ordering::Relaxed);
        });
        assert_eq!(ran.load(Ordering::Relaxed), 3);
    }

    #[test]
    fn nested_and_concurrent_callers_finish() {
        let pool = ThreadPool::new(2);
        let total = AtomicUsize::new(0);
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    for _ in 0..50 {
                        pool.run(|_, _| {
                            pool.run(|_, _| {
                                total.fetch_add(1, Ordering::Relaxed);
                            });
                        });
                    }
                });
            }
        });
        assert_eq!(total.load(Ordering::Relaxed), 4 * 50 * 2 * 2);
    }
}
