//! Images as models read them.

use std::fmt;

/// Normalised values by channel, line and column.
#[derive(Clone, PartialEq)]
pub struct Pixels {
    pub n_channels: usize,
    pub height: usize,
    pub width: usize,
    pub values: Vec<f32>,
}

impl Pixels {
    /// # Panics
    /// When there are more values or fewer than that takes.
    pub fn new([n_channels, height, width]: [usize; 3], values: Vec<f32>) -> Self {
        assert_eq!(values.len(), n_channels * height * width, "values of [{n_channels}, {height}, {width}]");
        Self { n_channels, height, width, values }
    }

    pub fn shape(&self) -> [usize; 3] {
        [self.n_channels, self.height, self.width]
    }
}

impl fmt::Debug for Pixels {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Pixels[{}, {}, {}]", self.n_channels, self.height, self.width)
    }
}
