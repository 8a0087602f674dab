"""Finding and loading models: named, local and hub ones, what is refused and why, and nothing left changed behind."""

from __future__ import annotations

import json
import logging
import shutil
import threading
import time
import warnings
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest
import torch

from schedsearch.errors import ModelNotFoundError, UsageError
from schedsearch.evaluate import ModelCard, _models, _weights, cards, find_card, load_pipeline
from schedsearch.evaluate._models import parse_device, parse_dtype
from schedsearch_calibration import flux_mini_path, prompt_set

FLUX_DEV = "black-forest-labs/FLUX.1-dev"


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """An empty Hugging Face cache."""
    from huggingface_hub import constants, file_download

    folder = tmp_path / "hub"
    folder.mkdir()
    for module in (constants, file_download):
        if hasattr(module, "HF_HUB_CACHE"):
            monkeypatch.setattr(module, "HF_HUB_CACHE", str(folder))
    return folder


@pytest.fixture
def copy(tmp_path):
    """A copy of flux-mini's folder to damage."""
    return Path(shutil.copytree(flux_mini_path(), tmp_path / "copied"))


def put_in_cache(cache: Path, repo: str, source: Path, *, weights: bool = True) -> Path:
    """Lay ``source`` into the cache as the hub's client would."""
    folder = cache / f"models--{repo.replace('/', '--')}"
    commit = "0123456789abcdef0123456789abcdef01234567"
    (folder / "refs").mkdir(parents=True)
    (folder / "refs" / "main").write_text(commit)
    ignore = None if weights else shutil.ignore_patterns("*.safetensors")
    return Path(shutil.copytree(source, folder / "snapshots" / commit, ignore=ignore))


def edit(path: Path, **changes: object) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text("utf-8")), **changes}), "utf-8")


# Cards


def test_flux_mini_has_the_card_of_its_folder():
    assert find_card("flux-mini") == ModelCard(
        name="flux-mini",
        family="flux",
        weights=str(flux_mini_path()),
        height=64,
        width=64,
        steps=28,
        guidance_scale=1.0,
        max_sequence_length=16,
        calibration="flux-mini-calibration",
        held_out="flux-mini-held-out",
        metric_weights="flux-mini-clip",
        licence="Apache-2.0",
    )


def test_flux_is_flux_dev_as_its_authors_run_it():
    card = find_card("flux")
    assert (card.weights, card.height, card.width, card.steps) == (FLUX_DEV, 1024, 1024, 28)
    assert (card.guidance_scale, card.max_sequence_length, card.true_cfg_scale) == (3.5, 512, 1.0)
    assert card.gated


def test_every_named_model_names_prompt_sets_that_exist():
    for card, _at_hand, _where in cards():
        assert set(prompt_set(card.calibration).prompts).isdisjoint(prompt_set(card.held_out).prompts)


def test_a_copied_folder_keeps_its_card(copy, monkeypatch):
    assert find_card(str(copy)) == replace(find_card("flux-mini"), weights=str(copy))
    monkeypatch.chdir(copy.parent)
    assert find_card("copied").weights == find_card("./copied").weights == str(copy)


def test_without_a_card_file_the_configuration_decides(copy):
    (copy / "schedsearch.yaml").unlink()
    card = find_card(str(copy))
    # 128 latent pixels at a quarter of the picture; no guidance, no shift: taken for a timestep-distilled model
    assert (card.name, card.height, card.steps, card.guidance_scale) == ("copied", 512, 4, 1.0)
    assert (card.max_sequence_length, card.calibration, card.held_out) == (
        256,
        "general-calibration",
        "general-held-out",
    )
    edit(copy / "transformer" / "config.json", guidance_embeds=True)
    edit(copy / "scheduler" / "scheduler_config.json", shift=3.0, use_dynamic_shifting=True)
    edit(copy / "vae" / "config.json", block_out_channels=[1, 2, 3, 4])
    card = find_card(str(copy))
    assert (card.height, card.width, card.steps, card.guidance_scale) == (1024, 1024, 28, 3.5)
    assert card.max_sequence_length == 512


