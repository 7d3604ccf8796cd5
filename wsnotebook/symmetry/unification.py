"""Identities of axes while a network is followed: unknowns that are bound to one another as layers connect them.

A piece (identity, size, block) is `size` units of an identity with `block` neighbouring entries each; an axis is a
tuple of pieces. Two axes that must be permuted alike are made one by unification: an identity may be bound to several
pieces, such as the concatenation that a layer reads. Where that is impossible, both are held fixed.
"""

Piece = tuple[int, int, int]
Pieces = tuple[Piece, ...]


class Identities:
    """The identities met so far, and what each of them is bound to."""

    def __init__(self):
        self.names: list[str] = []  # of each identity, for people
        self.why: dict[int, str] = {}  # the identities that are held fixed, with the reason
        self._bound: dict[int, Pieces] = {}

    def fresh(self, name: str, size: int) -> Pieces:
        """An axis of units that nothing is known of yet; a single unit is fixed, having no order."""
        if size == 1:
            return self.fixed(1)
        self.names.append(name)
        return ((len(self.names) - 1, size, 1),)

    def fixed(self, size: int, why: str = "") -> Pieces:
        """An axis whose order must not change, for a reason; none for the network's own input and output."""
        identity = next((k for k, reason in self.why.items() if reason == why), None)
        if identity is None:
            identity = len(self.names)
            self.names.append("")
            self.why[identity] = why
        return ((identity, size, 1),)

    def is_fixed(self, axis: Pieces) -> bool:
        """Whether no entry of the axis may move."""
        return all(k in self.why for k, _, _ in self.expand(axis))

    def expand(self, axis: Pieces) -> Pieces:
        """The axis in identities that are not bound; neighbouring fixed pieces are one."""
        pieces: list[Piece] = []
        for identity, size, block in axis:
            inner = self.expand(self._bound[identity]) if identity in self._bound else ((identity, size, 1),)
            for k, s, b in inner:
                if k in self.why:
                    start = pieces.pop()[1] if pieces and pieces[-1][0] == k else 0
                    pieces.append((k, start + s * b * block, 1))
                else:
                    pieces.append((k, s, b * block))
        return tuple(pieces)

    def fix(self, axis: Pieces, why: str = "") -> None:
        """Hold all units of an axis fixed from now on."""
        for identity, size, _ in self.expand(axis):
            if identity not in self.why:
                self._bound[identity] = self.fixed(size, why)

    def unify(self, a: Pieces, b: Pieces, where: str) -> None:
        """Make two axes of one length the same; what does not fit together is held fixed."""
        while (a := self.expand(a)) and (b := self.expand(b)):
            if a[0][0] < b[0][0]:
                a, b = b, a  # the younger is bound to the older, whose name stays
            done = self._match(a[0], b) or self._match(b[0], a)
            if not done:
                for axis in (a, b):
                    self.fix(axis, f"axes of different make-up meet in {where}")
                return
            a, b = self.cut(self.expand(a), done)[1], self.cut(self.expand(b), done)[1]

    def _match(self, piece: Piece, other: Pieces) -> int:
        """Make a piece the same as the start of another axis; how many entries then agree, 0 if it cannot be."""
        identity, size, block = piece
        if piece == other[0]:
            return size * block
        if identity in self.why:
            return min(size, other[0][1]) if other[0][0] in self.why else 0
        front = self.divide(self.cut(other, size * block)[0], block)
        if not front or any(k == identity for k, _, _ in front):
            return 0
        self._bound[identity] = front
        return size * block

    def divide(self, axis: Pieces, block: int) -> Pieces:
        """The axis whose entries, `block` times each, give this one; nothing if that would part a unit."""
        if any((size if k in self.why else b) % block for k, size, b in axis):
            return ()
        return tuple((k, size // block, 1) if k in self.why else (k, size, b // block) for k, size, b in axis)

    def cut(self, axis: Pieces, length: int) -> tuple[Pieces, Pieces]:
        """The first `length` entries of an axis and the rest; nothing and the axis if that would part a unit."""
        front, rest = [], list(axis)
        while length and rest:
            identity, size, block = rest.pop(0)
            if size * block > length:
                if identity not in self.why:
                    return (), axis
                rest.insert(0, (identity, size - length, 1))
                size = length
            front.append((identity, size, block))
            length -= size * block
        return tuple(front), tuple(rest)
