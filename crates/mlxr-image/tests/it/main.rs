//! Images against what transformers and Pillow make of them (`golden/vision/make.py`), and files that are none.

#![allow(clippy::unwrap_used, reason = "a test that meets an unexpected None or Err should stop there")]

use std::fs;
use std::path::{Path, PathBuf};

use mlxr_image::{ImageError, ImageProcessor, MAX_FILE_BYTES};
use serde_json::{Map, Value, json};

const MEAN: [f64; 3] = [0.48145466, 0.4578275, 0.40821073];
const STD: [f64; 3] = [0.26862954, 0.26130258, 0.27577711];

fn golden(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../golden/vision").join(path)
}

fn settings(value: Value) -> Map<String, Value> {
    value.as_object().unwrap().clone()
}

fn processor(edge: u64, crop: u64) -> ImageProcessor {
    let settings = settings(json!({
        "size": {"shortest_edge": edge},
        "crop_size": {"height": crop, "width": crop},
        "image_mean": MEAN,
        "image_std": STD,
        "image_processor_type": "CLIPImageProcessor",
    }));
    ImageProcessor::new(&settings).unwrap()
}

#[test]
fn every_image_has_the_levels_that_pillow_gives_it() {
    let text = fs::read_to_string(golden("pixels.json")).unwrap();
    let records: Value = serde_json::from_str(&text).unwrap();
    let mut n_images = 0;
    for (name, record) in records["images"].as_object().unwrap() {
        let file = name.split(' ').next().unwrap();
        let (edge, crop) = (record["edge"].as_u64().unwrap(), record["crop"].as_u64().unwrap());
        let pixels = processor(edge, crop).open(&golden(&format!("images/{file}"))).unwrap();
        assert_eq!(pixels.shape(), [3, crop as usize, crop as usize], "{name}");
        let per_channel = (crop * crop) as usize;
        let level = |i: usize| {
            let (mean, std) = (MEAN[i / per_channel], STD[i / per_channel]);
            (f64::from(pixels.values[i]) * std + mean) * 255.0
        };
        let expected = record["levels"].as_array().unwrap();
        assert_eq!(pixels.values.len(), expected.len(), "{name}");
        // JPEG leaves decoders free to round on the way.
        let tolerance = if file.ends_with(".jpeg") { 3.01 } else { 0.01 };
        for (i, expected) in expected.iter().enumerate() {
            let (found, expected) = (level(i), expected.as_f64().unwrap());
            assert!(
                (found - expected).abs() < tolerance,
                "{name}: value {i} is {found} instead of {expected}"
            );
        }
        if !file.ends_with(".jpeg") {
            for (found, expected) in pixels.values.iter().zip(record["first"].as_array().unwrap()) {
                assert!((f64::from(*found) - expected.as_f64().unwrap()).abs() < 1e-6, "{name}");
            }
        }
        n_images += 1;
    }
    assert_eq!(n_images, 14);
}

#[test]
fn files_that_are_no_images_are_refused_by_name_and_reason() {
    let processor = processor(28, 28);
    let refused = |bytes: &[u8]| processor.pixels(bytes).unwrap_err().to_string();
    assert!(refused(b"").contains("not an image in PNG"));
    assert!(refused(b"What is this?").contains("not an image in PNG"));
    // A bitmap is an image, but not in one of the formats.
    assert!(refused(b"BM\x3a\0\0\0\0\0\0\0").contains("not an image in PNG"));
    let whole = fs::read(golden("images/wide.png")).unwrap();
    for n in [8, 20, 60, whole.len() / 2] {
        assert!(refused(&whole[..n]).contains("damaged"), "{n} bytes: {}", refused(&whole[..n]));
    }
    let missing = processor.open(Path::new("/nowhere/cat.png")).unwrap_err();
    assert!(missing.to_string().contains("/nowhere/cat.png"), "{missing}");
}

