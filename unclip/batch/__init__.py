"""Rows in, pictures out."""
