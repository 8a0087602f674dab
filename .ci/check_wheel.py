"""Checks that the one wheel in a folder is small and complete, and holds nothing that does not belong there.

Usage: ``python check_wheel.py FOLDER``; exit code 1 and one line per finding if something is wrong.
"""

from __future__ import annotations

import sys
import zipfile
from fnmatch import fnmatch
from pathlib import Path

MAX_BYTES = 30_000_000
NEEDED = (
    "schedsearch/py.typed",
    "schedsearch/cli.py",
    "schedsearch/schedule/FORMAT.md",
    "schedsearch/schedule/schema-v1.json",
    "schedsearch_spaces/flux.yaml",
    "schedsearch_spaces/models.yaml",
    "schedsearch_kernels/__init__.py",
    "schedsearch_reports/__init__.py",
    "schedsearch_reports/static/plot.min.js",
    "schedsearch_reports/static/plot.LICENSES.txt",
    "schedsearch_reports/templates/report.html",
    "schedsearch_calibration/prompts/*.jsonl",
    "schedsearch_calibration/models/flux-mini/model_index.json",
    "schedsearch_calibration/models/flux-mini/transformer/*.safetensors",
    "schedsearch_calibration/models/flux-mini/vae/*.safetensors",
    "schedsearch_calibration/models/flux-mini/text_encoder_2/*.safetensors",
    "schedsearch_calibration/models/flux-mini-clip/model.safetensors",
    "schedsearch_calibration/models/flux-mini-clip/processor_config.json",
    "schedsearch-*.dist-info/licenses/LICENSE",
    "schedsearch-*.dist-info/licenses/NOTICE",
)
UNWANTED = ("tests/*", "docs/*", "*.pyc", "*.log", "*.db", "*/runs/*", "*/.git*")
PARTS = ("spaces", "kernels", "calibration", "reports")
PACKAGES = ("schedsearch", *(f"schedsearch_{part}" for part in PARTS))


def findings(wheel: Path) -> list[str]:
    """Return one line per thing that is wrong with ``wheel``."""
    names = zipfile.ZipFile(wheel).namelist()
    wrong = [f"{pattern}: missing" for pattern in NEEDED if not any(fnmatch(name, pattern) for name in names)]
    wrong += [f"{name}: does not belong there" for name in names if any(fnmatch(name, p) for p in UNWANTED)]
    tops = {name.split("/")[0] for name in names}
    wrong += [f"{top}: unknown top level" for top in sorted(tops) if top not in PACKAGES and ".dist-info" not in top]
    size = wheel.stat().st_size
    if size >= MAX_BYTES:
        wrong.append(f"{wheel.name}: {size} bytes, expected fewer than {MAX_BYTES}")
    return wrong


def main() -> int:
    """Print the findings, or the wheel's size."""
    wheels = sorted(Path(sys.argv[1]).glob("*.whl"))
    if len(wheels) != 1:
        print(f"found {len(wheels)} wheels in {sys.argv[1]}, expected 1")
        return 1
    wrong = findings(wheels[0])
    print("\n".join(wrong) or f"{wheels[0].name}: {wheels[0].stat().st_size / 1e6:.1f} MB, complete")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
