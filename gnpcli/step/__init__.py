"""What a step is: from a batch and a state to the next state.

Everything here is pure. Nothing reads or writes a file.
"""
