"""What surrounds a model in training: hooks, checks before work is lost, distribution, checkpoints.

Import from the modules; the package itself imports nothing, so that ``mmgroupnet.engine.hooks`` stays quick to find for
mmengine's registry.
"""
