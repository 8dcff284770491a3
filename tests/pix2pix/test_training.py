"""pix2pix on MMEngine: pairs of images, training, resuming, evaluation, translation."""

import json
import shutil

import pytest

pytest.importorskip("mmengine", reason="needs MMEngine: make install-openmmlab")
pytest.importorskip("torchmetrics", reason="needs torchmetrics, of the extra ilm_plugins[pix2pix]")

import numpy as np
import torch
from PIL import Image

from close import assert_close
from ilm_plugins.__main__ import main
from ilm_plugins.errors import UserError
from ilm_plugins.pix2pix import metrics, training
from ilm_plugins.pix2pix.pairs import PairedImages, jitter
from runs import mmengine_command
from workers import start_by


@pytest.fixture(scope="module")
def command(root, datasets):
    """A function that gives the arguments of two epochs of eight pairs."""
    settings = [
        f"{n}_dataloader.dataset.data_root={datasets}/shapes" for n in ("train", "val", "test")
    ]
    settings += ["train_cfg.max_epochs=2", "train_cfg.val_interval=1", "custom_hooks.0.number=3"]
    settings += ["default_hooks.logger.interval=1"]

    def make(*options, out, opts=()):
        config = root / "configs" / "pix2pix" / "shapes_ilmin_in.py"
        return mmengine_command(config, *options, out=out, opts=[*settings, *opts])

    return make


@pytest.fixture(scope="module")
def trained(command, tmp_path_factory):
    """The output folder of two epochs, and of a test."""
    out = tmp_path_factory.mktemp("trained")
    assert main(command(out=out)) == 0
    save(out / "test" / "input" / "of_an_earlier_test.png", 2, 2)
    assert main(command("--eval-only", "--resume", out=out)) == 0
    return out


def entries(out):
    return [json.loads(line) for f in out.glob("*/vis_data/scalars.json") for line in f.open()]


def read(path):
    return np.asarray(Image.open(path))


def save(path, *shape, seed=0):
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (*shape, 3), np.uint8)
    Image.fromarray(pixels).save(path)
    return pixels


def channels_last(tensor):
    return tensor.permute(1, 2, 0).numpy()


def test_halves_in_either_direction(tmp_path):
    pixels = save(tmp_path / "b.png", 6, 12)
    save(tmp_path / "a.png", 6, 12)
    left, right, second = pixels[:, :6], pixels[:, 6:], {"images": (1, None)}
    for direction, expected in (("right-to-left", (right, left)), ("left-to-right", (left, right))):
        data = PairedImages(tmp_path, size=6, direction=direction, mean_of=second, **second)
        (sample,) = [data[i] for i in range(len(data))]
        assert sample["name"] == "b"
        assert np.array_equal(channels_last(data.metainfo["mean_image"]), expected[1])
        for kind, half in zip(("input", "target"), expected, strict=True):
            assert np.array_equal(channels_last(sample[kind]), half)


def test_pairs_are_resized_then_cropped_and_flipped_anew_each_time(tmp_path):
    right = save(tmp_path / "a.png", 6, 12)[:, 6:]
    (flipped,) = PairedImages(tmp_path, size=6, load_size=6, flip=1)
    assert np.array_equal(channels_last(flipped["input"]), right[:, ::-1])
    assert PairedImages(tmp_path, size=4)[0]["target"].shape == (3, 4, 4)
    data = PairedImages(tmp_path, size=6, load_size=20, flip=0)
    assert not torch.equal(data[0]["input"], data[0]["input"])


def test_two_folders_match_by_name_whatever_the_ending(tmp_path):
    prefix = {"input_path": "labels", "target_path": "photos"}
    for name in ("1", "2"):
        labels = save(tmp_path / "labels" / f"{name}.png", 6, 6)
        photo = save(tmp_path / "photos" / f"{name}.bmp", 6, 6, seed=1)
    sample = PairedImages(tmp_path, prefix, size=6)[1]
    assert np.array_equal(channels_last(sample["input"]), labels)
    assert np.array_equal(channels_last(sample["target"]), photo)
    for folder in ("labels", "photos"):
        save(tmp_path / folder / "3.png", 6, 6)
        with pytest.raises(UserError, match=rf"1 images have no counterpart: .*{folder}/3\.png"):
            PairedImages(tmp_path, prefix)
        (tmp_path / folder / "3.png").unlink()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"direction": "up"}, "direction is 'up'"),
        ({"size": 64, "load_size": 32}, "load_size=32 is below"),
        ({"images": (8, 9)}, "leaves none of the 2 pairs"),
        ({"data_prefix": {"input_path": ""}}, "data_prefix has input_path"),
        ({"data_prefix": {"pair_path": "none"}}, "none: no such folder"),
        ({"data_prefix": {"pair_path": "twice"}}, "two files are named a"),
    ],
)
def test_mistakes_in_a_dataset(tmp_path, options, words):
    for name in ("a.png", "b.png", "twice/a.png", "twice/a.jpg"):
        save(tmp_path / name, 4, 8)
    with pytest.raises(UserError, match=words):
        PairedImages(tmp_path, **options)


def test_jitter_crops_and_flips_both_alike():
    """The two images are each other's inverse, and stay so."""
    rows, columns = np.mgrid[:32, :32]
    ramp = np.stack([rows * 8, columns * 8, rows + columns], 2).astype(np.uint8)
    both = Image.fromarray(ramp), Image.fromarray(255 - ramp)
    outcomes = set()
    for seed in range(40):
        a, b = jitter(both, 32, 36, 0.5, np.random.default_rng(seed))
        assert a.shape == b.shape == (32, 32, 3)
        assert np.abs(a.astype(int) + b - 255).max() <= 2  # rounded twice
        outcomes.add((int(a[0, 0, 0]), bool(a[0, 0, 1] > a[0, -1, 1])))
    assert {flipped for _, flipped in outcomes} == {False, True}
    assert len({top for top, _ in outcomes}) == 5  # 36 - 32 + 1 places


