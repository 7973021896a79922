"""Image files to arrays: decoding, cropping, resizing, the layout of folders, the cache."""
