"""Shards, from pictures and captions anywhere."""
