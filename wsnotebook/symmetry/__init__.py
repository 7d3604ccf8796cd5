"""Which permutations keep a network's function, found for any module; alignment of a whole zoo by them.

The files: `unification`, `rules` and `tracing` find a specification (`axes`); `matching`, `attention` and `scaling`
work on weights by it; `alignment` has the verbs for a zoo.
"""

from wsnotebook.symmetry.alignment import Alignment as Alignment
from wsnotebook.symmetry.alignment import align as align
from wsnotebook.symmetry.alignment import permute as permute
from wsnotebook.symmetry.alignment import verify as verify
from wsnotebook.symmetry.axes import Group as Group
from wsnotebook.symmetry.axes import Segment as Segment
from wsnotebook.symmetry.axes import Specification as Specification
from wsnotebook.symmetry.tracing import specification as specification
