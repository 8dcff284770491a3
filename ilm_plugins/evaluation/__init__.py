"""How well generated images match those that they should be, and reports of it."""
