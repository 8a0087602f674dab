"""How well the model tells pictures and captions apart: ``python -m schedsearch_calibration.flux_mini_clip.retrieval``.

Retrieval is measured on drawings that were not learned from (see ``drawings.py``), on those that were, and on pictures
that flux-mini draws for its held-out prompts, which is what the model is for. Shares do not depend on how busy the
machine is. This module does not know how the model was trained.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import torch
import typer

from schedsearch.errors import SchedSearchError
from schedsearch_calibration import feature_net_path, flux_mini_path, prompt_set
from schedsearch_calibration.flux_mini import COLOURS, data
from schedsearch_calibration.flux_mini.train import CONSOLE, pictures_of
from schedsearch_calibration.flux_mini_clip import model as clip
from schedsearch_calibration.flux_mini_clip.drawings import Drawings, gather, lay, prompts

BATCH = 64
SEED = 7
"""Of flux-mini's noise."""

app = typer.Typer(add_completion=False, help="Retrieval accuracy of flux-mini-clip.")


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """One line of the table.

    Attributes:
        task: what was looked for, among what.
        n: queries.
        first: share of queries whose answer came first.
        five: share of queries whose answer was among the first five.
    """

    task: str
    n: int
    first: float
    five: float


def ranked(task: str, queries: torch.Tensor, answers: torch.Tensor, right: torch.Tensor) -> Found:
    """Return how often the right answer is found by cosine.

    Args:
        task: for the table.
        queries: `(n, d)`, unit length.
        answers: `(m, d)`, unit length.
        right: `(n,)`, index of each query's answer; of equal answers the right one counts as the last.
    """
    scores = queries @ answers.T
    ahead = (scores >= scores.gather(1, right[:, None])).sum(dim=1) - 1
    return Found(
        task=task, n=len(queries), first=float((ahead < 1).double().mean()), five=float((ahead < 5).double().mean())
    )


class Model:
    """The two towers, as plain functions of pictures and texts.

    Args:
        folder: of the model and its processor.
    """

    def __init__(self, folder: Path) -> None:
        from transformers import AutoTokenizer, CLIPModel

        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            self._model: Any = CLIPModel.from_pretrained(folder, local_files_only=True, dtype=torch.float32).eval()
            self._words: Any = AutoTokenizer.from_pretrained(folder, local_files_only=True)

    @torch.no_grad()
    def seen(self, pixels: torch.Tensor) -> torch.Tensor:
        """Return unit embeddings of pictures `(n, 3, h, w)` in [-1, 1]."""
        return torch.cat([clip.embed_images(self._model, some) for some in pixels.split(BATCH)])

    @torch.no_grad()
    def read(self, texts: Sequence[str]) -> torch.Tensor:
        """Return unit embeddings of texts."""
        ids = clip.tokens_of(list(texts), self._words)
        return torch.cat([clip.embed_texts(self._model, some) for some in ids.split(BATCH)])


def of_drawings(model: Model, drawings: Drawings) -> list[Found]:
    """Return the lines on icons: those kept for the test, and the first package's, which were learned from."""
    colours = data.palette()
    captions = model.read(prompts(drawings.names)).reshape(len(drawings.names), len(colours), -1)
    white = captions[:, 0]
    found = []
    for title, chosen in (("new drawings", drawings.is_test), ("learned drawings", drawings.package == 0)):
        rgba, name = drawings.rgba[chosen], drawings.name[chosen]
        seen = model.seen(lay(rgba, colours[:1].expand(len(rgba), 3)))
        found.append(ranked(f"{title}: picture -> its name among {len(white):,}", seen, white, name))
        asked, place = torch.unique(name, return_inverse=True)
        hits = seen @ white[asked].T  # a name has as many drawings as packages; any of them is right
        best = place[hits.topk(min(5, len(hits)), dim=0).indices] == torch.arange(len(asked))
        found.append(
            Found(
                task=f"{title}: name -> a picture of it among {len(seen):,}", n=len(asked),
                first=float(best[0].double().mean()), five=float(best.any(dim=0).double().mean()),
            )
        )  # fmt: skip
    rgba, name = drawings.rgba[drawings.is_test], drawings.name[drawings.is_test]
    told = [
        ranked("", model.seen(lay(rgba[i : i + 1].expand(len(colours), -1, -1, -1), colours)), captions[name[i]],
               torch.arange(len(colours)))
        for i in range(len(rgba))
    ]  # fmt: skip
    share = sum(one.first for one in told) / len(told)
    five = sum(one.five for one in told) / len(told)
    task = f"new drawings: background among {len(COLOURS)}"
    return [*found, Found(task=task, n=len(told) * len(colours), first=share, five=five)]


def of_flux_mini(model: Model, names: Sequence[str]) -> list[Found]:
    """Return the lines on what flux-mini draws for its held-out prompts."""
    texts = prompt_set("flux-mini-held-out").prompts
    seen = model.seen(_drawn(texts))
    everything = prompts(names)
    right = torch.tensor([everything.index(text) for text in texts])
    return [
        ranked(f"flux-mini's pictures: their prompt among these {len(texts)}", seen, model.read(texts),
               torch.arange(len(texts))),
        ranked(f"flux-mini's pictures: their prompt among {len(everything):,}", seen, model.read(everything), right),
    ]  # fmt: skip


def _drawn(texts: Sequence[str]) -> torch.Tensor:
    """What flux-mini draws, `(n, 3, h, w)` in [-1, 1]."""
    from diffusers import FluxPipeline

    pipe: Any = FluxPipeline.from_pretrained(flux_mini_path())
    pipe.set_progress_bar_config(disable=True)
    generators = [torch.Generator().manual_seed(SEED + i) for i in range(len(texts))]
    rows = [
        pipe(
            list(texts[start : start + 8]), height=data.SIZE, width=data.SIZE, num_inference_steps=28,
            guidance_scale=1.0, max_sequence_length=16, generator=generators[start : start + 8], output_type="pt",
        ).images
        for start in range(0, len(texts), 8)
    ]  # fmt: skip
    return 2.0 * torch.cat(rows) - 1.0


@app.command()
def main(
    out: Annotated[Path, typer.Option(help="Folder for the pictures; that of the recipe has them.")] = Path(
        "runs/flux-mini-clip"
    ),
    model: Annotated[Path | None, typer.Option(help="The model's folder; the bundled one without it.")] = None,
    packages: Annotated[
        list[Path] | None,
        typer.Option("--data", help="Unpacked npm icon package or its .tgz, captions' one first; else npm fetches."),
    ] = None,
) -> None:
    """Print the accuracy of flux-mini-clip as a table."""
    try:
        out.mkdir(parents=True, exist_ok=True)
        drawings = gather(pictures_of(out / "pictures.npz", tuple(packages or ())))
        folder = model or feature_net_path("flux-mini-clip")
    except SchedSearchError as error:
        CONSOLE.print(f"error: {error}", markup=False, highlight=False, soft_wrap=True)
        raise typer.Exit(2) from None
    towers = Model(folder)
    typer.echo("| looked for | queries | first | among five |\n|---|---|---|---|")
    for line in (*of_drawings(towers, drawings), *of_flux_mini(towers, drawings.names)):
        typer.echo(f"| {line.task} | {line.n:,} | {line.first:.1%} | {line.five:.1%} |")


if __name__ == "__main__":
    app()
