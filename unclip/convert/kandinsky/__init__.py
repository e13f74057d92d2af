"""Kandinsky 2.2 (Shakhmatov et al. 2023): its layout, which is diffusers', in our own networks."""
