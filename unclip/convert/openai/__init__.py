"""GLIDE, ADM and improved DDPM, as OpenAI published them."""
