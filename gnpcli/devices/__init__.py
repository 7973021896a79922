"""The machine: the mesh of its devices, its processes, and what exists for the sake of one
backend's compiler.
"""
