"""Data sets that the package generates itself."""

#: Classes of the `shapes` data set; here, so that their names cost no import.
SHAPES = ("circle", "square", "triangle", "star")
