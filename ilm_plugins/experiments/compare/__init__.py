"""The command ``compare``: train one config with several norms, and report differences."""
