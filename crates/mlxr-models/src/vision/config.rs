//! What the vision tower and the projector need to know of a model.

use mlxr_checkpoint::Checkpoint;
use mlxr_tensor::Activation;
use serde_json::Map;

use crate::ModelError;
use crate::config::{Bias, DecoderConfig, sized};
use crate::encoder::{EncoderConfig, EncoderDefaults, EncoderMlp, NormPlace, read_activation};
use crate::fields::Fields;
use crate::rope::RopeFactors;

/// CLIP's tower and LLaVA's projector.
#[derive(Clone, Debug, PartialEq)]
pub struct VisionConfig {
    pub n_channels: usize,
    /// Lines and columns of an image.
    pub image_size: usize,
    /// Lines and columns of a patch.
    pub patch_size: usize,
    /// The layers up to the one whose output is taken.
    pub encoder: EncoderConfig,
    /// Whether the row of the class is one of an image's rows.
    pub has_class: bool,
    pub projector: Activation,
    pub projector_bias: Bias,
    /// Columns of the text model.
    pub text_hidden: usize,
    /// The token whose place an image takes.
    pub image_token: u32,
}

/// transformers' `CLIPVisionConfig`.
const CLIP: EncoderDefaults = EncoderDefaults {
    vocab: 32_000,
    hidden: 768,
    intermediate: 3072,
    n_layers: 12,
    n_heads: 12,
    n_ctx: 512,
    norm_eps: 1e-5,
};
const MAX_IMAGE_SIZE: usize = 8192;
const MAX_CHANNELS: usize = 16;

impl VisionConfig {
    /// The config of a checkpoint that reads images, without touching its weights.
    ///
    /// # Errors
    /// [`ModelError`] names the field that stands in the way.
    pub fn for_checkpoint(
        ckpt: &Checkpoint,
        text: &DecoderConfig,
    ) -> Result<Option<VisionConfig>, ModelError> {
        if ckpt.vision.is_none() {
            return Ok(None);
        }
        let name = ckpt.path.display().to_string();
        let factors = RopeFactors::default();
        let fields = Fields::new(&name, &ckpt.config, false, &factors);
        let empty = Map::new();
        let tower = fields.inside("vision_config", fields.object("vision_config")?.unwrap_or(&empty));
        read(&fields, &tower, text).map(Some)
    }

    pub fn n_patches(&self) -> usize {
        (self.image_size / self.patch_size).pow(2)
    }

    /// Rows of the text model that an image takes.
    pub fn n_rows(&self) -> usize {
        self.n_patches() + usize::from(self.has_class)
    }

    /// Channels, lines and columns of an image.
    pub fn image_shape(&self) -> [usize; 3] {
        [self.n_channels, self.image_size, self.image_size]
    }
}

fn read(fields: &Fields<'_>, tower: &Fields<'_>, text: &DecoderConfig) -> Result<VisionConfig, ModelError> {
    if tower.text("model_type")?.is_some_and(|kind| kind != "clip_vision_model") {
        return Err(tower.refuse("model_type", "the only vision tower here is clip_vision_model"));
    }
    let mut encoder = EncoderConfig::read(tower, &CLIP)?;
    encoder.norms = NormPlace::BeforeAll;
    let activation = read_activation(tower, "hidden_act")?.unwrap_or(Activation::QuickGelu);
    encoder.mlp = EncoderMlp::Plain(activation);
    let image_size = sized(tower, "image_size", Some(224), MAX_IMAGE_SIZE)?;
    let patch_size = sized(tower, "patch_size", Some(32), image_size)?;
    let n_channels = sized(tower, "num_channels", Some(3), MAX_CHANNELS)?;
    tower.finish()?;

    let n_layers = encoder.layers.len();
    encoder.layers.truncate(feature_layer(fields, n_layers)?);
    let has_class = match fields.text("vision_feature_select_strategy")? {
        None | Some("default") => false,
        Some("full") => true,
        Some(_) => {
            return Err(fields.refuse("vision_feature_select_strategy", "not one of default and full"));
        }
    };
    let has_bias = fields.flag("multimodal_projector_bias")?.unwrap_or(true);
    let stated = if fields.is_stated("image_token_id") { "image_token_id" } else { "image_token_index" };
    let image_token = fields.count(stated)?.unwrap_or(32_000);
    if image_token >= text.vocab {
        return Err(fields.refuse(stated, format!("the vocabulary has {} tokens", text.vocab)));
    }
    Ok(VisionConfig {
        n_channels,
        image_size,
        patch_size,
        encoder,
        has_class,
        projector: read_activation(fields, "projector_hidden_act")?.unwrap_or(Activation::Gelu),
        projector_bias: if has_bias { Bias::Required } else { Bias::Absent },
        text_hidden: text.hidden,
        image_token: image_token as u32,
    })
}

/// How many of the layers come before the hidden states that are taken: 0 are those before the first layer, -1 those
/// behind the last one.
fn feature_layer(fields: &Fields<'_>, n_layers: usize) -> Result<usize, ModelError> {
    const NAME: &str = "vision_feature_layer";
    let stated = fields.number(NAME)?.unwrap_or(-2.0);
    let index = if stated < 0.0 { stated + n_layers as f64 + 1.0 } else { stated };
    if index.fract() != 0.0 || !(0.0..=n_layers as f64).contains(&index) {
        return Err(fields.refuse(NAME, format!("the tower has {n_layers} layers")));
    }
    Ok(index as usize)
}
