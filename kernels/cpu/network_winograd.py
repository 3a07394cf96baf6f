"""Convolutions of a compiled network (network.py) by Winograd's algorithm (tiles_winograd.py has the formulas): which have it, and the
kernels of their forward, their images' and weights' gradients. network_convolution.py asks here first."""

from __future__ import annotations

from math import ceil, prod

from tinynet.kernels.cpu import tiles, tiles_winograd
from tinynet.kernels.cpu.fuse import Unit, winograd_size
from tinynet.kernels.cpu.images import chunk_sums
from tinynet.kernels.cpu.memory import At, Buffer, Memory, Outside, lanes_of
from tinynet.kernels.cpu.network_planner import Planner, View

MATRICES, SUMS = 4 << 20, 1 << 20  # bytes of matrices, of weights and of sums for their gradient, that still lie in memory where there are several images
LEAST = 32  # lanes that are worth transforming all images for


class Winograd(Planner):
    def by_winograd(self, unit: Unit) -> int:
        """The tiles' size, if a convolution is worth Winograd's transforms, else 0."""
        tried = self.math == "winograd" and unit.kind == "conv2d"
        return winograd_size(self.graph.shapes[unit.weight], unit.window, *self.taps(unit)[4]) if tried else 0

    def own(self, m: int, outputs: tuple[int, int], channels: int, terms: int, lanes: int, most: int) -> bool:
        """Whether a kernel transforms weights where it reads them, or their gradient where it sums it up, so that their matrices, up to
        four times as large as they, never go through memory: for one trained image, if they are no smaller than its own; else
        from `most` bytes on, then for many images at a time."""
        if self.images == 1 and self.training:
            return tiles_winograd.weights_outweigh(m, *outputs, channels, terms, lanes)
        return terms > tiles_winograd.FEW and (m + 2) ** 2 * terms * lanes * self.item >= most

    def _over_the_batch(self, unit: Unit, most: int) -> bool:
        k, c, _, _ = self.graph.shapes[unit.weight]
        return self.images > 1 and self.own(self.by_winograd(unit), self.taps(unit)[4], lanes_of(c), c, lanes_of(k), most)

    def sums_over_the_batch(self, unit: Unit) -> bool:
        """Whether the convolution itself goes over many images at a time."""
        return self._over_the_batch(unit, MATRICES)

    def gradient_over_the_batch(self, unit: Unit) -> bool:
        """Whether its weights' gradient does."""
        return self._over_the_batch(unit, SUMS)

    def parts(self, m: int, outputs: tuple[int, int], lanes: int, flops: float) -> tuple[int, bool]:
        """(into how many parts threads cut what a kernel with weights of its own does, whether by lanes). By images, each part makes
        all weights; by lanes, each transforms all images."""
        if self.images == 1:
            return self.shares(flops), True
        groups = self.images * prod(ceil(n / m) for n in outputs) // tiles_winograd.TOGETHER
        if groups >= self.slots:
            return min(groups // self.slots, 4) * self.slots, False
        return self.cut_lanes(lanes), True

    def cut_lanes(self, lanes: int) -> int:
        """Into how many parts."""
        return max(1, min(self.slots, lanes // LEAST))

    def weights_read(self, unit: Unit, forward: bool, flip: bool) -> dict:
        """Where Winograd's kernels find the weights of a term and a lane, and how many lanes have some."""
        k, c, _, _ = self.graph.shapes[unit.weight]
        w_term, w_lane, count = (9, 9 * c, k) if forward else (9 * c, 9, c)
        return dict(w_term=w_term, w_lane=w_lane, count=count, flip=flip)

    def transformed(self, unit: Unit, forward: bool, m: int, flip: bool = False) -> Memory:
        """The weights as Winograd's products read them. flip: with their taps turned around."""
        k, c, _, _ = self.graph.shapes[unit.weight]
        terms, count = (c, k) if forward else (k, c)
        lanes, W = lanes_of(count), tiles.fitting(lanes_of(count), self.T)
        steps = tiles_winograd.u_steps(terms, lanes, self.T)
        u = self.memory(Memory((m + 2) ** 2 * steps["u_pitch"], f"transformed weights of value {unit.output}"))
        taps = self.memory(Memory(9 * W * tiles_winograd.MADE, "taps", self.slots))
        seen = self.seen(unit, prod(self.graph.shapes[unit.weight])) if forward else {}

        def build():
            numbers = dict(terms=terms, lanes=lanes, w=At(Outside(unit.weight), alone=True), **self.weights_read(unit, forward, flip), u=At(u, alone=True), **steps, taps=At(taps, alone=True), taps_slot=taps.step, **seen)
            return [(self.kernel(tiles_winograd.weights_in, m, W), tiles_winograd.WEIGHTS, numbers)]

        self.step("weights, transformed", build, [], prod(self.graph.shapes[unit.weight]) if seen else 4 * u.count, once=True, into=self.prepare, with_before=True)
        return u

    def winograd(self, what: str, m: int, unit: Unit, x: View, start, channels: int, terms: int, forward: bool, outputs, y: View, lanes: int, flops: float, pool: bool = False, bias=None, add=None, relu=False, winner=None, mask=None) -> None:
        """A convolution by Winograd's algorithm, of outputs rows x columns; its own or, not forward, that of the images' gradient."""
        own = self.own(m, outputs, channels, terms, lanes, MATRICES)
        batch = own and self.images > 1
        if own:
            shares, by_lanes = self.parts(m, outputs, lanes, flops)
            cut = tiles_winograd.Tiles(m, *outputs, channels, terms, lanes, self.T, shares=shares if by_lanes else 1, own=True, images=self.images)
        else:
            shares = self.shares(flops)
            down, across = (ceil(n / m) for n in outputs)
            by_lanes = shares > (down * across if tiles_winograd.exact(m, *outputs) else down)
            cut = tiles_winograd.Tiles(m, *outputs, channels, terms, lanes, self.T, shares=1 if by_lanes else shares)
        work = self.memory(Memory(cut.work, "Winograd's transforms", self.slots))
        if own:
            weights = dict(u=At(Outside(unit.weight), alone=True), u_pitch=cut.own_pitch, **self.weights_read(unit, forward, flip=not forward))
        else:
            u = self.transformed(unit, forward, m, flip=not forward)
            weights = dict(u=At(u, alone=True), **tiles_winograd.u_steps(terms, lanes, self.T))

        def build():
            numbers = dict(
                cut.numbers, iy=x.y, ix=x.x, x=x.at(*start), **weights, work=At(work, alone=True), work_slot=work.step, y=y.at(), oy=y.y, ox=y.x, relu=relu,
                by_lanes=by_lanes,
            )  # fmt: skip
            if bias is not None:
                numbers.update(bias=At(bias, alone=True))
            if add is not None:
                numbers.update(add=add.at(), add_y=add.y, add_x=add.x)
            if mask is not None:
                numbers.update(mask=mask.at(), mask_y=mask.y, mask_x=mask.x)
            if winner is not None:
                numbers.update(winner=At(winner))
            return [(self.kernel(tiles_winograd.winograd, *cut.constants, int(pool)), tiles_winograd.WINOGRAD, numbers)]

        touches = [x.memory, y.memory, add and add.memory, mask and mask.memory, winner]
        self._convolve(f"{what}, Winograd {m} x {m}", build, touches, flops, batch, shares if batch else 0)

    def winograd_dx(self, m: int, unit: Unit, dz: Buffer, padding: tuple[int, int], dx: View, add: View | None, mask: View | None) -> None:
        """The images' gradient, by tiles of dz."""
        k, c, _, _ = self.graph.shapes[unit.weight]
        flops = self.operations(unit)
        dz.need(0, -dz.rows % m, 0, -dz.columns % m)
        cut = tiles_winograd.TurnedTiles(m, dz.rows, dz.columns, lanes_of(k), k, dx.rows, dx.columns, *padding, lanes_of(c), self.T, self.shares(flops))
        work = self.memory(Memory(cut.work, "Winograd's transforms", self.slots))
        u = self.transformed(unit, False, m)

        def build():
            numbers = dict(
                cut.numbers, gy=dz.y, gx=dz.x, dy=At(dz), u=At(u, alone=True), **tiles_winograd.u_steps(k, lanes_of(c), self.T),
                work=At(work, alone=True), work_slot=work.step, dx=dx.at(), dx_y=dx.y, dx_x=dx.x,
            )  # fmt: skip
            if add is not None:
                numbers.update(add=add.at(), add_y=add.y, add_x=add.x)
            if mask is not None:
                numbers.update(mask=mask.at(), mask_y=mask.y, mask_x=mask.x)
            return [(self.kernel(tiles_winograd.winograd_dx, *cut.constants), tiles_winograd.WINOGRAD_DX, numbers)]

        self.step(f"gradient of the images, Winograd {m} x {m} of dy", build, [dz, dx.memory, add and add.memory, mask and mask.memory], flops)

    def winograd_dw(self, unit: Unit, dz: Buffer, reached: Memory | None = None) -> None:
        """reached: if dz is the gradient of a pooled result, the sums of what reaches each channel."""
        k, c, _, _ = self.graph.shapes[unit.weight]
        m, (top, left), (rows, columns) = self.by_winograd(unit), *self.taps(unit)[3:]
        winner, window = (self.views[unit.output, "winner"], 2) if reached else (None, 1)
        x, gradient = self.conv_input(unit, m), self.weight_gradient(unit.weight)
        dz.need(0, -rows % m // window, 0, -columns % m // window)
        channels, lanes = lanes_of(c), lanes_of(k)
        own, flops = self.own(m, (rows, columns), channels, c, lanes, SUMS), self.operations(unit)
        batch, shares = own and self.images > 1, 1
        if own:
            shares = self.cut_lanes(lanes) if batch else self.shares(flops)
        cut = tiles_winograd.WeightsTiles(m, rows, columns, channels, c, lanes, self.T, shares=shares, own=own, images=self.images if own else 1)
        work = self.memory(Memory(cut.work, "Winograd's transforms", self.slots))
        pitch = tiles_winograd.pitch(c * lanes, self.T)
        sums = gradient if own else self.summed((m + 2) ** 2 * pitch, f"weights of value {unit.output}")

        def build():
            added = chunk_sums(At(gradient, alone=True), 0, 1, 1) if own else self.chunk_sums(sums)
            numbers = dict(
                cut.numbers, iy=x.y, ix=x.x, x=x.at(-top, -left), gy=dz.y, gx=dz.x, dy=At(dz), work=At(work, alone=True), work_slot=work.step, **added, sums_pitch=pitch,
                own_pitch=cut.own_pitch, count=k,
            )  # fmt: skip
            if reached:
                numbers.update(winner=At(winner), winner_y=winner.y, winner_x=winner.x, reached=At(reached, alone=True), reached_chunk=reached.step)
            return [(self.kernel(tiles_winograd.winograd_dw, *cut.constants, int(reached is not None)), tiles_winograd.WINOGRAD_DW, numbers)]

        what = "gradients to the winners and of the weights" if reached else "gradient of the weights"
        self._convolve(f"{what}, Winograd {m} x {m}", build, [x.memory, dz, winner], flops, batch, shares if batch else 0)
        if own:
            return
        W = tiles.fitting(lanes, self.T)
        taps = self.memory(Memory(9 * W * c, "taps", self.slots))

        def gather():
            chunks, step = self.sums_left(sums)
            numbers = dict(terms=c, count=k, lanes=lanes, sums=At(sums, alone=True), chunks=chunks, sums_chunk=step, sums_pitch=pitch, w=At(gradient, alone=True), taps=At(taps, alone=True), taps_slot=taps.step)
            return [(self.kernel(tiles_winograd.weights_out, m, W), tiles_winograd.WEIGHTS_OUT, numbers)]

        self.step("sums of chunks, transformed back", gather, [], 16 * sums.count, once=True, into=self.finish, with_before=True)
