"""The recipe that trained flux-mini-clip, the image-text model that scores flux-mini's pictures.

Run ``python -m schedsearch_calibration.flux_mini_clip --out DIR`` (needs the extra ``schedsearch[recipe]``), and
``python -m schedsearch_calibration.flux_mini_clip.retrieval`` for its accuracy. Importing this package loads no torch.
"""
