"""Draw the figures of the documentation: ``python docs/draw.py``; nothing but Python is needed."""

from pathlib import Path
from typing import NamedTuple
from xml.sax.saxutils import escape

FIGURES = Path(__file__).parent / "figures"
#: Of a column and a row of the grid, of a box and of a line of text, in pixels.
COLUMN, ROW, HEIGHT, LINE = 176, 84, 56, 17
MARGIN, WIDTH = 16, 148
FILLS = {"data": "#ffffff", "fixed": "#dcecf7", "learned": "#fbe6c8", "part": "#dcecf7"}


class Box(NamedTuple):
    """Text in a cell of the grid; ``width`` in columns."""

    column: float
    row: float
    text: str
    kind: str = "fixed"
    width: float = 1


class Figure(NamedTuple):
    """Boxes, the arrows between them, and what it shows, for readers who cannot see it."""

    title: str
    boxes: dict[str, Box]
    arrows: tuple[tuple[str, str], ...]
    legend: str = ""


def extent(box: Box) -> tuple[float, float, float, float]:
    """Left, top, right and bottom."""
    left, top = MARGIN + box.column * COLUMN, MARGIN + box.row * ROW
    return left, top, left + WIDTH + (box.width - 1) * COLUMN, top + HEIGHT


def draw(figure: Figure) -> str:
    """A figure as SVG."""
    extents = {name: extent(box) for name, box in figure.boxes.items()}
    right = max(e[2] for e in extents.values()) + MARGIN
    bottom = max(e[3] for e in extents.values()) + MARGIN + (LINE if figure.legend else 0)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {right:g} {bottom:g}" '
        f'width="{right:g}" font-family="Helvetica, Arial, sans-serif" font-size="13" role="img">',
        f"<title>{escape(figure.title)}</title>",
        '<defs><marker id="tip" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" '
        'markerHeight="7" orient="auto"><path d="M0 0L8 4L0 8z" fill="#444"/></marker></defs>',
        f'<rect width="{right:g}" height="{bottom:g}" fill="#fff"/>',
    ]
    parts += (arrow(extents[start], extents[end]) for start, end in figure.arrows)
    parts += (text_box(box, extents[name]) for name, box in figure.boxes.items())
    if figure.legend:
        parts.append(f'<text x="{MARGIN}" y="{bottom - 8:g}" fill="#444">{figure.legend}</text>')
    return "\n".join((*parts, "</svg>", ""))


def text_box(box: Box, extent: tuple[float, float, float, float]) -> str:
    left, top, right, bottom = extent
    lines = box.text.split("\n")
    first = (top + bottom) / 2 + 5 - LINE * (len(lines) - 1) / 2
    shape = (
        f'<rect x="{left:g}" y="{top:g}" width="{right - left:g}" height="{bottom - top:g}" '
        f'rx="6" fill="{FILLS[box.kind]}" stroke="#444"/>'
    )
    texts = (
        f'<text x="{(left + right) / 2:g}" y="{first + LINE * i:g}" text-anchor="middle" '
        f'font-weight="{"normal" if i else "bold"}">{escape(line)}</text>'
        for i, line in enumerate(lines)
    )
    return "\n".join((shape, *texts))


def arrow(start: tuple[float, float, float, float], end: tuple[float, float, float, float]) -> str:
    """From one box to another, along the row where they share no columns, else down or up."""
    if start[2] < end[0]:
        x1, y1, x2, y2 = start[2], (start[1] + start[3]) / 2, end[0], (end[1] + end[3]) / 2
    else:
        middle = (max(start[0], end[0]) + min(start[2], end[2])) / 2
        down = start[3] < end[1]
        x1, y1, x2, y2 = middle, start[3 if down else 1], middle, end[1 if down else 3]
    line = f'x1="{x1:g}" y1="{y1:g}" x2="{x2:g}" y2="{y2:g}"'
    return f'<line {line} stroke="#444" marker-end="url(#tip)"/>'


LEGEND = "blue: computed from x; orange: learned"


def autoencoder(title: str, of_mean: str, of_var: str) -> Figure:
    """ILM Norm's and AssocNorm's rescaling; which of omega and beta each moment drives."""
    activation = {"beta": "tanh", "omega": "sigmoid"}
    boxes = {
        "x": Box(0, 0.5, "x\n(N, C, H, W)", "data"),
        "mean": Box(1, 0, "mean\nof each key group"),
        "var": Box(1, 1, "variance\nof each key group"),
        "encode": Box(2, 0.5, "encode\nReLU(W1 ·), shared", "learned"),
        "decode mean": Box(3, 0, f"decode mean\n{activation[of_mean]}(W2 ·)", "learned"),
        "decode var": Box(3, 1, f"decode var\n{activation[of_var]}(W3 ·)", "learned"),
        "of mean": Box(4, 0, f"{of_mean}\n+ B_{of_mean}", "learned"),
        "of var": Box(4, 1, f"{of_var}\n+ B_{of_var}", "learned"),
        "y": Box(5, 0.5, "y\nomega · x̂ + beta", "data"),
        "standardize": Box(1, 2, "x̂\nx by its groups' mean and deviation", width=4),
    }
    arrows = (
        *(("x", "mean"), ("x", "var"), ("mean", "encode"), ("var", "encode")),
        *(("encode", "decode mean"), ("encode", "decode var"), ("decode mean", "of mean")),
        *(("decode var", "of var"), ("of mean", "y"), ("of var", "y")),
        *(("x", "standardize"), ("standardize", "y")),
    )
    return Figure(title, boxes, arrows, LEGEND)


