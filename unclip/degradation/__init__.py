"""How pictures are spoilt in the world: blur, resizing, noise and JPEG, in torch."""
