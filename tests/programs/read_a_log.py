"""Read MMEngine's log of losses without MMEngine; the argument is the checkpoint."""

import sys

from ilm_plugins.checkpoints import read

log = read(sys.argv[1])["message_hub"]["loss"]
assert log._log_history.tolist() == [1, 2]
assert "mmengine" not in sys.modules
