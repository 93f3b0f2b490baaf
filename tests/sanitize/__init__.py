"""The native engine built with sanitizers and attacked: `python -m tests.sanitize`.

An error in memory mostly does no harm where a test looks. Built so, the engine ends the process at
the first one. Each build runs its cases in a process of its own, in which the engine that is
installed is replaced by it.
"""
