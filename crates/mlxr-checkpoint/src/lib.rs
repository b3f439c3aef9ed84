//! Reads and writes model files: GGUF, Hugging Face safetensors, MLX.
