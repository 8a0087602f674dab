"""Metrics through a feature network against formulas in double precision, and what they say where it is missing."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
import torch
from scipy import linalg

from schedsearch.errors import ModelNotFoundError, UsageError
from schedsearch.evaluate import METRICS, Pictures, Scoring, described, find_metric, find_metrics, metrics_at_hand
from schedsearch.evaluate import _nets as nets
from schedsearch.evaluate._net_models import feature_module, fitted
from schedsearch.evaluate._nets import INCEPTION_FILE, choose
from schedsearch.evaluate._set_scores import frechet, kernel
from schedsearch.protocols import Metric
from schedsearch_calibration import feature_net_path
from schedsearch_calibration.flux_mini import COLOURS

NET = "flux-mini-clip"
PROMPTS = ["red apple, blue background", "dog face, white background", "rocket, black background"]


class Mixed(torch.nn.Module):
    """Features that a formula can follow: four fixed linear readings of the pixels, in double precision."""

    num_features = 4

    def forward(self, images):
        columns = torch.randn(images[0].numel(), 4, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
        return images.double().flatten(1) @ columns


def pictures(n, seed=0, side=64):
    return torch.rand(n, 3, side, side, generator=torch.Generator().manual_seed(seed))


def drawn(n):
    """Discs on the backgrounds that flux-mini knows, which the bundled network has something to say of."""
    rows, columns = torch.meshgrid(torch.linspace(-1, 1, 64), torch.linspace(-1, 1, 64), indexing="ij")
    disc = (rows**2 + columns**2 < 0.5).float()
    shades = torch.tensor(list(COLOURS.values()))[torch.arange(n) % len(COLOURS), :, None, None] / 255
    return shades * (1 - disc) + torch.rand(n, 3, 1, 1, generator=torch.Generator().manual_seed(0)) * disc


def named(n):
    """A prompt for each, of the right background."""
    things = ("red apple", "dog face", "rocket", "pizza", "full moon", "basketball", "coin", "green apple")
    return [f"{things[i % 8]}, {list(COLOURS)[i % 8]} background" for i in range(n)]


def distance(score, real, fake, batches=((0, 10**6),)):
    whole = score.open(batches)
    for start, stop in batches:
        whole.add((start, stop), fake[start:stop], real[start:stop])
    return whole.value()


def frechet_by_scipy(x, y):
    """Dowson and Landau 1982: the distance of two Gaussians, with a matrix square root."""
    a, b = np.cov(x, rowvar=False), np.cov(y, rowvar=False)
    return np.sum((x.mean(0) - y.mean(0)) ** 2) + np.trace(a + b - 2 * linalg.sqrtm(a @ b).real)


def paired_kernel(x, y):
    """Gretton 2012, equation 4, with KID's kernel (x.y / d + 1) ** 3, term by term."""
    n, d = x.shape
    k = lambda u, v: (u @ v / d + 1.0) ** 3
    terms = [
        k(x[i], x[j]) + k(y[i], y[j]) - k(x[i], y[j]) - k(x[j], y[i]) for i in range(n) for j in range(n) if i != j
    ]
    return sum(terms) / (n * (n - 1))


def test_every_metric_at_hand_is_a_plug_in_with_its_network_in_its_name():
    found = metrics_at_hand(NET)

    assert all(isinstance(metric, Metric) for metric in found)
    names = [metric.name for metric in found]
    assert names[:3] == ["psnr", "ssim", "latent_error"]
    assert {f"clip[{NET}]", f"fid[{NET}]", f"kid[{NET}]"} <= set(names)
    assert {described(name).better for name in names} == {"min", "max"}


# ---- sets


def test_fid_is_the_distance_of_two_gaussians():
    x, y = pictures(40, side=8), 0.8 * pictures(40, 1, side=8) + 0.1
    features = [Mixed()(images).numpy() for images in (x, y)]

    assert distance(frechet(Mixed()), x, y) == pytest.approx(frechet_by_scipy(*features), rel=1e-9)


