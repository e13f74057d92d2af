"""CLIP's training."""
