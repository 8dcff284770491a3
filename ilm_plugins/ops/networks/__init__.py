"""The kinds of networks, a folder for each: its description, and its kernels in C++ and Triton.

Their equations in torch are methods of the layers, see ``layers/``.
"""

from ..engine.network import Network
from .attentive.spec import Attentive
from .autoencoder.spec import Autoencoder
from .exemplar.spec import Exemplar
from .mixed_normalizers import NORMALIZERS
from .switch.spec import SparseSwitch, Switch

__all__ = ["NORMALIZERS", "Attentive", "Autoencoder", "Exemplar", "SparseSwitch", "Switch"]

# In the order of networks.hpp.
for _kind in (Attentive, Autoencoder, Exemplar, SparseSwitch, Switch):
    Network.by_name[_kind.__name__] = _kind
