"""The recipe that trained flux-mini: data, VAE, tokenizer, transformer with its text encoders, pipeline folder.

Run ``python -m schedsearch_calibration.flux_mini --out DIR`` (needs the extra ``schedsearch[recipe]``). Each stage is a
module of this package, and each can be used by itself. Importing this package loads no torch.
"""
