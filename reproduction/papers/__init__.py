"""The papers' tables and figures: their values, the configs that run them, and our results."""
