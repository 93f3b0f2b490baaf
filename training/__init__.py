"""Torch lives here: the encoder, its checkpoints, and how it is trained."""

import os

# Before torch is loaded, which reads it then. Threads that spin while they wait for each other
# lose where any other process runs: contrastive training of the 118M encoder on 2 cores beside one
# busy process, 3.5 pairs/s as delivered, 10.5 with this; among ordinary neighbours 9 and 31.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")
