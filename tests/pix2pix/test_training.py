"""pix2pix on MMEngine: pairs of images, training, resuming, evaluation, translation."""

import json
import shutil
import signal

import pytest

pytest.importorskip("mmengine", reason="needs MMEngine: make install-openmmlab")
pytest.importorskip("torchmetrics", reason="needs torchmetrics, of the extra ilm_plugins[pix2pix]")

import numpy as np
import torch
from mmengine.config import Config
from mmengine.registry import DATASETS
from PIL import Image

from helpers.close import assert_close
from helpers.trainings import mmengine_command
from helpers.workers import Harmful, start_by
from ilm_plugins.__main__ import main
from ilm_plugins.errors import UserError
from ilm_plugins.pix2pix import metrics, training
from ilm_plugins.pix2pix.pairs import DIRECTIONS, PairedImages, jitter
from ilm_plugins.trust import ALLOW_CODE


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
    assert main(command("--eval-only", "--resume", out=out)) == 0
    return out


@pytest.fixture(scope="module")
def tested(trained):
    """The folder that the test made."""
    (folder,) = trained.glob("*/test")
    return folder


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


@pytest.fixture
def halves(tmp_path):
    """A folder of two pictures of two images side by side; the halves of the second."""
    pixels = save(tmp_path / "b.png", 6, 12)
    save(tmp_path / "a.png", 6, 12)
    return tmp_path, pixels[:, :6], pixels[:, 6:]


@pytest.mark.parametrize("direction", DIRECTIONS)
def test_halves_are_input_and_target_in_either_direction(halves, direction):
    folder, left, right = halves
    sample = PairedImages(folder, size=6, direction=direction)[1]
    expected = (left, right) if direction == "left-to-right" else (right, left)
    for kind, half in zip(("input", "target"), expected, strict=True):
        assert np.array_equal(channels_last(sample[kind]), half)


def test_a_choice_of_images_has_their_names(halves):
    data = PairedImages(halves[0], size=6, images=(1, None))
    assert [data[i]["name"] for i in range(len(data))] == ["b"]


@pytest.mark.parametrize("place", ["train", "val", "test"])
def test_own_pairs_are_used_whole(halves, root, place):
    """Not the part of the folder facades that the config asks for."""
    cfg = Config.fromfile(str(root / "configs/pix2pix/facades_ilmin_in.py"))
    cfg.merge_from_dict({f"{place}_dataloader.dataset.data_root": str(halves[0])})
    assert len(DATASETS.build(cfg[f"{place}_dataloader"].dataset)) == 2


def test_a_part_may_be_asked_for_by_the_name_of_the_folder(tmp_path):
    for name in ("a", "b"):
        save(tmp_path / "facades" / f"{name}.png", 6, 12)
    data = PairedImages(tmp_path / "facades", size=6, images={"facades": (1, None)})
    assert [data[i]["name"] for i in range(len(data))] == ["b"]


@pytest.mark.parametrize("direction", DIRECTIONS)
def test_the_mean_image_is_that_of_the_chosen_targets(halves, direction):
    folder, left, right = halves
    data = PairedImages(folder, size=6, direction=direction, mean_of={"images": (1, None)})
    target = left if direction == "right-to-left" else right
    assert np.array_equal(channels_last(data.metainfo["mean_image"]), target)


def test_a_pair_is_flipped(tmp_path):
    right = save(tmp_path / "a.png", 6, 12)[:, 6:]
    (flipped,) = PairedImages(tmp_path, size=6, load_size=6, flip=1)
    assert np.array_equal(channels_last(flipped["input"]), right[:, ::-1])


def test_a_pair_is_resized(tmp_path):
    save(tmp_path / "a.png", 6, 12)
    assert PairedImages(tmp_path, size=4)[0]["target"].shape == (3, 4, 4)


def test_a_pair_is_cropped_anew_each_time(tmp_path):
    save(tmp_path / "a.png", 6, 12)
    data = PairedImages(tmp_path, size=6, load_size=20, flip=0)
    assert not torch.equal(data[0]["input"], data[0]["input"])


