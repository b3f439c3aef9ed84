//! `mlxr bench`: prefill and decode speed, beside what the machine's memory and arithmetic could do.
//!
//! A token makes the processor read the weights it touches and the keys and values stored so far; those bytes over the
//! time taken are the GB/s printed beside tok/s. Multiplications with weights and their additions are the GFLOP/s, and
//! the share of the peak is that of the time which they take at least, as fast as a loop of nothing else. A step ends
//! with the most likely token known, as a greedy one does. Steps are begun as the engine begins them: a GPU goes on with
//! its own tokens while the host waits for the step before. On the CPU the next step decodes a token that is made up.
//! Most keys and values of a long context are copies, see [`COMPUTED_TOKENS`].

use std::io::{self, Write};
use std::process::ExitCode;
use std::time::Instant;

use mlxr_engine::{EngineOptions, Started};
use mlxr_kernels::{CpuOptions, Kernels, Operands, Products, peak};
use mlxr_models::Multiplications;
use mlxr_tensor::{Batch, Fed, KernelTime};
use serde_json::{Value, json};

use crate::args::BenchArgs;
use crate::device::{self, Wanted};
use crate::failure::{EXIT_INTERRUPTED, usage};
use crate::loaded::{self, Sequences};
use crate::model_source::ModelSource;
use crate::output::{self, DIM, HEADING};
use crate::{interrupt, progress, units};

/// How long the bandwidth of the memory is measured.
const BANDWIDTH_SECONDS: f64 = 0.5;

/// How long each kind of multiplication is.
const PEAK_SECONDS: f64 = 0.05;

pub fn run(args: &BenchArgs) -> anyhow::Result<ExitCode> {
    let tests = Test::all(args)?;
    let source = ModelSource::named(args.model.as_deref());
    let ckpt = source.open()?;
    let n_ctx = tests.iter().map(Test::n_ctx).max().unwrap_or(1);
    let n_seqs = tests.iter().map(|test| test.batch).max().unwrap_or(1) as usize;
    let cpu = CpuOptions { n_threads: args.threads, isa: Some(args.cpu_kernels.isa()) };
    let wanted = Wanted::new(args.device, cpu, device::products(args.bf16_products)).tuning(args.tune);
    let options =
        EngineOptions { n_ctx: Some(n_ctx as usize), kv_dtype: args.kv_type, ..EngineOptions::default() };
    let sequences = wanted.with_gpu_layers(args.gpu_layers).load(&ckpt, options, |placement, _| {
        let model = loaded::model(&ckpt, placement, Some(n_ctx))?;
        Sequences::new(model, args.kv_type, n_seqs, n_ctx)
    })?;
    let model = &sequences.model;
    let multiplications = Multiplications::of(model.config(), &ckpt);
    drop(ckpt);
    if args.profile {
        // Who cannot have it is told before anything is measured.
        model.backend().start_profile()?;
        model.backend().stop_profile();
    }
    let has_own_memory = model.backend().memory().is_some_and(|memory| !memory.is_shared);
    let is_cpu = model.devices().all(|(backend, _)| backend.name() == "cpu");
    let description = mlxr_server::describe_devices(model.devices());
    let mut bench = Bench {
        n_vocab: model.config().vocab as u32,
        weights_bytes: model.weights_bytes(),
        bytes_per_token: model.bytes_per_token(),
        multiplications,
        kernels: args.cpu_kernels,
        products: device::products(args.bf16_products),
        batch_rows: args.batch_rows.unwrap_or_else(|| device::batch_rows(&**model.backend()) as u32),
        sequences,
    };
    interrupt::install(interrupt::JOB_PATIENCE)?;
    let bar = progress::bar(tests.len() as u64 * u64::from(args.repeats + 1), "bench");
    // What the processor reads says nothing of a device with memory of its own.
    let read_gbps = match has_own_memory {
        true => None,
        false => mlxr_kernels::bandwidth::measure_read_gbps(n_threads(args), BANDWIDTH_SECONDS),
    };
    let peaks = if is_cpu { Peaks::measure(&args.cpu_kernels, n_threads(args)) } else { Peaks::default() };
    let mut results = Vec::new();
    for test in tests {
        bar.set_message(test.name());
        // The first pass only warms caches and threads up.
        let mut seconds = Vec::new();
        for pass in 0..=args.repeats {
            let elapsed = bench.measure(&test)?;
            if pass > 0 {
                seconds.push(elapsed);
            }
            bar.inc(1);
            if interrupt::is_pressed() {
                bar.finish_and_clear();
                return Ok(ExitCode::from(EXIT_INTERRUPTED));
            }
        }
        seconds.sort_by(f64::total_cmp);
        let (bytes, gflop) = (bench.bytes_read(&test), bench.gflop(&test));
        results.push(Outcome { test, seconds, bytes, gflop, kernels: Vec::new() });
    }
    if args.profile {
        for outcome in &mut results {
            outcome.kernels = bench.profile(&outcome.test)?;
        }
    }
    bar.finish_and_clear();
    let report =
        Report { args, source, description, weights_bytes: bench.weights_bytes, read_gbps, peaks, results };
    if args.json {
        output::json(&report.to_json())?
    } else {
        report.print(&mut output::styled())?
    }
    Ok(ExitCode::SUCCESS)
}

