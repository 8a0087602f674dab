"""The examples in the help texts, as data: tests run them, and the documentation takes them from here.

Knows nothing of what the verbs do.
"""

from __future__ import annotations

from collections.abc import Mapping

EXAMPLES: Mapping[str, tuple[str, ...]] = {
    "optimize": (
        "schedsearch optimize --model flux-mini --budget 4x",
        "schedsearch optimize --model flux --budget 4x --device cuda --dtype bfloat16 --minutes 60 --watch 8000",
        "schedsearch optimize --model flux-mini --budget 4x --metric psnr,clip",
        "schedsearch optimize --model flux-mini --budget 60%macs --search ecad --space space.yaml --out runs/mine",
    ),
    "generate": (
        'schedsearch generate --model flux-mini "red apple, blue background"',
        'schedsearch generate --model flux-mini --schedule frontier --budget 4x "red apple, blue background"',
    ),
    "show": (
        "schedsearch show plan.json",
        "schedsearch show frontier --csv > frontier.tsv",
        "schedsearch show frontier --json",
    ),
    "validate": (
        "schedsearch validate plan.json frontier",
        "schedsearch validate --json plan.json",
    ),
    "models": (
        "schedsearch models",
        "schedsearch models --json",
    ),
    "metrics": (
        "schedsearch metrics --model flux-mini",
        "schedsearch metrics --json",
    ),
    "evaluate": (
        "schedsearch evaluate plan.json --model flux-mini --at 96x96,batch=4 --at steps=14",
        "schedsearch evaluate frontier --model flux-mini --prompts 8 --json",
    ),
    "compare": (
        "schedsearch compare --frontier frontier --prompts 16",
        "schedsearch compare --model flux-mini --schedule plan.json --only compiled,euler,diffusers,cachedit --json",
    ),
    "correct": ("schedsearch correct plan.json --model flux-mini --layers constant --out corrected.json",),
    "profile": (
        "schedsearch profile --model flux --random-weights --device cuda --dtype bfloat16 --formats int8,fp8_e4m3",
        "schedsearch profile --model flux-mini --no-compiled --schedule plan.json",
    ),
    "sensitivity": (
        "schedsearch sensitivity --model flux-mini",
        "schedsearch sensitivity --model flux-mini --formats int8,int4 --bits 8,4 --carrier plan.json --json",
    ),
    "calibrate": (
        "schedsearch calibrate --model flux-mini --precision int4/int8 --protect --out low-bit.json",
        "schedsearch calibrate --model flux-mini --schedule plan.json --policy all",
    ),
    "report": ("schedsearch report runs/flux-mini-4x --png",),
    "bench search": ("schedsearch bench search --model flux-mini --only auto,random --seeds 1",),
    "bench ablation": ("schedsearch bench ablation --model flux-mini --only joint,steps",),
    "bench speeds": ("schedsearch bench speeds --frontier frontier --json",),
    "bench cachequant": ("schedsearch bench cachequant --only W8A8 --computed 14,7",),
}
"""Per verb, command lines that work as written where the files ``plan.json``, ``space.yaml`` and ``frontier`` are."""


def epilog(verb: str) -> str:
    """Return the end of a verb's help: its examples, one per line."""
    lines = [f"  {line}".replace("[", r"\[") for line in EXAMPLES[verb]]
    # The empty line in front keeps the indentation: the help's first line says how much of it is taken away.
    return "\n".join(["", "Examples:", *lines])
