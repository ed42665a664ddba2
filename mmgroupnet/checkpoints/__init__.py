"""Reads checkpoints in torch's safe mode, compares them with models, writes them atomically; packed and pretrained
ones."""
