"""Data sets that the project can make on the spot."""

from .digits import DIGIT_CLASSES, generate_digits

__all__ = ['DIGIT_CLASSES', 'generate_digits']
