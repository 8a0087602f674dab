"""The recipe end to end on icons drawn here: pictures, losses, resumption bit for bit, and a pipeline that runs."""

from __future__ import annotations

import json
import shutil
import tarfile
from dataclasses import replace

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from schedsearch.errors import UsageError
from schedsearch_calibration.flux_mini import COLOURS, data, tokenizer, transformer, vae
from schedsearch_calibration.flux_mini._training import Settings, rate, train
from schedsearch_calibration.flux_mini.train import Recipe, app, run

ICONS = {
    "red-square": '<rect x="8" y="8" width="16" height="16" fill="#f00"/>',
    "green-disk": '<circle cx="16" cy="16" r="10" fill="#0a0"/>',
    "blue-bar": '<rect x="0" y="12" width="32" height="8" fill="#00f"/>',
    "half": '<rect width="16" height="32" fill="#000"/>',
    "faint": '<rect width="32" height="32" fill="#fff" fill-opacity=".5"/>',
    "wave-dark-skin-tone": '<rect width="1" height="1"/>',
    "flag": '<rect width="2" height="2"/>',
}
SMALL = Recipe(
    vae_shape=vae.VaeShape(channels=(8, 16, 16), latent_channels=4, groups=4),
    vae_settings=replace(vae.SETTINGS, steps=20, batch=2),
    shape=transformer.TransformerShape(
        double_blocks=1, single_blocks=1, heads=2, head_dim=16, rope_dims=(4, 6, 6), text_dim=32, pooled_dim=16,
        text_layers=1,
    ),
    settings=replace(transformer.SETTINGS, steps=20, batch=2, warmup=4),
)  # fmt: skip


@pytest.fixture
def package(tmp_path):
    """An unpacked npm icon package with seven icons, two of them in what is left out."""
    folder = tmp_path / "package"
    folder.mkdir()
    icons = {name: {"body": body} for name, body in ICONS.items()}
    (folder / "icons.json").write_text(json.dumps({"prefix": "t", "icons": icons, "width": 32, "height": 32}))
    categories = {"Shapes": [*list(ICONS)[:6], "not-drawn"], "Flags": ["flag"]}
    (folder / "metadata.json").write_text(json.dumps({"categories": categories}))
    return folder


@pytest.fixture
def pictures():
    """Six pictures without resvg: plain squares of noise with half their pixels see-through."""
    rgba = np.random.default_rng(0).integers(0, 256, (6, data.SIZE, data.SIZE, 4), dtype=np.uint8)
    return data.Pictures(captions=tuple(f"thing {i}" for i in range(6)), rgba=rgba)


def test_icons_are_read_by_name_without_flags_and_skin_tones(package):
    icons = data.read_icons(package)
    assert [icon.caption for icon in icons] == ["blue bar", "faint", "green disk", "half", "red square"]
    assert icons[0].svg.startswith('<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 32 32"><rect')


def test_a_package_without_categories_gives_all_its_visible_icons(package):
    (package / "metadata.json").unlink()
    assert len(data.read_icons(package)) == len(ICONS)


def test_a_folder_that_is_no_package_is_refused(tmp_path):
    with pytest.raises(UsageError, match=r"icons.json cannot be read as icons .* Run `npm pack @iconify"):
        data.read_icons(tmp_path)
    (tmp_path / "icons.json").write_text('{"icons": {}}')
    with pytest.raises(UsageError, match="found no icon to learn from"):
        data.read_icons(tmp_path)


def test_rendering_draws_shape_colour_and_transparency(package):
    pytest.importorskip("resvg_py", reason="the extra schedsearch[recipe] is not installed")
    drawn = data.render(data.read_icons(package))
    by_name = dict(zip(drawn.captions, drawn.rgba, strict=True))
    assert by_name["red square"][32, 32].tolist() == [255, 0, 0, 255]
    assert by_name["red square"][4, 4, 3] == 0
    assert by_name["faint"][10, 10, 3] in (127, 128)
    assert (by_name["half"][:, :32, 3] == 255).all()
    assert (by_name["half"][:, 32:, 3] == 0).all()


def test_an_icon_that_is_no_svg_is_named():
    pytest.importorskip("resvg_py", reason="the extra schedsearch[recipe] is not installed")
    with pytest.raises(UsageError, match="the icon 'broken' cannot be drawn"):
        data.render([data.Icon(caption="broken", svg="<svg")])