def test_a_card_file_overrides_only_what_it_says(copy):
    (copy / "schedsearch.yaml").write_text("steps: 9\ntrue_cfg_scale: 2\n")
    card = find_card(str(copy))
    assert (card.steps, card.true_cfg_scale, card.height) == (9, 2.0, 512)


BOMB = "name: &a [x,x,x,x,x,x,x,x,x]\n" + "".join(
    f"a{i}: &{chr(97 + i)} [{','.join([f'*{chr(96 + i)}'] * 9)}]\n" for i in range(1, 8)
)
"""A few hundred bytes that would be millions of items."""


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("stps: 9", r"schedsearch.yaml: found the key 'stps', expected one of name, family"),
        ("steps: nine", r"schedsearch.yaml: steps: found 'nine', expected a whole number above 0\."),
        ("steps: 0", r"steps: found 0, expected a whole number"),
        ("steps: true", r"steps: found True, expected a whole number"),
        ("guidance_scale: .nan", r"guidance_scale: found nan, expected a number of at least 0"),
        ("gated: 1", r"gated: found 1, expected true or false"),
        ("name: 7", r"name: found 7, expected text"),
        ("height: 66", r"height: found 66, expected a multiple of 4"),
        ("weights: elsewhere", r"found the key weights, expected none"),
        ("- steps", r"schedsearch.yaml: found list, expected `key: value` lines"),
        ("steps: [", r"schedsearch.yaml line 1: found invalid YAML"),
        ("!!python/object/apply:os.getcwd []", r"schedsearch.yaml line 1: found invalid YAML"),
        (BOMB, r"schedsearch.yaml: a1\[0\]: found a YAML alias, expected the value itself"),
        ("name: 2001-99-99", r"schedsearch.yaml: name: found a value that cannot be read \(month must be in 1"),
        ("steps: " + "9" * 5000, r"schedsearch.yaml: steps: found a number of 5000 characters"),
        ("steps: " + "[" * 5000, r"schedsearch.yaml: found YAML nested too deeply"),
        ("steps: " + "x" * 5000, r"steps: found 'x{56}\.\.\., expected a whole number"),
        ("x" * 900 + ": 1", r"found the key 'x{56}\.\.\., expected one of"),
        ("# " + "x" * 300_000, r"schedsearch.yaml: found more than 262144 bytes"),
        ("name: caf\xe9", r"schedsearch.yaml: found bytes that are not UTF-8"),
    ],
)
def test_a_wrong_card_file_is_refused_with_key_and_reason(copy, text, message):
    (copy / "schedsearch.yaml").write_text(text, "latin-1")
    with pytest.raises(UsageError, match=message) as caught:
        find_card(str(copy))
    assert len(str(caught.value)) < 600


def test_another_kind_of_pipeline_is_refused_by_its_class(copy):
    edit(copy / "model_index.json", _class_name="StableDiffusionXLPipeline")
    with pytest.raises(UsageError, match=r"class 'StableDiffusionXLPipeline', expected FluxPipeline\."):
        find_card(str(copy))


def test_names_that_are_nothing_say_what_would_be(tmp_path, copy):
    with pytest.raises(ModelNotFoundError, match=r"found 'flux-mimi', expected one of .*Did you mean 'flux-mini'\?"):
        find_card("flux-mimi")
    with pytest.raises(ModelNotFoundError, match=r"found no model_index.json, expected a folder in diffusers layout"):
        find_card(str(copy / "transformer"))
    with pytest.raises(UsageError, match=r"found the file .*model_index.json, expected a folder"):
        find_card(str(copy / "model_index.json"))
    (copy / "vae" / "config.json").write_text("{")
    with pytest.raises(UsageError, match=r"vae.config.json: cannot be read as JSON"):
        find_card(str(copy))
    (copy / "vae" / "config.json").write_text("[" * 100_000)
    with pytest.raises(UsageError, match=r"vae.config.json: cannot be read as JSON \(nested too deeply\)"):
        find_card(str(copy))
    (copy / "vae" / "config.json").unlink()
    with pytest.raises(ModelNotFoundError, match=r"vae.config.json: no such file"):
        find_card(str(copy))


