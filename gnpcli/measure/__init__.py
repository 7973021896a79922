"""What is measured of a trained model or a configuration: fidelity of the gradient, flatness,
augmentation.
"""
