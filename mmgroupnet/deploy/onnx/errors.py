"""What the exporter's refusals advise."""

# What remains of a model whose answer is not covered.
RAW_ADVICE = 'export its maps (--raw; raw=True) and make the answer from them'
