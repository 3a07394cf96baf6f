"""Convolutions of a compiled network (network.py): which kernels do their forward, their images' and weights' gradients. Those by
Winograd's algorithm are in network_winograd.py, those that are matrix products in network_im2col.py."""

from __future__ import annotations

from math import ceil, prod

from tinynet.geometry import reach
from tinynet.kernels.cpu import layers, tiles, tiles_winograd
from tinynet.kernels.cpu.conv2d_simd import packing, phases, span
from tinynet.kernels.cpu.fuse import HEAVY, Unit
from tinynet.kernels.cpu.images import axis_back, most_taps
from tinynet.kernels.cpu.memory import At, Buffer, Memory, Outside, lanes_of
from tinynet.kernels.cpu.network_planner import Planner, View

SMALL_RESULT = 32  # pixels of an image: where each of HEAVY weights serves no more, reading them takes longer than the sums
SMALL_IMAGE, MIDDLING_IMAGE, MANY_IMAGES = 64, 256, 16  # pixels of an image; images of a batch
WORTH_LEAVING_OUT = 0.93  # the share of a convolution's terms that meet an image, up to which it pays to leave out all others, in its padding
MANY_WEIGHTS = 1 << 20  # bytes: more fill the second cache
TOGETHER = 16  # images whose sums of a gradient of weights stay in registers
WORTH_A_KERNEL = 500_000  # operations of a layer on one image for which a kernel with a constant step between pixels is compiled


def one_run(taps: int, terms: int, tap: int, term: int) -> tuple[int, int]:
    """(taps, terms) of a row of a kernel, with these steps between numbers of the image: taps whose numbers follow each other are one run of
    terms. (Those of the weights do.)"""
    return (min(taps, 1), taps * terms) if tap == terms * term else (taps, terms)


