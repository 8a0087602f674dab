"""Where weights lie on this machine, and how they are fetched: the only module that speaks to the model hub.

Local files come first, and a folder that is complete is loaded without a word to the network. The hub's client retries
for most of a minute when there is no network, so one short request of our own decides first whether it is worth asking.
This module does not know what a model is used for.
"""

from __future__ import annotations

import json
import ssl
import urllib.error
import urllib.request
import warnings
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from schedsearch.errors import ModelNotFoundError, UsageError

if TYPE_CHECKING:
    import torch

    from schedsearch.evaluate._models import ModelCard

_PROBE_SECONDS: Final = 5.0
_CONFIG_PATTERNS: Final = [
    "model_index.json",
    "schedsearch.yaml",
    "transformer/config.json",
    "vae/config.json",
    "scheduler/scheduler_config.json",
]
_WEIGHT_SUFFIXES: Final = (".safetensors", ".bin")
_REFUSED: Final = "the hub refuses: no account is logged in here, or it has not accepted the licence"
_MAX_JSON_BYTES: Final = 16 * 2**20
_MAX_SHOWN: Final = 60
_LFS_POINTER: Final = b"version https://git-lfs"


@dataclass(frozen=True, slots=True, kw_only=True)
class Location:
    """Where a model's weights are, or would be.

    Attributes:
        where: the folder; for a hub id without a snapshot, the place in the cache where it would be.
        missing: what a complete folder would have besides, such as ``transformer/ (weights)``; empty if complete.
    """

    where: Path
    missing: tuple[str, ...]

    @property
    def complete(self) -> bool:
        """Whether the folder can be loaded without the network."""
        return not self.missing


def locate(weights: str) -> Location:
    """Return where ``weights`` (absolute path or hub id) are on this machine. Never uses the network."""
    path = Path(weights)
    if path.is_absolute():
        return Location(where=path, missing=missing_parts(path))
    snapshot = _snapshot(weights)
    if snapshot is None:
        return Location(where=_cache_folder(weights), missing=("everything",))
    return Location(where=snapshot, missing=missing_parts(snapshot))


def missing_parts(folder: Path) -> tuple[str, ...]:
    """Return the parts that ``model_index.json`` names and ``folder`` lacks, in the index's order."""
    try:
        index = read_json(folder / "model_index.json")
    except (OSError, ValueError):
        return ("model_index.json",)
    parts = {
        name: cls[1]
        for name, cls in index.items()
        if isinstance(cls, list) and len(cls) == 2 and isinstance(cls[1], str)  # [null, null] = part not used
    }
    return tuple(lack for name, cls in parts.items() if (lack := _lack(folder / name, cls)))


def read_json(path: Path) -> dict[str, Any]:
    """Return the JSON object in a configuration file.

    Raises:
        OSError: it cannot be read; `FileNotFoundError` if it is no file.
        ValueError: it is not one UTF-8 JSON object of at most 16 MiB.
    """
    if not path.is_file():  # opening a pipe would wait for ever
        raise FileNotFoundError(path)
    with path.open("rb") as file:
        data = file.read(_MAX_JSON_BYTES + 1)
    if len(data) > _MAX_JSON_BYTES:
        raise ValueError("more than 16 MiB")
    try:
        content = json.loads(data.decode("utf-8"))
    except RecursionError:
        raise ValueError("nested too deeply") from None
    if not isinstance(content, dict):
        raise ValueError(f"found {type(content).__name__}, expected an object")  # noqa: TRY004 -- content, not a type
    return content


def _lack(part: Path, class_name: str) -> str:
    """Say what ``part`` lacks; empty if nothing."""
    try:
        return _lack_of_readable(part, class_name)
    except (OSError, ValueError) as error:  # the index of the shards is damaged, or names what no file can be called
        return f"{part.name[:_MAX_SHOWN]}/ (cannot be read: {str(error)[:_MAX_SHOWN]})"


def _lack_of_readable(part: Path, class_name: str) -> str:
    if "Tokenizer" in class_name or "Scheduler" in class_name or "Processor" in class_name:
        return "" if any(part.glob("*.json")) else f"{part.name}/"
    found = [path for path in part.glob("*") if path.suffix in _WEIGHT_SUFFIXES and path.exists()]
    for index in part.glob("*.index.json"):
        shards = read_json(index).get("weight_map")
        if not isinstance(shards, dict):
            raise ValueError(f"{index.name} without a weight_map")  # noqa: TRY004 -- likewise
        if absent := sorted(shard for shard in {str(s) for s in shards.values()} if not (part / shard).exists()):
            return f"{part.name}/{absent[0][:_MAX_SHOWN]}"
    for path in found:
        with path.open("rb") as file:
            if file.read(len(_LFS_POINTER)) == _LFS_POINTER:
                return f"{part.name}/{path.name} (a git-lfs pointer; run `git lfs pull`)"
    return "" if found else f"{part.name}/ (weights)"


