"""Programs that use a model: pictures of a file of prompts, grids, measurements."""