#[test]
fn cut_and_changed_files_never_panic() {
    let processor = processor(28, 28);
    for file in ["wide.png", "tall.webp", "palette.gif", "turned.jpeg"] {
        let whole = fs::read(golden(&format!("images/{file}"))).unwrap();
        for i in (0..whole.len()).step_by(7) {
            let _ = processor.pixels(&whole[..i]);
            let mut changed = whole.clone();
            changed[i] ^= 0x55;
            let _ = processor.pixels(&changed);
        }
    }
}

/// A PNG of one colour whose header says so many pixels.
fn png(width: u32, height: u32) -> Vec<u8> {
    let mut bytes = b"\x89PNG\r\n\x1a\n".to_vec();
    let mut header = b"IHDR".to_vec();
    header.extend(width.to_be_bytes());
    header.extend(height.to_be_bytes());
    header.extend([8, 2, 0, 0, 0]);
    let crc = header.iter().fold(u32::MAX, |crc, &byte| {
        (0..8).fold(
            crc ^ u32::from(byte),
            |crc, _| if crc & 1 == 1 { crc >> 1 ^ 0xedb8_8320 } else { crc >> 1 },
        )
    });
    bytes.extend(13u32.to_be_bytes());
    bytes.extend(header);
    bytes.extend((!crc).to_be_bytes());
    bytes.extend(b"\0\0\0\x01IDAT\0\0\0\0\0");
    bytes
}

#[test]
fn a_small_file_that_would_become_a_huge_image_is_refused_before_it_is_decoded() {
    let processor = processor(28, 28);
    let refused = processor.pixels(&png(60_000, 60_000)).unwrap_err();
    assert!(matches!(refused, ImageError::TooManyPixels { width: 60_000, height: 60_000 }), "{refused}");
    assert!(refused.to_string().contains("60000 x 60000"));
    // One of fewer pixels is decoded, and found to end too early.
    assert!(matches!(processor.pixels(&png(100, 100)), Err(ImageError::Damaged { .. })));
    let dir = tempfile::tempdir().unwrap();
    let long = dir.path().join("long.png");
    fs::File::create(&long).unwrap().set_len(MAX_FILE_BYTES + 1).unwrap();
    assert!(matches!(processor.open(&long), Err(ImageError::FileTooLarge { .. })));
}

#[test]
fn settings_that_would_change_the_pixels_are_honoured_or_refused() {
    let refused = |value: Value| ImageProcessor::new(&settings(value)).unwrap_err().to_string();
    assert!(refused(json!({"resample": 2})).contains("resample is 2"));
    assert!(refused(json!({"do_pad": true})).contains("do_pad"));
    assert!(refused(json!({"image_processor_type": "SiglipImageProcessor"})).contains("Siglip"));
    assert!(refused(json!({"image_std": [1.0, 0.0, 1.0]})).contains("above zero"));
    assert!(refused(json!({"image_mean": [1.0]})).contains("three channels"));
    assert!(refused(json!({"size": {"longest_edge": 3}})).contains("shortest_edge"));
    assert!(refused(json!({"size": 0})).contains("whole numbers"));

    let read = |value: Value| {
        let image = golden("images/wide.png");
        ImageProcessor::new(&settings(value)).unwrap().open(&image)
    };
    let plain =
        json!({"do_resize": false, "do_center_crop": false, "do_rescale": false, "do_normalize": false});
    let pixels = read(plain).unwrap();
    assert_eq!(pixels.shape(), [3, 43, 61]);
    assert!(pixels.values.iter().all(|v| v.fract() == 0.0) && pixels.values.iter().any(|v| *v > 200.0));
    let exact = json!({"size": {"height": 20, "width": 30}, "do_center_crop": false});
    assert_eq!(read(exact).unwrap().shape(), [3, 20, 30]);
    let small = json!({"size": 20, "crop_size": 24});
    assert!(matches!(
        read(small),
        Err(ImageError::TooSmall { width: 28, height: 20, crop_width: 24, crop_height: 24 })
    ));
}
