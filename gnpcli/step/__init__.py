"""What a step is: from a batch and a state to the next state. Pure; nothing here reads or writes a
file.
"""
