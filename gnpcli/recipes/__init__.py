"""From presets and overrides to a resolved configuration, and what it will do, in words."""
