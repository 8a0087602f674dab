"""Other libraries really run, on a tiny FLUX of random weights; and leave nothing behind."""

from __future__ import annotations

import logging

import pytest
import torch

from schedsearch.bench._peers import Host, Setting, fresh, muted, peers
from schedsearch.bench._peers._cache_dit import CACHE_DIT
from schedsearch.bench._peers._diffusers import DIFFUSERS, DiffusersCache, others, worded
from schedsearch.errors import EvaluationError
from schedsearch.testing import random_flux

STEPS = 8
UNREADY = {
    "diffusers-seacache": "computes all: FLUX's pipelines do not tell it the step",
    "diffusers-textkv": "for another model",
}
"""Peers that do nothing here, and why; should one of them begin to work, this test is where it shows."""


@pytest.fixture(scope="module")
def pipe():
    return random_flux()


def drawn(pipe):
    """Final latents of one run."""
    texts = torch.Generator().manual_seed(1)
    return pipe(
        prompt_embeds=torch.randn(1, 4, 32, generator=texts),
        pooled_prompt_embeds=torch.randn(1, 32, generator=texts),
        height=16,
        width=16,
        num_inference_steps=STEPS,
        output_type="latent",
        generator=torch.Generator().manual_seed(2),
        return_dict=False,
    )[0]


@pytest.fixture(scope="module")
def plain(pipe):
    return drawn(pipe)


@pytest.fixture(scope="module")
def host(pipe):
    return Host(steps=STEPS, branches=1, dtype=torch.float32, fresh=lambda: fresh(pipe), draw=drawn)


def blocks_run(pipe):
    """Counts runs of linear layers, and gives a function that tells how many there were."""
    runs = []
    for layer in pipe.transformer.modules():
        if isinstance(layer, torch.nn.Linear):
            layer.register_forward_hook(lambda *_: runs.append(1))
    return lambda: len(runs)


@pytest.mark.filterwarnings("ignore")  # what other libraries warn of is theirs
@pytest.mark.parametrize("name", [*DIFFUSERS, *CACHE_DIT])
def test_a_peer_runs_changes_something_and_leaves_nothing_behind(name, pipe, plain, host):
    peer = {**DIFFUSERS, **CACHE_DIT}[name]
    kind, called = type(pipe), type(pipe).__call__
    assert peer.why_not(host) == ""
    settings = peer.settings(host)
    assert len({setting.words for setting in settings}) == len(settings) >= 1
    own, changes = fresh(pipe), []
    for setting in settings[:3]:
        with muted():
            peer.enable(own, setting, host)
            changed = not torch.equal(drawn(own), plain)
            peer.disable(own)
        changes.append(changed)
        assert torch.equal(drawn(own), plain), "the plain run is not what it was before"
    assert any(changes) == (name not in UNREADY)
    assert type(pipe) is kind
    assert kind.__call__ is called
    assert torch.equal(drawn(pipe), plain)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", ["diffusers-fbc", "diffusers-taylorseer-lite", "cachedit-scm", "cachedit-dbcache"])
def test_what_is_saved_is_work(name, pipe, host):
    peer = peers()[name]
    own = fresh(pipe)
    run = blocks_run(own)
    drawn(own)
    full = run()
    setting = max(peer.settings(host), key=lambda each: each.values.get("threshold", 0.0))
    with muted():
        peer.enable(own, setting, host)
        drawn(own)
        peer.disable(own)
    assert run() - full < full


@pytest.mark.filterwarnings("ignore")
def test_a_second_run_begins_anew(pipe, host):
    """State that survived from one picture to the next would make numbers depend on the order of prompts."""
    for name in ("diffusers-fbc", "diffusers-magcache", "diffusers-pab", "cachedit-taylorseer"):
        peer = peers()[name]
        with peer.applied(peer.settings(host)[0], host) as own, muted():
            first, second = drawn(own), drawn(own)
        assert torch.equal(first, second), name