def test_composing_mixes_by_alpha():
    rgba = torch.tensor([[[[255, 0, 0, 255], [255, 0, 0, 0], [255, 255, 255, 51]]]], dtype=torch.uint8)
    mixed = data.compose(rgba, torch.tensor([[0, 0, 255]], dtype=torch.uint8))
    assert mixed.shape == (1, 3, 1, 3)
    expected = torch.tensor([[1.0, -1, -1], [-1, -1, 1], [-0.6, -0.6, 1]])
    torch.testing.assert_close(mixed[0, :, 0, :].T, expected)


def test_backgrounds_are_white_two_times_in_five_and_else_even():
    drawn = data.draw_colours(70_000, torch.Generator().manual_seed(0))
    shares = torch.bincount(drawn, minlength=len(COLOURS)) / len(drawn)
    assert abs(float(shares[0]) - 0.4) < 0.01
    assert (shares[1:] - 0.6 / 7).abs().max() < 0.006


def test_pictures_survive_being_saved(tmp_path, pictures):
    data.save([pictures, pictures], tmp_path / "p.npz")
    first, second = data.load(tmp_path / "p.npz")
    assert first.captions == second.captions == pictures.captions
    assert np.array_equal(first.rgba, pictures.rgba)
    assert [path.name for path in tmp_path.iterdir()] == ["p.npz"]


def test_packages_come_as_folders_or_as_npm_files(package, tmp_path):
    with tarfile.open(tmp_path / "icons.tgz", "w:gz") as archive:
        archive.add(package, "package")
    with data.packages([package, tmp_path / "icons.tgz"]) as (first, second):
        assert first == package
        assert data.read_icons(second) == data.read_icons(first)
    assert not second.exists()
    (tmp_path / "bad.tgz").write_bytes(b"no archive")
    with (
        pytest.raises(UsageError, match=r"bad.tgz is neither a folder nor a readable .tgz"),
        data.packages([tmp_path / "bad.tgz"]),
    ):
        pass


def test_without_npm_the_error_says_what_to_fetch_by_hand(monkeypatch):
    monkeypatch.setattr(shutil, "which", lambda _name: None)
    with (
        pytest.raises(UsageError, match=r"npm, .* is not installed\. Run `npm pack .*give the files with --data"),
        data.packages([]),
    ):
        pass


def test_a_failing_npm_is_quoted(tmp_path, monkeypatch):
    npm = tmp_path / "npm"
    npm.write_text("#!/bin/sh\necho 'npm error network down' >&2\nexit 1\n")
    npm.chmod(0o755)
    monkeypatch.setattr(shutil, "which", lambda _name: str(npm))
    with (
        pytest.raises(UsageError, match=r"could not fetch the icons \(npm error network down\)"),
        data.packages([]),
    ):
        pass


def test_the_tokenizer_knows_its_words_and_pads_to_16():
    words = tokenizer.build(["red apple", "first-place medal", "blue", "background"])
    ids = transformer.tokens_of(("red apple",), words)
    assert ids.shape == (1, len(COLOURS), tokenizer.LENGTH)
    apple = words.convert_tokens_to_ids("apple")
    blue = list(COLOURS).index("blue")
    known = words("Red APPLE, blue background").input_ids
    assert ids[0, blue, : len(known)].tolist() == known
    assert known[1] == apple
    assert known[-1] == words.eos_token_id == 1
    assert set(ids[0, blue, len(known) :].tolist()) == {words.pad_token_id} == {0}
    assert words("pear").input_ids[0] == words.unk_token_id == 2


def test_packing_and_positions_agree_with_the_pipeline():
    from diffusers import FluxPipeline

    latents = torch.randn(2, 8, 16, 16)
    theirs = FluxPipeline._pack_latents(latents, 2, 8, 16, 16)
    assert torch.equal(transformer.pack(latents), theirs)
    assert torch.equal(transformer.pack(latents[:, None])[:, 0], theirs)
    ids = FluxPipeline._prepare_latent_image_ids(2, 8, 8, torch.device("cpu"), torch.float32)
    assert torch.equal(transformer.image_ids(8), ids)


