"""What a bug report needs: ``python -m ilm_plugins``."""

from .integrations.environment import report

print(report())
