//! Images for models that read them: how they are prepared, and what stands for one in a prompt.

use std::path::Path;
use std::sync::Arc;

use mlxr_checkpoint::Checkpoint;
use mlxr_image::{ImageError, ImageProcessor, SettingError};
use mlxr_models::{DecoderConfig, ModelError, VisionConfig};
use mlxr_tensor::Pixels;
use mlxr_text::Tokenizer;

/// How a model's images are prepared.
#[derive(Clone, Debug)]
pub struct ImageReader {
    processor: ImageProcessor,
    /// What stands for an image in a prompt.
    pub placeholder: String,
    /// Tokens of a prompt that an image takes.
    pub n_tokens: usize,
}

/// Why a model is shown no images.
#[derive(Debug, thiserror::Error)]
pub enum NoImages {
    #[error(
        "{model} reads only text: it has no vision tower\nhint: images need a model that reads them, such as LLaVA"
    )]
    TextOnly { model: String },
    #[error(
        "{model} does not say how images are prepared\nhint: put the model's preprocessor_config.json beside its \
         config.json"
    )]
    NoSettings { model: String },
    #[error("cannot prepare images for {model}: {source}")]
    Setting { model: String, source: SettingError },
    #[error("the tokenizer of {model} has no token {token}, which config.json says stands for images")]
    NoToken { model: String, token: u32 },
    #[error(transparent)]
    Model(#[from] ModelError),
}

impl ImageReader {
    /// # Errors
    /// The model reads only text, or its files do not say how to prepare images.
    pub fn of(ckpt: &Checkpoint, tokenizer: &Tokenizer) -> Result<ImageReader, NoImages> {
        let model = ckpt.path.display().to_string();
        let text_only = || NoImages::TextOnly { model: model.clone() };
        let files = ckpt.vision.as_ref().ok_or_else(text_only)?;
        if files.processor.is_empty() {
            return Err(NoImages::NoSettings { model });
        }
        let processor = ImageProcessor::new(&files.processor);
        let processor = processor.map_err(|source| NoImages::Setting { model: model.clone(), source })?;
        let config = VisionConfig::for_checkpoint(ckpt, &DecoderConfig::for_checkpoint(ckpt)?)?;
        let config = config.ok_or_else(text_only)?;
        let token = config.image_token;
        let placeholder =
            tokenizer.token_bytes(token).map(|bytes| String::from_utf8_lossy(bytes).into_owned());
        let placeholder = placeholder.filter(|text| !text.is_empty());
        let placeholder = placeholder.ok_or(NoImages::NoToken { model, token })?;
        Ok(ImageReader { processor, placeholder, n_tokens: config.n_rows() })
    }

    /// Reads an image file.
    ///
    /// # Errors
    /// There is no such file, or it is no image that can be read.
    pub fn open(&self, path: &Path) -> Result<Arc<Pixels>, ImageError> {
        self.processor.open(path).map(Arc::new)
    }

    /// Reads an image.
    ///
    /// # Errors
    /// It is none that can be read.
    pub fn read(&self, bytes: &[u8]) -> Result<Arc<Pixels>, ImageError> {
        self.processor.pixels(bytes).map(Arc::new)
    }
}
