"""Compares the built parts of a run: data sets, heads and evaluators that do not fit each other.

Disagreements that would make a metric silently wrong are errors; merely unusual settings are warnings. Unknown parts
are not checked.
"""

from mmgroupnet.engine.checks.built_parts import check_built_parts

__all__ = ['check_built_parts']
