"""What only comparing the built parts of a run can find: data sets, heads and evaluators that do not fit each other.

What would make a metric silently wrong is an error, what is merely unusual a warning. Parts whose meaning is unknown
are not checked.
"""

from mmgroupnet.engine.checks.built_parts import check_built_parts

__all__ = ['check_built_parts']
