"""A compiler: a checkpoint in, an artifact that provably gives the same vectors out."""
