"""What a bug report needs: ``python -m ilm_plugins``."""

from .cli.environment import report

print(report())
