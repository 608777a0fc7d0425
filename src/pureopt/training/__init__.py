"""Training as a pure step on a carry, and the loop around it."""

from pureopt.training._loop import Record as Record
from pureopt.training._loop import train as train
from pureopt.training._step import Aux as Aux
from pureopt.training._step import Carry as Carry
from pureopt.training._step import Step as Step
from pureopt.training._step import make_step as make_step

__all__ = ["Aux", "Carry", "Record", "Step", "make_step", "train"]
