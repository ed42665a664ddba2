"""Runs models: hooks, checks before a run, distribution, training, tests, predictions and export.

Import from the modules; the package itself imports nothing, so mmengine's registry imports ``mmgroupnet.engine.hooks``
quickly.
"""
