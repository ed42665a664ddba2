"""What only comparing the built parts of a run can find: data sets, heads and evaluators that do not fit each other.

A wrong number that nobody would see is an error, an oddity a warning; of what is unknown nothing is said.
"""

from mmgroupnet.engine.checks.built_parts import check_built_parts

__all__ = ['check_built_parts']
