"""Where requests wait, and are drawn together."""