def test_kid_is_the_kernel_distance_without_a_pictures_own_pair():
    x = 0.05 * pictures(12, side=8)
    y = (x + 0.01 * pictures(12, 1, side=8)).clamp(0, 1)
    features = [Mixed()(images).numpy() for images in (x, y)]

    assert distance(kernel(Mixed()), x, y) == pytest.approx(paired_kernel(*features), rel=1e-9)


def test_kid_has_no_bias_on_few_pictures_and_fid_has():
    """Two sets of one distribution, pairs half in common: the mean of many small estimates is 0 for one of them."""
    kids, fids = [], []
    for seed in range(60):
        common, mine, its = (0.02 * pictures(8, 100 * seed + i, side=8) for i in range(3))
        kids.append(distance(kernel(Mixed()), common + mine, common + its))
        fids.append(distance(frechet(Mixed()), common + mine, common + its))

    assert abs(np.mean(kids)) < 3 * np.std(kids) / np.sqrt(len(kids))
    assert np.mean(fids) > 3 * np.std(fids) / np.sqrt(len(fids))


@pytest.mark.parametrize("make", [frechet, kernel])
def test_a_set_is_at_no_distance_from_itself(make):
    x = pictures(9, side=8)

    assert distance(make(Mixed()), x, x) == pytest.approx(0.0, abs=1e-6)


def test_fid_is_not_below_zero_where_features_outnumber_pictures():
    x = pictures(6)

    assert 0.0 <= find_metric("fid", weights=NET)(x, x)[0] < 1e-3


@pytest.mark.parametrize("make", [frechet, kernel])
def test_a_set_is_the_same_in_any_batches_and_in_any_order(make):
    x, y = pictures(12, side=8), pictures(12, 1, side=8)
    order = torch.randperm(12, generator=torch.Generator().manual_seed(0))
    whole = distance(make(Mixed()), x, y)

    assert distance(make(Mixed()), x, y, [(0, 5), (5, 10), (10, 12)]) == pytest.approx(whole, rel=1e-9)
    assert distance(make(Mixed()), x[order], y[order]) == pytest.approx(whole, rel=1e-9)


@pytest.mark.parametrize("make", [frechet, kernel])
def test_one_score_serves_many_sets_and_looks_at_the_reference_once(make):
    seen = []

    class Counting(Mixed):
        def forward(self, images):
            seen.append(len(images))
            return super().forward(images)

    x, y, z = (pictures(6, seed, side=8) for seed in range(3))
    score = make(Counting())
    first, second, again = (distance(score, x, other) for other in (y, z, y))

    assert first == again != second
    assert second == pytest.approx(distance(make(Mixed()), x, z), rel=1e-9)
    assert seen == [6] * 4  # the reference once, and three sets


def test_a_single_picture_is_no_set():
    assert np.isnan(distance(frechet(Mixed()), pictures(1), pictures(1, 1)))


def test_the_global_generator_is_left_alone():
    before = torch.get_rng_state()
    distance(kernel(Mixed()), pictures(4, side=8), pictures(4, 1, side=8))

    assert torch.equal(torch.get_rng_state(), before)


def test_float_pictures_are_not_rounded_to_eight_bits_on_the_way():
    x = pictures(4)
    y = (x + 0.001).clamp(0, 1)  # a quarter of a step of 8 bits

    fid = find_metric("fid", weights=NET)(y, x)[0]
    assert 0.0 < fid < find_metric("fid", weights=NET)((x + 0.02).clamp(0, 1), x)[0]
    seen, clip = drawn(1), find_metric("clip", weights=NET)
    assert 0.0 < clip((seen + 0.001).clamp(0, 1), named(1))[0] != clip(seen, named(1))[0] > 0.0


# ---- pictures and prompts