fn n_threads(args: &BenchArgs) -> usize {
    args.threads.unwrap_or_else(mlxr_kernels::ThreadPool::default_threads)
}

/// Tokens that are computed of what lies before a decoded one. Those beyond are copies of them, in memory of their own:
/// how long a token takes depends on how many are stored, and computing them takes time that grows with their square.
const COMPUTED_TOKENS: u32 = 2048;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Prefill,
    Decode,
}

/// One thing to measure.
#[derive(Debug, PartialEq, Eq)]
struct Test {
    kind: Kind,
    /// Tokens per sequence.
    n_tokens: u32,
    /// Tokens stored before.
    depth: u32,
    batch: u32,
    /// Whether `depth` is a mean: sequences differ, and their blocks are scattered.
    is_uneven: bool,
}

impl Test {
    fn all(args: &BenchArgs) -> anyhow::Result<Vec<Test>> {
        const MAX_SEQUENCES: u32 = 256;
        if args.batch.iter().any(|batch| !(1..=MAX_SEQUENCES).contains(batch)) {
            return Err(usage(format_args!("--batch goes from 1 to {MAX_SEQUENCES}"), "try --batch 1,4,16"));
        }
        let prefill = args.prefill.iter().filter(|n| **n > 0).map(|&n_tokens| Test {
            kind: Kind::Prefill,
            n_tokens,
            depth: 0,
            batch: 1,
            is_uneven: false,
        });
        let decode = args.batch.iter().flat_map(|&batch| {
            args.decode.iter().filter(|n| **n > 0).flat_map(move |&n_tokens| {
                let ways: &[bool] = if args.uneven && batch > 1 { &[false, true] } else { &[false] };
                ways.iter().map(move |&is_uneven| Test {
                    kind: Kind::Decode,
                    n_tokens,
                    depth: args.depth,
                    batch,
                    is_uneven,
                })
            })
        });
        let tests: Vec<Test> = prefill.chain(decode).collect();
        if tests.is_empty() {
            return Err(usage("nothing to measure", "give --prefill or --decode a number of tokens"));
        }
        let n_ctx = |test: &Test| test.depth.checked_mul(2)?.checked_add(test.n_tokens);
        if tests.iter().any(|test| n_ctx(test).is_none()) {
            return Err(usage("--depth and --decode together are beyond any context", "try smaller numbers"));
        }
        Ok(tests)
    }

    /// Tokens a sequence ends up with; decoding begins after at least one.
    fn n_ctx(&self) -> u32 {
        let most = if self.is_uneven { 2 * self.depth } else { self.depth };
        (most + self.n_tokens).saturating_add(1)
    }

    /// Tokens of a sequence that are stored before.
    fn depth_of(&self, seq: u32) -> u32 {
        match self.is_uneven {
            true => (u64::from(self.depth) * u64::from(2 * seq + 1) / u64::from(self.batch)) as u32,
            false => self.depth,
        }
    }

