"""What the classes of the generated data set `shapes` are."""

#: Classes of the `shapes` data set, each with an RGB colour to draw it in, told apart by everybody
#: (Okabe and Ito's).
SHAPES = {
    "circle": (230, 159, 0),
    "square": (86, 180, 233),
    "triangle": (0, 158, 115),
    "star": (204, 121, 167),
}
