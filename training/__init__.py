"""Torch lives here: the encoder, its checkpoints and, later, how it is trained."""
