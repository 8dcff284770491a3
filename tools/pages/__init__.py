"""The tables of the documentation's pages: what tools/write_pages.py writes into them."""
