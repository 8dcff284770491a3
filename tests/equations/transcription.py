"""The equations of the papers, transcribed literally: the yardstick of the fast layers.

Every function here is plain PyTorch, one instance, one group and one channel at a time, each line
with the number of the equation that it copies. It is slow on purpose: it is to be compared with the
paper by eye, and the implementation with it by a test, preferably in float64. Any floating dtype
works, and autograd differentiates through everything.

Common to all functions:
    x, and what is returned, are (N, C, *) with any number of spatial dimensions, none included, and
    at least one instance. They are read as (N, C, S), S the product of the spatial sizes.
    Variances are biased (divided by the number of values), save the one that running_update stores.
    eps is added to the variance, under the root: sqrt(var + eps).

Sources:
    ILM   Jia, Chen, Chen: Instance-Level Meta Normalization, CVPR 2019.
    Assoc Associate Normalization, submission to ICLR 2019.
    EN    Zhang, Peng, Wu, Li, Luo: Exemplar Normalization for Learning Deep Representation,
          CVPR 2020; its eq. 2 is Switchable Normalization (SN).
    SSN   Shao et al.: SSN, Learning Sparse Switchable Normalization via SparsestMax, CVPR 2019.
    AN    Li, Sun, Wu: Attentive Normalization, ECCV 2020, as in its detectors' box heads.
"""

import math

import torch
import torch.nn.functional as F

ACTIVATIONS = {
    "tanh": torch.tanh,
    "sigmoid": torch.sigmoid,
    "relu": F.relu,
    "leaky_relu": lambda v: F.leaky_relu(v, negative_slope=0.01),
    "relu6": F.relu6,
    "identity": lambda v: v,
}


# ---- the small parts


def flat(x):
    """x (N, C, *) -> (N, C, S), S = 1 where there are no spatial dimensions."""
    return x.reshape(*x.shape[:2], math.prod(x.shape[2:]))


def moments(values):
    """Mean and biased variance of all values of a tensor: two scalars (ILM and Assoc eq. 3)."""
    mean = values.sum() / values.numel()
    var = ((values - mean) ** 2).sum() / values.numel()
    return mean, var


def group_moments(instance, num_groups):
    """Moments of groups of consecutive channels of an instance (C, S): two (G) (ILM eq. 3)."""
    num_channels = len(instance)
    assert num_channels % num_groups == 0, (num_channels, num_groups)
    size = num_channels // num_groups  # C / N, the channels in a group
    groups = [moments(instance[g * size : (g + 1) * size]) for g in range(num_groups)]
    return torch.stack([mean for mean, _ in groups]), torch.stack([var for _, var in groups])


