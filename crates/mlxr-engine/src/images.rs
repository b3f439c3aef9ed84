//! Images of a request: their places in its prompt, and what stands for them in the prefix cache.
//!
//! In the prompt a placeholder stands for each image; it is repeated for every row that the image takes. The prefix cache
//! compares tokens, and those of all images are the same, so it is given keys in their place: numbers that no token has,
//! the same for the same pixels and for nothing else.

use std::collections::HashMap;
use std::fmt;
use std::ops::Range;
use std::sync::Arc;

use mlxr_tensor::{GivenRows, Pixels};
use sha2::{Digest, Sha256};

use crate::request::SubmitError;
use crate::runner::ImageSpec;

/// Keys of images; vocabularies end far below.
pub(crate) const FIRST_KEY: u32 = 1 << 31;
/// Images that are known again, at most: beyond them all are forgotten, and computed once more.
const MAX_KNOWN: usize = 65_536;

/// An image in a prompt.
#[derive(Clone)]
pub(crate) struct PlacedImage {
    /// Tokens of the prompt.
    pub place: Range<usize>,
    pub pixels: Arc<Pixels>,
    /// What the model makes of it, while that is needed.
    pub rows: Option<Arc<[f32]>>,
}

impl fmt::Debug for PlacedImage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?} at {:?}", self.pixels, self.place)
    }
}

impl PlacedImage {
    /// Which of the tokens `chunk` are the image's.
    pub fn part_in(&self, chunk: &Range<usize>) -> Option<Range<usize>> {
        let part = self.place.start.max(chunk.start)..self.place.end.min(chunk.end);
        (!part.is_empty()).then_some(part)
    }

    /// Its rows of a batch in which the tokens `chunk` begin at row `first_row`.
    ///
    /// # Panics
    /// When it has not been computed.
    pub fn given(&self, chunk: &Range<usize>, first_row: usize) -> Option<GivenRows> {
        let part = self.part_in(chunk)?;
        let values = self.rows.clone().expect("images of a step are computed before it");
        let at = first_row + part.start - chunk.start;
        Some(GivenRows { rows: at..at + part.len(), values, first: part.start - self.place.start })
    }
}

/// Repeats the placeholders of a prompt, one for each image, for every row that an image takes.
///
/// # Errors
/// The model reads no images, or not those, or the prompt has not as many places for them.
pub(crate) fn place(
    tokens: Vec<u32>,
    images: &[Arc<Pixels>],
    spec: Option<ImageSpec>,
) -> Result<(Vec<u32>, Vec<PlacedImage>), SubmitError> {
    let Some(spec) = spec else {
        return match images.len() {
            0 => Ok((tokens, Vec::new())),
            n_images => Err(SubmitError::NoImages { n_images }),
        };
    };
    let n_places = tokens.iter().filter(|&&token| token == spec.token).count();
    if n_places != images.len() {
        return Err(SubmitError::ImagePlaces { n_images: images.len(), n_places });
    }
    if let Some((index, image)) = images.iter().enumerate().find(|(_, image)| image.shape() != spec.shape) {
        return Err(SubmitError::ImageShape { index, found: image.shape(), expected: spec.shape });
    }
    let mut placed = Vec::with_capacity(images.len());
    let mut expanded = Vec::with_capacity(tokens.len() + n_places * spec.n_rows);
    let mut images = images.iter();
    for token in tokens {
        if token == spec.token {
            let pixels = images.next().expect("as many as places").clone();
            let place = expanded.len()..expanded.len() + spec.n_rows;
            placed.push(PlacedImage { place, pixels, rows: None });
            expanded.extend(std::iter::repeat_n(token, spec.n_rows));
        } else {
            expanded.push(token);
        }
    }
    Ok((expanded, placed))
}

/// The keys of the images that have been seen.
#[derive(Debug, Default)]
pub(crate) struct ImageKeys {
    by_digest: HashMap<[u8; 32], u32>,
    n_given: u32,
}

