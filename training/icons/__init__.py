"""Six families of icons, vector drawings with names, as shards of pictures with captions."""