    /// The name llama.cpp's bench uses: `pp512`, `tg128`, `tg128 @ d1024 x4`.
    fn name(&self) -> String {
        let kind = match self.kind {
            Kind::Prefill => "pp",
            Kind::Decode => "tg",
        };
        let depth = if self.depth > 0 { format!(" @ d{}", self.depth) } else { String::new() };
        let batch = if self.batch > 1 { format!(" x{}", self.batch) } else { String::new() };
        let uneven = if self.is_uneven { " uneven" } else { "" };
        format!("{kind}{}{depth}{batch}{uneven}", self.n_tokens)
    }

    /// Tokens computed, over all sequences.
    fn n_total(&self) -> f64 {
        f64::from(self.n_tokens) * f64::from(self.batch)
    }
}

struct Bench {
    sequences: Sequences,
    n_vocab: u32,
    weights_bytes: usize,
    bytes_per_token: usize,
    multiplications: Vec<Multiplications>,
    kernels: Kernels,
    products: Products,
    /// Rows of one prefill pass.
    batch_rows: u32,
}

impl Bench {
    /// Seconds one pass of a test takes.
    fn measure(&mut self, test: &Test) -> anyhow::Result<f64> {
        self.sequences.lay_out(test.is_uneven);
        match test.kind {
            Kind::Prefill => {
                let start = Instant::now();
                self.prefill(0, test.n_tokens)?;
                Ok(start.elapsed().as_secs_f64())
            }
            Kind::Decode => {
                self.fill(test)?;
                let start = Instant::now();
                self.decode(test)?;
                Ok(start.elapsed().as_secs_f64())
            }
        }
    }

    /// What each kernel takes in one pass of a test.
    fn profile(&mut self, test: &Test) -> anyhow::Result<Vec<KernelTime>> {
        let backend = self.sequences.model.backend().clone();
        self.sequences.lay_out(test.is_uneven);
        if test.kind == Kind::Decode {
            self.fill(test)?;
        }
        backend.start_profile()?;
        match test.kind {
            Kind::Prefill => self.prefill(0, test.n_tokens)?,
            Kind::Decode => self.decode(test)?,
        }
        let times = backend.kernel_times();
        backend.stop_profile();
        Ok(times)
    }

    /// Stores what lies before the tokens that a test decodes.
    fn fill(&mut self, test: &Test) -> anyhow::Result<()> {
        for seq in 0..test.batch {
            let depth = test.depth_of(seq);
            self.prefill(seq as usize, depth.min(COMPUTED_TOKENS))?;
            if COMPUTED_TOKENS < depth {
                self.sequences.repeat(seq as usize, depth, self.token(depth))?;
            }
        }
        Ok(())
    }

    fn decode(&mut self, test: &Test) -> anyhow::Result<()> {
        let mut before: Option<Started> = None;
        for i in 0..test.n_tokens {
            let mut batch = Batch::new();
            for seq in 0..test.batch {
                self.sequences.append(&mut batch, seq as usize, &[self.token(i + seq * 31)]);
                batch.want_last();
            }
            let rows = || (0..test.batch).map(|row| [row, row]).collect();
            batch.fed = before.as_ref().map(|step| Fed { tokens: step.tokens.clone(), rows: rows() });
            before = self.follow(before, &batch)?;
        }
        finish(before)
    }

    fn prefill(&mut self, seq: usize, n_tokens: u32) -> anyhow::Result<()> {
        let tokens: Vec<u32> = (0..n_tokens).map(|i| self.token(i)).collect();
        let mut before = None;
        for chunk in tokens.chunks(self.batch_rows as usize) {
            let mut batch = Batch::new();
            self.sequences.append(&mut batch, seq, chunk);
            batch.want_last();
            before = self.follow(before, &batch)?;
        }
        finish(before)
    }

    /// Begins a batch and waits for the one before it.
    fn follow(&mut self, before: Option<Started>, batch: &Batch) -> anyhow::Result<Option<Started>> {
        let next = self.sequences.start_best(batch)?;
        finish(before)?;
        Ok(next)
    }

