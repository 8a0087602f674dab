"""The command line of the recipe: data -> vae -> transformer -> assemble. Stopped at any moment, it goes on from there.

All of it is deterministic on one machine and device; between machines the last bits of sums differ, and with them,
after thousands of steps, the weights.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any, Final

import torch
import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from schedsearch.errors import SchedSearchError, UsageError
from schedsearch_calibration.flux_mini import COLOURS, data, tokenizer, transformer, vae
from schedsearch_calibration.flux_mini import assemble as assembly
from schedsearch_calibration.flux_mini._training import Report, Settings

CONSOLE: Final = Console(stderr=True)
"""Where progress and errors go."""

app = typer.Typer(add_completion=False, help="Train flux-mini from scratch.")


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """Everything that decides the result; the defaults made the shipped model."""

    vae_shape: vae.VaeShape = field(default_factory=vae.VaeShape)
    vae_settings: Settings = vae.SETTINGS
    shape: transformer.TransformerShape = field(default_factory=transformer.TransformerShape)
    settings: Settings = transformer.SETTINGS


def run(out: Path, *, recipe: Recipe, packages: tuple[Path, ...] = (), device: str = "cpu", every: int = 250) -> Path:
    """Run every stage that ``out`` does not hold yet and return the pipeline's folder, ``out/flux-mini``.

    Args:
        out: folder for pictures, checkpoints and the result; made if need be.
        recipe: see `Recipe`.
        packages: icon packages, the captions' one first; empty = fetched with npm.
        device: where to train.
        every: steps between two checkpoints.

    Raises:
        UsageError: a package, the device or a checkpoint cannot be used as given.
    """
    place = device_of(device)
    out.mkdir(parents=True, exist_ok=True)
    pictures = pictures_of(out / "pictures.npz", packages)
    coder = vae.build(recipe.vae_shape, seed=recipe.vae_settings.seed).to(place)
    with bar("vae", recipe.vae_settings.steps) as report:
        vae.train_vae(coder, pictures, recipe.vae_settings, checkpoint=out / "vae.ckpt", every=every, report=report)
    with bar("latents", len(pictures[0].captions)) as report:
        latents = vae.encode_all(coder, pictures[0], report=report)
    words = tokenizer.build([*pictures[0].captions, *COLOURS, "background"])
    model = transformer.build(
        recipe.shape,
        latent_channels=recipe.vae_shape.latent_channels,
        vocabulary=len(words),
        seed=recipe.settings.seed,
    ).to(place)
    with bar("transformer", recipe.settings.steps) as report:
        transformer.train_transformer(
            model,
            (latents - coder.config.shift_factor) * coder.config.scaling_factor,
            transformer.tokens_of(pictures[0].captions, words),
            recipe.settings,
            checkpoint=out / "transformer.ckpt",
            every=every,
            report=report,
        )
    return assembly.assemble(out / "flux-mini", vae=coder.cpu(), model=model.cpu(), words=words)


def pictures_of(path: Path, packages: tuple[Path, ...]) -> tuple[data.Pictures, ...]:
    """Return the pictures in the file ``path``, drawn from ``packages`` and written there first if need be."""
    if path.is_file():
        CONSOLE.print(f"Using the pictures in {path}", highlight=False, soft_wrap=True)
    else:
        with data.packages(packages) as folders:
            icons = [data.read_icons(folder) for folder in folders]
        drawn = []
        for i, some in enumerate(icons):
            with bar(f"pictures {i + 1}/{len(icons)}", len(some)) as report:
                drawn.append(data.render(some, progress=report))
        data.save(drawn, path)
    return data.load(path)


def device_of(name: str) -> torch.device:
    """Return the device of that name.

    Raises:
        UsageError: this machine has no such device.
    """
    try:
        device = torch.device(name)
        torch.zeros(1, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise UsageError(f"device: {name!r} cannot be used ({reason}). Use cpu, or a device of this machine.") from None
    return device


@contextmanager
def bar(title: str, total: int) -> Iterator[Report]:
    """Yield what a stage reports to, drawn as a progress bar with the loss where something is trained."""
    columns: tuple[Any, ...] = (
        TextColumn("{task.description:14}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(),
        TimeRemainingColumn(), TextColumn("{task.fields[loss]}"),
    )  # fmt: skip
    with Progress(*columns, console=CONSOLE, transient=False) as progress:
        task = progress.add_task(title, total=total, loss="")

        def report(done: int, loss: float) -> None:
            shown = f"loss {loss:.4f}" if loss == loss and title in ("vae", "transformer", "clip") else ""  # noqa: PLR0124
            progress.update(task, completed=done, loss=shown)

        yield report
        progress.update(task, completed=total)


@app.command()
def main(  # noqa: PLR0917 -- options, all given by name
    out: Annotated[Path, typer.Option(help="Folder for checkpoints and the result; run again to go on.")],
    packages: Annotated[
        list[Path] | None,
        typer.Option(
            "--data", help="Unpacked npm icon package or its .tgz, captions' one first; else npm fetches them."
        ),
    ] = None,
    steps_vae: Annotated[int, typer.Option(min=1, help="Steps of the autoencoder.")] = vae.SETTINGS.steps,
    steps_transformer: Annotated[int, typer.Option(min=1, help="Steps of the denoiser.")] = transformer.SETTINGS.steps,
    device: Annotated[str, typer.Option(help="cpu, cuda, cuda:1, mps.")] = "cpu",
    every: Annotated[int, typer.Option(min=1, help="Steps between two checkpoints.")] = 250,
) -> None:
    """Train flux-mini: pictures, autoencoder, denoiser with text encoders, pipeline folder."""
    recipe = Recipe(
        vae_settings=replace(vae.SETTINGS, steps=steps_vae),
        settings=replace(transformer.SETTINGS, steps=steps_transformer),
    )
    try:
        folder = run(out, recipe=recipe, packages=tuple(packages or ()), device=device, every=every)
    except SchedSearchError as error:
        CONSOLE.print(f"error: {error}", markup=False, highlight=False, soft_wrap=True)
        raise typer.Exit(2) from None
    except KeyboardInterrupt:
        CONSOLE.print("Stopped. Run the same command again to go on from the last checkpoint.")
        raise typer.Exit(130) from None
    typer.echo(f"Wrote {folder} (weights sha256:{assembly.parameters_sha256(folder)})")
