"""Files of weights: read in torch's safe mode, compared with models, written whole, packed, and pretrained."""