@pytest.fixture
def two_folders(tmp_path):
    """A folder of labels and one of photos, of two images each; and the pixels of the second."""
    for name in ("1", "2"):
        labels = save(tmp_path / "labels" / f"{name}.png", 6, 6)
        photo = save(tmp_path / "photos" / f"{name}.bmp", 6, 6, seed=1)
    return tmp_path, labels, photo


TWO_FOLDERS = {"input_path": "labels", "target_path": "photos"}


def test_two_folders_match_by_name_whatever_the_ending(two_folders):
    folder, labels, photo = two_folders
    sample = PairedImages(folder, TWO_FOLDERS, size=6)[1]
    assert np.array_equal(channels_last(sample["input"]), labels)
    assert np.array_equal(channels_last(sample["target"]), photo)


@pytest.mark.parametrize("folder", ["labels", "photos"])
def test_an_image_without_a_counterpart_is_named(two_folders, folder):
    root, *_ = two_folders
    save(root / folder / "3.png", 6, 6)
    with pytest.raises(UserError, match=rf"1 images have no counterpart: .*{folder}/3\.png"):
        PairedImages(root, TWO_FOLDERS)


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


def jittered():
    """Forty crops of two images that are each other's inverse; the first has a ramp each way."""
    rows, columns = np.mgrid[:32, :32]
    ramp = np.stack([rows * 8, columns * 8, rows + columns], 2).astype(np.uint8)
    both = Image.fromarray(ramp), Image.fromarray(255 - ramp)
    return [jitter(both, 32, 36, 0.5, np.random.default_rng(seed)) for seed in range(40)]


def test_jitter_crops_and_flips_both_alike():
    for a, b in jittered():
        assert a.shape == b.shape == (32, 32, 3)
        assert np.abs(a.astype(int) + b - 255).max() <= 2  # rounded twice


def test_jitter_crops_at_every_place():
    """36 - 32 + 1 places from top to bottom."""
    assert len({int(a[0, 0, 0]) for a, _ in jittered()}) == 5


def test_a_network_may_have_options_for_its_own_parameters():
    model = torch.nn.ModuleDict({name: torch.nn.BatchNorm2d(2) for name in ("generator", "other")})
    sgd = {"optimizer": {"type": "SGD", "lr": 0.1, "weight_decay": 0.5}}
    own = {**sgd, "paramwise_cfg": {"norm_decay_mult": 0.0}}
    build = training.OptimizerEach({"generator": own, "other": sgd}, {"norm_decay_mult": 0.1})
    model.generator, model.other = model["generator"], model["other"]
    decays = {n: w.optimizer.param_groups[0]["weight_decay"] for n, w in build(model).items()}
    assert decays == {"generator": 0.0, "other": 0.5 * 0.1}


def test_training_lowers_the_error(trained):
    first, last = (e["rmse"] for e in entries(trained) if "rmse" in e)
    assert last < first


def test_training_writes_samples_of_each_epoch(trained):
    """Three rows of input, output and target."""
    before, samples = (read(trained / "samples" / f"epoch_000{epoch}.png") for epoch in (1, 2))
    assert samples.shape == (3 * 64, 3 * 64, 3)
    assert (samples != before).any()


def test_a_checkpoint_has_both_networks_with_their_optimizers(trained):
    saved = torch.load(trained / "epoch_2.pth", weights_only=False)
    assert {name.split(".")[0] for name in saved["state_dict"]} == {"generator", "discriminator"}
    assert saved["optimizer"].keys() == {"generator", "discriminator"}


#: What a test writes of each image.
KINDS = "input", "output", "target"


@pytest.fixture
def written(tested):
    """The images of each kind that the test wrote."""
    names = [f"00000{i}.png" for i in range(4)]
    return {
        kind: [torch.tensor(read(tested / kind / n)).permute(2, 0, 1) for n in names]
        for kind in KINDS
    }


def assert_scores(trained, prefix, found, targets):
    """Compare the record's means of each metric with those of images and targets."""
    recorded = json.loads((trained / "record.json").read_text())["metrics"][""]
    for name, measure in metrics.measures().items():
        scores = [measure(*pair) for pair in zip(found, targets, strict=True)]
        actual, mean = torch.tensor(recorded[prefix + name]), torch.tensor(scores).mean()
        # The record has 6 decimals.
        assert_close(actual, mean, 64, scale=1, name=prefix + name)


