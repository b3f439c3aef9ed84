//! How a model that reads images has them prepared, as the files beside the weights say.

use std::path::Path;

use serde_json::{Map, Value};

use crate::{CheckpointError, json};

/// See the module.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct VisionFiles {
    /// The whole model's `model_type`; the checkpoint's architecture is that of its text model.
    pub model_type: &'static str,
    /// The settings of the image processor, shaped like preprocessor_config.json; empty where no file has them.
    pub processor: Map<String, Value>,
}

impl VisionFiles {
    /// `preprocessor_config.json`, or the part of `processor_config.json` that is about images.
    pub(crate) fn from_dir(dir: &Path, model_type: &'static str) -> Result<VisionFiles, CheckpointError> {
        let mut processor = json::read_object_if_present(&dir.join("preprocessor_config.json"))?;
        let mut whole = json::read_object_if_present(&dir.join("processor_config.json"))?;
        if let (true, Some(Value::Object(images))) = (processor.is_empty(), whole.remove("image_processor")) {
            processor = images;
        }
        Ok(VisionFiles { model_type, processor })
    }
}
