"""Augmentation for training: of one image as it is loaded, and of a whole batch on the device."""
