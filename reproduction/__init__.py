"""The laboratory: the papers' tables, what trained layers learned, and this project's evidence."""
