"""The optimisers: parameter groups, AdamW, big_vision's Adafactor, SGD, and averaged weights."""
