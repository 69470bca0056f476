"""Foreign checkpoints to ours: big_vision npz, timm, transformers; local or from the Hugging Face hub."""
