"""Bytes from outside, at every place where they are read: an answer or an error that is documented, and
never a crash. `python -m tests.fuzz --minutes 30` goes on for as long as is wanted."""
