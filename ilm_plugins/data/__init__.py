"""Data sets that the package generates itself, and the reading of others."""

#: Classes of the `shapes` data set, each with an RGB colour to draw it in, told apart by everybody
#: (Okabe and Ito's). Here, so that they cost no import.
SHAPES = {
    "circle": (230, 159, 0),
    "square": (86, 180, 233),
    "triangle": (0, 158, 115),
    "star": (204, 121, 167),
}
