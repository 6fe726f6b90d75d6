"""The network, in pure torch: USRNet's restorer, DAN's estimator and their alternation."""

from pipeline.model.blind import BlindUSRNet, restorer_of
from pipeline.model.fourier import BlurOperator, data_step
from pipeline.model.rounds import BlindOutput, Round
from pipeline.model.upsample import upsample
from pipeline.model.usrnet import USRNet

__all__ = ["BlindOutput", "BlindUSRNet", "BlurOperator", "Round", "USRNet", "data_step", "restorer_of", "upsample"]