@pytest.fixture(scope="module")
def double():
    """The bundled model in double precision, called without torchmetrics and without a processor of pictures."""
    from transformers import AutoTokenizer, CLIPModel

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = CLIPModel.from_pretrained(feature_net_path(NET), dtype=torch.float64).eval()
        words = AutoTokenizer.from_pretrained(feature_net_path(NET))

    @torch.no_grad()
    def scores(images, prompts):
        seen = model.get_image_features(pixel_values=2.0 * images.double() - 1.0).pooler_output
        ids = words(prompts, padding=True, truncation=True, max_length=16, return_tensors="pt")
        read = model.get_text_features(input_ids=ids.input_ids, attention_mask=ids.attention_mask).pooler_output
        return (100.0 * torch.nn.functional.cosine_similarity(seen, read)).clamp(min=0.0).tolist()

    return scores


def test_clip_score_is_a_hundred_cosines_and_none_below_zero(double):
    images, prompts = drawn(24), named(24)
    expected = double(images, prompts)
    assert 3 < expected.count(0.0) < 12  # some disagree, most do not

    found = find_metric("clip", weights=NET)(images, prompts)
    assert found == pytest.approx(expected, abs=1e-3)


def test_a_negative_cosine_counts_as_nothing_for_its_own_picture():
    """torchmetrics cuts off the mean of a batch; here every picture has its own number."""
    from schedsearch.evaluate._net_models import _clip

    net = choose("clip", NET)
    metric, model = find_metric("clip", weights=NET), _clip(net, "cpu")
    images = pictures(2)
    # A prompt that the picture contradicts: its features, turned round.
    key = tuple(model.processor(text=PROMPTS[:1])["input_ids"].flatten().tolist())
    pixels = model.processor(images=list(images[:1]))["pixel_values"]
    kept = model._texts.get(key)
    model._texts[key] = -model.get_image_features(pixels)
    try:
        assert metric(images[:1], PROMPTS[:1]) == (0.0,)
    finally:
        model._texts.pop(key) if kept is None else model._texts.update({key: kept})


def test_clip_score_does_not_depend_on_batch_or_order():
    metric = find_metric("clip", weights=NET)
    images, prompts = drawn(5), named(5)
    whole = metric(images, prompts)

    assert len(set(whole)) == 5
    assert [metric(images[i : i + 1], prompts[i : i + 1])[0] for i in range(5)] == pytest.approx(whole, rel=1e-5)
    assert metric(images.flip(0), prompts[::-1]) == pytest.approx(whole[::-1], rel=1e-5)


def test_a_long_prompt_is_cut_with_its_end_mark_kept_and_without_a_warning(double):
    long = "red apple, white background " + " ".join(["red apple"] * 20)
    (expected,) = double(drawn(1), [long])

    assert expected > 0.0
    assert find_metric("clip", weights=NET)(drawn(1), [long]) == pytest.approx((expected,), abs=1e-3)


@pytest.mark.parametrize(("height", "width"), [(64, 64), (96, 64), (32, 48), (128, 128)])
def test_pictures_of_any_size_are_fitted_in_floats(height, width):
    found = fitted(torch.full((3, height, width), 0.3), 64)

    assert found.shape == (3, 64, 64)
    assert found.dtype == torch.float32
    assert torch.allclose(found, torch.tensor(0.3), atol=1e-6)


def test_pictures_of_the_right_size_are_left_as_they_are():
    image = pictures(1)[0]

    assert torch.equal(fitted(image, 64), image)


# ---- what is refused


@pytest.mark.parametrize("name", ["psnr", "ssim", "clip", "fid", "kid"])
def test_pictures_on_the_scale_of_eight_bits_are_refused(name):
    metric = find_metric(name, weights=NET)
    floats, whole = 255.0 * pictures(2), (255 * pictures(2)).to(torch.uint8)
    other = PROMPTS[:2] if metric.needs == "prompt" else pictures(2)

    with pytest.raises(UsageError, match=r"found values up to 25\d.*, expected 0 to 1. Divide by 255"):
        metric(floats, other)
    with pytest.raises(UsageError, match=r"found images of torch.uint8, expected floats from 0 to 1"):
        metric(whole, other)


