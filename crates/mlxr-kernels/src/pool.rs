//! A small persistent thread pool: its threads share the parts of one job at a time.
//!
//! Parts are claimed, not assigned, so that a thread which the system has put aside takes no part and holds nobody up:
//! the caller claims what is left, closes the job, and waits only for workers that are inside it. Workers look out for
//! the next job for a while, then sleep. A panic in any part is raised again in the caller. A caller that finds the
//! pool busy (nested or from another thread) does all parts itself, so no combination of callers can deadlock.

use std::any::Any;
use std::cell::UnsafeCell;
use std::collections::BTreeSet;
use std::ops::Range;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, TryLockError};
use std::thread::JoinHandle;

use crate::disjoint::split;

/// Looks for a change with nothing but a pause in between: some tens of microseconds, the gap between two ops of a step.
const SPINS: u32 = 1_000;

/// Looks for a change that follow, each letting other threads run first: the gap between two steps.
const YIELDS: u32 = 1_000;

/// What every thread that joins a job runs, behind a pointer whose lifetime `ThreadPool::join` guards.
type Job = *const (dyn Fn() + Sync);

/// The state of the current job in one word, so that joining and closing it exclude each other: the number of workers
/// inside in the low bits, then two flags, then the number of the job.
struct Gate(AtomicU64);

impl Gate {
    const INSIDE: u64 = (1 << 16) - 1;
    /// Workers may join.
    const OPEN: u64 = 1 << 16;
    /// The caller sleeps until the last worker has left.
    const AWAITED: u64 = 1 << 17;
    /// Counts jobs.
    const JOB: u64 = 1 << 18;

    fn job(state: u64) -> u64 {
        state / Self::JOB
    }

    fn state(&self) -> u64 {
        self.0.load(Ordering::SeqCst)
    }

    /// Announces the next job. Only for the caller, once all workers have left the one before.
    fn open(&self) {
        let next = Self::job(self.state()) + 1;
        self.0.store((next * Self::JOB) | Self::OPEN, Ordering::SeqCst);
    }

    /// Whether a worker that saw `state` is now inside its job.
    fn join(&self, mut state: u64) -> bool {
        let job = Self::job(state);
        while state & Self::OPEN != 0 && Self::job(state) == job {
            match self.0.compare_exchange_weak(state, state + 1, Ordering::SeqCst, Ordering::SeqCst) {
                Ok(_) => return true,
                Err(now) => state = now,
            }
        }
        false
    }

    /// Leaves the job; whether the caller sleeps and has to be woken.
    fn leave(&self) -> bool {
        let before = self.0.fetch_sub(1, Ordering::SeqCst);
        before & Self::AWAITED != 0 && before & Self::INSIDE == 1
    }

    /// Lets nobody in any more.
    fn close(&self) {
        self.0.fetch_and(!Self::OPEN, Ordering::SeqCst);
    }

    /// Announces that the caller is about to sleep; whether somebody is inside.
    fn is_awaited(&self) -> bool {
        self.0.fetch_or(Self::AWAITED, Ordering::SeqCst) & Self::INSIDE != 0
    }
}

/// Shares of `0..n`, claimed range by range; threads beyond [`MAX_LANES`] begin in the middle of another's.
struct Lanes {
    grain: usize,
    n_lanes: usize,
    n_threads: AtomicUsize,
    lanes: [Lane; MAX_LANES],
}

const MAX_LANES: usize = 16;

/// What is left of a share, on a cache line of its own.
#[repr(align(64))]
struct Lane {
    next: AtomicUsize,
    end: usize,
}

impl Lanes {
    fn new(n: usize, grain: usize, n_threads: usize) -> Self {
        let n_lanes = n_threads.min(MAX_LANES);
        let lanes = std::array::from_fn(|lane| {
            let share = if lane < n_lanes { split(n, lane, n_lanes, grain) } else { 0..0 };
            Lane { next: AtomicUsize::new(share.start), end: share.end }
        });
        Self { grain, n_lanes, n_threads: AtomicUsize::new(0), lanes }
    }

