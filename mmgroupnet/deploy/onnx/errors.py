"""Advice in the exporter's errors."""

# For models whose decoding is not supported.
RAW_ADVICE = 'export its maps (--raw; raw=True) and decode them yourself'
