"""The papers' tables and figures: what each gives, what runs it here, and how near it came."""
