"""Models by name: what they are (`ModelCard`), which are at hand (`cards`), and loading one (`load_pipeline`).

A name is one of ``schedsearch_spaces/models.yaml``, a local folder in diffusers layout, or a hub id ``org/name``. Where
weights lie and how they are fetched is the matter of ``_weights.py``. This module does not know what is searched.
"""

from __future__ import annotations

import difflib
import re
from dataclasses import MISSING, dataclass, fields, replace
from importlib.resources import files
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from schedsearch.errors import ModelNotFoundError, UsageError
from schedsearch.evaluate import _weights
from schedsearch.space import read_yaml, shown

if TYPE_CHECKING:
    import torch

CARD_FILE: Final = "schedsearch.yaml"
"""A file of this name inside a model's folder says how schedsearch runs it."""

PIPELINE_CLASSES: Final = ("FluxPipeline",)
_HUB_ID: Final = re.compile(r"[\w.-]+/[\w.-]+")
_DTYPES: Final = {
    "float32": "float32",
    "fp32": "float32",
    "bfloat16": "bfloat16",
    "bf16": "bfloat16",
    "float16": "float16",
    "fp16": "float16",
}
_DEFAULT_SAMPLE_SIZE: Final = 128
_SCHNELL_STEPS: Final = 4
_SCHNELL_TOKENS: Final = 256


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelCard:
    """How a model is run when nobody says otherwise.

    Attributes:
        name: what the user calls it.
        family: the space file that says what may be searched, such as ``flux``.
        weights: absolute path of a folder in diffusers layout, or a hub id ``org/name``.
        height: image height in pixels.
        width: image width in pixels.
        steps: denoising steps of the full run.
        guidance_scale: value the guidance embedding gets; without effect on a model that has none.
        max_sequence_length: tokens of the T5 prompt.
        true_cfg_scale: classifier-free guidance with a second pass where above 1.
        calibration: name of the prompt set a search uses.
        held_out: name of the prompt set results are reported on.
        metric_weights: feature network that metrics look through (`_nets.names`), empty for the standard ones.
        licence: name of the weights' licence, empty where unknown.
        page: web page of the weights, empty for a local folder.
        gated: the licence must be accepted on the page before a download works.
        download: the shell command that fetches the weights, empty for a local folder.
    """

    name: str
    family: str
    weights: str
    height: int
    width: int
    steps: int
    guidance_scale: float
    max_sequence_length: int
    true_cfg_scale: float = 1.0
    calibration: str = "general-calibration"
    held_out: str = "general-held-out"
    metric_weights: str = ""
    licence: str = ""
    page: str = ""
    gated: bool = False
    download: str = ""


class CardStatus(NamedTuple):
    """A card, whether its weights are complete on this machine, and where they are or would be."""

    card: ModelCard
    at_hand: bool
    where: str


def find_card(name: str) -> ModelCard:
    """Return the card of a named model, a local folder or a hub id.

    The card of a folder or hub id comes from its configuration files, overridden by a `CARD_FILE` inside it.

    Raises:
        ModelNotFoundError: nothing goes by this name, or it is a hub id whose configuration cannot be had.
        UsageError: it is no pipeline of a supported class, or a file that describes it cannot be used.
    """
    named = _named_entries()
    if name in named:
        return _named_card(name, named[name])
    path = _weights.existing(name)
    if path is not None and path.is_dir():
        return _folder_card(path.resolve())
    if path is not None and path.is_file():
        raise UsageError(
            f"model: found the file {name}, expected a folder in diffusers layout (with model_index.json). "
            "Convert a single-file checkpoint with FluxPipeline.from_single_file(...).save_pretrained(folder)."
        )
    if _HUB_ID.fullmatch(name) and not name.startswith(".") and _weights.is_hub_id(name):
        return _hub_card(name)
    close = difflib.get_close_matches(name, named, n=1)
    hint = f" Did you mean {close[0]!r}?" if close else ""
    raise ModelNotFoundError(
        f"model: found {shown(name)}, expected one of {', '.join(named)}, a local folder with model_index.json, or a "
        f"hub id such as black-forest-labs/FLUX.1-dev.{hint}"
    )