    /// Token ids that jump about the vocabulary, always the same.
    fn token(&self, i: u32) -> u32 {
        i.wrapping_mul(2_654_435_761).rotate_left(7) % self.n_vocab
    }

    /// Multiplications with weights and their additions in one pass of a test, by what the CPU's kernels multiply, in 1e9.
    fn gflop(&self, test: &Test) -> [f64; Operands::ALL.len()] {
        let (n_rows, n_logits, n_passes) = match test.kind {
            Kind::Prefill => {
                (test.n_tokens.min(self.batch_rows), 1, f64::from(test.n_tokens.div_ceil(self.batch_rows)))
            }
            Kind::Decode => (test.batch, test.batch, f64::from(test.n_tokens)),
        };
        let mut gflop = [0.0; Operands::ALL.len()];
        for counted in &self.multiplications {
            let mut add = |n_rows: u32, n: f64| {
                let operands = self.kernels.operands(counted.format, n_rows as usize, self.products);
                gflop[operands as usize] += 2.0 * n / 1e9;
            };
            add(n_rows, counted.of_token * test.n_total());
            add(n_logits, counted.of_logits * f64::from(n_logits) * n_passes);
        }
        gflop
    }

    /// Bytes of weights, keys and values read in one pass of a test.
    fn bytes_read(&self, test: &Test) -> f64 {
        let n = f64::from(test.n_tokens);
        let weights = self.bytes_per_token as f64;
        match test.kind {
            Kind::Prefill => {
                let n_passes = f64::from(test.n_tokens.div_ceil(self.batch_rows));
                weights * n_passes + self.sequences.kv_bytes_read(n * (n_passes + 1.0) / 2.0)
            }
            Kind::Decode => {
                let mean_stored = f64::from(test.depth) + (n + 1.0) / 2.0;
                n * (weights + self.sequences.kv_bytes_read(mean_stored) * f64::from(test.batch))
            }
        }
    }
}

/// Waits for a batch, if a device computes it.
fn finish(step: Option<Started>) -> anyhow::Result<()> {
    if let Some(step) = step {
        step.finish()?;
    }
    Ok(())
}

/// The passes of one test, fastest first; at least one.
struct Outcome {
    test: Test,
    seconds: Vec<f64>,
    bytes: f64,
    /// Multiplications with weights and their additions, for each of [`Operands::ALL`].
    gflop: [f64; Operands::ALL.len()],
    /// What each kernel took in a pass, if that was asked for.
    kernels: Vec<KernelTime>,
}

impl Outcome {
    /// What the kernels took together.
    fn kernel_seconds(&self) -> f64 {
        self.kernels.iter().map(|kernel| kernel.time.as_secs_f64()).sum()
    }

    /// One line per kernel: calls, time, share of the whole, mean; the last one is the sum.
    fn write_kernels(&self, out: &mut impl Write) -> io::Result<()> {
        let total = self.kernel_seconds();
        writeln!(
            out,
            "\n{HEADING}{:<24} {:>9} {:>12} {:>8} {:>12}{HEADING:#}",
            format!("kernels of {}", self.test.name()),
            "calls",
            "total",
            "share",
            "mean"
        )?;
        let mut line = |name: &str, n_calls: u64, seconds: f64| {
            let (share, mean) = (seconds / total * 100.0, units::seconds(seconds / n_calls.max(1) as f64));
            let seconds = units::seconds(seconds);
            writeln!(out, "{name:<24} {n_calls:>9} {seconds:>12} {share:>6.1} % {mean:>12}")
        };
        for KernelTime { kernel, n_calls, time } in &self.kernels {
            line(kernel, *n_calls, time.as_secs_f64())?;
        }
        line("all", self.kernels.iter().map(|kernel| kernel.n_calls).sum(), total)?;
        let gb_s = self.bytes / total / 1e9;
        writeln!(out, "{DIM}weights, keys and values over that time:{DIM:#} {gb_s:.2} GB/s")
    }

    fn median_seconds(&self) -> f64 {
        let (a, b) = (self.seconds[(self.seconds.len() - 1) / 2], self.seconds[self.seconds.len() / 2]);
        (a + b) / 2.0
    }