@pytest.mark.parametrize("prompts", [PROMPTS[:1], "red apple", torch.zeros(2)])
def test_every_picture_needs_its_prompt(prompts):
    with pytest.raises(UsageError, match=r"metric clip\[flux-mini-clip\]: found .* for 2 images, expected one prompt"):
        find_metric("clip", weights=NET)(pictures(2), prompts)


def test_an_entry_without_its_network_says_so():
    with pytest.raises(UsageError, match="metric clip: found no feature network, expected one"):
        METRICS["clip"](pictures(1), PROMPTS[:1])
    with pytest.raises(UsageError, match="metric psnr: found a metric of single pictures, expected one of sets"):
        METRICS["psnr"].set_score()


# ---- which network, and where


def test_the_card_decides_unless_the_user_does(tmp_path):
    (tmp_path / "mine").symlink_to(feature_net_path(NET))

    assert find_metric("kid", weights=NET).name == f"kid[{NET}]"
    assert find_metric(f"kid[{NET}]").name == f"kid[{NET}]"
    assert find_metric(f"clip[{tmp_path / 'mine'}]", weights=NET).name == "clip[mine]"
    assert find_metric("fid", "converged", weights=NET).name == f"converged_fid[{NET}]"
    assert find_metric("clip", "converged", weights=NET).name == f"clip[{NET}]"


def test_several_metrics_are_separated_by_commas_and_stand_there_once():
    assert [m.name for m in find_metrics("psnr, clip", weights=NET)] == ["psnr", f"clip[{NET}]"]
    with pytest.raises(UsageError, match="found psnr twice in 'psnr,ssim,psnr'"):
        find_metrics("psnr,ssim,psnr")


@pytest.fixture
def empty_machine(tmp_path, monkeypatch):
    """No weights in any cache."""
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "torch"))
    monkeypatch.setenv("HOME", str(tmp_path))
    return tmp_path


@pytest.mark.parametrize(
    ("name", "where", "what_to_do"),
    [
        ("clip", "hub/models--openai--clip-vit-large-patch14", "hf download openai/clip-vit-large-patch14"),
        ("kid[clip-vit-base-patch16]", "hub/models--openai--clip-vit-base-patch16", "hf download openai/"),
        ("fid", f"torch/checkpoints/{INCEPTION_FILE}", "curl -L --create-dirs -o"),
        ("lpips", "torch/checkpoints/alexnet-owt-7be5be79.pth", "curl -L --create-dirs -o"),
        ("image_reward", ".cache/ImageReward", "hf download THUDM/ImageReward"),
    ],
)
def test_missing_weights_are_named_with_the_command_that_gets_them(empty_machine, monkeypatch, name, where, what_to_do):
    monkeypatch.setattr(nets, "find_spec", lambda _package: True)
    with pytest.raises(ModelNotFoundError) as caught:
        find_metric(name)

    text = str(caught.value)
    assert text.startswith(f"metric {name.partition('[')[0]}[")
    assert "nothing is downloaded unasked" in text
    assert f"Looked at {empty_machine / where}: found no" in text
    assert ", expected " in text
    assert what_to_do in text


@pytest.mark.parametrize(
    ("name", "package"), [("fid", "torch_fidelity"), ("lpips[vgg]", "torchvision"), ("image_reward", "ImageReward")]
)
def test_missing_packages_are_named_with_the_command_that_gets_them(monkeypatch, name, package):
    monkeypatch.setattr(nets, "find_spec", lambda _package: None)
    with pytest.raises(
        ModelNotFoundError, match=rf"found no package {package}, which holds .* Run `pip install 'sched"
    ):
        find_metric(name)


