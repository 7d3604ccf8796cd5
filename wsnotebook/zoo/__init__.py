"""Model zoos: many trained networks of one architecture as one value; trained whole at once, kept, imported.

The files: `value` (Zoo, load, concat), `training` (train, Config, plan), `recipes` (the published zoos),
`checkpoints` (from_checkpoints); `wsnotebook.engines` computes.
"""

from wsnotebook.zoo.checkpoints import from_checkpoints as from_checkpoints
from wsnotebook.zoo.recipes import RECIPES as RECIPES
from wsnotebook.zoo.recipes import SCALES as SCALES
from wsnotebook.zoo.recipes import Recipe as Recipe
from wsnotebook.zoo.recipes import recipe as recipe
from wsnotebook.zoo.training import VARIED as VARIED
from wsnotebook.zoo.training import Config as Config
from wsnotebook.zoo.training import Model as Model
from wsnotebook.zoo.training import plan as plan
from wsnotebook.zoo.training import train as train
from wsnotebook.zoo.value import Zoo as Zoo
from wsnotebook.zoo.value import concat as concat
from wsnotebook.zoo.value import load as load
