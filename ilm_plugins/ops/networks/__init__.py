"""The kinds of networks, a folder for each: its description, and its kernels in C++ and Triton.

Their equations in torch are methods of the layers, see ``layers/``.
"""

from ..engine.network import Network
from .attentive.spec import Attentive
from .autoencoder.spec import Autoencoder
from .exemplar.spec import Exemplar
from .switch.spec import SparseSwitch, Switch

__all__ = ["Attentive", "Autoencoder", "Exemplar", "SparseSwitch", "Switch"]

for _kind in (Attentive, Autoencoder, Exemplar, SparseSwitch, Switch):
    Network.kinds[_kind.__name__] = _kind
