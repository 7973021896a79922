"""Speed, measured interleaved in one run."""
