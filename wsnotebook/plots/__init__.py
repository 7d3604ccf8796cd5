"""A result in, a matplotlib Figure out. Every function returns a new Figure and touches no global state."""

from wsnotebook.plots.common import STYLE as STYLE
from wsnotebook.plots.mixture import Frame as Frame
from wsnotebook.plots.mixture import animate as animate
from wsnotebook.plots.mixture import before_after as before_after
from wsnotebook.plots.mixture import frame as frame
from wsnotebook.plots.mixture import histogram as histogram
from wsnotebook.plots.mixture import mixture_dynamics as mixture_dynamics
from wsnotebook.plots.mixture import mixture_frame as mixture_frame
from wsnotebook.plots.mixture import top as top
from wsnotebook.plots.networks import file_sizes as file_sizes
from wsnotebook.plots.networks import filters as filters
from wsnotebook.plots.networks import front as front
from wsnotebook.plots.networks import layer_sizes as layer_sizes
from wsnotebook.plots.networks import training_curves as training_curves
from wsnotebook.plots.tuning import ablation as ablation
from wsnotebook.plots.tuning import pruning as pruning
from wsnotebook.plots.tuning import saved_epochs as saved_epochs
from wsnotebook.plots.tuning import trial_frame as trial_frame
from wsnotebook.plots.tuning import trials as trials
