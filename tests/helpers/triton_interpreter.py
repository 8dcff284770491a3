"""Where Triton's kernels are tested: on a GPU, or elsewhere in Triton's interpreter.

That in a process of its own, because Triton decides for the interpreter when it is imported.
"""

import dataclasses
import os
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest
import torch

from ilm_plugins.ops.engine.backends import has_triton

CUDA = torch.cuda.is_available()
INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
DEVICE = "cuda" if CUDA and not INTERPRETED else "cpu"


def skip_without_triton():
    """Skip the whole module, at its top."""
    if not has_triton():
        pytest.skip("needs Triton 3.6 or newer", allow_module_level=True)


def runs(test):
    """For tests that launch kernels; elsewhere test_under_the_interpreter runs them."""
    return test if CUDA or INTERPRETED else None


def compiles(test):
    """For tests that compile kernels, which the interpreter does not."""
    return None if INTERPRETED else test


without_gpu = pytest.mark.skipif(CUDA, reason="there is a GPU: the tests run on it")


def run_interpreted(file, selection):
    """Run a file's tests in a process that interprets kernels; ``selection`` is pytest's -m."""
    pytest.importorskip("numpy", reason="Triton's interpreter needs numpy")
    seed = f"--seed={os.environ['ILM_PLUGINS_TEST_SEED']}"
    strict = ["--strict-numbers"] if os.environ["ILM_PLUGINS_TEST_STRICT"] else []
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", seed, *strict, file]
    command += ["-m", selection, "-k", "not test_under_the_interpreter"]
    environment = {**os.environ, "TRITON_INTERPRET": "1"}
    cwd = Path(__file__).parents[2]
    done = subprocess.run(command, env=environment, cwd=cwd, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-5000:] + done.stderr[-5000:]
    assert " passed" in done.stdout
    assert " skipped" not in done.stdout


if INTERPRETED:
    # Triton 3.6's interpreter has bounds of loops as arrays of one element, which NumPy 2.4 no
    # longer takes for a number.
    import numpy as np
    import triton.language as tl
    from triton.runtime import interpreter

    def make_binary(function):
        return lambda builder, lhs, rhs: builder.binary_op(lhs, rhs, function)

    # Of NaN and a number, a GPU's maximum is the number, and the interpreter's is NaN.
    interpreter.InterpreterBuilder.create_maxnumf = make_binary(np.fmax)
    interpreter.InterpreterBuilder.create_minnumf = make_binary(np.fmin)

    patch_tensor, patch_language = interpreter._patch_lang_tensor, interpreter._patch_lang
    #: The modules of the language that are patched for the kernel which runs.
    patched = set()

    def patch_tensor_and_index(tensor, scope):
        patch_tensor(tensor, scope)
        scope.set_attr(tensor, "__index__", lambda self: int(self.handle.data.item()))

    @cache
    def modules_of(function):
        found = function.__globals__.values()
        return {module for module in (tl, tl.core) if any(value is module for value in found)}

    def patch_language_once(function):
        """Not again for each function that a kernel calls."""
        used = modules_of(function)
        if used <= patched:
            return None  # which only kernels need, not what they call
        scope, before = patch_language(function), {*patched}
        patched.update(used)
        if not before:  # of the kernel itself
            restore = scope.restore
            scope.restore = lambda: (patched.clear(), restore())
        return scope

    interpreter._patch_lang_tensor = patch_tensor_and_index
    # It saves 18 of 31 CPU seconds of the everyday tests.
    interpreter._patch_lang = patch_language_once
    # Whether a sum of integers overflows, which the interpreter computes but does not report:
    # 30 of 80 CPU seconds of the wide tests.
    options = dataclasses.replace(interpreter.interpreter_builder.options, sanitize_overflow=False)
    interpreter.interpreter_builder.options = options

    # Hardly any operation needs the type of a tuple. Of 64 CPU seconds, the wide tests included,
    # without dtypes that are kept it is 12 more, and without types on demand 14.
    find_dtype, dtypes = interpreter._get_np_dtype, {}
    make_tuple, find_field = tl.core.tuple.__init__, tl.core.tuple.__getattr__

    def find_dtype_once(dtype):
        if dtype.name not in dtypes:
            dtypes[dtype.name] = find_dtype(dtype)
        return dtypes[dtype.name]

    def make_tuple_quickly(self, values, type=None):
        if type is None:
            self.values = [*values]
        else:
            make_tuple(self, values, type)

    def find_type(self, name):
        if name != "type":
            return find_field(self, name)
        self.type = tl.core._type_for_tuple_values(self.values)
        return self.type

    interpreter._get_np_dtype = find_dtype_once
    tl.core.tuple.__init__, tl.core.tuple.__getattr__ = make_tuple_quickly, find_type