def test_what_is_missing_is_left_out_of_what_is_at_hand(empty_machine, monkeypatch):
    monkeypatch.setattr(nets, "find_spec", lambda _package: None)

    assert [metric.name for metric in metrics_at_hand()] == ["psnr", "ssim", "latent_error"]


def test_an_installation_that_lost_its_network_still_has_the_metrics_without_one(empty_machine, tmp_path, monkeypatch):
    monkeypatch.setattr("schedsearch_calibration._MODELS", tmp_path)
    monkeypatch.setattr(nets, "find_spec", lambda _package: None)

    with pytest.raises(ModelNotFoundError, match=rf"metric clip\[{NET}\]: .* found '{NET}', .* Reinstall schedsearch"):
        find_metric("clip", weights=NET)
    assert [metric.name for metric in metrics_at_hand(NET)] == ["psnr", "ssim", "latent_error"]


def test_a_half_copied_folder_is_told_apart(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(
        ModelNotFoundError, match=r"found no tokenizer_config.json, no model.safetensors or pytorch_mod"
    ):
        find_metric(f"clip[{tmp_path}]")


def test_files_that_are_no_model_are_one_error(tmp_path):
    for file in ("config.json", "tokenizer_config.json", "model.safetensors", "preprocessor_config.json"):
        (tmp_path / file).write_text("{}")
    with pytest.raises(
        ModelNotFoundError, match=r"found files that cannot be loaded as .* of kind clip. Fetch it again"
    ):
        find_metric(f"clip[{tmp_path}]")(pictures(1), PROMPTS[:1])


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("clip[nonesuch]", "feature network: found 'nonesuch', expected one of flux-mini-clip, clip-vit"),
        ("clip[alex]", r"metric clip\[alex\]: found a network of kind lpips, expected one of flux-mini-clip"),
        ("lpips[flux-mini-clip]", r"found a network of kind clip, expected one of alex, vgg, squeeze"),
        ("psnr[alex]", "expected psnr alone: it has no feature network"),
        ("clip[", r"metric: found 'clip\[', expected one of psnr"),
    ],
)
def test_a_network_that_cannot_serve_is_refused(name, says):
    with pytest.raises(UsageError, match=says):
        find_metric(name)


# ---- together


def test_a_tally_has_a_number_per_picture_and_a_number_per_set():
    metrics = find_metrics("psnr,clip,kid", weights=NET)
    x, y = pictures(3), pictures(3, 1)
    runs = [Pictures(latents=torch.ones(3, 1, 1), images=images) for images in (x, y, 0.5 * x + 0.5 * y)]
    tally = Scoring(metrics, ("default", "converged"), PROMPTS).tally([(0, 3)])
    tally.add((0, 3), runs[0], {"default": runs[1], "converged": runs[2]})

    assert {name: len(values) for name, values in tally.samples.items()} == {
        "psnr": 3, f"clip[{NET}]": 3, "converged_psnr": 3,
    }  # fmt: skip
    assert list(tally.sets()) == [f"kid[{NET}]", f"converged_kid[{NET}]"]
    assert tally.means()["psnr"] == pytest.approx(sum(tally.samples["psnr"]) / 3)
    assert tally.sets()[f"kid[{NET}]"] == pytest.approx(metrics[2](x, y)[0], rel=1e-6)


def test_two_metrics_of_sets_share_a_pass_through_the_network(monkeypatch):
    module = feature_module(choose("fid", NET), "cpu")
    passes = []
    extracted = type(module).extracted
    monkeypatch.setattr(type(module), "extracted", lambda self, images: passes.append(1) or extracted(self, images))
    tally = Scoring(find_metrics("fid,kid", weights=NET), ("default",), PROMPTS).tally([(0, 3)])
    runs = [Pictures(latents=torch.ones(3, 1, 1), images=pictures(3, seed)) for seed in (11, 12)]
    tally.add((0, 3), runs[0], {"default": runs[1]})

    assert len(passes) == 2