def cards() -> tuple[CardStatus, ...]:
    """Return the named models, then the supported pipelines in the Hugging Face cache. Never uses the network."""
    found = [_named_card(name, entry) for name, entry in _named_entries().items()]
    known = {card.weights for card in found}
    for repo, folder in _weights.cached_repositories():
        if repo not in known:
            try:
                found.append(_at_hub(_folder_card(folder), repo))
            except (UsageError, ModelNotFoundError, OSError):
                continue  # another class of pipeline, a half-downloaded or damaged one: not ours to list
    return tuple(_status(card) for card in found)


def load_pipeline(card: ModelCard, *, device: str | torch.device = "cpu", dtype: str | torch.dtype = "float32") -> Any:
    """Return the card's `DiffusionPipeline` on ``device``, in evaluation mode, without progress bars or gradients.

    Local files come first; the hub is asked only for what is missing, and never when ``HF_HUB_OFFLINE`` is set.

    Args:
        card: from `find_card`.
        device: ``cpu``, ``cuda``, ``cuda:1``, ``mps``, or a `torch.device`.
        dtype: ``float32``, ``bfloat16`` or ``float16`` (or ``fp32``, ``bf16``, ``fp16``), or that `torch.dtype`.

    Raises:
        UsageError: the device or dtype is unknown, not on this machine, or too small for the model.
        ModelNotFoundError: the weights are not at hand and cannot be fetched, or are damaged.
    """
    torch_device, torch_dtype = parse_device(device), parse_dtype(dtype)
    folder = _weights.obtain(card)
    pipe = _weights.load_flux(folder, torch_dtype)
    pipe.set_progress_bar_config(disable=True)
    for part in pipe.components.values():
        if hasattr(part, "requires_grad_"):
            part.requires_grad_(False)
            part.eval()
    _weights.move(pipe, torch_device, card)
    return pipe


def parse_device(device: str | torch.device) -> torch.device:
    """Return the device of that name.

    Raises:
        UsageError: there is no such device on this machine.
    """
    import torch

    try:
        parsed = torch.device(device)
    except (RuntimeError, TypeError):
        raise UsageError(f"device: found {device!r}, expected {_devices_at_hand()}.") from None
    if parsed.type not in ("cpu", "meta") and not _has_device(parsed):
        raise UsageError(f"device: found {str(parsed)!r}, which this machine does not have. Use {_devices_at_hand()}.")
    if parsed.type == "meta":
        raise UsageError(f"device: found 'meta', which holds no numbers. Use {_devices_at_hand()}.")
    return parsed


def _has_device(device: torch.device) -> bool:
    import torch

    module = getattr(torch, device.type, None)
    if module is None or not getattr(module, "is_available", bool)():
        return False
    return device.index is None or device.index < int(module.device_count())


def _devices_at_hand() -> str:
    import torch

    names = ["cpu", *(name for name in ("cuda", "mps", "xpu") if _has_device(torch.device(name)))]
    return " or ".join(names)


def parse_dtype(dtype: str | torch.dtype) -> torch.dtype:
    """Return the floating-point type of that name.

    Raises:
        UsageError: the type is not one a pipeline can be loaded in.
    """
    import torch

    name = _DTYPES.get(str(dtype).removeprefix("torch."))
    if name is None:
        raise UsageError(f"dtype: found {str(dtype)!r}, expected float32, bfloat16 or float16 (or fp32, bf16, fp16).")
    found: torch.dtype = getattr(torch, name)
    return found


def _named_entries() -> dict[str, dict[str, object]]:
    return _read_yaml(files("schedsearch_spaces").joinpath("models.yaml"), "models.yaml")


def _named_card(name: str, entry: dict[str, object]) -> ModelCard:
    if "bundled" in entry:
        from schedsearch_calibration import bundled_path

        if len(entry) > 1:
            raise UsageError(
                f"models.yaml: {name}: found keys beside bundled, expected none: the folder has the card. Remove them."
            )
        return replace(_folder_card(bundled_path(str(entry["bundled"]))), name=name)
    return _card({"name": name, **entry}, f"models.yaml: {name}")


def _hub_card(repo: str) -> ModelCard:
    return _at_hub(_folder_card(_weights.configuration(repo)), repo)


def _at_hub(card: ModelCard, repo: str) -> ModelCard:
    page = f"https://huggingface.co/{repo}"
    return replace(card, name=repo, weights=repo, page=page, download=f"hf download {repo}")


def _status(card: ModelCard) -> CardStatus:
    found = _weights.locate(card.weights)
    return CardStatus(card=card, at_hand=found.complete, where=str(found.where))