    fn fastest(&self) -> f64 {
        self.seconds[0]
    }

    fn slowest(&self) -> f64 {
        self.seconds[self.seconds.len() - 1]
    }

    fn tok_s(&self, seconds: f64) -> f64 {
        self.test.n_total() / seconds
    }

    fn gb_s(&self) -> f64 {
        self.bytes / self.median_seconds() / 1e9
    }

    fn gflop_s(&self) -> f64 {
        self.gflop.iter().sum::<f64>() / self.median_seconds()
    }
}

/// The most GFLOP/s that this machine does with each of [`Operands::ALL`], where that was measured.
#[derive(Default)]
struct Peaks([Option<f64>; Operands::ALL.len()]);

impl Peaks {
    fn measure(kernels: &Kernels, n_threads: usize) -> Peaks {
        let measured = |operands| peak::measure_gflops(kernels, operands, n_threads, PEAK_SECONDS);
        Peaks(Operands::ALL.map(measured))
    }

    /// The share of its time that multiplying takes at least.
    fn share(&self, outcome: &Outcome) -> Option<f64> {
        let needed = outcome.gflop.iter().zip(self.0).filter(|(gflop, _)| **gflop > 0.0);
        let seconds = needed.map(|(gflop, peak)| Some(gflop / peak?)).sum::<Option<f64>>()?;
        Some(seconds / outcome.median_seconds())
    }

    fn to_json(&self) -> Value {
        Operands::ALL
            .iter()
            .zip(self.0)
            .map(|(operands, peak)| (operands.name().to_owned(), json!(peak)))
            .collect()
    }
}

struct Report<'a> {
    args: &'a BenchArgs,
    source: ModelSource,
    description: String,
    weights_bytes: usize,
    read_gbps: Option<f64>,
    peaks: Peaks,
    results: Vec<Outcome>,
}

impl Report<'_> {
    fn print(&self, out: &mut impl Write) -> io::Result<()> {
        let bandwidth = self.read_gbps.map_or("unknown".to_owned(), |gbps| format!("{gbps:.1} GB/s"));
        writeln!(out, "{DIM}model:{DIM:#} {}, {}", self.source, units::bytes(self.weights_bytes as u64))?;
        writeln!(out, "{DIM}backend:{DIM:#} {}, KV {}", self.description, self.args.kv_type)?;
        writeln!(out, "{DIM}memory read bandwidth:{DIM:#} {bandwidth}")?;
        let peaks = Operands::ALL.iter().zip(self.peaks.0);
        let peaks = peaks.filter_map(|(of, peak)| Some(format!("{:.0} GFLOP/s of {}", peak?, of.name())));
        let peaks: Vec<String> = peaks.collect();
        if !peaks.is_empty() {
            writeln!(out, "{DIM}multiplications at most:{DIM:#} {}", peaks.join(", "))?;
        }
        writeln!(
            out,
            "{HEADING}{:<20} {:>10} {:>10} {:>10} {:>10} {:>12} {:>10} {:>8}{HEADING:#}",
            "test", "tok/s", "min", "max", "GB/s", "of bandwidth", "GFLOP/s", "of peak"
        )?;
        let percent =
            |share: Option<f64>| share.map_or("-".to_owned(), |share| format!("{:.0} %", share * 100.0));
        for outcome in &self.results {
            writeln!(
                out,
                "{:<20} {:>10.2} {:>10.2} {:>10.2} {:>10.2} {:>12} {:>10.1} {:>8}",
                outcome.test.name(),
                outcome.tok_s(outcome.median_seconds()),
                outcome.tok_s(outcome.slowest()),
                outcome.tok_s(outcome.fastest()),
                outcome.gb_s(),
                percent(self.share(outcome)),
                outcome.gflop_s(),
                percent(self.peaks.share(outcome)),
            )?;
        }
        if self.args.profile {
            self.results.iter().try_for_each(|outcome| outcome.write_kernels(out))?;
        }
        Ok(())
    }

    fn share(&self, outcome: &Outcome) -> Option<f64> {
        self.read_gbps.map(|gbps| outcome.gb_s() / gbps)
    }

    fn to_json(&self) -> Value {
        let results: Vec<Value> = self.results.iter().map(|outcome| self.outcome_json(outcome)).collect();
        json!({
            "model": self.source.to_string(),
            "backend": self.description,
            "weights_bytes": self.weights_bytes,
            "kv_type": self.args.kv_type.name(),
            "read_gb_s": self.read_gbps,
            "peak_gflop_s": self.peaks.to_json(),
            "results": results,
        })
    }

    fn outcome_json(&self, outcome: &Outcome) -> Value {
        let test = &outcome.test;
        json!({
            "test": test.name(),
            "n_tokens": test.n_tokens,
            "depth": test.depth,
            "batch": test.batch,
            "is_uneven": test.is_uneven,
            "repeats": outcome.seconds.len(),
            "tok_s": {
                "median": outcome.tok_s(outcome.median_seconds()),
                "min": outcome.tok_s(outcome.slowest()),
                "max": outcome.tok_s(outcome.fastest()),
            },
            "gb_s": outcome.gb_s(),
            "bandwidth_share": self.share(outcome),
            "gflop_s": outcome.gflop_s(),
            "peak_share": self.peaks.share(outcome),
            "kernels": self.args.profile.then(|| kernels_json(&outcome.kernels)),
        })
    }
}

