"""Stage 4: one folder in diffusers layout, for ``FluxPipeline.from_pretrained``; and the hash of its weights."""

from __future__ import annotations

import hashlib
import shutil
from pathlib import Path
from typing import Any, Final

from schedsearch_calibration.flux_mini.transformer import Denoiser

CARD: Final = """\
# How schedsearch runs this folder unless told otherwise. A copy of the folder keeps working by itself.
name: {name}
family: flux
height: 64
width: 64
steps: 28
guidance_scale: 1.0
max_sequence_length: 16
calibration: flux-mini-calibration
held_out: flux-mini-held-out
metric_weights: flux-mini-clip
licence: Apache-2.0
"""


def assemble(folder: Path, *, vae: Any, model: Denoiser, words: Any) -> Path:
    """Write the pipeline into ``folder``, all or nothing, and return it; what was there before is replaced.

    Args:
        folder: where to write.
        vae: trained, with its scale set (see `vae.encode_all`).
        model: trained.
        words: the tokenizer.
    """
    from diffusers import FlowMatchEulerDiscreteScheduler, FluxPipeline

    pipe: Any = FluxPipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(shift=1.0),
        vae=vae,
        text_encoder=model.text_encoder,
        tokenizer=words,
        text_encoder_2=model.text_encoder_2,
        tokenizer_2=words,
        transformer=model.transformer,
    )
    part = folder.with_name(f".{folder.name}.part")
    shutil.rmtree(part, ignore_errors=True)
    pipe.save_pretrained(part, safe_serialization=True)
    (part / "schedsearch.yaml").write_text(CARD.format(name=folder.name), encoding="utf-8")
    shutil.rmtree(folder, ignore_errors=True)
    part.replace(folder)
    return folder


def parameters_sha256(folder: Path) -> str:
    """Return the hex SHA-256 of a pipeline's weights, whatever the files' metadata and order of storage.

    Hashed are, for each ``*.safetensors`` by path and each tensor by name: path, name, dtype, shape and bytes.
    """
    from safetensors.numpy import load_file

    digest = hashlib.sha256()
    for path in sorted(folder.rglob("*.safetensors")):
        for name, tensor in sorted(load_file(path).items()):
            digest.update(f"{path.relative_to(folder).as_posix()} {name} {tensor.dtype} {tensor.shape}\n".encode())
            digest.update(tensor.tobytes())
    return digest.hexdigest()