def duplicate(vector, num_channels):
    """The arrow of ILM eq. 6: each component is repeated for its group's channels, (G) -> (C)."""
    assert num_channels % len(vector) == 0, (num_channels, len(vector))
    size = num_channels // len(vector)
    return torch.stack([vector[channel // size] for channel in range(num_channels)])


def standardize(instance, num_groups, eps):
    """ILM eq. 1 = Assoc eq. 1, by Group Normalization's groups: (x - mu) / sqrt(gamma + eps)."""
    num_channels = len(instance)
    mean, var = (duplicate(moment, num_channels) for moment in group_moments(instance, num_groups))
    return torch.stack(
        [(instance[c] - mean[c]) / torch.sqrt(var[c] + eps) for c in range(num_channels)]
    )


def rescale(standardized, omega, beta):
    """ILM eq. 2 = Assoc eq. 2, of (C, S) by omega and beta (C): x_n = omega * x_s + beta."""
    return torch.stack([omega[c] * standardized[c] + beta[c] for c in range(len(standardized))])


# ---- ILM Norm


def ilm_norm(
    x, weight, bias, encode, decode_mean, decode_var, *,
    num_groups, key_group_size, eps, activations=("tanh", "sigmoid"), omega_offset=0.0,
):  # fmt: skip
    """ILM Norm, ILM eqs. 1 to 6: ILM+GN; ILM+IN with num_groups = C; ILM+LN with num_groups = 1.

    weight, bias (C)        B_omega, B_beta
    encode       (M, G)     W1, one matrix for means and variances; G = C / key_group_size
    decode_mean  (G, M)     W2: mean -> activations[0] -> beta
    decode_var   (G, M)     W3: variance -> activations[1] -> omega
    omega_offset            subtracted from what activations[1] gives
    """
    num_channels = x.shape[1]
    assert num_channels % key_group_size == 0, (num_channels, key_group_size)
    num_key_groups = num_channels // key_group_size  # the N of eq. 3
    assert encode.shape[1] == num_key_groups, (encode.shape, num_key_groups)
    assert decode_mean.shape == decode_var.shape == (num_key_groups, encode.shape[0])
    activation_mean, activation_var = ACTIVATIONS[activations[0]], ACTIVATIONS[activations[1]]

    outputs = []
    for instance in flat(x):
        mu, gamma = group_moments(instance, num_key_groups)  # eq. 3
        embedded_mu = torch.relu(encode @ mu)  # eq. 4
        embedded_gamma = torch.relu(encode @ gamma)  # eq. 4
        decoded_mu = activation_mean(decode_mean @ embedded_mu)  # eq. 5: tanh
        decoded_gamma = activation_var(decode_var @ embedded_gamma)  # eq. 5: sigmoid
        omega = duplicate(decoded_gamma - omega_offset, num_channels) + weight  # eq. 6
        beta = duplicate(decoded_mu, num_channels) + bias  # eq. 6
        standardized = standardize(instance, num_groups, eps)  # eq. 1
        outputs.append(rescale(standardized, omega, beta))  # eq. 2
    return torch.stack(outputs).reshape(x.shape)


# ---- AssocNorm


def assoc_norm(
    x, weight, bias, encode, decode_mean, decode_var, *,
    num_groups, num_key_groups, eps, combine="a(WE)+B", omega_offset=0.0,
):  # fmt: skip
    """AssocNorm, Assoc eqs. 1 to 6; here the mean gives omega and the variance gives beta.

    weight, bias (C)        B_omega, B_beta; without effect under combine="a(WE)"
    encode       (M, G)     W1, one matrix for means and variances; G = num_key_groups
    decode_mean  (G, M)     W2: mean -> sigmoid -> omega
    decode_var   (G, M)     W3: variance -> tanh -> beta
    combine                 Table 5: "a(WE)", "a(WE+B)", "a(WE)*B" or "a(WE)+B", which is eq. 6
    omega_offset            subtracted from what the sigmoid gives, whatever the form
    """
    num_channels = x.shape[1]
    assert encode.shape[1] == num_key_groups, (encode.shape, num_key_groups)
    assert decode_mean.shape == decode_var.shape == (num_key_groups, encode.shape[0])

    outputs = []
    for instance in flat(x):
        mu, gamma = group_moments(instance, num_key_groups)  # eq. 3
        embedded_mu = torch.relu(encode @ mu)  # eq. 4
        embedded_gamma = torch.relu(encode @ gamma)  # eq. 4
        # W2 E_mu and W3 E_gamma of eq. 5, one value a channel; a(.) is applied to one channel's
        # value at a time, so duplicating before it or after it is the same.
        wide_mu = duplicate(decode_mean @ embedded_mu, num_channels)
        wide_gamma = duplicate(decode_var @ embedded_gamma, num_channels)
        if combine == "a(WE)":  # Table 5, i
            omega = torch.sigmoid(wide_mu) - omega_offset
            beta = torch.tanh(wide_gamma)
        elif combine == "a(WE+B)":  # Table 5, ii
            omega = torch.sigmoid(wide_mu + weight) - omega_offset
            beta = torch.tanh(wide_gamma + bias)
        elif combine == "a(WE)*B":  # Table 5, iii
            omega = (torch.sigmoid(wide_mu) - omega_offset) * weight
            beta = torch.tanh(wide_gamma) * bias
        elif combine == "a(WE)+B":  # Table 5, iv, and eqs. 5 and 6
            omega = torch.sigmoid(wide_mu) - omega_offset + weight
            beta = torch.tanh(wide_gamma) + bias
        else:
            raise ValueError(combine)
        standardized = standardize(instance, num_groups, eps)  # eq. 1
        outputs.append(rescale(standardized, omega, beta))  # eq. 2
    return torch.stack(outputs).reshape(x.shape)


# ---- Attentive Normalization


def attentive_norm(
    x, weight, bias, attention_weight, attention_bias, pairs_weight, pairs_bias, *, num_groups, eps,
):  # fmt: skip
    """AN on GN: K affine pairs (K, C), mixed for each instance by its attentions: (N, C, *)."""
    num_channels, num_affine = x.shape[1], len(attention_bias)
    assert attention_weight.shape == pairs_weight.shape == pairs_bias.shape
    assert pairs_weight.shape == (num_affine, num_channels)

    outputs = []
    for instance in flat(x):
        pooled = [moments(channel) for channel in instance]
        features = torch.stack([mean / torch.sqrt(var + 0.001) for mean, var in pooled])
        mixed_weight, mixed_bias = 0.0, 0.0
        for k in range(num_affine):
            logit = (attention_weight[k] * features).sum() + attention_bias[k]
            attention = torch.clamp(logit / 6 + 0.5, 0, 1)  # hardsigmoid
            mixed_weight = mixed_weight + attention * pairs_weight[k]
            mixed_bias = mixed_bias + attention * pairs_bias[k]
        normalized = rescale(standardize(instance, num_groups, eps), weight, bias)  # GN
        outputs.append(rescale(normalized, mixed_weight, mixed_bias))
    return torch.stack(outputs).reshape(x.shape)


# ---- the statistics of EN's and SN's parts


def batch_moments(x):
    """BN's mean and biased variance (C) of x (N, C, *) over instances and positions."""
    channels = [moments(flat(x)[:, channel]) for channel in range(x.shape[1])]
    return torch.stack([mean for mean, _ in channels]), torch.stack([var for _, var in channels])


def normalizer_statistics(x, normalizer, *, num_groups=32, running_mean=None, running_var=None):
    """mu^k and (delta^k)^2 of EN eq. 1, (N, C) each; BN's are the running ones, if given."""
    num_instances, num_channels = x.shape[:2]
    if normalizer == "BN":
        assert (running_mean is None) == (running_var is None)
        mean, var = batch_moments(x) if running_mean is None else (running_mean, running_var)
        return torch.stack([mean] * num_instances), torch.stack([var] * num_instances)

    groups = {"IN": num_channels, "LN": 1, "GN": num_groups}[normalizer]
    means, variances = [], []
    for instance in flat(x):
        mean, var = group_moments(instance, groups)
        means.append(duplicate(mean, num_channels))
        variances.append(duplicate(var, num_channels))
    return torch.stack(means), torch.stack(variances)


# ---- Exemplar Normalization


def reduce_channels(row, reduce):
    """The 1-D convolution of EN section 3.3, step 1, by reduce (C/r, r, 1): (C) -> (C/r)."""
    num_out, reduction, width = reduce.shape
    assert width == 1 and num_out * reduction == len(row), (reduce.shape, len(row))
    inputs = row.reshape(num_out, reduction)
    return torch.stack([(reduce[group, :, 0] * inputs[group]).sum() for group in range(num_out)])


def softmax(logits):
    """exp(l_k) / sum_j exp(l_j), after subtracting the largest logit from all: (K) -> (K)."""
    exponentials = torch.exp(logits - logits.max().detach())
    return exponentials / exponentials.sum()


def exemplar_ratios(
    instance, means, variances, reduce, expand_weight, expand_bias, ratio_weight, ratio_bias, *,
    eps, activation="tanh", ratio_net="conv",
):  # fmt: skip
    """lambda_n (K) of EN eq. 4 for an instance (C, S): section 3.3, steps 1 to 3, or Table 9.

    means and variances are lists of K (C): the statistics Omega for this instance.
    """
    act = ACTIVATIONS[activation]
    pooled = torch.stack([moments(channel)[0] for channel in instance])  # step 1: average pooling

    if ratio_net == "mlp":  # Table 9, a: C -> C/32 -> K, in place of all that follows
        assert reduce is None
        hidden = act(expand_weight @ pooled + expand_bias)
        return softmax(ratio_weight @ hidden + ratio_bias)

    z = []  # K rows
    for mean, var in zip(means, variances, strict=True):
        normalized = (pooled - mean) / torch.sqrt(var + eps)  # step 1: pre-normalize
        if ratio_net == "conv":
            z.append(reduce_channels(normalized, reduce))  # step 1: C -> C/r, shared by all rows
        elif ratio_net == "no_conv":  # Table 9, b
            assert reduce is None
            z.append(normalized)
        else:
            raise ValueError(ratio_net)

    # step 2: v_n = z_n z_n^T, reshaped row after row to a vector of K * K
    v = torch.stack([(row * other).sum() for row in z for other in z])

    hidden = act(expand_weight @ v + expand_bias)  # step 3: K*K -> pi*K, tanh (ReLU: Table 9, c)
    return softmax(ratio_weight @ hidden + ratio_bias)  # step 3: pi*K -> K, softmax


def exemplar_norm(
    x, weight, bias, reduce, expand_weight, expand_bias, ratio_weight, ratio_bias, *,
    normalizers, reduction, eps, activation="tanh", ratio_net="conv", **options,
):  # fmt: skip
    """EN eqs. 3 and 4, section 3.3, and the ablations of EN Table 9: y (N, C, *), ratios (N, K).

    weight, bias  (K, C)       gamma^k, beta^k; (C) or (1, C): a single pair (Table 9, d)
    reduce        (C/r, r, 1)  the grouped 1-D convolution; None for "mlp" and "no_conv"
    expand_weight (pi*K, K*K)  the first fully-connected layer; (C/32, C) for "mlp"
    ratio_weight  (K, pi*K)    the second; (K, C/32) for "mlp"
    options                    of normalizer_statistics
    activation                 "tanh" or "relu" (Table 9, c), between the two layers
    ratio_net                  "conv", "no_conv" (Table 9, b) or "mlp" (Table 9, a)
    """
    num_channels = x.shape[1]
    single = weight.dim() == 1 or weight.shape[0] == 1
    assert weight.shape == bias.shape
    assert weight.shape in [(len(normalizers), num_channels), (1, num_channels), (num_channels,)]
    if ratio_net == "conv":
        assert reduce.shape == (num_channels // reduction, reduction, 1), reduce.shape

    # Omega = {(mu^k, delta^k)}, each (N, C)
    statistics = [normalizer_statistics(x, name, **options) for name in normalizers]

    outputs, all_ratios = [], []
    for n, instance in enumerate(flat(x)):
        means, variances = ([m[n] for m in pair] for pair in zip(*statistics, strict=True))
        network = reduce, expand_weight, expand_bias, ratio_weight, ratio_bias
        named = {"eps": eps, "activation": activation, "ratio_net": ratio_net}
        ratios = exemplar_ratios(instance, means, variances, *network, **named)  # eq. 4
        channels = []
        for c in range(num_channels):
            total = 0.0
            for k, (mean, var) in enumerate(statistics):
                x_hat = (instance[c] - mean[n, c]) / torch.sqrt(var[n, c] + eps)  # eq. 3
                if single:
                    total = total + ratios[k] * x_hat
                else:
                    # eq. 3; beta^k belongs to the sum over k and is not weighted by lambda
                    total = total + weight[k, c] * (ratios[k] * x_hat) + bias[k, c]
            if single:  # Table 9, d: gamma * sum_k lambda^k x_hat^k + beta
                total = weight.reshape(-1)[c] * total + bias.reshape(-1)[c]
            channels.append(total)
        outputs.append(torch.stack(channels))
        all_ratios.append(ratios)
    return torch.stack(outputs).reshape(x.shape), torch.stack(all_ratios)


# ---- Switchable Normalization


def switch_norm(
    x, weight, bias, mean_weight, var_weight, *,
    normalizers=("IN", "LN", "BN"), eps, to_ratios=softmax, **options,
):  # fmt: skip
    """EN eq. 2, with ratios (K) of logits for the means and for the variances: (N, C, *).

    to_ratios is sparsestmax for Sparse Switchable Normalization.
    """
    assert len(mean_weight) == len(var_weight) == len(normalizers)
    mean_ratios, var_ratios = to_ratios(mean_weight), to_ratios(var_weight)
    statistics = [normalizer_statistics(x, name, **options) for name in normalizers]

    outputs = []
    for n, instance in enumerate(flat(x)):
        channels = []
        for c in range(x.shape[1]):
            mixed_mean, mixed_var = 0.0, 0.0
            for k, (mean, var) in enumerate(statistics):
                mixed_mean = mixed_mean + mean_ratios[k] * mean[n, c]  # eq. 2: sum lambda^k mu^k
                mixed_var = mixed_var + var_ratios[k] * var[n, c]  # sum lambda^k (delta^k)^2
            x_hat = (instance[c] - mixed_mean) / torch.sqrt(mixed_var + eps)  # eq. 2
            channels.append(weight[c] * x_hat + bias[c])  # eq. 2
        outputs.append(torch.stack(channels))
    return torch.stack(outputs).reshape(x.shape)


# ---- Sparse Switchable Normalization


def sparsemax(logits):
    """The simplex's point nearest to the logits: max(logits - t, 0), t by bisection: (K) -> (K)."""
    low, high, values = logits.min().item() - 1, logits.max().item(), logits.tolist()
    for _ in range(64):
        middle = (low + high) / 2
        total = sum(max(value - middle, 0.0) for value in values)
        low, high = (middle, high) if total > 1 else (low, middle)
    inside = [value > high for value in values]
    t = (sum(logit for logit, of in zip(logits, inside, strict=True) if of) - 1) / sum(inside)
    return torch.stack(
        [logit - t if of else 0 * logit for logit, of in zip(logits, inside, strict=True)]
    )


def face_centre(point):
    """The centre of the simplex's face on which a point lies: of its nonzero entries, (K)."""
    nonzero = (point.detach() > 1e-12).to(point.dtype)
    return nonzero / nonzero.sum()


def sparsestmax(logits, radius):
    """SparsestMax, by the recursion of its definition. (K), number -> (K)

    w = sparsemax(logits), u the centre of its face; w itself where it is one-hot or at least at the
    distance r from u; else p = u + r (w - u) / |w - u|; where p leaves the simplex, SparsestMax of
    p again, by the radius of the sphere's section with the face of p's projection.
    """
    w = sparsemax(logits)
    u = face_centre(w)
    distance = ((w - u) ** 2).sum().sqrt()
    if (w.max() - w.min()).item() > 1 - 1e-12 or not 1e-12 < distance.item() < radius:
        return w
    p = u + radius * (w - u) / distance
    if p.min().item() >= 0:
        return p
    nearer = face_centre(sparsemax(p.detach()))
    return sparsestmax(p, max(radius**2 - ((nearer - u) ** 2).sum().item(), 0.0) ** 0.5)


# ---- running statistics


def running_update(running_mean, running_var, x, momentum):
    """One training step of BN's running statistics, which store the batch's unbiased variance."""
    mean, var = batch_moments(x)
    count = x.numel() // x.shape[1]
    unbiased = var * count / (count - 1)
    pairs = (running_mean, mean), (running_var, unbiased)
    return tuple((1 - momentum) * old + momentum * new for old, new in pairs)
