"""Options that several verbs share, each declared once, and what the shell completes them with.

Names are listed here as text, so that a TAB does not load the searchers or torch; tests keep them equal to what is
there. Knows nothing of what the verbs do.
"""

from __future__ import annotations

import importlib.resources
import shlex
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer

from schedsearch import _terminal

EXIT_INTERRUPTED = 130

SEARCHERS = ("auto", "anneal", "autodiffusion", "bayes", "cachequant", "ecad", "random", "s3")
METRICS = ("psnr", "ssim", "latent_error", "lpips", "clip", "image_reward", "fid", "kid")
REFERENCES = ("default", "converged")
DTYPES = ("float32", "bfloat16", "float16")
DEVICES = ("cpu", "cuda", "mps")
BUDGETS = ("2x", "4x", "8x", "60%macs", "800ms")
POLICIES = ("all-steps", "near-image", "last-step", "all")
SCALES = ("dynamic", "static", "per-step")
LAYERS = ("step", "constant", "none")
FORMATS = ("fp16", "bf16", "fp8_e4m3", "int8", "int6", "int5", "int4", "int3", "int2")
CONTESTANTS = ("auto", "ecad", "s3", "autodiffusion", "bayes", "anneal", "cachequant", "random")
ABLATION = ("joint", "steps", "solver", "cache", "pruning", "formats", "joint without formats")
FAMILIES = (
    "euler", "dpm", "unipc", "adams", "fora", "taylorseer-1", "taylorseer-2", "delta-dit",
    "smoothcache", "cache-dit", *CONTESTANTS[1:],
)  # fmt: skip
COMPARED = (
    "compiled", *FAMILIES[: FAMILIES.index("cache-dit") + 1], "diffusers", "diffusers-fbc", "diffusers-taylorseer",
    "diffusers-taylorseer-blocks", "diffusers-taylorseer-lite", "diffusers-magcache", "diffusers-pab",
    "diffusers-fastercache", "diffusers-seacache", "diffusers-textkv", "cachedit", "cachedit-dbcache",
    "cachedit-taylorseer", "cachedit-taylorseer-2", "cachedit-dmd", "cachedit-foca", "cachedit-dbprune", "cachedit-scm",
    "cachedit-scm-taylorseer", "cachedit-scm-dynamic",
)  # fmt: skip
"""Families of `compare`, and libraries that stand for theirs."""
CACHEQUANT = ("W8A8", "W4A8")

_SPACE_MARK = "\nformat: schedsearch.space\n"
Completer = Callable[[str], list[str]]


def one_of(words: Iterable[str]) -> Completer:
    """Return a completer that offers those of ``words`` that begin as typed."""
    known = tuple(words)

    def complete(incomplete: str) -> list[str]:
        return [word for word in known if word.startswith(incomplete)]

    return complete


def some_of(words: Iterable[str]) -> Completer:
    """Return a completer for a list separated by commas; words that are there already are not offered again."""
    known = tuple(words)

    def complete(incomplete: str) -> list[str]:
        before, comma, last = incomplete.rpartition(",")
        taken = before.split(",")
        return [f"{before}{comma}{word}" for word in known if word.startswith(last) and word not in taken]

    return complete


def model_names(incomplete: str) -> list[str]:
    """Return the named models, and the folders with a pipeline, that begin as typed."""
    import yaml

    text = (importlib.resources.files("schedsearch_spaces") / "models.yaml").read_text(encoding="utf-8")
    named = [name for name in yaml.safe_load(text) if name.startswith(incomplete)]
    return named + [str(path) for path in _paths(incomplete) if (path / "model_index.json").is_file()]


def space_names(incomplete: str) -> list[str]:
    """Return the shipped spaces, and the YAML files, that begin as typed."""
    shipped = [
        file.name.removesuffix(".yaml")
        for file in importlib.resources.files("schedsearch_spaces").iterdir()
        if file.name.endswith(".yaml") and _SPACE_MARK in file.read_text(encoding="utf-8")
    ]
    files = [str(path) for path in _paths(incomplete) if path.suffix in {".yaml", ".yml"}]
    return [name for name in sorted(shipped) if name.startswith(incomplete)] + files


def _paths(incomplete: str) -> list[Path]:
    """What lies on the disk and begins as typed."""
    folder, _, start = incomplete.rpartition("/")
    place = Path(folder or ("/" if incomplete.startswith("/") else "."))
    try:
        names = sorted(path.name for path in place.iterdir())
    except OSError:
        return []
    return [Path(folder or ".") / name if folder else Path(name) for name in names if name.startswith(start)]


@contextmanager
def kept_work() -> Iterator[None]:
    """End the program when the block is interrupted, and say that the same command goes on where it stopped."""
    try:
        yield
    except KeyboardInterrupt:
        command = shlex.join(["schedsearch", *sys.argv[1:]])
        typer.echo(f"\nstopped; what was measured is kept. Go on with: {command}", err=True)
        raise typer.Exit(EXIT_INTERRUPTED) from None


def _use_json(context: typer.Context, wanted: bool) -> bool:  # noqa: FBT001 - called by position
    if wanted:
        context.call_on_close(_terminal.set_aside())
    return wanted


ModelName = typer.Option(
    metavar="NAME",
    help="A name that `schedsearch models` lists, a local folder, or a hub id.",
    autocompletion=model_names,
)
Model = Annotated[str, ModelName]
Budget = typer.Option(metavar="B", help="How cheap it shall be: 4x, 800ms or 60%macs.", autocompletion=one_of(BUDGETS))
Device = Annotated[str, typer.Option(metavar="D", help="cpu, cuda, cuda:1 or mps.", autocompletion=one_of(DEVICES))]
Dtype = Annotated[str, typer.Option(metavar="T", help="float32, bfloat16 or float16.", autocompletion=one_of(DTYPES))]
Seed = Annotated[int, typer.Option(metavar="N", help="Source of all random draws.", min=0)]
Into = Annotated[
    Path | None, typer.Option(metavar="FILE", help="Put the tables between the markers of this Markdown file.")
]
Json = Annotated[
    bool,
    typer.Option(
        "--json",
        callback=_use_json,
        is_eager=True,
        help="Print the answer as one JSON document; everything else goes to standard error.",
    ),
]
