"""Pooling, ReLU, sums, dense layers, probabilities and losses of a compiled network (network.py)."""

from __future__ import annotations

from math import prod

from tinynet.kernels.cpu import layers, tiles
from tinynet.kernels.cpu.fuse import Unit
from tinynet.kernels.cpu.memory import At, Buffer, Memory, Outside, lanes_of
from tinynet.kernels.cpu.network_planner import Planner, View
from tinynet.kernels.cpu.target import TARGET

SMALL = 256 << 10  # bytes of a dense layer's weights that stay in the cache, image after image
MANY_ROWS, MANY_OUTPUTS = 32, 32  # images, and outputs of a dense layer, from which a product of matrices is worth keeping all rows
HYPER = 16  # numbers of an optimiser (float64), for each parameter


class Layers(Planner):
    # --- images ---------------------------------------------------------------------------------------------

    def _pool_numbers(self, unit: Unit) -> dict:
        (_, bottom), (_, right) = unit.window["padding"]
        average = layers.MAXIMUM if unit.kind == "max_pool2d" else layers.AVERAGE if unit.window["count_include_pad"] else layers.AVERAGE_INSIDE
        return dict(self.window_numbers(unit), lanes=lanes_of(self.shape(unit.output)[0]), bottom=bottom, right=right, average=average)

    def max_pool2d(self, unit: Unit) -> None:
        x, y = self.image(unit.x), self.image(unit.output)
        numbers = self._pool_numbers(unit)

        def build():
            return [(self.kernel(layers.pool, self.width(numbers["lanes"])), layers.POOL, dict(numbers, x=x.at(), x_y=x.y, x_x=x.x, y=y.at(), y_y=y.y, y_x=y.x))]

        self.step(unit.name, build, [x.memory, y.memory], numbers["rows"] * numbers["columns"] * numbers["lanes"] * numbers["kr"] * numbers["kc"])

    avg_pool2d = max_pool2d

    def max_pool2d_back(self, unit: Unit) -> None:
        x, y, dy = self.image(unit.x), self.image(unit.output), self.gradients[unit.output]
        numbers = self._pool_numbers(unit)
        masks = self.mask(unit.x) is not None
        dx, before = self.contribution(unit.x)

        def build():
            places = dict(x=x.at(), x_y=x.y, x_x=x.x, y=y.at(), y_y=y.y, y_x=y.x, dy=At(dy), dy_y=dy.y, dy_x=dy.x, dx=At(dx), dx_y=dx.y, dx_x=dx.x, mask=masks)
            if before is not None:
                places.update(add=At(before), add_y=before.y, add_x=before.x)
            return [(self.kernel(layers.pool_back, self.width(numbers["lanes"])), layers.POOL, dict(numbers, **places))]

        self.step(f"gradient of {unit.kind}", build, [x.memory, y.memory, dy, dx, before], 3 * numbers["rows"] * numbers["columns"] * numbers["lanes"] * numbers["kr"] * numbers["kc"])

    avg_pool2d_back = max_pool2d_back

    def add(self, unit: Unit) -> None:
        values = [unit.x, unit.output] + ([unit.other] if unit.other is not None else [])
        a, y, *b = ([self.image(v).memory for v in values] if self.is_image(unit.x) else [self._own_row(v) for v in values])
        self._combine(unit.name, a, b[0] if b else None, y, relu=unit.relu)

    relu = add

    def _own_row(self, value: int) -> Buffer:
        """A row in a buffer: copied there if it is the caller's."""
        memory, count = self.row(value)
        if isinstance(memory, Buffer):
            return memory
        if (value, "own") not in self.views:
            buffer = self.views[value, "own"] = self.buffer(count, what=f"value {value}")
            self.step("rows in", lambda: [(self.kernel(layers.bring), layers.BRING, dict(planes=1, rows=1, run=count, x=At(memory), y=At(buffer)))], [buffer], count)
        return self.views[value, "own"]

    def add_back(self, unit: Unit) -> None:
        dy = self.gradients[unit.output]
        for v in (unit.x, unit.other):
            if v is not None and self.needs.get(v):
                self.pass_on(v, dy)

    relu_back = add_back

    # --- rows ------------------------------------------------------------------------------------------------------------------

    def flatten(self, unit: Unit) -> None:
        if not self.is_image(unit.x) or unit.x in self.graph.batched and not self.needs.get(unit.x):  # the caller's images are rows as they lie, in any layout
            self.rows[unit.output], _ = self.row(unit.x)
            return
        c, h, w = self.shape(unit.x)
        target, _ = self.row(unit.output)
        self._copy_image("flatten", self.image(unit.x), View(target, c, h, w, self.steps_outside(unit.x)))

    def flatten_back(self, unit: Unit) -> None:
        dy = self.gradients[unit.output]
        if not self.is_image(unit.x):
            self.pass_on(unit.x, dy)
            return
        c, h, w = self.shape(unit.x)
        mask, (dx, join) = self.mask(unit.x), self.joined(unit.x)
        source = View(dy, c, h, w, self.steps_outside(unit.x))
        if mask is not None and self.layouts[unit.x] == "NHWC":
            apart = self.buffer(c, h, w, what="gradient before ReLU's")
            self._copy_image("gradient of flatten", source, View(apart, c, h, w))
            self._combine("ReLU's gradient", apart, None, dx, mask=mask.memory)
        else:
            self._copy_image("gradient of flatten", source, View(dx, c, h, w), mask=mask)
        join()

    def wide(self, unit: Unit) -> bool:
        """Whether a dense layer runs over all images at once. (Up to tiles.FEW images that adds up in the order of one by one.)"""
        many = self.images >= MANY_ROWS and self.graph.shapes[unit.weight][0] >= MANY_OUTPUTS
        return self.few and self.images <= tiles.FEW or self.graph.bytes(unit.weight) > SMALL or many

    def _product(self, rows: int, columns: int, terms: int, numbers: dict, into: list | None, touches: list, once: bool, what: str, packed: bool | None = None) -> None:
        """c = a @ b. numbers: those that are known only when memory is laid out are functions. packed: by gemm_packed, if it is not
        left to the shape."""
        work = None
        if tiles.is_packed(rows, columns, terms, self.T) if packed is None else packed:
            packs, turned = numbers["a_term"] != 1, numbers["b_term"] == 1  # a function, too, is from one image to the next
            factory, (tile, blocks, size) = tiles.gemm_packed, tiles.best_packed(rows, columns, terms, self.T, self.slots, packs, turned)
            work = self.memory(Memory(size, "panels", self.slots))
        else:
            factory, (tile, blocks) = tiles.gemm, tiles.best_blocks(rows, columns, terms, self.T)

        def build():
            found = {name: value() if callable(value) else value for name, value in numbers.items()}
            found.update(rows=rows, columns=columns, terms=terms, **blocks)
            if work is not None:
                found.update(panel=At(work, alone=True), panel_slot=work.step)
            return [(self.kernel(factory, *tile), tiles.GEMM, found)]

        self.step(what, build, touches, 2 * rows * columns * terms, once=once, into=into, with_before=into is self.finish)

    def step_of(self, memory) -> int:
        """Numbers from one image's row to the next."""
        return memory.image // self.item

    def linear(self, unit: Unit) -> None:
        (x, _), (y, _) = self.row(unit.x), self.row(unit.output)
        rows, once = (self.images, True) if self.wide(unit) else (1, False)
        if once:
            self._keep(x, y)
        self.dense(unit, x, y, rows, once, unit.relu)

    def matrix(self, unit: Unit) -> tuple[int, int]:
        """(outputs, terms): the shape of its weights, a convolution's as the matrix that they are to a product with patches."""
        k, *terms = self.graph.shapes[unit.weight]
        return k, prod(terms)

    def dense(self, unit: Unit, x, y, rows: int, once: bool, relu: bool) -> None:
        """y = x @ W^T + b, and ReLU, of so many rows."""
        k, t = self.matrix(unit)
        bias = dict(bias=At(Outside(unit.bias), alone=True)) if unit.bias is not None else {}
        if not tiles.turned_is_packed(rows, k, t):
            high, wide = tiles.best_dots(rows, k)

            def build():
                stay = max(high, (1 << 19) // (t * self.item) // high * high)
                numbers = dict(
                    rows=rows, columns=k, terms=t, a=At(x), a_row=self.step_of(x), b=At(Outside(unit.weight)), b_row=t,
                    c=At(y), c_row=self.step_of(y), stay=stay, row_shares=1, relu=relu, **bias,
                )  # fmt: skip
                return [(self.kernel(tiles.dots, high, wide, max(TARGET.lanes(self.T), tiles.LEAST_LANES)), tiles.DOTS, numbers)]

            self.step(unit.name, build, [x, y], 2 * rows * k * t, once=once)
            return
        numbers = dict(a=At(x), a_row=lambda: self.step_of(x), a_term=1, b=At(Outside(unit.weight)), b_term=1, b_column=t, c=At(y), c_row=lambda: self.step_of(y), relu=relu, **bias)
        self._product(rows, k, t, numbers, None, [x, y], once, unit.name, packed=True)

    def _keep(self, *memories) -> None:
        for m in memories:
            if isinstance(m, Buffer):
                m.kept = True

    def hyper_of(self, parameter: int) -> At:
        """Where the optimiser's numbers for a parameter lie. (They get their memory behind all layers, so this is asked late.)"""
        return At(self.hyper, list(self.graph.updates).index(parameter) * HYPER * 8 // self.item, alone=True)

    def linear_back(self, unit: Unit) -> None:
        (x, _), dy = self.row(unit.x), self.gradients[unit.output]
        once = self.wide(unit)
        self._keep(x, dy)
        if not self.needs.get(unit.x):
            self.dense_back(unit, x, dy, None, None, self.images, once)
            return
        mask, (dx, join) = self.mask(unit.x), self.joined(unit.x)
        if once:
            self._keep(dx)
        self.dense_back(unit, x, dy, dx, mask, self.images, once)
        join()

    def dense_back(self, unit: Unit, x, dy, dx, mask: Buffer | None, n: int, once: bool) -> None:
        """The gradients of a dense layer of n rows: of its bias and its weights, where they are wanted, over all rows; and dx, if it is not
        None, of all rows or (once: False) image by image."""
        k, t = self.matrix(unit)
        rows = n if once else 1
        if unit.bias is not None and self.needs.get(unit.bias):
            total = self.weight_gradient(unit.bias)

            def build():
                return [(self.kernel(layers.row_sums), layers.FEATURES, dict(count=k, images=n, dy=At(dy, alone=True), dy_row=self.step_of(dy), y=At(total, alone=True)))]

            self.step("gradient of the bias", build, [dy], n * k, once=True, into=self.finish, with_before=True)
        sgd = self.graph.updates.get(unit.weight) == "sgd" and self.needs.get(unit.weight)
        joint = tiles.best_dense_back(n, t, self.T, self.slots) if once and sgd and dx is not None else None
        if sgd:
            self.stepped[unit.weight] = (x, dy, n, k, t)
        if self.needs.get(unit.weight) and not joint:
            numbers = dict(a=At(dy), a_row=1, a_term=lambda: self.step_of(dy), b=At(x), b_term=lambda: self.step_of(x), c_row=t)
            if sgd:
                numbers.update(c=At(Outside(unit.weight)), hyper=lambda: self.hyper_of(unit.weight), fault=At(self.fault, alone=True))
                self._product(k, t, n, numbers, self.finish, [dy, x], True, "gradient of the weights and step of SGD", packed=True)
            else:
                gradient = self.weight_gradient(unit.weight)
                numbers.update(c=At(gradient))
                self._product(k, t, n, numbers, self.finish, [dy, x], True, "gradient of the weights")
        if joint:
            self._back_and_step(unit, *joint, x, dy, dx, mask, n)
        elif dx is not None:
            numbers = dict(a=At(dy), a_row=lambda: self.step_of(dy), a_term=1, b=At(Outside(unit.weight)), b_term=t, c=At(dx), c_row=lambda: self.step_of(dx))
            if mask is not None:
                self._keep(mask)
                numbers.update(mask=At(mask), mask_row=lambda: self.step_of(mask))
            self._product(rows, t, k, numbers, None, [dy, dx, mask], once, "gradient of the rows")

    def _back_and_step(self, unit: Unit, factory, tile: tuple, blocks: dict, x, dy, dx, mask: Buffer | None, n: int) -> None:
        """The gradient of the rows, and the step of the weights that makes it, in one pass over these."""
        k, t = self.matrix(unit)
        if mask is not None:
            self._keep(mask)
        panel = self.memory(Memory(blocks["term_block"] * tile[2] * tile[3], "panel of weights", self.slots)) if factory is tiles.dense_back else None

        def build():
            numbers = dict(
                rows=n, columns=t, terms=k, **blocks, dy=At(dy, alone=True), dy_row=self.step_of(dy), w=At(Outside(unit.weight), alone=True),
                x=At(x, alone=True), x_row=self.step_of(x), dx=At(dx, alone=True), dx_row=self.step_of(dx), hyper=self.hyper_of(unit.weight), fault=At(self.fault, alone=True),
            )  # fmt: skip
            if panel is not None:
                numbers.update(panel=At(panel, alone=True), panel_slot=panel.step)
            if mask is not None:
                numbers.update(mask=At(mask, alone=True), mask_row=self.step_of(mask))
            return [(self.kernel(factory, *tile), tiles.DENSE_BACK, numbers)]

        self.step("gradient of the rows, step of SGD of the weights", build, [dy, dx, mask], 4 * n * k * t, once=True)

    def _rowwise(self, unit: Unit) -> None:
        (x, count), (y, _) = self.row(unit.x), self.row(unit.output)
        self.step(unit.name, lambda: [(self.kernel(getattr(layers, unit.kind)), layers.ROWS, dict(count=count, x=At(x), y=At(y)))], [x, y], 10 * count)

    def _rowwise_back(self, unit: Unit) -> None:
        (x, count), (y, _), dy = self.row(unit.x), self.row(unit.output), self.gradients[unit.output]
        mask, (dx, join) = self.mask(unit.x), self.joined(unit.x)
        if mask is not None:
            apart, dx = dx, self.buffer(count, what="gradient before ReLU's")
        self.step(f"gradient of {unit.kind}", lambda: [(self.kernel(getattr(layers, unit.kind + "_back")), layers.ROWS, dict(count=count, x=At(x), y=At(y), dy=At(dy), dx=At(dx)))], [x, y, dy, dx], 10 * count)
        if mask is not None:
            self._combine("ReLU's gradient", dx, None, apart, mask=self._own_row(unit.x))
        join()

    softmax = log_softmax = log = _rowwise
    softmax_back = log_softmax_back = log_back = _rowwise_back

    def _loss(self, unit: Unit) -> None:
        x, count = self.row(unit.x)
        target = Outside(unit.other, 8)
        losses = self.memory(Memory(self.images, "losses"))
        backward = self.graph.loss == unit.output and self.needs[unit.output]
        dx = None
        if backward:
            mask, (dx, join) = self.mask(unit.x), self.joined(unit.x)
            if mask is not None:
                apart, dx = dx, self.buffer(count, what="gradient before ReLU's")
        mean = unit.calls[0].parameters["reduction"] == "mean"
        self.scaled = 1 / self.images if mean else 1.0

        def build():
            numbers = dict(count=count, x=At(x), target=At(target), loss=(At(losses, alone=True), 0, self.item), scale=At(self.scale, alone=True), fault=At(self.fault, alone=True))
            if dx is not None:
                numbers.update(dx=At(dx))
            return [(self.kernel(getattr(layers, unit.kind)), layers.ROWS, numbers)]

        self.step(unit.name, build, [x, dx], 10 * count)
        if backward and mask is not None:
            self._combine("ReLU's gradient", dx, None, apart, mask=self._own_row(unit.x))
        if backward:
            join()
        if unit.output not in self.graph.results:
            return
        out = Outside(("result", unit.output))
        self.step("loss", lambda: [(self.kernel(layers.total), layers.ROWS, dict(count=self.images, loss=(At(losses, alone=True), 0, self.item), y=At(out), scale=At(self.scale, alone=True)))], [], once=True, into=self.steps if self.seeds else self.finish, with_before=True)

    cross_entropy = nll_loss = _loss

    def _loss_back(self, unit: Unit) -> None:
        """Done with the loss itself."""

    cross_entropy_back = nll_loss_back = _loss_back
