"""The command line of the recipe: pictures -> model -> folder. Stopped at any moment, it goes on from there.

Deterministic on one machine and device, as flux-mini's recipe is, and drawn from the same icon packages.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated

import typer

from schedsearch.errors import SchedSearchError
from schedsearch_calibration.flux_mini import COLOURS, tokenizer
from schedsearch_calibration.flux_mini._training import Settings
from schedsearch_calibration.flux_mini.train import CONSOLE, bar, device_of, pictures_of
from schedsearch_calibration.flux_mini_clip import model as clip
from schedsearch_calibration.flux_mini_clip.drawings import gather

app = typer.Typer(add_completion=False, help="Train flux-mini-clip from scratch.")


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """Everything that decides the result; the defaults made the shipped model."""

    shape: clip.ClipShape = field(default_factory=clip.ClipShape)
    settings: Settings = clip.SETTINGS


def run(out: Path, *, recipe: Recipe, packages: tuple[Path, ...] = (), device: str = "cpu", every: int = 100) -> Path:
    """Run every stage that ``out`` does not hold yet and return the model's folder, ``out/flux-mini-clip``.

    Args:
        out: folder for pictures, checkpoint and the result; made if need be.
        recipe: see `Recipe`.
        packages: icon packages, the captions' one first; empty = fetched with npm.
        device: where to train.
        every: steps between two checkpoints.

    Raises:
        UsageError: a package, the device or a checkpoint cannot be used as given.
    """
    place = device_of(device)
    out.mkdir(parents=True, exist_ok=True)
    drawings = gather(pictures_of(out / "pictures.npz", packages))
    words = tokenizer.build([*drawings.names, *COLOURS, "background"])
    model = clip.build(recipe.shape, vocabulary=len(words), seed=recipe.settings.seed).to(place)
    with bar("clip", recipe.settings.steps) as report:
        clip.train_clip(
            model, drawings, words, recipe.settings, checkpoint=out / "clip.ckpt", every=every, report=report
        )
    return clip.store(out / "flux-mini-clip", model=model.cpu(), words=words)


@app.command()
def main(
    out: Annotated[Path, typer.Option(help="Folder for the checkpoint and the result; run again to go on.")],
    packages: Annotated[
        list[Path] | None,
        typer.Option(
            "--data", help="Unpacked npm icon package or its .tgz, captions' one first; else npm fetches them."
        ),
    ] = None,
    steps: Annotated[int, typer.Option(min=1, help="Steps.")] = clip.SETTINGS.steps,
    device: Annotated[str, typer.Option(help="cpu, cuda, cuda:1, mps.")] = "cpu",
    every: Annotated[int, typer.Option(min=1, help="Steps between two checkpoints.")] = 100,
) -> None:
    """Train flux-mini-clip: pictures, model, folder."""
    recipe = Recipe(settings=replace(clip.SETTINGS, steps=steps))
    try:
        folder = run(out, recipe=recipe, packages=tuple(packages or ()), device=device, every=every)
    except SchedSearchError as error:
        CONSOLE.print(f"error: {error}", markup=False, highlight=False, soft_wrap=True)
        raise typer.Exit(2) from None
    except KeyboardInterrupt:
        CONSOLE.print("Stopped. Run the same command again to go on from the last checkpoint.")
        raise typer.Exit(130) from None
    typer.echo(f"Wrote {folder}")
