"""The auto-encoder by which ILM Norm and its predecessor predict scale and shift."""

import math

import torch
from torch import Tensor

from ..ops import Autoencoder, ByHand, cast, coarsen, coarsen_vjp, moments, sum_groups
from .base import (
    AdaptiveNorm,
    Projection,
    check_choice,
    check_device,
    check_divides,
    check_dtype,
    check_eps,
    check_positive,
    project,
    sigmoid,
)

aten = torch.ops.aten


class AutoencoderNorm(AdaptiveNorm):
    """A group normalization whose weight and bias are moved by an auto-encoder of key features.

    Key features are the mean and the variance of each of N key groups of channels (Eq. 3 of either
    paper). One encoder W1 embeds both, two decoders W2 and W3 lead back to N values each, which are
    duplicated to C channels. No map has a bias.

    Parameters: ``weight``, ``bias`` (C), as in nn.GroupNorm; ``encode.weight`` W1 (M, N);
    ``decode_mean.weight`` W2 and ``decode_var.weight`` W3 (N, M). Buffer: ``omega_offset``, a
    scalar, subtracted from what omega's activation gives: before the weight is added, which so
    keeps its digits however small it is.

    M is ``hidden``, or ``max(2, N // 16)``, which reproduces the papers' parameter counts.
    """

    omega_offset: Tensor
    #: "beta" or "omega": which of the two the mean drives; the variance drives the other.
    mean_drives: str
    #: Whether ``predict`` is as in the paper's equations, with none of its tables' other forms.
    has_papers_form: bool

    def __init__(
        self,
        num_channels: int,
        num_groups: int,
        num_key_groups: int,
        eps: float,
        hidden: int | None,
        init: str,
        device: torch.device | str | None,
        dtype: torch.dtype | None,
    ) -> None:
        name = type(self).__name__
        check_divides(name, num_channels, "num_groups", num_groups)
        check_choice(name, "init", init, ("default", "normal", "identity"))
        if hidden is None:
            hidden = max(2, num_key_groups // 16)
        check_positive(name, "hidden", hidden)
        check_eps(name, eps)
        check_device(name, device)
        check_dtype(name, dtype)
        super().__init__(num_groups, num_channels, eps, device=device, dtype=dtype)
        self.num_key_groups = num_key_groups
        self.hidden = hidden
        self.init = init
        self.moment_groups = math.lcm(num_groups, num_key_groups)

        encoder = "normal" if init == "normal" else "default"
        decoder = "zeros" if init == "identity" else encoder
        factory = {"device": device, "dtype": dtype}
        self.encode = Projection(num_key_groups, hidden, init=encoder, **factory)
        self.decode_mean = Projection(hidden, num_key_groups, init=decoder, **factory)
        self.decode_var = Projection(hidden, num_key_groups, init=decoder, **factory)
        self.register_buffer("omega_offset", torch.full((), self.initial_offset, **factory))

    @property
    def initial_offset(self) -> float:
        """What zero decoders leave in omega, sigmoid(0), where it is not wanted."""
        return 0.5 if self.init == "identity" else 0.0

    def reset_parameters(self) -> None:
        super().reset_parameters()
        if hasattr(self, "omega_offset"):
            self.omega_offset.fill_(self.initial_offset)

    def rescale_tensors(self) -> tuple[Tensor, ...]:
        return (
            self.weight,
            self.bias,
            self.encode.weight,
            self.decode_mean.weight,
            self.decode_var.weight,
            self.omega_offset,
        )

    def rescaling(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """The omega and beta of each instance, by which the standardized x is rescaled (Eq. 2).

        Their distances to ``weight`` and ``bias``, B_omega and B_beta, are what the auto-encoder
        has made of the instance.

        Args:
            x: (N, C, *), the layer's input.

        Returns:
            omega, beta: (N, C) each, at least float32.
        """
        self.check_input(x)
        mean, var = moments(x, self.moment_groups)
        omega, beta = self.predict(mean, var, *cast(self.rescale_tensors(), mean.dtype))
        return omega.flatten(1), beta.flatten(1)

    def rescale(self, mean: Tensor, var: Tensor, *tensors: Tensor) -> tuple[Tensor, Tensor]:
        omega, beta = self.predict(mean, var, *tensors)
        return self.standardize_and_rescale(mean, var, omega, beta)

    def predict(self, mean: Tensor, var: Tensor, *tensors: Tensor) -> tuple[Tensor, Tensor]:
        """Eqs. 3 to 6: omega and beta, (N, key groups, C / key groups), of (N, G') moments."""
        raise NotImplementedError

    def decode(
        self, mean: Tensor, var: Tensor, encode: Tensor, decode_mean: Tensor, decode_var: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Eqs. 3 to 5 of either paper, before the last activations, of the mean and the variance.

        Returns:
            (N, key groups, 1), both: to be broadcast to the channels of a key group (Eq. 6).
        """
        # Not by products of matrices, and summed over the last dimension: over a leading one torch
        # adds in an order that depends on where in a tensor, hence in a batch, a value is.
        features = torch.stack(coarsen(mean, var, self.num_key_groups))
        embedded = torch.relu(project(features, encode))
        decoders = torch.stack((decode_mean, decode_var)).unsqueeze(1)
        return project(embedded, decoders).unsqueeze(3).unbind(0)

    def by_key_group(self, parameter: Tensor) -> Tensor:
        """(C) as (key groups, C / key groups)."""
        return parameter.view(self.num_key_groups, -1)

    def standardize_and_rescale(
        self, mean: Tensor, var: Tensor, omega: Tensor, beta: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Eqs. 1 and 2: the underlying group normalization, rescaled by omega and beta.

        Args:
            mean, var: (N, G') moments of the fine groups, by which x is standardized already.
            omega, beta: (N, key groups, C / key groups).
        """
        n, c = mean.shape[0], self.num_channels
        if self.moment_groups == self.num_groups:
            return omega.reshape(n, c), beta.reshape(n, c)
        of_fine = (n, self.moment_groups, c // self.moment_groups)
        omega, beta = omega.reshape(of_fine), beta.reshape(of_fine)
        fine = FineInGroups(mean, var, self.num_groups, self.eps)
        scale = omega * fine.ratio
        shift = torch.addcmul(beta, omega, fine.offset)
        return scale.view(n, c), shift.view(n, c)

    def autoencoder(self, activations: tuple[str, str], combine: str) -> Autoencoder:
        """``rescale``, described for kernels that compute it themselves."""
        return Autoencoder(
            self.num_groups,
            self.num_key_groups,
            self.hidden,
            self.eps,
            self.mean_drives,
            activations,
            combine,
        )

    @property
    def by_hand(self) -> ByHand | None:
        """Where ``predict`` has the papers' form, the same in fewer operations; else None."""
        return ByHand(self.rescale_by_hand, self.vjp_by_hand) if self.has_papers_form else None

    def rescale_by_hand(
        self, mean, var, weight, bias, encode, decode_mean, decode_var, omega_offset
    ):
        """``rescale``, in fewer operations.

        Returns:
            scale, shift (N, C); and for ``vjp_by_hand``: the features (N, key groups) of the mean
            and of the variance; and, for omega first and then for beta, what they are embedded in
            (2 * N, M), and the decoded and activated (2, N, key groups).
        """
        n, keys = mean.shape[0], self.num_key_groups
        features = coarsen(mean, var, keys)
        embedded = project(torch.cat(self.omega_first(*features)), encode).relu_()
        decoders = torch.stack(self.omega_first(decode_mean, decode_var)).unsqueeze(1)
        decoded = project(embedded.view(2, n, -1), decoders)
        activated = torch.stack((sigmoid(decoded[0]), torch.tanh(decoded[1])))
        omega = (activated[0] - omega_offset).unsqueeze(2) + self.by_key_group(weight)
        beta = activated[1].unsqueeze(2) + self.by_key_group(bias)
        scale, shift = self.standardize_and_rescale(mean, var, omega, beta)
        return scale, shift, (*features, embedded, activated)

    def omega_first(self, of_mean, of_var):
        """A pair, of the mean and of the variance, as for omega and for beta; or the reverse."""
        return (of_mean, of_var) if self.mean_drives == "omega" else (of_var, of_mean)

    def vjp_by_hand(
        self, dscale, dshift, kept, mean, var, weight, bias, encode, decode_mean, decode_var, offset
    ):
        """The vector-Jacobian product of ``rescale``, see :class:`~ilm_plugins.ops.ByHand`."""
        n, c = dscale.shape
        keys, hidden = self.num_key_groups, self.hidden
        *features, embedded, activated = kept
        sigmoid, tanh = activated.unbind()

        # Eqs. 1, 2 and 6
        omega = (sigmoid - offset).unsqueeze(2) + self.by_key_group(weight)
        scale = omega = omega.view(n, c)
        domega, through_groups = dscale, None
        if self.moment_groups != self.num_groups:
            of_fine = (n, self.moment_groups, c // self.moment_groups)
            omega, dscale, through_shift = (t.view(of_fine) for t in (omega, dscale, dshift))
            fine = FineInGroups(mean, var, self.num_groups, self.eps)
            scale = (omega * fine.ratio).view(n, c)
            domega = torch.addcmul(dscale * fine.ratio, through_shift, fine.offset).view(n, c)
            through_groups = fine.vjp((dscale * omega).sum(2), (through_shift * omega).sum(2))

        # Eqs. 4 and 5
        dsigmoid = aten.sigmoid_backward(sum_groups(domega, keys), sigmoid)
        dtanh = aten.tanh_backward(sum_groups(dshift, keys), tanh)
        ddecoded = torch.stack((dsigmoid, dtanh))
        decoders = torch.stack(self.omega_first(decode_mean, decode_var))
        dembedded = torch.bmm(ddecoded, decoders).view(2 * n, hidden)
        dembedded = aten.threshold_backward(dembedded, embedded, 0)
        dencode = torch.mm(dembedded.t(), torch.cat(self.omega_first(*features)))
        ddecoders = self.omega_first(*torch.bmm(ddecoded.mT, embedded.view(2, n, hidden)))

        # Eq. 3
        dfeatures = self.omega_first(*torch.mm(dembedded, encode).view(2, n, keys))
        dmean, dvar = coarsen_vjp(mean, features[0], *dfeatures)
        if through_groups is not None:
            dmean, dvar = dmean + through_groups[0], dvar + through_groups[1]
        return scale, dmean, dvar, domega.sum(0), dshift.sum(0), dencode, *ddecoders, None

    def extra_repr(self) -> str:
        return (
            f"{self.num_groups}, {self.num_channels}, eps={self.eps}, "
            f"num_key_groups={self.num_key_groups}, hidden={self.hidden}, init={self.init!r}"
        )


class FineInGroups:
    """What is standardized by its fine group, seen from the larger group around that.

    ``ratio`` times the one plus ``offset`` is the other: x standardized by the larger group.
    Both are (N, G', 1).
    """

    def __init__(self, mean: Tensor, var: Tensor, num_groups: int, eps: float) -> None:
        # Pooled as by ``coarsen``, in half the operations, because their number decides the time.
        n, fine = mean.shape
        groups, column = (n, num_groups, fine // num_groups), (n, fine, 1)
        mean, var = mean.view(groups), (var + eps).view(groups)
        self.off_center = mean - mean.mean(2, keepdim=True)
        spread = torch.addcmul(var, self.off_center, self.off_center)
        self.rstd = spread.mean(2, keepdim=True).rsqrt()
        self.std = var.sqrt()
        self.ratio = (self.std * self.rstd).view(column)
        self.offset = (self.off_center * self.rstd).view(column)

    def vjp(self, dratio: Tensor, doffset: Tensor) -> tuple[Tensor, Tensor]:
        """Gradients of mean and var, from those of ratio and offset, (N, G') all."""
        groups, moments = self.std.shape, dratio.shape
        dratio, doffset = dratio.view(groups), doffset.view(groups)
        drstd = torch.addcmul(dratio * self.std, doffset, self.off_center).sum(2, keepdim=True)
        doff_center = doffset * self.rstd
        dgroup_var = drstd * self.rstd.pow(3) * (-0.5 / groups[2])
        dmean = doff_center - doff_center.mean(2, keepdim=True)
        dmean = torch.addcmul(dmean, self.off_center, dgroup_var, value=2)
        dvar = torch.addcdiv(dgroup_var, dratio * self.rstd, self.std, value=0.5)
        return dmean.view(moments), dvar.view(moments)