def test_the_defaults_build_the_shipped_shapes():
    from schedsearch_calibration import flux_mini_path

    def shapes(module):
        return {name: tuple(value.shape) for name, value in module.state_dict().items()}

    def shipped(part):
        from safetensors.numpy import load_file

        (path,) = (flux_mini_path() / part).glob("*.safetensors")
        return {name: value.shape for name, value in load_file(path).items()}

    model = transformer.build(transformer.TransformerShape(), latent_channels=8, vocabulary=1303, seed=0)
    assert shapes(model.transformer) == shipped("transformer")
    assert shapes(vae.build(vae.VaeShape(), seed=0)) == shipped("vae")
    assert sum(p.numel() for p in model.transformer.parameters()) == pytest.approx(4.5e6, rel=0.02)
    # Releases of transformers differ in the prefix of CLIP's names.
    clip = {name.removeprefix("text_model."): shape for name, shape in shapes(model.text_encoder).items()}
    assert {name.removeprefix("text_model."): shape for name, shape in shipped("text_encoder").items()} == clip
    assert shipped("text_encoder_2").items() <= shapes(model.text_encoder_2).items()


def test_an_untrained_denoiser_predicts_zero_because_its_output_starts_at_zero():
    model = transformer.build(SMALL.shape, latent_channels=4, vocabulary=20, seed=0)
    out = model(torch.randn(2, 64, 16), torch.tensor([0.3, 0.9]), torch.ones(2, 16, dtype=torch.long), 8)
    assert out.shape == (2, 64, 16)
    assert not out.any()


def test_building_is_a_function_of_the_seed_and_leaves_the_global_generator_alone():
    torch.manual_seed(5)
    before = torch.get_rng_state()
    first, again, other = (vae.build(SMALL.vae_shape, seed=seed).state_dict() for seed in (1, 1, 2))
    assert torch.equal(torch.get_rng_state(), before)
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not all(torch.equal(first[name], other[name]) for name in first)


def test_the_loss_counts_edges_besides_pixels():
    flat, step = torch.zeros(1, 3, 4, 4), torch.zeros(1, 3, 4, 4)
    step[..., 2:] = 1.0
    assert float(vae.reconstruction_loss(flat, flat)) == 0.0
    assert float(vae.reconstruction_loss(flat, flat + 1)) == pytest.approx(1.0)
    # half the pixels differ by 1; of three horizontal differences one does, no vertical one
    assert float(vae.reconstruction_loss(flat, step)) == pytest.approx(0.5 + 0.5 / 3)


def test_the_learning_rate_rises_then_follows_a_cosine():
    settings = Settings(steps=110, batch=1, lr=2.0, warmup=10)
    assert [rate(i, settings) for i in (0, 4, 9)] == pytest.approx([0.2, 1.0, 2.0])
    assert [rate(i, settings) for i in (10, 60, 110)] == pytest.approx([2.0, 1.0, 0.0])


@pytest.mark.parametrize("stage", ["vae", "transformer"])
def test_a_resumed_run_equals_an_uninterrupted_one_bit_for_bit(tmp_path, pictures, stage):
    def begun():
        if stage == "vae":
            return vae.build(SMALL.vae_shape, seed=0)
        return transformer.build(SMALL.shape, latent_channels=4, vocabulary=20, seed=0)

    def go_on(model, name, stop_after):
        path = tmp_path / f"{name}.ckpt"
        if stage == "vae":
            settings = replace(SMALL.vae_settings, steps=12)
            return vae.train_vae(model, [pictures], settings, checkpoint=path, stop_after=stop_after)
        latents = torch.randn(6, 8, 4, 16, 16, generator=torch.Generator().manual_seed(3))
        tokens = torch.randint(0, 20, (6, 8, 16), generator=torch.Generator().manual_seed(4))
        tokens[..., -1] = 1
        settings = replace(SMALL.settings, steps=12)
        return transformer.train_transformer(model, latents, tokens, settings, checkpoint=path, stop_after=stop_after)

    whole, first, second = begun(), begun(), begun()
    assert go_on(whole, "whole", None) == 12
    assert go_on(first, "halves", 6) == 6
    torch.manual_seed(99)  # another process has another global state
    assert go_on(second, "halves", None) == 12
    result = whole.state_dict()
    assert all(torch.equal(value, result[name]) for name, value in second.state_dict().items())
    assert not all(torch.equal(value, result[name]) for name, value in first.state_dict().items())
    assert sorted(path.name for path in tmp_path.iterdir()) == ["halves.ckpt", "whole.ckpt"]