def test_a_network_may_have_options_for_its_own_parameters():
    model = torch.nn.ModuleDict({name: torch.nn.BatchNorm2d(2) for name in ("generator", "other")})
    sgd = {"optimizer": {"type": "SGD", "lr": 0.1, "weight_decay": 0.5}}
    own = {**sgd, "paramwise_cfg": {"norm_decay_mult": 0.0}}
    build = training.OptimizerEach({"generator": own, "other": sgd}, {"norm_decay_mult": 0.1})
    model.generator, model.other = model["generator"], model["other"]
    decays = {n: w.optimizer.param_groups[0]["weight_decay"] for n, w in build(model).items()}
    assert decays == {"generator": 0.0, "other": 0.5 * 0.1}


def test_training_leaves_losses_samples_and_both_networks(trained):
    losses = [e for e in entries(trained) if "loss_G_L1" in e]
    first, last = (e["rmse"] for e in entries(trained) if "rmse" in e)
    assert len(losses) == 16 and last < first
    assert {"loss_D_real", "loss_D_fake", "loss_G_GAN", "generator.lr"} <= losses[0].keys()
    # Three rows of input, output and target.
    before, samples = (read(trained / "samples" / f"epoch_000{epoch}.png") for epoch in (1, 2))
    assert samples.shape == (3 * 64, 3 * 64, 3) and (samples != before).any()
    saved = torch.load(trained / "epoch_2.pth", weights_only=False)
    assert {name.split(".")[0] for name in saved["state_dict"]} == {"generator", "discriminator"}
    assert saved["optimizer"].keys() == {"generator", "discriminator"}


def test_a_test_scores_what_it_writes_and_the_mean_training_image(trained, datasets):
    found = json.loads((trained / "record.json").read_text())["metrics"][""]
    folders = [trained / "test" / kind for kind in ("input", "output", "target")]
    names = sorted(path.name for path in folders[0].iterdir())
    assert names == [f"00000{i}.png" for i in range(4)]
    images = [[torch.tensor(read(f / n)).permute(2, 0, 1) for f in folders] for n in names]
    pair = read(datasets / "shapes" / "pairs" / "validation" / "000002.jpg")
    assert np.array_equal(channels_last(images[2][2]), pair[:, :64])
    assert np.array_equal(channels_last(images[2][0]), pair[:, 64:])
    pairs = PairedImages(datasets / "shapes" / "pairs" / "training", size=64)
    mean = torch.stack([pairs[i]["target"] for i in range(8)]).double().mean(0).round()
    for name, measure in metrics.measures().items():
        scores = [(measure(output, target), measure(mean, target)) for _, output, target in images]
        recorded = torch.tensor([found[name], found[f"mean_image/{name}"]])
        # The record has 6 decimals.
        assert_close(recorded, torch.tensor(scores).mean(0), 64, scale=1, name=name)


def test_a_run_resumes_after_its_last_whole_epoch(command, trained, tmp_path):
    shutil.copy(trained / "epoch_2.pth", tmp_path)
    opts = ["train_cfg.max_epochs=3"]
    assert main(command("--resume", out=tmp_path, opts=opts)) == 0
    assert [e["step"] for e in entries(tmp_path) if "loss_G_L1" in e] == [*range(17, 25)]


@pytest.mark.wide
def test_several_processes_train_as_one_with_a_larger_batch(command, tmp_path):
    """In one step: further ones drive rounding apart, by an absolute value and rectifiers."""
    opts = ["train_cfg.max_epochs=1", "model.generator.dropout=0"]
    for name in ("generator", "discriminator"):
        plain = {"_delete_": True, "type": "SGD", "lr": 0.01}
        opts += [f"optim_wrapper.{name}.optimizer.{key}={value}" for key, value in plain.items()]
    opts += ["default_hooks.checkpoint.interval=1", "train_dataloader.dataset.images=[0,2]"]
    # The processes draw crops of their own.
    opts.append("train_dataloader.dataset.load_size=None")
    one, two = tmp_path / "one", tmp_path / "two"
    assert main(command(out=one, opts=[*opts, "train_dataloader.batch_size=2"])) == 0
    with start_by("forkserver"):
        assert main(command("--num-processes", "2", out=two, opts=opts)) == 0
    a, b = (torch.load(o / "epoch_1.pth", weights_only=False)["state_dict"] for o in (one, two))
    assert_close(b, a, 2**8)


def test_translation_is_that_of_the_test_and_keeps_sizes(trained, datasets, tmp_path, capsys):
    (config,) = trained.glob("*.py")

    def translated(source, out, *options):
        words = config, trained / "epoch_2.pth", source, out, *options
        return main(["translate", *map(str, words)])

    pairs = datasets / "shapes" / "pairs" / "validation"
    assert translated(pairs, tmp_path, "--half", "right") == 0
    for path in (trained / "test" / "output").iterdir():
        assert np.array_equal(read(path), read(tmp_path / path.name))
    before = save(tmp_path / "in" / "a.png", 70, 100)
    (tmp_path / "link").symlink_to(tmp_path / "in")
    assert translated(tmp_path / "in", tmp_path / "link") == 2
    assert "is INPUT; give another folder" in capsys.readouterr().err
    assert translated(tmp_path / "in", tmp_path / "out") == 0
    assert np.array_equal(read(tmp_path / "in" / "a.png"), before)
    assert read(tmp_path / "out" / "a.png").shape == before.shape
