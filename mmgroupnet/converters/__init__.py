"""Weights of other code as weights of ours."""

from mmgroupnet.converters.official import convert_official

__all__ = ['convert_official']