def test_a_pipeline_of_ones_own_shares_weights_and_nothing_else(pipe, plain):
    own = fresh(pipe)
    ours, theirs = dict(own.transformer.named_parameters()), dict(pipe.transformer.named_parameters())
    assert all(ours[name] is theirs[name] for name in theirs)
    assert own.transformer is not pipe.transformer
    assert own.scheduler is not pipe.scheduler
    assert own.vae is pipe.vae
    own.transformer.transformer_blocks[0].forward = None
    assert torch.equal(drawn(pipe), plain)


def test_magcache_is_calibrated_on_this_model(host):
    peer = DIFFUSERS["diffusers-magcache"]
    ratios = peer.calibrated(host)
    assert len(ratios) == STEPS
    assert ratios[0] == 1.0
    assert all(0.1 < ratio < 10.0 for ratio in ratios)
    assert peer.settings(host)[0].values["mag_ratios"] == ratios
    silent = Host(steps=STEPS, branches=1, dtype=torch.float32, fresh=host.fresh, draw=lambda pipe: None)
    with pytest.raises(
        EvaluationError, match="MagCache: found 0 ratios in what its calibration mode printed, expected 8"
    ):
        peer.calibrated(silent)


def test_a_cache_that_this_diffusers_lacks_is_told_by_name(host):
    import diffusers

    peer = DiffusersCache("x", "NoSuchCacheConfig", lambda _: iter(()))
    assert peer.why_not(host) == f"diffusers {diffusers.__version__} has no NoSuchCacheConfig"


def test_a_model_without_caches_is_told_by_name(pipe, host):
    class Bare:
        transformer = torch.nn.Linear(1, 1)

    bare = Host(steps=STEPS, branches=1, dtype=torch.float32, fresh=Bare, draw=host.draw)
    assert "Linear of diffusers" in DIFFUSERS["diffusers-fbc"].why_not(bare)
    assert "has no enable_cache" in DIFFUSERS["diffusers-fbc"].why_not(bare)


def test_every_cache_of_the_installed_diffusers_has_a_family():
    import diffusers

    named = {name for name in dir(diffusers) if name.endswith(("CacheConfig", "BroadcastConfig"))}
    covered = {peer.config for peer in (*DIFFUSERS.values(), *others().values()) if isinstance(peer, DiffusersCache)}
    assert named <= covered
    assert {"FirstBlockCacheConfig", "TaylorSeerCacheConfig", "MagCacheConfig"} <= named


def test_an_uninstalled_library_says_how_to_get_it(monkeypatch, host):
    monkeypatch.setattr("importlib.util.find_spec", lambda _name: None)
    assert CACHE_DIT["cachedit-scm"].why_not(host) == "cache-dit is not installed: pip install 'schedsearch[peers]'"


def test_options_become_words():
    assert worded({"a_b": 3, "dtype": torch.float32, "lite": True, "off": False}) == "a b 3, lite"
    assert worded({}) == "defaults"


def test_libraries_are_heard_and_not_seen(capsys):
    logger = logging.getLogger("diffusers.hooks.mag_cache")
    logger.addHandler(logging.StreamHandler())
    with muted() as heard:
        logger.info("so it goes")
        logger.warning("careful\n  now")
        logger.warning("careful now")
    assert heard == ["careful now"]
    assert capsys.readouterr() == ("", "")
    assert logger.handlers.pop() is not None


def test_a_compiled_pipeline_is_kept(pipe, plain, host):
    """Compiling is lazy, so nothing is compiled here."""
    peer = peers()["compiled"]
    settings = peer.settings(host)
    assert [setting.words for setting in settings] == ["repeated blocks", "whole denoiser"]
    with peer.applied(settings[1], host) as first:
        pass
    with peer.applied(settings[1], host) as second:
        assert second is first
    with peer.applied(settings[0], host) as other:
        assert other is not first
    assert Setting(words="x").values == {}
    assert torch.equal(drawn(pipe), plain)
