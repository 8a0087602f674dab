"""Feature networks at work: loading them, and the metrics of torchmetrics that look through them.

Pictures stay floats from 0 to 1 all the way. What torchmetrics and transformers would do with them is told to leave
them so: the processors of transformers divide by 255 once more and resize in 8 bits, and torchmetrics cuts off the end
mark of long prompts. Resizing is bicubic with antialiasing, in floats. Only Inception is given pictures rounded to 8
bits, because that is what it is defined on. This module does not know where weights come from.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Any

import torch
from torch import nn

from schedsearch.errors import ModelNotFoundError
from schedsearch.evaluate._nets import Net
from schedsearch.evaluate._weights import quiet


def clip_score(net: Net, images: torch.Tensor, prompts: Sequence[str], device: str) -> torch.Tensor:
    """Return torchmetrics' CLIP score of every picture and its prompt, `(n,)`.

    Args:
        net: a CLIP model.
        images: `(n, 3, h, w)`, floats in [0, 1].
        prompts: `n` texts; those too long are cut, with the end mark kept.
        device: where the network runs.
    """
    metric = _clip_metric(net, device)
    scores = []
    # One by one: torchmetrics keeps a sum only, and takes the mean of a batch before it cuts off what is negative.
    for image, prompt in zip(images.detach().float().to(device), prompts, strict=True):
        metric.reset()
        metric.update(image[None], [prompt])
        scores.append(metric.compute().cpu())
    return torch.stack(scores) if scores else torch.zeros(0)


def perceptual_distance(net: Net, outputs: torch.Tensor, reference: torch.Tensor, device: str) -> torch.Tensor:
    """Return torchmetrics' LPIPS of every pair of pictures `(n, 3, h, w)` in [0, 1], `(n,)`."""
    metric = _lpips_metric(net, device)
    scores = []
    for image, other in zip(outputs.detach().float(), reference.detach().float(), strict=True):
        metric.reset()
        metric.update(image[None].clamp(0.0, 1.0).to(device), other[None].clamp(0.0, 1.0).to(device))
        scores.append(metric.compute().cpu())
    return torch.stack(scores) if scores else torch.zeros(0)


def image_reward(net: Net, images: torch.Tensor, prompts: Sequence[str], device: str) -> torch.Tensor:
    """Return ImageReward's score of every picture and its prompt, `(n,)`; it reads pictures of 8 bits."""
    model = _reward_model(net, device)
    with torch.no_grad():
        scores = [float(model.score(prompt, _pil(image))) for image, prompt in zip(images, prompts, strict=True)]
    return torch.tensor(scores)


def feature_module(net: Net, device: str) -> nn.Module:
    """Return the network as torchmetrics' ``feature``: pictures `(n, 3, h, w)` in [0, 1] to `(n, num_features)`.

    Of a CLIP model these are the projected image embeddings, not scaled to unit length.
    """
    return _features(net, device)


@cache
def _features(net: Net, device: str) -> nn.Module:
    made = _InceptionFeatures(net) if net.kind == "inception" else _ClipFeatures(_clip(net, device))
    return made.to(device).eval()


@cache
def _clip_metric(net: Net, device: str) -> Any:
    from torchmetrics.multimodal import CLIPScore

    adapted: Any = _clip(net, device)  # stands in for a CLIPModel, as its processor does for a CLIPProcessor
    return CLIPScore(model_name_or_path=lambda: (adapted, adapted.processor)).to(device)


@cache
def _clip(net: Net, device: str) -> _Clip:
    from transformers import AutoTokenizer, CLIPModel
    from transformers import CLIPImageProcessorPil as ImageProcessor

    try:
        with quiet():
            model: Any = CLIPModel.from_pretrained(net.where, local_files_only=True, dtype=torch.float32)
            words = AutoTokenizer.from_pretrained(net.where, local_files_only=True)
            pixels = ImageProcessor.from_pretrained(net.where, local_files_only=True)
    except Exception as error:
        raise _unloadable(net, error) from error
    return _Clip(model.to(device).eval().requires_grad_(requires_grad=False), _Processor(words, pixels, model.config))


@cache
def _lpips_metric(net: Net, device: str) -> Any:
    from torchmetrics.image import LearnedPerceptualImagePatchSimilarity

    try:
        with quiet():
            metric = LearnedPerceptualImagePatchSimilarity(net_type=net.name, normalize=True)  # type: ignore[arg-type]
    except Exception as error:
        raise _unloadable(net, error) from error
    return metric.to(device)


@cache
def _reward_model(net: Net, device: str) -> Any:
    try:
        with quiet():
            import ImageReward

            return ImageReward.load(
                str(net.where / "ImageReward.pt"), device=device, med_config=str(net.where / "med_config.json")
            )
    except Exception as error:
        raise _unloadable(net, error) from error


def _unloadable(net: Net, error: Exception) -> ModelNotFoundError:
    text = " ".join(str(error).split())[:300]
    return ModelNotFoundError(
        f"{net.where}: found files that cannot be loaded as {net.name} ({type(error).__name__}: {text}), expected a "
        f"network of kind {net.kind}. Fetch it again, or take another metric."
    )


