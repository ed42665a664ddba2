"""Data sets that the project can make on the spot, and CIFAR-10 as it lies on the disk."""

from .digit_crops import DigitCrops
from .digits import DIGIT_CLASSES, generate_digits
from .local_cifar10 import LocalCIFAR10

__all__ = ['DIGIT_CLASSES', 'DigitCrops', 'LocalCIFAR10', 'generate_digits']
