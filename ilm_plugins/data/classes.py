"""Names and colours of the classes of the generated data set `shapes`."""

#: Class -> RGB colour, 0..255, to draw it in; from the palette of Okabe and Ito, whose colours
#: people with colour blindness can tell apart, too.
SHAPES = {
    "circle": (230, 159, 0),
    "square": (86, 180, 233),
    "triangle": (0, 158, 115),
    "star": (204, 121, 167),
}