    fn walk(&self, work: &impl Fn(Range<usize>)) {
        let own = self.n_threads.fetch_add(1, Ordering::Relaxed) % self.n_lanes;
        let (before, from_own) = self.lanes[..self.n_lanes].split_at(own);
        for lane in from_own.iter().chain(before) {
            loop {
                let start = lane.next.fetch_add(self.grain, Ordering::Relaxed);
                if lane.end <= start {
                    break;
                }
                work(start..lane.end.min(start + self.grain));
            }
        }
    }
}

struct Shared {
    n_threads: usize,
    gate: Gate,
    job: UnsafeCell<Option<Job>>,
    stop: AtomicBool,
    panic: Mutex<Option<Box<dyn Any + Send>>>,
    sleep: Mutex<()>,
    /// Workers nobody has woken since they went to sleep; changed under `sleep`.
    n_sleeping: AtomicUsize,
    wake: Condvar,
    done: Condvar,
}

// SAFETY: `job` is written by the one caller that holds `ThreadPool::busy` while nobody is inside the gate, and read by
// workers only while they are.
unsafe impl Sync for Shared {}
// SAFETY: the job pointer is only followed while `join` keeps the closure alive.
unsafe impl Send for Shared {}

/// Threads that run one job at a time; see the module's documentation.
pub struct ThreadPool {
    shared: Arc<Shared>,
    workers: Vec<JoinHandle<()>>,
    busy: Mutex<()>,
    /// Whether nothing that is asked for is done.
    is_idle: bool,
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
                .spawn(move || wait_for_start(&slot));
            match spawned {
                Ok(handle) => workers.push(handle),
                Err(_) => break,
            }
        }
        let shared = Arc::new(Shared::new(workers.len() + 1));
        *lock(&go_send) = Some(Arc::clone(&shared));
        for worker in &workers {
            worker.thread().unpark();
        }
        Self { shared, workers, busy: Mutex::new(()), is_idle: false }
    }

    /// A pool that says it has `n_threads`, has none, and does nothing of what it is asked for.
    pub fn idle(n_threads: usize) -> Self {
        let shared = Arc::new(Shared::new(n_threads));
        Self { shared, workers: Vec::new(), busy: Mutex::new(()), is_idle: true }
    }

    pub fn is_idle(&self) -> bool {
        self.is_idle
    }

    /// The number of physical cores the calling thread may use.
    pub fn default_threads() -> usize {
        let allowed = std::thread::available_parallelism().map_or(1, usize::from);
        physical_cores().map_or(allowed, |n| n.clamp(1, allowed))
    }

    pub fn n_threads(&self) -> usize {
        self.shared.n_threads
    }

    /// Calls `work(part, n_parts)` for every part, as many as there are threads, and waits for all of them.
    ///
    /// # Panics
    /// When a part panicked: with its payload, once no part runs any more.
    pub fn run(&self, work: impl Fn(usize, usize) + Sync) {
        let n_parts = self.n_threads();
        self.share(n_parts, 1, |parts| parts.for_each(|part| work(part, n_parts)));
    }

    /// Calls `work` for ranges of up to `grain` that together are `0..n`, and waits for all of them. Each thread walks a
    /// share of its own from end to end and then helps with the others', so that a slow one takes fewer ranges.
    ///
    /// # Panics
    /// As [`Self::run`].
    pub fn share(&self, n: usize, grain: usize, work: impl Fn(Range<usize>) + Sync) {
        if self.is_idle {
            return;
        }
        if n <= grain {
            if n > 0 {
                work(0..n);
            }
            return;
        }
        let lanes = Lanes::new(n, grain, self.n_threads());
        self.join(&|| lanes.walk(&work));
    }

    /// Calls `work` in this thread and in those workers that come in time.
    fn join(&self, work: &(dyn Fn() + Sync)) {
        let _busy = match self.busy.try_lock() {
            Ok(guard) if self.n_threads() > 1 => guard,
            Err(TryLockError::Poisoned(poisoned)) if self.n_threads() > 1 => poisoned.into_inner(),
            _ => return work(),
        };
        let shared = &*self.shared;
        // SAFETY: only the lifetime changes; `finish` below returns after every worker has let go of the pointer.
        let job: Job = unsafe { std::mem::transmute::<&(dyn Fn() + Sync), Job>(work) };
        // SAFETY: this caller holds `busy` and the workers have left the previous job, so nobody reads the cell.
        unsafe { *shared.job.get() = Some(job) };
        shared.gate.open();
        shared.wake_workers();
        let own = catch_unwind(AssertUnwindSafe(work));
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
        self.shared.gate.open();
        self.shared.wake_workers();
        for worker in self.workers.drain(..) {
            // A worker catches its jobs' panics, so joining cannot fail for a reason worth reporting.
            let _ = worker.join();
        }
    }
}

