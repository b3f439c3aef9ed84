//! Images of messages, from what dialects send to what the model reads.
//!
//! Until the prompt is written they are a field of their message, `images`, beside its text: whatever puts messages
//! together goes on with texts.

use std::sync::Arc;

use base64::Engine as _;
use base64::alphabet::STANDARD;
use base64::engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig};
use mlxr_tensor::Pixels;
use serde_json::{Map, Value, json};

use crate::ServeError;
use crate::loaded::LoadedModel;

/// The field of a message.
const IMAGES: &str = "images";
/// Clients pad or do not.
const BASE64: GeneralPurpose = GeneralPurpose::new(
    &STANDARD,
    GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent),
);

/// An image as a client sends it.
#[derive(Clone, Debug)]
pub struct SentImage {
    /// Where it stands in the request.
    pub field: String,
    /// What a model that reads only text says to it.
    pub refusal: String,
    /// Its bytes in base64, or why they are not there.
    pub data: Result<String, String>,
}

impl SentImage {
    /// The image of a `data:` URI; links are not followed.
    pub fn from_url(field: String, refusal: String, url: &str) -> SentImage {
        const ADVICE: &str = "send the image itself, as data:image/png;base64,...";
        let data = match url.strip_prefix("data:").map(|data| data.split_once(',')) {
            Some(Some((kind, base64))) if kind.ends_with(";base64") => Ok(base64.to_owned()),
            Some(_) => Err(format!("a data: URI without base64; {ADVICE}")),
            None => Err(format!("no data: URI, and this server fetches nothing; {ADVICE}")),
        };
        SentImage { field, refusal, data }
    }
}

/// Gives a message its images.
pub fn attach(message: &mut Map<String, Value>, images: Vec<SentImage>) {
    if !images.is_empty() {
        let images = images.into_iter();
        let images = images.map(|SentImage { field, refusal, data }| match data {
            Ok(base64) => json!([field, refusal, base64]),
            Err(reason) => json!([field, refusal, null, reason]),
        });
        let images = images.collect();
        message.insert(IMAGES.to_owned(), Value::Array(images));
    }
}

/// Whether a message has images, so that it cannot be one with another.
pub fn has_images(message: &Value) -> bool {
    message.get(IMAGES).is_some()
}

/// The messages as templates take them: with images their contents are parts.
pub fn shown(messages: &[Value]) -> Vec<Value> {
    let shown = |message: &Value| {
        let mut message = message.clone();
        if let Some(Value::Array(images)) = message.as_object_mut().and_then(|fields| fields.remove(IMAGES)) {
            let parts = images.iter().map(|_| json!({"type": "image"}));
            let text = json!({"type": "text", "text": message["content"].as_str().unwrap_or_default()});
            message["content"] = parts.chain([text]).collect();
        }
        message
    };
    messages.iter().map(shown).collect()
}

/// What the model reads of the images of all messages.
///
/// # Errors
/// The model reads only text, or one of them is no image.
pub fn read(messages: &[Value], model: &LoadedModel) -> Result<Vec<Arc<Pixels>>, ServeError> {
    let sent = messages.iter().filter_map(|message| message.get(IMAGES)?.as_array()).flatten();
    sent.map(|image| {
        let text = |i: usize| image[i].as_str().unwrap_or_default();
        let (field, refusal, base64) = (text(0), text(1), text(2));
        let refuse = |reason: String| ServeError::invalid(field, format!("{field}: {reason}"));
        let Ok(reader) = &model.images else { return Err(ServeError::invalid(field, refusal)) };
        if let Some(reason) = image[3].as_str() {
            return Err(refuse(reason.to_owned()));
        }
        let bytes = BASE64.decode(base64.trim()).map_err(|error| refuse(format!("no base64: {error}")))?;
        reader.read(&bytes).map_err(|error| refuse(error.to_string().replace("\nhint: ", "; ")))
    })
    .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn images_come_in_data_uris_and_links_are_refused_with_the_next_step() {
        let from = |url: &str| SentImage::from_url(String::new(), String::new(), url).data;
        assert_eq!(from("data:image/png;base64,AAAA").as_deref(), Ok("AAAA"));
        for url in ["https://example.org/cat.png", "data:image/svg+xml,<svg/>", "cat.png"] {
            let refused = from(url).unwrap_err();
            assert!(refused.contains("data:image/png;base64"), "{refused}");
        }
    }

    #[test]
    fn a_message_with_images_becomes_one_of_parts() {
        let mut message = json!({"role": "user", "content": "What?"});
        let plain = message.clone();
        let image = SentImage::from_url(String::new(), String::new(), "data:image/gif;base64,AA");
        attach(message.as_object_mut().unwrap(), vec![image.clone(), image]);
        assert!(has_images(&message) && !has_images(&plain));
        let content = json!([{"type": "image"}, {"type": "image"}, {"type": "text", "text": "What?"}]);
        assert_eq!(shown(&[message, plain.clone()]), [json!({"role": "user", "content": content}), plain]);
    }
}
