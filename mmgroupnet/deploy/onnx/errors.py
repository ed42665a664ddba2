"""The error of everything that cannot be written as an .onnx file."""


class NotExportable(ValueError):
    """A model, or one of its options, has no counterpart in an .onnx file; the message says what and what to do."""


# What remains of a model whose answer is not covered.
RAW_ADVICE = 'export its maps (--raw; raw=True) and make the answer from them'
