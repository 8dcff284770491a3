"""Seeded defects that the test suite must catch: ``python tests/defects.py [NAME ...]``.

The script applies one at a time to a copy of the tracked files and runs pytest there, up to the
first failure: the tests named with the defect, then, if they pass, the everyday and the wide tests.
A test catches a defect if it fails with it and passes without it. A defect is a behaviour: when its
code moves, express it anew.
"""

import argparse
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[1]
NOT_LONG = ("-m", "not long")
#: Minutes that pytest may take for the tests named with a defect, and for the whole suite.
OWN, ALL = 10, 90
#: Processes of pytest that run now.
RUNNING: set[subprocess.Popen] = set()


@dataclass(frozen=True)
class Defect:
    """A plausible mistake, as a replacement of text in one file.

    Attributes:
        name: for the command line and the table.
        behaviour: what a user can observe.
        file: path below the root.
        old: text that occurs exactly once in the file.
        new: what takes its place.
        tests: paths or node ids to run first, separated by spaces.
    """

    name: str
    behaviour: str
    file: str
    old: str
    new: str
    tests: str

    def apply(self, root: Path) -> None:
        """Make the change below ``root``.

        Raises:
            ValueError: ``old`` does not occur exactly once.
        """
        path = root / self.file
        text = path.read_text(encoding="utf-8")
        if text.count(self.old) != 1:
            raise ValueError(
                f"{self.name}: {self.old!r} occurs {text.count(self.old)} times in {self.file}, "
                "expected once; express the defect anew"
            )
        path.write_text(text.replace(self.old, self.new), encoding="utf-8")


LAYERS, OPS, HARNESS = "ilm_plugins/layers", "ilm_plugins/ops", "ilm_plugins/frameworks"
EQUATIONS, SYNCHRONIZED = "tests/layers/test_equations.py", "tests/layers/test_synchronized.py"

