"""Checks of arguments, and the log."""

from . import log as log
from . import utils as utils
