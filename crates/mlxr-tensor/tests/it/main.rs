//! Codecs against the reference packages (golden files of `golden/quant/make.py`) and against their own properties.

mod golden;
mod roundtrip;