def _folder_card(folder: Path) -> ModelCard:
    """Derive the card of a folder in diffusers layout from its configuration files and its `CARD_FILE`."""
    _check_class(folder)
    transformer = _read_json(folder / "transformer" / "config.json")
    scheduler = _read_json(folder / "scheduler" / "scheduler_config.json")
    levels = _read_json(folder / "vae" / "config.json").get("block_out_channels")
    size = _DEFAULT_SAMPLE_SIZE * 2 ** (len(levels) - 1 if isinstance(levels, list) and levels else 3)
    embeds = bool(transformer.get("guidance_embeds", False))
    # Timestep-distilled models are trained on unshifted sigmas and without guidance; nothing else marks them.
    fast = not embeds and scheduler.get("shift", 1.0) == 1.0 and not scheduler.get("use_dynamic_shifting", False)
    derived: dict[str, object] = {
        "name": folder.name,
        "family": "flux",
        "height": size,
        "width": size,
        "steps": _SCHNELL_STEPS if fast else 28,
        "guidance_scale": 3.5 if embeds else 1.0,
        "max_sequence_length": _SCHNELL_TOKENS if fast else 512,
    }
    own = folder / CARD_FILE
    told = _read_yaml(own, str(own)) if own.is_file() else {}
    if "weights" in told:
        raise UsageError(
            f"{own}: found the key weights, expected none: the weights are those of the folder. Remove it."
        )
    return _card({**derived, **told, "weights": str(folder)}, str(own if told else folder))


def _check_class(folder: Path) -> None:
    index = folder / "model_index.json"
    if not index.is_file():
        raise ModelNotFoundError(
            f"{folder}: found no model_index.json, expected a folder in diffusers layout. Give the folder that "
            "pipe.save_pretrained(...) wrote, not one of its parts."
        )
    found = _read_json(index).get("_class_name")
    if found not in PIPELINE_CLASSES:
        raise UsageError(
            f"{index}: found a pipeline of class {shown(found)}, expected {' or '.join(PIPELINE_CLASSES)}. "
            "Only FLUX-type text-to-image pipelines can be optimised so far; `schedsearch models` lists what works."
        )


def _read_json(path: Path) -> dict[str, Any]:
    try:
        return _weights.read_json(path)
    except FileNotFoundError:
        raise ModelNotFoundError(
            f"{path}: no such file, though the pipeline needs it. Fetch the model again."
        ) from None
    except (OSError, ValueError) as error:
        raise UsageError(f"{path}: cannot be read as JSON ({error}). Fetch the model again.") from None


def _read_yaml(file: Path | Traversable, where: str) -> dict[str, Any]:
    content = read_yaml(file, where, UsageError)
    if not isinstance(content, dict):
        raise UsageError(f"{where}: found {type(content).__name__}, expected `key: value` lines.")
    return content


def _card(values: dict[str, Any], where: str) -> ModelCard:
    """Build a card from plain values, with the types its fields declare."""
    declared = {field.name: field for field in fields(ModelCard)}
    checked: dict[str, Any] = {}
    for key, value in values.items():
        if key not in declared:
            raise UsageError(f"{where}: found the key {shown(key)}, expected one of {', '.join(declared)}.")
        checked[key] = _checked(value, str(declared[key].type), f"{where}: {key}")
    missing = [key for key, field in declared.items() if field.default is MISSING and key not in checked]
    if missing:
        raise UsageError(f"{where}: found no {', '.join(missing)}, expected a value. Add the line.")
    for side in ("height", "width"):
        if checked[side] % 4:
            raise UsageError(f"{where}: {side}: found {checked[side]}, expected a multiple of 4.")
    return ModelCard(**checked)


def _checked(value: object, kind: str, where: str) -> object:
    """Return ``value`` as the field's type; numbers must be finite and, if whole, positive."""
    if kind == "str" and isinstance(value, str):
        return value
    if kind == "bool" and isinstance(value, bool):
        return value
    if kind == "int" and isinstance(value, int) and not isinstance(value, bool) and 0 < value <= 10**6:
        return value
    if kind == "float" and isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value < 10**6:
        return float(value)
    words = {"str": "text", "bool": "true or false", "int": "a whole number above 0", "float": "a number of at least 0"}
    raise UsageError(f"{where}: found {shown(value)}, expected {words[kind]}.")
