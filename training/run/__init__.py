"""One run of training: the loop, what is saved of it, and how it goes on."""