DEFECTS = (
    # ---- layers
    Defect(
        "assoc-mean-and-variance-swapped",
        "AssocNorm's mean drives the shift and its variance the scale, not the other way round.",
        f"{LAYERS}/assoc.py",
        "from_mean, from_var = self.decode",
        "from_var, from_mean = self.decode",
        EQUATIONS,
    ),
    Defect(
        "ilm-activations-swapped",
        "Of activations=(a, b) the variance gets a and the mean b.",
        f"{LAYERS}/ilm.py",
        "for_mean, for_var = (ACTIVATIONS",
        "for_var, for_mean = (ACTIVATIONS",
        EQUATIONS,
    ),
    Defect(
        "decoders-start-uniform",
        'With init="normal" the decoders start from a uniform distribution.',
        f"{LAYERS}/autoencoder.py",
        'decoder = "zeros" if init == "identity" else encoder',
        'decoder = "zeros" if init == "identity" else "default"',
        "tests/layers/test_options.py",
    ),
    Defect(
        "eps-left-out-of-fine-groups",
        "Where key groups are finer than groups, eps is missing in the fine groups' deviation.",
        f"{OPS}/moments.py",
        "(var + eps).sqrt() * rstd",
        "var.sqrt() * rstd",
        f"{EQUATIONS} tests/ops/test_backends.py",
    ),
    Defect(
        "running-variance-biased",
        "The running variance is of the biased variances, unlike BatchNorm's.",
        f"{LAYERS}/mixture.py",
        "var * (count / (count - 1))",
        "var",
        f"{EQUATIONS}::test_running_statistics_are_those_of_batch_norm",
    ),
    Defect(
        "evaluation-moves-running-statistics",
        "EN and SN move their running statistics in evaluation, too.",
        f"{LAYERS}/mixture.py",
        "if self.uses_batch_statistics:",
        "if self.running_mean is not None:",
        f"{EQUATIONS}::test_a_layer_without_trainable_affine_parameters_is_frozen",
    ),
    Defect(
        "frozen-layers-move",
        "EN and SN in a frozen stage continue to use the batch's statistics.",
        f"{LAYERS}/mixture.py",
        " and self.training and not self.frozen",
        " and self.training",
        f"{EQUATIONS}::test_a_layer_without_trainable_affine_parameters_is_frozen "
        "tests/frameworks/detectron2/test_freezing.py",
    ),
    Defect(
        "fixed-ratios-not-saved",
        "A checkpoint does not say which of SSN's ratios are fixed.",
        f"{LAYERS}/sparse.py",
        "self.register_buffer(name, torch.zeros_like(self.mean_weight))",
        "self.register_buffer(name, torch.zeros_like(self.mean_weight), persistent=False)",
        "tests/layers/test_sparse.py",
    ),
    Defect(
        "gradient-away-from-the-sphere",
        "The gradient of SSN's ratios leaves out that they stay at the radius's distance.",
        f"{LAYERS}/sparse.py",
        "stretch.where(has_direction, 1) * c",
        "stretch.where(has_direction, 1).detach() * c",
        "tests/layers/test_sparse.py",
    ),
    # ---- ops
    Defect(
        "sign-of-the-centers-gradient",
        "The gradient of x through the mean has the wrong sign.",
        f"{OPS}/cpu/job.h",
        "(offset[g] - through_center)",
        "(offset[g] + through_center)",
        f"{EQUATIONS} tests/ops/test_backends.py",
    ),
    Defect(
        "attention-blind-to-the-bias",
        "AN's attentions get no gradient through the norm's own bias, which they scale, too.",
        f"{OPS}/cpu/attentive.h",
        " + d_shift[c] * bias[c];",
        ";",
        f"{EQUATIONS} tests/ops/test_backends.py",
    ),
    Defect(
        "short-rows-about-four-values",
        "The variance of a short row loses digits, if four of its values are far from the others.",
        f"{OPS}/cpu/passes.h",
        "if (off * off <= 15 * *var && ",
        "if (",
        "tests/ops/test_cpu_kernels.py",
    ),
    Defect(
        "last-position-left-out",
        "Moments of large channels-last maps of some sizes leave out the last position.",
        f"{OPS}/cpu/job.h",
        "map->length - first)};",
        "map->length - first - (first > 0))};",
        "tests/ops/test_backends.py::test_no_position_of_a_large_map_is_left_out",
    ),
    Defect(
        "empty-input-gives-nan",
        "A batch without instances gives gradients of NaN.",
        f"{OPS}/reference.py",
        "average = torch.mean if x.numel() > 0 else torch.sum",
        "average = torch.mean",
        "tests/layers/test_behaviour.py",
    ),
    Defect(
        "backend-variable-ignored",
        "The environment variable ILM_PLUGINS_BACKEND has no effect.",
        f"{OPS}/backends.py",
        "_backend.get(_default)",
        '_backend.get("auto")',
        "tests/ops/test_backends.py::test_the_choice_of_a_process",
    ),
    Defect(
        "triton-gradient-through-coarse-variance-halved",
        "The Triton kernels halve the gradient of the means through a coarse group's variance.",
        f"{OPS}/triton/vectors.py",
        "2.0 * d_var * offset",
        "d_var * offset",
        "tests/ops/test_triton_kernels.py",
    ),
    Defect(
        "processes-of-equal-weight",
        "With sync=True each process has the same weight, however small its share of the batch.",
        f"{OPS}/processes.py",
        "shares = counts / self.count.clamp(min=1)",
        "shares = torch.ones_like(counts) / len(rows)",
        SYNCHRONIZED,
    ),
    Defect(
        "variance-between-processes-left-out",
        "With sync=True the batch's variance is the mean of the processes' variances.",
        f"{OPS}/processes.py",
        "(variances + (means - self.mean).square())",
        "variances",
        SYNCHRONIZED,
    ),
    Defect(
        "gradients-of-equal-weight",
        "With sync=True the statistics' gradient is divided equally among the processes.",
        f"{OPS}/processes.py",
        "(batch.own_count / batch.count.clamp(min=1))",
        "(1 / distributed.get_world_size(batch.group))",
        SYNCHRONIZED,
    ),
    Defect(
        "empty-process-sends-no-gradient",
        "With sync=True a process with an empty batch keeps the others waiting in backward.",
        f"{OPS}/processes.py",
        "        distributed.all_reduce(",
        "        batch.own_count and distributed.all_reduce(",
        SYNCHRONIZED,
    ),
    # ---- surgery
    Defect(
        "convert-unfreezes",
        "convert() makes weights trainable that were frozen.",
        "ilm_plugins/surgery/models.py",
        "requires_grad_(trained[name])",
        "requires_grad_(True)",
        "tests/test_surgery.py",
    ),
    Defect(
        "revert-takes-what-was-trained",
        "revert() makes a GroupNorm of a layer of which one decoder has been trained.",
        "ilm_plugins/surgery/rules.py",
        "if any(source[name].any() for name in _DECODERS)",
        "if all(source[name].any() for name in _DECODERS)",
        "tests/test_surgery.py",
    ),
    # ---- checkpoints
    Defect(
        "checkpoint-written-in-place",
        "A run that is killed while it writes a checkpoint loses the one before.",
        "ilm_plugins/checkpoints/writing.py",
        'path.with_name(f"{path.name}.{os.getpid()}{PARTIAL}")',
        "path",
        "tests/checkpoints/test_writing.py",
    ),
    Defect(
        "pickle-runs-code",
        "A .pkl checkpoint runs the code that is in it.",
        "ilm_plugins/checkpoints/reading.py",
        "kind = pickle.Unpickler if unsafe else ArrayUnpickler",
        "kind = pickle.Unpickler",
        "tests/checkpoints/test_reading.py",
    ),
    Defect(
        "prefix-of-nested-wrappers-stays",
        "A checkpoint of a model in DistributedDataParallel within torch.compile does not fit.",
        "ilm_plugins/checkpoints/contents.py",
        "for prefix in _WRAPPERS * 2:",
        "for prefix in _WRAPPERS:",
        "tests/test_surgery.py::test_versions_of_modules_are_kept",
    ),
    # ---- analysis
    Defect(
        "analysis-in-training-mode",
        "Analysis of a model in training mode uses the batch's statistics, and moves running ones.",
        "ilm_plugins/analysis/collect.py",
        "with evaluating(model), watching(",
        "with watching(",
        "tests/analysis/test_collect.py",
    ),
    Defect(
        "root-of-the-mean-square-is-no-root",
        "How far an image moves omega and beta is the mean square, not its root.",
        "ilm_plugins/analysis/tables.py",
        "np.ma.sqrt((values**2).mean(1))",
        "(values**2).mean(1)",
        "tests/analysis/test_tables.py",
    ),
    # ---- data
    Defect(
        "boxes-as-corners",
        "The boxes of the generated data set are (x0, y0, x1, y1), not COCO's (x, y, w, h).",
        "ilm_plugins/data/shapes.py",
        "[left, top, right - left, bottom - top]",
        "[left, top, right, bottom]",
        "tests/data/test_shapes.py",
    ),
    Defect(
        "pairs-flipped-apart",
        "The input and the target of a pair are flipped independently.",
        "ilm_plugins/pix2pix/pairs.py",
        "crop[:, ::-1] if flipped else crop",
        "crop[:, ::-1] if rng.random() < flip else crop",
        "tests/pix2pix/test_pairs.py",
    ),
    # ---- models
    Defect(
        "stride-in-the-second-convolution",
        "A CIFAR ResNet halves the resolution in a block's second convolution, not in its first.",
        "ilm_plugins/frameworks/openmmlab/models/cifar_resnet.py",
        """3, norm_cfg, self.stride)
        self.conv2 = conv(out_channels, out_channels, 3, norm_cfg, act_cfg=None)""",
        """3, norm_cfg)
        self.conv2 = conv(out_channels, out_channels, 3, norm_cfg, self.stride, act_cfg=None)""",
        "tests/frameworks/openmmlab/models/test_backbones.py",
    ),
    Defect(
        "dropout-in-a-block-too-many",
        "pix2pix's generator has dropout in four blocks, not in three.",
        "ilm_plugins/pix2pix/networks.py",
        "i < 3 and",
        "i <= 3 and",
        "tests/pix2pix/test_networks.py",
    ),
    # ---- evaluation
    Defect(
        "ssim-by-each-images-range",
        "SSIM takes the range of each pair of images in place of 255.",
        "ilm_plugins/pix2pix/metrics.py",
        "data_range=255.0",
        "data_range=None",
        "tests/pix2pix/test_metrics.py",
    ),
    # ---- frameworks
    Defect(
        "levels-share-running-statistics",
        "In RetinaNet all levels of the pyramid share EN's and SN's running statistics.",
        f"{HARNESS}/detectron2/norms.py",
        "layer = self[self.level]",
        "layer = self[0]",
        "tests/frameworks/detectron2/test_norms.py"
        "::test_levels_share_parameters_and_keep_their_own_running_statistics",
    ),
    Defect(
        "radius-after-the-step",
        "detectron2's RadiusHook sets the radius after an iteration, not before.",
        f"{HARNESS}/detectron2/radius.py",
        "def before_step",
        "def after_step",
        "tests/frameworks/test_radius.py",
    ),
    Defect(
        "logits-without-clipping",
        "The gradients of SSN's logits are not clipped.",
        f"{HARNESS}/radius.py",
        "nn.utils.clip_grad_norm_(logits, limit)",
        "pass",
        "tests/frameworks/test_radius.py",
    ),
    Defect(
        "validation-on-training-images",
        "detectron2's data set shapes_val has the training images.",
        f"{HARNESS}/detectron2/datasets.py",
        '"shapes_val": "validation"',
        '"shapes_val": "training"',
        "tests/frameworks/detectron2/test_datasets.py",
    ),
    Defect(
        "lazy-resume-repeats-an-iteration",
        "A LazyConfig that is resumed repeats the iteration before its checkpoint.",
        f"{HARNESS}/detectron2/train.py",
        "trainer.iter + 1 if resumed else 0",
        "trainer.iter if resumed else 0",
        "tests/frameworks/detectron2/test_train.py::test_lazy_config_trains_resumes_and_evaluates",
    ),
    Defect(
        "norm-eval-ignored",
        "With OpenMMLab's norm_eval=True EN and SN train on.",
        f"{HARNESS}/openmmlab/norms.py",
        'if model.training and getattr(model, "norm_eval", False):',
        'if not model.training and getattr(model, "norm_eval", False):',
        "tests/frameworks/openmmlab/test_norms.py",
    ),
    Defect(
        "resumed-epoch-begins-anew",
        "A run that is resumed within an epoch sees that epoch's first images again.",
        f"{HARNESS}/openmmlab/deterministic_resume.py",
        "order[self.first :]",
        "order",
        "tests/pix2pix/test_training.py::test_a_killed_run_resumes_to_the_same_weights",
    ),
    # ---- running
    Defect(
        "folder-for-several-trainings",
        "Two trainings write to one output folder at the same time.",
        f"{HARNESS}/output_folder.py",
        "fcntl.LOCK_EX | fcntl.LOCK_NB",
        "fcntl.LOCK_SH | fcntl.LOCK_NB",
        "tests/frameworks/test_folders.py",
    ),
    Defect(
        "signal-swallowed",
        "A command that Ctrl-C has stopped ends as if it had done its work.",
        f"{HARNESS}/stopping.py",
        "raise Stop(came)",
        "pass",
        "tests/frameworks/test_stopping.py",
    ),
    Defect(
        "mistake-in-another-process-is-lost",
        "Of a mistake that a process other than the first meets only that process's end is told.",
        f"{HARNESS}/launch.py",
        "read_error(files[rank])",
        "read_error(files[0])",
        "tests/frameworks/test_failures.py",
    ),
    Defect(
        "infinite-loss-trains-on",
        "With MMEngine a loss that is infinite, but not NaN, ends no training.",
        f"{HARNESS}/openmmlab/faults.py",
        "not torch.isfinite(sum(losses))",
        "torch.isnan(sum(losses))",
        "tests/frameworks/openmmlab/test_faults.py::test_only_losses_count_and_in_float32",
    ),
    # ---- reproduction and configs
    Defect(
        "shortened-run-is-a-full-recipe",
        "The report shows a shortened run as a full recipe.",
        "ilm_plugins/reproduction/record.py",
        "if planned != recipe:",
        "if planned > recipe:",
        "tests/reproduction/test_record.py",
    ),
    Defect(
        "every-seed-is-the-first",
        "Runs of several seeds on MMEngine all have seed 0.",
        f"{HARNESS}/openmmlab/run_folder.py",
        "randomness.seed={seed}",
        "randomness.seed=0",
        "tests/reproduction/test_run.py::test_a_run_has_its_seed_folder_data_and_length",
    ),
    Defect(
        "learning-rate-for-sixteen-images",
        "Mask R-CNN on two images trains with the learning rate of sixteen.",
        "configs/detectron2/Base-batch2.yaml",
        "BASE_LR: 0.0025",
        "BASE_LR: 0.02",
        "tests/configs/test_detectron2.py::test_the_recipe_is_the_papers",
    ),
    Defect(
        "iterations-of-the-other-schedule",
        "Segmentation trains for 80,000 iterations, while the rate falls as for 100,000.",
        "configs/mmseg/_base_/schedules/sgd_poly_100k.py",
        "max_iters=100000",
        "max_iters=80000",
        "tests/configs/test_mmseg.py::test_the_recipe_is_the_papers",
    ),
    Defect(
        "crop-on-its-side",
        "Cityscapes' training crops are 1024 high and 512 wide, not the other way round.",
        "configs/mmseg/_base_/datasets/cityscapes.py",
        "crop_size=(512, 1024)",
        "crop_size=(1024, 512)",
        "tests/configs/test_mmseg.py::test_the_recipe_is_the_papers",
    ),
    # ---- tools and benchmarks
    Defect(
        "demo-shows-the-first-evaluation",
        "The demo's table has the AP of the first evaluation in its folder, not of the last.",
        "ilm_plugins/cli/demo.py",
        'if "bbox/AP" in line][-1]',
        'if "bbox/AP" in line][0]',
        "tests/cli/test_demo.py",
    ),
    Defect(
        "benchmark-ratios-upside-down",
        "The benchmark's ratios are of the baseline's time to the layer's.",
        "benchmarks/measure.py",
        "[a / b for a, b in",
        "[b / a for a, b in",
        "tests/benchmarks/test_benchmarks.py",
    ),
)