def test_a_test_writes_the_images_of_each_pair(written, datasets):
    pair = read(datasets / "shapes" / "pairs" / "validation" / "000002.jpg")
    assert np.array_equal(channels_last(written["target"][2]), pair[:, :64])
    assert np.array_equal(channels_last(written["input"][2]), pair[:, 64:])


def test_a_test_scores_what_it_writes(trained, written):
    assert_scores(trained, "", written["output"], written["target"])


def test_a_test_scores_the_mean_training_image(trained, written, datasets):
    pairs = PairedImages(datasets / "shapes" / "pairs" / "training", size=64)
    mean = torch.stack([pairs[i]["target"] for i in range(8)]).double().mean(0).round()
    assert_scores(trained, "mean_image/", [mean] * 4, written["target"])


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


@pytest.fixture
def translate(trained):
    """A function that runs the command translate, by default with the trained checkpoint."""
    (own,) = trained.glob("*.py")

    def run(source, out, *options, config=own, checkpoint=trained / "epoch_2.pth"):
        return main(["translate", *map(str, (config, checkpoint, source, out, *options))])

    return run


def test_translation_runs_no_code_of_a_checkpoint(translate, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv(ALLOW_CODE, "1")
    save(tmp_path / "in" / "a.png", 8, 8)
    path, trap = tmp_path / "c.pth", tmp_path / "ran"
    torch.save({"state_dict": {"x": Harmful(trap)}}, path)
    assert translate(tmp_path / "in", tmp_path / "out", checkpoint=path) == 2
    assert "makedirs, which may run code" in capsys.readouterr().err
    assert not trap.exists()
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("entry", ["state_dict", "model", None])
def test_a_checkpoint_of_another_model_is_told_in_one_line(translate, tmp_path, capsys, entry):
    save(tmp_path / "in" / "a.png", 8, 8)
    state = torch.nn.Linear(2, 2).state_dict()
    torch.save({entry: state} if entry else state, tmp_path / "c.pth")
    capsys.readouterr()
    assert translate(tmp_path / "in", tmp_path / "out", checkpoint=tmp_path / "c.pth") == 2
    told = capsys.readouterr().err.splitlines()[-1]
    assert "does not fit: " in told
    assert told.endswith("give one of this model")


def test_sigterm_ends_translation_in_one_line_without_a_partial_file(
    translate, tmp_path, monkeypatch, capsys
):
    def save_partly(image, file, **options):
        file.write(b"half")
        signal.raise_signal(signal.SIGTERM)

    save(tmp_path / "in" / "a.png", 16, 8)
    monkeypatch.setattr(Image.Image, "save", save_partly)
    assert translate(tmp_path / "in", tmp_path / "out") == 128 + signal.SIGTERM
    assert [*(tmp_path / "out").iterdir()] == []
    assert capsys.readouterr().err.endswith(": stopped\n")


def test_translation_writes_what_the_test_writes(translate, tested, tmp_path):
    assert translate(tested / "input", tmp_path) == 0
    for path in (tested / "output").iterdir():
        assert np.array_equal(read(path), read(tmp_path / path.name))


def test_translation_into_its_input_is_refused(translate, tmp_path, capsys):
    before = save(tmp_path / "in" / "a.png", 70, 100)
    (tmp_path / "link").symlink_to(tmp_path / "in")
    assert translate(tmp_path / "in", tmp_path / "link") == 2
    assert "is INPUT; give another folder" in capsys.readouterr().err
    assert np.array_equal(read(tmp_path / "in" / "a.png"), before)


def test_a_full_disk_ends_a_translation_with_one_line_and_leaves_no_part_of_an_image(
    translate, tmp_path, capsys, small_files
):
    save(tmp_path / "in" / "a.png", 64, 64)
    with small_files(200):
        assert translate(tmp_path / "in", tmp_path / "out") == 2
    words = f"{tmp_path / 'out' / 'a.png'} cannot be written to (File too large); free space, then "
    assert words + "repeat the command" in capsys.readouterr().err
    assert not [*(tmp_path / "out").iterdir()]
