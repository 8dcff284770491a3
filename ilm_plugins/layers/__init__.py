"""The layers: bases, and ilm, assoc, attentive, exemplar, switchable and sparse, a paper each."""

from ..errors import OptionError as OptionError
from .assoc import AssocNorm as AssocNorm
from .attentive import AttentiveNorm as AttentiveNorm
from .autoencoder import AutoencoderNorm as AutoencoderNorm
from .base import AdaptiveNorm as AdaptiveNorm
from .base import freeze as freeze
from .exemplar import ExemplarNorm as ExemplarNorm
from .ilm import ILMGroupNorm as ILMGroupNorm
from .ilm import ILMInstanceNorm as ILMInstanceNorm
from .ilm import ILMLayerNorm as ILMLayerNorm
from .mixture import MixtureNorm as MixtureNorm
from .projection import Projection as Projection
from .projection import project as project
from .registry import NORMS as NORMS
from .registry import norm_key as norm_key
from .registry import parse_call as parse_call
from .sparse import SparseSwitchNorm as SparseSwitchNorm
from .sparse import set_radius as set_radius
from .switchable import SwitchNorm as SwitchNorm
from .weight_decay import parameter_groups as parameter_groups