fn kernels_json(kernels: &[KernelTime]) -> Vec<Value> {
    let kernel = |&KernelTime { kernel, n_calls, time }: &KernelTime| json!({"kernel": kernel, "calls": n_calls, "seconds": time.as_secs_f64()});
    kernels.iter().map(kernel).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn outcome(seconds: &[f64]) -> Outcome {
        let test = Test { kind: Kind::Decode, n_tokens: 10, depth: 0, batch: 2, is_uneven: false };
        Outcome { test, seconds: seconds.to_vec(), bytes: 4e9, gflop: [30.0, 4.0, 0.0], kernels: Vec::new() }
    }

    #[test]
    fn the_median_is_in_the_middle_and_counts_every_sequence() {
        assert_eq!(outcome(&[1.0, 2.0, 4.0]).median_seconds(), 2.0);
        assert_eq!(outcome(&[1.0, 2.0, 4.0, 8.0]).median_seconds(), 3.0);
        let outcome = outcome(&[1.0, 2.0, 4.0]);
        assert_eq!(outcome.tok_s(2.0), 10.0);
        assert_eq!(outcome.gb_s(), 2.0);
    }

    #[test]
    fn the_share_of_the_peak_is_the_time_that_each_kind_takes_at_least() {
        let outcome = outcome(&[2.0]);
        assert_eq!(outcome.gflop_s(), 17.0);
        // 0.3 s and 0.2 s of 2 s.
        assert_eq!(Peaks([Some(100.0), Some(20.0), None]).share(&outcome), Some(0.25));
        assert_eq!(Peaks([Some(100.0), None, None]).share(&outcome), None);
    }

    #[test]
    fn tests_are_named_as_llama_bench_names_them() {
        let test = |kind, depth, batch| Test { kind, n_tokens: 16, depth, batch, is_uneven: false };
        assert_eq!(test(Kind::Prefill, 0, 1).name(), "pp16");
        assert_eq!(test(Kind::Decode, 1024, 4).name(), "tg16 @ d1024 x4");
        let uneven = Test { is_uneven: true, ..test(Kind::Decode, 1000, 4) };
        assert_eq!(uneven.name(), "tg16 @ d1000 x4 uneven");
    }

    #[test]
    fn uneven_sequences_store_as_much_as_even_ones() {
        let uneven = Test { kind: Kind::Decode, n_tokens: 16, depth: 1000, batch: 4, is_uneven: true };
        let depths: Vec<u32> = (0..4).map(|seq| uneven.depth_of(seq)).collect();
        assert_eq!(depths, [250, 750, 1250, 1750]);
        assert!(uneven.n_ctx() > 1750 + 16);
    }
}
