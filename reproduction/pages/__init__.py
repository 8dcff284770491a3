"""The tables of the documentation's pages: what ``write_pages`` writes into them."""
