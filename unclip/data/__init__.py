"""Pictures and captions: images to and from tensors, and webdataset shards."""
