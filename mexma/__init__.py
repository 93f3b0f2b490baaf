"""The agreement between training, export and service: text, artifacts, sessions, neighbours.

numpy and tokenizers only; never torch.
"""

__version__ = "0.1.0"