def test_a_checkpoint_of_other_settings_is_refused_with_the_difference(tmp_path, pictures):
    path = tmp_path / "vae.ckpt"
    settings = replace(SMALL.vae_settings, steps=1)
    vae.train_vae(vae.build(SMALL.vae_shape, seed=0), [pictures], settings, checkpoint=path)
    with pytest.raises(UsageError, match=r"vae.ckpt: found a run with other settings \(steps 1 -> 2\)"):
        vae.train_vae(vae.build(SMALL.vae_shape, seed=0), [pictures], replace(settings, steps=2), checkpoint=path)


def test_a_damaged_checkpoint_is_refused_with_what_to_do(tmp_path, pictures):
    (tmp_path / "vae.ckpt").write_bytes(b"PK\x03\x04 torn")
    with pytest.raises(UsageError, match=r"vae.ckpt: cannot be read as a checkpoint \(.*\)\. Remove it"):
        vae.train_vae(
            vae.build(SMALL.vae_shape, seed=0), [pictures], SMALL.vae_settings, checkpoint=tmp_path / "vae.ckpt"
        )


def test_a_loss_that_is_no_number_ends_the_run(tmp_path):
    model = torch.nn.Linear(1, 1)
    settings = Settings(steps=3, batch=1, lr=1.0, autocast=False)
    with pytest.raises(UsageError, match="the loss is nan at step 0"):
        train(model, lambda _: model(torch.tensor([float("nan")])).sum(), settings, checkpoint=tmp_path / "c")


def test_the_mean_of_weights_is_the_result_and_lies_behind_the_last_weights(tmp_path):
    model = torch.nn.Linear(1, 1, bias=False)
    torch.nn.init.zeros_(model.weight)
    settings = Settings(steps=50, batch=1, lr=0.1, ema=0.9, autocast=False)
    seen = []

    def loss(_generator):
        seen.append(float(model.weight.detach()))
        return (model.weight - 10.0).pow(2).sum()

    train(model, loss, settings, checkpoint=tmp_path / "c")
    assert 0 < float(model.weight.detach()) < seen[-1] < 10


@pytest.mark.slow
def test_twenty_steps_of_each_stage_end_in_a_pipeline_that_draws(package, tmp_path, capsys):
    pytest.importorskip("resvg_py", reason="the extra schedsearch[recipe] is not installed")
    from schedsearch.evaluate import find_card, load_pipeline

    out = tmp_path / "out"
    folder = run(out, recipe=SMALL, packages=(package,), every=10)
    assert folder == out / "flux-mini"
    card = find_card(str(folder))
    assert (card.name, card.height, card.width, card.max_sequence_length) == ("flux-mini", 64, 64, 16)
    pipe = load_pipeline(card, device="cpu", dtype="float32")
    latents = vae.encode_all(pipe.vae, data.load(out / "pictures.npz")[0])
    scaled = (latents - pipe.vae.config.shift_factor) * pipe.vae.config.scaling_factor
    assert float(scaled.mean()) == pytest.approx(0, abs=1e-3)
    assert float(scaled.std()) == pytest.approx(1, abs=1e-3)
    image = pipe(
        "red square, blue background", height=64, width=64, num_inference_steps=2, guidance_scale=1.0,
        max_sequence_length=16, generator=torch.Generator().manual_seed(0),
    ).images[0]  # fmt: skip
    assert image.size == (64, 64)

    # A second run finds everything done and writes the same weights.
    from schedsearch_calibration.flux_mini.assemble import parameters_sha256

    before = parameters_sha256(folder)
    run(out, recipe=SMALL, packages=(package,), every=10)
    assert parameters_sha256(folder) == before
    assert not list(out.glob(".*.part"))


def test_the_command_says_what_is_wrong_and_ends_with_code_2(tmp_path):
    runner = CliRunner()
    done = runner.invoke(app, ["--out", str(tmp_path / "o"), "--data", str(tmp_path / "none")])
    assert done.exit_code == 2
    assert "error: data: " in done.output
    assert "is neither a folder nor a readable .tgz" in done.output
    done = runner.invoke(app, ["--out", str(tmp_path / "o"), "--device", "gpu"])
    assert done.exit_code == 2
    assert "error: device: 'gpu' cannot be used" in done.output
    assert runner.invoke(app, ["--help"]).exit_code == 0
