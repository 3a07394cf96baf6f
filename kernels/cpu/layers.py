"""Kernels of compiled networks beside convolution and matrix product: what stands between those, and the loss. Here is what
their rows hold; their code is in layers_kernels.py and loss_kernels.py.

Images lie as (rows, columns, channels) with a halo of zeros that nobody writes, so padding costs nothing; a row of
numbers (the features of an image that was flattened, logits, losses) is a buffer of one pixel. A place in memory is
three numbers of a row: an address, and the bytes from one slot and from one image to the next (tiles.place).

network.py says which of them a network needs.
"""

from __future__ import annotations

from tinynet.kernels.cpu.rows import fields, kernels_in

# --- into the program's memory, and out of it -----------------------------------------------------------------

BRING = fields("planes rows run x x_slot x_image x_plane x_row y y_slot y_image y_plane y_row")
TURN = fields("rows high wide y_lanes x x_slot x_image x_row x_step y y_slot y_image y_row y_step mask mask_slot mask_image mask_row mask_step")
PACK = fields("outer w_outer inner w_inner y_inner rows w_row columns y_step lanes panel y_panel w seen y")

# --- pooling ---------------------------------------------------------------------------------------------------------

POOL = fields(
    "rows columns lanes height width kr kc sr sc dr dc top left bottom right average "
    "x x_slot x_image x_y x_x y y_slot y_image y_y y_x dy dy_slot dy_image dy_y dy_x dx dx_slot dx_image dx_y dx_x add add_slot add_image add_y add_x mask"
)  # fmt: skip
MAXIMUM, AVERAGE, AVERAGE_INSIDE = range(3)  # the last counts only what lies inside the image
SPREAD = fields("rows columns lanes dy dy_slot dy_image dy_y dy_x winner winner_slot winner_image winner_y winner_x dz dz_slot dz_image dz_y dz_x sums sums_chunk sums_images sums_chunks")
PLANES = fields("images run image plane dy y")
MAX_POOL = fields("x y argmax height width lanes rows columns kr kc sr sc dr dc top left work work_slot line wide")
AVERAGES = fields("x y height width lanes rows columns kr kc sr sc top left bottom right average work work_slot line wide")
SCATTER = fields("dy argmax dx outputs inputs lanes")

# --- each number by itself ---------------------------------------------------------------------------------------------

COMBINE = fields("rows columns lanes a a_slot a_image a_y a_x b b_slot b_image b_y b_x y y_slot y_image y_y y_x relu mask mask_slot mask_image mask_y mask_x")
FEATURES = fields("count images dy dy_row y")
FOLD = fields("count together sums sums_chunk")
ELEMENTS = fields("count dy x dx")

# --- rows: probabilities and losses ----------------------------------------------------------------------------------------

ROWS = fields("count x x_slot x_image y y_slot y_image dy dy_slot dy_image dx dx_slot dx_image target target_slot target_image loss loss_slot loss_image scale fault")

# --- optimisers ------------------------------------------------------------------------------------------------------------

UPDATE = fields("count w g first second hyper fault")

# --- between the steps, where a program is profiled ------------------------------------------------------------------------

STAMP = fields("stamps stamps_slot step")

# --- the kernels, in layers_kernels.py, loss_kernels.py and clock_kernels.py --------------------------------------------------

(
    bring, turn, pack, depthwise, depthwise_dw, pool, pool_back, spread, channel_sums, plane_sums, combine, relu_back, row_sums, fold,
) = kernels_in(
    "layers_kernels",
    "bring turn pack depthwise depthwise_dw pool pool_back spread channel_sums plane_sums combine relu_back row_sums fold",
)  # fmt: skip
(
    softmax, softmax_back, log_softmax, log_softmax_back, log, log_back, nll_loss, cross_entropy, total, sgd, momentum, adam,
) = kernels_in(
    "loss_kernels",
    "softmax softmax_back log_softmax log_softmax_back log log_back nll_loss cross_entropy total sgd momentum adam",
)  # fmt: skip
(stamp,) = kernels_in("clock_kernels", "stamp")