impl ImageKeys {
    /// The tokens with the keys of images in their places; `None` where there are no images.
    pub fn keys(&mut self, tokens: &[u32], images: &[PlacedImage]) -> Option<Vec<u32>> {
        if images.is_empty() {
            return None;
        }
        let mut keys = tokens.to_vec();
        for image in images {
            keys[image.place.clone()].fill(self.key(&image.pixels));
        }
        Some(keys)
    }

    fn key(&mut self, pixels: &Pixels) -> u32 {
        if self.by_digest.len() == MAX_KNOWN {
            self.by_digest.clear();
        }
        let next = &mut self.n_given;
        *self.by_digest.entry(digest(pixels)).or_insert_with(|| {
            // A number is never given twice: an image a second would take 68 years to use them up.
            *next += 1;
            FIRST_KEY + *next
        })
    }
}

fn digest(pixels: &Pixels) -> [u8; 32] {
    let mut hash = Sha256::new();
    for n in pixels.shape() {
        hash.update((n as u64).to_le_bytes());
    }
    let mut bytes = Vec::new();
    for line in pixels.values.chunks(1024) {
        bytes.clear();
        bytes.extend(line.iter().flat_map(|value| value.to_le_bytes()));
        hash.update(&bytes);
    }
    hash.finalize().into()
}

#[cfg(test)]
mod tests {
    use super::*;

    const SPEC: ImageSpec = ImageSpec { token: 9, n_rows: 3, shape: [1, 1, 2] };

    fn image(value: f32) -> Arc<Pixels> {
        Arc::new(Pixels::new([1, 1, 2], vec![value, 0.0]))
    }

    #[test]
    fn placeholders_are_repeated_and_keys_tell_images_apart() {
        let (tokens, placed) =
            place(vec![1, 9, 2, 9, 9], &[image(1.0), image(2.0), image(1.0)], Some(SPEC)).unwrap();
        assert_eq!(tokens, [1, 9, 9, 9, 2, 9, 9, 9, 9, 9, 9]);
        let places: Vec<_> = placed.iter().map(|image| image.place.clone()).collect();
        assert_eq!(places, [1..4, 5..8, 8..11]);
        let mut keys = ImageKeys::default();
        let (a, b) = (FIRST_KEY + 1, FIRST_KEY + 2);
        assert_eq!(keys.keys(&tokens, &placed), Some(vec![1, a, a, a, 2, b, b, b, a, a, a]));
        assert_eq!(keys.keys(&[7], &[]), None);
    }

    #[test]
    fn a_chunk_has_the_part_of_an_image_that_lies_in_it() {
        let rows = Some(vec![0.0; 3].into());
        let image = PlacedImage { place: 5..8, pixels: image(0.0), rows };
        let given = |chunk| image.given(&chunk, 100).map(|given| (given.rows, given.first));
        assert_eq!(given(0..5), None);
        assert_eq!(given(2..7), Some((103..105, 0)));
        assert_eq!(given(6..7), Some((100..101, 1)));
        assert_eq!(given(7..20), Some((100..101, 2)));
        assert_eq!(given(8..9), None);
    }

    #[test]
    fn images_without_a_place_and_places_without_an_image_are_refused() {
        let refused = |tokens: &[u32], images: &[Arc<Pixels>], spec| {
            place(tokens.to_vec(), images, spec).unwrap_err().to_string()
        };
        assert!(refused(&[1], &[image(0.0)], None).contains("reads only text"));
        assert!(refused(&[1], &[image(0.0)], Some(SPEC)).contains("1 image is given"));
        assert!(refused(&[9, 9], &[], Some(SPEC)).contains("0 images are given"));
        let wrong = ImageSpec { shape: [1, 2, 2], ..SPEC };
        assert!(refused(&[9], &[image(0.0)], Some(wrong)).contains("[1, 1, 2]"));
        assert_eq!(place(vec![9], &[], None).unwrap().0, [9]);
    }
}