def copy(root: Path) -> None:
    """Copy the tracked files, as they are in the working tree, to ``root``."""
    command = "git", "-C", str(ROOT), "ls-files", "-z"
    listed = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    for name in filter(None, listed.split("\0")):
        if (ROOT / name).exists():
            (root / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, root / name, follow_symlinks=False)


def build(root: Path) -> None:
    """Compile the C kernels of a copy, where the copied project has them compiled."""
    if list(ROOT.glob("ilm_plugins/ops/cpu/*.so")):
        status, printed = python(root, "setup.py", "-q", "build_ext", "--inplace")
        if status != 0:
            raise RuntimeError(f"the C kernels of {root} do not compile: {printed[-2000:]}")


def python(root: Path, *words: str, minutes: float = OWN) -> tuple[int, str]:
    """Run Python on a copy: its exit status, and what it has printed.

    Raises:
        subprocess.TimeoutExpired: it takes longer.
    """
    process = subprocess.Popen(
        [sys.executable, *words],
        cwd=root,
        env={**os.environ, "PYTHONPATH": str(root), "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        start_new_session=True,
    )
    RUNNING.add(process)
    try:
        printed, _ = process.communicate(timeout=60 * minutes)
    finally:
        end(process)
    return process.returncode, printed


def end(process: subprocess.Popen) -> None:
    """Kill a process, if it still runs, and all in its session."""
    RUNNING.discard(process)
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def first_failure(root: Path, words: Sequence[str], minutes: float = OWN) -> str | None:
    """Run pytest on a copy: the id of the first test that fails, or None.

    Args:
        words: arguments of pytest that choose tests.

    Raises:
        RuntimeError: pytest runs no test, or fails itself.
    """
    options = "-x", "-q", "-p", "no:cacheprovider"
    status, printed = python(root, "-m", "pytest", *options, *words, minutes=minutes)
    if status == 0:
        return None
    summary = printed.rpartition("short test summary info")[2]
    found = re.search(r"^(?:FAILED|ERROR) (.+?)(?: - .*)?$", summary, re.MULTILINE)
    if status not in (1, 2) or found is None:
        raise RuntimeError(f"pytest {' '.join(words)} ends with {status}: {printed[-2000:]}")
    return found[1]


def catch(defect: Defect, folder: Path, everywhere: Sequence[str] | None) -> str | None:
    """Apply a defect and run tests: the id of the first that catches it, or None.

    Args:
        folder: contains an unchanged copy, ``unchanged``.
        everywhere: pytest's options for the second run; None skips it.
    """
    root, unchanged = folder / defect.name, folder / "unchanged"
    # Without bytecode, by which Python might miss a change of the same second and size.
    shutil.copytree(unchanged, root, ignore=shutil.ignore_patterns("__pycache__"))
    defect.apply(root)
    if defect.file.endswith((".c", ".h")):
        build(root)
    runs = [((*NOT_LONG, *defect.tests.split()), OWN)]
    runs += [(everywhere, ALL)] if everywhere is not None else []
    #: Tests that fail without the defect, too.
    broken: list[str] = []
    try:
        for words, minutes in runs:
            while test := first_failure(root, (*words, *broken), minutes):
                if first_failure(unchanged, (test,)) is None:
                    return test
                broken.append(f"--deselect={test}")
        return None
    finally:
        shutil.rmtree(root)


def main(argv: Sequence[str] | None = None) -> int:
    """Apply the chosen defects and print the table; return 0 if all are caught, else 1."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("names", nargs="*", metavar="NAME", help="only these (default: all)")
    which = parser.add_mutually_exclusive_group()
    which.add_argument("--own-tests", action="store_true", help="only tests named with a defect")
    which.add_argument("--all-tests", action="store_true", help="then all tests, long ones too")
    parser.add_argument("--jobs", type=int, default=1, metavar="N", help="at once (default: 1)")
    args = parser.parse_args(argv)
    known = {defect.name: defect for defect in DEFECTS}
    for name in args.names:
        if name not in known:
            parser.error(f"no defect {name!r}; the defects are {', '.join(known)}")
    everywhere = None if args.own_tests else () if args.all_tests else NOT_LONG
    chosen = [known[name] for name in args.names or known]
    caught = 0
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))

    def row(defect: Defect) -> tuple[bool, str]:
        """Return whether tests catch a defect, and its row of the table."""
        start = time.monotonic()
        try:
            test = catch(defect, folder, everywhere)
            caught_by = test or f"NOT CAUGHT: {defect.behaviour}"
        except (RuntimeError, ValueError, subprocess.TimeoutExpired) as error:
            test, caught_by = None, f"NOT CAUGHT: {error}"
        return bool(test), f"{defect.name:46} {time.monotonic() - start:7.1f} s  {caught_by}"

    with tempfile.TemporaryDirectory(prefix="defects-") as name:
        folder = Path(name)
        copy(folder / "unchanged")
        build(folder / "unchanged")
        where = "import ilm_plugins; print(ilm_plugins.__file__)"
        _, printed = python(folder / "unchanged", "-c", where)
        if not printed.startswith(name):
            raise RuntimeError(f"the copy in {name} is not imported, but {printed.strip()}")
        pool = ThreadPoolExecutor(args.jobs)
        try:
            for task in as_completed([pool.submit(row, defect) for defect in chosen]):
                is_caught, line = task.result()
                caught += is_caught
                print(line, flush=True)
        finally:
            pool.shutdown(wait=False, cancel_futures=True)
            for process in {*RUNNING}:
                end(process)
    print(f"{caught} of {len(chosen)} defects are caught")
    return int(caught < len(chosen))


if __name__ == "__main__":
    sys.exit(main())
