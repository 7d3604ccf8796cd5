"""A vector of floats as a numba type: a compiler turns a plain loop into vectors only where the loop is innermost.

A convolution's sums should stay in registers over several loops, so here they are said outright. Indices are not
checked, and arrays are contiguous. (numba keeps compiled code by its file: after an edit here, touch its users.)
"""

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic, models, register_model

WIDTH = 8  # floats of a vector, which LLVM splits or not as the processor needs
VECTOR = ir.VectorType(ir.FloatType(), WIDTH)


class Vector(types.Type):
    """WIDTH float32 numbers in a register."""

    def __init__(self):
        super().__init__("Vector")


vector = Vector()


@register_model(Vector)
class _VectorModel(models.PrimitiveModel):
    def __init__(self, manager, kind):
        super().__init__(manager, kind, VECTOR)


def _place(context, builder, array_type, array, index):
    data = context.make_array(array_type)(context, builder, array).data
    return builder.gep(data, [index])


@intrinsic
def load(typing, array, index):
    """The WIDTH numbers array[index : index + WIDTH]."""

    def generate(context, builder, signature, arguments):
        pointer = _place(context, builder, signature.args[0], *arguments)
        return builder.load(builder.bitcast(pointer, VECTOR.as_pointer()), align=4)

    return vector(array, types.intp), generate


@intrinsic
def store(typing, array, index, value):
    """array[index : index + WIDTH] = value."""

    def generate(context, builder, signature, arguments):
        pointer = _place(context, builder, signature.args[0], *arguments[:2])
        builder.store(arguments[2], builder.bitcast(pointer, VECTOR.as_pointer()), align=4)
        return context.get_dummy_value()

    return types.void(array, types.intp, vector), generate


@intrinsic
def peek(typing, array, index):
    """array[index], where index is not negative."""

    def generate(context, builder, signature, arguments):
        return builder.load(_place(context, builder, signature.args[0], *arguments))

    return array.dtype(array, types.intp), generate


def _in_every_lane(builder, value):
    single = builder.insert_element(ir.Constant(VECTOR, ir.Undefined), value, ir.Constant(ir.IntType(32), 0))
    first = ir.Constant(ir.VectorType(ir.IntType(32), WIDTH), None)
    return builder.shuffle_vector(single, ir.Constant(VECTOR, ir.Undefined), first)


@intrinsic
def spread(typing, array, index):
    """array[index] in every lane."""

    def generate(context, builder, signature, arguments):
        return _in_every_lane(builder, builder.load(_place(context, builder, signature.args[0], *arguments)))

    return vector(array, types.intp), generate


@intrinsic
def splat(typing, value):
    """A number in every lane."""

    def generate(context, builder, signature, arguments):
        return _in_every_lane(builder, *arguments)

    return vector(types.float32), generate


@intrinsic
def fma(typing, a, b, c):
    """a b + c."""

    def generate(context, builder, signature, arguments):
        kind = ir.FunctionType(VECTOR, 3 * [VECTOR])
        name = f"llvm.fmuladd.v{WIDTH}f32"  # one instruction where there is one
        return builder.call(cgutils.get_or_insert_function(builder.module, kind, name), arguments)

    return vector(vector, vector, vector), generate


@intrinsic
def add(typing, a, b):
    """a + b."""

    def generate(context, builder, signature, arguments):
        return builder.fadd(*arguments)

    return vector(vector, vector), generate


@intrinsic
def choose(typing, best, value, kept, other):
    """A lane at a time: other where value exceeds best or is nan, as PyTorch's maximum pooling; otherwise kept."""

    def generate(context, builder, signature, arguments):
        best, value, kept, other = arguments
        larger = builder.or_(builder.fcmp_ordered(">", value, best), builder.fcmp_unordered("uno", value, value))
        return builder.select(larger, other, kept)

    return vector(vector, vector, vector, vector), generate
