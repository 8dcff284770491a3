"""What a bug report needs: ``python -m ilm_plugins``."""

from .integrations.report import report

print(report())
