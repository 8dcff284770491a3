"""The base class of all layers: forward pass, input check, initialization."""

import functools
import inspect
import math
from collections.abc import Callable, Mapping
from typing import Any, ClassVar, cast

from torch import Tensor, nn
from torch.fx import Proxy, Tracer

from ..errors import OptionError
from ..ops import Activation, Network, SharedBatch, adaptive_norm
from ..ops.engine import operators
from ..ops.engine.activation import FUNCTIONS
from ..ops.engine.reference import Rescale
from .children import TensorNames, tensors_of
from .options import check_known, parameters_of

#: Modules whose initializers would overwrite the weights of a norm's sub-networks.
INITIALIZERS = {"mmengine.model.weight_init", "mmcv.cnn.utils.weight_init"}
#: Methods that a subclass may replace without other equations.
BESIDE_EQUATIONS = {"reset_parameters", "normalize"}

#: The attribute with the plans that a layer keeps until any other attribute is set.
KEPT = "_kept_plans"


class AdaptiveNorm(nn.GroupNorm):
    """A normalization whose scale and shift are computed from the input's moments.

    It derives from :class:`torch.nn.GroupNorm` because frameworks recognize norms by that class,
    for weight decay and for initialization. Each layer repeats nn.GroupNorm as its last base,
    because MMEngine's initializers look at direct bases only. ``weight`` and ``bias`` are the
    norm's own; all other parameters are in child modules and get the ordinary weight decay, except
    SN's logits of the ratios, which get the norms' weight decay.

    Shape: input and output (N, C, *), any number of spatial dimensions. Float32 and bfloat16 inputs
    are normalized as in float64, up to rounding, while they differ from their means by at most 2^52
    (4.5e15). From 1e19 on, squares overflow, and outputs are 0 or NaN, as nn.GroupNorm's.

    A subclass defines which moments it needs (``moment_groups``), how it computes scale and shift
    (``rescale``), and from which tensors (``rescale_tensors``).

    Args:
        num_channels: the number of channels, C.
        eps: added to each variance, above 0 and at most 1.
        device, dtype: of the parameters and buffers, as in nn.GroupNorm.

    All layers take these arguments. Options that must divide C, such as ``num_groups``, are "auto"
    by default: the paper's number where it divides C, else the greatest common divisor of both,
    which the layer's ``repr`` marks.

    Raises:
        ValueError: an option is unknown or invalid, or a given number does not divide C.
    """

    #: Number of channel groups whose moments ``rescale`` receives; divides the number of channels.
    moment_groups: int
    #: The kind of network that ``rescale`` is: it names the tensors, and kernels may compute it.
    #: They do not in a subclass that replaces a method, except ``normalize`` and
    #: ``reset_parameters``, because its equations differ, unless it sets ``network`` again.
    network: ClassVar[Any] = None
    _replaces_equations: ClassVar[bool] = False
    #: For compiled models; a method, because Dynamo passes no module to a function.
    find_operator = operators.find_operator
    #: Options that must divide the number of channels -> the paper's number, "auto"'s largest.
    fits_width: Mapping[str, int] = {"num_groups": 32}
    #: Whether :func:`freeze` has frozen the layer.
    frozen: bool = False
    #: The hook, of both frameworks, that a training with the layer needs.
    training_hook: ClassVar[str | None] = None
    #: Applied to the normalized values, in the same pass.
    fused_activation: Activation | None = None
    #: Initial values of the layer's parameters and buffers, without its child modules', by name.
    initial_values: Mapping[str, float] = {"weight": 1.0, "bias": 0.0}

    def __init_subclass__(cls, **options):
        super().__init_subclass__(**options)
        network = cls.network
        if not (network is None or (isinstance(network, type) and issubclass(network, Network))):
            raise TypeError(f"{cls.__name__}.network must be a subclass of ops.Network or None")
        cls._replaces_equations = _replaces_equations(cls)
        if "__init__" in vars(cls):
            cls.__init__ = _checking(cls.__init__)  # type: ignore[method-assign, misc]

    def rescale(self, mean: Tensor, var: Tensor, *tensors: Tensor) -> tuple[Tensor, Tensor]:
        """Compute scale and shift of the standardized x from its moments; subclasses implement it.

        Args:
            mean, var: (N, moment_groups) means and biased variances of channel groups of x.
            tensors: what :meth:`rescale_tensors` returns.

        Returns:
            scale, shift: (N, C) each; y = scale * (x - mean) / sqrt(var + eps) + shift.
        """
        raise NotImplementedError

    def rescale_tensors(self) -> tuple[Tensor | None, ...]:
        """Return the parameters and buffers that ``rescale`` takes after the moments.

        A layer with a :attr:`network` returns the network's tensors, and ``network.named`` makes
        them a named tuple, with ``_`` for ``.``.
        """
        return tensors_of(self, self._tensor_names())

    def _tensor_names(self) -> TensorNames:
        """Return (child or "", name) of each tensor of the network but BN's statistics."""
        if self.network is None:
            name = type(self).__name__
            raise NotImplementedError(f"{name} has no network, so it must define rescale_tensors")
        return self.network.places

    # As ``find_operator``: Dynamo neither traces it nor guards on what it returns.
    _tensor_names._dynamo_marked_constant = True  # type: ignore[attr-defined]

    @property
    def has_papers_form(self) -> bool:
        """Whether the layer computes the paper's equations, not a variant from its tables."""
        return True

    def describe(self) -> Network | None:
        """Return the layer's options as kernels take them; None if only ``rescale`` computes it."""
        if self.network is None or self._replaces_equations or not self.has_papers_form:
            return None
        return self.network.of(self)

    def reset_parameters(self) -> None:
        """Initialize child modules again, and the tensors named in :attr:`initial_values`."""
        # nn.GroupNorm's constructor calls this before a subclass has registered further tensors.
        for name, tensor in {**self._parameters, **self._buffers}.items():
            if tensor is not None and name in self.initial_values:
                nn.init.constant_(tensor, self.initial_values[name])
        child: Any
        for child in self.children():
            if hasattr(child, "reset_parameters"):  # a parametrization may lack it
                child.reset_parameters()

    def apply(self, fn: Callable[[nn.Module], None]) -> "AdaptiveNorm":
        """Apply ``fn`` as nn.Module does, but OpenMMLab's initializers only to the layer."""
        # That of ``zero_init_residual`` would set the networks' weights to 0, too, for good.
        if fn.__module__ in INITIALIZERS:
            fn(self)
            return self
        return super().apply(fn)

    def __call__(self, *args, **options) -> Any:
        """Call the layer; torch.fx records the call as one node, and the hooks run in the graph.

        As in the norms of torch, the argument may be called ``input``.
        """
        if "input" in options:
            args = options.pop("input"), *args
        if args and isinstance(x := args[0], Proxy):
            return cast(Tracer, x.tracer).call_module(self, self._record, args, options)
        return super().__call__(*args, **options)

    def forward(self, x: Tensor) -> Tensor:
        """Normalize x (N, C, *); the output has x's shape, dtype and memory layout.

        Args:
            x: (N, C, *).

        Raises:
            ValueError: x has fewer than two dimensions, the wrong number of channels, or no
                floating point dtype.
            RuntimeError: :func:`~ilm_plugins.ops.use_backend` forces a backend that cannot run x;
                or a tensor of the layer is None.
        """
        if isinstance(x, Proxy):  # torch.fx traces a layer alone by its forward
            return self._record(x)
        self.check_input(x)
        activation = self.fused_activation
        # A subclass may override ``normalize`` without an activation.
        return self.normalize(x) if activation is None else self.normalize(x, activation)

    def __prepare_scriptable__(self) -> None:
        """Raise RuntimeError; torch.jit.script calls this for each module of a model."""
        raise RuntimeError(
            f"torch.jit.script cannot compile {type(self).__name__}; first replace each layer by "
            "torch.jit.trace(layer, example)"
        )

    def normalize(self, x: Tensor, activation: Activation | None = None) -> Tensor:
        """Return the normalized x, whose shape and dtype were checked, or its activation.

        A subclass that applies a function to the result overrides it, and keeps its base's kernels.
        """
        return self._normalize_by_moments(x, activation)

    def _record(self, x: Proxy) -> Any:
        """Record a call of the layer as one node, as torch.fx does for the modules of torch."""
        tracer = cast(Tracer, x.tracer)
        name = tracer.path_of_module(self)
        if not name:
            raise RuntimeError(
                f"torch.fx cannot trace {type(self).__name__} alone; trace a module around it, "
                "such as torch.nn.Sequential(layer)"
            )
        return tracer.create_proxy("call_module", name, (x,), {})

    def _normalize_by_moments(
        self,
        x: Tensor,
        activation: Activation | None = None,
        running: tuple = (),
        rescale: Rescale | None = None,
        batch: SharedBatch | None = None,
    ) -> Tensor:
        """Return the normalized x by :func:`ops.adaptive_norm`."""
        return adaptive_norm(
            x,
            self.moment_groups,
            self.eps,
            rescale or self.rescale,
            *self.rescale_tensors(),
            describe=self.describe,
            running=running,
            plans=self.kept_plans,
            activation=activation,
            batch=batch,
        )

    def kept_plans(self) -> dict:
        """Return the plans of kernels that the layer keeps, until one of its attributes is set."""
        # Among the attributes, but never in a copy or a pickle, whose layer may change.
        return self.__dict__.setdefault(KEPT, {})

    def __setattr__(self, name: str, value: Any) -> None:
        if name == "fused_activation":
            check_activation(type(self).__name__, value)
        super().__setattr__(name, value)
        self.__dict__.pop(KEPT, None)

    def __delattr__(self, name: str) -> None:
        super().__delattr__(name)
        self.__dict__.pop(KEPT, None)

    def __getstate__(self) -> dict[str, Any]:
        state = super().__getstate__()
        return {name: value for name, value in state.items() if name != KEPT}

    def unused_options(self) -> list[str]:
        """Return options that have no effect beside the layer's others."""
        return []

    def extra_repr(self) -> str:
        """Return the constructor's arguments that have an effect, without device and dtype.

        A note marks each number that is smaller than the paper's to divide the width.
        """
        values = {name: getattr(self, name, False) for name in parameters_of(type(self))}
        if self.fused_activation is not None:
            values["fused_activation"] = self.fused_activation.name
        shown = {name: repr(value) for name, value in values.items() if value is not False}
        for name, most in self.fits_width.items():
            if name in shown and values[name] == math.gcd(most, self.num_channels) < most:
                shown[name] += f" ({most} does not divide {self.num_channels})"
        unused = self.unused_options()
        return ", ".join(f"{name}={text}" for name, text in shown.items() if name not in unused)

    def check_input(self, x: Tensor) -> None:
        if x.dim() < 2 or x.size(1) != self.num_channels:
            fix = "build the layer with num_channels equal to the input's second dimension"
            if x.dim() > 2 and x.shape[-1] == self.num_channels:
                call = "layer(x.movedim(-1, 1)).movedim(1, -1)"
                fix = f"channels come last, as in tokens (N, L, C); call {call}, or keep LayerNorm"
            elif x.dim() < 2 or (x.dim() == 3 and x.shape[0] == self.num_channels):
                fix = "add the dimension of the batch, for example by x.unsqueeze(0)"
            raise ValueError(
                f"{type(self).__name__}: got an input of shape {tuple(x.shape)}, expected "
                f"(N, {self.num_channels}, *); {fix}"
            )
        if not x.is_floating_point():
            raise ValueError(
                f"{type(self).__name__}: got an input of {x.dtype}, expected floating point; "
                "convert it with x.float()"
            )


