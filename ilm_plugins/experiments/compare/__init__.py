"""The command ``compare``: one config trained with several norms and seeds, and what differs."""
