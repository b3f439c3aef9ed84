//! What comes out for a text, and what clients may ask of it: vectors of some length, scores of pairs.

use mlxr_checkpoint::{Matryoshka, Pooling};

use crate::ModelError;

/// What a model makes of a text.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EmbedderHead {
    /// A vector, or with [`Pooling::None`] one for each token.
    Vectors { pooling: Pooling, n_dims: usize },
    /// One score for each label.
    Scores { n_labels: usize, activation: ScoreActivation },
}

/// What makes a score of a label's logit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ScoreActivation {
    Identity,
    Sigmoid,
}

impl ScoreActivation {
    /// The class that the model's files name; without one, what sentence-transformers takes.
    pub(crate) fn named(
        model: &str,
        class: Option<&str>,
        n_labels: usize,
    ) -> Result<ScoreActivation, ModelError> {
        match class.map(|class| class.rsplit('.').next().unwrap_or_default()) {
            None if n_labels == 1 => Ok(ScoreActivation::Sigmoid),
            None | Some("Identity") => Ok(ScoreActivation::Identity),
            Some("Sigmoid") => Ok(ScoreActivation::Sigmoid),
            Some(other) => Err(ModelError::Config {
                model: model.to_owned(),
                field: "activation_fn of the scores".to_owned(),
                value: other.to_owned(),
                reason: "not one of Identity and Sigmoid".to_owned(),
            }),
        }
    }

    pub fn apply(self, logit: f32) -> f32 {
        match self {
            ScoreActivation::Identity => logit,
            ScoreActivation::Sigmoid => 1.0 / (1.0 + (-logit).exp()),
        }
    }
}

/// Why a model does not give what it is asked for.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum HeadError {
    #[error("the model makes a vector for every token and none for a whole text")]
    TokensOnly,
    #[error("the model scores pairs of texts and makes no vectors")]
    ScoresOnly,
    #[error("the model is no cross-encoder: it makes vectors of texts and scores no pairs")]
    VectorsOnly,
    #[error("the model tells {n_labels} labels apart; one that ranks has a single label")]
    Labels { n_labels: usize },
    #[error("{asked} dimensions are asked for, but the model's vectors have {n_dims}")]
    Dims { asked: usize, n_dims: usize },
    #[error(
        "{asked} dimensions are asked for, but the model's vectors have {n_dims} and nothing says that a part of \
         them means anything; where it does, matryoshka_dimensions in its config.json lists the lengths"
    )]
    Uncut { asked: usize, n_dims: usize },
    #[error(
        "{asked} dimensions are asked for, but the model's vectors have {n_dims} or, cut, {}",
        list(lengths)
    )]
    Lengths { asked: usize, n_dims: usize, lengths: Vec<usize> },
    #[error("the model computed something that is no number")]
    NotFinite,
}

fn list(lengths: &[usize]) -> String {
    lengths.iter().map(usize::to_string).collect::<Vec<_>>().join(", ")
}

impl EmbedderHead {
    /// The length of the vectors that are asked for; without a wish the model's own.
    ///
    /// # Errors
    /// The model makes none, or none of that length.
    pub fn n_dims(self, asked: Option<usize>, matryoshka: &Matryoshka) -> Result<usize, HeadError> {
        let n_dims = match self {
            EmbedderHead::Vectors { pooling: Pooling::None, .. } => return Err(HeadError::TokensOnly),
            EmbedderHead::Vectors { n_dims, .. } => n_dims,
            EmbedderHead::Scores { .. } => return Err(HeadError::ScoresOnly),
        };
        let Some(asked) = asked.filter(|&asked| asked != n_dims) else { return Ok(n_dims) };
        match matryoshka {
            _ if asked == 0 || asked > n_dims => Err(HeadError::Dims { asked, n_dims }),
            _ if matryoshka.allows(asked) => Ok(asked),
            Matryoshka::Of(lengths) => Err(HeadError::Lengths { asked, n_dims, lengths: lengths.clone() }),
            Matryoshka::Unsaid | Matryoshka::Any => Err(HeadError::Uncut { asked, n_dims }),
        }
    }

    /// How logits become scores of relevance.
    ///
    /// # Errors
    /// The model does not score pairs, or by more than one label.
    pub const fn relevance(self) -> Result<ScoreActivation, HeadError> {
        match self {
            EmbedderHead::Scores { n_labels: 1, activation } => Ok(activation),
            EmbedderHead::Scores { n_labels, .. } => Err(HeadError::Labels { n_labels }),
            EmbedderHead::Vectors { .. } => Err(HeadError::VectorsOnly),
        }
    }
}

