"""How good a network is, or every network of a zoo: accuracy, calibration, barriers, novelty, intervals over runs."""

from wsnotebook.evaluation.distances import Nearest as Nearest
from wsnotebook.evaluation.distances import input_moments as input_moments
from wsnotebook.evaluation.distances import leave_one_out as leave_one_out
from wsnotebook.evaluation.distances import nearest as nearest
from wsnotebook.evaluation.landscape import Path as Path
from wsnotebook.evaluation.landscape import Plane as Plane
from wsnotebook.evaluation.landscape import interpolate as interpolate
from wsnotebook.evaluation.landscape import plane as plane
from wsnotebook.evaluation.memorisation import Comparison as Comparison
from wsnotebook.evaluation.memorisation import Novelty as Novelty
from wsnotebook.evaluation.memorisation import disagreement as disagreement
from wsnotebook.evaluation.memorisation import error_iou as error_iou
from wsnotebook.evaluation.memorisation import novelty as novelty
from wsnotebook.evaluation.recalibration import recalibrated as recalibrated
from wsnotebook.evaluation.reports import Report as Report
from wsnotebook.evaluation.reports import ensemble_accuracy as ensemble_accuracy
from wsnotebook.evaluation.reports import logits as logits
from wsnotebook.evaluation.reports import report as report
from wsnotebook.evaluation.scores import COLUMNS as COLUMNS
from wsnotebook.evaluation.scores import Score as Score
from wsnotebook.evaluation.scores import interval as interval
from wsnotebook.evaluation.scores import markdown as markdown
from wsnotebook.evaluation.scores import mean_and_half_width as mean_and_half_width
from wsnotebook.evaluation.scores import score as score
from wsnotebook.evaluation.scores import table as table
