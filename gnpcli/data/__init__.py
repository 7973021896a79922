"""The images: a registry of sources, their archives, decoding, batches and augmentation."""
