"""Published archives: fetched, verified, prepared in TFDS's own format, and read again."""