/// Vectors cut to `n_dims` and made as long as 1.
///
/// # Errors
/// Something in them is no number.
pub fn vectors(found: &[Vec<f32>], n_dims: usize) -> Result<Vec<Vec<f32>>, HeadError> {
    let vectors: Vec<Vec<f32>> = found.iter().map(|vector| shorten(vector, n_dims)).collect();
    let is_finite = vectors.iter().flatten().all(|value| value.is_finite());
    if is_finite { Ok(vectors) } else { Err(HeadError::NotFinite) }
}

/// The places and scores of the best, best first; of equal ones the first comes first.
///
/// # Errors
/// A score is no number.
pub fn ranking(
    logits: &[Vec<f32>],
    activation: ScoreActivation,
    top_n: usize,
) -> Result<Vec<(usize, f32)>, HeadError> {
    let score = |logits: &Vec<f32>| logits.first().map_or(f32::NAN, |&logit| activation.apply(logit));
    let mut scores: Vec<(usize, f32)> = logits.iter().map(score).enumerate().collect();
    if scores.iter().any(|(_, score)| !score.is_finite()) {
        return Err(HeadError::NotFinite);
    }
    scores.sort_by(|a, b| b.1.total_cmp(&a.1));
    scores.truncate(top_n);
    Ok(scores)
}

/// A vector's first `n_dims` elements, made as long as 1. A vector of zeros stays what it is.
pub fn shorten(vector: &[f32], n_dims: usize) -> Vec<f32> {
    let kept = &vector[..n_dims.min(vector.len())];
    let length = kept.iter().map(|&v| f64::from(v) * f64::from(v)).sum::<f64>().sqrt();
    if length == 0.0 {
        return kept.to_vec();
    }
    kept.iter().map(|&v| (f64::from(v) / length) as f32).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_shortened_vector_has_length_one() {
        assert_eq!(shorten(&[3.0, 4.0, 12.0], 2), [0.6, 0.8]);
        assert_eq!(shorten(&[0.0, 0.0, 1.0], 2), [0.0, 0.0]);
        assert_eq!(shorten(&[2.0], 9), [1.0]);
    }

    #[test]
    fn only_lengths_that_mean_something_are_given() {
        let head = EmbedderHead::Vectors { pooling: Pooling::Mean, n_dims: 32 };
        let listed = Matryoshka::Of(vec![8, 16]);
        assert_eq!(head.n_dims(None, &Matryoshka::Unsaid), Ok(32));
        assert_eq!(head.n_dims(Some(32), &Matryoshka::Unsaid), Ok(32));
        assert_eq!(head.n_dims(Some(8), &listed), Ok(8));
        assert_eq!(head.n_dims(Some(9), &Matryoshka::Any), Ok(9));
        let text = |asked, matryoshka| head.n_dims(Some(asked), matryoshka).unwrap_err().to_string();
        assert!(text(9, &listed).ends_with("have 32 or, cut, 8, 16"));
        assert!(text(8, &Matryoshka::Unsaid).contains("matryoshka_dimensions"));
        for asked in [0, 33] {
            assert_eq!(
                head.n_dims(Some(asked), &Matryoshka::Any),
                Err(HeadError::Dims { asked, n_dims: 32 })
            );
        }
        let every = EmbedderHead::Vectors { pooling: Pooling::None, n_dims: 32 };
        assert_eq!(every.n_dims(None, &listed), Err(HeadError::TokensOnly));
    }

    #[test]
    fn only_one_label_ranks() {
        let scores = |n_labels| EmbedderHead::Scores { n_labels, activation: ScoreActivation::Identity };
        assert_eq!(scores(1).relevance(), Ok(ScoreActivation::Identity));
        assert_eq!(scores(3).relevance(), Err(HeadError::Labels { n_labels: 3 }));
        assert_eq!(scores(1).n_dims(None, &Matryoshka::Any), Err(HeadError::ScoresOnly));
        let vectors = EmbedderHead::Vectors { pooling: Pooling::Cls, n_dims: 1 };
        assert_eq!(vectors.relevance(), Err(HeadError::VectorsOnly));
    }

    #[test]
    fn the_best_come_first_and_equal_ones_in_their_order() {
        let logits = [vec![0.0], vec![2.0], vec![-1.0], vec![2.0]];
        let best = |n| ranking(&logits, ScoreActivation::Identity, n).unwrap();
        assert_eq!(best(9), [(1, 2.0), (3, 2.0), (0, 0.0), (2, -1.0)]);
        assert_eq!(best(1), [(1, 2.0)]);
        let no_number = ranking(&[vec![f32::NAN]], ScoreActivation::Sigmoid, 1);
        assert_eq!(no_number, Err(HeadError::NotFinite));
        assert_eq!(vectors(&[vec![1.0, f32::INFINITY]], 2), Err(HeadError::NotFinite));
    }
}
