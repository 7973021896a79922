"""The machine: its devices, its processes, and what one backend's compiler needs."""