# What is at hand


def test_the_list_says_what_is_at_hand_and_where(cache):
    found = {card.name: (at_hand, where) for card, at_hand, where in cards()}
    assert found["flux-mini"] == (True, str(flux_mini_path()))
    assert found["flux"] == (False, str(cache / "models--black-forest-labs--FLUX.1-dev"))


def test_the_list_shows_flux_pipelines_of_the_cache_and_no_others(cache):
    snapshot = put_in_cache(cache, "someone/mine", flux_mini_path())
    put_in_cache(cache, "someone/config-only", flux_mini_path(), weights=False)
    edit(put_in_cache(cache, "someone/other", flux_mini_path()) / "model_index.json", _class_name="OtherPipeline")
    found = {card.name: (at_hand, where) for card, at_hand, where in cards()}
    assert found["someone/mine"] == (True, str(snapshot))
    assert found["someone/config-only"][0] is False
    assert "someone/other" not in found


def test_one_bad_entry_of_the_cache_does_not_hide_the_others(cache):
    def bad(name: str) -> Path:
        return put_in_cache(cache, f"bad/{name}", flux_mini_path(), weights=False)

    (bad("index") / "transformer" / "d.safetensors.index.json").write_text('{"weight_map": {"a": "d-1')
    (bad("map") / "vae" / "d.safetensors.index.json").write_text('{"weight_map": [1]}')
    (bad("shard") / "vae" / "d.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": "x" * 5000}}))
    (bad("card") / "schedsearch.yaml").write_text(BOMB)
    (bad("deep") / "vae" / "config.json").write_text("[" * 100_000)
    (bad("list") / "model_index.json").write_text("[]")
    (bad("ref").parents[1] / "refs" / "main").write_bytes(b"\xff\xfe")
    (cache / "models---a--b").mkdir()
    (cache / "models--a--b--c").mkdir()
    put_in_cache(cache, "someone/mine", flux_mini_path())
    found = {status.card.name: status for status in cards()}
    assert set(found) == {"flux", "flux-mini", "someone/mine", "bad/index", "bad/map", "bad/shard"}
    assert {name for name, status in found.items() if status.at_hand} == {"flux-mini", "someone/mine"}
    (snapshot,) = (cache / "models--bad--index" / "snapshots").iterdir()
    assert r"transformer/ (cannot be read: Unterminated string" in " ".join(_weights.missing_parts(snapshot))


@pytest.mark.parametrize(
    "name", ["foo--bar/x", "a/..", "-a/b", "a/b.git", "a" * 120 + "/b", "x" * 5000, "~nobody-here/x"]
)
def test_what_no_repository_can_be_called_is_nothing_at_hand(cache, name):
    with pytest.raises(
        ModelNotFoundError, match=r"^model: found '.*expected one of flux, flux-mini, a local"
    ) as caught:
        find_card(name)
    assert len(str(caught.value)) < 400
    with pytest.raises(ModelNotFoundError, match="are not at hand"):
        load_pipeline(replace(find_card("flux"), weights=name[:100]))