def cached_repositories() -> Iterator[tuple[str, Path]]:
    """Yield hub id and newest snapshot of every pipeline in the Hugging Face cache, by name."""
    from huggingface_hub import constants

    for folder in sorted(Path(constants.HF_HUB_CACHE).glob("models--*--*")):
        repo = folder.name.removeprefix("models--").replace("--", "/", 1)
        snapshot = _snapshot(repo)
        if snapshot is not None:
            yield repo, snapshot


def _snapshot(repo: str) -> Path | None:
    from huggingface_hub import try_to_load_from_cache

    try:
        found = try_to_load_from_cache(repo, "model_index.json")
    except (OSError, ValueError):  # a name that no repository can have, or a damaged cache
        return None
    return Path(found).parent if isinstance(found, str) else None


def is_hub_id(name: str) -> bool:
    """Whether a repository of the hub can be called ``name``."""
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined] # public, but not in its __all__

    try:
        validate_repo_id(name)
    except HFValidationError:
        return False
    return True


def existing(name: str) -> Path | None:
    """Return the path ``name``, or ``None`` where it is none or nothing is there."""
    try:
        path = Path(name).expanduser()
        return path if path.exists() else None
    except (OSError, RuntimeError):  # too long a name; no home folder
        return None


def _cache_folder(repo: str) -> Path:
    from huggingface_hub import constants

    return Path(constants.HF_HUB_CACHE) / f"models--{repo.replace('/', '--')}"


def configuration(repo: str) -> Path:
    """Return a folder with the configuration files of a hub repository, from the cache or else from the hub.

    Raises:
        ModelNotFoundError: neither has them; the text says why and what to do.
    """
    snapshot = _snapshot(repo)
    if snapshot is not None and all((snapshot / name).exists() for name in _CONFIG_PATTERNS if name.endswith("json")):
        return snapshot
    reason = _why_not_online(repo)
    if not reason:
        from huggingface_hub import snapshot_download

        try:
            with quiet():
                folder = snapshot_download(repo, allow_patterns=_CONFIG_PATTERNS, etag_timeout=_PROBE_SECONDS)
            return Path(folder)
        except Exception as error:  # noqa: BLE001 -- the client raises OSError, ValueError and httpx's own tree
            reason = _hub_reason(error)
    raise ModelNotFoundError(
        _how_to_get(name=repo, repo=repo, reason=reason, download=f"hf download {repo}", licence="", gated=False)
    )


def obtain(card: ModelCard) -> Path:
    """Return a complete folder with the card's weights, fetching what is missing where that is possible.

    Raises:
        ModelNotFoundError: the weights are not at hand and cannot be fetched; the text says how to get them.
    """
    found = locate(card.weights)
    if found.complete:
        return found.where
    if Path(card.weights).is_absolute():
        raise ModelNotFoundError(
            f"{found.where}: found no {', '.join(found.missing)}, expected a complete FluxPipeline folder. "
            f"Copy or download the missing files; `--model flux-mini` works without any download."
        )
    reason = _why_not_online(card.weights) or _download(card.weights)
    found = locate(card.weights)
    if found.complete:
        return found.where
    reason = reason or f"the download ended without {', '.join(found.missing)}"
    raise ModelNotFoundError(
        _how_to_get(
            name=card.name,
            repo=card.weights,
            reason=reason,
            download=card.download or f"hf download {card.weights}",
            licence=card.licence,
            gated=card.gated,
        )
    )


def _download(repo: str) -> str:
    """Fetch a pipeline's files into the cache; return why that failed, or an empty string."""
    from diffusers import DiffusionPipeline
    from huggingface_hub import auth_check

    try:
        auth_check(repo)  # diffusers would make do with whatever the cache holds instead of saying "refused"
        DiffusionPipeline.download(repo)
    except Exception as error:  # noqa: BLE001 -- see configuration()
        return _hub_reason(error)
    return ""


def _how_to_get(*, name: str, repo: str, reason: str, download: str, licence: str, gated: bool) -> str:
    found = locate(repo)
    state = "nothing is there" if "everything" in found.missing else f"without {', '.join(found.missing)}"
    accept = (
        f"accept the licence{f' ({licence})' if licence else ''} at https://huggingface.co/{repo}, run `hf auth login`"
    )
    first = f"{accept}, then" if gated or reason == _REFUSED else "run"
    return (
        f"{name}: the weights of {repo} are not at hand. Looked in the Hugging Face cache, {found.where} ({state}); "
        f"{reason}. To get them, {first} `{download}`. "
        "The model flux-mini ships with schedsearch: `--model flux-mini` works now."
    )


