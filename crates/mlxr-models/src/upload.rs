//! Weights by canonical name: which ones a config calls for, and their way to the backend.
//!
//! Invariant: every weight a model needs is found with the shape its config gives it, and every tensor of the
//! checkpoint has a place; what does not fit is listed before anything is uploaded.

use std::collections::BTreeMap;

use mlxr_checkpoint::Checkpoint;
use mlxr_tensor::{Backend, HostTensor, Weight};

use crate::ModelError;
use crate::config::Bias;
use crate::decoder::Linear;
use crate::error::N_LISTED;

/// The weights a config calls for, by canonical name.
#[derive(Debug, Default)]
pub struct Expected {
    shapes: BTreeMap<String, Expectation>,
}

#[derive(Debug)]
struct Expectation {
    shape: Vec<usize>,
    is_optional: bool,
}

impl Expected {
    pub fn need(&mut self, name: impl Into<String>, shape: &[usize]) {
        self.shapes.insert(name.into(), Expectation { shape: shape.to_vec(), is_optional: false });
    }

    pub fn bias(&mut self, name: String, shape: &[usize], bias: Bias) {
        if bias != Bias::Absent {
            let is_optional = bias == Bias::IfPresent;
            self.shapes.insert(name, Expectation { shape: shape.to_vec(), is_optional });
        }
    }

    /// Compares with what the checkpoint has; `may_be_left` names tensors that need no place.
    pub fn check(
        &self,
        model: &str,
        ckpt: &Checkpoint,
        may_be_left: impl Fn(&str) -> bool,
    ) -> Result<(), ModelError> {
        let mut missing = Vec::new();
        for (name, expected) in &self.shapes {
            match ckpt.tensor(name) {
                Some(tensor) if tensor.shape() == expected.shape => {}
                Some(tensor) => {
                    return Err(ModelError::TensorShape {
                        model: model.to_owned(),
                        name: name.clone(),
                        expected: expected.shape.clone(),
                        found: tensor.shape().to_vec(),
                    });
                }
                None if expected.is_optional => {}
                None => missing.push(name.clone()),
            }
        }
        if !missing.is_empty() {
            let n = missing.len();
            missing.truncate(N_LISTED);
            return Err(ModelError::MissingTensors { model: model.to_owned(), n, first: missing });
        }
        let has_place = |name: &str| self.shapes.contains_key(name) || may_be_left(name);
        let present = ckpt.tensors().chain(&ckpt.unknown).map(HostTensor::name);
        let mut leftover: Vec<String> = present.filter(|name| !has_place(name)).map(str::to_owned).collect();
        if leftover.is_empty() {
            return Ok(());
        }
        let n = leftover.len();
        leftover.truncate(N_LISTED);
        Err(ModelError::LeftoverTensors { model: model.to_owned(), n, first: leftover })
    }
}

/// Brings tensors to a backend and counts their bytes.
pub struct Upload<'a> {
    model: &'a str,
    pub ckpt: &'a Checkpoint,
    pub backend: &'a dyn Backend,
    /// Bytes of what was uploaded, as stored in the checkpoint.
    pub n_bytes: usize,
}

impl<'a> Upload<'a> {
    pub fn new(model: &'a str, ckpt: &'a Checkpoint, backend: &'a dyn Backend) -> Self {
        Self { model, ckpt, backend, n_bytes: 0 }
    }

    pub fn linear(&mut self, name: &str, bias: Bias) -> Result<Linear, ModelError> {
        Ok(Linear { weight: self.weight(&format!("{name}.weight"))?, bias: self.bias(name, bias)? })
    }

    pub fn bias(&mut self, name: &str, bias: Bias) -> Result<Option<Weight>, ModelError> {
        let name = format!("{name}.bias");
        let has = bias != Bias::Absent && self.ckpt.tensor(&name).is_some();
        self.weight_if(has, &name)
    }

    pub fn weight_if(&mut self, has: bool, name: &str) -> Result<Option<Weight>, ModelError> {
        if has { self.weight(name).map(Some) } else { Ok(None) }
    }

    pub fn weight(&mut self, name: &str) -> Result<Weight, ModelError> {
        let tensor = self.tensor(name)?;
        let n_bytes = tensor.n_bytes();
        let weight = self.backend.upload(tensor)?;
        self.n_bytes += n_bytes;
        Ok(weight)
    }

    /// A tensor as a matrix of this shape.
    pub fn weight_as(&mut self, name: &str, shape: &[usize]) -> Result<Weight, ModelError> {
        let tensor = self.tensor(name)?.clone().reshaped(shape)?;
        let weight = self.backend.upload(&tensor)?;
        self.n_bytes += tensor.n_bytes();
        Ok(weight)
    }

    pub fn tensor(&self, name: &str) -> Result<&'a HostTensor, ModelError> {
        self.ckpt.tensor(name).ok_or_else(|| ModelError::MissingTensors {
            model: self.model.to_owned(),
            n: 1,
            first: vec![name.to_owned()],
        })
    }
}
