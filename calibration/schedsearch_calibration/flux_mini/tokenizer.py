"""The tokenizer of both text encoders: one token per word of the training captions."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

LENGTH: Final = 16
"""Tokens of a prompt, end mark and padding included."""

SPECIAL: Final = ("<pad>", "</s>", "<unk>")
"""Padding, end of text, unknown word: ids 0, 1, 2."""


def vocabulary(texts: Iterable[str]) -> dict[str, int]:
    """Return word -> id: `SPECIAL` first, then the words of ``texts`` in lower case, sorted.

    >>> vocabulary(["Red apple", "apple, blue"])
    {'<pad>': 0, '</s>': 1, '<unk>': 2, 'apple': 3, 'blue': 4, 'red': 5}
    """
    words = {word for text in texts for word in re.findall(r"\w+", text.lower())}
    return {word: i for i, word in enumerate((*SPECIAL, *sorted(words)))}


def build(texts: Iterable[str]) -> PreTrainedTokenizerFast:
    """Return a tokenizer that knows the words of ``texts``, drops punctuation and ends a prompt with ``</s>``."""
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    pad, end, unknown = SPECIAL
    core = Tokenizer(models.WordLevel(vocabulary(texts), unk_token=unknown))
    core.normalizer = normalizers.Lowercase()
    core.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Punctuation(behavior="removed"), pre_tokenizers.Whitespace()]
    )
    core.post_processor = processors.TemplateProcessing(single=f"$A {end}", special_tokens=[(end, 1)])
    return PreTrainedTokenizerFast(
        tokenizer_object=core, pad_token=pad, eos_token=end, unk_token=unknown, model_max_length=LENGTH
    )
