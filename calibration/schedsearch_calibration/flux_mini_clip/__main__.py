"""``python -m schedsearch_calibration.flux_mini_clip``: see ``train.py``."""

from __future__ import annotations

from schedsearch_calibration.flux_mini_clip.train import app

if __name__ == "__main__":
    app()