class Convolutions(Planner):
    def packed(self, unit: Unit, forward: bool, panel: int) -> tuple[Memory, dict]:
        """(the weights as tiles read them: (groups, panels, taps, terms, lanes), with `panel` lanes each; the steps through them). forward:
        lanes are outputs; else they are inputs, and the taps are turned around. Depthwise layers are one group here, and sums of one term."""
        k, c, kh, kw = shape = self.graph.shapes[unit.weight]
        groups = 1 if unit.kind == "depthwise" else unit.window["groups"]
        count = k // groups if forward else c
        numbers, first, steps = packing(shape, groups, forward, panel, lanes_of(count) if groups == 1 else count, turned=not forward)
        memory = self.memory(Memory(groups * steps["w_group"], f"weights of value {unit.output}{'' if forward else ', for its gradient'}"))
        seen = self.seen(unit, steps["w_group"]) if groups == 1 and forward else {}

        def build():
            return [(self.kernel(layers.pack), layers.PACK, dict(numbers, w=At(Outside(unit.weight), alone=True), y=At(memory, first, alone=True), **seen))]

        self.step("weights", build, [], memory.count if seen else 4 * memory.count, once=True, into=self.prepare, with_before=True)
        return memory, steps

    def seen(self, unit: Unit, count: int) -> dict:
        """Memory, for so many numbers, of a layer's weights as they were, where they are not trained: most calls find them unchanged, and
        need not pack them again. (It begins with zeros, and so does what is packed.)"""
        if self.training:
            return {}
        return dict(seen=At(self.memory(Memory(count, f"weights of value {unit.output}, as they were")), alone=True))

    def bias_of(self, unit: Unit, lanes: int) -> Memory | None:
        if unit.bias is None:
            return None
        count, = self.graph.shapes[unit.bias]
        memory = self.memory(Memory(lanes, f"bias of value {unit.output}"))
        self.step("bias", lambda: [(self.kernel(layers.bring), layers.BRING, dict(planes=1, rows=1, run=count, x=At(Outside(unit.bias)), y=At(memory)))], [], once=True, into=self.prepare, with_before=True)
        return memory

    def taps(self, unit: Unit) -> tuple:
        """(kernel, stride, dilation, (top, left), rows and columns of the sums, before pooling)"""
        _, _, kh, kw = self.graph.shapes[unit.weight]
        window = unit.window
        _, rows, columns = self.shape(unit.output)
        outputs = (2 * rows, 2 * columns) if unit.pool else (rows, columns)
        return (kh, kw), window["stride"], window["dilation"], (window["padding"][0][0], window["padding"][1][0]), outputs

    def axes(self, unit: Unit) -> tuple[tiles.Axis, tiles.Axis]:
        """Rows and columns of its windows."""
        kernel, stride, dilation, before, outputs = self.taps(unit)
        return tuple(tiles.Axis(-b, *rest) for b, *rest in zip(before, stride, dilation, kernel, self.shape(unit.x)[1:], outputs))

    def operations(self, unit: Unit) -> int:
        """Of its sums, without the terms that lie in padding; those of either gradient are as many."""
        k, c, _, _ = self.graph.shapes[unit.weight]
        return 2 * k * c * prod(axis.met() for axis in self.axes(unit))

    def conv_input(self, unit: Unit, overhang: int = 1) -> View:
        """overhang: outputs are computed in multiples of it."""
        (kh, kw), stride, dilation, (top, left), (rows, columns) = self.taps(unit)
        _, h, w = self.shape(unit.x)
        low = (ceil(rows / overhang) * overhang - 1) * stride[0] + reach(kh, dilation[0]) - top - h
        far = (ceil(columns / overhang) * overhang - 1) * stride[1] + reach(kw, dilation[1]) - left - w
        return self.image(unit.x, (top, max(low, 0), left, max(far, 0)), planar=unit.kind == "conv2d" and not self.by_winograd(unit))

    def blocks(self, unit: Unit) -> int:
        """Into how many shares the lanes of a convolution are cut, so that each goes over all images while its weights are in the second
        cache; 0 where images are better taken one by one."""
        rows, columns = self.taps(unit)[4]
        size = self.graph.bytes(unit.weight)
        return ceil(size / HEAVY) if size > HEAVY and rows * columns <= SMALL_RESULT and unit.window["groups"] == 1 else 0

    def lanes_apart(self, unit: Unit, shares: int, lanes: int, pixels: int) -> bool:
        """Whether threads that share one image each compute some of its lanes, not of its rows. By rows they all read all weights, by
        lanes all `pixels`; and what one thread has written and another has read is slow to write anew (players.py), as weights are
        in every step of a training."""
        kh, kw = self.graph.shapes[unit.weight][2:]
        return self.training and shares > 1 and unit.window["groups"] == 1 and lanes >= shares * tiles.widths(self.T)[0] and kh * kw * lanes > pixels

    def many_small(self, unit: Unit, most: int) -> bool:
        """Whether there are many images, of at most so many pixels before and after a convolution, which it may take together."""
        return unit.kind == "conv2d" and self.images >= MANY_IMAGES and max(prod(self.shape(unit.x)[1:]), prod(self.taps(unit)[4])) <= most

    def much_padding(self, unit: Unit) -> bool:
        """Whether that is much of what a tile of neighbouring pixels multiplies."""
        k, c, *kernel = self.graph.shapes[unit.weight]
        axes = self.axes(unit)
        met, terms = prod(axis.met() for axis in axes), prod(kernel) * prod(axis.outputs for axis in axes)
        return unit.window["groups"] == 1 and min(k, c) >= 16 and met <= WORTH_LEAVING_OUT * terms

    def many_weights(self, unit: Unit) -> bool:
        """Whether a convolution goes over the batch for its own sake: for every image its weights would have to be read again."""
        return self.graph.bytes(unit.weight) >= MANY_WEIGHTS and self.many_small(unit, MIDDLING_IMAGE) and self.much_padding(unit)

    def heavy(self, unit: Unit) -> bool:
        """Whether a convolution runs over all images whatever other layers do."""
        return self.sums_over_the_batch(unit) if self.by_winograd(unit) else bool(self.blocks(unit)) or self.many_weights(unit)

    def over_the_batch(self, unit: Unit) -> bool:
        """Whether a convolution and its images' gradient are computed pixel by pixel, of many images at a time. For the sake of padding
        alone it would cost more than it brings to keep what lies between layers for all images."""
        return self.many_weights(unit) or self.apart and self.many_small(unit, SMALL_IMAGE) and self.much_padding(unit)

    def list_of_terms(self) -> Memory:
        """Scratch memory in which `conv` lists the terms of its sums."""
        return self.memory(Memory(tiles.MOST_LISTED * 16 // self.item, "places of terms", self.slots))

    def conv2d(self, unit: Unit) -> None:
        k, c, kh, kw = self.graph.shapes[unit.weight]
        _, stride, dilation, (top, left), (rows, columns) = self.taps(unit)
        groups, depthwise = unit.window["groups"], unit.kind == "depthwise"
        lanes = lanes_of(k) if groups == 1 or depthwise else k // groups
        x = self.conv_input(unit)
        y = self.image(unit.output)
        m = self.by_winograd(unit)
        bias = self.bias_of(unit, lanes_of(k))
        other = self.image(unit.other) if unit.other is not None else None
        winner = None
        if unit.pool and self.needs[unit.output]:
            winner = self.views[unit.output, "winner"] = self.buffer(k, y.rows, y.columns, what=f"winners of value {unit.output}")
            winner.halo = y.memory.halo  # at the same places
        flops, (vertical, horizontal) = self.operations(unit), self.axes(unit)
        batch = not m and self.over_the_batch(unit)
        if m:
            self.winograd(unit.name, m, unit, x, (-top, -left), lanes_of(c), c, True, (rows, columns), y, lanes, flops, unit.pool, bias=bias, add=other, relu=unit.relu, winner=winner)
            return
        blocks, places = 0 if batch else self.blocks(unit), None if depthwise or batch else self.list_of_terms()
        sums = self.sums_of_windows() if batch and unit.pool else None
        taps_b, terms = (kw, c) if batch else one_run(kw, c, dilation[1] * x.x, x.channel)
        shares, listed = 1 if blocks else self.shares(flops), tiles.listed(kh * taps_b, terms)
        apart = self.lanes_apart(unit, shares, lanes, x.rows * x.columns)
        cuts = (1, shares) if apart else (shares, 1)  # of rows, of lanes
        segments, step = 1 if listed else kh * kw, tiles.pixel_step(stride[1] * x.x, flops, WORTH_A_KERNEL)
        if depthwise:
            tile = tiles.best_depthwise(rows, columns, lanes, self.T)
        elif batch:
            tile = self.tile_of_images(lanes, c, kh * kw, flops)
        elif unit.pool:
            tile = tiles.best(2, 2 * y.columns, lanes // cuts[1], c * kh * kw, segments, self.T, True, step=step)
        else:
            tile = tiles.best(max(rows // cuts[0], 1), columns, lanes // cuts[1], c * kh * kw, segments, self.T, axis=vertical, step=step)
        panel = lanes if depthwise else prod(tile[-2:])
        w, through = self.packed(unit, True, panel)

        def build():
            numbers = dict(
                taps_a=kh, taps_b=taps_b, terms=terms, ta=dilation[0] * x.y, tb=dilation[1] * x.x, tc=x.channel, iy=stride[0] * x.y, ix=stride[1] * x.x,
                lanes=lanes, by_lanes=blocks or apart, x=x.at(-top, -left), x_first=stride[0] * x.y, w=At(w, alone=True), y=y.at(), y_first=y.y, oy=y.y, ox=y.x, relu=unit.relu,
            )  # fmt: skip
            if bias is not None:
                numbers.update(bias=At(bias, alone=True))
            if other is not None:
                numbers.update(add=other.at(), add_y=other.y, add_x=other.x)
            if winner is not None:
                numbers.update(winner=At(winner))
            if depthwise:
                numbers.update(outputs=rows, columns=columns, wa=kw * lanes, wb=lanes)
                return [(self.kernel(layers.depthwise, *tile, step), tiles.CONV, numbers)]
            numbers.update(groups=groups, x_group=c * x.channel, wa=kw * c * panel, wb=c * panel, **through)
            if batch:
                numbers.update(outputs=y.rows, columns=y.columns, images=self.images, **vertical.numbers("row"), **horizontal.numbers("column"))
                return [self._batch(tile, numbers, x.memory, sums)]
            numbers.update(places=At(places, alone=True), places_slot=places.step, **vertical.numbers("row"))
            if unit.pool:
                numbers.update(outputs=y.rows, limit=y.rows, columns=y.columns, x_first=2 * stride[0] * x.y)
                _, wide, v, width = tile
                return [(self.kernel(tiles.conv_pool, wide // 2, v, width, step, listed), tiles.CONV, numbers)]
            numbers.update(outputs=rows, limit=rows, columns=columns)
            return [(self.kernel(tiles.conv, *tile, step, listed), tiles.CONV, numbers)]

        touches = [x.memory, y.memory, other and other.memory, winner]
        self._convolve(unit.name, build, touches, flops, batch, blocks)

    def _convolve(self, what: str, build, touches: list, flops: float, batch: bool, shares: int = 0) -> None:
        """A step for every image, or one for all of them. flops: of an image."""
        self.step(f"{what}, over the batch" if batch else what, build, touches, flops * self.images if batch else flops, once=batch, shares=shares)

    def sums_of_windows(self) -> Memory:
        """Scratch memory in which `conv_batch` keeps the sums of a window, of a tile of images each."""
        return self.memory(Memory(4 * tiles.MOST_SUMS * tiles.widths(self.T)[0], "sums of windows", self.slots))

    def tile_of_images(self, lanes: int, terms: int, taps: int, flops: float, panel: int = 0) -> tuple[int, int, int, int]:
        """That of `conv_batch`: one row of as many columns as it has images. flops: of one of them."""
        return tiles.best(1, self.images, lanes, taps * terms, taps, self.T, batch=True, panel=panel, step=int(flops >= WORTH_A_KERNEL))

    def _batch(self, tile: tuple[int, int, int, int], numbers: dict, x: Buffer, sums: Memory | None = None) -> tuple:
        """A row of conv_batch. sums: scratch memory, if what it stores is the largest of 2 x 2."""
        if sums is not None:
            numbers.update(sums=At(sums, alone=True), sums_slot=sums.step)
        terms = numbers["taps_a"] * numbers["taps_b"] * numbers["terms"]
        pixels = numbers["outputs"] * numbers["columns"] * (1 if sums is None else 4)
        step = tiles.pixel_step(x.image // self.item, 2 * terms * numbers["lanes"] * pixels, WORTH_A_KERNEL)
        return self.kernel(tiles.conv_batch, *tile[1:], step, int(sums is not None)), tiles.CONV, numbers

    depthwise = conv2d

    def conv2d_back(self, unit: Unit) -> None:
        k, c, kh, kw = self.graph.shapes[unit.weight]
        _, stride, dilation, (top, left), (rows, columns) = self.taps(unit)
        depthwise = unit.kind == "depthwise"
        dz = self.gradients[unit.output]
        lanes = lanes_of(k)
        W = self.width(lanes)
        # Where nobody else reads the gradient before pooling, the weights' own kernel makes it on the way.
        at_once = unit.pool and self.by_winograd(unit) and self.needs.get(unit.weight) and not self.needs.get(unit.x)
        copies = 1 if at_once and self.gradient_over_the_batch(unit) else 0
        sums = self.summed(lanes, f"bias of value {unit.output}", copies) if unit.bias is not None and self.needs.get(unit.bias) else None
        reached = sums or (self.summed(lanes, f"bias of value {unit.output}, which has none", copies) if unit.pool else None)
        if unit.pool and not at_once:
            dy, winner = dz, self.views[unit.output, "winner"]
            dz = self.buffer(k, rows, columns, what=f"gradient before pooling of value {unit.output}")

            def spread():
                numbers = dict(
                    rows=dy.rows, columns=dy.columns, lanes=lanes, dy=At(dy), dy_y=dy.y, dy_x=dy.x, winner=At(winner), winner_y=winner.y, winner_x=winner.x,
                    dz=At(dz), dz_y=dz.y, dz_x=dz.x, **self.chunk_sums(reached),
                )  # fmt: skip
                return [(self.kernel(layers.spread, W), layers.SPREAD, numbers)]

            self.step("gradient to the winners", spread, [dy, winner, dz], 4 * k * dy.rows * dy.columns)
        elif sums is not None and not unit.pool:

            def bias_sums():
                numbers = dict(rows=rows, columns=columns, lanes=lanes, dy=At(dz), dy_y=dz.y, dy_x=dz.x, **self.chunk_sums(sums))
                return [(self.kernel(layers.channel_sums, W), layers.SPREAD, numbers)]

            self.step("gradient of the bias", bias_sums, [dz], k * rows * columns)
        if sums is not None:
            self._sum_rows(unit.bias, sums, k)
        if at_once:
            self.winograd_dw(unit, dz, reached)
        elif self.needs.get(unit.weight):
            self.conv_dw(unit, dz)
        if self.needs.get(unit.x):
            (self.depthwise_dx if depthwise else self.conv_dx)(unit, dz)
        if unit.other is not None and self.needs.get(unit.other):
            self.pass_on(unit.other, dz)

    depthwise_back = conv2d_back

    def conv_dw(self, unit: Unit, dz: Buffer) -> None:
        if self.by_winograd(unit):
            self.winograd_dw(unit, dz)
            return
        k, c, kh, kw = self.graph.shapes[unit.weight]
        _, stride, dilation, (top, left), _ = self.taps(unit)
        rows, columns = dz.rows, dz.columns
        x, groups, depthwise = self.conv_input(unit), unit.window["groups"], unit.kind == "depthwise"
        lanes = lanes_of(k) if groups == 1 or depthwise else k // groups
        gradient = self.weight_gradient(unit.weight)

        def tile():
            steps = (dilation[0] * x.y, dilation[1] * x.x, x.channel)
            if depthwise:
                return tiles.DepthwiseWeights((kh, kw), steps, lanes, self.T)
            return tiles.Weights((kh, kw, c), steps, lanes, groups, self.axes(unit), self.T)

        batch = self.many_small(unit, SMALL_IMAGE) and self.apart and self.graph.bytes(unit.weight) >= HEAVY
        sums = self.summed(0, f"weights of value {unit.output}", 1 if batch else 0)
        sums.size = lambda: tile().size

        def build():
            t = tile()
            numbers = dict(
                height=rows, columns=columns, **t.numbers, iy=stride[0] * x.y, ix=stride[1] * x.x, gy=dz.y, gx=dz.x, groups=groups, lanes=lanes, x_group=c * x.channel,
                x=x.at(-top, -left), dy=At(dz), **self.chunk_sums(sums), block=tiles.rows_at_once(rows, columns, dz.x + x.x),
            )  # fmt: skip
            if batch:
                numbers.update(images=self.images, together=TOGETHER)
            return [(self.kernel(layers.depthwise_dw if depthwise else tiles.conv_dw, *t.constants), tiles.DW, numbers)]

        def gather():
            chunks, step = self.sums_left(sums)
            numbers = dict(x=At(sums, alone=True), chunks=chunks, x_chunk=step // self.item, count=k if depthwise else k // groups, y=At(gradient, alone=True), **tile().gathered)
            return [(self.kernel(tiles.gather, tile().width), tiles.GATHER, numbers)]

        self._convolve("gradient of the weights", build, [x.memory, dz], self.operations(unit), batch)
        self.step("sums of chunks", gather, [], 16 * prod(self.graph.shapes[unit.weight]), once=True, into=self.finish, with_before=True)

    def conv_dx(self, unit: Unit, dz: Buffer) -> None:
        k, c, kh, kw = self.graph.shapes[unit.weight]
        (_, _), stride, dilation, (top, left), _ = self.taps(unit)
        groups, depthwise = unit.window["groups"], unit.kind == "depthwise"
        _, h, w = self.shape(unit.x)
        down, across = phases(kh, stride[0], dilation[0], top, h), phases(kw, stride[1], dilation[1], left, w)
        (up, low), (near, far) = span(down), span(across)
        rows, columns = ceil(h / stride[0]), ceil(w / stride[1])
        dz.need(max(-up, 0), max(rows + low - dz.rows, 0), max(-near, 0), max(columns + far - dz.columns, 0))
        mask = self.mask(unit.x)
        dx, before = self.contribution(unit.x)
        m_dy = self.by_winograd(unit)
        m = tiles_winograd.best_size(h, w) if m_dy and max(top, left) <= 2 else 0
        if tiles_winograd.turned_pays(m_dy, dz.rows, dz.columns, m, h, w):
            self.winograd_dx(m_dy, unit, dz, (top, left), View(dx, c, h, w), None if before is None else View(before, c, h, w), mask)
            return
        if m:
            dz.need(2 - top, max(h + top - dz.rows, 0), 2 - left, max(w + left - dz.columns, 0))
            share, prior = View(dx, c, h, w), None if before is None else View(before, c, h, w)
            self.winograd("gradient of the images", m, unit, View(dz, k, dz.rows, dz.columns), (top - 2, left - 2), lanes_of(k), k, False, (h, w), share, lanes_of(c), self.operations(unit), add=prior, mask=mask)
            return
        places = None if depthwise else self.list_of_terms()
        terms = k // groups
        lanes = lanes_of(c) if groups == 1 else lanes_of(k) if depthwise else c
        batch = self.over_the_batch(unit)
        flops, blocks = self.operations(unit), 0 if batch else self.blocks(unit)
        shares = 1 if blocks else self.shares(flops)
        apart = self.lanes_apart(unit, shares, lanes, dz.rows * dz.columns)
        cuts = (1, shares) if apart else (shares, 1)  # of rows, of lanes
        step = tiles.pixel_step(dz.x, flops, WORTH_A_KERNEL)

        def run(horizontal) -> tuple[int, int]:
            _, _, _, sv, mv, _, aside = horizontal
            return one_run(mv, terms, aside * dz.x, 1) if sv == 1 and not batch else (mv, terms)

        def tile_of(vertical, horizontal, panel: int = 0) -> tuple[int, int, int, int]:
            many, mu, wide, mv = vertical[1], vertical[4], horizontal[1], horizontal[4]
            if batch:
                return self.tile_of_images(lanes, terms, mu * mv, flops, panel)
            taps, length = run(horizontal)
            segments = 1 if tiles.listed((mu if mv else 0) * taps, length) else max(mu * mv, 1)
            return tiles.best(max(many // cuts[0], 1), wide, lanes // cuts[1], terms * mu * mv, segments, self.T, axis=axis_back(vertical, dz.rows), panel=panel, step=step)

        # All phases read the same panels: they are those that the phase with most taps wants.
        panel = lanes if depthwise else prod(tile_of(most_taps(down), most_taps(across))[2:])
        weights, through = self.packed(unit, depthwise, panel)
        tap = terms * panel

        def build():
            found = []
            for vertical in down:
                phase, many, u, su, mu, _, back = vertical
                axis = axis_back(vertical, dz.rows)
                for horizontal in across:
                    side, wide, v, sv, mv, shift, aside = horizontal
                    # from the last tap to the first: then dy is read forward, and the taps of a row may be one run
                    top_tap, left_tap = kh - 1 - u - (mu - 1) * su, kw - 1 - v - (mv - 1) * sv  # as they lie: turned around
                    if depthwise:
                        top_tap, left_tap = u + (mu - 1) * su, v + (mv - 1) * sv
                    way = -1 if depthwise else 1
                    taps_a, (taps_b, length) = mu if mv else 0, run(horizontal)
                    numbers = dict(
                        outputs=many, limit=many, columns=wide, taps_a=taps_a, taps_b=taps_b, terms=length, ta=back * dz.y, tb=aside * dz.x, tc=1,
                        wa=way * su * kw * tap, wb=way * sv * tap, iy=dz.y, ix=dz.x, groups=groups, lanes=lanes, by_lanes=blocks or apart, x_group=terms, **through,
                        x=At(dz, 0, axis.first, shift - (mv - 1) * aside), x_first=dz.y, w=At(weights, (top_tap * kw + left_tap) * tap, alone=True),
                        y=At(dx, 0, phase, side), y_first=stride[0] * dx.y, oy=stride[0] * dx.y, ox=stride[1] * dx.x,
                    )  # fmt: skip
                    if before is not None:
                        numbers.update(add=At(before, 0, phase, side), add_y=stride[0] * before.y, add_x=stride[1] * before.x)
                    if mask is not None:
                        numbers.update(mask=mask.at(phase, side), mask_y=stride[0] * mask.y, mask_x=stride[1] * mask.x)
                    if batch:
                        numbers.update(images=self.images, **axis.numbers("row"), **axis_back(horizontal, dz.columns).numbers("column"))
                        found.append(self._batch(tile_of(vertical, horizontal, panel), numbers, dz))
                    elif depthwise:
                        found.append((self.kernel(layers.depthwise, *tiles.best_depthwise(many, wide, lanes, self.T), step), tiles.CONV, numbers))
                    else:
                        numbers.update(places=At(places, alone=True), places_slot=places.step, **axis.numbers("row"))
                        found.append((self.kernel(tiles.conv, *tile_of(vertical, horizontal, panel), step, tiles.listed(taps_a * taps_b, length)), tiles.CONV, numbers))
            return found

        touches = [dz, dx, before, mask and mask.memory]
        self._convolve("gradient of the images", build, touches, flops, batch, blocks)

    depthwise_dx = conv_dx