impl Shared {
    fn new(n_threads: usize) -> Self {
        Self {
            n_threads,
            gate: Gate(AtomicU64::new(0)),
            job: UnsafeCell::new(None),
            stop: AtomicBool::new(false),
            panic: Mutex::new(None),
            sleep: Mutex::new(()),
            n_sleeping: AtomicUsize::new(0),
            wake: Condvar::new(),
            done: Condvar::new(),
        }
    }

    fn wake_workers(&self) {
        if self.n_sleeping.load(Ordering::SeqCst) > 0 {
            let _sleep = lock(&self.sleep);
            self.n_sleeping.store(0, Ordering::SeqCst);
            self.wake.notify_all();
        }
    }

    /// Ends the job: waits until no worker is in it.
    fn finish(&self) {
        self.gate.close();
        if look_out(|| (self.gate.state() & Gate::INSIDE == 0).then_some(())).is_some() {
            return;
        }
        let mut sleep = lock(&self.sleep);
        while self.gate.is_awaited() {
            sleep = self.done.wait(sleep).unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// Waits for a job other than `seen` and returns the state of the gate.
    fn next_job(&self, seen: u64) -> u64 {
        let new = || Some(self.gate.state()).filter(|&state| Gate::job(state) != seen);
        if let Some(state) = look_out(new) {
            return state;
        }
        let mut sleep = lock(&self.sleep);
        loop {
            // Every time anew: who wakes sets the count to zero, also when it was for a job this worker has seen.
            self.n_sleeping.fetch_add(1, Ordering::SeqCst);
            if let Some(state) = new() {
                return state;
            }
            sleep = self.wake.wait(sleep).unwrap_or_else(PoisonError::into_inner);
        }
    }
}

/// What `find` finds before it is time to sleep.
fn look_out<T>(find: impl Fn() -> Option<T>) -> Option<T> {
    for _ in 0..SPINS {
        if let found @ Some(_) = find() {
            return found;
        }
        std::hint::spin_loop();
    }
    (0..YIELDS).find_map(|_| {
        std::thread::yield_now();
        find()
    })
}

fn wait_for_start(slot: &Mutex<Option<Arc<Shared>>>) {
    let shared = loop {
        if let Some(shared) = lock(slot).clone() {
            break shared;
        }
        std::thread::park();
    };
    work_loop(&shared);
}

fn work_loop(shared: &Shared) {
    let mut seen = 0;
    loop {
        let state = shared.next_job(seen);
        seen = Gate::job(state);
        if shared.stop.load(Ordering::SeqCst) {
            return;
        }
        if !shared.gate.join(state) {
            continue;
        }
        // SAFETY: this worker is inside the gate: the cell was written before it was opened and will not be before the
        // worker has left.
        let job = unsafe { *shared.job.get() };
        if let Some(job) = job {
            // SAFETY: `join` keeps the closure alive until this worker has left.
            let work = unsafe { &*job };
            if let Err(payload) = catch_unwind(AssertUnwindSafe(work)) {
                lock(&shared.panic).get_or_insert(payload);
            }
        }
        if shared.gate.leave() {
            let _sleep = lock(&shared.sleep);
            shared.done.notify_all();
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Cores this thread may run on, counting hyper-threads once; `None` where the system does not say.
fn physical_cores() -> Option<usize> {
    let status = std::fs::read_to_string("/proc/thread-self/status").ok()?;
    let allowed = status.lines().find_map(|line| line.strip_prefix("Cpus_allowed_list:"))?;
    cores_of(&cpu_list(allowed)?, Path::new("/sys/devices/system/cpu"))
}

/// The processors of a list such as `0-3,8`.
fn cpu_list(text: &str) -> Option<Vec<usize>> {
    let ranges = text.trim().split(',').map(|range| {
        let (first, last) = range.split_once('-').unwrap_or((range, range));
        Some(first.parse().ok()?..=last.parse().ok()?)
    });
    Some(ranges.collect::<Option<Vec<_>>>()?.into_iter().flatten().collect())
}

/// The cores that some processors are threads of, by what `folder` says of each.
fn cores_of(cpus: &[usize], folder: &Path) -> Option<usize> {
    let siblings = cpus.iter().map(|cpu| {
        std::fs::read_to_string(folder.join(format!("cpu{cpu}/topology/thread_siblings_list"))).ok()
    });
    Some(siblings.collect::<Option<BTreeSet<String>>>()?.len())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hyper_threads_of_a_core_count_once_and_cores_of_others_do_not() {
        let folder = tempfile::tempdir().expect("a folder");
        // Two cores of two threads each, and one that is not told of.
        for (cpu, siblings) in [(0, "0,2\n"), (1, "1,3\n"), (2, "0,2\n"), (3, "1,3\n")] {
            let topology = folder.path().join(format!("cpu{cpu}/topology"));
            std::fs::create_dir_all(&topology).expect("a folder");
            std::fs::write(topology.join("thread_siblings_list"), siblings).expect("a file");
        }
        let cores = |list: &str| cores_of(&cpu_list(list)?, folder.path());
        for (list, n_cores) in [("\t0-3\n", 2), ("0,2", 1), ("0-1", 2), ("2-3", 2), ("0-1,3", 2), ("1,3", 1)]
        {
            assert_eq!(cores(list), Some(n_cores), "{list}");
        }
        for list in ["0-4", "", "a", "1-"] {
            assert_eq!(cores(list), None, "{list}");
        }
    }

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
    fn shared_ranges_cover_everything_once() {
        let pool = ThreadPool::new(3);
        for (n, grain) in [(0, 1), (1, 1), (1, 4), (2, 1), (7, 2), (100, 7), (1000, 1)] {
            let counts: Vec<AtomicUsize> = (0..n).map(|_| AtomicUsize::new(0)).collect();
            pool.share(n, grain, |range| {
                assert!(range.len() <= grain);
                range.for_each(|i| assert_eq!(counts[i].fetch_add(1, Ordering::Relaxed), 0));
            });
            assert!(counts.iter().all(|c| c.load(Ordering::Relaxed) == 1), "{n} by {grain}");
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
    fn a_worker_woken_for_a_job_it_has_seen_can_be_woken_again() {
        // A pool whose worker cannot be woken cannot be dropped either.
        let pool = std::mem::ManuallyDrop::new(ThreadPool::new(2));
        let falls_asleep = || {
            let start = std::time::Instant::now();
            while pool.shared.n_sleeping.load(Ordering::SeqCst) == 0 {
                assert!(start.elapsed().as_secs() < 20, "nobody knows that the worker sleeps");
                std::thread::yield_now();
            }
        };
        for _ in 0..20 {
            falls_asleep();
            // Too late for the job before, and there is no other one.
            pool.shared.wake_workers();
        }
        falls_asleep();
        drop(std::mem::ManuallyDrop::into_inner(pool));
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