def test_missing_parts_are_named_one_by_one(copy):
    assert _weights.missing_parts(copy) == ()
    (copy / "vae" / "diffusion_pytorch_model.safetensors").unlink()
    shutil.rmtree(copy / "tokenizer_2")
    (copy / "text_encoder" / "model.safetensors").write_text(
        "version https://git-lfs.github.com/spec/v1\noid sha256:0\n"
    )
    (copy / "transformer" / "d.safetensors.index.json").write_text('{"weight_map": {"a": "d-1.safetensors"}}')
    assert set(_weights.missing_parts(copy)) == {
        "vae/ (weights)",
        "tokenizer_2/",
        "text_encoder/model.safetensors (a git-lfs pointer; run `git lfs pull`)",
        "transformer/d-1.safetensors",
    }
    with pytest.raises(ModelNotFoundError, match=r"found no .*vae/ \(weights\).*`--model flux-mini` works without"):
        load_pipeline(find_card(str(copy)))


def test_a_damaged_weight_file_is_an_error_with_the_folder(copy):
    path = copy / "vae" / "diffusion_pytorch_model.safetensors"
    path.write_bytes(path.read_bytes()[:100_000])
    with pytest.raises(ModelNotFoundError, match=r"copied: cannot be loaded as FluxPipeline \(.*fetch the model again"):
        load_pipeline(find_card(str(copy)))


# The hub


def test_flux_without_weights_says_what_to_do_at_once(cache):
    start = time.monotonic()
    with pytest.raises(ModelNotFoundError) as caught:
        load_pipeline(find_card("flux"))
    assert time.monotonic() - start < 5
    text = str(caught.value)
    for part in (
        str(cache / "models--black-forest-labs--FLUX.1-dev"),
        "(nothing is there); the hub was not asked, because HF_HUB_OFFLINE is set",
        "accept the licence (FLUX.1 [dev] Non-Commercial License) at https://huggingface.co/black-forest-labs/FLUX.1-dev",
        "`hf auth login`, then `hf download black-forest-labs/FLUX.1-dev",
        "`--model flux-mini` works now",
    ):
        assert part in text
    assert "\n" not in text


@pytest.mark.slow
def test_weights_in_the_cache_are_loaded_without_the_network(cache):
    put_in_cache(cache, "someone/mine", flux_mini_path())
    card = find_card("someone/mine")
    assert (card.name, card.weights, card.height) == ("someone/mine", "someone/mine", 64)
    assert load_pipeline(card).transformer.config.num_layers == 4


def test_a_hub_id_without_configuration_at_hand_is_refused(cache):
    with pytest.raises(ModelNotFoundError, match=r"nobody/nothing: .*To get them, run `hf download nobody/nothing`"):
        find_card("nobody/nothing")


@pytest.fixture
def hub(monkeypatch, cache):
    """A server on this machine in the hub's place; ``answer`` is the status and the error code it gives."""
    from huggingface_hub import constants, hf_api

    class Hub(BaseHTTPRequestHandler):
        answer = (404, "RepoNotFound")

        def do_GET(self):
            status, code = Hub.answer
            self.send_response(status)
            self.send_header("X-Error-Code", code)
            self.send_header("Content-Length", "0")
            self.end_headers()

        do_HEAD = do_GET  # noqa: N815 -- the name that http.server calls

        def log_message(self, *args):
            pass

    server = HTTPServer(("127.0.0.1", 0), Hub)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    endpoint = f"http://127.0.0.1:{server.server_port}"
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "ENDPOINT", endpoint)
    monkeypatch.setattr(hf_api.api, "endpoint", endpoint)
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    yield Hub
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        ((403, "GatedRepo"), r"the hub refuses: no account is logged in here.*accept the licence at .*`hf auth login`"),
        ((401, "GatedRepo"), r"the hub refuses: no account is logged in here.*accept the licence at .*`hf auth login`"),
        ((404, "RepoNotFound"), r"the hub knows no such public repository"),
        ((400, ""), r"the hub answered with \w+Error"),
    ],
)
def test_the_hubs_refusals_are_translated(hub, answer, message):
    hub.answer = answer
    with pytest.raises(ModelNotFoundError, match=message):
        find_card("someone/some-model")


