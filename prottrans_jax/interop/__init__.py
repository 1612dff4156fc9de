"""Other libraries' checkpoints, in both directions.

Names of Hugging Face (`hf_*`), T5X and Mesh-TensorFlow as tables of (their name, our
name, transform) that run both ways. May import files, layers, models and proteins.
"""
