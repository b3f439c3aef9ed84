//! What an image goes through before a model sees it, as the model's preprocessor_config.json says.

use std::path::Path;

use image::RgbImage;
use mlxr_tensor::Pixels;
use serde_json::{Map, Value};

use crate::resample::{Levels, resize};
use crate::{ImageError, decode};

/// Largest side that is taken as meant.
const MAX_SIDE: usize = 8192;
const N_CHANNELS: usize = 3;
/// Pillow's number of its bicubic filter.
const BICUBIC: u64 = 3;
/// Classes that do what is done here.
const PROCESSORS: [&str; 4] =
    ["CLIPImageProcessor", "CLIPImageProcessorFast", "CLIPImageProcessorPil", "CLIPFeatureExtractor"];

/// A setting that cannot be honoured.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the image processor's {field} is {value}: {reason}")]
pub struct SettingError {
    pub field: String,
    pub value: String,
    pub reason: String,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Size {
    /// The shorter side; the other one follows.
    Shortest(usize),
    Exact {
        height: usize,
        width: usize,
    },
}

/// See the module.
#[derive(Clone, Debug, PartialEq)]
pub struct ImageProcessor {
    size: Option<Size>,
    /// Lines and columns that are cut out of the middle.
    crop: Option<(usize, usize)>,
    /// What each level of each channel becomes.
    values: Vec<[f32; 256]>,
}

impl ImageProcessor {
    /// The processor that the settings describe, an object like preprocessor_config.json.
    ///
    /// # Errors
    /// [`SettingError`] names the setting that cannot be honoured.
    pub fn new(settings: &Map<String, Value>) -> Result<ImageProcessor, SettingError> {
        let settings = Settings(settings);
        settings.check_kind()?;
        let size = match settings.flag("do_resize")? {
            true => Some(settings.size("size", Size::Shortest(224))?),
            false => None,
        };
        let crop = match settings.flag("do_center_crop")? {
            true => match settings.size("crop_size", Size::Shortest(224))? {
                Size::Exact { height, width } => Some((height, width)),
                Size::Shortest(side) => Some((side, side)),
            },
            false => None,
        };
        Ok(ImageProcessor { size, crop, values: settings.values()? })
    }

    /// Reads an image file.
    ///
    /// # Errors
    /// [`ImageError`] when there is no such file, or it is no image that can be read.
    pub fn open(&self, path: &Path) -> Result<Pixels, ImageError> {
        self.pixels(&decode::read_file(path)?)
    }

    /// The pixels of an image in any of the formats.
    ///
    /// # Errors
    /// [`ImageError`] when it is none that can be read.
    pub fn pixels(&self, bytes: &[u8]) -> Result<Pixels, ImageError> {
        self.prepare(decode::decode(bytes)?)
    }

    fn prepare(&self, image: RgbImage) -> Result<Pixels, ImageError> {
        let (width, height) = (image.width() as usize, image.height() as usize);
        let mut image = Levels { width, height, values: image.into_raw() };
        if let Some(size) = self.size {
            let (height, width) = size.of(height, width);
            if height.max(width) > MAX_SIDE * 4 {
                return Err(ImageError::TooNarrow { width: image.width, height: image.height });
            }
            image = resize(image, width, height);
        }
        let (crop_height, crop_width) = self.crop.unwrap_or((image.height, image.width));
        if crop_height > image.height || crop_width > image.width {
            let (width, height) = (image.width, image.height);
            return Err(ImageError::TooSmall { width, height, crop_width, crop_height });
        }
        let (top, left) = ((image.height - crop_height) / 2, (image.width - crop_width) / 2);
        let mut values = Vec::with_capacity(N_CHANNELS * crop_height * crop_width);
        for (channel, value_of) in self.values.iter().enumerate() {
            for line in top..top + crop_height {
                let first = (line * image.width + left) * N_CHANNELS;
                let line = &image.values[first..][..crop_width * N_CHANNELS];
                values
                    .extend(line.iter().skip(channel).step_by(N_CHANNELS).map(|&v| value_of[usize::from(v)]));
            }
        }
        Ok(Pixels::new([N_CHANNELS, crop_height, crop_width], values))
    }
}

impl Size {
    /// Lines and columns of an image of so many.
    fn of(self, height: usize, width: usize) -> (usize, usize) {
        match self {
            Size::Exact { height, width } => (height, width),
            Size::Shortest(side) if width <= height => ((side * height / width).max(1), side),
            Size::Shortest(side) => (side, (side * width / height).max(1)),
        }
    }
}

/// The fields of preprocessor_config.json.
struct Settings<'a>(&'a Map<String, Value>);

