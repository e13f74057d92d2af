"""A package, so that no other `tests` that is installed is taken for it."""