def _why_not_online(repo: str) -> str:
    """Return why the hub cannot be asked, or an empty string if it answers within a few seconds."""
    from huggingface_hub import constants

    if constants.HF_HUB_OFFLINE:
        return "the hub was not asked, because HF_HUB_OFFLINE is set"
    url = f"{constants.ENDPOINT}/{repo}/resolve/main/model_index.json"
    if not url.startswith(("https://", "http://")):
        return f"the hub was not asked, because its address {constants.ENDPOINT} (HF_ENDPOINT) is not an http address"
    try:
        with urllib.request.urlopen(urllib.request.Request(url, method="HEAD"), timeout=_PROBE_SECONDS):  # noqa: S310
            return ""
    except urllib.error.HTTPError as error:
        error.close()
        return ""  # it answers; the hub's own client turns the status into a precise error
    except OSError as error:
        cause = getattr(error, "reason", error)
        if isinstance(cause, ssl.SSLError):
            return ""  # the hub's client has its own certificates and may do better
        return f"the hub cannot be reached from here ({cause})"


def _hub_reason(error: Exception) -> str:
    from huggingface_hub import errors

    chain = [error]
    while isinstance(cause := chain[-1].__cause__ or chain[-1].__context__, Exception) and cause not in chain:
        chain.append(cause)
    for link in chain:
        if isinstance(link, errors.GatedRepoError):
            return _REFUSED
        if isinstance(link, errors.RepositoryNotFoundError):
            return (
                "the hub knows no such public repository, and the account logged in here (if any) sees no private one"
            )
        if isinstance(link, errors.EntryNotFoundError) and not isinstance(link, errors.LocalEntryNotFoundError):
            return "the hub has the repository, but it lacks a file that every diffusers pipeline has"
    first_line = (str(error).strip().splitlines() or [""])[0]
    return f"the hub answered with {type(error).__name__}: {first_line[:200]}".rstrip(": .")


def load_flux(folder: Path, dtype: torch.dtype) -> Any:
    """Return the FLUX-type pipeline in ``folder``, on the CPU.

    Raises:
        ModelNotFoundError: the files are damaged or do not fit together.
    """
    try:
        with quiet():
            from diffusers import FluxPipeline  # importing it chatters as well

            # `torch_dtype` and not `dtype`: releases before 0.40 ignore the latter without a word.
            pipe: Any = FluxPipeline.from_pretrained(str(folder), torch_dtype=dtype, local_files_only=True)
            if pipe.transformer.dtype != dtype:
                pipe.to(dtype)
    except Exception as error:
        text = " ".join(str(error).split())[:300]
        raise ModelNotFoundError(
            f"{folder}: cannot be loaded as FluxPipeline ({type(error).__name__}: {text}). A file may be damaged: "
            "fetch the model again."
        ) from error
    return pipe


def move(pipe: Any, device: torch.device, card: ModelCard) -> None:
    """Move the pipeline to ``device``.

    Raises:
        UsageError: the device has not enough memory.
    """
    import torch

    try:
        with quiet():
            pipe.to(device)
    except torch.OutOfMemoryError:
        n_bytes = sum(
            p.numel() * p.element_size()
            for part in pipe.components.values()
            if hasattr(part, "parameters")
            for p in part.parameters()
        )
        raise UsageError(
            f"device: {device} has not enough free memory for {card.name}, whose weights alone take "
            f"{n_bytes / 2**30:.1f} GiB in {pipe.transformer.dtype}. Use `--dtype bfloat16`, a larger device, or cpu."
        ) from None


@contextmanager
def quiet() -> Iterator[None]:
    """Silence the loading chatter of diffusers and transformers: log lines below errors, bars, warnings.

    Everything is put back at the end as it was found. Not for use from several threads at once: the settings are the
    libraries' own, and global.
    """
    import diffusers.utils.logging as diffusers_logging
    import transformers.utils.logging as transformers_logging

    with ExitStack() as stack:
        stack.enter_context(warnings.catch_warnings())
        warnings.simplefilter("ignore")
        for library in (diffusers_logging, transformers_logging):
            stack.callback(library.set_verbosity, library.get_verbosity())
            library.set_verbosity(library.ERROR)
            if library.is_progress_bar_enabled():
                stack.enter_context(_without_bars(library))
        yield


@contextmanager
def _without_bars(library: Any) -> Iterator[None]:
    from huggingface_hub.utils.tqdm import are_progress_bars_disabled, enable_progress_bars

    hub_bars = not are_progress_bars_disabled()
    library.disable_progress_bar()
    try:
        yield
    finally:
        library.enable_progress_bar()
        # transformers switches the hub's bars together with its own; put back what the hub had.
        if hub_bars:
            enable_progress_bars()
