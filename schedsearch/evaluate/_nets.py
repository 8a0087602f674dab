"""Which feature networks metrics look through, and whether their weights are on this machine.

A network is one that ships with schedsearch, a standard one by name, or a folder with a CLIP model. Nothing is ever
fetched from here: what is missing is named, with the place where it was looked for and the command that gets it. This
module does not know what a network is used for, nor how it is loaded.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Final, Literal

from schedsearch.errors import ModelNotFoundError, UsageError

Kind = Literal["clip", "inception", "lpips", "image_reward"]

KINDS: Final[Mapping[str, tuple[Kind, ...]]] = {
    "clip": ("clip",),
    "fid": ("inception", "clip"),
    "kid": ("inception", "clip"),
    "lpips": ("lpips",),
    "image_reward": ("image_reward",),
}
"""Kinds of network that can serve a metric."""

STANDARD: Final[Mapping[str, str]] = {
    "clip": "clip-vit-large-patch14",
    "fid": "inception-v3",
    "kid": "inception-v3",
    "lpips": "alex",
    "image_reward": "ImageReward-v1.0",
}
"""The network of each metric where neither the user nor the model card names one."""

INCEPTION_FILE: Final = "weights-inception-2015-12-05-6726825d.pth"
_INCEPTION_PAGE: Final = f"https://github.com/toshas/torch-fidelity/releases/download/v0.2.0/{INCEPTION_FILE}"

LPIPS_FILES: Final[Mapping[str, str]] = {
    "alex": "alexnet-owt-7be5be79.pth",
    "vgg": "vgg16-397923af.pth",
    "squeeze": "squeezenet1_1-b8a52dc0.pth",
}
"""Backbones of LPIPS as torchvision names their files; the weights on top come with torchmetrics."""

_CLIP_FILES: Final = ("config.json", "tokenizer_config.json")
_CLIP_PROCESSORS: Final = ("preprocessor_config.json", "processor_config.json")
_CLIP_WEIGHTS: Final = ("model.safetensors", "pytorch_model.bin")
_REWARD_FILES: Final = ("ImageReward.pt", "med_config.json")


@dataclass(frozen=True, slots=True, kw_only=True)
class Net:
    """A network that is at hand.

    Attributes:
        name: as records state it, such as ``flux-mini-clip``.
        kind: what sort of network it is.
        where: folder or file of the weights.
    """

    name: str
    kind: Kind
    where: Path


def names() -> tuple[str, ...]:
    """Return the names of all networks, those that ship with schedsearch first."""
    return tuple(_KNOWN)


def choose(metric: str, given: str = "", card: str = "") -> Net:
    """Return the network that ``metric`` looks through.

    Args:
        metric: a key of `KINDS`.
        given: what the user named, or empty.
        card: what the model card names, or empty; left aside where it cannot serve this metric.

    Raises:
        UsageError: the network is unknown, or cannot serve this metric.
        ModelNotFoundError: its weights or a package it needs are not at hand.
    """
    for name in filter(None, (given, card)):
        kind, locate = _entry(name)
        if kind in KINDS[metric]:
            return locate(metric)
        if name == given:
            fit = [known for known, (other, _) in _KNOWN.items() if other in KINDS[metric]]
            raise UsageError(
                f"metric {metric}[{name[:60]}]: found a network of kind {kind}, expected one of {', '.join(fit)}, or a "
                f"folder with a CLIP model{'' if 'clip' in KINDS[metric] else ' for another metric'}."
            )
    return _entry(STANDARD[metric])[1](metric)


def _entry(name: str) -> tuple[Kind, Callable[[str], Net]]:
    if name in _KNOWN:
        return _KNOWN[name]
    path = Path(name).expanduser()
    if path.is_dir():
        return "clip", lambda metric: _clip_folder(metric, path.name, path.resolve(), "Copy the missing files there.")
    raise UsageError(
        f"feature network: found {name[:60]!r}, expected one of {', '.join(_KNOWN)}, or a folder with a CLIP model."
    )


def _bundled(name: str) -> Callable[[str], Net]:
    def locate(metric: str) -> Net:
        from schedsearch_calibration import feature_net_path

        try:
            folder = feature_net_path(name)
        except UsageError as error:  # an installation that lost it is a lack like any other
            raise ModelNotFoundError(f"metric {metric}[{name}]: {error} Reinstall schedsearch.") from None
        return _clip_folder(metric, name, folder, "Reinstall schedsearch.")

    return locate


def _openai(name: str) -> Callable[[str], Net]:
    def locate(metric: str) -> Net:
        from huggingface_hub import constants, try_to_load_from_cache

        repo = f"openai/{name}"
        what_to_do = f"Run `hf download {repo}`, or name a folder: --metric '{metric}[FOLDER]'."
        found = try_to_load_from_cache(repo, "config.json")
        if not isinstance(found, str):
            folder = Path(constants.HF_HUB_CACHE) / f"models--openai--{name}"
            raise _not_at_hand(f"{metric}[{name}]", folder, "nothing", "the files of " + repo, what_to_do)
        return _clip_folder(metric, name, Path(found).parent, what_to_do)

    return locate


def _clip_folder(metric: str, name: str, folder: Path, what_to_do: str) -> Net:
    missing = [file for file in _CLIP_FILES if not (folder / file).is_file()]
    choices = (_CLIP_WEIGHTS, _CLIP_PROCESSORS)
    missing += [" or ".join(some) for some in choices if not any((folder / file).is_file() for file in some)]
    if missing:
        expected = "a transformers CLIPModel with its CLIPProcessor"
        raise _not_at_hand(f"{metric}[{name}]", folder, f"no {', no '.join(missing)}", expected, what_to_do)
    return Net(name=name, kind="clip", where=folder)


def _inception(metric: str) -> Net:
    path = _torch_checkpoints() / INCEPTION_FILE
    _require_package(metric, "inception-v3", "torch_fidelity", "pip install 'schedsearch[metrics]'")
    if not path.is_file():
        do = f"Run `curl -L --create-dirs -o {path} {_INCEPTION_PAGE}`, or take {metric}[FOLDER] with a CLIP model."
        raise _not_at_hand(f"{metric}[inception-v3]", path, "no such file", "the weights of Inception v3", do)
    return Net(name="inception-v3", kind="inception", where=path)


def _lpips(name: str) -> Callable[[str], Net]:
    def locate(metric: str) -> Net:
        path = _torch_checkpoints() / LPIPS_FILES[name]
        _require_package(metric, name, "torchvision", "pip install 'schedsearch[metrics]'")
        if not path.is_file():
            do = f"Run `curl -L --create-dirs -o {path} https://download.pytorch.org/models/{path.name}`."
            raise _not_at_hand(f"{metric}[{name}]", path, "no such file", "the backbone's weights", do)
        return Net(name=name, kind="lpips", where=path)

    return locate


def _image_reward(metric: str) -> Net:
    name = "ImageReward-v1.0"
    folder = Path("~/.cache/ImageReward").expanduser()
    _require_package(metric, name, "ImageReward", "pip install 'schedsearch[image-reward]'")
    missing = [file for file in _REWARD_FILES if not (folder / file).is_file()]
    if missing:
        do = f"Run `hf download THUDM/ImageReward {' '.join(_REWARD_FILES)} --local-dir {folder}`."
        raise _not_at_hand(f"{metric}[{name}]", folder, f"no {', no '.join(missing)}", " and ".join(_REWARD_FILES), do)
    return Net(name=name, kind="image_reward", where=folder)


def _require_package(metric: str, net: str, package: str, command: str) -> None:
    if find_spec(package) is None:
        raise ModelNotFoundError(
            f"metric {metric}[{net}]: found no package {package}, which holds the network. Run `{command}`."
        )


def _not_at_hand(metric: str, where: Path, found: str, expected: str, what_to_do: str) -> ModelNotFoundError:
    return ModelNotFoundError(
        f"metric {metric}: the weights are not at hand, and nothing is downloaded unasked. Looked at {where}: "
        f"found {found}, expected {expected}. {what_to_do}"
    )


def _torch_checkpoints() -> Path:
    import torch

    return Path(torch.hub.get_dir()) / "checkpoints"


_KNOWN: Final[Mapping[str, tuple[Kind, Callable[[str], Net]]]] = {
    "flux-mini-clip": ("clip", _bundled("flux-mini-clip")),
    "clip-vit-large-patch14": ("clip", _openai("clip-vit-large-patch14")),
    "clip-vit-base-patch16": ("clip", _openai("clip-vit-base-patch16")),
    "clip-vit-base-patch32": ("clip", _openai("clip-vit-base-patch32")),
    "inception-v3": ("inception", _inception),
    **{name: ("lpips", _lpips(name)) for name in LPIPS_FILES},
    "ImageReward-v1.0": ("image_reward", _image_reward),
}
"""Every network by name: its kind, and what finds it or says what is missing."""
