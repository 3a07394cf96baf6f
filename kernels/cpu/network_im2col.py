"""Convolutions of a compiled network (network.py) whose weights are large and serve few pixels, as products of matrices.

    patches[pixel, (c, u, v)] = x[c, i * stride + u * dilation - padding, ...]        im2col
    y = patches @ W^T          dpatches = dy @ W          dW = dy^T @ patches         W: (outputs, channels * kernel), as it lies
    dx[c, h, w] = the sum of all dpatches that were copied from there                 col2im

The other way (network_convolution.py) reads a copy of the weights, in an order that makes fast tiles: worth it where hundreds of pixels
read each weight. Where a few do, all time goes by waiting for memory: a copy makes three passes over the weights of one, sums of their
gradients three more. As a dense layer's, they are read where they lie, once; patches of few pixels are small, though each number is
in them once for each tap of the kernel, and zeros of the padding too.
"""

from __future__ import annotations

from tinynet.kernels.cpu import layers, tiles
from tinynet.kernels.cpu.fuse import Unit
from tinynet.kernels.cpu.memory import At, Buffer, Rows
from tinynet.kernels.cpu.network_layers import Layers
from tinynet.kernels.cpu.network_planner import View


class Im2col(Layers):
    def _patch_numbers(self, unit: Unit) -> dict:
        return dict(self.window_numbers(unit), channels=self.shape(unit.x)[0])

    def im2col(self, unit: Unit) -> None:
        (k, terms), (_, rows, columns) = self.matrix(unit), self.shape(unit.output)
        pixels = self.images * rows * columns
        x, y, numbers = self.conv_input(unit), self.image(unit.output), self._patch_numbers(unit)
        patches = self.views[unit.output, "patches"] = self.memory(Rows(pixels, terms, self.item, f"patches of value {unit.x}"))
        products = self.memory(Rows(pixels, k, self.item, f"pixels of value {unit.output}"))

        def build():
            places = dict(x=x.at(-numbers["top"], -numbers["left"]), x_y=x.y, x_x=x.x, y=(At(patches, alone=True), 0, rows * columns * patches.image))
            return [(self.kernel(tiles.patches), tiles.PATCHES, dict(numbers, **places))]

        self.step("patches", build, [x.memory], 4 * rows * columns * terms)
        self.dense(unit, patches, products, pixels, True, unit.relu and unit.other is None)
        sums = y if unit.other is None else View(self.buffer(k, rows, columns, what=f"one branch of value {unit.output}"), k, rows, columns)
        self._pixels("pixels into an image", sums.memory, products, rows, columns, k, out=False)
        if unit.other is not None:
            self._combine("the other branch", sums.memory, self.image(unit.other).memory, y.memory, relu=unit.relu)

    def _pixels(self, what: str, image: Buffer, matrix: Rows, rows: int, columns: int, channels: int, out: bool) -> None:
        """An image's pixels as rows of a matrix, or (out: False) these into the image."""

        def build():
            places = [(At(image), image.y, image.x), ((At(matrix, alone=True), 0, rows * columns * matrix.image), columns * channels, channels)]
            (x, x_plane, x_row), (y, y_plane, y_row) = places if out else places[::-1]
            return [(self.kernel(layers.bring), layers.BRING, dict(planes=rows, rows=columns, run=channels, x=x, x_plane=x_plane, x_row=x_row, y=y, y_plane=y_plane, y_row=y_row))]

        self.step(what, build, [image], rows * columns * channels)

    def im2col_back(self, unit: Unit) -> None:
        (k, terms), (_, rows, columns) = self.matrix(unit), self.shape(unit.output)
        pixels = self.images * rows * columns
        dz, numbers = self.gradients[unit.output], self._patch_numbers(unit)
        dy = self.memory(Rows(pixels, k, self.item, f"pixels of the gradient of value {unit.output}"))
        self._pixels("pixels of the gradient", dz, dy, rows, columns, k, out=True)
        needed = self.needs.get(unit.x)
        back = self.memory(Rows(pixels, terms, self.item, f"gradient of the patches of value {unit.x}")) if needed else None
        self.dense_back(unit, self.views[unit.output, "patches"], dy, back, None, pixels, True)
        if needed:
            mask, (dx, before) = self.mask(unit.x), self.contribution(unit.x)

            def build():
                places = dict(x=At(dx), x_y=dx.y, x_x=dx.x, y=(At(back, alone=True), 0, rows * columns * back.image))
                if before is not None:
                    places.update(add=At(before), add_y=before.y, add_x=before.x)
                if mask is not None:
                    places.update(mask=mask.at(), mask_y=mask.y, mask_x=mask.x)
                return [(self.kernel(tiles.patches_back), tiles.PATCHES, dict(numbers, **places))]

            self.step("gradient of the images, from the patches'", build, [dx, before, mask and mask.memory], 4 * rows * columns * terms)
        if unit.other is not None and self.needs.get(unit.other):
            self.pass_on(unit.other, dz)