impl Settings<'_> {
    fn refuse(&self, field: &str, reason: impl Into<String>) -> SettingError {
        let value = self.0.get(field).map_or_else(|| "(absent)".to_owned(), Value::to_string);
        SettingError { field: field.to_owned(), value, reason: reason.into() }
    }

    /// Whether the class is known, and nothing is to be done that is not done here.
    fn check_kind(&self) -> Result<(), SettingError> {
        for field in ["image_processor_type", "feature_extractor_type"] {
            let kind = self.0.get(field).and_then(Value::as_str);
            if kind.is_some_and(|kind| !PROCESSORS.contains(&kind)) {
                return Err(self.refuse(field, format!("not one of {}", PROCESSORS.join(", "))));
            }
        }
        const KNOWN: [&str; 5] =
            ["do_resize", "do_center_crop", "do_rescale", "do_normalize", "do_convert_rgb"];
        let other = self.0.iter().find(|(field, value)| {
            field.starts_with("do_") && !KNOWN.contains(&field.as_str()) && **value == Value::Bool(true)
        });
        match other {
            Some((field, _)) => Err(self.refuse(field, "not supported")),
            None => Ok(()),
        }
    }

    /// A step that is taken unless the settings say otherwise.
    fn flag(&self, field: &str) -> Result<bool, SettingError> {
        match self.0.get(field) {
            None | Some(Value::Null) => Ok(true),
            Some(Value::Bool(flag)) => Ok(*flag),
            Some(_) => Err(self.refuse(field, "expected true or false")),
        }
    }

    fn size(&self, field: &str, default: Size) -> Result<Size, SettingError> {
        let side =
            |value: &Value| {
                value.as_u64().map(|n| n as usize).filter(|side| (1..=MAX_SIDE).contains(side)).ok_or_else(
                    || self.refuse(field, format!("sides are whole numbers from 1 to {MAX_SIDE}")),
                )
            };
        match self.0.get(field) {
            None | Some(Value::Null) => Ok(default),
            Some(Value::Object(size)) => {
                match (size.get("shortest_edge"), size.get("height"), size.get("width")) {
                    (Some(shortest), _, _) => Ok(Size::Shortest(side(shortest)?)),
                    (None, Some(height), Some(width)) => {
                        Ok(Size::Exact { height: side(height)?, width: side(width)? })
                    }
                    _ => Err(self.refuse(field, "expected shortest_edge, or height and width")),
                }
            }
            Some(value) => Ok(Size::Shortest(side(value)?)),
        }
    }

    /// What each level of each channel becomes.
    fn values(&self) -> Result<Vec<[f32; 256]>, SettingError> {
        if self.0.get("resample").and_then(Value::as_u64).is_some_and(|filter| filter != BICUBIC) {
            return Err(self.refuse("resample", "the only filter is 3, bicubic"));
        }
        let factor = match (self.flag("do_rescale")?, self.0.get("rescale_factor")) {
            (false, _) => 1.0,
            (true, None | Some(Value::Null)) => 1.0 / 255.0,
            (true, Some(factor)) => {
                factor.as_f64().ok_or_else(|| self.refuse("rescale_factor", "expected a number"))?
            }
        };
        let (mean, std) = match self.flag("do_normalize")? {
            true => (
                self.channels("image_mean", [0.481_454_66, 0.457_827_5, 0.408_210_73])?,
                self.channels("image_std", [0.268_629_54, 0.261_302_6, 0.275_777_1])?,
            ),
            false => ([0.0; N_CHANNELS], [1.0; N_CHANNELS]),
        };
        if std.iter().any(|&std| std <= 0.0) {
            return Err(self.refuse("image_std", "must be above zero"));
        }
        let value =
            |level: usize, channel: usize| ((level as f64 * factor) as f32 - mean[channel]) / std[channel];
        Ok((0..N_CHANNELS).map(|channel| std::array::from_fn(|level| value(level, channel))).collect())
    }

    fn channels(&self, field: &str, default: [f32; N_CHANNELS]) -> Result<[f32; N_CHANNELS], SettingError> {
        let Some(list) = self.0.get(field).filter(|value| !value.is_null()) else { return Ok(default) };
        let numbers =
            list.as_array().and_then(|list| list.iter().map(Value::as_f64).collect::<Option<Vec<_>>>());
        let numbers: Option<[f64; N_CHANNELS]> = numbers.and_then(|numbers| numbers.try_into().ok());
        let numbers =
            numbers.ok_or_else(|| self.refuse(field, "expected a number for each of three channels"))?;
        Ok(numbers.map(|number| number as f32))
    }
}
