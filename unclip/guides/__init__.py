"""What leads a decoder by a gradient: similarity, a CLIP of noised pictures, a classifier."""