def test_a_gated_model_with_its_configuration_at_hand_is_explained_when_loaded(hub, cache):
    put_in_cache(cache, FLUX_DEV, flux_mini_path(), weights=False)
    hub.answer = (403, "GatedRepo")
    with pytest.raises(ModelNotFoundError, match=r"\(without .*vae/ \(weights\)\); the hub refuses: .*licence"):
        load_pipeline(find_card("flux"))


def test_no_network_is_found_out_quickly(hub, monkeypatch):
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")  # nothing listens on the discard port
    start = time.monotonic()
    with pytest.raises(ModelNotFoundError, match="the hub cannot be reached from here"):
        load_pipeline(find_card("flux"))
    assert time.monotonic() - start < 8


# Loading


@pytest.mark.slow
def test_a_pipeline_comes_ready_to_measure():
    pipe = load_pipeline(find_card("flux-mini"), device="cpu", dtype="bf16")
    modules = [part for part in pipe.components.values() if isinstance(part, torch.nn.Module)]
    assert len(modules) == 4
    assert not [part for part in modules if part.training]
    assert not [p for part in modules for p in part.parameters() if p.requires_grad]
    assert {part.dtype for part in modules} == {torch.bfloat16}
    assert pipe._progress_bar_config == {"disable": True}


@pytest.mark.parametrize(
    ("name", "dtype"),
    [("float32", torch.float32), ("bfloat16", torch.bfloat16), ("fp16", torch.float16), (torch.float16, torch.float16)],
)
def test_types_are_known_by_their_names(name, dtype):
    assert parse_dtype(name) is dtype


@pytest.mark.parametrize("name", ["int8", "double", "", "torch.int64"])
def test_other_types_are_refused(name):
    with pytest.raises(UsageError, match=r"dtype: found .*, expected float32, bfloat16 or float16"):
        parse_dtype(name)


@pytest.mark.parametrize("name", ["gpu", "cuda:99", "meta", "cpu:x", "fpga"])
def test_other_devices_are_refused(name):
    with pytest.raises(UsageError, match=rf"device: found '{name}'.*cpu"):
        parse_device(name)
    assert parse_device("cpu") == parse_device(torch.device("cpu")) == torch.device("cpu")


def test_being_quiet_leaves_everything_as_it_was(capfd):
    import diffusers.utils.logging as diffusers_logging
    import transformers.utils.logging as transformers_logging
    from huggingface_hub.utils import are_progress_bars_disabled

    def state():
        return [
            *(library.get_verbosity() for library in (diffusers_logging, transformers_logging)),
            *(library.is_progress_bar_enabled() for library in (diffusers_logging, transformers_logging)),
            are_progress_bars_disabled(),
            list(warnings.filters),
        ]

    before = state()
    diffusers_logging.set_verbosity(logging.INFO)
    loud = state()
    with pytest.raises(KeyError), _weights.quiet():  # noqa: PT012 -- what is loud must be inside
        warnings.warn("unheard", stacklevel=1)
        diffusers_logging.get_logger("diffusers.test").warning("unheard")
        assert not diffusers_logging.is_progress_bar_enabled()
        assert not transformers_logging.is_progress_bar_enabled()
        raise KeyError
    assert state() == loud
    diffusers_logging.set_verbosity(before[0])
    assert state() == before
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ({"bundled": "flux-maxi"}, r"bundled: found 'flux-maxi', expected one of flux-mini"),
        ({"bundled": "flux-mini", "steps": 4}, r"models.yaml: new: found keys beside bundled, expected none"),
    ],
)
def test_a_named_entry_that_cannot_be_a_bundled_model(monkeypatch, entry, message):
    monkeypatch.setattr(_models, "_named_entries", lambda: {"new": entry})
    with pytest.raises(UsageError, match=message):
        find_card("new")


def test_the_named_entries_make_cards():
    assert set(_models._named_entries()) == {"flux", "flux-mini"}
