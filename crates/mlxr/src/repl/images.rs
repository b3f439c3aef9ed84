//! The images of a chat.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::anyhow;
use mlxr_server::{ImageReader, NoImages};
use mlxr_tensor::Pixels;

use crate::commands::run::open_image;

/// Images that have been read, and those that wait for a message.
pub struct ChatImages {
    /// How the model's images are prepared; the error of one that reads only text.
    images: Result<ImageReader, NoImages>,
    /// The next message's.
    pub pending: Vec<PathBuf>,
    /// Every turn has the images of those before it.
    read: HashMap<PathBuf, Arc<Pixels>>,
}

impl ChatImages {
    /// With images for the first message.
    pub fn new(images: Result<ImageReader, NoImages>, first: Vec<(PathBuf, Arc<Pixels>)>) -> ChatImages {
        let pending = first.iter().map(|(path, _)| path.clone()).collect();
        ChatImages { images, pending, read: first.into_iter().collect() }
    }

    /// What stands for an image in a prompt.
    pub fn placeholder(&self) -> Option<&str> {
        self.images.as_ref().ok().map(|images| images.placeholder.as_str())
    }

    /// Reads an image for the next message. Returns what to say of it.
    pub fn add(&mut self, path: PathBuf) -> anyhow::Result<String> {
        self.read(&path)?;
        self.pending.push(path);
        let n = self.pending.len();
        Ok(format!("the next message comes with {n} image{}", if n == 1 { "" } else { "s" }))
    }

    /// An image, from its file where it has not been read yet.
    pub fn read(&mut self, path: &Path) -> anyhow::Result<Arc<Pixels>> {
        if let Some(pixels) = self.read.get(path) {
            return Ok(pixels.clone());
        }
        let images = self.images.as_ref().map_err(|error| anyhow!("{error}"))?;
        let pixels = open_image(images, path)?;
        self.read.insert(path.to_owned(), pixels.clone());
        Ok(pixels)
    }

    /// Forgets all.
    pub fn clear(&mut self) {
        self.pending.clear();
        self.read.clear();
    }
}
