"""The bytes that a compiled model's kernels read and write, by Inductor's own counts."""

import torch
from torch.torch_version import TorchVersion


def counts(test):
    """For tests that count, by private functions of torch as of 2.11."""
    return test if TorchVersion(torch.__version__) >= (2, 11) else None


def counted_bytes(model, x, **options):
    """The bytes of the forward and of the backward pass.

    Inductor's scheduler for Triton fuses for the CPU here, as it would for CUDA; it writes no
    kernel, and torch's own operations run.
    """
    from torch._dynamo.utils import detect_fake_mode  # here, because most tests need no compiler
    from torch._functorch.aot_autograd import make_boxed_func
    from torch._inductor import compile_fx, config
    from torch._inductor.debug import DebugContext
    from torch._inductor.graph import GraphLowering
    from torch._inductor.virtualized import V

    found = []

    def count(graph, inputs, **_):
        mode = detect_fake_mode(inputs)
        compile_fx.record_original_output_strides(graph)
        lowering = GraphLowering(graph, shape_env=mode.shape_env)
        debug = V.set_debug_handler(DebugContext())
        with V.set_graph_handler(lowering), V.set_fake_mode(mode), debug:
            lowering.run(*inputs)
            lowering.init_wrapper_code()
            lowering._update_scheduler()
            found.append(lowering.count_bytes()[0])
        return make_boxed_func(graph.forward)

    def compile(graph, inputs):
        return compile_fx.compile_fx(graph, inputs, inner_compile=count)

    with config.patch(cpu_backend="triton"):
        torch.compile(model, fullgraph=True, backend=compile, **options)(x).sum().backward()
    return found
