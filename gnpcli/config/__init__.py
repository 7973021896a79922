"""The typed configuration tree, read from layers of YAML and overrides.

Import its modules: the schema needs pydantic, and the table of the strategies needs nothing.
"""