def check_activation(layer: str, value: Any) -> None:
    if value is not None and not (isinstance(value, Activation) and value.is_known):
        expected = f"set None, or an ilm_plugins.ops.Activation of {', '.join(FUNCTIONS)}"
        raise OptionError(
            f"{layer}: fused_activation={value!r} is none that kernels apply; {expected}"
        )


def _checking(init: Callable[..., None]) -> Callable[..., None]:
    """Wrap a constructor: unknown options are an OptionError."""
    parameters = inspect.signature(init).parameters

    # Frameworks construct layers from configs: a misspelt option gets our message instead of
    # Python's TypeError.
    @functools.wraps(init)
    def construct(self, /, *args, **options) -> None:
        name = type(self).__name__
        check_known(name, options, parameters)
        by_position = [*parameters][1 : 1 + len(args)]
        if "num_channels" in by_position and "num_channels" in options:
            raise OptionError(f"{name}: num_channels is the model's; leave it out")
        init(self, *args, **options)

    return construct


def _replaces_equations(cls: type[AdaptiveNorm]) -> bool:
    """Whether a class replaces methods of the base that defines its ``network``."""
    owner = next(base for base in cls.__mro__ if "network" in vars(base))
    replaced = {
        name
        for base in cls.__mro__[: cls.__mro__.index(owner)]
        for name, value in vars(base).items()
        if hasattr(owner, name) and (inspect.isroutine(value) or isinstance(value, property))
    }
    # Methods of every module, as fully_shard and parametrize replace them, are no equations.
    return any(not hasattr(nn.Module, name) for name in replaced - BESIDE_EQUATIONS)


def freeze(module: nn.Module, frozen: bool = True) -> nn.Module:
    """Freeze this package's layers in a module, in place, as FrozenBatchNorm2d is.

    Their parameters require no gradient, and running statistics are used in training mode, too,
    without updates. All other modules stay as they are. Freeze before you build the optimizer and
    before you wrap the model for several processes.

    Args:
        module: a model, a part of it or a single layer.
        frozen: False to make frozen layers trainable again.

    Returns:
        The module.

    Example:
        >>> layer = ilm_plugins.freeze(ilm_plugins.ExemplarNorm(64))
        >>> layer.weight.requires_grad
        False
    """
    for layer in module.modules():
        if isinstance(layer, AdaptiveNorm):
            layer.requires_grad_(not frozen)
            layer.frozen = frozen
    return module
