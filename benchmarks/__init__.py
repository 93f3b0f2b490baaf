"""Every claim about speed or quality, as a script with its results beside it."""
