"""The networks: a registry, one file a family, and the layers that families share."""