EN = Figure(
    "Exemplar Normalization: each sample's ratios from its own spatial means",
    {
        "x": Box(0, 0.5, "x\n(N, C, H, W)", "data"),
        "means": Box(1, 0, "spatial means\nby IN, LN, BN: K, C"),
        "reduce": Box(2, 0, "reduce z\ngrouped conv: K, C/r", "learned"),
        "correlate": Box(3, 0, "correlate\nz zᵀ: K, K"),
        "ratio": Box(4, 0, "ratios\ntanh, Linear, softmax", "learned"),
        "maps": Box(1, 1, "x̂_1 ... x̂_K\nx by the mean and the deviation of IN, LN, BN", width=4),
        "y": Box(5, 0.5, "y\nΣ (weight_k λ_k x̂_k + bias_k)", "data", 1.3),
    },
    (
        *(("x", "means"), ("means", "reduce"), ("reduce", "correlate"), ("correlate", "ratio")),
        *(("ratio", "y"), ("x", "maps"), ("maps", "y")),
    ),
    LEGEND,
)
SN = Figure(
    "Switchable Normalization: one mixture of statistics for all samples",
    {
        "x": Box(0, 0.5, "x\n(N, C, H, W)", "data"),
        "mean": Box(1, 0, "means\nof IN, LN, BN"),
        "var": Box(1, 1, "variances\nof IN, LN, BN"),
        "mixed mean": Box(2, 0, "mixed mean\nby softmax(w)", "learned"),
        "mixed var": Box(2, 1, "mixed variance\nby softmax(w')", "learned"),
        "standardize": Box(3, 0.5, "x̂\nby the mixed moments"),
        "y": Box(4, 0.5, "y\nweight · x̂ + bias", "data"),
    },
    (
        *(("x", "mean"), ("x", "var"), ("mean", "mixed mean"), ("var", "mixed var")),
        *(("mixed mean", "standardize"), ("mixed var", "standardize"), ("standardize", "y")),
    ),
    LEGEND,
)
AN = Figure(
    "Attentive Normalization: affine pairs mixed by attention on the instance's channels",
    {
        "x": Box(0, 0.5, "x\n(N, C, H, W)", "data"),
        "features": Box(1, 0, "features\nmean / deviation: C"),
        "attention": Box(2, 0, "attentions\nhardsigmoid(A · + b): K", "learned", 1.15),
        "pairs": Box(3.3, 0, "scale, shift\nΣ a_k W_k, Σ a_k B_k", "learned"),
        "standardize": Box(1, 1, "GN(x)\nx by its groups' mean and deviation", width=3.3),
        "y": Box(4.5, 0.5, "y\nscale · GN(x) + shift", "data"),
    },
    (
        *(("x", "features"), ("features", "attention"), ("attention", "pairs"), ("pairs", "y")),
        *(("x", "standardize"), ("standardize", "y")),
    ),
    LEGEND,
)
ARCHITECTURE = Figure(
    "The parts of the package: each knows only what is below or beside it",
    {
        "tools": Box(0, 0, "tools/\none command each, a few lines", "part", 5),
        "reproduction": Box(0, 1, "reproduction/\nthe papers' tables", "part", 2),
        "cli": Box(2, 1, "cli/\nthe command lines", "part", 3),
        "pix2pix": Box(0, 2, "pix2pix/\nimage translation", "part"),
        "frameworks": Box(
            1, 2, "frameworks/\ndetectron2, OpenMMLab: nothing below knows them", "part", 4
        ),
        "data": Box(0, 3, "data/\nimages", "part"),
        "checkpoints": Box(1, 3, "checkpoints/\nwhole, without code", "part"),
        "surgery": Box(2, 3, "surgery/\nconversion", "part"),
        "analysis": Box(3, 3, "analysis/\nratios, FLOPs, plots", "part", 2),
        "layers": Box(0, 4, "layers/\none file for each paper: its equations", "part", 5),
        "ops": Box(0, 5, "ops/\nmoments, rescale, affine: one primitive", "part", 5),
        "reference": Box(0, 6, "reference.py\ndifferentiable", "part"),
        "plain": Box(1, 6, "plain.py\ntorch operations", "part"),
        "cpu": Box(2, 6, "cpu/\nCPU: C kernels", "part"),
        "triton": Box(3, 6, "triton/\nCUDA", "part", 2),
    },
    (
        *(("tools", "reproduction"), ("tools", "cli"), ("reproduction", "cli")),
        *(("cli", "frameworks"), ("pix2pix", "frameworks"), ("pix2pix", "data")),
        *(("frameworks", "checkpoints"), ("frameworks", "surgery"), ("frameworks", "analysis")),
        *(("surgery", "layers"), ("analysis", "layers")),
        *(("layers", "ops"), ("ops", "reference"), ("ops", "plain"), ("ops", "cpu")),
        ("ops", "triton"),
    ),
)
DRAWN = {
    "ilm": autoencoder("ILM Norm: the mean drives beta, the variance omega", "beta", "omega"),
    "assocnorm": autoencoder(
        "AssocNorm: the mean drives omega, the variance beta", "omega", "beta"
    ),
    "en": EN,
    "sn": SN,
    "an": AN,
    "architecture": ARCHITECTURE,
}

if __name__ == "__main__":
    for name, figure in DRAWN.items():
        (FIGURES / f"{name}.svg").write_text(draw(figure), encoding="utf-8")
