//! From a tile of any size to micro-kernels of fixed sizes, and loops whose numbers are constants.

/// Calls `$micro::<W, X>(..)` over a tile of `$weights` by `$xs` rows: 4 by 4 where it is full, smaller elsewhere.
/// `$micro` must compute each product the same way for all sizes.
macro_rules! for_micro_tiles {
    ($weights:ident, $xs:ident, |$ws:ident, $x:ident, $w0:ident, $x0:ident| $micro:ident($($arg:expr),*)) => {{
        let mut $w0 = 0;
        while $w0 < $weights.len() {
            let n_w = if $weights.len() - $w0 >= 4 { 4 } else { 1 };
            let mut $x0 = 0;
            while $x0 < $xs.len() {
                let left = $xs.len() - $x0;
                let n_x = if left >= 4 { 4 } else if left >= 2 { 2 } else { 1 };
                let ($ws, $x) = (&$weights[$w0..$w0 + n_w], &$xs[$x0..$x0 + n_x]);
                match (n_w, n_x) {
                    (4, 4) => $micro::<4, 4>($($arg),*),
                    (4, 2) => $micro::<4, 2>($($arg),*),
                    (4, _) => $micro::<4, 1>($($arg),*),
                    (_, 4) => $micro::<1, 4>($($arg),*),
                    (_, 2) => $micro::<1, 2>($($arg),*),
                    _ => $micro::<1, 1>($($arg),*),
                }
                $x0 += n_x;
            }
            $w0 += n_w;
        }
    }};
}
pub(crate) use for_micro_tiles;

/// `$body` once for each number below the first, which is at most eight, as a constant.
#[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
macro_rules! each_line {
    (2, |$line:ident| $body:expr) => { $crate::tiles::each_line!(@ $line, $body, 0 1) };
    (4, |$line:ident| $body:expr) => { $crate::tiles::each_line!(@ $line, $body, 0 1 2 3) };
    (8, |$line:ident| $body:expr) => { $crate::tiles::each_line!(@ $line, $body, 0 1 2 3 4 5 6 7) };
    ($n:expr, |$line:ident| $body:expr) => {
        $crate::tiles::each_line!(8, |$line| if $line < $n { $body })
    };
    (@ $line:ident, $body:expr, $($number:literal)*) => {
        $({
            const $line: usize = $number;
            $body
        })*
    };
}
#[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
pub(crate) use each_line;

/// As [`each_line!`], of up to sixteen numbers; those that there are not are not compiled either.
#[cfg(target_arch = "x86_64")]
macro_rules! each_group {
    ($n:expr, |$group:ident| $body:expr) => {
        $crate::tiles::each_line!(@ $group, if const { $group < $n } { $body }, 0 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15)
    };
}
#[cfg(target_arch = "x86_64")]
pub(crate) use each_group;