class _Processor:
    """Stands in for a ``CLIPProcessor`` in torchmetrics: floats stay floats, and long prompts keep their end mark."""

    def __init__(self, words: Any, pixels: Any, config: Any) -> None:
        self._words = words
        self._pixels = pixels
        self._side = int(config.vision_config.image_size)
        self._length = int(config.text_config.max_position_embeddings)

    def __call__(
        self,
        *,
        text: list[str] | None = None,
        images: list[torch.Tensor] | None = None,
        return_tensors: str = "pt",
        padding: bool = True,
    ) -> Any:
        if text is not None:
            return self._words(
                text, return_tensors=return_tensors, padding=padding, truncation=True, max_length=self._length
            )
        return self._pixels(
            [fitted(image, self._side) for image in images or ()], return_tensors=return_tensors, do_resize=False,
            do_center_crop=False, do_rescale=False, do_convert_rgb=False,
        )  # fmt: skip


def fitted(image: torch.Tensor, side: int) -> torch.Tensor:
    """Return ``image`` `(3, h, w)` scaled so that its shorter edge is ``side`` pixels, and the square in its middle."""
    height, width = image.shape[-2:]
    if min(height, width) != side:
        scale = side / min(height, width)
        size = (max(side, round(height * scale)), max(side, round(width * scale)))
        image = nn.functional.interpolate(image[None], size=size, mode="bicubic", antialias=True)[0]
    top, left = (image.shape[-2] - side) // 2, (image.shape[-1] - side) // 2
    return image[:, top : top + side, left : left + side].clamp(0.0, 1.0)


class _Clip(nn.Module):
    """Stands in for a ``CLIPModel`` in torchmetrics, which expects tensors where transformers 5 returns records.

    The features of a prompt are kept: a search scores the same prompts again and again.
    """

    def __init__(self, model: Any, processor: _Processor) -> None:
        super().__init__()
        self.model = model
        self.processor = processor
        self.config = model.config
        self._texts: dict[tuple[int, ...], torch.Tensor] = {}

    def get_image_features(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """Return the projected embeddings `(n, d)`, not of unit length."""
        with torch.no_grad():
            return _tensor(self.model.get_image_features(pixel_values=pixel_values.to(self.model.dtype)))

    def get_text_features(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        """Return the projected embeddings `(n, d)`, not of unit length."""
        key = tuple(input_ids.flatten().tolist())
        if key not in self._texts:
            with torch.no_grad():
                found = self.model.get_text_features(input_ids=input_ids, attention_mask=attention_mask)
            self._texts[key] = _tensor(found)
        return self._texts[key]


def _tensor(features: Any) -> torch.Tensor:
    """What transformers 5 returns is a record, what earlier releases returned is its ``pooler_output``."""
    found: torch.Tensor = features if isinstance(features, torch.Tensor) else features.pooler_output
    return found


class _Features(nn.Module):
    """A network as torchmetrics' ``feature``; two metrics that look at the same pictures share one pass."""

    num_features: int

    def __init__(self) -> None:
        super().__init__()
        self._last: list[tuple[torch.Tensor, torch.Tensor]] = []

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Return features `(n, num_features)` in double precision of ``images`` `(n, 3, h, w)` in [0, 1]."""
        for known, features in self._last:
            if known is images:
                return features
        with torch.no_grad():
            features = self.extracted(images).double()
        # A batch and the full run's: metrics look at the two in turn.
        self._last = [*self._last[-1:], (images, features)]
        return features

    def extracted(self, images: torch.Tensor) -> torch.Tensor:
        """Return features `(n, num_features)`."""
        raise NotImplementedError


class _ClipFeatures(_Features):
    def __init__(self, clip: _Clip) -> None:
        super().__init__()
        self.clip = clip
        self.num_features = int(clip.config.projection_dim)

    def extracted(self, images: torch.Tensor) -> torch.Tensor:
        pixels = self.clip.processor(images=list(images.float().cpu()))["pixel_values"]
        return self.clip.get_image_features(pixels.to(next(self.clip.parameters()).device))


class _InceptionFeatures(_Features):
    """Inception v3 as the published FID has it, of pictures rounded to 8 bits (torchmetrics would cut them off)."""

    num_features = 2048

    def __init__(self, net: Net) -> None:
        super().__init__()
        from torchmetrics.image.fid import NoTrainInceptionV3

        try:
            with quiet():
                self.inception = NoTrainInceptionV3(
                    name="inception-v3-compat", features_list=["2048"], feature_extractor_weights_path=str(net.where)
                )
        except Exception as error:
            raise _unloadable(net, error) from error

    def extracted(self, images: torch.Tensor) -> torch.Tensor:
        rounded = images.clamp(0.0, 1.0).mul(255.0).round().to(torch.uint8)
        found: torch.Tensor = self.inception(rounded.to(next(self.inception.parameters()).device))
        return found


def _pil(image: torch.Tensor) -> Any:
    from PIL import Image

    rounded = image.detach().float().clamp(0.0, 1.0).mul(255.0).round().to(torch.uint8)
    return Image.fromarray(rounded.permute(1, 2, 0).cpu().numpy())
